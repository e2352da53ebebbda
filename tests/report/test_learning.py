import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rnn_jax import flow
from rnn_jax.report import learning, read
from rnn_jax.report.command import command
from rnn_jax.training import run_directory

STEPS = [0, 10, 500]
SCORES = {  # cell -> [seeds, L]
    "elman": [[2.0, 0.2, 0.17], [1.0, 0.18, 0.16], [0.9, 0.17, 0.15]],
    "lstm(forget_bias=2)": [[1.0, 0.1, 0.001], [1.5, 0.12, 0.003], [1.2, 0.17, 0.002]],
}


def summary(baseline_score=1 / 6):
    lags = {  # cell, part of the carry -> (horizon_e, horizon_1000) by seed: before training, after it
        ("elman", ""): ([(3, 30), (4, 40), (9, 50)], [(1, 10), (2, 20), (2, 25)]),
        ("lstm(forget_bias=2)", ""): ([(5, 60), (6, 70), (7, 64)], [(64, 64), (60, 64), (50, 64)]),
        ("lstm(forget_bias=2)", "c"): ([(1, 1)] * 3, [(1, 1)] * 3),
    }
    return [
        {
            "cell": cell,
            "layer": "rnn",
            "part": part,
            "stage": stage,
            "seed": seed,
            "horizon_e": e,
            "horizon_1000": thousand,
            "test_score": 0.1,
            "baseline_score": baseline_score,
        }
        for (cell, part), stages in lags.items()
        for stage, of_seeds in zip(("initialization", "trained"), stages, strict=True)
        for seed, (e, thousand) in enumerate(of_seeds)
    ]


def make_run(folder, scores, metric="mse", rows=None, **flags):
    """A run of 64 steps of time with these scores, [seeds, L] each, as `experiments.gradient_flow` leaves it."""
    run_dir = run_directory.create(str(folder), {"task": "adding", "hidden": 64, **flags})
    with run_directory.MetricWriter(run_dir) as writer:
        for cell, scores_SL in scores.items():
            for row, step in enumerate(STEPS):
                names = [f"{cell}/seed{seed}" for seed in range(len(scores_SL))]
                writer.write(step, {f"{name}/loss": 7.0 for name in names})
                writer.write(step, {f"{name}/held_out_{metric}": of[row] for name, of in zip(names, scores_SL)})
    seeds = len(next(iter(scores.values())))
    run_directory.save_profiles(run_dir, STEPS, {cell: {("rnn", ""): np.zeros((3, seeds, 64))} for cell in scores})
    run_directory.save_table(run_dir, summary() if rows is None else rows)
    return run_dir


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    program, out = str(tmp_path / "gradient_flow.py"), str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", [program, "--hidden=64", "--out", out])
    return make_run(tmp_path / "run", SCORES)


def figure_of(folder):
    curves = learning.learning_curves(read.load_metrics(folder))
    return learning.learning_figure(curves, read.load_table(folder), 64, "a title")


def test_curves_hold_what_the_run_wrote_cell_by_cell(run_dir):
    elman, lstm = learning.learning_curves(read.load_metrics(run_dir))
    assert [curve.cell for curve in (elman, lstm)] == list(SCORES)
    for curve in (elman, lstm):
        assert curve.metric == "mse"
        assert curve.steps.tolist() == STEPS
        np.testing.assert_array_equal(curve.scores_LS, np.transpose(SCORES[curve.cell]))


def test_a_step_that_not_every_seed_has_is_left_out(run_dir):
    path = run_dir / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # as a kill would leave it
    elman, lstm = learning.learning_curves(read.load_metrics(run_dir))
    assert elman.steps.tolist() == STEPS
    assert lstm.steps.tolist() == STEPS[:-1]
    np.testing.assert_array_equal(lstm.scores_LS, np.transpose(SCORES[lstm.cell])[:-1])


def test_a_line_is_the_median_over_seeds_and_a_band_their_range(run_dir):
    ax = figure_of(run_dir).axes[0]
    for i, scores_SL in enumerate(SCORES.values()):
        np.testing.assert_array_equal(ax.lines[i].get_xdata(), STEPS)
        np.testing.assert_array_equal(ax.lines[i].get_ydata(), np.median(scores_SL, axis=0))
        corners = {tuple(vertex) for path in ax.collections[i].get_paths() for vertex in path.vertices}
        for step, low, high in zip(STEPS, np.min(scores_SL, axis=0), np.max(scores_SL, axis=0)):
            assert {(step, low), (step, high)} <= corners
    assert ax.get_xlabel() == "training step"
    assert ax.get_ylabel() == "mse on held-out examples"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(SCORES)


