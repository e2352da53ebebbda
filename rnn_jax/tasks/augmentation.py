"""Texts that a network has not quite seen before: random pieces of them, and tokens made unknown."""

from collections.abc import Callable

import numpy as np

from rnn_jax.tasks.task import Batch
from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN


def make_augmentation(seed: int, *, crop: float = 1.0, token_dropout: float = 0.0) -> Callable[[Batch, int], Batch]:
    """Makes `(batch, number) -> batch` of the same shapes, for batches with "tokens" `[B, T]` and "lengths" `[B]`.

    Of half of the texts a piece is left, drawn again whenever they are read: L c tokens of L, with c uniform in
    [crop, 1), at any place. Of what is left each token becomes the unknown one with a probability of `token_dropout`.

    Args:
      seed, with the number of a batch: decide what is drawn, on every machine alike.
      crop: min share of a text that a piece has, above 0; 1 leaves texts whole.
      token_dropout: 0 to below 1.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Bowman et al. 2015, "Generating sentences from a continuous space", arXiv 1511.06349 (words made unknown).
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop={crop} is out of range; allowed: above 0, and 1 at most.")
    if not 0 <= token_dropout < 1:
        raise ValueError(f"token_dropout={token_dropout} is out of range; allowed: 0 to below 1.")

    def augment(batch: Batch, number: int) -> Batch:
        tokens, lengths = batch["tokens"], batch["lengths"]
        rows, width = tokens.shape
        # Raw bits, as numpy keeps only these the same between versions; the 1 parts them from the bits of the order.
        bits = np.random.Philox([seed, number, 1]).random_raw(rows * (3 + width))
        uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        whole, share, place = uniform[: 3 * rows].reshape(3, rows)
        lost = uniform[3 * rows :].reshape(rows, width) < token_dropout

        kept = np.ceil((crop + (1 - crop) * share) * lengths).astype(lengths.dtype)
        kept = np.where(whole < 0.5, lengths, kept)
        first = np.floor(place * (lengths - kept + 1)).astype(lengths.dtype)
        steps = np.arange(width)
        pieces = np.take_along_axis(tokens, np.minimum(first[:, None] + steps, width - 1), axis=1)
        true_steps = steps < kept[:, None]
        pieces = np.where(true_steps, np.where(lost, UNKNOWN, pieces), PADDING).astype(tokens.dtype)
        return {**batch, "tokens": pieces, "lengths": kept}

    return augment
