"""Claims about losses, scores and the catalogue of tasks."""

import functools
import inspect
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


@pytest.fixture(params=["default", "strict"])
def numerics(request):
    """Runs a test under JAX's defaults, and as all tests: 64 bits, no implicit promotion of dtype or rank."""
    strict = request.param == "strict"
    with (
        jax.enable_x64(strict),
        jax.numpy_dtype_promotion("strict" if strict else "standard"),
        jax.numpy_rank_promotion("raise" if strict else "allow"),
    ):
        yield request.param


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


def _check_example(task, example, length):
    """Holds one example to what `Batch` promises."""
    inputs, answer = (
        example.keys() & {"xs", "tokens"},
        example.keys() & {"label", "target", "labels", "targets", "answer"},
    )
    assert inputs == ({"tokens"} if task.reads_tokens else {"xs"})
    (answer,) = answer
    assert example.keys() == inputs | {answer}
    assert (answer == "answer") == (task.kind is tasks.Kind.SEQUENCE)
    per_step = task.kind in (tasks.Kind.ANSWER_A_STEP, tasks.Kind.STREAM)
    assert per_step == (answer in ("labels", "targets"))
    assert length <= task.seq_len
    if task.reads_tokens:
        assert (example["tokens"].shape, example["tokens"].dtype) == ((length,), np.int32)
        assert np.all((example["tokens"] >= 0) & (example["tokens"] < task.in_features))
    else:
        features = task.in_features if isinstance(task.in_features, tuple) else (task.in_features,)
        assert (example["xs"].shape, example["xs"].dtype) == ((length, *features), np.float32)
    steps = (length,) if per_step else ()
    if answer == "answer":
        assert (example[answer].shape, example[answer].dtype) == ((task.answer_length,), np.int32)
        (ends,) = np.nonzero(example[answer] == task_lib.END)
        assert len(ends) == 1
        assert np.all(example[answer][ends[0] + 1 :] == task_lib.NOT_ASKED)
        assert np.all((example[answer][: ends[0]] > 0) & (example[answer][: ends[0]] < task.out_features))
    elif answer.startswith("label"):
        assert (example[answer].shape, example[answer].dtype) == (steps, np.int32)
        lowest = task_lib.NOT_ASKED if per_step else 0
        assert np.all((example[answer] >= lowest) & (example[answer] < task.out_features))
        assert len(task.class_names) in (0, task.out_features)
    else:
        assert (example[answer].shape, example[answer].dtype) == ((*steps, task.out_features), np.float32)


def _make(name, data_dir):
    """Makes a task of the catalogue; of one that draws its examples, few."""
    options = inspect.signature(tasks.TASKS[name]).parameters
    return tasks.make_task(
        name, data_dir=data_dir, **{size: 64 for size in ("train_size", "test_size") if size in options}
    )


@pytest.fixture(scope="module")
def made(data_dir):
    """Makes a task, once."""
    return functools.cache(functools.partial(_make, data_dir=data_dir))


A_TASK_OF_EACH_KIND = ("digits", "copy", "sine", "stdlib_text", "dates")


@pytest.mark.parametrize(
    ("numerics", "name"),
    [*(("strict", name) for name in tasks.TASKS), *(("default", name) for name in A_TASK_OF_EACH_KIND)],
    indirect=["numerics"],
)
def test_every_task_keeps_the_contract(numerics, made, name):
    task = made(name)
    assert task.name == name
    assert all(isinstance(value, str) for value in task.fingerprint.values())
    assert (task.kind is tasks.Kind.STREAM) == isinstance(task.train, tasks.StreamSource)
    for source in (task.train, task.test, *([task.validation] if task.validation else [])):
        for index in (0, len(source) - 1):
            _check_example(task, source[index], task.seq_len if source.lengths is None else source.lengths[index])
        with pytest.raises(IndexError):
            source[len(source)]
    batch = next(tasks.batches(task.train, 32, 0))

    @jax.jit
    def learn(kernel):
        def model(kernel):
            def apply(inputs, lengths=None, answer=None):
                xs = jax.nn.one_hot(inputs, task.in_features, dtype=jnp.float32) if task.reads_tokens else inputs
                xs = xs.reshape(*xs.shape[:2], -1)
                if answer is not None:
                    logits = jnp.broadcast_to((xs.mean(axis=1) @ kernel)[:, None], (*answer.shape, task.out_features))
                    return logits, jnp.zeros(len(answer), jnp.float32)
                return (xs.mean(axis=1) if task.kind is tasks.Kind.ONE_ANSWER else xs) @ kernel

            apply.greedy = lambda inputs, lengths, steps: jnp.zeros((len(inputs), steps), jnp.int32)
            return apply

        loss, grad = jax.value_and_grad(lambda kernel: task.loss(model(kernel), batch))(kernel)
        return loss, grad, task.score(model(kernel), batch)

    kernel = jnp.zeros((np.prod(task.in_features), task.out_features), jnp.float32)
    loss, grad, (total, count) = learn(kernel)
    assert loss.shape == total.shape == count.shape == ()
    assert (loss.dtype, total.dtype, count.dtype) == (jnp.float32, jnp.float32, jnp.int32)
    answers = np.count_nonzero(batch["labels"] != task_lib.NOT_ASKED) if "labels" in batch else None
    if task.kind is tasks.Kind.SEQUENCE:  # one for each sequence, or for each token of an answer
        answers = (
            32
            if task.metric in ("exact match", "word overlap")
            else np.count_nonzero(batch["answer"] != task_lib.NOT_ASKED)
        )
    elif answers is None:  # one for each sequence, or for each true step
        steps = np.sum(batch.get("lengths", task.seq_len * np.ones(32)))
        answers = steps if task.kind is tasks.Kind.ANSWER_A_STEP else 32
    assert int(count) == answers
    assert learn(kernel - 0.01 * grad)[0] < loss


@pytest.mark.parametrize("name", tasks.TASKS)
def test_two_makings_of_a_task_agree(made, name, data_dir):
    first, second = made(name), _make(name, data_dir)
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
        ("digits", {"test_seq_len": 63}, "test_seq_len=63 is out of range for the task 'digits'; allowed: 64 or more."),
        ("digits", {"blanks": -1}, "blanks=-1 is out of range; allowed: 0 or more."),
        (
            "adding",
            {"blanks": 3},
            "blanks=3 is no option of the task 'adding'; it has: seq_len, train_size, test_size, seed, test_seq_len.",
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
