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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TruncatedAt:
    """In the place of a layer's probe: the gradient is that of `Truncated(every)`, where `every` may be traced.

    So the gradients of many lengths are one program, and under `jax.vmap` they share one forward pass.

    Attributes:
      every: steps in a piece, an integer scalar.
    """

    every: jax.Array

    def cuts(self, time: int, *, reverse: bool) -> jax.Array:
        """Returns where no gradient flows to the step before, in the order of the run: bool `[time]`."""
        steps = jnp.arange(time, dtype=jnp.int32)
        first_of_run = time - 1 if reverse else 0
        begins = (steps + 1 if reverse else steps) % self.every.astype(jnp.int32) == 0
        return begins & (steps != first_of_run)


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
