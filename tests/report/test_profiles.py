import os
import subprocess
import sys

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rnn_jax.report import profiles as figures
from rnn_jax.report import read
from rnn_jax.report.command import command
from rnn_jax.training import run_directory
from tests.experiments.command import ROOT


def decaying(steps, seeds, time, slope):
    """[L, seeds, time]: falls by `slope` a step, faster for later seeds, from lag 1; exactly zero at t = T."""
    lag_T = np.arange(time)[::-1]
    offset_S1 = -2.0 - 5.0 * np.arange(seeds)[:, None]  # seeds differ in size too
    profile_ST = offset_S1 - np.outer(slope * (1 + 0.1 * np.arange(seeds)), lag_T - 1.0)
    profile_ST[:, -1] = -np.inf
    return np.tile(profile_ST, (steps, 1, 1))


def rows(cell, stage, lags, part=""):
    return [
        {"cell": cell, "layer": "rnn", "part": part, "stage": stage, "seed": seed, "horizon_e": 1, "horizon_1000": lag}
        for seed, lag in enumerate(lags)
    ]


@pytest.fixture
def run_dir(tmp_path):
    """A run of two cells, 3 seeds, 16 steps of time, profiles at training steps 0, 10, 500."""
    folder = run_directory.create(str(tmp_path / "run"), {"task": "adding", "hidden": 64, "seeds": 3})
    log10_norm = {
        "elman": {("rnn", ""): decaying(3, 3, 16, 1.5)},
        "lstm": {("rnn", ""): decaying(3, 3, 16, 0.1), ("rnn", "c"): decaying(3, 3, 16, 0.1)},
    }
    run_directory.save_profiles(folder, [0, 10, 500], log10_norm)
    table = rows("elman", "initialization", [3, 4, 4]) + rows("elman", "trained", [5, 9, 11])
    table += rows("lstm", "initialization", [16, 15, 16]) + rows("lstm", "trained", [1, 1, 1], part="c")
    run_directory.save_table(folder, table)
    return folder


def figure_of(folder):
    return figures.profiles_figure(read.load_profiles(folder), read.load_table(folder), "a title")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_profile_is_drawn_against_the_lag_without_its_exact_zeros():
    ax = Figure().subplots()
    profile_ST = np.array([[-3.0, -np.inf, -1.0, -np.inf], [-5.0, -7.0, -2.0, -np.inf], [np.nan, -9.0, -4.0, -np.inf]])

    assert figures.plot_profile(ax, profile_ST, label="lstm", color="red") is ax

    (line,) = ax.lines
    (band,) = ax.collections
    np.testing.assert_array_equal(line.get_xdata(), [3, 2, 1, 0])
    np.testing.assert_array_equal(line.get_ydata(), [-4.0, -9.0, -2.0, np.nan])  # a zero enters the median
    assert line.get_label() == "lstm"
    corners = {tuple(vertex) for path in band.get_paths() for vertex in path.vertices}
    assert corners >= {(3, -5), (3, -3), (2, -9), (2, -7), (1, -4), (1, -1)}
    assert not any(lag == 0 for lag, _ in corners)
    assert ax.get_xlabel() == "lag  T \N{MINUS SIGN} t  (steps back from the end)"
    assert ax.get_ylabel() == "log$_{10}$ ‖∂L/∂carry$_t$‖"


def test_one_seed_has_no_band():
    ax = Figure().subplots()
    figures.plot_profile(ax, np.zeros((1, 4)), label="lstm", color="red")
    assert not ax.collections


def test_the_panels_show_the_first_and_the_last_step_each_seed_over_its_largest_value(run_dir):
    before, after = figure_of(run_dir).axes
    assert before.get_title() == "at initialization (step 0)"
    assert after.get_title() == "after training (step 500)"
    assert before.get_ylim() == after.get_ylim()
    assert before.get_ylabel() == "log$_{10}$ of ‖∂L/∂carry$_t$‖ / its largest value"
    for ax in (before, after):
        assert ax.get_xlabel().startswith("lag  T")
        lags = np.arange(16)[::-1]
        elman = ax.lines[0]
        np.testing.assert_allclose(elman.get_ydata()[:-1], -1.5 * 1.1 * (lags[:-1] - 1), atol=1e-12)
        assert np.isnan(elman.get_ydata()[-1])


