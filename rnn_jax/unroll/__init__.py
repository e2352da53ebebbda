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

from rnn_jax.cell import PointwiseCell, carry_names, check_input
from rnn_jax.constant import Constant
from rnn_jax.unroll.carry import fit_carry as fit_carry
from rnn_jax.unroll.fused import hidden_reads_parameters, known_size, scan_fused
from rnn_jax.unroll.record import CallRecorder, LayerCall
from rnn_jax.unroll.running_scale import Probe, is_inexact, zero_like_all
from rnn_jax.unroll.scan import State, Steps, has_batch_axes, over_segments, scan_cell, start_of_scale, where
from rnn_jax.unroll.sharded import BATCH as BATCH
from rnn_jax.unroll.sharded import batch_mesh as batch_mesh
from rnn_jax.unroll.sharded import over_batch

Array = jax.Array
Carry = Any

METHODS = ("auto", "fused", "scan")

_KEPT_BYTES = 2**30


def unroll(
    cell: nnx.RNNCellBase,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    method: str = "auto",
    unroll: int = 1,
    checkpoint_every: int | None = None,
    truncate_every: int | None = None,
    rngs: nnx.Rngs | nnx.RngStream | None = None,
    probe: Probe | CallRecorder | None = None,
) -> tuple[Carry, Any]:
    """Carries a cell through time: `carry, y_t = cell(carry, x_t)` for every step.

    Under `jax.set_mesh(batch_mesh())` the batch is spread over devices (`rnn_jax.unroll.sharded`).

    Args:
      cell: any `flax.nnx.RNNCellBase`, of this library, of Flax or of the user. A step changes nothing but the carry:
        a cell whose step updates its variables (`nnx.Dropout`, `nnx.BatchNorm`, a counter) runs in `rnn_jax.RNN` only.
      xs: `[*batch, time, ...features]`, any number of batch axes.
      carry: the carry before the first step; by default what `cell.initialize_carry` makes. It is matched to the
        cell's own by the names of its parts, where both have names, else by their order, and cast to its types.
      lengths: int `[*batch]`, 0 to time. From step `lengths` on a sequence is padding, which may hold anything: it
        changes neither carry nor gradient, and its outputs are 0. No new compilation for new values. Within `jax.jit`,
        where values cannot be checked, those beyond the range are taken as 0 or time. A part of the carry without
        batch axes goes on through padding, and no reset changes it.
      resets: bool `[*batch, time]`. Where True, the carry is made new before that step: a sequence begins there.
        (In the direction of the run: with `reverse`, a sequence's last step is where one resets.)
      reverse: runs from the last step to the first. Outputs stay at the step of their input.
      method: `fused`, the fast path of a `PointwiseCell`; `scan`, the plain scan of any cell; or `auto`, the fast path
        where it can run and else the plain scan (`fused_obstacle` says why). All give the same results, and gradients
        of any order. For a forward-mode derivative (`jax.jvp`, `jax.jacfwd`) `auto` takes the plain scan where it sees
        one coming. It cannot see it inside `jax.jit`, `jax.vmap` or `jax.linearize`, where JAX then raises an error
        about `custom_vjp`: use `scan` there.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`.
      checkpoint_every: keeps only every so many-th carry for the backward pass and computes the steps between again:
        memory for sqrt(time) steps instead of time, for the price of one more forward pass. 0 keeps all. By default
        about sqrt(time) where more than a gigabyte would be kept, else 0. Results are the same.
      truncate_every: truncated back-propagation through time: no gradient flows between pieces of so many steps.
        Outputs are the same.
      rngs: for a random initial carry.
      probe: what to record of the adjoint on its way back, or of the call; `rnn_jax.flow` makes these.

    Returns:
      The final carry (after step `lengths` of each sequence), and ys: the outputs, `[*batch, time, ...]` each.

    Raises:
      ValueError: for shapes that do not fit, a length beyond the sequence, a method that is unknown or cannot run the
        cell, a cell whose step updates variables of its own.
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
    check_input(cell, xs)
    batch_shape, time = xs.shape[:time_axis], xs.shape[time_axis]
    step_shape = (*batch_shape, *xs.shape[time_axis + 1 :])
    if updates_variables(cell, jax.ShapeDtypeStruct(step_shape, xs.dtype), carry):
        raise ValueError(
            f"a step of {type(cell).__name__} updates variables of the cell; allowed: a cell that keeps its state in"
            " the carry, or rnn_jax.RNN around it, which runs such a cell by flax.nnx.RNN."
        )
    if lengths is not None:
        lengths = check_lengths(lengths, batch_shape, time)
    if resets is not None and resets.shape != (*batch_shape, time):
        raise ValueError(f"resets has shape {resets.shape}; allowed: [*batch, time], here {(*batch_shape, time)}.")

    fresh_carry = None
    if carry is None or resets is not None:
        fresh_carry = cell.initialize_carry(step_shape, nnx.Rngs(0) if rngs is None else rngs)
    carry = fresh_carry if carry is None else fit_carry(cell, carry, step_shape)
    recorder, probe = (probe, None) if isinstance(probe, CallRecorder) else (None, probe)
    call = LayerCall(cell, xs, carry, lengths, resets, reverse, batch_shape, time)

    obstacle = fused_obstacle(cell, xs, carry)
    if method == "fused" and obstacle is not None:
        raise ValueError(f"method='fused' cannot run this cell, as {obstacle}; allowed: auto, scan.")
    fast = method != "scan" and obstacle is None
    carry, fresh_carry = _varying((carry, fresh_carry), (cell, xs, carry))
    if fast:  # so that the gradient of what all devices share is summed over them, once for each parameter
        cell, xs = _varying((cell, xs), (xs, carry))
    xs = jnp.moveaxis(xs, time_axis, 0)
    active = None
    if lengths is not None:
        active = jnp.arange(time, dtype=jnp.int32).reshape((time,) + (1,) * lengths.ndim) < lengths[None]
        xs = where(active, xs, jnp.zeros_like(xs))  # padding may hold anything, NaN included
    resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    steps = Steps(xs, active, resets, None if probe is None else probe.zeros)

    scan: Callable[..., tuple[State, Any]] = scan_fused if fast else scan_cell
    state = (carry, jnp.zeros((), jnp.float32))
    if probe is not None:
        state = start_of_scale(probe, carry, zero_like_all((cell, xs, carry)))
    if checkpoint_every is None:
        checkpoint_every = _default_checkpoint(carry, xs, fast)

    def run(operands: tuple[nnx.RNNCellBase, Carry | None], state: State, steps: Steps) -> tuple[State, Any]:
        cell, fresh_carry = operands
        record = None if probe is None else probe.record
        run = partial(scan, cell, fresh_carry=fresh_carry, record=record, reverse=reverse, unroll=unroll)
        if checkpoint_every:
            run = partial(over_segments, jax.checkpoint(run), reverse=reverse, size=checkpoint_every)
        if truncate_every is not None:
            run = partial(_truncated, run, reverse=reverse, size=truncate_every)
        return run(state, steps)

    spread = run if probe is not None else over_batch(run, (carry, fresh_carry), batch_shape)
    state, ys = spread((cell, fresh_carry), state, steps)
    ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), ys)
    if recorder is not None:
        recorder.note(call, state[0], ys)
    return state[0], ys


def _default_checkpoint(carry: Carry, xs: Array, fast: bool) -> int:
    """Returns about sqrt(time), if what the backward pass would keep is likely to be above `_KEPT_BYTES`; else 0."""
    time = xs.shape[0]
    if not isinstance(time, int):  # symbolic, within jax.export
        return 0
    step_bytes = sum(known_size(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(carry))
    kept = 1 if fast else 6  # times the carry: the plain scan keeps what JAX needs to differentiate a step
    return math.isqrt(time) if kept * step_bytes * time > _KEPT_BYTES else 0


def _truncated(
    run: Callable[[State, Steps], tuple[State, Array]], state: State, steps: Steps, *, reverse: bool, size: int
) -> tuple[State, Array]:
    """Runs pieces of the sequence between which no gradient flows; the first one hangs on the caller's carry."""

    def piece(first_and_state, steps):
        first, (carry, scale_token) = first_and_state
        carry = jax.tree.map(lambda part: jnp.where(first, part, jax.lax.stop_gradient(part)), carry)
        state, ys = run((carry, scale_token), steps)
        return (jnp.zeros_like(first), state), ys

    (_, state), ys = over_segments(piece, (jnp.ones((), bool), state), steps, reverse=reverse, size=size)
    return state, ys


