"""The fast path for a cell of the form `z = x W + h R + b`, then elementwise operations.

What it gains over differentiating a plain scan:

* The forward pass keeps the pre-activations z of each step, and nothing else but the carries.
* The backward step takes the vector-Jacobian product of the elementwise part alone (JAX makes it, from one array a
  gate, so that no split has to be transposed), then needs one product, with R^T, for the carry.
* The gradients of W, R, b and x leave the loop over time: one product each over as many steps as memory allows.
* Arrays are kept one for each gate, as XLA vectorises the read of a whole array at a step, but not of a part of one.

What did not pay: x W before the loop (writing and re-reading it costs more than the larger product gains), a loop
over segments of 16 steps, `unroll` above 1.

With a `Tap`, the backward pass runs at a running scale (see `running_scale.py`), for the price of a few scalars.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.nnx.nn import dtypes

from rnn_jax.cell import AffineCell, split_gates
from rnn_jax.unroll.running_scale import common_scale, log2_largest, times_power_of_two
from rnn_jax.unroll.sequential import State, Steps, over_segments, where

Array = jax.Array
Carry = Any
PyTree = Any

_SEGMENT_BYTES = 2**26  # of the cotangents of z that wait for the products of one segment


class _Weights(NamedTuple):
    """Operands of the products, in their type: W `[F, Gx H]`, R `[H, Gh H]`, b `[G H]` or None."""

    kernel: Array
    recurrent_kernel: Array
    bias: Array | None


class _Split(NamedTuple):
    """How to put a cell together from the leaves its elementwise part uses, and the others (static)."""

    treedef: jax.tree_util.PyTreeDef
    used: tuple[bool, ...]

    def merge(self, used: list[Array], others: list[Array]) -> AffineCell:
        used_leaves, other_leaves = iter(used), iter(others)
        return jax.tree.unflatten(self.treedef, [next(used_leaves if u else other_leaves) for u in self.used])


class _Static(NamedTuple):
    """What the derivative rule takes beside arrays: as in `scan_affine`."""

    split: _Split
    record: Callable[[PyTree, Array], PyTree] | None
    reverse: bool
    unroll: int


def scan_affine(
    cell: AffineCell,
    steps: Steps,
    state: State,
    *,
    fresh_carry: Carry | None,
    record: Callable[[PyTree, Array], PyTree] | None,
    reverse: bool,
    unroll: int,
) -> tuple[State, Array]:
    """Runs the cell over time; arguments and results as `rnn_jax.unroll.sequential.scan_cell`."""
    time, *batch_shape, _ = steps.x.shape
    kernel, recurrent_kernel, bias = cell.affine()
    xs, kernel, recurrent_kernel = dtypes.promote_dtype((steps.x, kernel, recurrent_kernel), dtype=cell.dtype)
    weights = _Weights(kernel, recurrent_kernel, None if bias is None else bias.astype(xs.dtype))

    def one_batch_axis(axis: int, tree: PyTree) -> PyTree:
        last = axis + len(batch_shape)
        size = math.prod(batch_shape)
        return jax.tree.map(lambda a: a.reshape(*a.shape[:axis], size, *a.shape[last:]), tree)

    carry, fresh_carry = one_batch_axis(0, (state[0], fresh_carry))
    xs, active, reset = one_batch_axis(1, (xs, steps.active, steps.reset))

    leaves, treedef = jax.tree.flatten(cell)
    split = _Split(treedef, _used_by_pointwise(cell, carry, xs.dtype))
    used = [leaf for leaf, is_used in zip(leaves, split.used) if is_used]
    others = [leaf for leaf, is_used in zip(leaves, split.used) if not is_used]

    def record_batch(adjoint: Carry, log2_scale: Array) -> PyTree:
        assert record is not None
        return record(jax.tree.map(lambda part: part.reshape(*batch_shape, *part.shape[1:]), adjoint), log2_scale)

    static = _Static(split, None if record is None else record_batch, reverse, unroll)
    (carry, e), ys = _run(
        static, used, others, weights, Steps(xs, active, reset, steps.tap), (carry, state[1]), fresh_carry
    )
    carry = jax.tree.map(lambda part: part.reshape(*batch_shape, *part.shape[1:]), carry)
    return (carry, e), ys.reshape(time, *batch_shape, *ys.shape[2:])


def _used_by_pointwise(cell: AffineCell, carry: Carry, dtype: Any) -> tuple[bool, ...]:
    """Tells for each leaf of the cell whether the elementwise part hangs on it; W, R and b do not."""
    leaves, treedef = jax.tree.flatten(cell)
    batch = cell.hidden(carry).shape[0]
    z = {name: jax.ShapeDtypeStruct((batch, cell.hidden_features), dtype) for name in cell.gate_columns()}

    def pointwise(leaves, z, carry):
        return _pointwise(jax.tree.unflatten(treedef, leaves), z, carry)

    jaxpr = jax.make_jaxpr(pointwise)(leaves, z, carry).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return tuple(id(v) in read for v in jaxpr.invars[: len(leaves)])


def _pointwise(cell: AffineCell, z: dict[str, Array], carry: Carry) -> tuple[Carry, Array]:
    """The elementwise part, computed in the type of the state; y in the type of the products."""
    dtype = next(iter(z.values())).dtype
    state_dtype = cell.hidden(carry).dtype
    carry, y = cell.pointwise({name: value.astype(state_dtype) for name, value in z.items()}, carry)
    return carry, y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static, used, others, weights, steps, state, fresh_carry):
    carry, e = state
    carry, ys, _ = _forward(static, static.split.merge(used, others), weights, steps, carry, fresh_carry, keep=False)
    return (carry, e), ys


def _run_fwd(static, used, others, weights, steps, state, fresh_carry):
    carry, e = state
    cell = static.split.merge(used, others)
    carry, ys, kept = _forward(static, cell, weights, steps, carry, fresh_carry, keep=True)
    return ((carry, e), ys), (used, others, weights, steps, kept, fresh_carry)


def _forward(static, cell, weights, steps, carry, fresh_carry, *, keep):
    """Returns the final carry, ys and, if they are to be kept, z and the carry that met it, for every step."""

    def step(carry, inputs):
        x, active, reset, _ = inputs
        old = carry
        if reset is not None:
            carry = jax.tree.map(partial(where, reset), fresh_carry, carry)
        zh = cell.hidden(carry).astype(x.dtype) @ weights.recurrent_kernel
        z = split_gates(cell, x @ weights.kernel, zh, weights.bias)
        new, y = _pointwise(cell, z, carry)
        if active is not None:
            new = jax.tree.map(partial(where, active), new, old)
            y = where(active, y, jnp.zeros_like(y))
        return new, (y, (z, carry) if keep else None)

    carry, (ys, kept) = jax.lax.scan(step, carry, steps, reverse=static.reverse, unroll=static.unroll)
    return carry, ys, kept


def _run_bwd(static, residuals, cotangents):
    used, others, weights, steps, kept, fresh_carry = residuals
    split, record = static.split, static.record
    cell = split.merge(used, others)
    transposed = jax.lax.optimization_barrier(weights.recurrent_kernel.T)  # once, not at each step
    one_product = cell.input_gates == cell.recurrent_gates

    def step(state, inputs):
        a, log2_scale, d_used, d_fresh = state
        g, log2_g, (z, carry), active, reset = inputs
        recorded = None
        if record is not None:
            recorded = record(a, log2_scale)
            a, g, log2_scale = common_scale(a, g, log2_scale, log2_g)
        around = 0  # what passes a padded step by
        if active is not None:
            around = jax.tree.map(lambda part: where(active, jnp.zeros_like(part), part), a)
            a = jax.tree.map(lambda part: where(active, part, jnp.zeros_like(part)), a)

        _, pullback = jax.vjp(lambda used, z, carry: _pointwise(split.merge(used, others), z, carry), used, z, carry)
        d_used_t, dz, d_carry = pullback((a, g))
        dz_h = jnp.concatenate([dz[name] for name in cell.recurrent_gates], axis=-1)
        dz_x = dz_h if one_product else jnp.concatenate([dz[name] for name in cell.input_gates], axis=-1)
        h, hidden_pullback = jax.vjp(cell.hidden, carry)
        (through_r,) = hidden_pullback((dz_h @ transposed).astype(h.dtype))
        a = jax.tree.map(jnp.add, d_carry, through_r)
        if record is not None:
            dz_x, dz_h, d_used_t = times_power_of_two((dz_x, dz_h, d_used_t), log2_scale)
        d_used = jax.tree.map(jnp.add, d_used, d_used_t)
        if reset is not None:
            begun = jax.tree.map(lambda part: where(reset, part, jnp.zeros_like(part)), a)
            a = jax.tree.map(lambda part: where(reset, jnp.zeros_like(part), part), a)
            begun = begun if record is None else times_power_of_two(begun, log2_scale)
            d_fresh = jax.tree.map(jnp.add, d_fresh, begun)
        if active is not None:
            a = jax.tree.map(jnp.add, a, around)
        return (a, log2_scale, d_used, d_fresh), (dz_x, None if one_product else dz_h, recorded)

    def segment(state, inputs):
        state, d_weights = state
        steps, g, log2_g, (z, carries) = inputs
        state, (dz_x, dz_h, recorded) = jax.lax.scan(
            step,
            state,
            (g, log2_g, (z, carries), steps.active, steps.reset),
            reverse=not static.reverse,
            unroll=static.unroll,
        )
        dz_h = dz_x if one_product else dz_h
        h = cell.hidden(carries).astype(dz_h.dtype)
        d_bias = None
        if weights.bias is not None:
            of_h = jnp.sum(dz_h, (0, 1)).reshape(-1, cell.hidden_features)
            only_h = [of_h[k] for k, name in enumerate(cell.recurrent_gates) if name not in cell.input_gates]
            d_bias = jnp.concatenate([jnp.sum(dz_x, (0, 1)), *only_h])  # in the order of `gate_columns`
        both = (((0, 1), (0, 1)), ((), ()))
        d = _Weights(jax.lax.dot_general(steps.x, dz_x, both), jax.lax.dot_general(h, dz_h, both), d_bias)
        return (state, jax.tree.map(jnp.add, d_weights, d)), (dz_x @ weights.kernel.T, recorded)

    (a, log2_scale), ys_cotangent = cotangents  # the cotangent of e is the scale
    if steps.active is not None:
        ys_cotangent = where(steps.active, ys_cotangent, jnp.zeros_like(ys_cotangent))
    log2_g = None if record is None else jax.vmap(log2_largest)(ys_cotangent)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = ((a, log2_scale, zeros(used), zeros(fresh_carry)), zeros(weights))
    step_bytes = sum(math.prod(z.shape[1:]) * z.dtype.itemsize for z in kept[0].values())
    ((a, log2_scale, d_used, d_fresh), d_weights), (dx, recorded) = over_segments(
        segment,
        state,
        (steps, ys_cotangent, log2_g, kept),
        reverse=not static.reverse,
        size=max(1, _SEGMENT_BYTES // max(1, step_bytes)),
    )
    return d_used, None, d_weights, Steps(dx, None, None, recorded), (a, log2_scale), d_fresh


_run.defvjp(_run_fwd, _run_bwd)
