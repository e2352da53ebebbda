"""Claims about text generation: from a text of the user to a model that continues it, in two processes."""

import numpy as np
import pytest

from rnn_jax.report.read import load_table
from rnn_jax.tasks.vocabulary import Vocabulary
from tests.experiments.command import run
from tests.experiments.refusals import refusals

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


def test_what_cannot_be_continued_is_refused_in_one_sentence(trained, tmp_path):
    vocabulary = Vocabulary.load(trained / "vocabulary.json")
    known = len(vocabulary) - 2
    here = f"--run={trained}"
    (tmp_path / "config.json").write_text("{}")
    empty, missing, unknown, hot, none, other = refusals(
        "generate",
        [here, "--prompt="],
        ["--prompt=the"],
        [here, "--prompt=the?"],
        [here, "--prompt=the", "--temperature=-1"],
        [here, "--prompt=the", "--top_k=0"],
        [f"--run={tmp_path}", "--prompt=the"],
    )
    assert empty == "--prompt='' is empty; allowed: a text of at least one character."
    assert missing == "--run is not given; allowed: a folder that experiments.train wrote."
    assert unknown == (
        f"--prompt='the?' has the character '?', which is not in the vocabulary of the run; allowed: its {known}"
        " characters, in vocabulary.json."
    )
    assert hot == "--temperature=-1.0 is out of range; allowed: a finite number, 0 or more."
    assert none == "--top_k=0 is out of range; allowed: 1 or more."
    assert other == f"--run={str(tmp_path)!r} holds no run; allowed: a folder that experiments.train wrote."


def test_bytes_are_shown_once_a_character_is_complete():
    from experiments.generate import shown
    from rnn_jax.tasks.vocabulary import build_vocabulary

    vocabulary = build_vocabulary([], "byte")
    parts = list(shown(vocabulary, vocabulary.encode("a→b").tolist()))
    assert parts == ["a", "", "", "→", "b"]
    words = build_vocabulary(["one two"], "word")
    assert list(shown(words, np.array([2, 3]).tolist())) == [" one", " two"]
