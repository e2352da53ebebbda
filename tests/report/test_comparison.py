import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rnn_jax.report import comparison
from rnn_jax.report.comparison_report import save_report
from rnn_jax.training import run_directory

FLAGS = {
    "task": "language_id", "cell": "lstm", "hidden": 8, "pool": None, "recurrent": True, "bidirectional": False,
    "seed": 0, "out": None, "data": {"test_sha256": "abc"},
}  # fmt: skip


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Writes a run directory as `experiments.train` leaves it; horizons are (1/e, 1/1000) before, then after."""

    def write(
        name, test, *, horizons=((3, 9), (4, 12)), names=(("rnn", ""), ("rnn", "c")), seconds=1.0, time=12, **flags
    ):
        flags = {**FLAGS, "out": name, **flags}
        argv = [f"--{key}={flags[key]}" for key in ("task", "cell", "seed", "out")]
        monkeypatch.setattr("sys.argv", ["experiments/train.py", *argv])
        folder = run_directory.create(str(tmp_path / name), flags)
        result = {
            "test_score": test, "validation_score": test + 0.01, "baseline_score": 0.05, "best_step": 5, "steps": 5,
            "skipped": 0, "parameters": 1234, "seconds": seconds,
        }  # fmt: skip
        if not flags["recurrent"]:
            table = [{"layer": "", "part": "", "stage": "", "horizon_e": "", "horizon_1000": ""}]
        else:
            table = [
                {"layer": layer, "part": part, "stage": stage, "horizon_e": e, "horizon_1000": thousand}
                for layer, part in names
                for stage, (e, thousand) in zip(("initialization", "trained"), horizons)
            ]
            run_directory.save_profiles(
                folder, [0, 5], {flags["cell"]: {name: np.zeros((2, 1, time)) for name in names}}
            )
        run_directory.save_table(folder, [{"cell": "", "seed": flags["seed"], **row, **result} for row in table])
        with run_directory.MetricWriter(folder) as writer:
            writer.write(5, {"validation/accuracy": test + 0.01, "test/accuracy": test})
        return folder

    return write


def test_runs_that_differ_in_their_seed_alone_make_one_result(finished):
    runs = [finished("a1", 0.80, seed=1, seconds=9), finished("b", 0.5, cell="gru"), finished("a0", 0.90, seconds=5)]
    compared = comparison.compare(runs)
    assert (compared.task, compared.metric, compared.baseline_score) == ("language_id", "accuracy", 0.05)
    lstm, gru = compared.results
    assert (lstm.seeds, gru.seeds) == ((0, 1), (0,))
    np.testing.assert_array_equal(lstm.test_S, [0.90, 0.80])
    np.testing.assert_allclose(lstm.validation_S, [0.91, 0.81])
    np.testing.assert_array_equal(lstm.seconds_S, [5, 9])
    assert lstm.parameters == 1234


def test_a_network_is_named_by_its_cell_and_the_flags_in_which_they_differ(finished):
    runs = [
        finished("a", 0.5),
        finished("b", 0.5, cell="gru", hidden=16),
        finished("c", 0.5, bidirectional=True, pool="max"),
        finished("d", 0.5, recurrent=False, pool="max"),
    ]
    labels = [result.label for result in comparison.compare(runs).results]
    assert labels == ["lstm", "gru, hidden=16", "lstm, pool=max, bidirectional", "bag of embeddings, pool=max"]


def test_a_command_leaves_out_what_belongs_to_one_run(finished):
    (result,) = comparison.compare([finished("a", 0.5)]).results
    assert result.command == "python -m experiments.train --task=language_id --cell=lstm"


@pytest.mark.parametrize("given", [["--seed", "1", "--out", "x"], ["-seed=1", "--out=x"], ["--out=x", "--resume"]])
def test_a_command_leaves_out_its_seed_however_it_was_given(finished, given):
    folder = finished("a", 0.5)
    config = json.loads((folder / "config.json").read_text())
    config["argv"] = ["train.py", *given, "--cell=lstm(chrono=8)", "--epochs", "3"]
    (folder / "config.json").write_text(json.dumps(config))
    (result,) = comparison.compare([folder]).results
    assert result.command == "python -m experiments.train '--cell=lstm(chrono=8)' --epochs 3"


def test_the_horizon_is_that_of_the_layer_that_reaches_furthest_over_seeds_the_median(finished):
    lags = ((2, 5), (3, 7)), ((4, 6), (4, 12)), ((9, 12), (5, 12))
    runs = [finished(str(seed), 0.5, seed=seed, horizons=pair) for seed, pair in enumerate(lags)]
    (result,) = comparison.compare(runs).results
    horizons = {key: str(horizon) for key, horizon in result.horizons.items()}
    assert horizons == {
        ("horizon_e", "initialization"): "4",
        ("horizon_e", "trained"): "4",
        ("horizon_1000", "initialization"): "6",
        ("horizon_1000", "trained"): "≥ 12",  # it never falls so far within the 12 steps
    }


def test_a_gradient_that_is_not_finite_is_said_to_be_that(finished):
    """In one of two seeds, after training: neither a lag, nor the median of the others."""
    runs = [
        finished(str(seed), 0.5, seed=seed, horizons=pair)
        for seed, pair in enumerate(([(3, 9), (4, 12)], [(3, 9), (-1, -1)]))
    ]
    compared = comparison.compare(runs)
    assert "| 3 → not finite | 9 → not finite |" in comparison.markdown(compared)
    assert comparison.rows(compared)[0]["horizon_1000_trained"] == "not finite"


def test_a_network_without_recurrence_has_no_horizon(finished):
    compared = comparison.compare([finished("a", 0.5, recurrent=False)])
    assert compared.results[0].horizons == {}
    assert comparison.rows(compared)[0]["horizon_e_trained"] == ""


def test_rows_hold_mean_least_and_most(finished):
    runs = [finished(str(seed), score, seed=seed, seconds=score) for seed, score in enumerate((0.5, 0.8, 0.2))]
    (row,) = comparison.rows(comparison.compare(runs))
    assert (row["test_mean"], row["test_least"], row["test_most"]) == (pytest.approx(0.5), 0.2, 0.8)
    assert row["validation_mean"] == pytest.approx(0.51)
    assert (row["seconds"], row["seeds"], row["baseline_score"]) == (0.5, "0 1 2", 0.05)


def test_the_table_for_people_has_every_network_baseline_and_command(finished):
    runs = [finished(str(seed), score, seed=seed, seconds=7.2) for seed, score in enumerate((0.5, 0.8))]
    text = comparison.markdown(comparison.compare([*runs, finished("b", 0.25, cell="gru")]), {"TF-IDF": 0.93})
    lines = text.splitlines()
    assert "| lstm | 0.650 [0.500, 0.800] | 0.660 [0.510, 0.810] | 1,234 | 7 | 3 → 4 | 9 → ≥ 12 |" in lines
    assert "| gru | 0.250 | 0.260 | 1,234 | 1 | 3 → 4 | 9 → ≥ 12 |" in lines
    assert "| TF-IDF | 0.930 |  |  |  |  |  |" in lines
    assert "| ignoring the input | 0.050 |  |  |  |  |  |" in lines
    assert "- gru: `python -m experiments.train --task=language_id --cell=gru`" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_task_without_a_validation_split_has_no_score_of_it(finished):
    folder = finished("a", 0.5)
    table = folder / "summary.csv"
    table.write_text(table.read_text().replace(",0.51,", ",,"))
    compared = comparison.compare([folder])
    assert np.isnan(compared.results[0].validation_S).all()
    assert "| lstm | 0.500 |  | 1,234 |" in comparison.markdown(compared)


def test_the_figure_has_a_mark_a_network_the_best_on_top_and_its_flags_in_columns(finished):
    runs = [finished(str(seed), score, seed=seed) for seed, score in enumerate((0.5, 0.8))]
    runs += [finished("b", 0.25, cell="gru", pool="max"), finished("c", 0.7, cell="gru", bidirectional=True, hidden=16)]
    ax = Figure().subplots()
    assert comparison.plot_scores(ax, comparison.rows(comparison.compare(runs)), {"TF-IDF": 0.93}) is ax
    marks = {line.get_marker(): [] for line in ax.lines if line.get_marker() not in ("None", " ")}
    for line in ax.lines:
        if line.get_marker() in marks:
            marks[line.get_marker()].append((*line.get_xdata(), *line.get_ydata()))
    assert list(marks.values()) == [[(0.7, 0), (0.25, 2)], [(0.65, 1)]]  # gru, lstm
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    upright = {line.get_label(): line.get_xdata() for line in ax.lines if not line.get_label().startswith("_")}
    assert upright["TF-IDF: 0.930"][0] == 0.93
    assert list(upright) == ["ignoring the input: 0.050", "TF-IDF: 0.930"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == ["0.700", "0.650 [0.500, 0.800]", "0.250"]
    columns = [texts[start : start + 4] for start in range(3, len(texts), 4)]
    assert columns[::-1] == [
        ["cell", "gru", "lstm", "gru"],
        ["hidden", "16", "", ""],
        ["bidirectional", "✓", "", ""],
        ["pool", "", "", "max"],
    ]


def test_a_baseline_far_from_all_networks_does_not_flatten_them(finished):
    table = comparison.rows(comparison.compare([finished("a", 0.90), finished("b", 0.91, cell="gru")]))
    ax = Figure().subplots()
    comparison.plot_scores(ax, table)
    assert ax.get_xlim()[0] > 0.8
    assert "ignoring the input: 0.050, left of the frame" in [line.get_label() for line in ax.lines]


def test_one_report_of_several_runs_has_their_figures_table_and_commands(finished, tmp_path):
    runs = [finished("a", 0.5), finished("<b>", 0.25, cell="gru<script>")]
    *_, learning, report = save_report(tmp_path / "made", comparison.compare(runs), {"TF & IDF": 0.93})
    assert (learning.name, report.name) == ("learning.png", "report.html")
    page = report.read_text(encoding="utf-8")
    assert page.count("<figcaption>") == 2
    assert [page.index(f"<td>{name}</td>") for name in ("TF &amp; IDF", "lstm", "gru&lt;script&gt;")] == sorted(
        page.index(f"<td>{name}</td>") for name in ("TF &amp; IDF", "lstm", "gru&lt;script&gt;")
    )
    assert "python -m experiments.train --task=language_id --cell=lstm" in page
    assert "gru<script>" not in page


def test_a_comparison_is_saved_as_table_text_and_figure(finished, tmp_path):
    compared = comparison.compare([finished("a", 0.5), finished("b", 0.25, cell="gru")])
    table, text, figure = comparison.save(tmp_path / "new" / "docs", compared, {"TF-IDF": 0.93})
    with table.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == [{key: str(value) for key, value in row.items()} for row in comparison.rows(compared)]
    assert text.read_text(encoding="utf-8") == comparison.markdown(compared, {"TF-IDF": 0.93})
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200


def test_a_comparison_replaces_an_earlier_one_and_no_other_file(finished, tmp_path):
    compared = comparison.compare([finished("a", 0.5)])
    out = tmp_path / "docs"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    for _ in range(2):
        comparison.save(out, compared)
    assert (out / "notes.md").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"comparison.{e}" for e in ("csv", "md", "png", "svg")),
        "notes.md",
    ]
    for change in ((out / "comparison.csv").unlink, lambda: (out / "comparison.csv").write_text("mine\n1\n")):
        change()
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(
            ValueError, match=r"docs' holds a comparison\.(md|csv) that is no comparison; allowed: a folder"
        ):
            comparison.save(out, compared)
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--out='.*file' cannot be written \(File exists\); allowed: a writable"):
        comparison.save(tmp_path / "file", compared)


def test_what_cannot_be_compared_is_named(finished, tmp_path):
    run = finished("a", 0.5)
    with pytest.raises(ValueError, match="nothing to compare; allowed: one"):
        comparison.compare([])
    with pytest.raises(ValueError, match=r"missing' has no config.json; allowed: a run directory"):
        comparison.compare([run, tmp_path / "missing"])
    with pytest.raises(ValueError, match=r"again' has the flags and the seed of .*a' in config.json; allowed"):
        comparison.compare([run, finished("again", 0.5)])
    with pytest.raises(ValueError, match=r"b' has task adding in config.json, and .*a' has language_id; allowed"):
        comparison.compare([run, finished("b", 0.5, task="adding")])
    with pytest.raises(ValueError, match=r"c' has test_sha256 xyz in config.json, and .*a' has abc; allowed: r"):
        comparison.compare([run, finished("c", 0.5, data={"test_sha256": "xyz"})])
    killed = finished("d", 0.5)
    (killed / "summary.csv").unlink()
    with pytest.raises(ValueError, match=r"d' has no summary.csv and so holds no test score; allowed: finished"):
        comparison.compare([run, killed])
