"""Kinds of tasks through the command line of `experiments.train`: longer test sequences, sequences of images."""

import csv
import json
import re

import pytest

from rnn_jax import tasks
from tests.experiments.command import run


@pytest.mark.parametrize(
    ("flags", "test_seq_len"),
    [
        pytest.param(
            ("--task=parity", "--seq_len=20", "--test_seq_len=100", "--cell=gru"), 100, marks=pytest.mark.slow
        ),
        (("--task=moving_digits", "--seq_len=3", "--test_seq_len=5", "--cell=tests.user_cells:ConvLSTMCell"), 5),
    ],
    ids=["parity", "moving_digits"],
)
def test_a_run_trains_on_one_length_and_is_tested_on_another(flags, test_seq_len, data_dir, tmp_path):
    out = tmp_path / "run"
    done = run(
        "train", *flags, f"--data_dir={data_dir}", "--steps=20", "--hidden=4", "--batch=4", "--train_size=64",
        "--test_size=32", "--profile_every=0", f"--out={out}", figures=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Tested on sequences of {test_seq_len} steps." in done.stdout
    (shown,) = re.findall(r"test accuracy +([\d.]+)", done.stdout)
    with open(out / "summary.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["test_score"]) == pytest.approx(float(shown), abs=1e-3)
    flags_noted = json.loads((out / "config.json").read_text())["flags"]
    assert flags_noted["test_seq_len"] == test_seq_len
    options = {name: flags_noted[name] for name in ("seq_len", "test_seq_len", "train_size", "test_size")}
    task = tasks.make_task(flags_noted["task"], data_dir=data_dir, **options)
    assert flags_noted["data"] == task.fingerprint
    assert float(row["baseline_score"]) == task.baseline_score
