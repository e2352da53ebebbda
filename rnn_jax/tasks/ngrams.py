"""What counting alone predicts of a text: an n-gram model, the baseline that a language model has to beat.

The probability of a token x behind the k tokens c before it is interpolated with that behind one token less
(Witten and Bell):

    P_k(x | c) = (n(c x) + d(c) P_{k-1}(x | c')) / (n(c) + d(c)),        P_{-1}(x) = 1 / V,

where n counts in the training text, d(c) is how many different tokens stand there behind c, and c' is c without its
first token. Behind what the training text does not have, P_k = P_{k-1}. There is nothing to tune.

References:
  Witten, Bell 1991, "The zero-frequency problem: estimating the probabilities of novel events in adaptive text
  compression", IEEE Transactions on Information Theory 37(4).
  Chen, Goodman 1999, "An empirical study of smoothing techniques for language modeling", Computer Speech & Language
  13(4).
"""

from collections.abc import Iterator

import numpy as np

_UNSEEN = -1


def ngram_probabilities(train: np.ndarray, text: np.ndarray, vocabulary_size: int, order: int) -> np.ndarray:
    """Returns the probability of each token of a text, given those before it in the text, `[N]`, float64.

    Args:
      train: tokens to count in, integers `[M]`.
      text: tokens, integers `[N]`; at the first of them fewer tokens stand before.
      vocabulary_size: V; tokens are 0 to V - 1.
      order: n, the tokens that are counted together at most: 5 looks at the four before.

    Raises:
      ValueError: if the order is below 1 or the training text is empty.
    """
    if order < 1:
        raise ValueError(f"order={order} is out of range; allowed: 1 or more.")
    if not len(train):
        raise ValueError("the training text has no tokens; allowed: one or more.")
    probabilities = np.full(len(text), 1.0 / vocabulary_size)
    for n_cx, n_c, d_c in _counts(train, text, vocabulary_size, order):
        seen = n_c > 0
        interpolated = (n_cx + d_c * probabilities) / np.maximum(n_c + d_c, 1)
        probabilities = np.where(seen, interpolated, probabilities)
    return probabilities


def ngram_bits(train: np.ndarray, text: np.ndarray, vocabulary_size: int, order: int) -> float:
    """Returns the mean of -log2 of `ngram_probabilities`: bits per token."""
    return float(-np.mean(np.log2(ngram_probabilities(train, text, vocabulary_size, order))))


def _counts(
    train: np.ndarray, text: np.ndarray, vocabulary_size: int, order: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields n(c x), n(c) and d(c) at each token x of a text, `[N]` each, for contexts c of 0, 1, ... tokens.

    Contexts are numbered: a context of k + 1 tokens is the pair of the context of k tokens before its last token, and
    that token. So a number stays below M V, however long the context is.
    """
    train, text = train.astype(np.int64), text.astype(np.int64)
    train_context, text_context = np.zeros(len(train), np.int64), np.zeros(len(text), np.int64)
    for _ in range(order):
        valid = train_context != _UNSEEN
        pairs, inverse, n_pairs = np.unique(
            (train_context * vocabulary_size + train)[valid], return_inverse=True, return_counts=True
        )
        contexts, first, d_contexts = np.unique(pairs // vocabulary_size, return_index=True, return_counts=True)
        n_contexts = np.add.reduceat(n_pairs, first)
        known = text_context != _UNSEEN
        pair = np.where(known, _find(pairs, text_context * vocabulary_size + text), _UNSEEN)
        context = np.where(known, _find(contexts, text_context), _UNSEEN)
        yield _at(n_pairs, pair), _at(n_contexts, context), _at(d_contexts, context)
        train_pair = np.full(len(train), _UNSEEN)
        train_pair[valid] = inverse
        train_context, text_context = _one_later(train_pair), _one_later(pair)


def _find(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns where values stand in an ascending array, `_UNSEEN` where they do not."""
    index = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.where(sorted_values[index] == values, index, _UNSEEN)


def _at(counts: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.where(index == _UNSEEN, 0, counts[np.maximum(index, 0)])


def _one_later(pairs: np.ndarray) -> np.ndarray:
    """The pair that ends at a token is the context of the next one; the first token has no such context."""
    return np.concatenate([[_UNSEEN], pairs[:-1]]) if len(pairs) else pairs
