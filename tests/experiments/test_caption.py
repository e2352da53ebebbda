"""Captions through the command line: a run, its captions in a fresh process, and what is refused."""

import csv

import pytest

from tests.experiments import command
from tests.tasks.test_images import folder_of_images


def run(experiment, *arguments, **options):
    done = command.run(experiment, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images, and a run on them in `run`."""
    path = tmp_path_factory.mktemp("captions")
    table = folder_of_images(path, 30)
    run(
        "train", f"--task=images:{table}", "--image_size=8", "--cell=gru", "--hidden=8", "--emb_size=8", "--steps=120",
        "--batch=8", "--learning_rate=2e-2", "--doubly_stochastic=0", "--profile_every=0", "--eval_every=120",
        f"--out={path / 'run'}", figures=False,
    )  # fmt: skip
    return path


def test_a_trained_run_captions_images_in_a_fresh_process(folder):
    shown = run("caption", f"--run={folder / 'run'}", "--evaluate", str(folder / "files" / "0.png"), "--beam=2")
    assert shown.splitlines()[0] == "a red image"
    assert (folder / "run" / "figures" / "caption-0.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "run" / "caption_scores.csv").open() as file:
        scores = {
            row["captions"]: {k: float(v) for k, v in row.items() if k != "captions"} for row in csv.DictReader(file)
        }
    assert scores["model"] == {"BLEU-4": 0.0, "exact match": 1.0, "word overlap": 1.0}  # no caption has four words
    assert scores["model shown noise"]["exact match"] < 1
    assert scores["nearest neighbor"]["exact match"] == 1
    sample = (folder / "run" / "samples" / "step-000120.txt").read_text()
    assert sample.count("answer  a ") == 3
