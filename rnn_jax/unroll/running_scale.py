"""The adjoint carried backward with a running scale, so that its norm never underflows.

The adjoint of a carry, a_t = dL/d carry_t, shrinks or grows by a factor a step: in float32 it is 0 after a few
hundred steps, and its square long before. Here the backward pass carries a pair (a', s) with a_t = a' 2^s and a norm
of a' of about 1. JAX itself propagates the pair: a scalar of value 0, the scale token, runs through the scan beside the
carry, and two identity functions around each step define that the cotangent of the token is s.

                           one step                                      backward, the same wires carry

    carry ------> unscale ----> cell ----> rescale ------> carry         a'  the scaled adjoint
                  |   ^          | y        |   |
    token --------+---|----------|----------+---+--------> token         s   its log2 scale
                      |          |          |
    parameters, x ----+          +----> y   +---- probe_t                gradients, dL/dy; what is recorded

* `rescale`, behind the cell, receives the scaled cotangent a' of the carry and the unscaled cotangent g of the output.
  It takes the larger of the two scales, a whole power of two, and brings both to it.
* `unscale`, in front of the cell, multiplies what the cell sends to its parameters and its input by 2^s.

As every factor is a power of two, parameter gradients are those of the plain backward pass, bit for bit, unless that
one met denormal numbers. `rescale` also takes a `Probe`: zeros, one element a step, whose cotangent is what the probe
records of (a', s). So a recording comes out of `jax.grad` beside the gradients, in one pass.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Record = Callable[[PyTree, Array, Array], PyTree]  # of a `Probe`


@partial(jax.tree_util.register_dataclass, data_fields=["zeros", "count", "shares"], meta_fields=["record"])
@dataclasses.dataclass(frozen=True)
class Probe:
    """What to record of the adjoint at every step of an unroll.

    Attributes:
      zeros: pytree of zeros, `[time, ...]` each. Their cotangents are the recording.
      count: a float32 zero. Its cotangent counts how often the probe ran; more than once, the recording is a sum.
      record: `(adjoint, norms, log2_scale) -> pytree` of the shapes in `zeros`, less the time axis. The true adjoint is
        `adjoint * 2**log2_scale`; norms are `log2_norms(adjoint)`.
      shares: float32 zeros `[time]`, or None. Their cotangents are log2 of the norm of what each step alone adds to the
        gradient of the cell's parameters, summed over the batch. The cell then runs by the plain scan.
    """

    zeros: PyTree
    count: Array
    record: Record
    shares: Array | None = None


def power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    """Returns 2**exponent exactly, for whole exponents within the normal numbers of float32 or float64."""
    bits, bias, mantissa = (jnp.int64, 1023, 52) if dtype == jnp.float64 else (jnp.int32, 127, 23)
    return jax.lax.bitcast_convert_type(jax.lax.shift_left(exponent.astype(bits) + bias, bits(mantissa)), dtype)


def times_power_of_two(tree: PyTree, exponent: Array) -> PyTree:
    """Multiplies every inexact leaf by 2**exponent, exactly as long as the result is a normal number.

    Args:
      tree: arrays of any shape; leaves of other types (`float0` cotangents) are passed through.
      exponent: whole-valued scalar, however large: a product below the smallest number is 0, never NaN.
    """

    def scale(x: Array) -> Array:
        if not is_inexact(x):
            return x
        wide = wide_dtype(x)
        # Complex numbers take a complex factor, 16-bit ones pass through float32: no implicit promotion.
        through = x.dtype if jnp.issubdtype(x.dtype, jnp.complexfloating) else wide
        limit = jnp.finfo(wide).maxexp - 2
        # Two factors: one alone would leave the range of the type before the product does.
        half = jnp.clip(jnp.floor(exponent / 2), -limit, limit)
        rest = jnp.clip(exponent - half, -limit, limit)
        product = x.astype(through)
        for part in (half, rest):
            product = product * power_of_two(part, wide).astype(through)
        return product.astype(x.dtype)

    return jax.tree.map(scale, tree)


def log2_largest(tree: PyTree) -> Array:
    """Returns log2 of the largest absolute entry, rounded down, as float32; -inf for an all-zero or empty tree."""
    # The largest of each column first: XLA does not vectorize a reduction of a whole array to one number.
    columns = [jnp.max(jnp.abs(_rows(x)), axis=0).astype(wide_dtype(x)) for x in _measurable(tree)]
    exponents = [jnp.max(jnp.floor(jnp.log2(column)).astype(jnp.float32)) for column in columns]
    return jnp.max(jnp.stack(exponents)) if exponents else jnp.float32(-jnp.inf)


def log2_norms(tree: PyTree) -> Array:
    """Returns log2 of the Euclidean norm of each leaf, float32 `[leaves]`, without under- or overflow.

    It is -inf for a leaf of zeros, and for one that has no gradient.
    """
    leaves = jax.tree.leaves(tree)
    squares = [_sum_of_squares(x) for x in _measurable(leaves)]
    if not squares:
        return jnp.full(len(leaves), -jnp.inf, jnp.float32)
    # The sums of a norm of about 1 do not need the care that any norm needs, and which takes twice the time.
    safe = jnp.stack([(square > 2.0**-80) & (square < 2.0**80) for square in squares])
    norms = jax.lax.cond(
        jnp.all(safe),
        lambda: 0.5 * jnp.log2(jnp.stack(squares)),
        lambda: jnp.stack([_log2_norm_of_any_size(x) for x in _measurable(leaves)]),
    )
    if len(squares) == len(leaves):
        return norms
    measured = iter(norms)
    return jnp.stack([next(measured) if _is_measurable(x) else jnp.float32(-jnp.inf) for x in leaves])


def log2_of_whole(norms: Array) -> Array:
    """Returns log2 of the norm of a whole, for `log2_norms` of its parts."""
    largest = jnp.max(norms)
    whole = largest + 0.5 * jnp.log2(jnp.sum(jnp.exp2(2.0 * (norms - largest))))
    return jnp.where(jnp.isfinite(largest), whole, largest)


def _log2_norm_of_any_size(x: Array) -> Array:
    largest = log2_largest(x)
    exponent = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return exponent + 0.5 * jnp.log2(_sum_of_squares(times_power_of_two(x, -exponent)))


def _sum_of_squares(x: Array) -> Array:
    columns = jnp.sum(jnp.square(jnp.abs(_rows(x)).astype(wide_dtype(x))), axis=0)
    # `maximum` changes nothing, but keeps XLA from merging the two sums into one that it does not vectorize.
    return jnp.sum(jnp.maximum(columns, 0)).astype(jnp.float32)


def _measurable(tree: PyTree) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if _is_measurable(x)]


def _is_measurable(x: Array) -> bool:
    return is_inexact(x) and x.size > 0


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)


def is_inexact(x: Array) -> bool:
    """Whether x has a gradient: real or complex floating point."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def wide_dtype(x: Array | jax.ShapeDtypeStruct) -> jnp.dtype:
    """Returns the real dtype to measure x in: float64 for double precision, else float32."""
    return jnp.dtype(jnp.float64 if x.dtype in (jnp.float64, jnp.complex128) else jnp.float32)


