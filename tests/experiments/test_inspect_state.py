"""Inspecting a state: of a network whose flags were set by hand, all is known beforehand."""

import csv
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.inspect_changes import wilson_interval
from experiments.inspect_reading import connectivity, probe, read
from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.tasks.vocabulary import UNKNOWN
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.load import save_interface
from tests.experiments.command import run
from tests.experiments.refusals import refusals

grammar = importlib.import_module("rnn_jax.tasks.agreement")
NAMES, GENDER, WHO, PLURAL = range(4)  # the units


def by_hand(model, vocabulary):
    """Sets the weights of an LSTM that answers rightly: "and" before any "who" is plural, the first name the gender."""
    cell, size = model.rnn.cell, len(vocabulary)
    kernel, recurrent, bias = np.zeros((size, 4, 4)), np.zeros((4, 4, 4)), np.full((4, 4), 20.0)
    inputs, candidate = 0, 2
    bias[candidate] = 0.0
    for token, word in enumerate(vocabulary.symbols):
        if word in grammar._WORDS["NAME"]:
            kernel[token, candidate, NAMES] = 20.0
            kernel[token, candidate, GENDER] = 20.0 if grammar.is_woman(word) else -20.0
        if word == "who":
            kernel[token, candidate, WHO] = 20.0
        if word == "and":
            kernel[token, candidate, PLURAL] = 20.0
    recurrent[NAMES, inputs, GENDER] = recurrent[WHO, inputs, PLURAL] = -400.0  # the gate closes behind
    model.embedding.embedding[...] = jnp.eye(size, dtype=jnp.float32)
    for parameter, values in ((cell.kernel, kernel), (cell.recurrent_kernel, recurrent), (cell.bias, bias)):
        parameter[...] = jnp.asarray(values.reshape(parameter.shape), jnp.float32)
    head = np.zeros((4, 3))
    head[GENDER] = [5.0, -5.0, 0.0]
    head[PLURAL] = [0.0, 0.0, 40.0]
    model.head.kernel[...] = jnp.asarray(head, jnp.float32)
    model.head.bias[...] = jnp.asarray([0.0, 0.0, -10.0], jnp.float32)
    return model


def save_run(folder, task, change, **settings):
    """Writes a run directory as training does, of a model that `change(model)` returns."""
    flags = {"task": task.name, "cell": "lstm", "hidden": 4, "data": task.fingerprint, **settings}
    run_directory.create(str(folder), flags)
    save_interface(folder, task)
    model = change(jax.jit(lambda: make_model(task, ModelSettings.of_flags(flags), nnx.Rngs(0)))())
    checkpoints.save_checkpoint(folder, "best", model, {"step": 1})
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    sizes = {"train_size": 600, "test_size": 240}
    task = tasks.make_task("agreement", **sizes)
    assert not any(UNKNOWN in task.test[k]["tokens"] for k in range(240))
    folder = tmp_path_factory.mktemp("run")
    return save_run(folder, task, lambda m: by_hand(m, task.vocabulary), emb_size=len(task.vocabulary), **sizes)


@pytest.fixture
def other_runs(tmp_path):
    """One without a recurrent layer, and one without tokens."""
    bag, digits = tmp_path / "bag", tmp_path / "digits"
    for folder, task, settings in (
        (bag, tasks.make_task("agreement", train_size=60, test_size=30), {"recurrent": False, "emb_size": 4}),
        (digits, tasks.make_task("digits", blanks=0), {}),
    ):
        folder.mkdir()
        save_run(folder, task, lambda m: m, **settings)
    return bag, digits