def fused_obstacle(cell: nnx.RNNCellBase, xs: Array, carry: Carry | None = None) -> str | None:
    """Says why `unroll` runs a cell by the plain scan; None if it takes the fast path.

    Args:
      cell, xs, carry: as `unroll`; `xs` and `carry` may be abstract (`jax.ShapeDtypeStruct`).
    """
    if not isinstance(cell, PointwiseCell):
        return f"{type(cell).__name__} is not a PointwiseCell"
    if type(cell).__call__ is not PointwiseCell.__call__:
        return f"{type(cell).__name__} has a __call__ of its own"
    if xs.ndim < 2 or not isinstance(xs.shape[-2], int):
        return "the number of time steps is symbolic"
    if not is_inexact(xs):
        return f"the inputs are {xs.dtype}"
    batch_shape = xs.shape[:-2]
    if carry is None:
        carry = jax.eval_shape(lambda: cell.initialize_carry((*batch_shape, xs.shape[-1]), nnx.Rngs(0)))
    for name, part in zip(carry_names(cell, carry), jax.tree.leaves(carry)):
        if not is_inexact(part):
            return f"the part {name!r} of the carry is {part.dtype}"
        if not has_batch_axes(part, batch_shape):
            return f"the part {name!r} of the carry has no batch axes"
    if not all(is_inexact(leaf) for leaf in jax.tree.leaves(cell)):
        return "the cell holds an array that is not floating-point"
    if hidden_reads_parameters(cell, carry):
        return "`hidden` reads a parameter"
    if any(isinstance(leaf, JVPTracer) for leaf in jax.tree.leaves((cell, xs, carry))):
        return "a forward-mode derivative is taken"
    return None


