r"""Products of many matrices, whose singular values may differ by any factor, to full relative accuracy.

A product P of T Jacobians has singular values from about e^{\lambda_1 T} to e^{\lambda_n T}. Computed as a matrix, all
below 1e-16 of the largest are rounding error. Here it is kept as

    P = Q diag(2^e) S V,    Q and V orthogonal, e whole numbers, the rows of S between 1 and 2 long

where V is never formed. A factor J goes in by a QR decomposition, J Q = Q' R, of which the new scales and S follow;
columns are sorted by size first, so that the scales stay sorted and S well-conditioned. One-sided Jacobi rotations of
the rows of diag(2^e) S, each of its own size, then make them orthogonal: their lengths are the singular values.
Logarithms of the diagonals of the R alone, summed up, are not: they tend to T times the Lyapunov exponents.

References:
  Demmel, Veselic 1992, "Jacobi's method is more accurate than QR", SIAM J. Matrix Anal. Appl. 13(4).
  Loh, Gubernatis, Scalettar, White, Scalapino, Sugar 1989, in "Interacting electrons in reduced dimensions": the
  product as an orthogonal, a diagonal and a well-conditioned factor.
  Bischof, Van Loan 1987, "The WY representation for products of Householder matrices", SIAM J. Sci. Stat. Comput. 8(1);
  Schreiber, Van Loan 1989, its compact form.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.flow import lapack
from rnn_jax.unroll.running_scale import times_power_of_two

Array = jax.Array

_PANEL = 32  # columns; above twice as many LAPACK makes products on threads, which wait for each other at every call
_SWEEPS = 40  # Jacobi needs 4 to 8


class Graded(NamedTuple):
    """A product of n x n matrices, as the module says.

    Attributes:
      q: Q, `[*batch, n, n]`.
      exponent: e, whole-valued, `[*batch, n]`; anything where the row of S is 0.
      rows: S, `[*batch, n, n]`.
    """

    q: Array
    exponent: Array
    rows: Array


def identity(batch_shape: tuple[int, ...], size: int, dtype: Any) -> Graded:
    """Returns the product of no matrices."""
    eye = _eye_like(jnp.zeros((*batch_shape, size, 0), dtype), size)
    return Graded(eye, jnp.zeros((*batch_shape, size), dtype), eye)


def times(product: Graded, columns: Array) -> Graded:
    """Multiplies the product by J from the left.

    What the QR decomposition cannot tell from 0, as it is below the rounding error of its column, is 0.

    Args:
      product: `[*batch, n, n]`.
      columns: J Q.
    """
    size = _log2_norm(columns, -2)
    order = jnp.argsort(-(product.exponent + _log2_norm(product.rows, -1) + size), axis=-1)
    columns = jnp.take_along_axis(columns, order[..., None, :], -1)
    rows = jnp.take_along_axis(product.rows, order[..., :, None], -2)
    exponent = jnp.take_along_axis(product.exponent, order, -1)
    q, r = qr_above_rounding(columns)
    r = jnp.where(jnp.any(rows != 0, axis=-1)[..., None, :], r, jnp.zeros_like(r))

    size_of_r = jnp.floor(jnp.log2(jnp.abs(r))) + exponent[..., None, :]  # -inf where r = 0
    largest = jnp.max(size_of_r, axis=-1)
    largest = jnp.where(jnp.isfinite(largest), largest, jnp.zeros_like(largest))
    r = times_power_of_two(r, exponent[..., None, :] - largest[..., :, None])
    return _normalized(Graded(q, largest, r @ rows))


def singular_values(product: Graded) -> tuple[Graded, Array]:
    """Returns the product with the rows of S orthogonal, and log2 of its singular values `[*batch, n]`, descending."""
    product = _orthogonal_rows(product)
    log2_values = product.exponent + _log2_norm(product.rows, -1)
    return product, -jnp.sort(-log2_values, axis=-1)


def _log2_norm(x: Array, axis: int) -> Array:
    """Returns log2 of the norm along an axis; -inf for zeros, and no underflow of the squares."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    norm = jnp.linalg.norm(x / scale, axis=axis)
    return jnp.log2(norm) + jnp.log2(jnp.squeeze(scale, axis))


def _normalized(product: Graded) -> Graded:
    """Brings the length of each row of S between 1 and 2."""
    log2_norm = _log2_norm(product.rows, -1)
    shift = jnp.where(jnp.isfinite(log2_norm), jnp.floor(log2_norm), jnp.zeros_like(log2_norm))
    rows = times_power_of_two(product.rows, jnp.broadcast_to(-shift[..., None], product.rows.shape))
    return Graded(product.q, product.exponent + shift, rows)


