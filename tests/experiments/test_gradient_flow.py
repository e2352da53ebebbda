"""The experiment as a person runs it: through its command line, on the real digits."""

import csv
import functools
import itertools
import json
import pathlib
import shlex
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.report.read import load_instrument
from rnn_jax.training.checkpoints import restore_checkpoint
from rnn_jax.training.networks import load_networks
from rnn_jax.training.step import make_ensemble
from rnn_jax.training.watch import probe_batch
from tests.experiments import command
from tests.experiments.bad_command_lines import LEAKY
from tests.experiments.refusals import refusals

run = functools.partial(command.run, "gradient_flow")


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


SHORT = ["--cells=gru,lstm", "--steps=2", "--seeds=2", "--hidden=16", "--batch=8"]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Two cells, two seeds, two steps: what a run leaves behind."""
    out = tmp_path_factory.mktemp("run") / "out"
    done = run(*SHORT, f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_writes_the_run_directory_and_says_where(short_run):
    out, printed = short_run
    for name in ("config.json", "metrics.csv", "summary.csv", "gradient_flow.npz", "gradient_flow.csv"):
        assert (out / name).stat().st_size > 0
    for name in ("gradient_flow.png", "gradient_flow_training.png", "learning.png"):
        assert (out / "figures" / name).read_bytes().startswith(b"\x89PNG")
        assert str(out / "figures" / name) in printed
    assert str(out / "report.html") in printed
    assert "Which cells keep the gradient alive?" in (out / "report.html").read_text()
    assert list(out.glob("events.out.tfevents.*"))
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        name + ending for name in ("gru", "lstm") for ending in ("", ".previous")
    }


def test_the_config_tells_what_was_run(short_run):
    flags = json.loads((short_run[0] / "config.json").read_text())["flags"]
    assert flags["cells"] == "gru,lstm"
    assert flags["blanks"] == 64
    assert len(flags["data"]["train_sha256"]) == 64


def test_profiles_are_there_for_every_cell_part_seed_and_step(short_run):
    with np.load(short_run[0] / "gradient_flow.npz") as arrays:
        assert set(arrays.files) == {
            "steps",
            "gru|rnn|",
            "lstm|rnn|",
            "lstm|rnn|c",
            "lstm|rnn|h",
        }
        assert arrays["steps"].tolist() == [0, 1, 2]
        profile_LST = arrays["lstm|rnn|"]
    assert profile_LST.shape == (3, 2, 128)
    assert np.all(profile_LST[..., -1] == -np.inf)  # the loss reads the last output, not the last carry
    assert np.all(np.isfinite(profile_LST[..., :-1]))


def test_the_learning_curve_ends_with_the_test_score_where_no_validation_split_was_set_apart(short_run):
    metrics, summary = rows(short_run[0] / "metrics.csv"), rows(short_run[0] / "summary.csv")
    train, test = (tasks.as_batch(split)["label"] for split in (tasks.digits().train, tasks.digits().test))
    trivial = np.mean(test == np.bincount(train).argmax())
    for cell, seed in itertools.product(("gru", "lstm"), (0, 1)):
        name = f"{cell}/seed{seed}"
        curve = [(int(row["step"]), row["value"]) for row in metrics if row["name"] == f"{name}/held_out_accuracy"]
        assert [step for step, _ in curve] == [0, 1, 2]
        (score,) = [row["value"] for row in metrics if row["name"] == f"{name}/test_accuracy"]
        assert float(curve[-1][1]) == pytest.approx(float(score), abs=1e-6)
        of_seed = [row for row in summary if (row["cell"], row["seed"]) == (cell, str(seed))]
        assert {row["test_score"] for row in of_seed} == {score}
        for row in of_seed:
            assert float(row["baseline_score"]) == pytest.approx(trivial)


def test_a_forget_bias_of_one_keeps_the_gradient_that_a_zero_bias_gru_loses(short_run):
    with np.load(short_run[0] / "gradient_flow.npz") as arrays:
        left = {cell: arrays[f"{cell}|rnn|"][0, :, 0] - arrays[f"{cell}|rnn|"][0, :, -2] for cell in ("gru", "lstm")}
    assert np.all(left["gru"] < -12)
    assert np.all(left["lstm"] > -8)


def test_layers_and_directions_have_profiles_of_their_own(tmp_path):
    done = run(
        "--cells=elman", "--layers=2", "--bidirectional", "--task=adding", "--seq_len=12", "--steps=1", "--seeds=1",
        "--hidden=4", "--batch=4", "--learning_rate=1e-2,1e-3", f"--out={tmp_path / 'out'}", figures=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "gradient_flow.npz") as arrays:
        parts = {key.split("|")[1] for key in arrays.files if "|" in key}
        assert {key.split("|")[0] for key in arrays.files if "|" in key} == {"elman at 0.01", "elman at 0.001"}
    assert parts == {f"rnn/layers/{k}/{way}_rnn" for k in (0, 1) for way in ("forward", "backward")}


@pytest.mark.slow
def test_a_task_of_tokens_that_asks_at_every_step_runs(tmp_path):
    done = run(
        "--cells=elman", "--task=parity", "--seq_len=9", "--steps=2", "--seeds=2", "--hidden=4", "--emb_size=3",
        "--batch=4", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The input-independent baseline has accuracy 0.500" in done.stdout
    with np.load(tmp_path / "out" / "gradient_flow.npz") as arrays:
        assert arrays["elman|rnn|"].shape == (3, 2, 9)
    summary = rows(tmp_path / "out" / "summary.csv")
    assert {row["parameters"] for row in summary} == {str(2 * 3 + (3 + 4 + 1) * 4 + (4 + 1) * 2)}


def adjoint_norms(model, tokens, label):
    """|dL/d h_t| for t = 1..T of one text and its Elman network, by the chain rule in float64."""
    arrays = (model.embedding.embedding, model.rnn.cell.kernel, model.rnn.cell.recurrent_kernel, model.rnn.cell.bias)
    embedding, kernel, recurrent, bias = (np.asarray(array[...], np.float64) for array in arrays)
    head, shift = (np.asarray(array[...], np.float64) for array in (model.head.kernel, model.head.bias))
    states = [np.zeros(len(recurrent))]
    for token in tokens:
        states.append(np.tanh(embedding[token] @ kernel + states[-1] @ recurrent + bias))
    scores = np.exp(states[-1] @ head + shift)
    from_output = head @ (scores / scores.sum() - np.eye(len(shift))[label])
    adjoint, norms = np.zeros(len(recurrent)), []
    for step, state in zip(range(len(tokens), 0, -1), reversed(states)):
        norms.append(np.linalg.norm(adjoint))
        reaching = adjoint + (from_output if step == len(tokens) else 0.0)
        adjoint = recurrent @ (reaching * (1.0 - state**2))
    return np.array(norms[::-1])


def test_texts_of_different_lengths_are_profiled_from_their_own_ends_and_measured_on_the_way(tmp_path):
    lines = [f"{' '.join('abcd'[(k * j) % 4] for j in range(3 + k % 20))},{k % 2}" for k in range(60)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines, ""]))
    out = tmp_path / "out"
    done = run(
        "--cells=elman", f"--task=csv:{tmp_path / 'texts.csv'}", "--steps=2", "--seeds=2", "--hidden=4", "--emb_size=3",
        "--batch=32", "--instruments=gates", "--instruments_every=1", f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        task, networks = load_networks(out, "step_1")
    batch = probe_batch(task, 32)
    lengths = batch["lengths"]
    assert len(set(lengths.tolist())) > 8
    model = jax.tree.map(lambda leaf: leaf[1], networks["elman"])
    squares = np.zeros((32, lengths.max()))
    for row, tokens, length, label in zip(squares, batch["tokens"], lengths, batch["label"], strict=True):
        row[len(row) - length :] = adjoint_norms(model, tokens[:length], label) ** 2 / 32**2  # L is the mean over 32
    longer = np.array([np.sum(lengths > lag) for lag in reversed(range(lengths.max()))])
    expected = np.sqrt(squares.sum(axis=0) / longer)[2 * longer >= 32]
    with np.load(out / "gradient_flow.npz") as arrays:
        assert arrays["steps"].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(arrays["elman|rnn"], longer[2 * longer >= 32])
        found = arrays["elman|rnn|"][1, 1]
    np.testing.assert_allclose(10.0 ** found[:-1], expected[:-1], rtol=1e-4)
    assert found[-1] == -np.inf

    table = rows(out / "gradient_flow.csv")
    assert {(row["lag"], row["sequences"]) for row in table} == {
        (str(lag), str(count)) for lag, count in enumerate(longer[::-1]) if 2 * count >= 32
    }
    (score,) = [row["value"] for row in rows(out / "metrics.csv") if row["name"] == "elman/seed1/test_accuracy"]
    assert {row["test_score"] for row in rows(out / "summary.csv") if row["seed"] == "1"} == {score}
    assert set(load_instrument(out, "gates")) == {
        ("elman", stage, "rnn") for stage in ("initialization", "step_1", "trained")
    }
    report = (out / "report.html").read_text()
    assert "The lag counts from the end of each: lag 0 rests on 32 sequences, and lag" in report
    assert "Along training" in report
    assert "A figure is missing" not in report


SMALL = [
    "--task=adding", "--seq_len=8", "--steps=3", "--hidden=4", "--batch=4", "--learning_rate=1e-1",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Two seeds of a cell of the catalogue and of one of the user."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "mine.py").write_text(LEAKY)
    out = folder / "out"
    done = run("--cells=elman,mine:Leaky", "--seeds=2", *SMALL, f"--out={out}", figures=False, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return out


def logged(out, name):
    return {int(row["step"]): float(row["value"]) for row in rows(out / "metrics.csv") if row["name"] == name}


def test_the_end_of_a_learning_curve_is_the_score_of_its_checkpoint(small_run):
    scores = logged(small_run, "elman/seed0/held_out_mse")
    assert sorted(scores) == [0, 1, 2, 3]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        make = functools.partial(SequenceClassifier, "elman", 2, 4, 1)
        like = jax.eval_shape(lambda: make_ensemble(lambda rngs: make(rngs=rngs), [0, 1]))
        trained = restore_checkpoint(small_run, "elman", like)
        model = jax.tree.map(lambda leaf: np.asarray(leaf)[0], trained)
        validation = tasks.adding(8).validation
        examples = tasks.collate([validation[index] for index in range(512)])
        answers = np.asarray(jax.jit(lambda model, xs: model(xs))(model, examples["xs"]), np.float64)
    expected = np.mean((answers - examples["target"]) ** 2)
    off = {step: abs(score / expected - 1) for step, score in scores.items()}
    assert off[3] < 1e-5 < min(off[0], off[1], off[2])


@pytest.mark.slow  # the loop is held to this in tests/training/test_loop.py
def test_a_member_of_an_ensemble_is_its_own_run(small_run, tmp_path):
    done = run("--cells=elman", "--seeds=1", "--seed=1", *SMALL, f"--out={tmp_path / 'alone'}", figures=False)
    assert done.returncode == 0, done.stderr
    alone, together = (logged(out, "elman/seed1/loss") for out in (tmp_path / "alone", small_run))
    assert alone == pytest.approx(together, rel=1e-5)


def test_a_user_defined_cell_runs_by_its_path(small_run):
    with np.load(small_run / "gradient_flow.npz") as arrays:
        slope = np.diff(arrays["mine:Leaky|rnn|"][0, 0, :-1])
    np.testing.assert_allclose(slope, np.log10(2), atol=1e-5)  # h' = h / 2 + ...: a factor 2 a step, exactly


REFUSED = {
    "--out={out}": "already holds a run",
    "--out={out} --resume": "--cells=elman,gru,gru(update_bias=1),lstm differs from the run in",
}


# Files that are emptied, and what is said.
DAMAGED = {
    "config.json": "config.json' is damaged (Expecting value: line 1 column 1 (char 0)); allowed: the copy of it, '",
    "checkpoints/gru/note.json": "the checkpoint 'gru' of ",
    "checkpoints/gru/note.json checkpoints/gru.previous/note.json": "checkpoints/gru' is damaged (note.json",
    "checkpoints/lstm/note.json checkpoints/lstm.previous/checksums.json": "checkpoints/lstm' is damaged (note.json is",
    "metrics.csv checkpoints/lstm/metrics.csv": "metrics.csv' is damaged (it has 0 bytes, and had ",
    "gradient_flow.npz checkpoints/lstm/gradient_flow.npz": "gradient_flow.npz' is damaged (it cannot be read), and so",
}
DIVERGING = ["--cells=elman", "--seeds=2", *SMALL, "--learning_rate=1e39"]


def test_bad_input_gets_one_sentence_and_changes_nothing(short_run, tmp_path):
    before = (short_run[0] / "config.json").read_bytes()
    lists = [text.format(out=short_run[0]).split() for text in REFUSED]
    for k, files in enumerate(DAMAGED):
        shutil.copytree(short_run[0], tmp_path / str(k))
        for name in files.split():
            (tmp_path / str(k) / name).write_bytes(b"")
    lists += [[*SHORT, f"--out={tmp_path / str(k)}", "--resume"] for k in range(len(DAMAGED))]
    lists.append([*DIVERGING, f"--out={tmp_path / 'diverging'}"])
    expected = [*REFUSED.values(), *DAMAGED.values(), "of all 2 members diverged: the weights of 'elman/seed0' are not"]
    for said, words in zip(refusals("gradient_flow", *lists), expected, strict=True):
        assert words in said
        assert len(said) <= 500 or "unknown" in said
    assert (short_run[0] / "config.json").read_bytes() == before


def test_a_finished_run_damaged_in_three_places_is_as_it_was_after_resume(short_run, tmp_path):
    """No cell is trained again: their notes are whole."""
    out = shutil.copytree(short_run[0], tmp_path / "run")
    (out / "gradient_flow.npz").unlink()
    (out / "metrics.csv").write_bytes((out / "metrics.csv").read_bytes()[:400])
    (out / "checkpoints/gru/manifest.ocdbt").unlink()
    trained = (out / "checkpoints/gru").stat().st_mtime_ns
    done = run(*SHORT, f"--out={out}", "--resume", figures=False)
    assert done.returncode == 0, done.stderr
    assert "metrics.csv' is damaged (it has 400 bytes, and had " in done.stderr
    assert "gradient_flow.npz' is damaged (it is missing): it is now as it was at step 2" in done.stderr
    for name in ("metrics.csv", "gradient_flow.csv", "summary.csv", "gradient_flow.npz"):
        assert (out / name).read_bytes() == (short_run[0] / name).read_bytes(), name
    assert (out / "checkpoints/gru").stat().st_mtime_ns == trained


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory):
    """Two cells at two rates, left alone; and a function that starts the same run in another folder, to be resumed."""
    folder = tmp_path_factory.mktemp("two_cells")
    flags = [
        "--cells=elman,gru", "--task=adding", "--seq_len=6", "--steps=400", "--seeds=2", "--hidden=4", "--batch=4",
        "--learning_rate=1e-2,1e-3", "--resume",
    ]  # fmt: skip

    def start(out):
        return command.Started("gradient_flow", *flags, f"--out={out}", figures=False)

    alone = start(folder / "alone")
    told = alone.communicate(timeout=300)[1]
    assert alone.returncode == 0, told
    return folder / "alone", start


def stop_when(process, condition, number):
    """Sends a signal as soon as the condition holds; returns the exit status and what was told on stderr."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.send_signal(number)
    told = process.communicate(timeout=120)[1]
    return process.returncode, told


