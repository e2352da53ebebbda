"""Claims about batches, losses and the catalogue of tasks."""

import itertools
import json
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks import task as task_lib

_N = 10


@pytest.fixture
def source():
    """Ten examples of three steps; example i is full of i, so that a batch shows which examples it holds."""
    label = np.arange(_N, dtype=np.int32)
    return tasks.ArraySource(xs=np.tile(label[:, None, None].astype(np.float32), (1, 3, 1)), label=label)


@pytest.fixture(params=["default", "strict"])
def numerics(request):
    """Runs a test under JAX's defaults, and under 64 bits with no implicit promotion of dtype or rank."""
    strict = request.param == "strict"
    with (
        jax.enable_x64(strict),
        jax.numpy_dtype_promotion("strict" if strict else "standard"),
        jax.numpy_rank_promotion("raise" if strict else "allow"),
    ):
        yield request.param


def _labels(iterator, n_batches):
    return [batch["label"].tolist() for batch in itertools.islice(iterator, n_batches)]


def test_a_seed_decides_the_batches(source):
    first, again, other = (_labels(tasks.batches(source, 4, seed), 10) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("batch_size", [1, 3, _N])
def test_every_example_is_seen_once_an_epoch(source, batch_size):
    epochs = 3
    read = _labels(tasks.batches(source, batch_size, 0), epochs * _N // batch_size)
    stream = list(itertools.chain.from_iterable(read))
    for epoch in range(epochs):
        assert sorted(stream[epoch * _N : (epoch + 1) * _N]) == list(range(_N))


def test_every_epoch_has_its_own_order(source):
    assert len({tuple(epoch) for epoch in _labels(tasks.batches(source, _N, 0), 5)}) == 5


def test_batches_stack_examples_and_keep_their_dtype(source):
    batch = next(tasks.batches(source, 4, 0))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "xs": ((4, 3, 1), np.float32),
        "label": ((4,), np.int32),
    }
    np.testing.assert_array_equal(batch["xs"][:, 0, 0], batch["label"])


def test_a_restored_iterator_gives_the_next_batch(source):
    iterator = tasks.batches(source, 3, 0)
    _labels(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = _labels(iterator, 5)
    iterator.set_state(state)
    assert _labels(iterator, 5) == expected
    another = tasks.batches(source, 3, 0)
    another.set_state(state)
    assert _labels(another, 5) == expected


@pytest.mark.parametrize("batch_size", [-1, 0, _N + 1])
def test_a_batch_of_impossible_size_is_refused(source, batch_size):
    with pytest.raises(ValueError, match=rf"^batch_size={batch_size} is out of range; allowed: 1 to 10, .*\.$"):
        tasks.batches(source, batch_size, 0)


def test_a_negative_seed_is_refused(source):
    with pytest.raises(ValueError, match=r"^seed=-1 is out of range; allowed: 0 or more\.$"):
        tasks.batches(source, 1, -1)


def test_as_batch_holds_all_examples_in_order(source):
    batch = tasks.as_batch(source)
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(batch[name], array, strict=True)


def test_an_example_in_memory_cannot_be_changed(source):
    with pytest.raises(ValueError, match="read-only"):
        source[0]["xs"][0] = 1


def test_arrays_of_unequal_length_are_no_source():
    with pytest.raises(ValueError, match="one length"):
        tasks.ArraySource(xs=np.zeros(2), label=np.zeros(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_cross_entropy_and_accuracy_are_those_by_hand(numerics, dtype):
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.25], [0.0, 0.0, 3.0], [1.0, 4.0, 2.0]])
    batch = {"xs": np.zeros((4, 2, 1), np.float32), "label": np.array([0, 2, 2, 0], np.int32)}

    def model(xs):
        return jnp.asarray(logits).astype(dtype) if dtype != "float64" else logits

    # Every logit above is exact in bfloat16: a low-precision model is judged to full precision.
    chosen = logits[np.arange(4), batch["label"]]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen)
    np.testing.assert_allclose(task_lib.cross_entropy(model, batch), expected, rtol=1e-6)
    np.testing.assert_allclose(task_lib.nats(model, batch), (4 * expected, 4), rtol=1e-6)
    assert task_lib.accuracy(model, batch) == (2, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_mean_squared_error_is_that_by_hand(numerics, dtype):
    ys, target = np.array([[1.5], [0.25], [-2.0]]), np.array([[1.0], [0.5], [1.0]], np.float32)
    batch = {"xs": np.zeros((3, 2, 1), np.float32), "target": target}

    def model(xs):
        return jnp.asarray(ys).astype(dtype) if dtype != "float64" else ys

    expected = (0.5**2 + 0.25**2 + 3.0**2) / 3
    np.testing.assert_allclose(task_lib.mean_squared_error(model, batch), expected, rtol=1e-6)
    np.testing.assert_allclose(task_lib.squared_error(model, batch), (3 * expected, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("measure", "answer"),
    [
        (task_lib.cross_entropy, {"label": np.zeros(4, np.int32)}),
        (task_lib.accuracy, {"label": np.zeros(4, np.int32)}),
        (task_lib.nats, {"label": np.zeros(4, np.int32)}),
        (task_lib.mean_squared_error, {"target": np.zeros((4, 1), np.float32)}),
        (task_lib.squared_error, {"target": np.zeros((4, 1), np.float32)}),
    ],
)
def test_outputs_at_every_step_are_refused(measure, answer):
    batch = {"xs": np.zeros((4, 5, 1), np.float32), **answer}
    with pytest.raises(ValueError, match=r"returned an array of shape \(4, 5, 1\); the task needs \(4, 1\)"):
        measure(lambda xs: jnp.asarray(xs), batch)


def test_a_fingerprint_shows_any_change_of_content(source):
    def digest(**changed):
        arrays = {name: array.copy() for name, array in source.arrays.items()} | changed
        return task_lib.fingerprint(tasks.ArraySource(**arrays), source, ())["train_sha256"]

    one_value = source.arrays["xs"].copy()
    one_value[-1, -1] += 1
    same_bytes_other_dtype = source.arrays["label"].view(np.uint32)
    digests = [
        digest(),
        digest(xs=one_value),
        digest(label=same_bytes_other_dtype),
        digest(xs=source.arrays["xs"][::-1].copy()),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == task_lib.fingerprint(source, source, ())["test_sha256"]


def test_a_fingerprint_reads_no_more_than_it_is_told():
    class Watched:
        def __init__(self):
            self.seen = []

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.seen.append(index)
            return {"xs": np.zeros((1, 1), np.float32)}

    train, test = Watched(), Watched()
    assert task_lib.fingerprint(train, test, ("numpy",), first=2)["numpy"] == np.__version__
    assert train.seen == test.seen == [0, 1]


def _check_example(task, example, length):
    """Holds one example to what the head of `rnn_jax.tasks.task` promises."""
    inputs, answer = example.keys() & {"xs", "tokens"}, example.keys() & {"label", "target", "labels", "targets"}
    assert inputs == ({"tokens"} if task.reads_tokens else {"xs"})
    (answer,) = answer
    assert example.keys() == inputs | {answer}
    assert task.per_step == (answer in ("labels", "targets"))
    assert length <= task.seq_len
    if task.reads_tokens:
        assert (example["tokens"].shape, example["tokens"].dtype) == ((length,), np.int32)
        assert np.all((example["tokens"] >= 0) & (example["tokens"] < task.in_features))
    else:
        assert (example["xs"].shape, example["xs"].dtype) == ((length, task.in_features), np.float32)
    steps = (length,) if task.per_step else ()
    if answer.startswith("label"):
        assert (example[answer].shape, example[answer].dtype) == (steps, np.int32)
        lowest = task_lib.NOT_ASKED if task.per_step else 0
        assert np.all((example[answer] >= lowest) & (example[answer] < task.out_features))
        assert len(task.class_names) in (0, task.out_features)
    else:
        assert (example[answer].shape, example[answer].dtype) == ((*steps, task.out_features), np.float32)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_keeps_the_contract(numerics, name, data_dir):
    task = tasks.make_task(name, data_dir=data_dir)
    assert task.name == name
    assert all(isinstance(value, str) for value in task.fingerprint.values())
    for source in (task.train, task.test, *([task.validation] if task.validation else [])):
        for index in (0, len(source) - 1):
            _check_example(task, source[index], task.seq_len if source.lengths is None else source.lengths[index])
        with pytest.raises(IndexError):
            source[len(source)]
    batch = next(tasks.batches(task.train, 32, 0))

    @jax.jit
    def learn(kernel):
        def model(kernel):
            def apply(inputs, lengths=None):
                xs = jax.nn.one_hot(inputs, task.in_features, dtype=jnp.float32) if task.reads_tokens else inputs
                return (xs if task.per_step else xs.mean(axis=1)) @ kernel

            return apply

        loss, grad = jax.value_and_grad(lambda kernel: task.loss(model(kernel), batch))(kernel)
        return loss, grad, task.score(model(kernel), batch)

    kernel = jnp.zeros((task.in_features, task.out_features), jnp.float32)
    loss, grad, (total, count) = learn(kernel)
    assert loss.shape == total.shape == count.shape == ()
    assert (loss.dtype, total.dtype, count.dtype) == (jnp.float32, jnp.float32, jnp.int32)
    answers = np.count_nonzero(batch["labels"] != task_lib.NOT_ASKED) if "labels" in batch else None
    if answers is None:  # one for each sequence, or for each true step
        answers = np.sum(batch.get("lengths", task.seq_len * np.ones(32))) if task.per_step else 32
    assert int(count) == answers
    assert learn(kernel - 0.01 * grad)[0] < loss


@pytest.mark.parametrize("name", tasks.TASKS)
def test_two_makings_of_a_task_agree(name, data_dir):
    first, second = (tasks.make_task(name, data_dir=data_dir) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first != second
    assert hash(first) != hash(second)


def test_an_unknown_task_is_named_with_the_known_ones():
    known = ", ".join([*sorted(tasks.TASKS), *(f"{prefix}:..." for prefix in sorted(tasks.PREFIXES))])
    with pytest.raises(ValueError, match="^" + re.escape(f"unknown task 'mnist'; known: {known}") + "$"):
        tasks.make_task("mnist")


def test_seq_len_and_blanks_say_one_thing_for_digits(data_dir):
    made = [
        tasks.make_task("digits", data_dir=data_dir, **kwargs)
        for kwargs in ({"seq_len": 70}, {"blanks": 6}, {"seq_len": 70, "blanks": 6})
    ]
    assert [task.seq_len for task in made] == [70] * 3
    assert len({task.fingerprint["train_sha256"] for task in made}) == 1
    assert tasks.make_task("digits", data_dir=data_dir).seq_len == 64


def test_adding_takes_seq_len_and_no_blanks():
    assert tasks.make_task("adding").seq_len == 100
    assert tasks.make_task("adding", seq_len=7, blanks=0).seq_len == 7


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("digits", {"seq_len": 63}, "seq_len=63 is out of range for the task 'digits'; allowed: 64 or more."),
        (
            "digits",
            {"seq_len": 70, "blanks": 5},
            "seq_len=70 and blanks=5 contradict each other: for the task 'digits', seq_len = 64 + blanks.",
        ),
        ("digits", {"blanks": -1}, "blanks=-1 is out of range; allowed: 0 or more."),
        (
            "adding",
            {"blanks": 3},
            "blanks=3 is no option of the task 'adding'; it has: seq_len, train_size, test_size, seed.",
        ),
        (
            "adding",
            {"seq_len": 0},
            "seq_len=0 is out of range; allowed: 2 or more, one step for each marker.",
        ),
    ],
)
def test_an_impossible_wish_is_refused_in_one_sentence(name, kwargs, sentence, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(name, data_dir=tmp_path / "untouched", **kwargs)
    assert not (tmp_path / "untouched").exists()


def test_tensorflow_is_not_imported_even_where_it_could_be(tmp_path):
    (tmp_path / "tensorflow.py").write_text("")
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from rnn_jax import tasks
        task = tasks.digits(data_dir={str(tmp_path / "tfds")!r})
        next(tasks.batches(task.train, 8, 0))
        assert "tensorflow" not in sys.modules
        import tensorflow  # it could be
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_streams_go_on_where_their_batch_before_ended_and_begin_anew_with_each_pass():
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)  # 20 pieces, in streams of 6 for 3 rows
    iterator = tasks.stream_batches(source, 3)
    two_passes = [next(iterator) for _ in range(12)]
    for first_batch in (0, 6):
        one_pass = two_passes[first_batch : first_batch + 6]
        assert [bool(batch["first"]) for batch in one_pass] == [True] + 5 * [False]
        read = np.concatenate([batch["tokens"] for batch in one_pass], axis=1)
        np.testing.assert_array_equal(read, 30 * np.arange(3)[:, None] + np.arange(30))
        asked = np.concatenate([batch["labels"] for batch in one_pass], axis=1)
        np.testing.assert_array_equal(asked, read + 1)


def test_streams_resume_at_any_batch():
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)
    iterator = tasks.stream_batches(source, 3)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = tasks.stream_batches(source, 3)
    resumed.set_state(state)
    for _ in range(8):
        expected, found = next(iterator), next(resumed)
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("batch_size", [0, 21])
def test_more_streams_than_pieces_are_refused(batch_size):
    source = tasks.StreamSource(np.arange(103, dtype=np.int32), 5)
    with pytest.raises(ValueError, match=f"^batch_size={batch_size} is out of range; allowed: 1 to 20, the pieces"):
        tasks.stream_batches(source, batch_size)