def _orthogonal_rows(product: Graded) -> Graded:
    """Rotates pairs of rows of diag(2^e) S, and columns of Q with them, until all rows are orthogonal.

    Each round rotates n / 2 pairs that have no row in common; n - 1 rounds meet all pairs (a round-robin tournament).
    """
    n = product.q.shape[-1]
    padding = n % 2
    dtype = product.rows.dtype
    # Rows of S and of Q^T beside each other; a row of zeros where n is odd.
    rows = jnp.concatenate([product.rows, jnp.swapaxes(product.q, -1, -2)], axis=-1)
    rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 2) + [(0, padding), (0, 0)])
    exponent = jnp.pad(product.exponent, [(0, 0)] * (rows.ndim - 2) + [(0, padding)])
    half = (n + padding) // 2
    tolerance = 0.01 * jnp.sqrt(jnp.finfo(dtype).eps).astype(dtype)

    def one_round(state, _):
        rows, exponent, worst = state
        a, b = rows[..., :half, :], rows[..., half:, :][..., ::-1, :]
        e_a, e_b = exponent[..., :half], exponent[..., half:][..., ::-1]
        a, b, e_a, e_b, cosine = _rotate(a, b, e_a, e_b, n)
        rows = jnp.concatenate([a, b[..., ::-1, :]], axis=-2)
        exponent = jnp.concatenate([e_a, e_b[..., ::-1]], axis=-1)
        rows = jnp.concatenate([rows[..., :1, :], rows[..., -1:, :], rows[..., 1:-1, :]], axis=-2)
        exponent = jnp.concatenate([exponent[..., :1], exponent[..., -1:], exponent[..., 1:-1]], axis=-1)
        return (rows, exponent, jnp.maximum(worst, jnp.max(jnp.abs(cosine)))), None

    def sweep(state):
        rows, exponent, _, count = state
        start = (rows, exponent, jnp.zeros((), dtype))
        (rows, exponent, worst), _ = jax.lax.scan(one_round, start, length=2 * half - 1)
        return rows, exponent, worst, count + 1

    def goes_on(state):
        return (state[2] > tolerance) & (state[3] < _SWEEPS)

    start = (rows, exponent, jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32))
    rows, exponent, _, _ = jax.lax.while_loop(goes_on, sweep, start)
    rows, exponent = rows[..., :n, :], exponent[..., :n]
    return Graded(jnp.swapaxes(rows[..., n:], -1, -2), exponent, rows[..., :n])


def _rotate(a: Array, b: Array, e_a: Array, e_b: Array, n: int) -> tuple[Array, Array, Array, Array, Array]:
    """Makes the rows 2^e_a a and 2^e_b b orthogonal, pair by pair, by a rotation that turns rows of Q^T with them.

    With r = |smaller| / |larger| and c the cosine between them, the tangent of the angle is r t, where
    t = 2 c / (1 - r^2 + sqrt((1 - r^2)^2 + 4 r^2 c^2)) stays of order 1 however small r is.

    Args:
      a, b: `[*batch, pairs, 2 n]`: n columns of S, then n of Q^T.
      e_a, e_b: `[*batch, pairs]`.
    """
    s_a, s_b = a[..., :n], b[..., :n]
    norm_a, norm_b = jnp.linalg.norm(s_a, axis=-1), jnp.linalg.norm(s_b, axis=-1)
    both = (norm_a > 0) & (norm_b > 0)
    one = jnp.ones_like(norm_a)
    norm_a, norm_b = jnp.where(both, norm_a, one), jnp.where(both, norm_b, one)
    c = jnp.where(both, jnp.sum(s_a * s_b, axis=-1) / (norm_a * norm_b), 0 * one)
    b_over_a = norm_b / norm_a
    shift = e_b - e_a
    a_larger = shift + jnp.log2(b_over_a) <= 0
    sign = jnp.where(a_larger, one, -one)
    ratio_of_norms = jnp.where(a_larger, b_over_a, 1 / b_over_a)
    r = jnp.minimum(times_power_of_two(ratio_of_norms, sign * shift), one)
    gap = (1 - r) * (1 + r)
    denominator = gap + jnp.sqrt(gap**2 + (2 * r * c) ** 2)
    t = jnp.where(denominator > 0, 2 * c / jnp.where(denominator > 0, denominator, one), 0 * one)
    cosine_of_angle = jax.lax.rsqrt(1 + (r * t) ** 2)

    # In units of 2^e of their own: larger + (r t) 2^(shift) smaller, smaller - (r t) 2^(-shift) larger.
    to_larger = times_power_of_two(r * t, sign * shift)
    to_smaller = -t * ratio_of_norms
    to_a = jnp.where(a_larger, to_larger, to_smaller)
    to_b = jnp.where(a_larger, to_smaller, to_larger)
    to_q = sign * r * t

    def combine(x: Array, y: Array, of_s: Array, of_q: Array) -> Array:
        s = x[..., :n] + of_s[..., None] * y[..., :n]
        q = x[..., n:] + of_q[..., None] * y[..., n:]
        return cosine_of_angle[..., None] * jnp.concatenate([s, q], axis=-1)

    a, b = combine(a, b, to_a, to_q), combine(b, a, to_b, -to_q)
    e_a, a = _renormalized(e_a, a, n)
    e_b, b = _renormalized(e_b, b, n)
    return a, b, e_a, e_b, c


