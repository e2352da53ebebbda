"""Claims about `python -m experiments.ensembles`, through its command line."""

import csv
import pathlib
import subprocess
import sys

from tests.experiments.refusals import refusals

ROOT = pathlib.Path(__file__).parents[2]


def ensembles(*flags):
    command = [sys.executable, "-m", "experiments.ensembles", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_an_ensemble_is_its_members_and_both_are_timed(tmp_path):
    out = tmp_path / "run"
    done = ensembles("--cells=elman", "--seeds=2", "--steps=3", "--hidden=4", "--batch=4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    with (out / "ensembles.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["cell"] == "elman"
    assert float(row["largest_difference"]) < 1e-5
    assert float(row["ratio"]) == float(row["seconds_alone"]) / float(row["seconds_together"]) > 0
    assert done.stdout.splitlines()[-1] == f"Written: {out / 'ensembles.csv'}, {out / 'report.html'}"


def test_an_unknown_cell_is_one_sentence(tmp_path):
    (sentence,) = refusals("ensembles", ["--cells=nosuch", f"--out={tmp_path / 'run'}"])
    assert sentence.startswith("unknown cell 'nosuch'; allowed: elman, ")
    assert not (tmp_path / "run").exists()
