"""Claims about `python -m experiments.order_and_chaos`, through its command line."""

import csv

import pytest

from tests.experiments.command import run


def test_small_networks_are_ordered_below_gain_1_and_chaotic_above(tmp_path):
    out = tmp_path / "run"
    done = run(
        "order_and_chaos", "--gains=0.5,4", "--hidden=80", "--steps=200", "--transient=100", "--seeds=3",
        f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (out / "order_and_chaos.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["gain"], row["seed"]) for row in rows] == [(gain, str(k)) for gain in ("0.5", "4.0") for k in range(3)]
    for row in rows:
        ordered = row["gain"] == "0.5"
        assert (float(row["exponent"]) < 0) == ordered
        # 80 units are few: the largest eigenvalue of J is 1 in the limit alone, and here up to 1.3.
        assert float(row["exponent"]) == pytest.approx(float(row["theory"]), abs=0.3)
    assert (out / "figures" / "order_and_chaos.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "report.html") in done.stdout