def test_the_legend_names_every_cell_with_its_median_horizon(run_dir):
    before, after = figure_of(run_dir).axes
    assert legend(before) == ["elman  (1/1000 at lag 4)", "lstm  (never within 16 steps)"]
    assert legend(after) == ["elman  (1/1000 at lag 9)", "lstm"]


def test_the_legend_leaves_out_seeds_whose_gradient_is_not_finite(run_dir):
    table = rows("elman", "initialization", [-1, 3, 5]) + rows("lstm", "initialization", [-1, -1, -1])
    run_directory.save_table(run_dir, table)
    assert legend(figure_of(run_dir).axes[0]) == ["elman  (1/1000 at lag 4)", "lstm  (not finite)"]


def test_the_thresholds_of_the_horizons_are_marked(run_dir):
    for ax in figure_of(run_dir).axes:
        levels = [line.get_ydata()[0] for line in ax.lines[-2:]]
        np.testing.assert_allclose(levels, np.log10([1 / np.e, 1 / 1000]))
        assert [text.get_text() for text in ax.texts] == ["1/e", "1/1000"]


def test_a_frame_ends_at_the_floor_and_says_so_only_if_it_cuts(run_dir):
    cut = figure_of(run_dir)
    assert cut.axes[0].get_ylim()[0] == -12
    assert cut.get_supxlabel() == "The frame ends at 10$^{-12}$; the lowest value is 10$^{-25}$."
    whole = figures.profiles_figure(read.Profiles(np.array([0]), {"gru": {("rnn", ""): decaying(1, 1, 16, 0.5)}}), [])
    assert whole.axes[0].get_ylim()[0] == pytest.approx(-7)
    assert whole.get_supxlabel() == ""


def test_the_lag_axis_ends_where_the_last_curve_leaves_the_frame():
    profiles = read.Profiles(np.array([0]), {"gru": {("rnn", ""): decaying(1, 1, 2000, 0.5)}})
    (ax,) = figures.profiles_figure(profiles, []).axes
    assert ax.get_xlim() == (0, 25)


def test_every_layer_of_a_stack_has_a_line_and_no_two_of_32_look_alike():
    layers = {(f"layers/{i}", ""): decaying(1, 1, 8, 0.1) for i in range(32)} | {
        ("layers/0", "c"): decaying(1, 1, 8, 0.1)
    }
    (ax,) = figures.profiles_figure(read.Profiles(np.array([0]), {"lstm": layers}), []).axes
    assert legend(ax) == [f"lstm layers/{i}" for i in range(32)]
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines[:32]}) == 32


@pytest.mark.parametrize(("step", "heading"), [(0, "at initialization (step 0)"), (9, "after training (step 9)")])
def test_a_run_of_one_profile_has_one_panel_and_no_heat_map(tmp_path, step, heading):
    folder = run_directory.create(str(tmp_path / "run"), {})
    run_directory.save_profiles(folder, [step], {"lstm": {("rnn", ""): decaying(1, 1, 4, 0.1)}})
    assert [ax.get_title() for ax in figure_of(folder).axes] == [heading]
    assert figures.draw_profiles(folder) == [folder / "figures" / "gradient_flow.png"]


def test_heat_maps_show_every_logged_step_by_lag_on_one_scale(run_dir):
    figure = figures.training_figure(read.load_profiles(run_dir), "a title")
    elman, lstm, bar = figure.axes
    assert [ax.get_title() for ax in (elman, lstm)] == ["elman", "lstm"]
    assert [label.get_text() for label in elman.get_yticklabels()] == ["0", "10", "500"]
    assert elman.get_ylabel() == "training step"
    assert bar.get_ylabel() == "log$_{10}$ of ‖∂L/∂carry$_t$‖ / its largest value"
    assert elman.images[0].get_clim() == lstm.images[0].get_clim() == (-12, 0)
    shown_LT = elman.images[0].get_array()
    assert shown_LT.mask[:, 0].all()
    assert not shown_LT.mask[:, 1:].any()
    np.testing.assert_allclose(shown_LT[1, 1:], -1.5 * 1.1 * np.arange(15), atol=1e-12)