def assert_same_run(out, alone):
    for name in ("metrics.csv", "gradient_flow.csv"):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    summaries = [[{**row, "seconds": ""} for row in rows(folder / "summary.csv")] for folder in (out, alone)]
    assert summaries[0] == summaries[1]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for cell in ("elman", "gru"):
            like = make_ensemble(lambda rngs, cell=cell: SequenceClassifier(cell, 2, 4, 1, rngs=rngs), [0] * 4)
            found, expected = (restore_checkpoint(folder, cell, like) for folder in (out, alone))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(a, b)
    assert {path.name for path in (out / "checkpoints").glob("*") if path.suffix != ".previous"} == {"elman", "gru"}


@pytest.mark.slow  # two minutes; the loop is that of `experiments.train`, which is killed in test_train.py
def test_a_run_killed_at_three_moments_and_interrupted_ends_as_one_left_alone(two_cells, tmp_path):
    alone, start = two_cells
    out, writing = tmp_path / "run", tmp_path / "run" / "checkpoints"

    def lines():
        path = out / "metrics.csv"
        return path.read_text() if path.exists() else ""

    moments = [
        lambda: "elman at 0.01/seed0/loss" in lines(),  # before the first checkpoint, or about it
        lambda: list(writing.glob(".elman.new*")) and lines().count("\n") > 80,  # while a checkpoint is written
        lambda: "\n120,gru at 0.01" in lines(),  # in the second cell
    ]
    for moment in moments:
        assert stop_when(start(out), moment, signal.SIGKILL)[0] == -signal.SIGKILL
    trained = (writing / "elman").stat().st_mtime_ns
    status, told = stop_when(start(out), lambda: "\n240,gru at 0.01" in lines(), signal.SIGINT)
    assert status == 130, told
    assert told.splitlines()[-2].startswith("Interrupted at 'gru'; what the cells before it showed is in ")
    assert shlex.split(told.splitlines()[-1])[:3] == ["python", "-m", "experiments.gradient_flow"]
    last = start(out)
    told = last.communicate(timeout=300)[1]
    assert last.returncode == 0, told
    assert_same_run(out, alone)
    assert (writing / "elman").stat().st_mtime_ns == trained  # a finished cell is not trained again