def _renormalized(exponent: Array, rows: Array, n: int) -> tuple[Array, Array]:
    log2_norm = _log2_norm(rows[..., :n], -1)
    shift = jnp.where(jnp.isfinite(log2_norm), jnp.floor(log2_norm), jnp.zeros_like(log2_norm))
    s = times_power_of_two(rows[..., :n], jnp.broadcast_to(-shift[..., None], (*rows.shape[:-1], n)))
    return exponent + shift, jnp.concatenate([s, rows[..., n:]], axis=-1)


def qr_above_rounding(columns: Array) -> tuple[Array, Array]:
    """Returns `qr(columns)`, with 0 where an entry of R is below the rounding error of its column.

    A column with an entry that is not finite makes NaN of R's.
    """
    q, r = qr(columns)
    size = jnp.linalg.norm(columns, axis=-2)[..., None, :]
    r = jnp.where(jnp.abs(r) <= jnp.finfo(r.dtype).eps * size, jnp.zeros_like(r), r)
    return q, jnp.where(jnp.isfinite(size), r, jnp.full_like(r, jnp.nan))


def qr(columns: Array) -> tuple[Array, Array]:
    """Returns Q `[*batch, n, k]` and R `[*batch, k, k]` of `[*batch, n, k]`, k <= n, by Householder's reflections.

    As `jnp.linalg.qr`, which it is for few columns. With more, LAPACK decomposes panels of columns, and XLA does the
    products between them, which are most of the work.
    """
    k = columns.shape[-1]
    if k <= 2 * _PANEL:
        return lapack.qr(columns)
    panels, triangle = [], []
    for start in range(0, k, _PANEL):
        panel = columns[..., start:, : min(_PANEL, k - start)]
        columns = columns[..., min(_PANEL, k - start) :]
        packed, tau = lapack.qr(panel, mode="raw")  # both transposed, as in NumPy
        packed = jnp.swapaxes(packed, -1, -2)
        width = panel.shape[-1]
        v = jnp.tril(packed, -1) + _eye_like(packed)
        v = jnp.where(tau[..., None, :] == 0, jnp.zeros_like(v), v)
        panels.append((start, v, _triangular_factor(v, tau)))
        below = columns[..., start:, :]
        below = below - v @ (jnp.swapaxes(panels[-1][2], -1, -2) @ (jnp.swapaxes(v, -1, -2) @ below))
        r_of_panel = jnp.concatenate([jnp.triu(packed[..., :width, :]), below[..., :width, :]], axis=-1)
        triangle.append(jnp.pad(r_of_panel, [(0, 0)] * (columns.ndim - 1) + [(start, 0)]))
        columns = jnp.concatenate([columns[..., :start, :], below], axis=-2)
    q = _eye_like(columns, k)
    for start, v, t in reversed(panels):
        below = q[..., start:, start:]
        below = below - v @ (t @ (jnp.swapaxes(v, -1, -2) @ below))
        q = jnp.concatenate([q[..., :start, :], jnp.concatenate([q[..., start:, :start], below], axis=-1)], axis=-2)
    return q, jnp.concatenate(triangle, axis=-2)


def _triangular_factor(v: Array, tau: Array) -> Array:
    """Returns T with I - V T V^T the product of the reflections I - tau_j v_j v_j^T (Schreiber, Van Loan 1989).

    The factors of two neighbors are joined, [[T1, -T1 V1^T V2 T2], [0, T2]], then of two pairs, and so on.
    """
    width = v.shape[-1]
    products = jnp.swapaxes(v, -1, -2) @ v
    factor = tau[..., None] * _eye_like(v, width)[..., :width, :]
    size, index = 1, np.arange(width)
    while size < width:
        block = index // size
        joins = (block[:, None] % 2 == 0) & (block[None, :] == block[:, None] + 1)
        between = jnp.where(jnp.broadcast_to(joins, products.shape), products, jnp.zeros_like(products))
        factor = factor - factor @ between @ factor
        size *= 2
    return factor


def _eye_like(matrix: Array, columns: int | None = None) -> Array:
    """Returns the first columns of the unit matrix, as many rows as the matrix has, for each of a batch."""
    *batch_shape, n, own = matrix.shape
    k = own if columns is None else columns
    return jnp.broadcast_to(jnp.eye(n, k, dtype=matrix.dtype), (*batch_shape, n, k))