def test_one_seed_has_no_band():
    ax = Figure().subplots()
    learning.plot_learning(ax, learning.LearningCurve("gru", "mse", np.arange(3), np.ones((3, 1))), color="red")
    assert not ax.collections


def test_the_score_of_ignoring_the_input_is_a_labeled_line(run_dir):
    ax = figure_of(run_dir).axes[0]
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), 1 / 6)
    assert [text.get_text() for text in ax.texts] == ["ignoring the input: 0.1667"]


@pytest.mark.parametrize(
    ("metric", "lowest", "scale"), [("mse", 0.001, "log"), ("mse", 0.0, "linear"), ("accuracy", 0.001, "linear")]
)
def test_errors_are_drawn_by_powers_of_ten_and_shares_are_not(tmp_path, metric, lowest, scale):
    folder = make_run(tmp_path / "run", {"elman": [[0.5, 0.2, lowest]]}, metric, summary()[:1])
    assert figure_of(folder).axes[0].get_yscale() == scale


@pytest.mark.parametrize(("highest", "cut"), [(2.0, False), (3e30, True)])
def test_an_error_that_explodes_does_not_flatten_the_others(tmp_path, highest, cut):
    figure = figure_of(make_run(tmp_path / "run", {"irnn": [[1.0, 0.2, 0.01], [1.0, 0.2, highest]]}, rows=summary()))
    bottom, top = figure.axes[0].get_ylim()
    assert 0.001 < bottom < 0.01
    if cut:
        assert top == pytest.approx(5)
        assert figure.get_supxlabel() == "The left frame ends at 5; the highest value is 3e+30."
    else:
        assert 2 < top < 5
        assert figure.get_supxlabel() == ""


def test_the_score_of_ignoring_the_input_is_in_the_frame_also_below_scores_that_all_explode(tmp_path):
    figure = figure_of(make_run(tmp_path / "run", {"irnn": [[40.0, 50.0, 3e30]]}, rows=summary()))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < 1 / 6 < top == pytest.approx(5)


def test_horizons_of_whole_carries_stand_beside_the_curves_in_their_colors(run_dir):
    curves, beside = figure_of(run_dir).axes
    names = {text.get_text(): text.get_color() for text in beside.texts}
    assert names == dict(zip([*SCORES, "never within 64 steps"], ["#0072B2", "#D55E00", "0.4"]))
    ranges, marks = beside.lines[0:16:2], beside.lines[1:16:2]
    drawn = [mark.get_xdata()[0] for mark in marks]  # of each cell: 1/e before and after, then 1/1000
    assert drawn == [4, 2, 40, 20, 6, 60, 64, 64]
    assert [tuple(line.get_xdata()) for line in ranges[:4]] == [(3, 9), (1, 2), (30, 50), (10, 25)]
    for i, mark in enumerate(marks):
        assert mark.get_color() == curves.lines[i // 4].get_color()
        assert mark.get_markerfacecolor() == (mark.get_color() if i % 2 else "white")
        assert mark.get_marker() == ("o" if i % 4 < 2 else "D")
    assert beside.get_xlim() == (0, 64)


def test_a_seed_whose_gradient_is_not_finite_has_no_horizon(tmp_path):
    unknown = {"horizon_e": -1, "horizon_1000": -1}
    rows = [row | (unknown if row["seed"] == 2 else {}) for row in summary()[:6]]
    beside = figure_of(make_run(tmp_path / "run", {"elman": SCORES["elman"]}, rows=rows)).axes[1]
    assert [tuple(line.get_xdata()) for line in beside.lines[0:8:2]] == [(3, 4), (1, 2), (30, 40), (10, 20)]


def test_layers_of_a_stack_have_horizons_of_their_own(tmp_path):
    rows = [row | {"layer": f"rnn/layers/{layer}"} for layer in (0, 1) for row in summary()]
    folder = make_run(tmp_path / "run", {"elman": SCORES["elman"]}, rows=[r for r in rows if r["cell"] == "elman"])
    labels = [text.get_text() for text in figure_of(folder).axes[1].texts]
    assert labels[:2] == ["elman rnn/layers/0", "elman rnn/layers/1"]


def test_a_run_directory_gives_its_figure(run_dir):
    (path,) = learning.draw_learning(run_dir)
    assert path == run_dir / "figures" / "learning.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Source"] == "python -m experiments.gradient_flow --hidden=64"  # and no folder
        assert min(image.size) > 400


