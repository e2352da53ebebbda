"""The word problem of S5: the product of all permutations read so far. State tracking at its hardest."""

import functools
import itertools

import numpy as np

from rnn_jax.tasks import generated, task

_PERMUTATIONS = tuple(itertools.permutations(range(5)))  # in lexicographic order: number 0 is the identity


def s5(
    seq_len: int = 20,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """The word problem of the symmetric group S5, asked at every step.

    "tokens" is [T], each one of the 120 permutations of five things, uniform, by its number in lexicographic order;
    "labels" is the number of the product so far, first read, first applied: p q is the permutation that takes i to
    q(p(i)). For seq_len = 4, a permutation written as where it takes 0, 1, 2, 3, 4:

        tokens   10234  02134  43210  01234
        labels   10234  20134  24310  24310

    One of 120 states is all there is to remember, but every step may lead from each to any other. S5 is not solvable,
    and so its word problem is complete for NC1: a network of fixed depth whose recurrence can be computed in parallel
    (transformers, linear recurrences with diagonal matrices) cannot solve it at every length, unless TC0 = NC1. One
    layer of a nonlinear recurrence can.

    The baseline is right with probability 1/120: a product with one uniform factor is uniform.

    Liu et al. and Merrill et al. ask at every step as well; Liu et al. draw from two generators, not from all of S5.

    Args:
      seq_len: T, 1 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      B. Liu et al. (2022). Transformers learn shortcuts to automata. arXiv:2210.10749.
      W. Merrill, J. Petty, A. Sabharwal (2024). The illusion of state in state-space models. arXiv:2404.08819.
    """
    generated.check_lengths(seq_len, test_seq_len, 1)
    return generated.generated_task(
        lambda steps: _s5,
        lambda steps: steps,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="s5",
        description="At every step, the product of all permutations of five things read so far.",
        source="Liu et al. 2022, arXiv:2210.10749; Merrill, Petty, Sabharwal 2024, arXiv:2404.08819",
        kind=task.Kind.ANSWER_A_STEP,
        reads_tokens=True,
        in_features=len(_PERMUTATIONS),
        out_features=len(_PERMUTATIONS),
        baseline_score=1 / len(_PERMUTATIONS),
        class_names=tuple("".join(map(str, permutation)) for permutation in _PERMUTATIONS),
        **generated.CLASSES,
    )


def _s5(bits: np.ndarray) -> dict[str, np.ndarray]:
    tokens = generated.integers(bits, len(_PERMUTATIONS))
    table = _products()
    products = itertools.accumulate(tokens.tolist(), lambda p, q: table[p][q])
    return {"tokens": tokens, "labels": np.fromiter(products, np.int32, len(tokens))}


@functools.cache
def _products() -> list[list[int]]:
    """The multiplication table, `[p][q]` being the number of p q."""
    number = {permutation: k for k, permutation in enumerate(_PERMUTATIONS)}
    return [[number[tuple(q[i] for i in p)] for q in _PERMUTATIONS] for p in _PERMUTATIONS]