def rows(path):
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def test_flags_set_by_hand_are_found_last_switch_the_answer_and_are_missed(run_dir, other_runs, tmp_path):
    bag, digits = other_runs
    (tmp_path / "labels").write_text("a b a")
    here = f"--run={run_dir}"
    refused = refusals(
        "inspect_state",
        [here, "--text=alice said", f"--labels={tmp_path / 'labels'}"],
        [here, f"--labels={tmp_path / 'labels'}"],
        [here, "--layer=rnn/layers/1"],
        [here, "--property=mood"],
        [here, "--text="],
        [here, "--unit=4", "--text=alice said that"],
        [f"--run={bag}"],
        [f"--run={digits}"],
    )
    labels = f"--labels={str(tmp_path / 'labels')!r} has 3 labels; allowed: 2, one for each token of --text."
    properties = "inside_quotes, inside_brackets, line_position, upper_case, plural_subject, woman"
    assert refused == [
        labels,
        "--labels without --text; allowed: labels for the tokens of --text.",
        "--layer='rnn/layers/1' is no recurrent layer of the run; allowed: rnn.",
        f"--property='mood' is unknown; allowed: {properties}.",
        "--text='' is empty; allowed: at least one character.",
        "--unit=4 is no unit of the layer 'rnn'; allowed: 0 to 3.",
        f"--run={str(bag)!r} has no recurrent layer; allowed: a run without --norecurrent.",
        f"--run={str(digits)!r} is a run of the task 'digits', which reads no tokens;"
        " allowed: a run on text or other tokens.",
    ]
    done = run("inspect_state", here, "--text=alice and tom said that")
    assert done.returncode == 0, done.stderr

    probes = {(row["property"], row["part"], row["probe"]): row for row in rows(run_dir / "state_probes.csv")}
    for name, unit in (("plural_subject", PLURAL), ("woman", GENDER)):
        row = probes[name, "c", "unit"]
        assert (row["unit"], row["side"], row["accuracy"]) == (str(unit), "above", "1.0")
        assert float(row["control"]) < float(row["chance"]) + 0.1 < 0.9

    memory = [row for row in rows(run_dir / "state_memory.csv") if row["property"] == "plural_subject"]
    assert [int(row["distance"]) for row in memory] == list(range(21))
    assert {row["unit_accuracy"] for row in memory} == {"1.0"}
    assert {row["answer_accuracy"] for row in memory} == {"", "1.0"}

    switched = [row for row in rows(run_dir / "state_switch.csv") if row["property"] == "plural_subject"]
    by_change = {row["change"]: row for row in switched}
    assert by_change["best unit"]["unit"] == str(PLURAL)
    total = int(by_change["best unit"]["sentences"])
    assert total == 120  # those of odd number, all of which were answered rightly
    for change in ("best unit", "means of c and h"):
        assert float(by_change[change]["share"]) == 1.0
        assert float(by_change[change]["low"]) == pytest.approx(wilson_interval(total, total)[0])
    assert all(row["share"] == "0.0" for row in switched if row["change"] in ("unit", "random unit"))

    ablation = {
        (row["part"], row["unit"], row["gate"], row["held_at"]): row for row in rows(run_dir / "state_ablation.csv")
    }
    assert float(ablation["c", str(PLURAL), "", ""]["score"]) == pytest.approx(2 / 3)  # "they" is never said
    assert float(ablation["c", str(GENDER), "", ""]["score"]) == pytest.approx(2 / 3)  # "he" is never said
    assert float(ablation["h", str(PLURAL), "", ""]["damage"]) == pytest.approx(0)  # the head alone reads it
    assert float(ablation["", "", "input", "0"]["score"]) == pytest.approx(1 / 3)  # always "she"
    assert float(ablation["", "", "forget", "1"]["damage"]) == pytest.approx(0, abs=1e-6)
    assert all((run_dir / name).stat().st_size for name in ("state.html", "state.npz", "figures/state.png"))


def test_a_rare_property_is_probed_where_both_labels_are_alike_and_so_is_its_control():
    rng = np.random.default_rng(0)
    sequences = np.arange(4000) // 40
    begins = rng.integers(0, 36, 100)[sequences]
    labels = (np.arange(4000) % 40 >= begins) & (np.arange(4000) % 40 < begins + 4)  # a tenth
    values = rng.normal(size=(4000, 3))
    values[:, 2] += np.where(labels, 2.0, -2.0)
    unit, linear = probe(values, labels.astype(int), sequences, ("no", "yes"))
    assert (unit["unit"], unit["label"], unit["states"]) == (2, "yes", 2 * labels.sum())
    for row in (unit, linear):
        assert row["accuracy"] > 0.95 > 0.5 == row["chance"]
        assert abs(row["control"] - 0.5) < 0.12


def test_answers_at_each_token_are_those_to_the_text_so_far():
    sequences = [np.array([2, 3, 4, 5, 3]), np.array([4, 2, 3])]

    def network(**options):
        return jax.jit(lambda: SequenceClassifier("gru", 9, 5, 3, emb_size=4, rngs=nnx.Rngs(0), **options))()

    model = network(layers=2)
    seen = read(model, sequences)
    assert seen.steps.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert list(seen.parts) == [("rnn/layers/0", ""), ("rnn/layers/1", "")]
    texts_so_far = np.zeros((8, 5), np.int32)
    for row, (sequence, step) in enumerate(zip(seen.sequences, seen.steps)):
        texts_so_far[row, : step + 1] = sequences[sequence][: step + 1]
    answer = jax.jit(lambda model, tokens, lengths: jax.nn.softmax(model(tokens, lengths)))
    np.testing.assert_allclose(seen.probabilities, answer(model, texts_so_far, seen.steps + 1), rtol=1e-5)
    both = network(bidirectional=True)
    assert read(both, sequences).probabilities is None  # an answer needs both ends
    assert connectivity(both, sequences) is None


def test_the_interval_is_wilsons():
    # Brown, Cai, DasGupta 2001 have the ends as the roots of (p - share)^2 = z^2 p (1 - p) / n.
    low, high = wilson_interval(7, 20)
    for end in (low, high):
        assert (end - 0.35) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 20)
    assert low < 0.35 < high
    assert wilson_interval(0, 0) == (0.0, 1.0)