def test_several_runs_share_a_figure_and_are_told_apart_by_their_rates(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(learning, "save_figure", lambda figure, path, **_: drawn.append(figure) or path)
    runs = [
        make_run(tmp_path / f"run{k}", {cell: SCORES["elman"]}, rows=rows, learning_rate=rates)
        for k, (cell, rates, rows) in enumerate(
            [
                ("elman", ["1e-2"], summary()[:6]),
                ("elman", ["1e-4"], summary()[:6]),
                ("gru at 0.1", ["1e-1", "1e-3"], [row | {"cell": "gru at 0.1"} for row in summary()[:6]]),
            ]
        )
    ]
    assert learning.draw_learning(*runs, out=tmp_path / "together.png") == [tmp_path / "together.png"]
    assert learning.draw_learning(runs[0], runs[0]) == [runs[0] / "figures" / "learning.png"]
    names = ["elman at 0.01", "elman at 0.0001", "gru at 0.1"]
    curves, beside = drawn[0].axes
    assert [text.get_text() for text in curves.get_legend().get_texts()] == names
    assert [text.get_text() for text in beside.texts][:3] == names
    assert [text.get_text() for text in drawn[1].axes[0].get_legend().get_texts()] == ["elman", "elman"]


def test_seeds_that_diverged_are_left_out_and_counted_without_a_warning(tmp_path, recwarn):
    rows = [row | {"test_score": np.nan if row["seed"] == 0 else 0.5} for row in summary()[:6]]
    scores = {"elman": [[1.0, np.nan, np.nan], [1.0, np.inf, 0.5], [3.0, np.nan, 0.7]]}
    folder = make_run(tmp_path / "run", scores, rows=rows)
    curves, beside = figure_of(folder).axes
    np.testing.assert_array_equal(curves.lines[0].get_ydata(), [1.0, np.nan, 0.6])
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["elman  (diverged: 1 of 3 seeds)"]
    ranges = [tuple(line.get_xdata()) for line in beside.lines[0:8:2]]
    assert ranges == [(3, 9), (2, 2), (30, 50), (20, 25)]
    assert len(learning.draw_learning(folder)) == 1
    assert [str(warning.message) for warning in recwarn] == []


def test_a_run_without_held_out_scores_has_no_figure(tmp_path):
    folder = run_directory.create(str(tmp_path / "run"), {})
    with run_directory.MetricWriter(folder) as writer:
        writer.write(0, {"lstm/seed0/loss": 1.0})
    assert learning.draw_learning(folder) == []
    assert not (folder / "figures").exists()


@pytest.mark.parametrize("missing", ["config.json", "metrics.csv"])
def test_a_folder_without_a_run_is_refused_by_the_missing_file(run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}; allowed: "):
        learning.draw_learning(run_dir)


@pytest.fixture
def trained(tmp_path):
    """Makes a run of `experiments.train`, of 20 steps on sequences of 8, and returns its folder."""

    def make(*, metric="accuracy", validation=True, finished=True, log10_norm=None, losses=(2.0, 1.0), **flags):
        flags = {"task": "digits", "cell": "lstm", "hidden": 64, "recurrent": True, **flags}
        folder = run_directory.create(str(tmp_path / "run"), flags)
        with run_directory.MetricWriter(folder) as writer:
            for step, loss, score in zip((10, 20), losses, (0.6, 0.5)):
                writer.write(step, {"train/loss": loss, "gradient_norm/rnn": 1.0})
                if validation:
                    writer.write(step, {f"validation/{metric}": score})
            if finished:
                writer.write(20, {f"test/{metric}": 0.55})
        if log10_norm is not None:
            run_directory.save_profiles(folder, [0, 10, 20], {"lstm": log10_norm})
        if finished:
            best = 10 if validation else 20
            run_directory.save_table(folder, [{"best_step": best, "test_score": 0.55, "baseline_score": 0.1}])
        return folder

    return make


def training_figure_of(folder):
    has_profiles = (folder / "gradient_flow.npz").exists()
    profiles = read.load_profiles(folder) if has_profiles else None
    return learning.training_figure(read.load_metrics(folder), read.load_table(folder), profiles)


def drawn(ax):
    """The lines of a panel by their names in the legend: their points."""
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in ax.lines}


