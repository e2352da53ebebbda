"""Truncated back-propagation through time: no gradient flows between pieces of a sequence.

References:
  Williams, Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
  trajectories", Neural Computation 2(4).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.unroll.checkpointed import Checkpointed
from rnn_jax.unroll.scan import Run, State, Steps, over_segments
from rnn_jax.unroll.whole import Whole


@dataclasses.dataclass(frozen=True)
class Truncated:
    """No gradient flows between pieces of `every` steps; outputs are the same.

    The first piece of a run depends on the caller's carry, and a gradient reaches it.

    Args:
      every: steps in a piece.
      within: how the gradient is taken within a piece: `Whole` or `Checkpointed`; by default as for a whole run.

    Raises:
      ValueError: if `every` is less than 1.
    """

    every: int
    within: Whole | Checkpointed | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} is no number of steps; allowed: 1 or more.")

    def wrap(self, run: Run, *, reverse: bool) -> Run:
        """Returns `run` with this way to take its gradient."""
        run = (self.within or Whole()).wrap(run, reverse=reverse)

        def piece(first_and_state: Any, steps: Steps) -> Any:
            first, (carry, scale_token) = first_and_state
            carry = jax.tree.map(lambda part: jnp.where(first, part, jax.lax.stop_gradient(part)), carry)
            state, ys = run((carry, scale_token), steps)
            return (jnp.zeros_like(first), state), ys

        def truncated(state: State, steps: Steps) -> tuple[State, Any]:
            first = jnp.ones((), bool)
            (_, state), ys = over_segments(piece, (first, state), steps, reverse=reverse, size=self.every)
            return state, ys

        return truncated
