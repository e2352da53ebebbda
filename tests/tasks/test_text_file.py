"""Claims about a text file of the user's own."""

import re

import numpy as np
import pytest

from rnn_jax import tasks

TEXT = "".join(f"Line {number}: ein Häuschen → 日本.\r\n" for number in range(40))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    return file


@pytest.mark.parametrize("tokens", ["character", "byte"])
def test_it_is_the_text_cut_by_position(path, tokens):
    task = tasks.make_task(f"text:{path}", seq_len=16, tokens=tokens)
    splits = [np.asarray(source.tokens) for source in (task.train, task.validation, task.test)]
    whole = TEXT.replace("\r\n", "\n")
    first, second = round(0.8 * len(whole)), round(0.9 * len(whole))
    expected = [whole[:first], whole[first:second], whole[second:]]
    assert [task.vocabulary.decode(split) for split in splits] == expected
    assert (task.kind, task.metric) == (tasks.Kind.STREAM, f"bits per {tokens}")
    assert task.references()["interpolated 5-gram"] < 1 < task.baseline_score


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); allowed: a text file in UTF-8."),
        (b"caf\xe9", "is not UTF-8: byte 3 is 0xe9; allowed: a text file in UTF-8."),
    ],
)
def test_a_file_that_is_no_text_is_refused_in_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'text:{file} {sentence}')}$"):
        tasks.make_task(f"text:{file}")


def test_a_file_too_short_is_told_so(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("abcdefghij" * 20)
    sentence = (
        f"seq_len=128 is out of range for the validation split of the task 'text:{file}'; allowed: less than its 20"
        " tokens."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tasks.make_task(f"text:{file}")
