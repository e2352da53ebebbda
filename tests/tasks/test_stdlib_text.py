"""Claims about the text of the standard library's docstrings, to be predicted."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.tasks.docstrings import load_docstrings
from rnn_jax.tasks.stdlib_text import stdlib_text
from rnn_jax.tasks.text import language_modeling


@pytest.fixture(scope="module")
def task(data_dir):
    return stdlib_text(seq_len=100, tokens="byte", data_dir=data_dir)


def test_the_splits_are_one_text_cut_between_files(task, data_dir):
    texts, files = load_docstrings(data_dir)
    splits = [task.vocabulary.decode(source.tokens) for source in (task.train, task.validation, task.test)]
    assert "\n\n".join(splits) == "\n\n".join(texts)
    sizes = np.array([len(split) for split in splits])
    np.testing.assert_allclose(sizes / sizes.sum(), [0.8, 0.1, 0.1], atol=0.02)
    ends = list(itertools.accumulate(len(text) + 2 for text in texts))
    for cut in (sizes[0] + 2, sizes[0] + sizes[1] + 4):
        at = ends.index(cut)
        assert files[at] != files[at + 1]


def test_a_piece_asks_for_the_tokens_behind_and_the_next_goes_on(task):
    whole = task.train.tokens
    first, second = task.train[0], task.train[1]
    np.testing.assert_array_equal(first["labels"][:-1], first["tokens"][1:])
    np.testing.assert_array_equal(np.concatenate([first["tokens"], second["tokens"]]), whole[:200])
    assert first["labels"][-1] == second["tokens"][0]
    assert (task.kind, task.reads_tokens) == (tasks.Kind.STREAM, True)


def test_the_score_is_in_bits():
    task = language_modeling(
        name="coin", description="", source="", license="", packages=(), seq_len=2,
        train="abababab", validation="aba", test="abab",
    )  # fmt: skip
    batch = tasks.as_batch(task.test)

    def always_half(tokens):
        logits = jnp.full((*tokens.shape, len(task.vocabulary)), -jnp.inf, jnp.float32)
        return logits.at[..., 2:].set(0.0)  # a and b alike: one bit

    assert np.divide(*task.score(always_half, batch)) == pytest.approx(1, abs=1e-6)
    # Four a and four b seen, one added to each of four counts, so that p(a) = p(b) = 5 / 12.
    assert task.baseline_score == pytest.approx(np.log2(12 / 5))


def test_the_baseline_score_is_that_of_the_frequencies(data_dir):
    task = stdlib_text(data_dir=data_dir)
    assert task.metric == "bits per character"
    counts = np.bincount(task.train.tokens, minlength=len(task.vocabulary)) + 1
    logits = jnp.asarray(np.log(counts), jnp.float32)
    batch = tasks.as_batch(task.test)
    score = np.divide(*task.score(lambda tokens: jnp.broadcast_to(logits, (*tokens.shape, len(logits))), batch))
    assert task.baseline_score == pytest.approx(float(score), abs=1e-4)
    # The entropy of the test split itself is what nobody can go below without looking at the text.
    shares = np.bincount(batch["labels"].ravel()) / batch["labels"].size
    entropy = -np.sum(shares[shares > 0] * np.log2(shares[shares > 0]))
    assert entropy <= task.baseline_score < entropy + 0.1
    assert task.baseline_score == pytest.approx(4.74, abs=0.1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seq_len": 0}, r"^seq_len=0 is out of range; allowed: 1 or more\.$"),
        (
            {"seq_len": 3},
            r"^seq_len=3 is out of range for the validation split of the task 'x'; allowed: less than its 3",
        ),
    ],
)
def test_impossible_pieces_are_refused(changed, sentence):
    arguments = {
        "name": "x", "description": "", "source": "", "license": "", "packages": (), "seq_len": 2,
        "train": "abababab", "validation": "aba", "test": "abab",
    }  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        language_modeling(**arguments | changed)
