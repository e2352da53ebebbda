"""Training as a person runs it: through its command line, killed, interrupted and resumed."""

import csv
import importlib.metadata
import json
import re
import shlex
import shutil
import signal
import time

import numpy as np
import pytest

from rnn_jax.report.read import load_profiles
from tests.experiments.command import Started, run
from tests.experiments.refusals import refusals

STEPS = 240
FLAGS = [
    "--task=adding", "--seq_len=10", "--cell=gru", "--hidden=6", "--batch=8", "--train_size=512", "--test_size=64",
    f"--steps={STEPS}", "--eval_every=24", "--profile_every=60", "--schedule=cosine", "--dropout=0.1",
]  # fmt: skip


def begin(out, *more):
    return Started("train", *FLAGS, f"--out={out}", *more, figures=False)


def resume(out):
    """Goes on with a run to its end; returns what it printed and what it warned of."""
    done = run("train", *FLAGS, f"--out={out}", "--resume", figures=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def signal_when(process, condition, number):
    """Sends a signal as soon as the condition holds; returns the exit status and what was told on stderr."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    return process.returncode, told


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    start = time.perf_counter()
    done = run("train", *FLAGS, f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout, time.perf_counter() - start


def rows(out):
    path = out / "metrics.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def weights(out):
    from rnn_jax.training.checkpoints import _without_orbax_chatter, ocp

    arrays = {}
    for name in ("last", "best"):
        with _without_orbax_chatter(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            leaves = checkpointer.restore(out.resolve() / "checkpoints" / name)
        arrays |= {f"{name}{key}": np.asarray(leaf) for key, leaf in leaves.items()}
    return arrays


def assert_same_run(out, alone):
    assert (out / "metrics.csv").read_bytes() == (alone / "metrics.csv").read_bytes()
    assert (out / "gradient_flow.csv").read_bytes() == (alone / "gradient_flow.csv").read_bytes()
    found, expected = weights(out), weights(alone)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert not [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_run_leaves_its_results_and_says_where(alone):
    out, printed, _ = alone
    with (out / "summary.csv").open() as file:
        results = list(csv.DictReader(file))
    assert [(row["layer"], row["part"], row["stage"]) for row in results] == [
        ("rnn", "", "initialization"),
        ("rnn", "", "trained"),
    ]
    assert 0 < float(results[0]["test_score"]) < 1
    assert int(results[0]["horizon_e"]) >= 1
    for name in (
        "figures/learning.png",
        "figures/gradient_flow.png",
        "report.html",
        "summary.csv",
        "metrics.csv",
        "timing.csv",
        "checkpoints/best",
    ):
        assert (out / name).exists()
        assert str(out / name) in printed
    flags = json.loads((out / "config.json").read_text())["flags"]
    assert flags["cell"] == "gru"
    assert flags["seq_len"] == 10
    with (out / "metrics.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    layers = {f"{what}/{layer}" for what in ("gradient_norm", "update_to_weight") for layer in ("rnn", "head")}
    saturated = {f"saturation/rnn/{gate}" for gate in ("reset", "update", "candidate")}
    assert names == {"train/loss", "validation/mse", "test/mse"} | layers | saturated
    with np.load(out / "gradient_flow.npz") as arrays:
        assert arrays["steps"].tolist() == [0, 60, 120, 180, 240]
        assert arrays["gru|rnn|"].shape == (5, 1, 10)


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory, data_dir):
    """A run without a validation split: its folder, its flags, and what it printed."""
    out = tmp_path_factory.mktemp("on_digits") / "run"
    flags = ["--task=digits", "--rows", f"--data_dir={data_dir}", "--cell=elman", "--hidden=4", "--steps=20"]
    done = run("train", *flags, f"--out={out}", figures=False)
    assert done.returncode == 0, done.stderr
    return out, flags, done.stdout


def test_without_a_validation_split_the_score_is_said_to_be_that_of_the_last_step(on_digits):
    out, _, printed = on_digits
    told = "validation accuracy +none: the task has no such split, and the test score is that of the last step\n"
    assert re.search(told, printed)
    assert not (out / "checkpoints" / "best").exists()


def change_config(out, change):
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))


def test_going_on_with_other_packages_is_warned_of_and_a_finished_run_is_shown_as_its_summary_says(on_digits, tmp_path):
    first, flags, printed = on_digits
    out = shutil.copytree(first, tmp_path / "run")
    again = [*flags, f"--out={out}", "--resume"]

    def made_by_others(config):
        config["versions"]["jax"] = "0.0.1"
        config["flags"]["data"]["scikit-learn"] = "0.0.2"

    change_config(out, made_by_others)
    (out / "summary.csv").unlink()
    before = (out / "metrics.csv").read_bytes()
    done = run("train", *again, figures=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "other packages" in line]
    packages = re.findall(r"([\w-]+) ([\d.]+), here ([\d.]+)", line)
    here = {name: importlib.metadata.version(name) for name in ("scikit-learn", "jax")}
    assert packages == [("scikit-learn", "0.0.2", here["scikit-learn"]), ("jax", "0.0.1", here["jax"])]
    assert (out / "metrics.csv").read_bytes() == before

    # It is finished now. A horizon that is not finite or never reached is said to be that.
    assert re.search("horizon of rnn, trained +1/e at lag", printed)
    path = out / "summary.csv"
    steps = load_profiles(out).whole_carries("elman")["rnn"].shape[-1]
    rows = re.sub(r"(,rnn,,trained),\d+,\d+,", r"\1,-1,-1,", path.read_text())
    path.write_text(re.sub(r"(,rnn,,initialization),\d+,\d+,", rf"\1,{steps - 1},{steps},", rows))
    done = run("train", *again, figures=False)
    assert "other packages" not in done.stderr
    assert done.stdout.startswith("This run is finished.")
    assert (out / "metrics.csv").read_bytes() == before
    assert re.search("horizon of rnn, trained +not finite\n", done.stdout), done.stderr
    assert re.search(f"horizon of rnn, initialization +1/e at lag {steps - 1}, 1/1000 never\n", done.stdout)


def test_to_go_on_with_other_data_is_refused(on_digits, tmp_path):
    first, flags, _ = on_digits
    out = shutil.copytree(first, tmp_path / "run")
    change_config(out, lambda config: config["flags"]["data"].update(test_sha256="abc"))
    (said,) = refusals("train", [*flags, f"--out={out}", "--resume"])
    told = rf"the data of --task=digits have test_sha256 \w{{64}}, and those of the run in '{out}' have abc; allowed"
    assert re.match(told, said)


def test_a_finished_run_damaged_in_five_places_is_as_it_was_after_resume(tmp_path, alone):
    out = shutil.copytree(alone[0], tmp_path / "run")
    change_config(out, lambda config: config["flags"].update(out=str(out)))
    metrics = (out / "metrics.csv").read_bytes()
    (out / "metrics.csv").write_bytes(metrics[: len(metrics) // 2])
    (out / "gradient_flow.npz").unlink()
    (out / "gradient_flow.csv").unlink()
    summary = (out / "summary.csv").read_text()
    (out / "summary.csv").write_text(summary.replace("test_score", "score"))
    (out / "checkpoints" / "last" / "manifest.ocdbt").unlink()
    printed, told = resume(out)
    for part in ("checkpoints/last' is damaged (manifest.ocdbt is missing)", "metrics.csv' is damaged (it has "):
        assert part in told
    assert "gradient_flow.npz' is damaged (it is missing): it is now as it was at step 240" in told
    assert "summary.csv' is damaged (it is not of this network). The end of the run is made again." in told
    assert "This run is finished." not in printed
    assert re.sub(r"\d+\.\d\n", "\n", (out / "summary.csv").read_text()) == re.sub(r"\d+\.\d\n", "\n", summary)
    assert_same_run(out, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_run_killed_at_any_moment_ends_as_one_left_alone(tmp_path, alone, moment):
    """Twenty moments spread over the whole time, from the reading of the flags to the drawing of the figures."""
    out, whole = tmp_path / "run", alone[2]
    start, when = time.perf_counter(), whole * (moment + 0.5) / 20
    signal_when(begin(out, "--resume"), lambda: time.perf_counter() - start > when, signal.SIGKILL)
    resume(out)
    assert_same_run(out, alone[0])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_three_moments_and_interrupted_says_how_to_go_on_and_ends_as_one_left_alone(
    tmp_path, alone, number, status
):
    out = tmp_path / "run"
    writing = out / "checkpoints"

    def kill(process, moment):
        assert signal_when(process, moment, signal.SIGKILL)[0] == -signal.SIGKILL
        assert not (out / "summary.csv").exists()

    kill(begin(out, "--resume"), lambda: (out / "config.json").exists())  # before the first compilation
    kill(begin(out, "--resume"), lambda: list(writing.glob(".last.new*")) and rows(out) > 5)  # within a checkpoint

    process, second = begin(out, "--resume"), []

    def at_work():
        if rows(out) > 10 and not second:
            process.send_signal(signal.SIGSTOP)  # a slow writer holds the folder, too
            (said,) = refusals("train", [*FLAGS, f"--out={out}", "--resume"])
            second.append(said)
            process.send_signal(signal.SIGCONT)
        return rows(out) > 25

    returned, told = signal_when(process, at_work, number)
    assert returned == status, told
    assert f"--out='{out}' is being written by process {process.pid} on '" in second[0]
    words = shlex.split(told.splitlines()[-1])
    assert told.splitlines()[-2].startswith("Stopped at step ")
    assert words[:3] == ["python", "-m", "experiments.train"]

    kill(Started("train", *words[3:]), lambda: rows(out) > 50)  # in full flight
    resume(out)
    assert_same_run(out, alone[0])


REFUSED = {
    "--task=adding --hidden=7": "--hidden=7 differs from the run in '{out}', which has 6; allowed with --resume: the",
    "--task=adding --resume=maybe": "flag --resume=maybe: allowed: true, false or force",
    "--task=adding --seq_len=11": "--seq_len=11 differs from the run in '{out}', which has 10;",
    "--task=adding --noresume": "--out='{out}' already holds a run; allowed:",
}  # fmt: skip


def test_what_cannot_work_is_said_in_one_sentence_before_a_folder_is_made(alone):
    out = alone[0]
    given = {text.format(out=out): sentence.format(out=out) for text, sentence in REFUSED.items()}
    lists = [[*FLAGS, f"--out={out}", "--resume", *text.split()] for text in given]
    before = (out / "metrics.csv").read_bytes()
    for said, sentence in zip(refusals("train", *lists), given.values()):
        assert said.startswith(sentence)
    assert (out / "metrics.csv").read_bytes() == before
