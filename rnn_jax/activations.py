"""Elementwise functions by name, as a flag or an argument of a cell gives them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
    "softsign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
    "gelu": jax.nn.gelu,
    "sin": jnp.sin,
}


def as_activation(spec: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns an elementwise function, given itself or its name.

    Raises:
      ValueError: if the name is unknown.
    """
    if callable(spec):
        return spec
    if spec not in _ACTIVATIONS:
        raise ValueError(f"activation={spec!r} is unknown; allowed: {', '.join(_ACTIVATIONS)}, or a function.")
    return _ACTIVATIONS[spec]
