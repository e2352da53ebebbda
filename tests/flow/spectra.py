"""Brute force for the spectra: the Jacobian of every step by itself, from a loop over examples and steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from tests import reference

# One kind for each way in which a carry or a step could break an instrument; the others run with the slow tests.
_QUICK = ("lstm", "IndRNNCell", "MatrixCell", "AttendingCell")
KINDS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name.rpartition(":")[2] not in _QUICK))
    for name in reference.REPRESENTATIVE
]


@reference.quick_jit
def one_step(cell, carry, x, context):
    """Returns the carry behind a step, and the Jacobian of its floating-point parts."""
    structure, moves = jax.tree.structure(carry), [is_inexact(part) for part in jax.tree.leaves(carry)]

    def moving(carry):
        return [part for part, moves_ in zip(jax.tree.leaves(carry), moves, strict=True) if moves_]

    def of_parts(parts):
        parts = iter(parts)
        leaves = [next(parts) if moves_ else old for old, moves_ in zip(jax.tree.leaves(carry), moves, strict=True)]
        new, _ = rnn_jax.step(cell, jax.tree.unflatten(structure, leaves), x, context=context)
        return moving(new), new

    rows, new = jax.jacrev(of_parts, has_aux=True)(moving(carry))
    sizes = [part.size for part in moving(carry)]
    blocks = [[x.reshape(a, b) for x, b in zip(row, sizes, strict=True)] for row, a in zip(rows, sizes, strict=True)]
    return new, jnp.block(blocks)


def is_inexact(part):
    return jnp.issubdtype(part.dtype, jnp.inexact)


def jacobians_by_hand(cell, xs, carry=None, *, lengths=None, resets=None, reverse=False, context=None):
    """Returns for each example the Jacobians d carry_t / d carry_{t-1} of its run, `[steps, n, n]`, in float64.

    Args:
      cell, xs, carry, ...: as `rnn_jax.unroll`, with one batch axis.
    """
    xs, carry, context = jax.tree.map(np.asarray, (xs, carry, context))
    fresh = cell.initialize_carry(xs.shape[2:], nnx.Rngs(0))
    result = []
    for b in range(len(xs)):
        state = fresh if carry is None else jax.tree.map(lambda part, b=b: part[b], carry)
        here = None if context is None else context[b]
        length = xs.shape[1] if lengths is None else int(lengths[b])
        matrices = []
        for t in range(length)[::-1] if reverse else range(length):
            fell = resets is not None and bool(resets[b, t])
            state, matrix = one_step(cell, fresh if fell else state, xs[b, t], here)
            matrices.append((0.0 if fell else 1.0) * np.asarray(matrix))
        result.append(np.stack(matrices))
    return result


@functools.cache
def case(name):
    """Returns a cell of three units, the arguments of a call of it on two examples, and the Jacobians of their runs."""
    cell, xs = reference.make_cell(name, 2, 3, seed=1), reference.normal(2, 2, 6, 2)
    arguments = {"carry": reference.random_carry(cell, (2,), seed=3)}
    if "Attending" in name:
        arguments["context"] = reference.normal(7, 2, 6, 2)
    return cell, xs, arguments, jacobians_by_hand(cell, xs, **arguments)


def log10_values(matrices):
    """Returns log10 of the singular values of the product of the first 1, 2, ... matrices, `[steps, n]`."""
    product, rows = np.eye(matrices.shape[-1]), []
    with np.errstate(divide="ignore"):
        for matrix in matrices:
            product = matrix @ product
            rows.append(np.log10(np.linalg.svd(product, compute_uv=False)))
    return np.array(rows)


def rates(matrices, basis):
    """Returns the mean logarithms of the diagonal of R, by a QR decomposition a step, the largest first."""
    total = 0.0
    with np.errstate(divide="ignore"):
        for matrix in matrices:
            basis, r = np.linalg.qr(matrix @ basis)
            total = total + np.log(np.abs(np.diagonal(r)))
    return np.sort(total / len(matrices))[::-1]
