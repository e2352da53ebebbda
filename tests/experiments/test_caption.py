"""Captions through the command line: a run, its captions in a fresh process, and what is refused."""

import csv

import numpy as np
import pytest

from tests.experiments import command
from tests.experiments.refusals import refusals
from tests.tasks.test_images import folder_of_images


def run(experiment, *arguments):
    done = command.run(experiment, *arguments)
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
        f"--out={path / 'run'}",
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


def test_refusals(folder, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    np.savez(tmp_path / "features.npz", np.zeros((30, 4, 2)))
    told = refusals(
        "caption",
        ["image.png"],
        [f"--run={folder / 'run'}"],
        [f"--run={tmp_path}", "image.png"],
        [f"--run={folder / 'run'}", "--glyph=a"],
        [f"--run={folder / 'run'}", str(tmp_path / "none.png")],
        [f"--run={folder / 'run'}", str(tmp_path / "text.png")],
    )
    expected = [
        "--run is missing",
        "there is no image to caption",
        "holds no run",
        "--glyph=a is for a run of glyphs",
        "there is no file",
        "is no image that Pillow can read",
    ]
    for said, part in zip(told, expected, strict=True):
        assert part in said
    told = refusals(
        "train",
        [f"--task=images:{folder / 'table.csv'}", "--batch=8", "--layers=2"],
        [f"--task=images:{folder / 'table.csv'}", f"--features={tmp_path / 'none.npz'}"],
        ["--task=adding", "--hard_attention"],
        ["--task=glyphs", "--attention=dot"],
    )
    for said, part in zip(told, ["--layers=2 has no effect", "no such file", "no effect", "no effect"], strict=True):
        assert part in said
