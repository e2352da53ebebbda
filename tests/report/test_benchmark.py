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
    """The figures that `draw_benchmark` draws."""
    figures = []
    right = benchmark.ratios_figure
    monkeypatch.setattr(benchmark, "ratios_figure", lambda *a, **k: figures.append(right(*a, **k)) or figures[-1])
    return figures


def test_a_line_shows_the_chosen_ratio_at_each_point_and_their_geometric_mean(tmp_path, drawn):
    (path,) = benchmark.draw_benchmark(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "figures" / "benchmark.png"
    with Image.open(path) as image:
        assert image.info["Source"]
    (ax,) = drawn[0].axes
    _, marks, bar = ax.lines  # the first is the line at 1; keras has no ratio
    assert [label.get_text() for label in ax.get_yticklabels()] == ["torch", "keras"]
    np.testing.assert_allclose(marks.get_xydata(), [(2.0, 0), (0.5, 0)])
    np.testing.assert_allclose(bar.get_xdata(), [1.0, 1.0])
    assert [text.get_text() for text in ax.texts] == ["1.00", "gru"]
    said = path.with_suffix(".svg").read_text()
    assert "torch, gru, gradient\n8x4x3x4\n2.00 (1.50 to 4.00)</title>" in said
    assert "1x9x3x4\n0.50 (0.25 to 0.75)</title>" in said


@pytest.mark.parametrize(("memory", "says"), [(False, "ours is faster"), (True, "ours needs less")])
def test_the_figure_says_what_is_compared_with_which_version_of_ours(tmp_path, drawn, memory, says):
    benchmark.draw_benchmark(make_run(tmp_path / "run", memory=memory))
    assert says in drawn[0].get_supxlabel()
    assert drawn[0].get_suptitle().startswith(f"rnn_jax 1.2.3 = 1, on {os.cpu_count()} cores")


def test_a_run_in_which_no_peer_was_timed_is_drawn_without_a_warning(tmp_path, recwarn):
    assert benchmark.draw_benchmark(make_run(tmp_path / "run", ROWS[:1]))[0].exists()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_run_without_a_table_is_told(tmp_path):
    run_dir = run_directory.create(str(tmp_path / "run"), {})
    with pytest.raises(ValueError, match=r"run' has no benchmark.csv; allowed: a run of experiments.benchmark."):
        benchmark.draw_benchmark(run_dir)
