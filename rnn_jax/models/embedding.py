"""The embedding of tokens, as all models of text begin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import check_sizes

Array = jax.Array


def make_embedding(
    vocabulary_size: int,
    emb_size: int | None,
    matrix: Array | np.ndarray | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> nnx.Embed:
    """Makes an embedding of tokens, drawn from a normal distribution of variance 1 / E, or given as a matrix `[V, E]`.

    Raises:
      ValueError: if the size is below 1, or the matrix has another shape.
    """
    if matrix is not None:
        shape = np.shape(matrix)
        if len(shape) != 2 or shape[0] != vocabulary_size or emb_size not in (None, shape[1]):
            wanted = f"[{vocabulary_size}, {'E' if emb_size is None else emb_size}]"
            raise ValueError(f"embedding has shape {shape}; allowed: {wanted}, a row for each token.")
        emb_size = shape[1]
    assert emb_size is not None
    check_sizes(emb_size=emb_size)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        if matrix is not None:
            return jnp.asarray(matrix, dtype)
        return emb_size**-0.5 * jax.random.normal(key, shape, dtype)

    return nnx.Embed(vocabulary_size, emb_size, embedding_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def embed(embedding: nnx.Embed, tokens: Array, frozen: bool = False) -> Array:
    """Maps tokens, integers `[*batch, time]`, to vectors, `[*batch, time, E]`.

    Raises:
      ValueError: if they are no such array, or one is beyond the vocabulary (where it can be known: not inside
        `jax.jit`).
    """
    check_tokens("inputs", tokens, embedding.num_embeddings)
    vectors = embedding(jnp.asarray(tokens))
    return jax.lax.stop_gradient(vectors) if frozen else vectors


def check_tokens(name: str, tokens: Array | np.ndarray, vocabulary_size: int) -> None:
    """Raises ValueError unless all are tokens of a vocabulary; as far as that can be known, if they are traced."""
    known = tokens if isinstance(tokens, jax.core.Tracer) else np.asarray(tokens)
    if known.ndim < 1 or not jnp.issubdtype(known.dtype, jnp.integer):
        raise ValueError(
            f"{name} have shape {known.shape} and dtype {known.dtype}; allowed: tokens, integers [*batch, time]."
        )
    if isinstance(known, np.ndarray) and known.size and not 0 <= known.min() <= known.max() < vocabulary_size:
        wrong = known.min() if known.min() < 0 else known.max()
        raise ValueError(
            f"{name}: the token {wrong} is out of range; allowed: 0 to {vocabulary_size - 1}, those of the vocabulary."
        )