def updates_variables(cell: nnx.RNNCellBase, x: jax.ShapeDtypeStruct, carry: Carry | None = None) -> bool:
    """Whether a step of the cell updates a variable of the cell: a count of random numbers, a running mean.

    Args:
      cell, carry: as `unroll`.
      x: shape and type of one step's input, `[*batch, ...features]`.
    """

    def variables(cell: nnx.RNNCellBase) -> list[nnx.Variable]:
        return [node for node in jax.tree.leaves(cell, is_leaf=_is_variable) if _is_variable(node)]

    if all(isinstance(variable, nnx.Param | Constant) for variable in variables(cell)):
        return False

    updated = False

    def step(cell: nnx.RNNCellBase, x: Array, carry: Carry | None) -> None:
        nonlocal updated
        before = [variable.get_raw_value() for variable in variables(cell)]
        cell(cell.initialize_carry(x.shape, nnx.Rngs(0)) if carry is None else carry, x)
        after = [variable.get_raw_value() for variable in variables(cell)]
        updated = any(old is not new for old, new in zip(before, after, strict=True))

    jax.eval_shape(step, cell, x, carry)
    return updated


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _varying(tree: Any, like: Any) -> Any:
    """Marks arrays as different on each device of `jax.shard_map` over the axes over which an array of `like` is."""
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(like)))

    def cast(leaf: Array) -> Array:
        missing = axes - _varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def _varying_axes(leaf: Array) -> frozenset[str]:
    """Returns the axes of `jax.shard_map` over which an array differs."""
    of = jax.typeof(leaf)
    return of.vma if hasattr(of, "vma") else of.manual_axis_type.varying  # before and since JAX 0.10


def check_lengths(lengths: Array, batch_shape: tuple[int, ...], time: int) -> Array:
    """Returns `lengths` as an int32 array `[*batch]`, within 0 and time.

    Raises:
      ValueError: if its shape is not that of the batch, its dtype not integer, or a value (where it can be known: not
        inside `jax.jit`, where it is clipped) not within 0 and time.
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
    return clip_lengths(lengths, time)


def clip_lengths(lengths: Array, time: int) -> Array:
    """Returns integer `lengths` of any type within 0 and time, as int32."""
    wide = lengths.astype(jnp.int32) if lengths.dtype.itemsize < 4 else lengths
    return jnp.clip(wide, 0, time).astype(jnp.int32)
