"""Decompositions of a batch on a CPU: they never wait for threads of the pool that they run in."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import flow
from rnn_jax.flow import lapack
from tests import reference


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is of the CPU")
def test_instruments_decompose_one_matrix_at_a_time_also_under_vmap():
    cell = rnn_jax.ElmanCell(1, 3, rngs=nnx.Rngs(0))

    def measure(xs):
        return (
            flow.jacobian_spectrum(cell, xs, lags=[2]),
            flow.lyapunov_spectrum(cell, xs, parts=1),
            flow.memory_curve(cell, xs, lags=[0]),
        )

    text = jax.jit(jax.vmap(measure)).lower(jnp.zeros((2, 4, 5, 1), jnp.float32)).as_text()
    operands = re.findall(r"@lapack_\w+\(.*: \(tensor<([\dx]+)xf32>", text)
    assert len(operands) >= 4
    assert all(shape.count("x") == 1 for shape in operands), operands


def test_a_batch_is_decomposed_as_its_matrices_are():
    matrices = reference.normal(0, 2, 3, 4, 4)
    q, r = lapack.qr(matrices)
    reference.assert_close(q @ r, matrices, 1e-13)
    u, s, v = lapack.svd(matrices)
    reference.assert_close((u * s[..., None, :]) @ v, matrices, 1e-13)
    size = jnp.prod(jnp.abs(lapack.eigenvalues(matrices)), axis=-1)
    reference.assert_close(size, jnp.abs(jnp.linalg.det(matrices)), 1e-12)
