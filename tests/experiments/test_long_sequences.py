"""Claims about `python -m experiments.long_sequences`, through its command line."""

import csv
import pathlib
import subprocess
import sys

from tests.experiments.refusals import refusals

ROOT = pathlib.Path(__file__).parents[2]


def long_sequences(*flags):
    command = [sys.executable, "-m", "experiments.long_sequences", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_a_row_for_each_length_and_a_gradient_below_what_float32_holds(tmp_path):
    out = tmp_path / "run"
    done = long_sequences("--cell=lstm", "--hidden=4", "--lengths=10,2000", f"--out={out}")
    assert done.returncode == 0, done.stderr
    with (out / "long_sequences.csv").open(newline="") as table:
        short, long = csv.DictReader(table)
    assert (short["steps"], long["steps"]) == ("10", "2000")
    assert float(long["log10_adjoint_1"]) < -100 < float(short["log10_adjoint_1"]) < 0
    assert float(short["microseconds_a_step"]) > 0
    assert float(long["peak_bytes"]) > 1e7
    assert done.stdout.splitlines()[-1] == f"Written: {out / 'long_sequences.csv'}, {out / 'report.html'}"


def test_lengths_that_are_none_are_one_sentence(tmp_path):
    wrong = ("1", "10,10", "100,10", "ten")
    told = refusals("long_sequences", *([f"--lengths={lengths}", f"--out={tmp_path / 'run'}"] for lengths in wrong))
    sentence = "--lengths={} is no list of lengths; allowed: whole numbers from 2 up, ascending."
    assert told == [sentence.format(lengths) for lengths in wrong]
    assert not (tmp_path / "run").exists()
