"""The fast path for a cell of the form `z = x W + h R + b`, then operations that keep sequences apart.

What it gains over differentiating a plain scan:

* Of a short run, x W + b is computed before the loop, one product a gate. In a long one, where to write and re-read it
  costs more than the larger products gain, x and h meet the kernels in one product, if they go to the same gates.
  A cell without R computes x W + b a segment at a time.
* The backward pass goes over segments of steps that fit in the cache. The pointwise part is linearized for all
  steps of a segment at once (by JAX, from one array a gate, so that no split has to be transposed). So a backward step
  is a few multiplications, and one product with R^T for the carry.
* The gradients of W, R, b and x leave the loop over time: one product each for a segment.
* As little as can be is stacked over time: a scan first fills what it stacks with zeros, in memory that is new at every
  call. An output that is a part of the carry is not kept twice, and the pre-activations of a long run are computed
  anew, in one product over all steps of a segment.
* Arrays are kept one for each gate, as XLA vectorizes the read of a whole array at a step, but not of part of one.

What did not pay: weight gradients at each step, one product for the two kernels of a GRU (a quarter of it zeros),
cotangents written over what they are computed from (XLA then copies the whole array at each step), `unroll` above 1,
halves of the batch in two loops.

With a `Probe`, the backward pass runs at a running scale (see `running_scale.py`), for the price of a few scalars.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.nnx.nn import dtypes

from rnn_jax.cell import PointwiseCell, sum_gates
from rnn_jax.unroll.running_scale import Record, common_scale, log2_largest, log2_norms, times_power_of_two
from rnn_jax.unroll.scan import State, Steps, even_size, over_segments, stopped, where

Array = jax.Array
Carry = Any
PyTree = Any

# Of the pre-activations of one segment. More fall out of the cache, or cost the kernel new pages at every call; with
# fewer rows the products of a segment are slow.
_SEGMENT_BYTES = 2**21
# Of those of a whole run that is short: it is one segment, and keeps them.
_SHORT_BYTES = 2**22
# A longer run keeps them up to so many, if a product over so many features (of x and h) costs more than memory.
_KEPT_BYTES, _WIDE = 2**27, 384
_NARROW = 96  # so few features (of x and h) that their transposition costs more than a product of transposed rows
_LEAST_FEATURES = 8


class _Weights(NamedTuple):
    """Operands of the products, in their type.

    Where x and h go to the same gates, one kernel, W above R, `[F + K, G H]`; else two, W `[F, Gx H]` and, if h goes to
    any gate, R `[K, Gh H]`. K is the width of h. The bias `[G H]`, or None.
    """

    kernels: tuple[Array, ...]
    bias: Array | None


class _Split(NamedTuple):
    """How to put a cell together from the leaves its pointwise part uses, and the others (static)."""

    treedef: jax.tree_util.PyTreeDef
    used: tuple[bool, ...]

    def merge(self, used: list[Array], others: list[Array]) -> PointwiseCell:
        used_leaves, other_leaves = iter(used), iter(others)
        return jax.tree.unflatten(self.treedef, [next(used_leaves if u else other_leaves) for u in self.used])


class _Static(NamedTuple):
    """What the derivative rule takes beside arrays: as in `scan_fused`.

    `output` is the part of the carry (a leaf's number) that a step's output is, so that it need not be kept, too. None
    if there is no such part, or padding and resets come between the output of a step and the carry of the next.
    """

    split: _Split
    output: int | None
    record: Record | None
    reverse: bool
    unroll: int


def scan_fused(
    cell: PointwiseCell,
    state: State,
    steps: Steps,
    *,
    fresh_carry: Carry | None,
    record: Record | None,
    reverse: bool,
    unroll: int,
) -> tuple[State, Array]:
    """Runs the cell over time; arguments and results as `rnn_jax.unroll.scan.scan_cell`."""
    time, *batch_shape, _ = steps.x.shape
    kernel, recurrent_kernel, bias = cell.weights()
    xs, kernel, recurrent_kernel = dtypes.promote_dtype((steps.x, kernel, recurrent_kernel), dtype=cell.dtype)
    if _one_product(cell):
        kernels: tuple[Array, ...] = (jnp.concatenate([kernel, recurrent_kernel]),)
    else:
        # Of a product with one or two rows XLA makes sums, fuses them with the gates, and then vectorizes neither.
        padding = max(0, _LEAST_FEATURES - xs.shape[-1])
        xs = jnp.pad(xs, [(0, 0)] * (xs.ndim - 1) + [(0, padding)])
        kernels = (jnp.pad(kernel, [(0, padding), (0, 0)]), *([recurrent_kernel] if cell.recurrent_gates else []))
    weights = _Weights(kernels, None if bias is None else bias.astype(xs.dtype))

    def one_batch_axis(axis: int, tree: PyTree) -> PyTree:
        last = axis + len(batch_shape)
        size = math.prod(batch_shape)
        return jax.tree.map(lambda a: a.reshape(*a.shape[:axis], size, *a.shape[last:]), tree)

    carry, fresh_carry = one_batch_axis(0, (state[0], fresh_carry))
    xs, active, reset = one_batch_axis(1, (xs, steps.active, steps.reset))

    leaves, treedef = jax.tree.flatten(cell)
    is_used, output = _trace_pointwise(cell, carry, xs.dtype)
    split = _Split(treedef, is_used)
    used = [leaf for leaf, is_used in zip(leaves, split.used) if is_used]
    others = [leaf for leaf, is_used in zip(leaves, split.used) if not is_used]

    def record_batch(adjoint: Carry, norms: Array, log2_scale: Array) -> PyTree:
        assert record is not None
        adjoint = jax.tree.map(lambda part: part.reshape(*batch_shape, *part.shape[1:]), adjoint)
        return record(adjoint, norms, log2_scale)

    output = output if active is None and reset is None and time else None
    static = _Static(split, output, None if record is None else record_batch, reverse, unroll)
    steps = Steps(xs, active, reset, steps.probe, cut=steps.cut)
    (carry, scale_token), ys = _run(static, used, others, weights, steps, (carry, state[1]), fresh_carry)
    carry = jax.tree.map(lambda part: part.reshape(*batch_shape, *part.shape[1:]), carry)
    return (carry, scale_token), ys.reshape(time, *batch_shape, *ys.shape[2:])


def hidden_reads_parameters(cell: PointwiseCell, carry: Carry) -> bool:
    """Whether `hidden` depends on an array of the cell, whose gradient the fast path would lose."""
    if not cell.recurrent_gates:
        return False
    leaves, treedef = jax.tree.flatten(cell)
    jaxpr = jax.make_jaxpr(lambda leaves, carry: jax.tree.unflatten(treedef, leaves).hidden(carry))(leaves, carry).jaxpr
    return any(_reads(jaxpr)[: len(leaves)])


def _reads(jaxpr: Any) -> list[bool]:
    """Returns for each input of a jaxpr whether an operation reads it or it is an output."""
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return [id(v) in read for v in jaxpr.invars]


def _trace_pointwise(cell: PointwiseCell, carry: Carry, dtype: Any) -> tuple[tuple[bool, ...], int | None]:
    """Tells for each leaf of the cell whether the pointwise part reads it; W, R and b it does not.

    Tells as well which leaf of the new carry the output is, if it is one.
    """
    leaves, treedef = jax.tree.flatten(cell)
    batch = jax.tree.leaves(carry)[0].shape[0]
    z = {name: jax.ShapeDtypeStruct((batch, cell.hidden_features), dtype) for name in cell.gate_columns()}

    def pointwise(leaves, z, carry):
        return _pointwise(jax.tree.unflatten(treedef, leaves), z, carry)

    jaxpr = jax.make_jaxpr(pointwise)(leaves, z, carry).jaxpr
    *new_carry, y = jaxpr.outvars
    output = next((k for k, part in enumerate(new_carry) if part is y), None)
    return tuple(_reads(jaxpr)[: len(leaves)]), output


def _pointwise(cell: PointwiseCell, z: dict[str, Array], carry: Carry) -> tuple[Carry, Array]:
    """The pointwise part, computed in the type of the state; y in the type of the products."""
    dtype = next(iter(z.values())).dtype
    state_dtype = cell.state_dtype(carry)
    carry, y = cell.pointwise({name: value.astype(state_dtype) for name, value in z.items()}, carry)
    return carry, y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static, used, others, weights, steps, state, fresh_carry):
    carry, scale_token = state
    carry, ys, _ = _forward(static, static.split.merge(used, others), weights, steps, carry, fresh_carry, keep=False)
    return (carry, scale_token), ys


def _run_fwd(static, used, others, weights, steps, state, fresh_carry):
    carry, scale_token = state
    cell = static.split.merge(used, others)
    final_carry, ys, kept = _forward(static, cell, weights, steps, carry, fresh_carry, keep=True)
    return ((final_carry, scale_token), ys), (used, others, weights, steps, kept, fresh_carry, carry, ys)


def _sum_of_outer_products(a_TBM: Array, b_TBN: Array) -> Array:
    """Returns the sum over steps and batch of the outer products of a and b, `[M, N]`."""
    # Time and batch stay two axes, so that XLA's partitioner can leave a batch on its devices and add up products.
    # XLA's product of transposed rows takes up to twice as long.
    if a_TBM.shape[-1] <= _NARROW:
        return jax.lax.dot_general(a_TBM, b_TBN, (((0, 1), (0, 1)), ((), ())))
    a_MTB = jax.lax.optimization_barrier(jnp.moveaxis(a_TBM, -1, 0))
    return jax.lax.dot_general(a_MTB, b_TBN, (((1, 2), (0, 1)), ((), ())))


def _one_product(cell: PointwiseCell) -> bool:
    """Whether x and h go to the same gates, so that `[x, h]` times one kernel does for both."""
    return cell.input_gates == cell.recurrent_gates


def _columns(cell: PointwiseCell) -> tuple[tuple[str, ...], ...]:
    """Returns the gates of each product."""
    if _one_product(cell) or not cell.recurrent_gates:
        return (cell.input_gates,)
    return (cell.input_gates, cell.recurrent_gates)


def _operands(cell: PointwiseCell, x: Array, carry: Carry) -> tuple[Array, ...]:
    """Returns what the kernels are multiplied by, for x `[..., F]` and the carry that meets it."""
    if not cell.recurrent_gates:
        return (x,)
    h = cell.hidden(carry).astype(x.dtype)
    return (jnp.concatenate([x, h], axis=-1),) if _one_product(cell) else (x, h)


def _preactivations(cell: PointwiseCell, weights: _Weights, operands: tuple[Array, ...]) -> dict[str, Array]:
    products = [operand @ kernel for operand, kernel in zip(operands, weights.kernels)]
    return sum_gates(cell, list(zip(products, _columns(cell))), weights.bias)


def _input_gates(cell: PointwiseCell, kernel: Array, bias: Array | None, xs: Array) -> dict[str, Array]:
    """Returns what x adds to each gate at each step, and the bias with it: one product a gate, not at each step."""
    kernels = jnp.split(kernel, len(cell.input_gates), axis=-1)
    z = {name: xs @ part for name, part in zip(cell.input_gates, kernels)}
    if bias is not None:
        z = {name: z[name] + part[None] for name, part in _split_bias(cell, bias).items() if name in z}
    return z


def _add_recurrent_gates(
    cell: PointwiseCell, recurrent_kernel: Array, bias: Array | None, z: dict[str, Array], h: Array
) -> dict[str, Array]:
    """Returns the pre-activations of one step, for what `_input_gates` has of it."""
    of_h = sum_gates(cell, [(h.astype(recurrent_kernel.dtype) @ recurrent_kernel, cell.recurrent_gates)], None)
    if bias is not None:
        biases = _split_bias(cell, bias)
        of_h = {name: value if name in z else value + biases[name] for name, value in of_h.items()}
    return z | {name: z[name] + value if name in z else value for name, value in of_h.items()}


def _split_bias(cell: PointwiseCell, bias: Array) -> dict[str, Array]:
    return dict(zip(cell.gate_columns(), bias.reshape(-1, 1, cell.hidden_features)))


def known_size(shape: tuple[Any, ...]) -> int:
    """Returns the product of the sizes that are known; one that is symbolic (`jax.export`) is taken as 1."""
    return math.prod(size for size in shape if isinstance(size, int))


def _preactivation_bytes(weights: _Weights, steps: Steps) -> int:
    """Returns how much memory the pre-activations of a whole run take (of a GRU: those of h)."""
    return known_size(steps.x.shape[:-1]) * weights.kernels[-1].shape[-1] * steps.x.dtype.itemsize


def _segment_size(weights: _Weights, steps: Steps) -> int:
    """Returns how many steps make a segment, whose pre-activations fit in the cache."""
    time = steps.x.shape[0]
    if _is_short(weights, steps):
        return time
    return even_size(time, _SEGMENT_BYTES // (_preactivation_bytes(weights, steps) // time))


def _is_short(weights: _Weights, steps: Steps) -> bool:
    return _preactivation_bytes(weights, steps) <= _SHORT_BYTES


def _is_wide(weights: _Weights) -> bool:
    return sum(len(kernel) for kernel in weights.kernels) >= _WIDE


def _keeps_preactivations(weights: _Weights, steps: Steps) -> bool:
    few = _preactivation_bytes(weights, steps) <= _KEPT_BYTES
    return _is_short(weights, steps) or (_is_wide(weights) and few)


def _forward(static, cell, weights, steps, carry, fresh_carry, *, keep):
    """Returns the final carry, ys and, if they are to be kept, the leaves of the carry that met each step, and z.

    Of the leaves that one is left out which is the output of the step before; z is None where it is computed again.
    """
    keep_z = keep and _keeps_preactivations(weights, steps)
    # XLA runs the two products of a step beside each other, which gains where they are wide and not of one gate.
    apart = _is_wide(weights) and len(cell.recurrent_gates) > 1
    x_before = not cell.recurrent_gates or (_is_short(weights, steps) and (_one_product(cell) or not apart))
    kernel, recurrent_kernel = _input_and_recurrent_kernel(cell, weights, steps.x.shape[-1])

    def step(carry, inputs):
        x, active, reset = inputs.x, inputs.active, inputs.reset
        old = carry
        if reset is not None:
            carry = jax.tree.map(partial(where, reset), fresh_carry, carry)
        if not cell.recurrent_gates:
            z = x
        elif x_before:
            assert recurrent_kernel is not None
            z = _add_recurrent_gates(cell, recurrent_kernel, weights.bias, x, cell.hidden(carry))
        elif apart:
            h = cell.hidden(carry).astype(x.dtype)
            z = sum_gates(
                cell, [(x @ kernel, cell.input_gates), (h @ recurrent_kernel, cell.recurrent_gates)], weights.bias
            )
        else:
            z = _preactivations(cell, weights, _operands(cell, x, carry))
        new, y = _pointwise(cell, z, carry)
        if active is not None:
            new = jax.tree.map(partial(where, active), new, old)
            y = where(active, y, jnp.zeros_like(y))
        if not keep:
            return new, (y, None)
        kept = [part for k, part in enumerate(jax.tree.leaves(carry)) if k != static.output]
        return new, (y, (kept, z if keep_z else None))

    def segment(carry, steps):
        if x_before:
            steps = steps._replace(x=_input_gates(cell, kernel, weights.bias, steps.x))
        return jax.lax.scan(step, carry, steps, reverse=static.reverse, unroll=static.unroll)

    size = steps.x.shape[0] if cell.recurrent_gates else _segment_size(weights, steps)
    carry, (ys, kept) = over_segments(segment, carry, steps, reverse=static.reverse, size=size)
    return carry, ys, kept


def _input_and_recurrent_kernel(cell: PointwiseCell, weights: _Weights, in_features: int) -> tuple[Array, Array | None]:
    """Returns W and, if there is one, R."""
    if _one_product(cell):
        return weights.kernels[0][:in_features], weights.kernels[0][in_features:]
    return weights.kernels[0], weights.kernels[1] if cell.recurrent_gates else None


def _run_bwd(static, residuals, cotangents):
    used, others, weights, steps, kept, fresh_carry, first_carry, ys = residuals
    split, output, record = static.split, static.output, static.record
    cell = split.merge(used, others)
    kernel, recurrent_kernel = _input_and_recurrent_kernel(cell, weights, steps.x.shape[-1])
    # Once, not at each step.
    to_x = jax.lax.optimization_barrier(kernel.T)
    to_h = None if recurrent_kernel is None else jax.lax.optimization_barrier(recurrent_kernel.T)

    def step(state, inputs):
        a, log2_scale, d_used, d_fresh = state
        g, log2_g, (pullback, carry), active, reset, cut = inputs
        recorded = None
        if record is not None:
            norms = log2_norms(a)
            recorded = record(a, norms, log2_scale)
            a, g, log2_scale = common_scale(a, g, norms, log2_scale, log2_g)
        bypass = 0  # what passes a padded step by
        if active is not None:
            bypass = jax.tree.map(lambda part: where(active, jnp.zeros_like(part), part), a)
            a = jax.tree.map(lambda part: where(active, part, jnp.zeros_like(part)), a)

        d_used_t, dz, a = pullback((a, g))
        dz_h = None
        if to_h is not None:
            dz_h = jnp.concatenate([dz[name] for name in cell.recurrent_gates], axis=-1)
            h, hidden_pullback = jax.vjp(cell.hidden, carry)
            (recurrent_term,) = hidden_pullback((dz_h @ to_h).astype(h.dtype))
            a = jax.tree.map(jnp.add, a, recurrent_term)
        dz_x = {name: dz[name] for name in cell.input_gates if name not in cell.recurrent_gates}
        if record is not None:
            dz_h, dz_x, d_used_t = times_power_of_two((dz_h, dz_x, d_used_t), log2_scale)
        d_used = jax.tree.map(jnp.add, d_used, d_used_t)
        if reset is not None:
            reset_cotangent = jax.tree.map(lambda part: where(reset, part, jnp.zeros_like(part)), a)
            a = jax.tree.map(lambda part: where(reset, jnp.zeros_like(part), part), a)
            reset_cotangent = reset_cotangent if record is None else times_power_of_two(reset_cotangent, log2_scale)
            d_fresh = jax.tree.map(jnp.add, d_fresh, reset_cotangent)
        if active is not None:
            a = jax.tree.map(jnp.add, a, bypass)
        if cut is not None:
            a = stopped(cut, a)
        return (a, log2_scale, d_used, d_fresh), (dz_h, dz_x, recorded)

    def linearize(z, carry):
        return jax.vjp(lambda used, z, carry: _pointwise(split.merge(used, others), z, carry), used, z, carry)[1]

    def carries_before(kept, ys, row):
        if output is None:
            return jax.tree.unflatten(jax.tree.structure(first_carry), kept)
        before = [ys[1:], row[None]] if static.reverse else [row[None], ys[:-1]]
        kept = [*kept[:output], jnp.concatenate(before), *kept[output:]]
        return jax.tree.unflatten(jax.tree.structure(first_carry), kept)

    def segment(state, inputs):
        state, d_weights = state
        (steps, g, log2_g, (kept, z), ys), row = inputs
        carries = carries_before(kept, ys, row)
        operands = _operands(cell, steps.x, carries)
        if z is None:
            z = _preactivations(cell, weights, operands)
        state, (dz_h, dz_x, recorded) = jax.lax.scan(
            step,
            state,
            (g, log2_g, (jax.vmap(linearize)(z, carries), carries), steps.active, steps.reset, steps.cut),
            reverse=not static.reverse,
            unroll=static.unroll,
        )
        dz: tuple[Array, ...] = () if dz_h is None else (dz_h,)
        if not _one_product(cell):
            if dz_h is not None:
                dz_x |= dict(zip(cell.recurrent_gates, jnp.split(dz_h, len(cell.recurrent_gates), axis=-1)))
            dz = (jnp.concatenate([dz_x[name] for name in cell.input_gates], axis=-1), *dz)
        dx = dz[0] @ to_x
        d_bias = None
        if weights.bias is not None:
            d_bias = jnp.sum(dz[0], axis=(0, 1))
            if len(dz) > 1:
                of_h = jnp.sum(dz[1], axis=(0, 1)).reshape(-1, cell.hidden_features)
                only_h = [of_h[k] for k, name in enumerate(cell.recurrent_gates) if name not in cell.input_gates]
                d_bias = jnp.concatenate([d_bias, *only_h])  # in the order of `gate_columns`
        d = _Weights(tuple(map(_sum_of_outer_products, operands, dz)), d_bias)
        return (state, jax.tree.map(jnp.add, d_weights, d)), (dx, recorded)

    (a, log2_scale), ys_cotangent = cotangents  # the cotangent of the token is the scale
    if steps.active is not None:
        ys_cotangent = where(steps.active, ys_cotangent, jnp.zeros_like(ys_cotangent))
    log2_g = None if record is None else jax.vmap(log2_largest)(ys_cotangent)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = ((a, log2_scale, zeros(used), zeros(fresh_carry)), zeros(weights))
    size = _segment_size(weights, steps)
    rows_before: PyTree = ()
    if output is not None:
        first = jax.tree.leaves(first_carry)[output][None]
        rows_before = jnp.concatenate([ys[size::size], first] if static.reverse else [first, ys[size - 1 : -1 : size]])
    ((a, log2_scale, d_used, d_fresh), d_weights), (dx, recorded) = over_segments(
        segment,
        state,
        (steps, ys_cotangent, log2_g, kept, None if output is None else ys),
        reverse=not static.reverse,
        size=size,
        rows=rows_before,
    )
    return d_used, None, d_weights, Steps(dx, None, None, recorded), (a, log2_scale), d_fresh


_run.defvjp(_run_fwd, _run_bwd)
