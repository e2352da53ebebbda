"""Claims about text generation: from a text of the user to a model that continues it, in two processes."""

import numpy as np
import pytest

from rnn_jax.report.read import load_table
from tests.experiments.command import run

SENTENCE = "the carry goes on → and on; "  # \N{RIGHTWARDS ARROW} is three bytes of UTF-8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "song.txt").write_text(SENTENCE * 120, encoding="utf-8")
    done = run(
        "train",
        f"--task=text:{folder / 'song.txt'}",
        "--seq_len=30",
        "--cell=gru",
        "--hidden=32",
        "--emb_size=32",
        "--tie_embeddings",
        "--batch=16",
        "--steps=120",
        "--eval_every=60",
        "--profile_every=0",
        "--learning_rate=1e-2",
        f"--out={folder / 'run'}",
        figures=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bits per character of interpolated 5-gram" in done.stdout
    return folder / "run"


def test_a_text_of_the_user_is_learned_and_continued_in_a_fresh_process(trained):
    row = load_table(trained)[0]
    assert float(row["test_score"]) < 0.1 < 3 < float(row["baseline_score"])
    done = run("generate", f"--run={trained}", f"--prompt={SENTENCE[:12]}", "--temperature=0", "--length=60")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (SENTENCE * 3)[:72] + "\n"
    for step in (60, 120):
        text = (trained / f"samples/step-{step:06d}.txt").read_text(encoding="utf-8")
        assert text.count("the carry goes") >= 2


def test_bytes_are_shown_once_a_character_is_complete():
    from experiments.generate import shown
    from rnn_jax.tasks.vocabulary import build_vocabulary

    vocabulary = build_vocabulary([], "byte")
    parts = list(shown(vocabulary, vocabulary.encode("a→b").tolist()))
    assert parts == ["a", "", "", "→", "b"]
    words = build_vocabulary(["one two"], "word")
    assert list(shown(words, np.array([2, 3]).tolist())) == [" one", " two"]
