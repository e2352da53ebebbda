"""The inputs of a run: which of their axes are batch, time and features, and how long each sequence is."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import check_input

Array = jax.Array
PyTree = Any


class InputAxes(NamedTuple):
    """The axes of inputs `[*batch, time, ...features]`, which may be a pytree of such arrays.

    Attributes:
      batch_shape, time: sizes that all arrays have in common.
      input_shape: of one step, `[*batch, ...features]`, of the first array: what `initialize_carry` takes.
    """

    batch_shape: tuple[int, ...]
    time: int
    input_shape: tuple[int, ...]

    @property
    def time_axis(self) -> int:
        return len(self.batch_shape)


def time_axis(cell: Any, xs: PyTree) -> int:
    """Returns how many axes the inputs of a cell, or of a layer, have before time: those of the batch.

    Raises:
      ValueError: if an array has too few axes, or another number of them than the first.
    """
    for leaf in jax.tree.leaves(xs):
        if not hasattr(leaf, "shape"):
            raise ValueError(f"xs holds a {type(leaf).__name__}; allowed: arrays, as jnp.asarray makes of lists.")
    axes = jax.tree.leaves(jax.tree.broadcast(cell.num_feature_axes, xs))
    found = {jnp.ndim(x) - count - 1: (jnp.shape(x), count) for x, count in zip(jax.tree.leaves(xs), axes)}
    if len(found) != 1 or min(found) < 0:
        shape, count = found[min(found)] if found else ((), 1)
        raise ValueError(
            f"xs has shape {shape}; allowed: [*batch, time, ...features] with {count} feature axes"
            + ("." if len(found) < 2 else ", and as many batch axes in all arrays.")
        )
    return next(iter(found))


def input_axes(cell: nnx.RNNCellBase, xs: PyTree) -> InputAxes:
    """Returns the axes of the inputs of a run.

    Raises:
      ValueError: if they have too few axes, other features than the cell reads, or arrays of different lengths.
    """
    axis = time_axis(cell, xs)
    check_input(cell, xs)
    leading = {jnp.shape(x)[: axis + 1] for x in jax.tree.leaves(xs)}
    if len(leading) > 1:
        raise ValueError(f"the arrays of xs begin with {sorted(leading)}; allowed: one [*batch, time] for all of them.")
    *batch_shape, time = leading.pop()
    first = jnp.shape(jax.tree.leaves(xs)[0])
    return InputAxes(tuple(batch_shape), time, (*batch_shape, *first[axis + 1 :]))


def abstract_step(xs: PyTree, time_axis: int) -> PyTree:
    """Returns shapes and types of the inputs of one step."""

    def one(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*x.shape[:time_axis], *x.shape[time_axis + 1 :]), x.dtype)

    return jax.tree.map(one, xs)


def check_context(cell: nnx.RNNCellBase, context: PyTree, batch_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the cell asks for what is given, and every array begins with the axes of the batch."""
    parameter = inspect.signature(type(cell).__call__).parameters.get("context")
    if parameter is None and context is not None:
        raise ValueError(
            f"context is given, and {type(cell).__name__}.__call__ has no argument `context`; allowed: None."
        )
    if parameter is not None and context is None and parameter.default is inspect.Parameter.empty:
        raise ValueError(f"context=None, and {type(cell).__name__} asks for one; allowed: a pytree [*batch, ...].")
    for path, part in jax.tree_util.tree_leaves_with_path(context):
        if jnp.shape(part)[: len(batch_shape)] != batch_shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"context{f' {name!r}' if name else ''} has shape {jnp.shape(part)}; allowed: [*batch, ...], batch"
                f" being {batch_shape}."
            )


def check_lengths(lengths: Array | np.ndarray, batch_shape: tuple[int, ...], time: int) -> Array:
    """Returns `lengths` as an int32 array `[*batch]`, within 0 and time.

    Raises:
      ValueError: if its shape is not that of the batch, its dtype not integer, or a value (where it can be known: not
        inside `jax.jit`, where it is clipped) not within 0 and time.
    """
    if not isinstance(lengths, jax.core.Tracer):
        lengths = np.asarray(lengths)  # as it was given: JAX would make an int32 of what is too large for one
    if lengths.shape != batch_shape or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths has shape {lengths.shape} and dtype {lengths.dtype}; allowed: integers of shape {batch_shape}."
        )
    if isinstance(lengths, np.ndarray):
        wrong = lengths[(lengths < 0) | (lengths > time)]
        if wrong.size:
            raise ValueError(f"lengths holds {wrong.flat[0]}; allowed: 0 to {time}, the number of time steps.")
    return clip_lengths(jnp.asarray(lengths), time)


def clip_lengths(lengths: Array, time: int) -> Array:
    """Returns integer `lengths` of any type within 0 and time, as int32."""
    wide = lengths.astype(jnp.int32) if lengths.dtype.itemsize < 4 else lengths
    return jnp.clip(wide, 0, time).astype(jnp.int32)
