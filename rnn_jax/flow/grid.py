r"""The gradient profile along every dimension of a grid: over time, over the axes of an image, and over depth.

`rnn_jax.flow.gradient_profile` follows the gradient along time. Through depth it takes another way: from block to
block in a Grid LSTM, from layer to layer in a stack. A zero is added to what each block hands on along each dimension;
its cotangent is the adjoint there. With a_{l, p} the adjoint of what leaves level l at place p of the axes,

    p_{l, p} = log10 sqrt(mean over the batch of |a_{l, p}|^2).

Unlike in the profile along time, adjoints are not scaled on their way: in float32 those below 1e-38 are zero.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cells.grid_lstm import GridLSTM, GridLSTMCell, GridState
from rnn_jax.flow.calls import check_loss
from rnn_jax.flow.run_order import has_nan, refuse_inputs
from rnn_jax.layers import RNN, Stack

Array = jax.Array
PyTree = Any

_AXES = {0: (), 1: ("time",), 2: ("rows", "columns")}  # names of the axes of a grid, by their number


@partial(jax.tree_util.register_dataclass, data_fields=["loss", "log10_norm"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class GridProfile:
    """What one backward pass showed.

    Attributes:
      loss: the value of the loss.
      log10_norm: for every dimension, p_{l, p} of what leaves each block along it, float32 `[levels, *axes]`, the
        lowest level first; -inf where the adjoint is exactly zero. Dimensions are the axes of the grid (`time`, or
        `rows` and `columns`, or none) and `depth`. Of other networks there is `depth` alone, `[layers, time]`.
    """

    loss: Array
    log10_norm: dict[str, Array]

    def along(self, dimension: str) -> Array:
        """Returns the profile along a dimension: log10 of the norm over all other places, `[size]`."""
        norm = self.log10_norm[dimension]
        axis = 0 if dimension == "depth" else 1 + _AXES[norm.ndim - 1].index(dimension)
        others = tuple(k for k in range(norm.ndim) if k != axis)
        largest = jnp.max(norm, axis=others, keepdims=True)  # taken out, so that no small square is lost
        largest = jnp.where(jnp.isfinite(largest), largest, jnp.zeros_like(largest))
        total = jnp.sum(10.0 ** (2.0 * (norm - largest)), axis=others)
        return 0.5 * jnp.log10(total) + jnp.squeeze(largest, others)


def grid_profile(loss_fn: Callable[..., Array], model: PyTree, *args: Any) -> GridProfile:
    """Returns the norm of the adjoint between all blocks of a Grid LSTM, or between the layers of another network.

    It may be jitted, and vmapped over an ensemble of models.

    Args:
      loss_fn: `loss_fn(model, *args) -> scalar`.
      model: a pytree with one `GridLSTM` of at most two axes, one `RNN`, or one `Stack`. An `RNN` of a `GridLSTMCell`
        has the levels of its grid, any other is a stack of one.
      *args: passed to the loss.

    Raises:
      ValueError: if the model has none of them, or several; the loss is no floating-point scalar, or does not run it
        once, or with what a grid that runs over whole sequences does not serve: lengths, a first carry, a reversed
        order; or the loss or an adjoint is NaN, where values can be known.
    """
    found = [node for node in jax.tree.leaves(model, is_leaf=_is_profiled) if _is_profiled(node)]
    if len(found) != 1:
        raise ValueError(
            f"model has {len(found)} networks with a depth to profile; allowed: one GridLSTM, RNN or Stack."
        )
    layer = _as_layer(found[0])

    def loss_with(replacement: Any) -> Array:
        swapped = jax.tree.map(lambda node: replacement if _is_profiled(node) else node, model, is_leaf=_is_profiled)
        return loss_fn(swapped, *args)

    recorder = _Recorder(layer)
    jax.eval_shape(lambda: check_loss(loss_with(recorder)))
    zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), recorder.probes())
    loss, adjoints = jax.value_and_grad(lambda probes: loss_with(_with_probes(layer, probes)))(zeros)
    if isinstance(layer, Stack):
        time_first = [jnp.moveaxis(adjoint, -2, 0) for adjoint in adjoints]
        norms = {"depth": jnp.stack([_log10_norm(adjoint, 1) for adjoint in time_first])}
    else:
        norms = {
            name: jnp.stack([_log10_norm(states[k], layer.axes) for states in adjoints])
            for k, name in enumerate((*_AXES[layer.axes], "depth"))
        }
    if has_nan((loss, norms)):
        refuse_inputs(lambda m: loss_fn(m, *args), model)
        raise ValueError("the loss or an adjoint of the grid is NaN; allowed: inputs and parameters that are finite.")
    return GridProfile(loss, norms)


def _is_profiled(node: Any) -> bool:
    return isinstance(node, GridLSTM | RNN | Stack)


def _as_layer(node: Any) -> GridLSTM | Stack:
    """Returns a layer whose levels can be probed: the grid of a cell, which runs over whole sequences level by level.

    Raises:
      ValueError: if that would be another network than the one given.
    """
    if not isinstance(node, RNN):
        return node
    learns_first = isinstance(node.cell, GridLSTMCell) and node.cell.first_carry is not None
    if node.reverse or node.time_major or node.return_carry or learns_first:
        raise ValueError(
            "the RNN runs in reverse, is time-major, returns its carry, or learns the first one of a grid; allowed for"
            " a grid profile: none of these."
        )
    return node.cell.grid if isinstance(node.cell, GridLSTMCell) else Stack([node])


@jax.tree_util.register_static
class _Recorder:
    """Stands in for a layer while shapes are traced, and notes what its probes must be like."""

    def __init__(self, layer: GridLSTM | Stack):
        self.layer = layer
        self.seen: list[PyTree] = []
        self.num_feature_axes = layer.num_feature_axes
        self.takes_context = layer.takes_context
        self.axes = getattr(layer, "axes", 1)

    def __call__(self, xs: Array, **kwargs: Any) -> Any:
        if isinstance(self.layer, GridLSTM):
            batch_axes = xs.ndim - 1 - self.axes
            shape = (*xs.shape[batch_axes:-1], *xs.shape[:batch_axes], self.layer.hidden_features)
            part: Any = jax.ShapeDtypeStruct(shape, self.layer.param_dtype)
            self.seen.append([[GridState(part, part)] * (self.axes + 1)] * self.layer.depth)
        else:
            layers = list(self.layer.layers)
            prefixes = [Stack(layers[: k + 1]) for k in range(len(layers))]
            self.seen.append([jax.eval_shape(partial(prefix, **kwargs), xs) for prefix in prefixes])
        return self.layer(xs, **kwargs)

    def probes(self) -> PyTree:
        if len(self.seen) != 1:
            raise ValueError(f"loss_fn ran the network to profile {len(self.seen)} times; allowed: once.")
        return self.seen[0]


class _Probed(nnx.Module):
    """A layer of a stack, with a zero added to its outputs."""

    def __init__(self, layer: Any, probe: Array):
        self.layer = layer
        self.probe = nnx.data(probe)

    def __call__(self, inputs: Array, **kwargs: Any) -> tuple[Any, Array]:
        carry, ys = self.layer(inputs, **kwargs)
        return carry, ys + self.probe

    @property
    def num_feature_axes(self) -> Any:
        return self.layer.num_feature_axes


def _with_probes(layer: GridLSTM | Stack, probes: PyTree) -> GridLSTM | Stack:
    if isinstance(layer, GridLSTM):
        return layer.with_probes(probes)
    return Stack([_Probed(one, probe) for one, probe in zip(layer.layers, probes, strict=True)])


def _log10_norm(adjoint: PyTree, axes: int) -> Array:
    """Returns log10 of the root of the batch mean of |adjoint|^2, `[*axes]`, for arrays `[*axes, *batch, H]`."""
    parts = [part.reshape(*part.shape[:axes], -1) for part in jax.tree.leaves(adjoint)]
    batch_size = math.prod(jax.tree.leaves(adjoint)[0].shape[axes:-1])
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(part), axis=-1, keepdims=True) for part in parts])
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))  # taken out, so that no small square is lost
    total = sum((jnp.sum(jnp.square(part / scale), axis=-1) for part in parts), start=jnp.zeros_like(scale[..., 0]))
    return (0.5 * jnp.log10(total / batch_size) + jnp.log10(scale[..., 0])).astype(jnp.float32)
