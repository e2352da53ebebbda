"""Claims about `python -m experiments.order_and_chaos`, and the theory that it is held against."""

import csv
import math

import numpy as np
import pytest

from experiments.order_and_chaos import mean_field_exponent
from tests.experiments.command import run


def test_the_theory_is_log_g_in_order_and_crosses_0_at_gain_1():
    for gain in (0.3, 0.8, 1.0):
        assert mean_field_exponent(gain) == pytest.approx(math.log(gain), abs=1e-12)
    rising = [mean_field_exponent(gain) for gain in (1.05, 1.2, 1.5, 2.0)]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.01  # it rises like the square of the distance from 1


def test_the_theory_is_that_of_random_networks_of_many_units():
    """Against the growth of a tangent vector in one network of 1,500 units, without this library."""
    rng, gain, units = np.random.default_rng(0), 1.6, 1500
    matrix = gain * rng.normal(size=(units, units)) / math.sqrt(units)
    h, tangent, growth = rng.normal(size=units), rng.normal(size=units), []
    for step in range(160):
        h = np.tanh(matrix @ h)
        tangent = (1 - h**2) * (matrix @ tangent)
        norm = np.linalg.norm(tangent)
        tangent /= norm
        if step >= 60:
            growth.append(math.log(norm))
    assert np.mean(growth) == pytest.approx(mean_field_exponent(gain), abs=0.03)


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
