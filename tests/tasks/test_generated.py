"""Claims about what all generated tasks share: examples by their number, splits, baseline scores."""

import functools
import inspect
import itertools
import pickle
import re

import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks import generated
from rnn_jax.tasks.task import NOT_ASKED

# The first 256 examples of both splits at the defaults. Frozen on purpose: a run made elsewhere, or last year, must
# have seen these examples. Whoever changes one has made another task, and no old score can be compared.
FINGERPRINTS = {
    "adding": (
        "55143952bb516a7248bab610aa638ca3aea4554c138e1b791a9e1407bf51547c",
        "e0ca66665f4b50d4ffab5d0406a65b03bbd5a420d54dd5baad1c709ef50cc657",
    ),
    "addition": (
        "0ab049a6904c0f3e8ccf1cd736174d6578169b54dde99ec747eed57ca70ad50e",
        "daeb90924d71ff116b9f5b347a1f6c56015ba1716d4172796582bf476f56cd8b",
    ),
    "associative_recall": (
        "5e65863fc78777c753ab800e96240e940147eb6ba162a59a34d17ec3feaeb561",
        "ed0b8c8f6e4d67482e3f3514f5111a53eef8faa20600f11c8d8537522e86fca3",
    ),
    "copy": (
        "824b0b9a058c812348e22376ebacda36b44389ee304f59f8cdd2765aee873341",
        "3bd1e220bfe8cc23819f974b6ad89ec5942f0918e41d4e63b8c563b832adda4e",
    ),
    "delayed_copy": (
        "4240a5a0a740324f0a987cdde3f612ff84a9083cb770a4989be5a490c219a1af",
        "031254babe31ba9420d6a18770e4b0372ab051cde0692c32cc0f5f834d46a13d",
    ),
    "dyck": (
        "6dc4537cb2dd06b6d924e63310c3a71f3cdd66a8405a63db49d19ef8bb229216",
        "1f36b47a8e427c36540b8540e02c7784839bb8a569c7149ee6c8dc8535dcc158",
    ),
    "induction": (
        "f2f5118fea41d9597b3c830bd8cee61cb7ec7e3c178fab472aa022712a0dfc87",
        "be6ba96197c060aa0fc68d3d0e611841a1f41a935219eec1fa57bbb5588e5691",
    ),
    "mackey_glass": (
        "19aaf6b63e95bf6fe09f89759d01f8385346dd99c3ec2c0328894deb68a77a0d",
        "c00a0b49ed1a0fa4e52bdd89bc8a080974af7e221a9be91819826c995a9c5e97",
    ),
    "parity": (
        "a4e98287cc6c60cb6760845c6ec077dda24f8210d3c7e6c23229cc3046c9c439",
        "68ea353de8f387807bf35c18de5fe6b69c8f33b67d3a68bda179b5db15f67616",
    ),
    "s5": (
        "9eb6989d46358a6a87bc6bb049b2a3a574a52edaee65763c920bfb2ad91f6d52",
        "d2652016296904151ef898747a51991a7b299503d331accb4155f8544a131c00",
    ),
    "selective_copy": (
        "1395b6764a2b74f4d130e713b40aed36e0bebf07dac15858020fe8cad3522ed5",
        "01d82dcb4fd5d3e43c32dd696d36e57db49e7679f7a9ae789750ead2f15230b7",
    ),
    "sine": (
        "61d53d8f235954ba3a11b86d8e97dcac1b1b29074622c6c95a82c0a15fe79d1c",
        "4bbab0f118ebcf40cd67afbf1db5f314b407cff1cd2556add1a2f0449853c15e",
    ),
    "temporal_order": (
        "b2d4c733a7a6c7061b9ab91aed6df0e831efd311398b6c547e06424040166323",
        "fc962a3d9f7bb5d2e4893b75c3f730c4c1b3466281a530cb8283a5d947915b46",
    ),
}
NAMES = sorted(FINGERPRINTS)
CLASSES = [name for name in NAMES if name not in ("adding", "mackey_glass", "sine")]


