r"""The Jacobian spectrum: by which factors a change of the carry grows or shrinks over a growing lag.

With s the start and k a lag, the singular values of d carry_{s+k} / d carry_s are the factors by which the run
stretches small changes of the carry, one for each direction. A gradient passes the same matrix on its way back. The
values are exact (not estimates of Lyapunov exponents), however far apart they are: see `rnn_jax.flow.graded`.

References:
  Arjovsky, Shah, Bengio 2016, arXiv 1511.06464; Vorontsov, Trabelsi, Kadoury, Pal 2017, arXiv 1702.00071.
  Chen, Pennington, Schoenholz 2018, arXiv 1806.05394: dynamical isometry of gated RNNs.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.flow import graded, lapack
from rnn_jax.flow.run_order import as_call, check_count, check_start, coordinates, in_run_order, push, refuse_nan
from rnn_jax.unroll.record import LayerCall
from rnn_jax.unroll.scan import Steps

Array = jax.Array
Carry = Any

_EVERY_LAG, _LAGS = (
    32,
    32,
)  # by default: every lag up to the first number, then as many in all, evenly in their logarithm


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["lags", "log10_values", "spectral_radius", "from_orthogonal", "inside"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class JacobianSpectrum:
    """The singular values of d carry_{start + lag} / d carry_start of every sequence.

    Attributes:
      lags: int32 `[lags]`, ascending.
      log10_values: log10 of the singular values, the largest first, `[*batch, lags, k]`; -inf where one is 0.
      spectral_radius: the largest modulus of an eigenvalue of the local Jacobian d carry_t / d carry_{t-1},
        t = start + lag, `[*batch, lags]`.
      from_orthogonal: how far the local Jacobian J is from an orthogonal matrix: |J^T J - 1|_F / sqrt(n), the root mean
        square over its singular values s of s^2 - 1, `[*batch, lags]`.
      inside: whether the lag lies within the true steps of the sequence, bool `[*batch, lags]`. Behind its end the
        carry is held, and so are the values.
    """

    lags: Array
    log10_values: Array
    spectral_radius: Array
    from_orthogonal: Array
    inside: Array


def jacobian_spectrum(
    cell: nnx.RNNCellBase | LayerCall,
    xs: Any = None,
    carry: Carry | None = None,
    *,
    k: int | None = None,
    lags: Sequence[int] | None = None,
    start: int = 0,
    context: Any = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
) -> JacobianSpectrum:
    """Returns the singular values of the Jacobian of the carry over growing lags, to full relative accuracy.

    All floating-point parts of the carry together (c and h of an LSTM) are one vector of n real numbers; a complex part
    counts twice. Other parts, and those without batch axes, are held fixed. Lags count in the order of the run.

    It takes n derivatives and a QR decomposition, O(n^3), for each step, and some 10 times that for each lag; memory is
    O(n^2) whatever the lag. In float64 the logarithms are right to about 1e-12 for each factor 1e3 of the condition of
    a single step, in float32 to 1e-5. A singular value that a single step makes smaller than its rounding error, 1e-16
    or 1e-7 of the largest of that step, reads as 0 or as rounding error.

    Args:
      cell: any cell; or the record of a call, as `layer_calls` makes it, in the place of all arguments but k, lags and
        start.
      xs, carry, context, lengths, resets, reverse, key: as `rnn_jax.unroll`.
      k: how many, the largest first; all by default. It saves no time.
      lags: by default all up to 32, or 32 up to the end of the sequence, evenly in their logarithm.
      start: steps of the run before the one from which lags count.

    Raises:
      ValueError: for a lag beyond the sequence, a k above n, inputs that are not finite, or a carry that becomes so
        (where values can be known: inside `jax.jit` the spectrum is NaN there); or as `rnn_jax.unroll`.
    """
    call = as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key)
    run, space = in_run_order(call), coordinates(call)
    chosen = _chosen_lags(lags, start, call.time)
    count = check_count(k, space.size)
    n, batch_shape, axis = space.size, call.batch_shape, len(call.batch_shape)

    def at(steps: Steps, first: int, last: int) -> Steps:
        return jax.tree.map(lambda x: x[first:last], steps)

    first_carry = run.after(start)
    is_lag = jnp.asarray(np.isin(np.arange(1, chosen[-1] + 1), chosen))

    def measure(product: graded.Graded, basis: Array, columns: Array) -> Any:
        product, log2_values = graded.singular_values(product)
        local = columns @ jnp.swapaxes(basis, -1, -2)
        # Of J Q, as Q is orthogonal: |J^T J - 1|_F.
        excess = jnp.swapaxes(columns, -1, -2) @ columns - graded.identity(batch_shape, n, space.dtype).q
        distance = jnp.linalg.norm(excess, axis=(-2, -1)) / math.sqrt(n)
        return product, (log2_values, _spectral_radius(local), distance)

    def step(state: Any, inputs: tuple[Steps, Array]) -> tuple[Any, None]:
        carry, product, out, row = state
        steps, wanted = inputs
        basis = product.q
        carry, _, columns, _ = push(run, space, carry, steps, basis)
        product = graded.times(product, columns)

        def keep(operands: Any) -> Any:
            product, out, row = operands
            product, values = measure(product, basis, columns)
            return product, jax.tree.map(lambda all_, value: all_.at[row].set(value), out, values), row + 1

        product, out, row = jax.lax.cond(wanted, keep, lambda operands: operands, (product, out, row))
        return (carry, product, out, row), None

    zeros = partial(jnp.zeros, dtype=space.dtype)
    out = (zeros((len(chosen), *batch_shape, n)), *(zeros((len(chosen), *batch_shape)) for _ in range(2)))
    state = (first_carry, graded.identity(batch_shape, n, space.dtype), out, jnp.zeros((), jnp.int32))
    (_, _, out, _), _ = jax.lax.scan(step, state, (at(run.steps, start, start + chosen[-1]), is_lag))
    values, radius, distance = (jnp.moveaxis(part, 0, axis) for part in out)
    of_lags = jnp.asarray(chosen, jnp.int32)
    inside = start + of_lags.reshape((1,) * axis + (-1,)) <= run.lengths[..., None]
    result = JacobianSpectrum(of_lags, values[..., :count] * math.log10(2.0), radius, distance, inside)
    refuse_nan(call, result)
    return result


def _spectral_radius(matrix: Array) -> Array:
    """Returns the largest modulus of an eigenvalue; NaN for a matrix with an entry that is not finite."""
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1), keepdims=True)
    safe = jnp.where(finite, matrix, jnp.zeros_like(matrix))  # LAPACK may not come back from a NaN
    radius = jnp.max(jnp.abs(lapack.eigenvalues(safe)), axis=-1).astype(matrix.dtype)
    return jnp.where(finite[..., 0, 0], radius, jnp.full_like(radius, jnp.nan))


def _chosen_lags(lags: Sequence[int] | None, start: int, time: int) -> list[int]:
    check_start("start", start, time)
    last = time - start
    if lags is None:
        if last <= _EVERY_LAG:
            return list(range(1, last + 1))
        return sorted({round(lag) for lag in np.geomspace(1, last, _LAGS)})
    chosen = sorted({int(lag) for lag in lags})
    wrong = [lag for lag in chosen if not 1 <= lag <= last]
    if wrong or not chosen:
        raise ValueError(
            f"lags holds {wrong[0] if wrong else 'nothing'}; allowed: 1 to {last}, the steps of the sequence"
            f"{f' behind start={start}' if start else ''}."
        )
    return chosen
