"""How a cell is carried through time: one function, `unroll`.

One file for each driver (`scan`, `fused`), one for each way to take the gradient (`whole`, `checkpointed`,
`truncated`), and one for what is recorded on the way (`running_scale`, `record`).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters.ad import JVPTracer

from rnn_jax.cell import PointwiseCell, asks_for, carry_names, step
from rnn_jax.constant import Constant
from rnn_jax.unroll.carry import fit_carry as fit_carry
from rnn_jax.unroll.checkpointed import Checkpointed, default_gradient
from rnn_jax.unroll.fused import hidden_reads_parameters, scan_fused
from rnn_jax.unroll.inputs import abstract_step, check_context, input_axes
from rnn_jax.unroll.inputs import check_lengths as check_lengths
from rnn_jax.unroll.record import CallProbes, CallRecorder, LayerCall
from rnn_jax.unroll.running_scale import Probe, is_inexact, zero_like_all
from rnn_jax.unroll.scan import State, Steps, default_unroll, has_batch_axes, scan_cell, start_of_scale, where
from rnn_jax.unroll.sharded import BATCH as BATCH
from rnn_jax.unroll.sharded import batch_mesh as batch_mesh
from rnn_jax.unroll.sharded import over_batch
from rnn_jax.unroll.truncated import Truncated, TruncatedAt
from rnn_jax.unroll.whole import Whole

Array = jax.Array
Carry = Any
PyTree = Any

METHODS = ("auto", "fused", "scan")


def unroll(
    cell: nnx.RNNCellBase,
    xs: PyTree,
    carry: Carry | None = None,
    *,
    context: PyTree = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
    method: str = "auto",
    unroll: int | None = None,
    gradient: Whole | Checkpointed | Truncated | None = None,
    rngs: nnx.Rngs | nnx.RngStream | None = None,
    probe: Probe | CallProbes | CallRecorder | TruncatedAt | None = None,
) -> tuple[Carry, Any]:
    """Carries a cell through time: `carry, y_t = cell(carry, x_t)` for every step.

    Under `jax.set_mesh(batch_mesh())` the batch is spread over devices (`rnn_jax.unroll.sharded`).

    Args:
      cell: any `flax.nnx.RNNCellBase`, of this library, of Flax or of the user. A step changes nothing but the carry:
        a cell whose step updates its variables (`nnx.Dropout`, `nnx.BatchNorm`, a counter) runs in `rnn_jax.RNN` only.
      xs: `[*batch, time, ...features]`, any number of batch axes; or a pytree of such arrays, if the cell reads one.
      carry: the carry before the first step; by default what `cell.initialize_carry` makes. It is matched to the
        cell's own by the names of its parts, where both have names, else by their order, and cast to its types.
      context: a pytree `[*batch, ...]` that a cell asks for by the argument `context`; the same at every step. Its
        gradient is the sum over steps.
      lengths: int `[*batch]`, 0 to time. From step `lengths` on a sequence is padding, which may hold anything: it
        changes neither carry nor gradient, and its outputs are 0. No new compilation for new values. Within `jax.jit`,
        where values cannot be checked, those beyond the range are taken as 0 or time. A part of the carry without
        batch axes goes on through padding, and no reset changes it.
      resets: bool `[*batch, time]`. Where True, the carry is made new before that step: a sequence begins there.
        (In the direction of the run: with `reverse`, a sequence's last step is where one resets.)
      reverse: runs from the last step to the first. Outputs stay at the step of their input.
      key: of `jax.random`, for a cell that asks for the argument `key`: step t is given `fold_in(key, t)`, so that
        padding changes nothing. None is deterministic; other cells do without.
      method: `fused`, the fast path of a `PointwiseCell`; `scan`, the plain scan of any cell; or `auto`, the fast path
        where it can run and else the plain scan (`fused_obstacle` says why). All give the same results, and gradients
        of any order. For a forward-mode derivative (`jax.jvp`, `jax.jacfwd`) `auto` takes the plain scan where it sees
        one coming. It cannot see it inside `jax.jit`, `jax.vmap` or `jax.linearize`, where JAX then raises an error
        about `custom_vjp`: use `scan` there.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`; by default 8 on a GPU, else 1.
      gradient: `Whole()`, the gradient of all steps; `Checkpointed(every)`, the same from less memory; or
        `Truncated(every)`, truncated back-propagation. By default `Checkpointed()` where more than a gigabyte would be
        kept for the backward pass, else `Whole()`.
      rngs: for a random initial carry.
      probe: what to record of the adjoint on its way back, or of the call, or where to cut the gradient; `rnn_jax.flow`
        makes these.

    Returns:
      The final carry (after step `lengths` of each sequence), and ys: the outputs, `[*batch, time, ...]` each.

    Raises:
      ValueError: for shapes that do not fit, a length beyond the sequence, a context that the cell does not ask for, a
        method that is unknown or cannot run the cell, a cell whose step updates variables of its own.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; allowed: {', '.join(METHODS)}.")
    call = prepare_call(
        cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key, rngs=rngs
    )
    carry, fresh_carry, lengths = call.carry, call.fresh_carry, call.lengths
    batch_shape, time, time_axis = call.batch_shape, call.time, len(call.batch_shape)
    probe = probe.of_next_call() if isinstance(probe, CallProbes) else probe
    recorder, probe = (probe, None) if isinstance(probe, CallRecorder) else (None, probe)
    cut = None
    if isinstance(probe, TruncatedAt):
        cut, probe = probe.cuts(time, reverse=reverse), None
        gradient = gradient.within if isinstance(gradient, Truncated) else gradient

    obstacle = fused_obstacle(cell, xs, carry)
    if method == "fused" and obstacle is not None:
        raise ValueError(f"method='fused' cannot run this cell, as {obstacle}; allowed: auto, scan.")
    shares = None if probe is None else probe.shares
    fast = method != "scan" and obstacle is None and shares is None
    carry, fresh_carry = _varying((carry, fresh_carry), (cell, xs, carry, context))
    if fast:  # so that the gradient of what all devices share is summed over them, once for each parameter
        cell, xs = _varying((cell, xs), (xs, carry))
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, time_axis, 0), xs)
    active = None
    if lengths is not None:
        active = jnp.arange(time, dtype=jnp.int32).reshape((time,) + (1,) * lengths.ndim) < lengths[None]
        # Padding may hold anything, NaN included.
        xs = jax.tree.map(lambda x: where(active, x, jnp.zeros_like(x)), xs)
    resets = None if resets is None else jnp.moveaxis(resets, -1, 0)
    keys = None
    if key is not None and asks_for(cell, "key"):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(time, dtype=jnp.uint32))
    steps = Steps(xs, active, resets, None if probe is None else probe.zeros, keys, cut, shares)

    state = (carry, jnp.zeros((), jnp.float32))
    if probe is not None:
        state = start_of_scale(probe, carry, zero_like_all((cell, xs, carry, context)))
    default = default_gradient(carry, time, fast)
    if isinstance(gradient, Truncated) and gradient.within is None:
        gradient = dataclasses.replace(gradient, within=default)
    record = None if probe is None else probe.record

    loop = default_unroll() if unroll is None else unroll

    def run(operands: tuple[nnx.RNNCellBase, Carry | None, PyTree], state: State, steps: Steps) -> tuple[State, Any]:
        cell, fresh_carry, context = operands
        driver: Any = scan_fused if fast else partial(scan_cell, context=context, batch_axes=len(batch_shape))
        driver = partial(driver, cell, fresh_carry=fresh_carry, record=record, reverse=reverse, unroll=loop)
        return (gradient or default).wrap(driver, reverse=reverse)(state, steps)

    # Each device would draw the numbers of the whole batch from a key: XLA's partitioner draws them once.
    alone = probe is not None or keys is not None or cut is not None
    spread = run if alone else over_batch(run, (carry, fresh_carry), batch_shape)
    state, ys = spread((cell, fresh_carry, context), state, steps)
    ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), ys)
    if recorder is not None:
        recorder.note(call, state[0], ys)
    return state[0], ys


def prepare_call(
    cell: nnx.RNNCellBase,
    xs: PyTree,
    carry: Carry | None = None,
    *,
    context: PyTree = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
    rngs: nnx.Rngs | nnx.RngStream | None = None,
) -> LayerCall:
    """Checks the arguments of a run and brings them into the one form that every driver and instrument starts from.

    Args:
      cell, xs, carry, context, lengths, resets, reverse, key, rngs: as `unroll`.

    Raises:
      ValueError: as `unroll`.
    """
    axes = input_axes(cell, xs)
    batch_shape, time = axes.batch_shape, axes.time
    check_context(cell, context, batch_shape)
    if updates_variables(cell, abstract_step(xs, axes.time_axis), axes.input_shape, carry, context):
        raise ValueError(
            f"a step of {type(cell).__name__} updates variables of the cell; allowed: a cell that keeps its state in"
            " the carry, or rnn_jax.RNN around it, which runs such a cell by flax.nnx.RNN."
        )
    if lengths is not None:
        lengths = check_lengths(lengths, batch_shape, time)
    resets = None if resets is None else jnp.asarray(resets)
    if resets is not None and resets.shape != (*batch_shape, time):
        raise ValueError(f"resets has shape {resets.shape}; allowed: [*batch, time], here {(*batch_shape, time)}.")
    fresh_carry = None
    if carry is None or resets is not None:
        fresh_carry = cell.initialize_carry(axes.input_shape, nnx.Rngs(0) if rngs is None else rngs)
    carry = fresh_carry if carry is None else fit_carry(cell, carry, axes.input_shape)
    fresh_carry = None if resets is None else fresh_carry
    return LayerCall(cell, xs, carry, lengths, resets, reverse, context, key, batch_shape, time, fresh_carry)


def fused_obstacle(cell: nnx.RNNCellBase, xs: PyTree, carry: Carry | None = None) -> str | None:
    """Says why `unroll` runs a cell by the plain scan; None if it takes the fast path.

    Args:
      cell, xs, carry: as `unroll`; `xs` and `carry` may be abstract (`jax.ShapeDtypeStruct`).
    """
    if not isinstance(cell, PointwiseCell):
        return f"{type(cell).__name__} is not a PointwiseCell"
    if type(cell).__call__ is not PointwiseCell.__call__:
        return f"{type(cell).__name__} has a __call__ of its own"
    if not hasattr(xs, "shape"):
        return "the inputs are a pytree"
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


def updates_variables(
    cell: nnx.RNNCellBase,
    x: PyTree,
    input_shape: tuple[int, ...],
    carry: Carry | None = None,
    context: PyTree = None,
) -> bool:
    """Whether a step of the cell updates a variable of the cell: a count of random numbers, a running mean.

    Args:
      cell, carry, context: as `unroll`.
      x: shapes and types of one step's input, `[*batch, ...features]`.
      input_shape: as `initialize_carry` takes it.
    """

    def variables(cell: nnx.RNNCellBase) -> list[nnx.Variable]:
        return [node for node in jax.tree.leaves(cell, is_leaf=_is_variable) if _is_variable(node)]

    if all(isinstance(variable, nnx.Param | Constant) for variable in variables(cell)):
        return False

    updated = False

    def one_step(cell: nnx.RNNCellBase, x: PyTree, carry: Carry | None, context: PyTree) -> None:
        nonlocal updated
        before = [variable.get_raw_value() for variable in variables(cell)]
        step(cell, cell.initialize_carry(input_shape, nnx.Rngs(0)) if carry is None else carry, x, context=context)
        after = [variable.get_raw_value() for variable in variables(cell)]
        updated = any(old is not new for old, new in zip(before, after, strict=True))

    jax.eval_shape(one_step, cell, x, carry, context)
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
