"""How a cell is carried through time: one function, `unroll`, and one file for each method."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters.ad import JVPTracer

from rnn_jax.cell import AffineCell
from rnn_jax.unroll.affine import scan_affine
from rnn_jax.unroll.running_scale import Tap, TapRequest, is_inexact, zero_like_all
from rnn_jax.unroll.sequential import State, Steps, over_segments, scan_cell, start_of_scale, where
from rnn_jax.unroll.sharded import BATCH as BATCH
from rnn_jax.unroll.sharded import batch_mesh as batch_mesh
from rnn_jax.unroll.sharded import over_batch

Array = jax.Array
Carry = Any

METHODS = ("sequential", "scan")

_KEPT_BYTES = 2**30


def unroll(
    cell: nnx.RNNCellBase,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    method: str = "sequential",
    unroll: int = 1,
    checkpoint_every: int | None = None,
    truncate_every: int | None = None,
    rngs: nnx.Rngs | nnx.RngStream | None = None,
    tap: Tap | TapRequest | None = None,
) -> tuple[Carry, Array]:
    """Carries a cell through time: `carry, y_t = cell(carry, x_t)` for every step.

    Under `jax.set_mesh(batch_mesh())` the batch is spread over devices (`rnn_jax.unroll.sharded`).

    Args:
      cell: any `flax.nnx.RNNCellBase`, of this library, of Flax or of one's own.
      xs: `[*batch, time, ...features]`, any number of batch axes.
      carry: the carry before the first step; by default what `cell.initialize_carry` makes.
      lengths: int `[*batch]`, 0 to time. From step `lengths` on a sequence is padding, which may hold anything: it
        changes neither carry nor gradient, and its outputs are 0. No new compilation for new values.
      resets: bool `[*batch, time]`. Where True, the carry is made new before that step: a sequence begins there.
        (In the direction of the run: with `reverse`, a sequence's last step is where one resets.)
      reverse: runs from the last step to the first. Outputs stay at the step of their input.
      method: `sequential` takes the fast path if the cell is an `AffineCell`, and else the plain scan; `scan` always
        takes the plain one. Both give the same results, and gradients of any order. For a forward-mode derivative
        (`jax.jvp`, `jax.jacfwd`) `sequential` takes the plain scan by itself where it sees one coming; it cannot
        inside `jax.jit`, `jax.vmap` or `jax.linearize`, where JAX then complains of a `custom_vjp`: say `scan`.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`.
      checkpoint_every: keeps only every so many-th carry for the backward pass and computes the steps between anew:
        memory for sqrt(time) steps instead of time, for the price of one more forward pass. 0 keeps all. By default
        about sqrt(time) where more than a gigabyte would be kept, else 0. Results are the same.
      truncate_every: truncated back-propagation through time: no gradient flows between pieces of so many steps.
        Outputs are the same.
      rngs: for a random initial carry.
      tap: what to record of the adjoint on its way back; `rnn_jax.flow` makes these.

    Returns:
      The final carry (after step `lengths` of each sequence), and ys `[*batch, time, ...]`.

    Raises:
      ValueError: for shapes that do not fit, a length beyond the sequence, an unknown method.
    """
    for name, value, least in (("checkpoint_every", checkpoint_every, 0), ("truncate_every", truncate_every, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is no number of steps; allowed: {least} or more, or None.")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; allowed: {', '.join(METHODS)}.")
    time_axis = xs.ndim - cell.num_feature_axes - 1
    if time_axis < 0:
        raise ValueError(
            f"xs has shape {xs.shape}; allowed: [*batch, time, ...features] with {cell.num_feature_axes} feature axes."
        )
    batch_shape, time = xs.shape[:time_axis], xs.shape[time_axis]
    step_shape = (*batch_shape, *xs.shape[time_axis + 1 :])
    if lengths is not None:
        lengths = check_lengths(lengths, batch_shape, time)
    if resets is not None and resets.shape != (*batch_shape, time):
        raise ValueError(f"resets has shape {resets.shape}; allowed: [*batch, time], here {(*batch_shape, time)}.")

    fresh_carry = None
    if carry is None or resets is not None:
        fresh_carry = cell.initialize_carry(step_shape, nnx.Rngs(0) if rngs is None else rngs)
    carry = fresh_carry if carry is None else fit_carry(cell, carry, step_shape)
    if isinstance(tap, TapRequest):
        tap.note(cell, carry, batch_shape, time)
        tap = None

    xs = jnp.moveaxis(xs, time_axis, 0)
    active = None
    if lengths is not None:
        active = jnp.arange(time, dtype=jnp.int32).reshape((time,) + (1,) * lengths.ndim) < lengths[None]
        xs = where(active, xs, jnp.zeros_like(xs))  # padding may hold anything, NaN included
    resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    steps = Steps(xs, active, resets, None if tap is None else tap.zeros)

    fast = method == "sequential" and _fits_fast_path(cell, (cell, xs, carry, fresh_carry))
    scan: Callable[..., tuple[State, Array]] = scan_affine if fast else scan_cell

    state = (carry, jnp.zeros((), jnp.float32))
    if tap is not None:
        state = start_of_scale(tap, carry, zero_like_all((cell, xs, carry)))
    if checkpoint_every is None:
        checkpoint_every = _default_checkpoint(carry, xs, fast)

    def run(operands: tuple[nnx.RNNCellBase, Carry | None], state: State, steps: Steps) -> tuple[State, Array]:
        cell, fresh_carry = operands
        record = None if tap is None else tap.record
        run = partial(scan, cell, fresh_carry=fresh_carry, record=record, reverse=reverse, unroll=unroll)
        if checkpoint_every:
            run = partial(over_segments, jax.checkpoint(run), reverse=reverse, size=checkpoint_every)
        if truncate_every is not None:
            run = partial(_truncated, run, reverse=reverse, size=truncate_every)
        return run(state, steps)

    spread = run if tap is not None else over_batch(run, (carry, fresh_carry), batch_shape)
    state, ys = spread((cell, fresh_carry), state, steps)
    return state[0], jnp.moveaxis(ys, 0, time_axis)


def _default_checkpoint(carry: Carry, xs: Array, fast: bool) -> int:
    """Returns about sqrt(time), if what the backward pass would keep is likely to be above `_KEPT_BYTES`; else 0."""
    time = xs.shape[0]
    step_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carry))
    kept = 1 if fast else 6  # times the carry: the plain scan keeps what JAX needs to differentiate a step
    return math.isqrt(time) if kept * step_bytes * time > _KEPT_BYTES else 0


def _truncated(
    run: Callable[[State, Steps], tuple[State, Array]], state: State, steps: Steps, *, reverse: bool, size: int
) -> tuple[State, Array]:
    """Runs pieces of the sequence between which no gradient flows; the first one hangs on the caller's carry."""

    def piece(first_and_state, steps):
        first, (carry, e) = first_and_state
        carry = jax.tree.map(lambda part: jnp.where(first, part, jax.lax.stop_gradient(part)), carry)
        state, ys = run((carry, e), steps)
        return (jnp.zeros_like(first), state), ys

    (_, state), ys = over_segments(piece, (jnp.ones((), bool), state), steps, reverse=reverse, size=size)
    return state, ys


def _fits_fast_path(cell: nnx.RNNCellBase, operands: Any) -> bool:
    """Whether the cell is affine, with inexact parameters only, and nobody asks for a forward derivative."""
    leaves = jax.tree.leaves(operands)
    return (
        isinstance(cell, AffineCell)
        and type(cell).__call__ is AffineCell.__call__
        and all(is_inexact(x) for x in leaves)
        and not any(isinstance(x, JVPTracer) for x in leaves)
    )


def check_lengths(lengths: Array, batch_shape: tuple[int, ...], time: int) -> Array:
    """Returns `lengths` as an int32 array `[*batch]`.

    Raises:
      ValueError: if its shape is not that of the batch, its dtype not integer, or a value (where it can be known: not
        inside `jax.jit`) not within 0 and time.
    """
    lengths = jnp.asarray(lengths)
    if lengths.shape != batch_shape or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths has shape {lengths.shape} and dtype {lengths.dtype}; allowed: integers of shape {batch_shape}."
        )
    if not isinstance(lengths, jax.core.Tracer):
        wrong = np.asarray(lengths)[(np.asarray(lengths) < 0) | (np.asarray(lengths) > time)]
        if wrong.size:
            raise ValueError(f"lengths holds {wrong[0]}; allowed: 0 to {time}, the number of time steps.")
    return lengths.astype(jnp.int32)


def fit_carry(cell: nnx.RNNCellBase, carry: Carry, step_shape: tuple[int, ...]) -> Carry:
    """Returns the carry in the pytree structure of the cell's own (a bare tuple becomes an `LSTMCarry`).

    Raises:
      ValueError: if it has not as many arrays as the cell's carry, or not their shapes.
    """
    own = jax.eval_shape(lambda: cell.initialize_carry(step_shape, nnx.Rngs(0)))
    given, wanted = jax.tree.leaves(carry), jax.tree.leaves(own)
    shapes = [jnp.shape(x) for x in given]
    if shapes != [x.shape for x in wanted]:
        raise ValueError(f"carry has arrays of shapes {shapes}; allowed: {[x.shape for x in wanted]}.")
    return jax.tree.unflatten(jax.tree.structure(own), given)