@functools.cache
def usual(name):
    return tasks.make_task(name)


@functools.cache
def large(name, seed=0):
    """A task of a trillion examples, which cost no memory."""
    return tasks.make_task(name, train_size=10**12, test_size=10**12, seed=seed)


def content(source, count):
    return [b"".join(array.tobytes() for array in source[index].values()) for index in range(count)]


def test_no_generated_task_is_left_out_here():
    endless = {name for name, build in tasks.TASKS.items() if "train_size" in inspect.signature(build).parameters}
    assert endless == {*NAMES, "agreement", "moving_digits", "dates"}  # these three have tests of their own


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_the_same_on_every_machine(name):
    fingerprint = usual(name).fingerprint
    assert (fingerprint["train_sha256"], fingerprint["test_sha256"]) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_example_is_drawn_twice(name):
    """Not within a split, between the splits, or between seeds. (Parity of 40 bits may, in 2**40 examples.)"""
    made = [large(name, seed) for seed in (0, 1)]
    read = [content(source, 50) for task in made for source in (task.train, task.validation, task.test)]
    assert len(set(itertools.chain.from_iterable(read))) == 300


@pytest.mark.parametrize("name", NAMES)
def test_an_example_depends_on_its_number_alone(name):
    few, many = tasks.make_task(name, test_size=5).test, large(name).test
    for index in (4, 0, 4):
        for key, array in few[index].items():
            np.testing.assert_array_equal(array, many[index][key], strict=True)
    assert len(many) == 10**12
    assert many[10**12 - 1].keys() == few[0].keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_test_split_alone_may_be_longer(name):
    """It holds what a task of that length has there."""
    plain = usual(name)
    steps = 2 * plain.seq_len + 1
    task, longer = tasks.make_task(name, test_seq_len=steps), tasks.make_task(name, seq_len=steps)
    assert (task.seq_len, task.test_seq_len) == (plain.seq_len, steps)
    assert task.fingerprint["train_sha256"] == plain.fingerprint["train_sha256"]
    assert task.fingerprint["test_sha256"] == longer.fingerprint["test_sha256"]
    assert content(task.validation, 3) == content(plain.validation, 3)
    assert len(task.test[7]["tokens" if task.reads_tokens else "xs"]) == steps
    assert task.description == f"{plain.description} Tested on sequences of {steps} steps."
    assert plain.test_seq_len is None


@pytest.mark.parametrize("name", NAMES)
def test_a_source_goes_through_pickle(name):
    """As it must, to be read by another process."""
    source = large(name).train
    assert content(pickle.loads(pickle.dumps(source)), 2) == content(source, 2)


# A sum begins with 0 or 1, so that not every constant answer to `addition` scores the same; its own tests have it.
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "addition"])
def test_whatever_ignores_the_input_scores_as_derived(name):
    """Every constant answer does, and so does one for each step, chosen on other examples."""
    task, count = large(name), 2000
    answer = "label" if task.kind is tasks.Kind.ONE_ANSWER else "labels"
    labels_BT = np.stack([task.train[index][answer] for index in range(2 * count)]).reshape(2 * count, -1)
    chosen_on, read_on = labels_BT[:count], labels_BT[count:]
    votes_CT = np.stack([(chosen_on == label).sum(axis=0) for label in range(task.out_features)])
    answers = [*range(task.out_features), votes_CT.argmax(axis=0)]
    asked_B = (read_on != NOT_ASKED).sum(axis=1)
    for constant in answers:
        right_B = (read_on == constant).sum(axis=1)
        # The share of right answers is a ratio of two sums over examples; the answers within one may depend.
        error = np.std(right_B - task.baseline_score * asked_B) / asked_B.mean() / np.sqrt(count)
        assert abs(right_B.sum() / asked_B.sum() - task.baseline_score) < 4.5 * error
    assert task.higher_is_better


