"""What a training run looks at beside its loss: the gradient flow and the gates, on one batch that stays the same.

The same sequences at every look, so that only the weights differ between two of them. Where sequences differ in
length, those of about the length that nine tenths stay below, so that lags mean the same in all of them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import tasks
from rnn_jax.cell import Cell
from rnn_jax.flow import gradient_profile
from rnn_jax.flow.profile import layer_names
from rnn_jax.layers import RNN

Array = jax.Array
PyTree = Any

_END = 0.05  # how near to an end of its range a gate is called saturated


@partial(jax.tree_util.register_dataclass, data_fields=["log10_norm", "saturation"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Look:
    """What one look at a model showed.

    Attributes:
      log10_norm: the gradient profile by layer and part of its carry, `[time]`, as in `flow.gradient_profile`; in the
        order in which the layer ran, so that lags count from the end also where it ran backward.
      saturation: by "layer/gate", the share of gate values within 0.05 of an end of their range.
    """

    log10_norm: dict[str, Array]
    saturation: dict[str, Array]


def probe_batch(task: tasks.Task, batch_size: int) -> tasks.Batch:
    """Returns the sequences of the training split to look at: the first, or those of a length few exceed."""
    count = min(batch_size, len(task.train))
    if task.train.lengths is None:
        return tasks.collate([task.train[index] for index in range(count)], ragged=False)
    by_length = np.argsort(task.train.lengths, kind="stable")
    stop = max(count, int(np.ceil(0.9 * len(by_length))))
    return tasks.collate([task.train[int(index)] for index in by_length[stop - count : stop]], ragged=True)


def look(task: tasks.Task, model: PyTree, batch: tasks.Batch) -> Look:
    """Measures a model on a batch; nothing is dropped out. A model without recurrent layers shows nothing."""
    if not layer_names(model):
        return Look({}, {})
    profile = gradient_profile(task.loss, model, batch).log10_norm
    for part in profile:
        if "backward_rnn" in part.split("/"):
            profile[part] = jnp.flip(profile[part])
    return Look(profile, _saturation(task, model, batch))


class Call(NamedTuple):
    """One run of a recurrent layer: what it was called with, and what came out."""

    layer: RNN
    inputs: Array
    kwargs: dict[str, Any]
    outputs: PyTree


def layer_calls(function: Callable[[PyTree], Any], model: PyTree) -> dict[str, Call]:
    """Calls `function(model)` and returns what every recurrent layer did in it, by the layer's name, in order."""
    calls: dict[str, Call] = {}

    def watched(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, RNN):
            return node
        return _Watched(jax.tree_util.keystr(path, simple=True, separator="/") or "rnn", node, calls)

    function(jax.tree_util.tree_map_with_path(watched, model, is_leaf=lambda node: isinstance(node, RNN)))
    return calls


class _Watched:
    """Stands in for a layer and notes its calls."""

    def __init__(self, name: str, layer: RNN, calls: dict[str, Call]):
        self._name, self._layer, self._calls = name, layer, calls

    def __call__(self, inputs: Array, **kwargs: Any) -> Any:
        outputs = self._layer(inputs, **kwargs)
        self._calls[self._name] = Call(self._layer, inputs, kwargs, outputs)
        return outputs

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._layer, attribute)


def _saturation(task: tasks.Task, model: PyTree, batch: tasks.Batch) -> dict[str, Array]:
    shares: dict[str, Array] = {}
    for name, call in layer_calls(lambda watched: task.loss(watched, batch), model).items():
        cell = call.layer.cell
        if isinstance(cell, Cell) and cell.gate_ranges:
            carry, lengths, reverse = (call.kwargs.get(word) for word in ("initial_carry", "seq_lengths", "reverse"))
            by_gate = saturation(cell, call.inputs, lengths, carry, reverse=bool(reverse))
            shares |= {f"{name}/{gate}": share for gate, share in by_gate.items()}
    return shares


def saturation(
    cell: Cell, xs: Array, lengths: Array | None = None, carry: Any = None, *, reverse: bool = False
) -> dict[str, Array]:
    """Returns for each gate the share of its values, over true steps, batch and units, within 0.05 of an end.

    Args:
      cell: one with `gates` and `gate_ranges`.
      xs: `[*batch, time, F]`.
      lengths: true lengths, `[*batch]`; None if nothing is padded.
      carry: before the first step; by default what the cell begins with.
      reverse: run from the last true step to the first.
    """
    time = xs.shape[-2]
    xs_TBF = jnp.moveaxis(xs, -2, 0)
    steps = jnp.arange(time, dtype=jnp.int32).reshape((time,) + (1,) * (xs.ndim - 2))
    lengths = jnp.full(xs.shape[:-2], time, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    true_TB = steps < lengths[None]
    if reverse:
        xs_TBF, true_TB = xs_TBF[::-1], true_TB[::-1]

    def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, dict[str, Array]]:
        x, is_true = inputs
        counts = {}
        for gate, value in cell.gates(carry, x).items():
            if gate in cell.gate_ranges:
                low, high = cell.gate_ranges[gate]
                near = (value < low + _END) | (value > high - _END)
                counts[gate] = jnp.mean((near & is_true[..., None]).astype(jnp.float32))
        stepped, _ = cell(carry, x)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(is_true.reshape(is_true.shape + (1,) * (new.ndim - is_true.ndim)), new, old)

        return jax.tree.map(keep, stepped, carry), counts

    if carry is None:
        carry = cell.initialize_carry((*xs.shape[:-2], xs.shape[-1]))
    _, counts_T = jax.lax.scan(step, carry, (xs_TBF, true_TB))
    true_share = jnp.mean(true_TB.astype(jnp.float32))
    return {gate: jnp.mean(count_T) / true_share for gate, count_T in counts_T.items()}
