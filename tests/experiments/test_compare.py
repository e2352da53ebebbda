"""Runs of `experiments.train` compared through the command line, from their directories alone."""

import csv

import pytest

from tests.experiments.command import run

FLAGS = [
    "--task=adding", "--seq_len=8", "--cell=elman", "--hidden=4", "--batch=8", "--steps=4",
    "--train_size=64", "--test_size=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        done = run("train", *FLAGS, f"--seed={seed}", f"--out={folder / f'elman-{seed}'}", figures=False)
        assert done.returncode == 0, done.stderr
    return folder


def test_trained_networks_make_a_table_and_a_figure(runs, tmp_path):
    done = run("compare", *sorted(runs.iterdir()), "--baseline=a guess=0.2", f"--out={tmp_path / 'made'}")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "made" / "comparison.csv").open(encoding="utf-8") as table:
        (elman,) = csv.DictReader(table)
    scores = []
    for seed in range(2):
        with (runs / f"elman-{seed}" / "summary.csv").open(encoding="utf-8") as table:
            scores.append(float(next(csv.DictReader(table))["test_score"]))
    assert (elman["network"], elman["metric"], elman["seeds"]) == ("elman", "mse", "0 1")
    assert float(elman["test_mean"]) == pytest.approx(sum(scores) / 2)
    assert (float(elman["test_least"]), float(elman["test_most"])) == (min(scores), max(scores))
    assert scores[0] != scores[1]
    assert elman["command"] == " ".join(["python -m experiments.train", *FLAGS])
    assert "| a guess | 0.200 |" in done.stdout
    assert (tmp_path / "made" / "comparison.md").read_text(encoding="utf-8") in done.stdout
    assert (tmp_path / "made" / "comparison.png").stat().st_size > 5000