@pytest.mark.parametrize("name", ["induction", "copy"])  # one answer, and one a step
def test_the_score_of_a_task_is_the_share_of_steps_asked(name):
    task = tasks.make_task(name, test_size=64)
    batch = tasks.as_batch(task.test)
    labels = batch["label" if task.kind is tasks.Kind.ONE_ANSWER else "labels"]

    def always_one(tokens):
        logits = np.zeros((*labels.shape, task.out_features), np.float32)
        logits[..., 1] = 1
        return logits

    expected = np.mean(labels[labels != NOT_ASKED] == 1)
    np.testing.assert_allclose(np.divide(*task.score(always_one, batch)), expected, rtol=1e-6)


def test_integers_are_uniform_and_the_whole_range_occurs():
    bits = np.random.Philox(key=np.array((3, 5), np.uint64)).random_raw(70_000)
    drawn = generated.integers(bits, 7)
    assert drawn.dtype == np.int32
    counts = np.bincount(drawn)
    assert len(counts) == 7
    # Chi-square of 6 degrees of freedom: 38 is exceeded once in a million seeds, and the seed is fixed.
    assert np.sum((counts - 10_000) ** 2) / 10_000 < 38


def test_permutations_are_uniform():
    bits = np.random.Philox(key=np.array((3, 5), np.uint64)).random_raw(4 * 24_000).reshape(-1, 4)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for row in bits:
        counts[tuple(generated.permutation(row).tolist())] += 1
    # Chi-square of 23 degrees of freedom: 71 is exceeded once in a million seeds.
    assert sum((count - 1000) ** 2 for count in counts.values()) / 1000 < 71


