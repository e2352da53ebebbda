"""Decompositions of a batch on a CPU: they never wait for threads of the pool that they run in."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import flow
from rnn_jax.flow import lapack
from tests import reference


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is of the CPU")
def test_instruments_decompose_one_matrix_at_a_time_also_under_vmap():
    def measure(cell, xs):
        return (
            flow.jacobian_spectrum(cell, xs, lags=[2]),
            flow.lyapunov_spectrum(cell, xs, parts=1),
            flow.memory_curve(cell, xs, lags=[0]),
        )

    cell = jax.eval_shape(lambda: rnn_jax.ElmanCell(1, 3, rngs=nnx.Rngs(0)))
    xs = jnp.zeros((2, 4, 5, 1), jnp.float32)
    text = jax.jit(jax.vmap(measure, (None, 0))).lower(cell, xs).as_text()
    operands = re.findall(r"@lapack_\w+\(.*: \(tensor<([\dx]+)xf32>", text)
    assert len(operands) >= 4
    assert all(shape.count("x") == 1 for shape in operands), operands


def test_a_batch_is_decomposed_as_its_matrices_are():
    matrices = np.asarray(reference.normal(0, 2, 3, 4, 4))

    @reference.quick_jit
    def decompose(matrices):
        return lapack.qr(matrices), lapack.svd(matrices), lapack.eigenvalues(matrices)

    (q, r), (u, s, v), eigenvalues = jax.tree.map(np.asarray, decompose(matrices))
    reference.assert_close(q @ r, matrices, 1e-13)
    reference.assert_close((u * s[..., None, :]) @ v, matrices, 1e-13)
    reference.assert_close(np.prod(np.abs(eigenvalues), axis=-1), np.abs(np.linalg.det(matrices)), 1e-12)
