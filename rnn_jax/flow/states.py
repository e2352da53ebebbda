"""The state of a layer along its sequences: the carry after every step, and the gates within it.

References:
  Karpathy, Johnson, Fei-Fei 2015, "Visualizing and understanding recurrent networks", arXiv 1506.02078.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from flax import nnx

from rnn_jax.cell import Cell, carry_names, gate_values, step
from rnn_jax.flow.run_order import check_finite
from rnn_jax.unroll import unroll
from rnn_jax.unroll.record import LayerCall

Array = jax.Array
Carry = Any


@partial(jax.tree_util.register_dataclass, data_fields=["carry", "gates"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class States:
    """What a layer has held at every step; 0 at padded steps.

    Attributes:
      carry: the carry after each step by part, `[*batch, time, ...]` each: "c" and "h" of an LSTM, "" where the carry
        is one array.
      gates: by name, `[*batch, time, ...]` each; none of a cell that names none.
    """

    carry: dict[str, Array]
    gates: dict[str, Array]


class _StateReader(nnx.RNNCellBase):
    """Steps as a cell does, and puts out the carry after the step and the gates within it."""

    def __init__(self, cell: nnx.RNNCellBase):
        self.cell = cell

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | None = None, carry_init: Any = None
    ) -> Carry:
        return self.cell.initialize_carry(input_shape, rngs, carry_init)

    def __call__(self, carry: Carry, x: Any, *, context: Any = None, key: Array | None = None) -> tuple[Carry, Any]:
        gates = {}
        if isinstance(self.cell, Cell) and self.cell.gate_ranges:
            gates = gate_values(self.cell, carry, x, context=context, key=key)
        carry, _ = step(self.cell, carry, x, context=context, key=key)
        return carry, (carry, gates)

    @property
    def num_feature_axes(self) -> Any:
        return self.cell.num_feature_axes


def states(call: LayerCall) -> States:
    """Returns the carry and the gates of a layer at every step, each at the step of its input.

    Args:
      call: of a layer, as `layer_calls` records it.

    Raises:
      ValueError: for inputs that are not finite, where values can be known.
    """
    check_finite(call)
    _, (carry, gates) = unroll(
        _StateReader(call.cell),
        call.xs,
        call.carry,
        context=call.context,
        key=call.key,
        lengths=call.lengths,
        resets=call.resets,
        reverse=call.reverse,
    )
    names = carry_names(call.cell, call.carry)
    return States(dict(zip(names, jax.tree.leaves(carry), strict=True)), gates)
