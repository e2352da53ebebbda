"""Which sequences form a batch where lengths differ: similar ones, padded to one of a few widths.

A jitted step is compiled again for each width of its batches. Padding each batch to its own longest sequence would
compile nearly as often as there are lengths; padding all to the longest of all would compute mostly padding.
"""

import functools
from collections.abc import Sequence

import numpy as np

_MAX_WIDTHS = 8
_STEPS_OF_A_WIDTH = 100  # of a small network take about as long as a compilation, 5 to 12 s on 2 CPU cores
_CANDIDATES = 256  # lengths that may become a boundary: as many quantiles as tell any distribution


def width_count(steps: int) -> int:
    """Returns how many widths the batches of so many training steps are to have: one for each 100 of them, 2 to 8.

    A short run would spend more time on the compilation of a further width than it saves on padding. With one width
    alone, a few long sequences would make a step of texts 5 to 25 times as long.

    Raises:
      ValueError: if steps is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is out of range for a number of widths; allowed: 1 or more.")
    return min(max(-(-steps // _STEPS_OF_A_WIDTH), 2), _MAX_WIDTHS)


def bucket_boundaries(lengths: np.ndarray, count: int = _MAX_WIDTHS) -> tuple[int, ...]:
    """Returns `count` widths or fewer, ascending, the last the max of the lengths, that need the least padding.

    Every sequence is padded to the smallest width that holds it. Among the quantiles of the lengths, of which there
    are 256, the widths returned are the best of all choices, found by dynamic programming over the last of them.

    Args:
      lengths: of all sequences, int `[N]`.
      count: of the widths, and so of the compilations of a step.

    Raises:
      ValueError: if the count is less than 1.
    """
    if count < 1:
        raise ValueError(f"count={count} is out of range for bucket boundaries; allowed: 1 or more.")
    quantiles = np.linspace(0, 1, _CANDIDATES)
    widths = np.unique(np.quantile(lengths, quantiles, method="higher")).astype(np.int64)
    # below[k]: how many sequences widths[k - 1] holds. Those of the pair (j, k) are padded to widths[k - 1].
    below = np.concatenate([[0], np.searchsorted(np.sort(lengths), widths, side="right")])
    steps = np.where(below[:, None] <= below, (below - below[:, None]) * np.concatenate([[0], widths]), np.inf)
    fewest_steps = np.where(below == 0, 0.0, np.inf)  # steps computed with no width at all
    chosen = []
    for _ in range(min(count, len(widths))):
        totals = fewest_steps[:, None] + steps
        chosen.append(totals.argmin(axis=0))
        fewest_steps = totals.min(axis=0)
    boundaries, k = [], len(widths)
    for last in reversed(chosen):
        if last[k] < k:  # a width that holds nobody more is none
            boundaries.append(int(widths[k - 1]))
        k = last[k]
    return tuple(reversed(boundaries))


def padding_share(lengths: np.ndarray, batch_size: int, widths: Sequence[int], seed: int = 0) -> float:
    """Returns the share of padding among all steps of the first epoch of `rnn_jax.tasks.batches`.

    With `widths=[lengths.max()]` it is the share without buckets, all sequences padded to the longest.

    Raises:
      ValueError: as `BucketOrder`.
    """
    order = BucketOrder(lengths, batch_size, seed, widths)
    steps = true_steps = 0
    for number in range(len(lengths) // batch_size):
        examples, width = order[number]
        steps += batch_size * width
        true_steps += int(lengths[examples].sum())
    return 1 - true_steps / steps


class BucketOrder:
    """Which examples stand in batch number k, and how wide it is: a function of the seed and of k alone.

    All batches have B examples. What does not fill a batch of its width goes into the next wider one. What does not
    fill a batch of the epoch comes in the next epoch: an epoch of N examples seldom fills whole batches of B, and the
    last `(e + 1) N mod B` of the permutation of epoch e wait for the batches of epoch e + 1. So the batches of an
    epoch depend on two permutations, not on all before.

    Args:
      lengths: of all sequences, int `[N]`.
      batch_size: B, 1 to N.
      seed: of the order, the same on every machine.
      widths: ascending; the last holds the longest sequence.

    Raises:
      ValueError: if the widths are not that.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, widths: Sequence[int]):
        if not len(widths) or np.any(np.diff(widths) <= 0) or widths[-1] < np.max(lengths):
            raise ValueError(
                f"widths={tuple(widths)} do not hold sequences of up to {np.max(lengths)} steps;"
                f" allowed: ascending numbers, the last {np.max(lengths)} or more."
            )
        self.widths = np.array(widths)
        self.buckets = np.searchsorted(self.widths, lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.batches_of_epoch = functools.lru_cache(maxsize=2)(self._batches_of_epoch)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        """Returns the examples of a batch, int `[B]`, and its width."""
        size, count = self.batch_size, len(self.buckets)
        epoch = -(-(number + 1) * size // count) - 1  # the first that completes so many batches
        return self.batches_of_epoch(epoch)[number - epoch * count // size]

    def _batches_of_epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        size, count = self.batch_size, len(self.buckets)
        waiting, leaving = epoch * count % size, (epoch + 1) * count % size
        left_over = self._permutation(epoch - 1)[count - waiting :] if waiting else np.zeros(0, np.int64)
        examples = np.concatenate([left_over, self._permutation(epoch)[: count - leaving]])
        buckets = self.buckets[examples]
        batches = []
        rest = examples[:0]
        for bucket, width in enumerate(self.widths):
            members = np.concatenate([rest, examples[buckets == bucket]])
            whole = len(members) // size * size
            batches += [(members[start : start + size], int(width)) for start in range(0, whole, size)]
            rest = members[whole:]
        bits = self._bits(epoch, count + len(batches))[count:]
        return [batches[k] for k in np.argsort(bits, kind="stable")]

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.argsort(self._bits(epoch, len(self.buckets)), kind="stable")

    def _bits(self, epoch: int, count: int) -> np.ndarray:
        # Raw bits, as numpy keeps only these the same between versions.
        return np.random.Philox([self.seed, epoch]).random_raw(count)