def test_uniform_is_the_integer_as_a_fraction():
    bits = np.array([0, 2**64 - 1, 2**63, 2**40 - 1, 3 * 2**40], np.uint64)
    expected = [0, 1 - 2**-24, 0.5, 0, 3 * 2**-24]
    np.testing.assert_array_equal(generated.uniform(bits), np.array(expected, np.float32), strict=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"train_size": 0}, "train_size=0 is out of range; allowed: 1 or more."),
        ({"test_size": -2}, "test_size=-2 is out of range; allowed: 1 or more."),
        ({"seed": -1}, "seed=-1 is out of range; allowed: 0 to 2**64 - 1."),
        ({"seed": 2**64}, "seed=18446744073709551616 is out of range; allowed: 0 to 2**64 - 1."),
    ],
)
def test_an_argument_out_of_range_is_refused_in_one_sentence(name, kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("copy", {"alphabet": 1}, "alphabet=1 is out of range; allowed: 2 or more."),
        ("copy", {"symbols": 0}, "symbols=0 is out of range; allowed: 1 or more."),
        ("copy", {"seq_len": 20}, "seq_len=20 is out of range; allowed: 21 or more, as symbols=10 are read and asked."),
        ("delayed_copy", {"alphabet": 1}, "alphabet=1 is out of range; allowed: 2 or more."),
        ("delayed_copy", {"seq_len": 1}, "seq_len=1 is out of range; allowed: 2 or more, a symbol and its answer."),
        (
            "delayed_copy",
            {"seq_len": 9, "delay": 9},
            "delay=9 is out of range; allowed: 1 to 8, so that seq_len=9 steps ask for something.",
        ),
        (
            "delayed_copy",
            {"test_seq_len": 10},
            "delay=10 is out of range; allowed: 1 to 9, so that test_seq_len=10 steps ask for something.",
        ),
        ("parity", {"test_seq_len": 0}, "test_seq_len=0 is out of range; allowed: 1 or more."),
        ("delayed_copy", {"delay": 0}, "delay=0 is out of range; allowed: 1 to 99, so that seq_len=100 steps ask for"),
        ("selective_copy", {"alphabet": 1}, "alphabet=1 is out of range; allowed: 2 or more."),
        ("selective_copy", {"symbols": 0}, "symbols=0 is out of range; allowed: 1 or more."),
        (
            "selective_copy",
            {"seq_len": 15},
            "seq_len=15 is out of range; allowed: 16 or more, as symbols=8 are read and asked.",
        ),
        (
            "temporal_order",
            {"seq_len": 9},
            "seq_len=9 is out of range; allowed: 10 or more, so that no two signs share a step.",
        ),
        ("temporal_order", {"symbols": 4}, "symbols=4 is out of range; allowed: 2 to 3."),
        ("addition", {"digits": 0}, "digits=0 is out of range; allowed: 1 or more."),
        ("addition", {"digits": 3, "seq_len": 48}, "digits=3 and seq_len=48 contradict each other; allowed: one"),
        ("addition", {"seq_len": 5}, "seq_len=5 is out of range; allowed: 6 or more, two numbers of a digit, their"),
        ("parity", {"seq_len": 0}, "seq_len=0 is out of range; allowed: 1 or more."),
        ("dyck", {"seq_len": 3}, "seq_len=3 is out of range; allowed: 4 or more, the shortest word that asks"),
        ("dyck", {"brackets": 1}, "brackets=1 is out of range; allowed: 2 or more."),
        ("dyck", {"depth": 1}, "depth=1 is out of range; allowed: 2 or more."),
        ("s5", {"seq_len": 0}, "seq_len=0 is out of range; allowed: 1 or more."),
        ("associative_recall", {"alphabet": 1}, "alphabet=1 is out of range; allowed: 2 or more."),
        (
            "associative_recall",
            {"pairs": 33},
            "pairs=33 is out of range; allowed: 1 to 32, as alphabet=32 keys can differ.",
        ),
        (
            "associative_recall",
            {"seq_len": 23},
            "seq_len=23 is out of range; allowed: 24 or more, as pairs=8 are read and asked.",
        ),
        ("induction", {"seq_len": 2}, "seq_len=2 is out of range; allowed: 3 or more, a sign, the symbol behind it,"),
        ("induction", {"alphabet": 1}, "alphabet=1 is out of range; allowed: 2 or more."),
        ("sine", {"seq_len": 0}, "seq_len=0 is out of range; allowed: 1 or more."),
        ("sine", {"horizon": 0}, "horizon=0 is out of range; allowed: 1 or more."),
        ("mackey_glass", {"seq_len": 0}, "seq_len=0 is out of range; allowed: 1 or more."),
        ("mackey_glass", {"horizon": 0}, "horizon=0 is out of range; allowed: 1 or more."),
        ("parity", {"delay": 3}, "delay=3 is no option of the task 'parity'; it has: seq_len, train_size, test_size"),
    ],
)
def test_an_impossible_task_is_refused_in_one_sentence(name, kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}") as refusal:
        tasks.make_task(name, **kwargs)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("adding", {"seq_len": 2}),
        ("addition", {"seq_len": 6}),
        ("copy", {"seq_len": 3, "symbols": 1}),
        ("delayed_copy", {"seq_len": 2, "delay": 1}),
        ("selective_copy", {"seq_len": 2, "symbols": 1}),
        ("temporal_order", {"seq_len": 10, "symbols": 3}),
        ("parity", {"seq_len": 1}),
        ("dyck", {"seq_len": 4, "brackets": 2, "depth": 2}),
        ("s5", {"seq_len": 1}),
        ("associative_recall", {"seq_len": 3, "pairs": 1, "alphabet": 2}),
        ("associative_recall", {"seq_len": 6, "pairs": 2, "alphabet": 2}),
        ("induction", {"seq_len": 3, "alphabet": 2}),
        ("sine", {"seq_len": 1, "horizon": 1}),
        ("mackey_glass", {"seq_len": 1, "horizon": 1}),
    ],
)
def test_the_smallest_task_allowed_is_one(name, kwargs):
    task = tasks.make_task(name, test_size=32, **kwargs)
    batch = tasks.as_batch(task.test)
    inputs = batch["tokens" if task.reads_tokens else "xs"]
    assert inputs.shape[:2] == (32, kwargs["seq_len"])
    answers = [array for key, array in batch.items() if key not in ("tokens", "xs")]
    assert any(np.any(array != NOT_ASKED) for array in answers)
