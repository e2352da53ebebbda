"""Interventions: a model whose carry is changed after a step, or whose gates are held at a value.

They ask what a unit does, and not only what can be read from it: the model is run again with the change, and what it
puts out is compared. A cell is not edited for that: a change of the carry stands between two of its steps, and a gate
is held where the cell computes its gates.

References:
  Lakretz et al. 2019, "The emergence of number and syntax units in LSTM language models", arXiv 1903.07435: ablation of
  single units.
  Geiger et al. 2021, "Causal abstractions of neural networks", arXiv 2106.02997: states set to what they would have
  been.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import Cell, PointwiseCell, carry_names, step
from rnn_jax.flow.calls import layer_names, map_layers

Array = jax.Array
Carry = Any
PyTree = Any
Change = Callable[[dict[str, Array], Array], dict[str, Array]]
_Model = TypeVar("_Model")


def change_carry(model: _Model, layer: str, change: Change) -> _Model:
    """Returns the model with a layer whose carry is changed after each of its steps.

    The outputs of the step itself stay what they were; what follows reads the changed carry.

    Args:
      model: any model with layers of ours.
      layer: its name, as `layer_names` has it.
      change: `(parts, t) -> parts`: the carry by part, `[*batch, ...]` each, as in `rnn_jax.flow.States`, and the
        number of the step, int32 `[*batch]`, from 0 in the order of the run (and from 0 again behind a reset). Use
        `jnp.where` to change it at some steps.

    Raises:
      ValueError: if the model has no such layer.
    """
    return _replace_cell(model, layer, lambda cell: _Changed(cell, change))


def hold_gates(model: _Model, layer: str, values: Mapping[str, float]) -> _Model:
    """Returns the model with a layer whose gates are held at a value each: the forget gate at 1, the input gate at 0.

    Args:
      model: any model with layers of ours.
      layer: its name, as `layer_names` has it.
      values: by the name of the gate.

    Raises:
      ValueError: if the model has no such layer, or the layer's cell no such gate.
    """
    return _replace_cell(model, layer, lambda cell: _with_held_gates(cell, values))


class _Changed(nnx.RNNCellBase):
    """A cell, and a change of its carry behind every step. The carry holds the number of the step, too."""

    def __init__(self, cell: nnx.RNNCellBase, change: Change):
        self.cell = cell
        self.change = change

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | None = None, carry_init: Any = None
    ) -> Carry:
        axes = jax.tree.leaves(self.num_feature_axes)[0]
        steps = jnp.zeros(input_shape[: len(input_shape) - axes], jnp.int32)
        return self.cell.initialize_carry(input_shape, rngs, carry_init), steps

    def __call__(self, carry: Carry, x: Any, *, context: Any = None, key: Array | None = None) -> tuple[Carry, Any]:
        inner, steps = carry
        inner, y = step(self.cell, inner, x, context=context, key=key)
        names = carry_names(self.cell, inner)
        leaves, structure = jax.tree.flatten(inner)
        changed = self.change(dict(zip(names, leaves, strict=True)), steps)
        leaves = [changed[name].astype(leaf.dtype) for name, leaf in zip(names, leaves)]
        return (jax.tree.unflatten(structure, leaves), steps + 1), y

    @property
    def num_feature_axes(self) -> Any:
        return self.cell.num_feature_axes


def _with_held_gates(cell: nnx.RNNCellBase, values: Mapping[str, float]) -> nnx.RNNCellBase:
    """Returns the cell as one of a class of its own, whose gates are computed and then held."""
    known = sorted(cell.gate_ranges) if isinstance(cell, Cell) else []
    for name in values:
        if name not in known:
            raise ValueError(f"{type(cell).__name__} has no gate {name!r}; allowed: {', '.join(known) or 'none'}.")
    base, values = type(cell), dict(values)
    method = "activate" if issubclass(base, PointwiseCell) else "gates"
    compute = getattr(base, method)

    @functools.wraps(compute)  # what a step may be given is read off the signature
    def held(self: Cell, *arguments: Any, **optional: Any) -> dict[str, Array]:
        gates = compute(self, *arguments, **optional)
        return gates | {name: jnp.full_like(gates[name], value) for name, value in values.items()}

    copy = jax.tree.map(lambda x: x, cell)
    copy.__class__ = type(f"Held{base.__name__}", (base,), {method: held, "__doc__": base.__doc__})
    return copy


def _replace_cell(model: _Model, layer: str, replace: Callable[[nnx.RNNCellBase], nnx.RNNCellBase]) -> _Model:
    names = layer_names(model)
    if layer not in names:
        raise ValueError(f"the model has no recurrent layer {layer!r}; allowed: {', '.join(names) or 'none'}.")

    def of_layer(name: str, rnn: Any) -> Any:
        if name != layer:
            return rnn
        rnn = jax.tree.map(lambda x: x, rnn)
        rnn.cell = replace(rnn.cell)
        return rnn

    return map_layers(model, of_layer)