def test_heat_maps_mark_where_a_row_falls_below_a_thousandth(run_dir):
    figure = figures.training_figure(read.load_profiles(run_dir))
    marks = [path.vertices for line in figure.axes[0].collections for path in line.get_paths()]
    # Median slope 1.65: -1.65 at lag 2 is above -3, -3.3 at lag 3 is below.
    np.testing.assert_array_equal(marks, [[[2.5, row - 0.5], [2.5, row + 0.5]] for row in range(3)])
    assert not figure.axes[1].collections  # never below


@pytest.mark.parametrize("cells", [1, 3, 5, 8])
def test_there_is_a_heat_map_for_every_cell(cells):
    log10_norm = {f"cell{i}": {("rnn", ""): decaying(2, 1, 8, 0.1 * i)} for i in range(cells)}
    figure = figures.training_figure(read.Profiles(np.array([0, 1]), log10_norm))
    assert [ax.get_title() for ax in figure.axes[:-1]] == list(log10_norm)


def test_a_run_directory_gives_its_figures(run_dir):
    paths = figures.draw_profiles(run_dir)
    assert paths == [run_dir / "figures" / name for name in ("gradient_flow.png", "gradient_flow_training.png")]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
            assert image.info["Source"] == command(read.load_config(run_dir))
            colors = {color for _, color in image.convert("RGB").getcolors(1 << 24)}
        if path.name == "gradient_flow.png":
            for color in ("#0072B2", "#D55E00"):
                assert tuple(round(255 * part) for part in matplotlib.colors.to_rgb(color)) in colors


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        ({"task": "adding", "hidden": 64, "seeds": 2}, "adding, 64 hidden units, 2 seeds"),
        ({"task": "copy"}, "copy, 2 seeds"),
        ({}, "2 seeds"),
    ],
)
def test_the_title_says_what_the_config_knows(tmp_path, monkeypatch, flags, title):
    folder = run_directory.create(str(tmp_path / "run"), flags)
    run_directory.save_profiles(folder, [0], {"lstm": {("rnn", ""): decaying(1, 2, 4, 0.1)}})
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, *_, **__: drawn.append(figure.get_suptitle()))
    figures.draw_profiles(folder)
    assert drawn == [title]


def test_profiles_of_zeros_and_nan_and_long_falls_are_drawn_without_a_warning(tmp_path, recwarn):
    folder = run_directory.create(str(tmp_path / "run"), {})
    log10_norm = {
        "zero": {("rnn", ""): np.full((2, 3, 40), -np.inf)},
        "nan": {("rnn", ""): np.full((2, 3, 40), np.nan)},
        "falls": {("rnn", ""): decaying(2, 3, 40, 10.0)},
        "grows": {("rnn", ""): decaying(2, 3, 40, -10.0)},
        "another length, one seed, float32": {("rnn", ""): decaying(2, 1, 7, 1.0).astype(np.float32)},
    }
    run_directory.save_profiles(folder, [0, 1], log10_norm)
    assert len(figures.draw_profiles(folder)) == 2
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("missing", ["config.json", "gradient_flow.npz"])
def test_a_folder_without_a_run_is_refused_by_the_missing_file(run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}; allowed: "):
        figures.draw_profiles(run_dir)


def test_figures_leave_pyplot_and_its_backend_alone(run_dir):
    code = (
        "import sys, types; package = sys.modules['rnn_jax'] = types.ModuleType('rnn_jax');"
        "package.__path__ = ['rnn_jax'];"  # without JAX, whose import takes seconds
        "from rnn_jax.report.profiles import draw_profiles; draw_profiles(sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"MPLBACKEND": "qtagg"}
    subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True, env=environment, cwd=ROOT)
