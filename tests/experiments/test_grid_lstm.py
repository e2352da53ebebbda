"""The experiment as a person runs it: through its command line."""

import csv
import functools
import json
import shutil

import numpy as np
import pytest

from rnn_jax.report.grid import load_grid_profiles
from tests.experiments import command

run = functools.partial(command.run, "grid_lstm")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


FLAGS = [
    "--task=parity", "--seq_len=3", "--depth=2", "--hidden=16", "--steps=150", "--batch=16", "--learning_rate=2e-2",
    "--test_size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    done = run(*FLAGS, f"--out={folder / 'out'}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_both_networks_learn_the_parity_of_three_bits(trained):
    folder, told = trained
    out = folder / "out"
    summary = rows(out / "summary.csv")
    assert [(row["network"], row["seed"]) for row in summary] == [("grid_lstm", "0"), ("tanh", "0")]
    for row in summary:
        assert float(row["test_score"]) > 0.95 > float(row["baseline_score"]) == 0.5
    ours, other = (int(row["parameters"]) for row in summary)
    assert ours <= other < 1.1 * ours
    profiles = load_grid_profiles(out)
    assert len(profiles) == 2 * 2
    for (_, _, dimension), norms in profiles.items():
        assert dimension == "depth"
        assert norms.shape == (1, 2)
        assert np.all(np.isfinite(norms))
    for path in (out / "figures" / "grid_lstm.png", out / "metrics.csv", out / "grid_profile.csv"):
        assert str(path) in told
    assert (out / "figures" / "grid_lstm.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_resumed_ends_the_same(trained):
    folder, _ = trained
    out = folder / "out"
    before = {name: (out / name).read_bytes() for name in ("metrics.csv", "grid_profile.csv")}
    summary = rows(out / "summary.csv")
    shutil.rmtree(out / "checkpoints" / "tanh")
    (out / "summary.csv").unlink()
    done = run(*FLAGS, f"--out={out}", "--resume")
    assert done.returncode == 0, done.stderr
    assert {name: (out / name).read_bytes() for name in before} == before
    again = rows(out / "summary.csv")
    assert [{**row, "seconds": ""} for row in again] == [{**row, "seconds": ""} for row in summary]


@pytest.mark.slow
def test_an_image_has_a_profile_along_each_dimension(tmp_path, data_dir):
    out = tmp_path / "out"
    flags = ["--task=digits", "--patch=4", "--depth=1", "--hidden=3", "--steps=1", "--batch=4", f"--out={out}"]
    done = run(*flags, f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    places = {("grid_lstm", "rows"): 2, ("grid_lstm", "columns"): 2, ("stacked_lstm", "rows"): 8}
    places |= {("grid_lstm", "depth"): 1, ("stacked_lstm", "depth"): 1}
    assert {key: norms.shape for key, norms in load_grid_profiles(out).items()} == {
        (network, stage, dimension): (1, size)
        for (network, dimension), size in places.items()
        for stage in ("initialization", "trained")
    }
    assert json.loads((out / "config.json").read_text())["flags"]["rows"] is True
