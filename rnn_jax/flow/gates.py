"""Gate saturation: the share of gate values that are near an end of their range, where a gate passes no gradient.

References:
  Karpathy, Johnson, Fei-Fei 2015, "Visualizing and understanding recurrent networks", arXiv 1506.02078.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import Cell, gate_values, step
from rnn_jax.unroll import unroll
from rnn_jax.unroll.record import LayerCall

Array = jax.Array
Carry = Any

_NEAR = 0.05  # of an end of the range


class _SaturationReader(nnx.RNNCellBase):
    """Steps as a cell does, and puts out for each of its gates the share of values near an end, `[*batch]`."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | None = None, carry_init: Any = None
    ) -> Carry:
        return self.cell.initialize_carry(input_shape, rngs, carry_init)

    def __call__(self, carry: Carry, x: Any, *, context: Any = None, key: Array | None = None) -> tuple[Carry, Any]:
        batch_axes = jax.tree.leaves(x)[0].ndim - jax.tree.leaves(self.num_feature_axes)[0]
        shares = {}
        for gate, value in gate_values(self.cell, carry, x, context=context, key=key).items():
            if gate in self.cell.gate_ranges:
                low, high = self.cell.gate_ranges[gate]
                near = (value < low + _NEAR) | (value > high - _NEAR)
                shares[gate] = jnp.mean(near.astype(jnp.float32), axis=tuple(range(batch_axes, near.ndim)))
        carry, _ = step(self.cell, carry, x, context=context, key=key)
        return carry, shares

    @property
    def num_feature_axes(self) -> Any:
        return self.cell.num_feature_axes


def gate_saturation(call: LayerCall) -> dict[str, Array]:
    """Returns for each gate the share of its values within 0.05 of an end of its range, a float32 scalar.

    The mean is over true steps, sequences and units; a gate may have any shape `[*batch, ...]`. It is NaN where no step
    is true. Gates without a range in `gate_ranges` are left out, and so are all gates of a cell that names none.

    Args:
      call: of a layer, as `layer_calls` records it.
    """
    if not isinstance(call.cell, Cell) or not call.cell.gate_ranges:
        return {}
    _, shares = unroll(
        _SaturationReader(call.cell),
        call.xs,
        call.carry,
        context=call.context,
        key=call.key,
        lengths=call.lengths,
        resets=call.resets,
        reverse=call.reverse,
    )
    true_steps = jnp.float32(math.prod(call.batch_shape) * call.time)
    if call.lengths is not None:
        true_steps = jnp.sum(call.lengths).astype(jnp.float32)
    return {gate: jnp.sum(share) / true_steps for gate, share in shares.items()}
