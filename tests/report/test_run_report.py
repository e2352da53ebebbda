"""Claims about report.html, made from run directories as experiments leave them."""

import collections
import csv
import html.parser
import re
import shutil

import numpy as np
import pytest

from experiments import report as experiment
from rnn_jax.report import html as pages
from rnn_jax.report.run_report import write_report
from rnn_jax.training import run_directory

HOSTILE = "my<script>alert(1)</script>:Cell"
FLAGS = {"task": "adding", "cells": f"elman,{HOSTILE}", "hidden": 4, "seeds": 2, "steps": 20}


class Page(html.parser.HTMLParser):
    """A document taken apart; an element that is not closed, or closed twice, fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.scripts, self.tags = [], [], [], collections.Counter()
        self.links, self.text = [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.note(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def note(self, tag, attrs):
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name, _ in attrs), (tag, attrs)
        self.ids += [value for name, value in attrs if name == "id"]
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
            self.links += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.scripts += [data] if self.open[-1:] == ["script"] else []
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of `experiments.gradient_flow` of two cells and two seeds, one cell with a hostile name."""
    question = "Which cells keep the <gradient> alive?"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gradient_flow.py", f"--cells={FLAGS['cells']}", "--steps=20", "--out", "x"])
        folder = str(tmp_path_factory.mktemp("run") / "run")
        run_dir = run_directory.create(folder, FLAGS, experiment="gradient_flow", question=question)
    scores = {"elman": (0.5, 0.25), HOSTILE: (0.01, 0.03)}  # mse: the smaller, the better
    with run_directory.MetricWriter(run_dir) as writer:
        for step in (0, 10, 20):
            for cell, of_seeds in scores.items():
                values = {f"{cell}/seed{k}/held_out_mse": score + 1 / (1 + step) for k, score in enumerate(of_seeds)}
                writer.write(step, values)
    profiles_ST = -0.125 * np.arange(1.0, 9.0)[::-1] - np.arange(2.0)[:, None]
    log10_norm = {cell: {("rnn", ""): np.tile(profiles_ST, (3, 1, 1))} for cell in scores}
    run_directory.save_profiles(run_dir, [0, 10, 20], log10_norm)
    rows = [
        {
            "cell": cell, "layer": "rnn", "part": "", "stage": stage, "seed": seed, "horizon_e": 4, "horizon_1000": 8,
            "test_score": score, "baseline_score": 1 / 6, "parameters": 1234, "seconds": 7.25,
        }
        for cell, of_seeds in scores.items() for stage in ("initialization", "trained")
        for seed, score in enumerate(of_seeds)
    ]  # fmt: skip
    run_directory.save_table(run_dir, rows)
    return run_dir, write_report(run_dir)


def page_of(run_dir):
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_a_report_has_the_question_figures_with_values_captions_table_and_command(finished):
    run_dir, paths = finished
    names = ("learning.png", "gradient_flow.png", "gradient_flow_training.png")
    assert paths == [*(run_dir / "figures" / name for name in names), run_dir / "report.html"]
    page = page_of(run_dir)
    assert "Which cells keep the <gradient> alive?" in page.text
    assert page.tags["svg"] == page.tags["figcaption"] == 3
    assert page.text.count("What happened so long ago".lower()) == 1
    assert f"lag 7\nelman: -0.875\n{HOSTILE}: -0.875" in page.text  # of the profile, over its largest value
    assert page.text.index(f"{HOSTILE}rnn0.02 [0.01, 0.03]") < page.text.index("elmanrnn0.375 [0.25, 0.5]")
    assert "4 → 4" in page.text
    assert "never → never" in page.text
    assert f"python -m experiments.gradient_flow '--cells=elman,{HOSTILE}' --steps=20\n" in page.text + "\n"
    assert "not finished" not in page.text


def test_a_report_needs_no_network_and_runs_nothing_that_it_read(finished):
    run_dir, _ = finished
    page = page_of(run_dir)
    assert page.scripts == [pages._PROGRAM]
    assert len(page.ids) == len(set(page.ids))
    there = {f"#{name}" for name in page.ids}
    for link in page.links:
        assert link in there or link.startswith(("./", "data:image/png;base64,")), link
    files = [link for link in page.links if link.startswith("./")]
    assert {"./summary.csv", "./figures/learning.svg"} <= set(files)
    assert all((run_dir / link).exists() for link in files)
    assert (run_dir / "report.html").stat().st_size < 1_000_000


