"""Carries a cell through time one step after another, with `jax.lax.scan`: the general form, for any cell.

In plain Python, for one sequence:

    for t in range(len(xs)):
        if resets is not None and resets[t]:
            carry = fresh_carry
        if lengths is None or t < lengths:
            carry, ys[t] = step(cell, carry, xs[t], context=context, key=jax.random.fold_in(key, t))
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import check_step
from rnn_jax.cell import step as step_of
from rnn_jax.unroll.running_scale import Probe, Record, is_inexact, record_share, rescale, times_power_of_two, unscale

Array = jax.Array
Carry = Any
PyTree = Any
State = tuple[Carry, Array]  # the carry, and the scale token of `running_scale` that runs beside it


class Steps(NamedTuple):
    """What comes in at each step, time-major.

    Attributes:
      x: `[time, *batch, ...features]`, or a pytree of such arrays.
      active: bool `[time, *batch]`, False at padded steps; None if there are none.
      reset: bool `[time, *batch]`, or None.
      probe: the zeros of a `Probe`, or None.
      key: of `jax.random`, `[time]`, or None.
      cut: bool `[time]`, True where no gradient flows to the step before, or None.
      share: the zeros of `Probe.shares`, or None.
    """

    x: PyTree
    active: Array | None
    reset: Array | None
    probe: PyTree
    key: Array | None = None
    cut: Array | None = None
    share: Array | None = None


Run = Callable[[State, Steps], tuple[State, Any]]  # all steps, from the state before them


def scan_cell(
    cell: nnx.RNNCellBase,
    state: State,
    steps: Steps,
    *,
    fresh_carry: Carry | None,
    context: PyTree,
    record: Record | None,
    reverse: bool,
    unroll: int,
    batch_axes: int,
) -> tuple[State, Any]:
    """Runs the cell over time.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      state: carry and scale token before the first step.
      steps: the inputs.
      fresh_carry: what a reset puts in the place of the carry.
      context: of a cell that asks for it, `[*batch, ...]`, or None.
      record: of the `Probe` whose zeros are in `steps`.
      reverse: from the last step to the first.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`.
      batch_axes: how many axes of the inputs are of the batch.

    Returns:
      The final state, and ys, `[time, *batch, ...]` each, zero at padded steps.
    """

    def step(state, inputs):
        (carry, scale_token), operands = state, (cell, inputs.x, fresh_carry, context)
        if record is not None:
            operands, scale_token = unscale(operands, scale_token)
        cell_t, x, fresh, context_t = operands
        if inputs.share is not None:
            cell_t, scale_token = record_share(cell_t, scale_token, inputs.share)
        if inputs.cut is not None:
            carry = _cut(carry, inputs.cut)
        carry, y = one_step(
            cell_t, carry, inputs._replace(x=x), fresh_carry=fresh, context=context_t, batch_axes=batch_axes
        )
        if record is not None:
            carry, y, scale_token = rescale(record, carry, y, scale_token, inputs.probe)
        return (carry, scale_token), y

    return jax.lax.scan(step, state, steps, reverse=reverse, unroll=unroll)


def one_step(
    cell: nnx.RNNCellBase, carry: Carry, inputs: Steps, *, fresh_carry: Carry | None, context: PyTree, batch_axes: int
) -> tuple[Carry, Any]:
    """Runs one step, with its reset before it; a padded step holds the carry and puts out zeros.

    Args:
      cell, fresh_carry, context, batch_axes: as `scan_cell`.
      carry: before the step.
      inputs: of one step, without the axis of time.
    """
    old, active = carry, inputs.active
    if inputs.reset is not None:
        carry = jax.tree.map(partial(where_batched, inputs.reset), fresh_carry, carry, carry)
    returned = step_of(cell, carry, inputs.x, context=context, key=inputs.key)
    check_step(cell, carry, returned, jax.tree.leaves(inputs.x)[0].shape[:batch_axes])
    carry, y = returned
    if active is not None:
        carry = jax.tree.map(partial(where_batched, active), carry, old, carry)
        y = jax.tree.map(lambda part: where(active, part, jnp.zeros_like(part)), y)
    return carry, y


def default_unroll() -> int:
    """Returns how many steps one iteration of a loop takes.

    On an H200, 8 made the gradient of an LSTM, a GRU and an Elman network 1.4 to 1.8 times as fast as 1 did (batches of
    32 and 128, 64 and 256 features); 4 were up to 10 % slower than 8, and 16 up to 10 % faster. On a CPU more than 1
    gains nothing.
    """
    return 8 if jax.default_backend() == "gpu" else 1


def where(condition: Array, x: Array, y: Array) -> Array:
    """`jnp.where` for a condition over the leading (batch) axes of x and y."""
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)


def has_batch_axes(part: Array, batch_shape: tuple[int, ...]) -> bool:
    """Whether a part of a carry has a value for each sequence; if not (a counter of steps), all share one."""
    return part.shape[: len(batch_shape)] == batch_shape


def where_batched(condition: Array, x: Array, y: Array, shared: Array) -> Array:
    """As `where` for a part of the carry that has batch axes; `shared` for one that has none."""
    return where(condition, x, y) if has_batch_axes(x, condition.shape) else shared


def over_segments(
    segment: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    inputs: PyTree,
    *,
    reverse: bool,
    size: int,
    rows: PyTree = None,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` of `segment(state, inputs)` over pieces of at most `size` steps, outputs joined along time.

    Pieces are of one size but for a shorter one at the end, if there must be one.

    Args:
      segment: takes a state and the inputs of some steps; returns the next state and outputs `[steps, ...]`.
      state: before the first piece that is run.
      inputs: pytree of `[time, ...]`.
      reverse: from the last piece to the first.
      size: steps in a piece, at most.
      rows: if given, pytree of `[pieces, ...]` in the order of time, and `segment` takes (inputs, row of the piece).
    """
    time = jax.tree.leaves(inputs)[0].shape[0]
    last_row = jax.tree.map(lambda a: a[-1], rows)
    if time <= size:
        return segment(state, inputs if rows is None else (inputs, last_row))
    count = time // size
    whole = count * size
    pieces = jax.tree.map(lambda a: a[:whole].reshape(count, size, *a.shape[1:]), inputs)
    rest = jax.tree.map(lambda a: a[whole:], inputs)
    if rows is not None:
        pieces, rest = (pieces, jax.tree.map(lambda a: a[:count], rows)), (rest, last_row)
    if whole < time and reverse:
        state, rest_outputs = segment(state, rest)
    state, outputs = jax.lax.scan(segment, state, pieces, reverse=reverse)
    outputs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outputs)
    if whole < time and not reverse:
        state, rest_outputs = segment(state, rest)
    if whole < time:
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, rest_outputs)
    return state, outputs


def even_size(time: int, max_size: int) -> int:
    """Returns the size of pieces of at most `max_size` steps (at least 1) that divide `time` evenly.

    Where no size between the half of `max_size` and `max_size` does, the last piece is shorter (the inputs are copied).
    """
    max_size = max(1, min(max_size, time))
    even = next((size for size in range(max_size, max_size // 2, -1) if time % size == 0), None)
    return even or -(-time // -(-time // max_size))


@jax.custom_vjp
def _cut(carry: Carry, cut: Array) -> Carry:
    """Identity whose backward pass stops where `cut` is True. Under `jax.vmap` all cuts share the forward pass."""
    del cut
    return carry


def _cut_fwd(carry, cut):
    return carry, cut


def _cut_bwd(cut, a):
    return stopped(cut, a), None


_cut.defvjp(_cut_fwd, _cut_bwd)


def stopped(cut: Array, adjoint: Carry) -> Carry:
    """Returns the adjoint, zeros if the scalar `cut` is True."""
    return jax.tree.map(lambda part: jnp.where(cut, jnp.zeros_like(part), part) if is_inexact(part) else part, adjoint)


@jax.custom_vjp
def start_of_scale(probe: Probe, carry: Carry, scale_token: Array) -> State:
    """Identity before the first step: brings the adjoint of the initial carry to its true scale; counts the run."""
    del probe
    return carry, scale_token


def _start_fwd(probe, carry, scale_token):
    return (carry, scale_token), probe


def _start_bwd(probe, cotangents):
    carry, log2_scale = cotangents
    # A one for each run. It depends on the scale, so that `jax.vmap` maps it wherever it maps the scale.
    zeros, shares = jax.tree.map(jnp.zeros_like, (probe.zeros, probe.shares))
    counted = Probe(zeros, 1.0 + 0.0 * log2_scale, probe.record, shares)
    return counted, times_power_of_two(carry, log2_scale), jnp.zeros_like(log2_scale)


start_of_scale.defvjp(_start_fwd, _start_bwd)
