"""Claims about `python -m experiments.long_sequences`, through its command line."""

import csv

from tests.experiments.command import run


def test_a_row_for_each_length_and_a_gradient_below_what_float32_holds(tmp_path):
    out = tmp_path / "run"
    done = run("long_sequences", "--cell=lstm", "--hidden=4", "--lengths=10,2000", f"--out={out}")
    assert done.returncode == 0, done.stderr
    with (out / "long_sequences.csv").open(newline="") as table:
        short, long = csv.DictReader(table)
    assert (short["steps"], long["steps"]) == ("10", "2000")
    assert float(long["log10_adjoint_1"]) < -100 < float(short["log10_adjoint_1"]) < 0
    assert float(short["microseconds_a_step"]) > 0
    assert float(long["peak_bytes"]) > 1e7
    assert done.stdout.splitlines()[-1] == f"Written: {out / 'long_sequences.csv'}, {out / 'report.html'}"
