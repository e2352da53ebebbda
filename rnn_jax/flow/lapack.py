"""Decompositions by LAPACK: on a CPU, one matrix of a batch after another.

XLA has the threads of its pool share a batch of matrices, and waits for them in one of these threads. As many batches
at a time as there are threads (the QR and the eigenvalues of one program, or the QR of two devices) wait for ever
(jaxlib 0.10.2). One matrix is decomposed in the thread that it comes in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def qr(matrices: Array, mode: str = "reduced") -> Any:
    """`jnp.linalg.qr` of `[*batch, n, k]`."""
    return _one_by_one(lambda matrix: jnp.linalg.qr(matrix, mode=mode), matrices)


def svd(matrices: Array) -> Any:
    """`jnp.linalg.svd` of `[*batch, n, k]`, without full matrices."""
    return _one_by_one(lambda matrix: jnp.linalg.svd(matrix, full_matrices=False), matrices)


def eigenvalues(matrices: Array) -> Array:
    """`jnp.linalg.eigvals` of `[*batch, n, n]`, in no order."""
    return _one_by_one(jnp.linalg.eigvals, matrices)


def _one_by_one(decompose: Callable[[Array], Any], matrices: Array) -> Any:
    if jax.default_backend() != "cpu":
        return decompose(matrices)
    alone = jax.custom_batching.sequential_vmap(decompose)
    for _ in matrices.shape[:-2]:
        alone = jax.vmap(alone)
    return alone(matrices)
