"""experiments.translate: a run of experiments.train, read again in another process."""

import csv
import re

import pytest

from tests.experiments.command import run

ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a few steps: pairs of the user, two animals to be written in capitals."""
    folder = tmp_path_factory.mktemp("translate")
    pairs = [f"{one} {other}\t{one.upper()} {other.upper()}" for one in ANIMALS for other in ANIMALS]
    (folder / "own.tsv").write_text("\n".join(pairs), encoding="utf-8")
    done = run(
        "train", f"--task=pairs:{folder / 'own.tsv'}", "--tokens=character", "--cell=gru", "--hidden=8", "--batch=8",
        "--emb_size=4", "--bidirectional", "--steps=4", "--eval_every=2", "--profile_every=0",
        f"--out={folder / 'run'}", figures=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "test bits per token" in done.stdout
    return folder / "run"


def test_samples_show_sources_answers_and_what_the_model_gave(run_dir):
    names = sorted(path.name for path in (run_dir / "samples").iterdir())
    assert names == ["step-000002.txt", "step-000004.txt"]
    text = (run_dir / "samples" / names[1]).read_text()
    found = re.findall(r"source  (.*)\nanswer  (.*)\ngiven   ", text)
    assert len(found) == 6  # all there are
    assert all(source.upper() == answer for source, answer in found)


def test_it_translates_draws_and_evaluates(run_dir):
    done = run("translate", f"--run={run_dir}", "--beam=3", "--evaluate", "cat dog")
    assert done.returncode == 0, done.stderr
    scores = [float(line.split()[0]) for line in done.stdout.splitlines()[:3]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 0
    assert (run_dir / "figures" / "attention-cat-dog.png").stat().st_size > 5000
    with open(run_dir / "translations.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 6
    for row in rows:
        assert row["source"].upper() == row["answer"]
        assert int(row["length"]) == len(row["source"]) == 7
        assert int(row["exact"]) == (row["given"] == row["answer"])
    exact = sum(int(row["exact"]) for row in rows) / 6
    assert re.search(rf"exact match +{exact:.4f}", done.stdout)
    assert re.search(r"chrF +[\d.]+ +\(nrefs:1", done.stdout)
    assert re.search(r"BLEU +[\d.]+ +\(nrefs:1", done.stdout)
    assert re.search(r"7 to +7: exact match", done.stdout)