def test_the_training_of_one_network_is_its_loss_its_scores_and_how_far_back_its_gradient_reached(trained):
    by_step = np.array([[-4.0, -1, -0.5, -0.4, -0.3, -0.2, -0.1, 0], [0.0] * 8, [np.nan] * 8])
    parts = {(f"rnn/layers/{k}", ""): by_step[:, None] - k for k in (0, 1)}
    figure = training_figure_of(trained(log10_norm=parts | {("rnn/layers/1", "c"): np.zeros((3, 1, 8))}))
    loss, scores, reach = figure.axes
    assert list(drawn(loss).values()) == [[(10, 2.0), (20, 1.0)]]
    assert drawn(scores) == {
        "validation": [(10, 0.6), (20, 0.5)],
        "test, at step 10: 0.55": [(10, 0.55)],
        "ignoring the input: 0.1": [(0, 0.1), (1, 0.1)],
    }
    assert scores.get_ylabel() == "accuracy"
    for layer in ("rnn/layers/0", "rnn/layers/1"):
        np.testing.assert_array_equal(drawn(reach)[layer], [(0, 5), (10, 8), (20, np.nan)])
    assert [text.get_text() for text in reach.get_legend().get_texts()] == ["rnn/layers/0", "rnn/layers/1"]
    assert [text.get_text() for text in reach.texts] == ["never within 8 steps"]
    for ax in figure.axes:
        assert ax.get_xlim() == (0, 20)
        assert ax.get_xlabel() == "training step"


def test_what_a_run_has_not_is_left_out(trained, tmp_path):
    """Layers; a validation split; an end."""
    loss, scores = training_figure_of(trained(validation=False)).axes
    assert list(drawn(scores)) == ["test, at step 20: 0.55", "ignoring the input: 0.1"]
    (tmp_path / "run").rename(tmp_path / "first")
    (loss,) = training_figure_of(trained(validation=False, finished=False)).axes
    assert list(drawn(loss).values()) == [[(10, 2.0), (20, 1.0)]]
    (tmp_path / "run").rename(tmp_path / "second")
    loss, scores, reach = training_figure_of(
        trained(finished=False, log10_norm={("rnn", ""): np.zeros((3, 1, 8))})
    ).axes
    assert list(drawn(scores)) == ["validation"]
    assert reach.get_legend() is None


@pytest.mark.parametrize(("losses", "scale"), [((2.0, 1.0), "linear"), ((2.0, 0.1), "log"), ((2.0, 0.0), "linear")])
def test_a_loss_that_falls_by_powers_of_ten_is_drawn_so(trained, losses, scale):
    assert training_figure_of(trained(losses=losses)).axes[0].get_yscale() == scale


def test_a_short_reach_is_not_flattened_by_the_length_of_the_sequence():
    ax = Figure().subplots()
    learning.plot_reach(ax, np.array([0, 10]), {"rnn": np.arange(100.0)[None].repeat(2, 0)})
    assert ax.get_ylim()[1] < 3
    assert not ax.texts


def test_the_reach_is_the_horizon_of_the_instrument():
    profiles = np.cumsum(np.random.default_rng(0).normal(0.1, 0.5, size=(50, 20)), axis=-1).astype(np.float32)
    profiles[0], profiles[1, 3:9], profiles[2, 4], profiles[3, 5] = -np.inf, -np.inf, np.nan, np.inf
    expected = np.asarray(flow.horizon(jnp.asarray(profiles)).lag_e, np.float64)
    assert {-1, 0} < set(expected)
    np.testing.assert_array_equal(learning.reach(profiles), np.where(expected < 0, np.nan, expected))


@pytest.mark.parametrize(
    ("flags", "title"), [({}, "digits, lstm, 64 hidden units"), ({"recurrent": False}, "digits, bag of embeddings")]
)
def test_a_run_of_one_network_gives_its_figure(trained, monkeypatch, recwarn, flags, title):
    titles, save = [], learning.save_figure

    def noted(figure, *args, **kwargs):
        titles.append(figure.get_suptitle())
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(learning, "save_figure", noted)
    folder = trained(**flags)
    (path,) = learning.draw_training(folder)
    assert path == folder / "figures" / "learning.png"
    assert titles == [title]
    with Image.open(path) as image:
        assert image.info["Source"] == command(read.load_config(folder))
        assert min(image.size) > 400
    assert [str(warning.message) for warning in recwarn] == []
