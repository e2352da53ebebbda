r"""The Lyapunov spectrum: at which rates small changes of the carry grow or shrink in the long run.

The exponents are the limits of ln(singular values of d carry_{s+k} / d carry_s) / k. They are computed with a basis
of k tangent vectors that is pushed through the run and made orthonormal again every few steps, the logarithms of the
diagonal of R being summed up. Memory does not grow with the length of the run.

References:
  Benettin, Galgani, Giorgilli, Strelcyn 1980, Meccanica 15; Shimada, Nagashima 1979, Prog. Theor. Phys. 61(6).
  Eckmann, Ruelle 1985, "Ergodic theory of chaos and strange attractors", Rev. Mod. Phys. 57(3).
  Kaplan, Yorke 1979, in Lecture Notes in Mathematics 730: the dimension; Pesin 1977: the entropy rate.
  Engelken, Wolf, Abbott 2023, arXiv 2006.02427; Vogt, Puelma Touzel, Shlizerman, Lajoie 2022, arXiv 2006.14123: of
  recurrent networks.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import step
from rnn_jax.flow import graded, lapack
from rnn_jax.flow.run_order import (
    Run,
    as_call,
    check_count,
    check_finite,
    check_is_cell,
    coordinates,
    example,
    has_nan,
    in_run_order,
    push,
    refuse_nan,
)
from rnn_jax.unroll import prepare_call
from rnn_jax.unroll.record import LayerCall
from rnn_jax.unroll.scan import Steps, where, where_batched

Array = jax.Array
Carry = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["exponents", "standard_error", "dimension", "entropy_rate", "part_exponents", "resolution"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class LyapunovSpectrum:
    """The Lyapunov exponents of every sequence.

    Attributes:
      exponents: nats a step, the largest first, `[*batch, k]`; -inf where a direction is lost in a single step.
      standard_error: of the exponents, from their values in equal parts of the run, `[*batch, k]`. It supposes that
        the parts are longer than what the run remembers; inf with one part.
      dimension: Kaplan and Yorke's, `[*batch]`: how many of the largest exponents sum up to 0, with a fraction of the
        next. If the sum of all k is not negative it is k, and with k below n a lower bound.
      entropy_rate: the sum of the positive exponents, nats a step, `[*batch]` (Pesin); a lower bound if all k are.
      part_exponents: in each part of the run, `[*batch, parts, k]`; NaN for a part without true steps.
      resolution: the smallest share of a tangent vector that was left when those before it were taken out,
        `[*batch, k]`. Where it comes near the rounding error, 1e-7 in float32 and 1e-16 in float64, the exponent is one
        of rounding errors: a smaller `every` helps, or float64.
    """

    exponents: Array
    standard_error: Array
    dimension: Array
    entropy_rate: Array
    part_exponents: Array
    resolution: Array


def lyapunov_spectrum(
    cell: nnx.RNNCellBase | LayerCall,
    xs: Any = None,
    carry: Carry | None = None,
    *,
    steps: int | None = None,
    feed_back: bool = False,
    k: int | None = None,
    every: int = 1,
    transient: int = 0,
    parts: int = 20,
    context: Any = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
) -> LyapunovSpectrum:
    """Returns the Lyapunov exponents of a run: driven by inputs, or free.

    A run is free with `xs=None`: inputs are zeros, or with `feed_back` the outputs of the step before. Then the carry
    and the output are one state of n + F numbers.

    It takes k derivatives a step, and a QR decomposition, O(n k^2), every few; memory is O((n + parts) k) beside the
    inputs. A reset begins a new sequence, from the first basis on: the exponents are those of the sequences, weighted
    by their lengths. Padding counts for nothing. The last steps, fewer than `every`, are left out.

    Args:
      cell: any cell; or the record of a call, as `layer_calls` makes it, in the place of all arguments but k, every,
        transient, parts.
      xs, carry, context, lengths, resets, reverse, key: as `rnn_jax.unroll`. A free run has the batch of its carry.
      steps, feed_back: of a free run: how many, and whether outputs are the next inputs.
      k: how many exponents, the largest first; by default n, the real numbers in a sequence's carry.
      every: steps between two orthonormalizations; 1 where sequences have resets. With many, vectors become parallel:
        `resolution` tells.
      transient: steps at the start, and behind a reset, that do not count. The basis turns into its directions in them.
      parts: of the run, for the standard error; fewer if there are not so many orthonormalizations.

    Raises:
      ValueError: for a number out of range, inputs and `steps` both given or both missing, outputs that are no inputs
        for `feed_back`, inputs that are not finite, or a carry that becomes so (where values can be known: inside
        `jax.jit` the exponents are NaN there); or as `rnn_jax.unroll`.
    """
    if every < 1 or parts < 1 or transient < 0:
        raise ValueError(
            f"every={every}, parts={parts}, transient={transient}; allowed: 1 or more, transient 0 or more."
        )
    if not isinstance(cell, LayerCall):
        check_is_cell(cell)
    free = xs is None and not isinstance(cell, LayerCall)
    if not free:
        if steps is not None or feed_back:
            raise ValueError("steps and feed_back are of a run without inputs; allowed here: neither.")
        call = as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key)
        time = call.time
    else:
        if steps is None or steps < 1 or lengths is not None or resets is not None or reverse:
            raise ValueError(
                f"xs=None and steps={steps}; allowed: inputs, or how many steps a free run takes, without lengths,"
                " resets and reverse."
            )
        assert not isinstance(cell, LayerCall)
        call, time = _free_call(_FedBack(cell) if feed_back else cell, carry, context, key), steps
    run, space = in_run_order(call), coordinates(call)
    every = 1 if run.steps.reset is not None else every
    blocks, skipped = time // every, -(-transient // every)
    if blocks <= skipped:
        raise ValueError(
            f"a run of {time} steps has none left behind transient={transient} with every={every}; allowed: a longer"
            " run, or less of both."
        )
    batch_shape, axis = call.batch_shape, len(call.batch_shape)
    n, count, parts = space.size, check_count(k, space.size), min(parts, blocks - skipped)
    drawn = jax.random.normal(jax.random.key(0), (n, count), space.dtype)
    basis = jnp.broadcast_to(lapack.qr(drawn)[0], (*batch_shape, n, count))

    def one(state: tuple[Carry, Array, Array], inputs: Steps) -> tuple[tuple[Carry, Array, Array], Array]:
        carry, tangents, age = state
        reset = inputs.reset
        if reset is not None:  # the step itself begins with the fresh carry: so do the tangents
            carry = jax.tree.map(partial(where_batched, reset), call.fresh_carry, carry, carry)
            tangents = where(reset, basis, tangents)
            age = jnp.where(reset, 0, age)
            inputs = inputs._replace(reset=None)
        carry, _, tangents, _ = push(run, space, carry, inputs, tangents)
        counts = age >= transient
        if inputs.active is not None:
            counts &= inputs.active
        return (carry, tangents, age + 1), counts.astype(jnp.int32)

    def block(state: Any, inputs: Steps | None) -> tuple[Any, None]:
        carry, tangents, age, number, sums, counts, resolution = state
        if inputs is None:
            inputs = _free_inputs(run, number * every, every)
        (carry, tangents, age), counted = jax.lax.scan(one, (carry, tangents, age), inputs)
        counted = jnp.where(number < skipped, 0, jnp.sum(counted, axis=0, dtype=jnp.int32))
        q, r = graded.qr_above_rounding(tangents)
        diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        growth = jnp.log(diagonal)
        part = jnp.maximum(number - skipped, 0) * parts // (blocks - skipped)
        counts = counts.at[part].add(counted)
        counted = (counted > 0)[..., None]
        sums = sums.at[part].add(jnp.where(counted, growth, jnp.zeros_like(growth)))
        left = diagonal / jnp.linalg.norm(tangents, axis=-2)
        resolution = jnp.where(counted, jnp.minimum(resolution, left), resolution)
        return (carry, q, age, number + 1, sums, counts, resolution), None

    zeros, integers = partial(jnp.zeros, dtype=space.dtype), partial(jnp.zeros, dtype=jnp.int32)
    state = (
        call.carry,
        basis,
        integers(batch_shape),
        integers(()),
        zeros((parts, *batch_shape, count)),
        integers((parts, *batch_shape)),
        jnp.ones((*batch_shape, count), space.dtype),
    )
    in_blocks = (
        None if free else jax.tree.map(lambda x: x[: blocks * every].reshape(blocks, every, *x.shape[1:]), run.steps)
    )
    (*_, sums, counts, resolution), _ = jax.lax.scan(block, state, in_blocks, length=blocks)
    result = _spectrum(jnp.moveaxis(sums, 0, axis), jnp.moveaxis(counts, 0, axis), resolution)
    if has_nan(result.exponents):
        _explain(call, result, np.asarray(jnp.sum(counts, axis=0)), free)
    return result


def _spectrum(sums: Array, counts: Array, resolution: Array) -> LyapunovSpectrum:
    """Returns the exponents for sums of logarithms `[*batch, parts, k]` over steps counted, `[*batch, parts]`."""
    dtype = sums.dtype
    weights = counts.astype(dtype)[..., None]
    total = jnp.sum(weights, axis=-2)
    exponents = jnp.sum(sums, axis=-2) / total
    order = jnp.argsort(-exponents, axis=-1)
    exponents, resolution = (jnp.take_along_axis(x, order, -1) for x in (exponents, resolution))
    in_parts = jnp.take_along_axis(sums, order[..., None, :], -1) / weights
    deviation = jnp.where((weights > 0) & jnp.isfinite(in_parts), in_parts - exponents[..., None, :], 0 * weights)
    used = jnp.sum((weights > 0).astype(dtype), axis=-2)
    variance = jnp.sum(weights * jnp.square(deviation), axis=-2) / total
    standard_error = jnp.where(used > 1, jnp.sqrt(variance / jnp.maximum(used - 1, 1)), jnp.inf)
    entropy_rate = jnp.sum(jnp.maximum(exponents, 0), axis=-1)
    return LyapunovSpectrum(exponents, standard_error, _dimension(exponents), entropy_rate, in_parts, resolution)


def _dimension(exponents: Array) -> Array:
    k = exponents.shape[-1]
    sums = jnp.cumsum(exponents, axis=-1)
    whole = jnp.sum(jnp.cumprod((sums >= 0).astype(jnp.int32), axis=-1), axis=-1)
    at = partial(jnp.take_along_axis, axis=-1)
    last_sum = at(sums, jnp.maximum(whole - 1, 0)[..., None])[..., 0]
    following = at(exponents, jnp.minimum(whole, k - 1)[..., None])[..., 0]
    fraction = jnp.where((whole > 0) & (whole < k), last_sum / jnp.abs(following), jnp.zeros_like(last_sum))
    dimension = whole.astype(exponents.dtype) + fraction
    return jnp.where(jnp.any(jnp.isnan(exponents), axis=-1), jnp.full_like(dimension, jnp.nan), dimension)


def _explain(call: LayerCall, result: LyapunovSpectrum, counted: np.ndarray, free: bool) -> None:
    """Raises ValueError for exponents that are NaN."""
    if (counted == 0).any():
        index = tuple(int(number) for number in np.argwhere(counted == 0)[0])
        raise ValueError(
            f"no step is left behind the transient{example(index)} of layer {call.layer!r}; allowed: a smaller"
            " transient."
        )
    if free:
        raise ValueError(f"the free run of {type(call.cell).__name__} does not stay finite; allowed: one that does.")
    refuse_nan(call, result.exponents)


class _FedBack(nnx.RNNCellBase):
    """A cell whose outputs are its next inputs: the carry is that of the cell and the output; x is not read."""

    num_feature_axes = 1

    def __init__(self, cell: nnx.RNNCellBase):
        self.cell = cell

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Carry:
        carry = self.cell.initialize_carry(input_shape, rngs, carry_init)
        return carry, jnp.zeros(input_shape, _input_dtype(carry))

    def __call__(self, carry: Carry, x: Array, *, context: Any = None, key: Array | None = None) -> tuple[Carry, Array]:
        inner, before = carry
        inner, y = step(self.cell, inner, before, context=context, key=key)
        if jnp.shape(y) != x.shape:
            raise ValueError(
                f"the outputs of {type(self.cell).__name__} have shape {jnp.shape(y)}; allowed with feed_back: that of"
                f" its inputs, {x.shape}."
            )
        return (inner, y.astype(before.dtype)), y


def _input_dtype(carry: Carry) -> Any:
    return next(
        (leaf.dtype for leaf in jax.tree.leaves(carry) if jnp.issubdtype(leaf.dtype, jnp.floating)), jnp.float32
    )


def _free_call(cell: nnx.RNNCellBase, carry: Carry | None, context: Any, key: Array | None) -> LayerCall:
    """Returns a call of one step on zeros, with the batch of the carry."""
    inner = cell.cell if isinstance(cell, _FedBack) else cell
    features = getattr(inner, "in_features", 1)
    if inner.num_feature_axes != 1:
        raise ValueError(f"{type(inner).__name__} reads more than one axis of features; allowed in a free run: one.")
    own = inner.initialize_carry((features,), nnx.Rngs(0))
    batch_shape: tuple[int, ...] = ()
    if carry is not None:
        first, of_own = jnp.asarray(jax.tree.leaves(carry)[0]), jax.tree.leaves(own)[0]
        batch_shape = first.shape[: first.ndim - of_own.ndim]
        if isinstance(cell, _FedBack):
            carry = (carry, jnp.zeros((*batch_shape, features), _input_dtype(own)))
    xs = jnp.zeros((*batch_shape, 1, features), _input_dtype(own))
    call = prepare_call(cell, xs, carry, context=context, key=key)
    check_finite(call)
    return call


def _free_inputs(run: Run, first: Array, count: int) -> Steps:
    """Returns the inputs of some steps of a free run: zeros, and the keys of these steps."""
    keys = None
    if run.steps.key is not None:
        key = run.call.key
        assert key is not None
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count, dtype=jnp.int32))
    x = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (count, *x.shape[1:])), run.steps.x)
    return Steps(x, None, None, None, keys)
