"""Claims about the figure of `experiments.benchmark`, drawn from run directories alone."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from rnn_jax.report import benchmark
from rnn_jax.training import run_directory

COLUMNS = ["cell", "pass", "point", "library", "version", "chosen", "ratio", "ratio_q25", "ratio_q75"]
ROWS = [
    ["gru", "gradient", "8x4x3x4", "ours", "1.2.3", "True", "1.0", "1.0", "1.0"],
    ["gru", "gradient", "8x4x3x4", "torch", "2.0", "False", "3.0", "2.5", "3.5"],
    ["gru", "gradient", "8x4x3x4", "torch", "2.0", "True", "2.0", "1.5", "4.0"],
    ["gru", "gradient", "1x9x3x4", "ours", "1.2.3", "True", "1.0", "1.0", "1.0"],
    ["gru", "gradient", "1x9x3x4", "torch", "2.0", "True", "0.5", "0.25", "0.75"],
    ["gru", "gradient", "1x9x3x4", "keras", "3.0", "True", "nan", "", ""],
]


def make_run(folder, rows=ROWS, **flags):
    run_dir = run_directory.create(str(folder), {"memory": False, **flags})
    with (run_dir / "benchmark.csv").open("w", newline="") as table:
        csv.writer(table).writerows([COLUMNS, *rows])
    return run_dir


@pytest.fixture
def drawn(monkeypatch):
    """The figures that `benchmark` draws."""
    figures = []
    right = benchmark.ratios_figure
    monkeypatch.setattr(benchmark, "ratios_figure", lambda *a, **k: figures.append(right(*a, **k)) or figures[-1])
    return figures


def test_each_point_shows_the_chosen_ratio_between_its_quartiles(tmp_path, drawn):
    path = benchmark.benchmark(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "figures" / "benchmark.png"
    with Image.open(path) as image:
        assert image.info["Source"]
    (ax,) = drawn[0].axes
    torch, keras = ax.containers
    points, _, (bars,) = torch
    np.testing.assert_allclose(points.get_xdata(), [2.0, 0.5])
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], [[1.5, 4.0], [0.25, 0.75]])
    assert len(keras[0].get_xdata()) == 0
    assert [label.get_text() for label in ax.get_yticklabels()] == ["8x4x3x4", "1x9x3x4"]


@pytest.mark.parametrize(("memory", "says"), [(False, "ours is faster"), (True, "ours needs less")])
def test_the_figure_says_what_is_compared_with_which_version_of_ours(tmp_path, drawn, memory, says):
    benchmark.benchmark(make_run(tmp_path / "run", memory=memory))
    assert says in drawn[0].get_supxlabel()
    assert drawn[0].legends[0].get_title().get_text().startswith(f"rnn_jax 1.2.3 = 1, on {os.cpu_count()} cores")


def test_a_run_without_a_table_is_told(tmp_path):
    run_dir = run_directory.create(str(tmp_path / "run"), {})
    with pytest.raises(ValueError, match=r"run' has no benchmark.csv; allowed: a run of experiments.benchmark."):
        benchmark.benchmark(run_dir)
