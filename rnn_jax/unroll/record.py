"""The record of a call: what a recurrent layer was run with, and what came out. Every instrument starts from it.

`RNN` and `unroll` bring whatever they are given into one form first: batch-major inputs, the direction and the first
carry that are in force, the layer's own arguments and those of the call taken together. An instrument that reads the
record need not know of any of this.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from flax import nnx

from rnn_jax.unroll.running_scale import Probe

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
class CallCounter:
    """Counts the calls of a layer while a loss is traced."""

    def __init__(self) -> None:
        self.calls = 0


@partial(jax.tree_util.register_dataclass, data_fields=["probes", "counter"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CallProbes:
    """The probes of a layer that a loss calls several times, one for each call.

    Attributes:
      probes: in the order of the calls.
      counter: of the calls so far.
    """

    probes: tuple[Probe, ...]
    counter: CallCounter

    def of_next_call(self) -> Probe:
        """Returns the probe of the call that begins.

        Raises:
          ValueError: if there is none left.
        """
        self.counter.calls += 1
        if self.counter.calls > len(self.probes):
            raise ValueError(
                f"a layer that loss_fn ran {len(self.probes)} times is run again as its gradient is taken; allowed: a"
                " loss that is the same whenever it is traced."
            )
        return self.probes[self.counter.calls - 1]


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