def zero_like_all(tree: PyTree) -> Array:
    """Returns the scale token: a float32 zero that is mapped by `jax.vmap` wherever an array of the tree is.

    A loss may map a model over examples. A token that was not mapped would then have one cotangent, the sum of theirs.
    """
    token = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        if leaf.size:
            token = jnp.where(leaf[(0,) * leaf.ndim] == jnp.zeros((), leaf.dtype), token, token)  # a mask is bool
    return jax.lax.stop_gradient(token)


@jax.custom_vjp
def unscale(tree: PyTree, scale_token: Array) -> tuple[PyTree, Array]:
    """Identity whose backward pass multiplies the cotangent of `tree` by 2**(cotangent of the token)."""
    # Where the token is mapped by `jax.vmap` the tree must be, too: cotangents of different scales are not to be added.
    return jax.tree.map(lambda x: jnp.where(scale_token == 0, x, x), tree), scale_token


def _unscale_fwd(tree, scale_token):
    return unscale(tree, scale_token), None


def _unscale_bwd(_, cotangents):
    tree, log2_scale = cotangents
    return times_power_of_two(tree, log2_scale), log2_scale


unscale.defvjp(_unscale_fwd, _unscale_bwd)


@jax.custom_vjp
def record_share(parameters: PyTree, scale_token: Array, share_t: Array) -> tuple[PyTree, Array]:
    """Identity on parameters and token; its backward pass records log2 of the norm of the parameters' cotangent.

    It stands between `unscale` and the cell, so that the cotangent is one step's, and at the scale of the adjoint.
    """
    del share_t
    return parameters, scale_token


def _record_share_fwd(parameters, scale_token, share_t):
    del share_t
    return (parameters, scale_token), None


def _record_share_bwd(_, cotangents):
    parameters, log2_scale = cotangents
    return parameters, log2_scale, log2_of_whole(log2_norms(parameters)) + log2_scale


record_share.defvjp(_record_share_fwd, _record_share_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def rescale(
    record: Record, carry: PyTree, y: PyTree, scale_token: Array, probe_t: PyTree
) -> tuple[PyTree, PyTree, Array]:
    """Identity on carry, y and token; its backward pass records the adjoint and brings both cotangents to one scale."""
    del record, probe_t
    return carry, y, scale_token


def _rescale_fwd(record, carry, y, scale_token, probe_t):
    del record, probe_t
    return (carry, y, scale_token), None


def _rescale_bwd(record, _, cotangents):
    a, g, log2_scale = cotangents
    norms = log2_norms(a)
    recorded = record(a, norms, log2_scale)
    a, g, new_scale = common_scale(a, g, norms, log2_scale)
    return a, g, new_scale, recorded


rescale.defvjp(_rescale_fwd, _rescale_bwd)


def common_scale(
    a: PyTree, g: PyTree, norms: Array, log2_scale: Array, log2_largest_g: Array | None = None
) -> tuple[PyTree, PyTree, Array]:
    """Brings a scaled cotangent a (true value `a * 2**log2_scale`) and an unscaled one g to one scale.

    Args:
      a, g: the cotangents of carry and output.
      norms: `log2_norms(a)`.
      log2_scale: of a.
      log2_largest_g: `log2_largest(g)`, if it is known.

    Returns:
      a, g and the new log2_scale. The largest norm of a part of a, or the largest entry of g, is then between 1 and 2,
      and the other less.
    """
    log2_largest_g = log2_largest(g) if log2_largest_g is None else log2_largest_g
    new = jnp.maximum(log2_scale + jnp.floor(jnp.max(norms)), log2_largest_g)
    new = jnp.where(jnp.isfinite(new), new, log2_scale)  # all zero, or not finite: nothing to bring to scale
    return times_power_of_two(a, log2_scale - new), times_power_of_two(g, -new), new
