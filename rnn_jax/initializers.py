"""How parameters are drawn: initializers by name, kernels block by block, and biases for given time scales."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

Array = jax.Array


def identity_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Initializes a kernel to the identity matrix (Le, Jaitly, Hinton 2015, arXiv 1504.00941)."""
    del key
    rows, columns = shape
    return jnp.eye(rows, columns, dtype=dtype)


_INITIALIZERS: dict[str, Initializer] = {
    "identity": identity_init,
    "zeros": nnx.initializers.zeros_init(),
    "orthogonal": nnx.initializers.orthogonal(),
    "lecun_normal": nnx.initializers.lecun_normal(),
    "glorot_uniform": nnx.initializers.glorot_uniform(),
    "he_normal": nnx.initializers.he_normal(),
    "small_normal": nnx.initializers.normal(0.001),  # of IRNN's input kernel in Le, Jaitly, Hinton 2015
}


def as_initializer(spec: str | Initializer) -> Initializer:
    """Returns an initializer `(key, shape, dtype) -> Array`, given itself or its name.

    Raises:
      ValueError: if the name is unknown.
    """
    if callable(spec):
        return spec
    if spec not in _INITIALIZERS:
        raise ValueError(f"initializer {spec!r} is unknown; allowed: {', '.join(_INITIALIZERS)}, or a function.")
    return _INITIALIZERS[spec]


def draw_kernel(
    init: str | Initializer, rows: int, columns: int, blocks: int = 1, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
) -> nnx.Param:
    """Draws a kernel `[rows, blocks * columns]` block by block, so that each block is what `init` promises.

    What an initializer annotates (`nnx.with_partitioning`) becomes the metadata of the parameter.
    """
    initializer = as_initializer(init)
    annotations: list[nnx.VariableMetadata] = []
    wide = jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype  # LAPACK, and so `orthogonal`, knows no 16-bit type

    # One model after another under `jax.vmap`: on a CPU a batched QR waits for threads of the pool that it runs in, and
    # as many of them at a time as there are threads wait for ever (jaxlib 0.10.2).
    @jax.custom_batching.sequential_vmap
    def draw(key: Array) -> Array:
        block = initializer(key, (rows, columns), wide)
        if isinstance(block, nnx.VariableMetadata):
            annotations.append(block)
            block = block.raw_value
        return block.astype(dtype)

    kernel = jnp.concatenate([draw(rngs.params()) for _ in range(blocks)], axis=-1)
    return nnx.Param(dataclasses.replace(annotations[0], raw_value=kernel) if annotations else kernel)


def chrono_bias(key: Array, t_max: float, size: int, dtype: Dtype = jnp.float32) -> Array:
    """Draws log(u), u uniform on [1, t_max - 1]: biases whose gates remember for between 2 and t_max steps.

    References:
      Tallec, Ollivier 2018, "Can recurrent neural networks warp time?", arXiv 1804.11188.

    Raises:
      ValueError: if t_max is not above 2.
    """
    if not t_max > 2:
        raise ValueError(f"chrono={t_max} is not a longest time scale; allowed: a number of steps above 2.")
    return jnp.log(jax.random.uniform(key, (size,), dtype, 1.0, t_max - 1.0))
