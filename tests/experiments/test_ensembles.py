"""Claims about `python -m experiments.ensembles`, through its command line."""

import csv

from tests.experiments.command import run


def test_an_ensemble_is_its_members_and_both_are_timed(tmp_path):
    out = tmp_path / "run"
    done = run("ensembles", "--cells=elman", "--seeds=2", "--steps=3", "--hidden=4", "--batch=4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    with (out / "ensembles.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["cell"] == "elman"
    assert float(row["largest_difference"]) < 1e-5
    assert float(row["ratio"]) == float(row["seconds_alone"]) / float(row["seconds_together"]) > 0
    assert done.stdout.splitlines()[-1] == f"Written: {out / 'ensembles.csv'}, {out / 'report.html'}"