def test_a_run_that_was_killed_has_a_report_of_what_is_there(finished, tmp_path):
    whole, _ = finished
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(whole / "config.json", killed)
    assert write_report(killed) == [killed / "report.html"]
    assert "has not finished: nothing has been measured yet, of 20 steps" in page_of(killed).text

    table = (whole / "summary.csv").read_text().splitlines(keepends=True)
    (killed / "summary.csv").write_text("".join(table[:5]))  # the second cell is in training
    (killed / "metrics.csv").write_text((whole / "metrics.csv").read_text()[:-9])
    (killed / "gradient_flow.npz").write_bytes((whole / "gradient_flow.npz").read_bytes()[:500])
    assert write_report(killed) == [killed / "report.html"]
    text = page_of(killed).text
    assert "has not finished: its last number is of step 20, of 20 steps" in text
    assert text.count("A figure is missing: ") == 2
    assert "The table of summary.csv is missing: " in text
    for name in ("gradient_flow.npz", "summary.csv"):  # in the middle of its first cell
        (killed / name).rename(killed / f"no {name}")
    assert write_report(killed) == [killed / "figures" / "learning.png", killed / "report.html"]
    assert "A figure is missing" not in page_of(killed).text
    (killed / "no summary.csv").rename(killed / "summary.csv")
    assert write_report(killed) == [killed / "figures" / "learning.png", killed / "report.html"]
    assert "elman0.375 [0.25, 0.5]" in page_of(killed).text.replace("rnn", "")


def test_nothing_of_a_picture_is_run_and_what_is_none_is_said(finished, tmp_path):
    whole, _ = finished
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    shutil.copy(whole / "config.json", folder)
    (folder / "figures" / "a.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" width="100pt" onload="evil()">'
        '<script>evil()</script><style>@import "http://evil"</style><a href="javascript:evil()"><path d="M0 0"/></a>'
        '<image x:href="http://evil/x.png"/><use href="//evil#a"/><foreignObject><p>evil</p></foreignObject>'
        '<rect id="r" fill="url(http://evil)" style="fill: url(#r)"><title>&lt;b&gt;</title></rect></svg>'
    )
    (folder / "figures" / "b.svg").write_text("<svg")
    (folder / "figures" / "c.png").write_bytes(b"no picture")
    write_report(folder)
    page = page_of(folder)
    assert page.scripts == [pages._PROGRAM]
    assert "evil" not in (folder / "report.html").read_text()
    assert {"f1-r", "#f1-r"} <= {*page.ids, *page.links}
    assert page.text.count("A figure is missing: ") == 2
    assert "<b>" in page.text


def test_tables_of_other_experiments_are_sorted_and_drawn(tmp_path):
    run_dir = run_directory.create(
        str(tmp_path / "run"), {"seeds": 3}, experiment="ensembles", question="What is saved?"
    )
    rows = [["cell", "seconds_together", "seconds_alone", "ratio"], ["lstm", 9.0, 30.0, 3.3], ["gru", 2.0, 4.0, 2.0]]
    with (run_dir / "ensembles.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    assert write_report(run_dir)[0] == run_dir / "figures" / "ensembles.png"
    text = page_of(run_dir).text
    assert text.index("gru242") < text.index("lstm9303.3")
    assert "lstm, one run after another\n30.0 s" in text


def test_the_last_samples_of_each_network_are_shown(tmp_path):
    run_dir = run_directory.create(str(tmp_path / "run"), {}, experiment="grid_lstm")
    (run_dir / "samples").mkdir()
    for network, step in (("grid_lstm-", 5), ("grid_lstm-", 10), ("stacked_lstm-", 5)):
        (run_dir / "samples" / f"{network}step-{step:06d}.txt").write_text(f"given by {network} at {step}")
    write_report(run_dir, draw=False)
    text = page_of(run_dir).text
    assert "given by grid_lstm- at 10" in text
    assert "given by stacked_lstm- at 5" in text
    assert "given by grid_lstm- at 5" not in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    sentence = f"{str(tmp_path)!r} has no config.json; allowed: a run directory that holds one"
    none = "there is no run to report on; allowed: one run directory or more."
    for arguments, said in (([str(tmp_path)], sentence), ([], none)):
        with pytest.raises(ValueError, match=re.escape(said)):
            experiment.main(["report", *arguments])
