"""The record of a call: what a recurrent layer was run with, and what came out. Every instrument starts from it.

`RNN` and `unroll` bring whatever they are given into one form first: batch-major inputs, the direction and the first
carry that are in force, the layer's own arguments and those of the call taken together. An instrument that reads the
record need not know of any of this.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

Array = jax.Array
Carry = Any


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One run of a cell over time. Within a traced function the arrays are traced ones, and belong to that trace.

    Attributes:
      cell: the cell.
      xs: inputs, `[*batch, time, ...features]`, or a pytree of such arrays.
      carry: before the first step.
      lengths: int `[*batch]`, or None.
      resets: bool `[*batch, time]`, or None.
      reverse: whether it ran from the last step to the first.
      context: what the cell was given at every step, or None.
      key: of `jax.random`, from which each step's was drawn, or None.
      batch_shape, time: sizes of the axes.
      fresh_carry: what a reset puts in the place of the carry; None without resets.
      layer: the name of the layer in its model.
      final_carry: after the last step.
      ys: outputs, each at the step of its input, `[*batch, time, ...]` each.
    """

    cell: nnx.RNNCellBase
    xs: Any
    carry: Carry
    lengths: Array | None
    resets: Array | None
    reverse: bool
    context: Any
    key: Array | None
    batch_shape: tuple[int, ...]
    time: int
    fresh_carry: Carry = None
    layer: str = "rnn"
    final_carry: Carry = None
    ys: Any = None


@jax.tree_util.register_static
@dataclasses.dataclass(eq=False)
class CallRecorder:
    """Notes the calls of one layer.

    Attributes:
      name: of the layer.
      calls: `(name, call)` in the order in which they ended; recorders of several layers may share the list.
    """

    name: str
    calls: list[tuple[str, LayerCall]] = dataclasses.field(default_factory=list)

    def note(self, call: LayerCall, final_carry: Carry, ys: Any) -> None:
        call = dataclasses.replace(call, layer=self.name, final_carry=final_carry, ys=ys)
        self.calls.append((self.name, call))
