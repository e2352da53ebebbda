"""Claims about series of the user, from NumPy files and from the UCR/UEA text format."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import tasks

_HEADER = """\
# A comment, with a letter that is no ASCII: é
@problemName Toy
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data
"""


def _series(length, label, seed, features=2):
    noise = np.random.default_rng(seed).normal(size=(length, features))
    return noise + (np.linspace(0, 3, length) * (1 if label == "up" else -1))[:, None]


def _examples(count, features=2):
    """Series of unequal lengths, 5 to 9 steps, of two classes in turn."""
    labels = ["up", "down"] * (count // 2)
    return [(_series(5 + k % 5, label, k, features), label) for k, label in enumerate(labels)]


def _write_class_folders(folder, examples):
    for k, (xs, label) in enumerate(examples):
        (folder / label).mkdir(parents=True, exist_ok=True)
        np.save(folder / label / f"{k:03}.npy", xs)


def _write_ts(file, examples, header=_HEADER):
    rows = [":".join(",".join(map(repr, column.tolist())) for column in xs.T) + f":{label}" for xs, label in examples]
    file.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")


def _contents(source):
    """All examples of a source, as a sorted list that does not depend on their order."""
    return sorted(
        (int(example["label"]), example["xs"].tobytes()) for example in map(source.__getitem__, range(len(source)))
    )


def _normalized(examples, train):
    """The expected content: less the mean and over the deviation of the training split, computed a step at a time."""
    steps = [step for xs, _ in train for step in xs.tolist()]
    mean = [sum(column) / len(steps) for column in zip(*steps)]
    std = [(sum((v - m) ** 2 for v in column) / len(steps)) ** 0.5 for column, m in zip(zip(*steps), mean)]
    return [
        (np.array([[(v - m) / s for v, m, s in zip(step, mean, std)] for step in xs.tolist()]), y) for xs, y in examples
    ]


def _assert_same(source, examples, classes):
    found = [source[index] for index in range(len(source))]
    assert len(found) == len(examples)
    for xs, label in examples:
        near = [f for f in found if f["xs"].shape == xs.shape and np.allclose(f["xs"], xs, atol=1e-6)]
        assert [classes[f["label"]] for f in near] == [label]


def test_folders_of_one_s_own_splits_are_read_and_normalized_by_training_alone(tmp_path):
    examples = _examples(40)
    own = {"train": examples[:24], "validation": examples[24:30], "test": examples[30:]}
    for split, part in own.items():
        _write_class_folders(tmp_path / split, part)
    task = tasks.make_task(f"series:{tmp_path}")
    assert (task.name, task.class_names) == (f"series:{tmp_path}", ("down", "up"))
    assert (task.seq_len, task.in_features, task.out_features) == (9, 2, 2)
    for split, part in own.items():
        _assert_same(getattr(task, split), _normalized(part, own["train"]), task.class_names)
    assert task.train.lengths.tolist() == [len(task.train[k]["xs"]) for k in range(24)]
    steps = np.concatenate([task.train[k]["xs"] for k in range(24)])
    np.testing.assert_allclose(steps.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(steps.std(axis=0), 1, rtol=1e-6)


def test_without_splits_a_tenth_of_each_class_is_drawn_for_test_and_validation(tmp_path):
    _write_class_folders(tmp_path, _examples(40))
    first, again, other = (tasks.make_task(f"series:{tmp_path}", split_seed=seed) for seed in (0, 0, 1))
    assert [len(split) for split in (first.train, first.validation, first.test)] == [32, 4, 4]
    for split in (first.validation, first.test):
        assert sorted(int(split[k]["label"]) for k in range(4)) == [0, 0, 1, 1]
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint["test_sha256"] != other.fingerprint["test_sha256"]


def test_a_pair_of_ts_files_is_read_as_the_folders_are(tmp_path):
    examples = _examples(40)
    _write_ts(tmp_path / "Toy_TRAIN.ts", examples[:30])
    _write_ts(tmp_path / "Toy_TEST.ts", examples[30:])
    for path in (tmp_path, tmp_path / "Toy_TRAIN.ts", tmp_path / "Toy_TEST.ts"):
        task = tasks.make_task(f"series:{path}")
        assert task.class_names == ("up", "down")  # in the order of @classLabel
        assert [len(split) for split in (task.train, task.validation, task.test)] == [26, 4, 10]
        kept = [e for e in examples[:30] if any(np.isclose(_undone(task, k), e[0][0, 0]).any() for k in range(26))]
        assert len(kept) == 26
        _assert_same(task.test, _normalized(examples[30:], kept), task.class_names)


def _undone(task, index):
    """The first value of a training series before it was normalized, by what the fingerprint notes."""
    mean, std = (float(task.fingerprint[f"feature_{name}"].split()[0]) for name in ("mean", "std"))
    return task.train[index]["xs"][0, 0] * std + mean


def test_a_single_ts_file_is_split_by_seed(tmp_path):
    _write_ts(tmp_path / "mine.ts", _examples(40))
    by_file, by_folder = tasks.make_task(f"series:{tmp_path / 'mine.ts'}"), tasks.make_task(f"series:{tmp_path}")
    assert [len(split) for split in (by_file.train, by_file.validation, by_file.test)] == [32, 4, 4]
    assert by_file.fingerprint == by_folder.fingerprint


def test_arrays_of_equal_length_need_no_padding(tmp_path):
    labels = np.array([3, 12] * 20)
    xs = np.random.default_rng(0).normal(size=(40, 7))
    np.save(tmp_path / "xs.npy", xs)
    np.save(tmp_path / "labels.npy", labels)
    task = tasks.make_task(f"series:{tmp_path}")
    assert task.class_names == ("3", "12")
    assert task.train.lengths is None
    batch = next(tasks.batches(task.train, 8, 0))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "xs": ((8, 7, 1), np.float32),
        "label": ((8,), np.int32),
    }
    np.save(tmp_path / "xs.npy", xs[..., None])
    assert tasks.make_task(f"series:{tmp_path}").fingerprint == task.fingerprint


def test_missing_values_are_interpolated_and_held_at_the_ends(tmp_path):
    header = _HEADER.replace("@dimensions 2", "@dimensions 1")
    rows = ["?,1,?,?,4,NaN:up", "1,1,2,3,4,4:up", "0,5:down", "5,0:down"]
    (tmp_path / "Toy_TRAIN.ts").write_text(header + "\n".join(rows))
    (tmp_path / "Toy_TEST.ts").write_text(header + "\n".join(rows))
    test = tasks.make_task(f"series:{tmp_path}").test
    np.testing.assert_array_equal(test[0]["xs"], test[1]["xs"])


def test_a_training_file_with_one_series_of_a_class_keeps_it(tmp_path):
    examples = _examples(10)
    _write_ts(tmp_path / "Toy_TRAIN.ts", examples[:3])
    _write_ts(tmp_path / "Toy_TEST.ts", examples[3:])
    task = tasks.make_task(f"series:{tmp_path}")
    assert (len(task.train), task.validation, len(task.test)) == (3, None, 7)


def test_a_constant_feature_becomes_zero(tmp_path):
    examples = [(np.column_stack([xs[:, 0], np.full(len(xs), 0.1)]), label) for xs, label in _examples(40)]
    _write_class_folders(tmp_path, examples)
    train = tasks.make_task(f"series:{tmp_path}").train
    np.testing.assert_allclose(np.concatenate([train[k]["xs"][:, 1] for k in range(len(train))]), 0, atol=1e-12)


def test_the_baseline_score_is_reached_by_answering_the_commonest_class(tmp_path):
    examples = _examples(40)
    _write_ts(tmp_path / "Toy_TRAIN.ts", examples[:20] + examples[20:40:2])
    _write_ts(tmp_path / "Toy_TEST.ts", examples[:3])
    task = tasks.make_task(f"series:{tmp_path}")
    up = jnp.array([1.0, 0.0])
    right, count = task.score(lambda xs, lengths: jnp.tile(up, (len(xs), 1)), tasks.as_batch(task.test))
    assert int(right) / int(count) == pytest.approx(task.baseline_score) == pytest.approx(2 / 3)


def test_a_linear_model_of_the_mean_learns_them(tmp_path):
    _write_class_folders(tmp_path, _examples(200))
    task = tasks.make_task(f"series:{tmp_path}")

    def model(kernel):
        return lambda xs, lengths: (xs.sum(axis=1) / lengths[:, None].astype(xs.dtype)) @ kernel

    kernel = jnp.zeros((2, 2), jnp.float32)
    grad = jax.jit(jax.grad(lambda kernel, batch: task.loss(model(kernel), batch)))
    for batch in itertools.islice(tasks.batches(task.train, 32, 0), 100):
        kernel = kernel - 0.5 * grad(kernel, batch)
    assert np.divide(*task.score(model(kernel), tasks.as_batch(task.test))) > 0.9 > 0.6 > task.baseline_score


def _damage(tmp_path, name, content):
    """Writes forty good series as the case wants them, and then spoils one; returns the path to read."""
    kind, file = name.split(":")
    if kind == "npy":
        _write_class_folders(tmp_path, _examples(40))
        (tmp_path / file).parent.mkdir(exist_ok=True)
        np.save(tmp_path / file, content)
    else:
        _write_ts(tmp_path / file, _examples(40))
        lines = (tmp_path / file).read_text(encoding="utf-8").split("\n")
        for number, line in content.items():
            lines[number - 1] = line
        (tmp_path / file).write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "npy:up/bad.npy",
            np.zeros((4, 3)),
            "{}/up/bad.npy: the series has 3 features, and that of {}/down/001.npy has 2.",
        ),
        ("npy:up/bad.npy", np.array([[0, 1], [2, np.nan]]), "{}/up/bad.npy: the value at step 1, feature 1, is nan."),
        ("npy:up/bad.npy", np.zeros((0, 2)), "{}/up/bad.npy: the series is empty."),
        ("npy:up/bad.npy", np.zeros((4, 2, 1)), "{}/up/bad.npy: the array has shape (4, 2, 1); needed: [T] or [T, F]."),
        ("npy:up/bad.npy", np.array(["a"]), "{}/up/bad.npy holds <U1; allowed: real numbers."),
        (
            "npy:up/bad.npy",
            np.array([{}]),
            "{}/up/bad.npy is no .npy file of plain numbers or strings: Object arrays *",
        ),
        ("npy:xs.npy", np.zeros((3, 2)), "{}/xs.npy has no labels.npy beside it."),
        ("npy:few/one.npy", np.zeros((3, 2)), "the class 'few' has too few examples to give one to each of *"),
        ("ts:a.ts", {12: "1,x:2,3:up"}, "{}/a.ts, line 12: 'x', value 2 of dimension 1, is no finite number."),
        (
            "ts:a.ts",
            {12: "1,2:3,4:left"},
            "{}/a.ts, line 12: the class 'left' is not in @classLabel; it has: 'up', 'down'.",
        ),
        ("ts:a.ts", {12: "1,2:up"}, "{}/a.ts, line 12: the series has 1 dimensions; @dimensions says 2."),
        ("ts:a.ts", {12: "1,2:3:up"}, "{}/a.ts, line 12: dimension 2 has 1 values, and dimension 1 has 2."),
        ("ts:a.ts", {12: "1,2::up"}, "{}/a.ts, line 12: dimension 2 is empty."),
        ("ts:a.ts", {12: "?,?:1,2:up"}, "{}/a.ts, line 12: all values of dimension 1 are missing."),
        ("ts:a.ts", {12: "1,inf:1,2:up"}, "{}/a.ts, line 12: 'inf', value 2 of dimension 1, is no finite number."),
        ("ts:a.ts", {12: "1,2"}, "{}/a.ts, line 12: there is no ':' between values and class."),
        ("ts:a.ts", {6: "@univariate True"}, "{}/a.ts, line 10: the series has 2 dimensions; @univariate says 1."),
        (
            "ts:a.ts",
            {7: "@equalLength true"},
            "{}/a.ts, line 11: the series has 6 steps, and that of {}/a.ts, line 10 has 5; @equalLength says that *",
        ),
        ("ts:a.ts", {3: "@timeStamps true"}, "{}/a.ts, line 3: series with time stamps are not read; *"),
        ("ts:a.ts", {8: "@classLabel false"}, "{}/a.ts has no classes; needed: a line @classLabel true, *"),
        ("ts:a.ts", {9: "# no data"}, "{}/a.ts, line 10: there is neither @keyword nor #comment, and no @data above."),
        ("ts:a_TRAIN.ts", {}, "{}/a_TRAIN.ts has no a_TEST.ts beside it."),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, name, content, sentence):
    path = _damage(tmp_path, name, content)
    pattern = re.escape(sentence.replace("{}", str(tmp_path))).replace(r"\*", ".*")
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        tasks.make_task(f"series:{path}")


def test_a_path_with_nothing_to_read_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "half/train/up").mkdir(parents=True)
    np.save(tmp_path / "half/train/up/1.npy", np.zeros(3))
    for path, sentence in {
        "absent": "there is no file or folder {}.",
        "notes.txt": "{} is no series; allowed: a folder of NumPy files, or a file that ends in .ts.",
        "": "{} holds no series; needed: a folder of .npy files for each class, or xs.npy and labels.npy.",
        "half": "{} has a folder 'train' and none called 'test'; needed: both, or neither.",
        "half/train": "{} has series of one class only, 'up'; needed: 2 or more.",
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(tmp_path / path))}$"):
            tasks.make_task(f"series:{tmp_path / path}")


def test_a_class_seen_only_in_test_is_named(tmp_path):
    _write_class_folders(tmp_path / "train", _examples(8))
    _write_class_folders(tmp_path / "test", [(np.zeros((3, 2)), "left")])
    sentence = f"{tmp_path}/test/left/000.npy: the class 'left' is not in the training split; it has: 'down', 'up'."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(f"series:{tmp_path}")


def test_several_data_sets_in_one_folder_are_listed(tmp_path):
    for name in ("a_TRAIN.ts", "a_TEST.ts", "b_TRAIN.ts", "b_TEST.ts"):
        _write_ts(tmp_path / name, _examples(8))
    with pytest.raises(
        ValueError, match=r"holds several data sets; give the path of one of its files: a_TRAIN\.ts, b_TRAIN\.ts\.$"
    ):
        tasks.make_task(f"series:{tmp_path}")
    assert len(tasks.make_task(f"series:{tmp_path / 'b_TRAIN.ts'}").test) == 8
