"""Claims about Dyck words."""

import re

import numpy as np
import pytest

from rnn_jax.tasks import as_batch, dyck
from tests.tasks import worked_example

_OPEN, _CLOSE = "([{<", ")]}>"


def must_close(text):
    """The bracket that must close next: what is left open once all pairs that stand together have been struck out."""
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    assert not set(text) & set(_CLOSE), f"{text!r} closes what is not open"
    return text[-1:], len(text)


def answers(text):
    """The opening partner of what must close next, after each closing bracket; "." elsewhere."""
    return [(must_close(text[: end + 1])[0] or ".") if text[end] in _CLOSE else "." for end in range(len(text))]


@pytest.mark.parametrize(("seq_len", "brackets", "depth"), [(64, 4, 5), (4, 2, 2), (40, 3, 2), (50, 2, 50)])
def test_the_answer_is_the_bracket_that_must_close_next(seq_len, brackets, depth):
    batch = as_batch(dyck(seq_len, brackets, depth, test_size=60).test)
    letters = _OPEN[:brackets] + _CLOSE[:brackets]
    deepest = 0
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist()):
        text = "".join(letters[token] for token in tokens)
        assert answers(text) == ["." if label == -1 else _OPEN[label] for label in labels]
        deepest = max(deepest, *(must_close(text[:end])[1] for end in range(1, seq_len + 1)))
    assert deepest <= depth
    assert deepest == depth or depth == 50


def test_the_bracket_just_read_never_helps():
    """What closed says nothing of what must close next: they agree as often as chance has it."""
    batch = as_batch(dyck(64, brackets=4, test_size=1000).test)
    asked = batch["labels"] >= 0
    agree = np.mean(batch["tokens"][asked] - 4 == batch["labels"][asked])
    assert abs(agree - 1 / 4) < 5 * np.sqrt(3 / 16 / asked.sum())


def test_brackets_open_as_often_as_said():
    """At neither the bottom nor the limit, half of the steps open; at the bottom all do, at the limit none."""
    tokens_BT = as_batch(dyck(64, brackets=8, depth=3, test_size=1000).test)["tokens"]
    opens_BT = tokens_BT < 8
    height_BT = np.cumsum(np.where(opens_BT, 1, -1), axis=1)
    before_BT = np.pad(height_BT[:, :-1], ((0, 0), (1, 0)))
    assert np.all(opens_BT[before_BT == 0])
    assert not np.any(opens_BT[before_BT == 3])
    between = opens_BT[(before_BT == 1) | (before_BT == 2)]
    assert abs(between.mean() - 1 / 2) < 5 / 2 / np.sqrt(between.size)


def test_the_worked_example_is_one():
    (tokens,), (labels,) = worked_example.rows(dyck, "tokens", "labels")
    assert answers("".join(tokens)) == labels
    assert max(must_close("".join(tokens[:end]))[1] for end in range(13)) == 3
