"""A recorded call in the order of its run, one step at a time, and the derivative of a step.

The instruments that push small changes of the carry forward (`jacobian`, `lyapunov`, `memory`) read a call in one form:
the first step is the first that the layer ran on the sequence. So a layer that ran in reverse is one that ran ahead on
sequences turned by hand, each at its own true end, and padding comes last.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import asks_for, carry_names
from rnn_jax.flow.calls import layer_calls
from rnn_jax.unroll import prepare_call
from rnn_jax.unroll.record import LayerCall
from rnn_jax.unroll.running_scale import is_inexact, wide_dtype
from rnn_jax.unroll.scan import Steps, has_batch_axes, one_step, where

Array = jax.Array
Carry = Any
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """A call in the order of its run.

    Attributes:
      call: what was called.
      steps: the inputs, time-major; true steps first.
      lengths: int32 `[*batch]`: true steps of each sequence.
    """

    call: LayerCall
    steps: Steps
    lengths: Array

    def step(self, carry: Carry, inputs: Steps) -> tuple[Carry, PyTree]:
        """Runs one step; returns the next carry and the output."""
        call = self.call
        axes = len(call.batch_shape)
        return one_step(call.cell, carry, inputs, fresh_carry=call.fresh_carry, context=call.context, batch_axes=axes)

    def after(self, count: int) -> Carry:
        """Runs the first steps; returns the carry behind them."""
        if not count:
            return self.call.carry
        steps = jax.tree.map(lambda x: x[:count], self.steps)
        return jax.lax.scan(lambda carry, inputs: (self.step(carry, inputs)[0], None), self.call.carry, steps)[0]


def as_call(cell: nnx.RNNCellBase | LayerCall, xs: PyTree, carry: Carry | None, **how: Any) -> LayerCall:
    """Returns the call that an instrument measures: the one given, or that of a cell on inputs.

    Args:
      cell: any cell, or the record of a call.
      xs, carry, **how: `context`, `lengths`, `resets`, `reverse`, `key`, as `rnn_jax.unroll`; of a cell only.

    Raises:
      ValueError: as `check_is_cell`; if one of them is given beside the record of a call, or a cell without inputs; if
        a true input, the carry or the context is not finite, where values can be known (not inside `jax.jit`); or as
        `rnn_jax.unroll`.
      TypeError: if `how` holds another argument.
    """
    if isinstance(cell, LayerCall):
        given = [
            name
            for name, value in {"xs": xs, "carry": carry, **how}.items()
            if value is not None and value is not False
        ]
        if given:
            raise ValueError(f"{given[0]} is given beside the record of a call, which has its own; allowed: None.")
        call = cell
    else:
        check_is_cell(cell)
        if xs is None:
            raise ValueError("xs=None, and the cell reads inputs; allowed: [*batch, time, ...features].")
        call = prepare_call(cell, xs, carry, **how)
    check_finite(call)
    return call


def check_is_cell(cell: Any) -> None:
    """Raises ValueError for what is no cell: a layer, a model without recurrent layers, the calls of all layers."""
    if not (hasattr(cell, "initialize_carry") and hasattr(cell, "num_feature_axes")):
        raise ValueError(
            f"cell is a {type(cell).__name__}; allowed: a recurrent cell, or the record of one call of a layer, as"
            " flow.layer_calls(function, model)[layer][0]."
        )


def in_run_order(call: LayerCall) -> Run:
    """Returns a call as a run from its first step to its last.

    Raises:
      ValueError: for a call in reverse on sequences of different lengths with a `key`: the random numbers of a step are
        those of the whole batch, and the sequences meet them at different lags.
    """
    cell, time, axis = call.cell, call.time, len(call.batch_shape)
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), call.xs)
    resets = None if call.resets is None else jnp.moveaxis(call.resets, -1, 0)
    lags = jnp.arange(time, dtype=jnp.int32).reshape((time,) + (1,) * axis)
    lengths = jnp.full(call.batch_shape, time, jnp.int32) if call.lengths is None else call.lengths
    active = None if call.lengths is None else lags < lengths[None]
    keys = None
    if call.key is not None and asks_for(cell, "key"):
        if call.reverse and active is not None:
            raise ValueError(
                f"layer {call.layer!r} ran in reverse on sequences of different lengths with a key; allowed: no key,"
                " no lengths, or the order of the inputs."
            )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(call.key, jnp.arange(time, dtype=jnp.uint32))
    if call.reverse:
        source = (lengths[None] - 1 - lags) % time

        def turned(x: Array) -> Array:
            return jnp.take_along_axis(x, source.reshape(source.shape + (1,) * (x.ndim - source.ndim)), 0)

        xs, resets, keys = jax.tree.map(turned, xs), None if resets is None else turned(resets), _flip(keys)
    if active is not None:  # padding may hold anything, NaN included
        xs = jax.tree.map(lambda x: where(active, x, jnp.zeros_like(x)), xs)
    return Run(call, Steps(xs, active, resets, None, keys), lengths)


def _flip(keys: Array | None) -> Array | None:
    return None if keys is None else keys[::-1]


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The carry of each sequence as one vector of real numbers, `[*batch, n]`: its tangent space.

    Complex parts count as two real ones. Parts that are not floating-point numbers, and those that all sequences share
    (without batch axes), are held fixed.

    Attributes:
      batch_shape: sizes of the batch axes.
      moves: for each part of the carry, whether it is among the coordinates.
      parts: shapes (without batch axes) and types of those parts.
      names: of those parts, as `carry_names`.
    """

    batch_shape: tuple[int, ...]
    moves: tuple[bool, ...]
    parts: tuple[jax.ShapeDtypeStruct, ...]
    names: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers of real coordinates of the parts."""
        return [int(np.prod(part.shape)) * (2 if _is_complex(part) else 1) for part in self.parts]

    @property
    def size(self) -> int:
        """The number n of real coordinates."""
        return sum(self.sizes)

    @property
    def dtype(self) -> Any:
        """The real type of the vectors: the widest of the parts, float32 at least."""
        return np.result_type(*(wide_dtype(part) for part in self.parts)) if self.parts else jnp.float32

    def split(self, carry: Carry) -> tuple[list[Array], Callable[[list[Array]], Carry]]:
        """Returns the parts that are coordinates, and the function that puts changed ones back into the carry."""
        leaves, structure = jax.tree.flatten(carry)
        moving = [leaf for leaf, moves in zip(leaves, self.moves) if moves]

        def merge(parts: list[Array]) -> Carry:
            new = iter(parts)
            return jax.tree.unflatten(structure, [next(new) if m else leaf for leaf, m in zip(leaves, self.moves)])

        return moving, merge

    def to_vector(self, parts: list[Array]) -> Array:
        """Joins arrays like the parts, `[*batch, ...]` each, to `[*batch, n]`."""
        return vectors_of(parts, self)

    def to_parts(self, vector: Array) -> list[Array]:
        """Splits `[*batch, n]` into arrays like the parts."""
        pieces = jnp.split(vector, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        parts = []
        for piece, part in zip(pieces, self.parts):
            if _is_complex(part):
                real, imaginary = jnp.split(piece, 2, axis=-1)
                piece = jax.lax.complex(real, imaginary)
            parts.append(piece.astype(part.dtype).reshape(*self.batch_shape, *part.shape))
        return parts


def _is_complex(part: Any) -> bool:
    return jnp.issubdtype(part.dtype, jnp.complexfloating)


def coordinates(call: LayerCall) -> Coordinates:
    """Returns the coordinates of the carry of a call.

    Raises:
      ValueError: if no part of the carry can change by a small number.
    """
    leaves, batch = jax.tree.leaves(call.carry), call.batch_shape
    moves = tuple(is_inexact(leaf) and has_batch_axes(leaf, batch) for leaf in leaves)
    if not any(moves):
        raise ValueError(
            f"the carry of layer {call.layer!r} has no floating-point part with an entry for each sequence; allowed:"
            " one at least, to take derivatives of."
        )
    parts = tuple(jax.ShapeDtypeStruct(leaf.shape[len(batch) :], leaf.dtype) for leaf, m in zip(leaves, moves) if m)
    names = tuple(name for name, m in zip(carry_names(call.cell, call.carry), moves) if m)
    return Coordinates(batch, moves, parts, names)


def check_count(k: int | None, size: int) -> int:
    """Returns how many values are wanted; raises ValueError unless 1 to n, the real numbers of a carry."""
    if k is not None and not 1 <= k <= size:
        raise ValueError(f"k={k} is out of range; allowed: 1 to {size}, the real numbers in a sequence's carry.")
    return size if k is None else k


def check_start(name: str, start: int, time: int) -> None:
    """Raises ValueError unless a step is one of the run, from 0 on."""
    if not 0 <= start < time:
        raise ValueError(f"{name}={start} is out of range; allowed: 0 to {time - 1}, as the sequence has {time} steps.")


def push(
    run: Run, space: Coordinates, carry: Carry, inputs: Steps, tangents: Array
) -> tuple[Carry, PyTree, Array, Array]:
    """Runs one step and pushes tangent vectors of the carry through it: products with its Jacobian.

    The sequences of a batch are independent of each other, so that one derivative of the batched step serves all.

    Args:
      run, space: of the call.
      carry: before the step.
      inputs: of the step.
      tangents: `[*batch, n, k]`, k vectors for each sequence.

    Returns:
      The next carry, the output, the tangents of the next carry, and those of the output, `[*batch, outputs, k]`.
    """
    parts, merge = space.split(carry)

    def step(parts: list[Array]) -> tuple[Any, tuple[Carry, PyTree]]:
        carry, y = run.step(merge(parts), inputs)
        return (space.split(carry)[0], [leaf for leaf in jax.tree.leaves(y) if is_inexact(leaf)]), (carry, y)

    _, linear, (carry, y) = jax.linearize(step, parts, has_aux=True)

    def push_one(tangent: Array) -> tuple[Array, Array]:
        parts, of_y = linear(space.to_parts(tangent))
        return space.to_vector(parts), vectors_of(of_y, space)

    return carry, y, *jax.vmap(push_one, -1, -1)(tangents)


def vectors_of(arrays: list[Array], space: Coordinates) -> Array:
    """Joins arrays `[*batch, ...]` to vectors `[*batch, size]` of the real type of the coordinates."""
    rows = [array.reshape(*space.batch_shape, -1) for array in arrays]
    rows = [part for row in rows for part in ([jnp.real(row), jnp.imag(row)] if jnp.iscomplexobj(row) else [row])]
    return jnp.concatenate([row.astype(space.dtype) for row in rows], axis=-1)


def check_finite(call: LayerCall) -> None:
    """Raises ValueError if a true input, the carry or the context of a call holds a NaN or an infinity.

    Only where values can be known: inside `jax.jit` an instrument shows NaN there.
    """
    axis = len(call.batch_shape)
    for name, tree in (("input", call.xs), ("carry", call.carry), ("context", call.context)):
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.core.Tracer) or not is_inexact(leaf):
                continue
            wrong = ~np.isfinite(np.asarray(leaf))
            if name == "input":
                wrong = wrong.reshape(*wrong.shape[: axis + 1], -1).any(axis=-1)
                if call.lengths is not None:
                    if isinstance(call.lengths, jax.core.Tracer):
                        continue
                    wrong &= np.arange(call.time) < np.asarray(call.lengths)[..., None]
            if wrong.any():
                where_wrong = tuple(int(index) for index in np.argwhere(wrong)[0])
                at = f" at time step {where_wrong[axis]}" if name == "input" else ""
                raise ValueError(
                    f"the {name} of layer {call.layer!r} is not finite{at}{example(where_wrong[:axis])};"
                    " allowed: numbers."
                )


def has_nan(result: PyTree) -> bool:
    """Whether an array holds a NaN; False where values cannot be known."""
    leaves = [leaf for leaf in jax.tree.leaves(result) if is_inexact(leaf)]
    return any(not isinstance(leaf, jax.core.Tracer) and np.isnan(np.asarray(leaf)).any() for leaf in leaves)


def refuse_nan(call: LayerCall, result: PyTree) -> None:
    """Raises ValueError if a result holds a NaN, where values can be known; it says where the carry went wrong."""
    if not has_nan(result) or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((call.xs, call.carry))):
        return
    _refuse_carry(call)
    raise ValueError(
        f"a derivative of layer {call.layer!r} is not finite, though its inputs and its carry are; allowed: a step"
        " whose derivative is."
    )


def refuse_inputs(function: Callable[[PyTree], Any], model: PyTree) -> None:
    """Raises ValueError if an input, a first carry or a context of a layer that the function runs is not finite."""
    for calls in layer_calls(function, model).values():
        for call in calls:
            check_finite(call)


def refuse_gradient(function: Callable[[PyTree], Any], model: PyTree) -> None:
    """Raises ValueError for a gradient that is not finite; it says at which input or carry of a layer that begins."""
    for calls in layer_calls(function, model).values():
        for call in calls:
            check_finite(call)
            _refuse_carry(call)
    raise ValueError("the gradient of loss_fn is 0 or not finite, though every carry is; allowed: another loss.")


def _refuse_carry(call: LayerCall) -> None:
    """Raises ValueError if the carry of a call is not finite behind one of its steps."""
    run = in_run_order(call)

    def step(carry: Carry, inputs: Steps) -> tuple[Carry, Array]:
        carry, _ = run.step(carry, inputs)
        wrong = jnp.zeros(call.batch_shape, bool)
        for leaf in jax.tree.leaves(carry):
            if is_inexact(leaf) and has_batch_axes(leaf, call.batch_shape):
                wrong |= jnp.any(~jnp.isfinite(leaf.reshape(*call.batch_shape, -1)), axis=-1)
        return carry, wrong

    wrong = np.asarray(jax.lax.scan(step, call.carry, run.steps)[1])
    if wrong.any():
        step_number, *index = (int(k) for k in np.argwhere(wrong)[0])
        if call.reverse:
            step_number = int(np.asarray(run.lengths)[tuple(index)]) - 1 - step_number
        raise ValueError(
            f"the carry of layer {call.layer!r} is not finite behind time step {step_number}{example(tuple(index))};"
            " allowed: a cell that stays finite on its inputs."
        )


def example(index: tuple[int, ...]) -> str:
    """Returns " of example 3" for an index into the batch axes."""
    return f" of example {index[0] if len(index) == 1 else index}" if index else ""
