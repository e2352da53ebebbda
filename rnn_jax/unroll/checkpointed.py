"""The gradient of all steps from memory for few: the steps between two carries that are kept are computed again.

References:
  Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear memory cost", arXiv 1604.06174.
"""

import dataclasses
import math
from typing import Any

import jax

from rnn_jax.unroll.fused import known_size
from rnn_jax.unroll.scan import Run, State, Steps, over_segments
from rnn_jax.unroll.whole import Whole

_KEPT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Checkpointed:
    """The gradient of all steps, from every `every`-th carry, for the price of one more forward pass.

    Args:
      every: steps between two carries that are kept; about sqrt(time) by default, which needs the least memory.

    Raises:
      ValueError: if `every` is less than 1.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every} is no number of steps; allowed: 1 or more, or None.")

    def wrap(self, run: Run, *, reverse: bool) -> Run:
        """Returns `run` with this way to take its gradient."""

        def checkpointed(state: State, steps: Steps) -> tuple[State, Any]:
            time = jax.tree.leaves(steps.x)[0].shape[0]
            every = max(1, math.isqrt(time)) if self.every is None else self.every
            return over_segments(jax.checkpoint(run), state, steps, reverse=reverse, size=every)

        return checkpointed


def default_gradient(carry: Any, time: Any, fast: bool) -> Whole | Checkpointed:
    """Returns `Checkpointed()` if what the backward pass would keep is likely to be above a gigabyte, else `Whole()`.

    Args:
      carry: before the first step.
      time: number of steps; symbolic within `jax.export`, where nothing is recomputed.
      fast: whether the fast path runs. It keeps the carries; the plain scan, all that JAX needs to differentiate a
        step, about 6 times as much.
    """
    if not isinstance(time, int):
        return Whole()
    step_bytes = sum(known_size(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(carry))
    return Checkpointed() if (1 if fast else 6) * step_bytes * time > _KEPT_BYTES else Whole()
