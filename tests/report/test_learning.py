import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rnn_jax.report import learning, read
from rnn_jax.training import run_directory

STEPS = [0, 10, 500]
SCORES = {  # cell -> [seeds, L]
    "elman": [[2.0, 0.2, 0.17], [1.0, 0.18, 0.16], [0.9, 0.17, 0.15]],
    "lstm(forget_bias=2)": [[1.0, 0.1, 0.001], [1.5, 0.12, 0.003], [1.2, 0.17, 0.002]],
}


def summary(trivial_score=1 / 6):
    lags = {  # cell, part -> (horizon_e, horizon_1000) by seed: before training, after it
        ("elman", "rnn"): ([(3, 30), (4, 40), (9, 50)], [(1, 10), (2, 20), (2, 25)]),
        ("lstm(forget_bias=2)", "rnn"): ([(5, 60), (6, 70), (7, 64)], [(64, 64), (60, 64), (50, 64)]),
        ("lstm(forget_bias=2)", "rnn/c"): ([(1, 1)] * 3, [(1, 1)] * 3),
    }
    return [
        {
            "cell": cell,
            "part": part,
            "stage": stage,
            "seed": seed,
            "horizon_e": e,
            "horizon_1000": thousand,
            "test_score": 0.1,
            "trivial_score": trivial_score,
        }
        for (cell, part), stages in lags.items()
        for stage, of_seeds in zip(("initialisation", "trained"), stages, strict=True)
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
    run_directory.save_profiles(run_dir, STEPS, {cell: {"rnn": np.zeros((3, seeds, 64))} for cell in scores})
    run_directory.save_table(run_dir, summary() if rows is None else rows)
    return run_dir


@pytest.fixture
def run_dir(tmp_path):
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


def test_the_score_of_ignoring_the_input_is_a_labelled_line(run_dir):
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


def test_horizons_of_whole_carries_stand_beside_the_curves_in_their_colours(run_dir):
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
    rows = [row | {"part": f"rnn/layers/{layer}"} for layer in (0, 1) for row in summary() if row["part"] == "rnn"]
    folder = make_run(tmp_path / "run", {"elman": SCORES["elman"]}, rows=[r for r in rows if r["cell"] == "elman"])
    labels = [text.get_text() for text in figure_of(folder).axes[1].texts]
    assert labels[:2] == ["elman rnn/layers/0", "elman rnn/layers/1"]


def test_a_run_directory_gives_its_figure(run_dir):
    (path,) = learning.learning(run_dir)
    assert path == run_dir / "figures" / "learning.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["Source"] == " ".join(json.loads((run_dir / "config.json").read_text())["argv"])
        assert min(image.size) > 400


def test_several_runs_share_a_figure_and_are_told_apart_by_their_rates(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
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
    assert learning.learning(*runs, out=tmp_path / "together.png") == [tmp_path / "together.png"]
    assert learning.learning(runs[0], runs[0]) == [runs[0] / "figures" / "learning.png"]
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
    assert len(learning.learning(folder)) == 1
    assert [str(warning.message) for warning in recwarn] == []


def test_a_run_without_held_out_scores_has_no_figure(tmp_path):
    folder = run_directory.create(str(tmp_path / "run"), {})
    with run_directory.MetricWriter(folder) as writer:
        writer.write(0, {"lstm/seed0/loss": 1.0})
    assert learning.learning(folder) == []
    assert not (folder / "figures").exists()


@pytest.mark.parametrize("missing", ["config.json", "metrics.csv", "gradient_flow.npz"])
def test_a_folder_without_a_run_is_refused_by_the_missing_file(run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}; allowed: "):
        learning.learning(run_dir)
