"""Arrays of a model that training leaves alone: a fixed reservoir, a mask of connections, a table of time scales.

A `Constant` is a leaf of the model, so that it is saved, cast, batched and put on devices like a parameter. It takes
part in no training: its gradient is zero, and an optimizer wrapped in `keep_constants` never changes it. The optimizers
of `rnn_jax.training` are wrapped. An optimizer of optax alone is not, and its weight decay would move the array.

    self.reservoir = Constant(0.9 * jax.random.orthogonal(rngs.params(), hidden_features))
    optimizer = keep_constants(optax.adamw(1e-3, weight_decay=0.1))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

PyTree = Any


class Constant(nnx.Variable[jax.Array]):
    """A floating-point array that no gradient reaches; read it as a parameter is read, `self.reservoir[...]`."""

    def get_value(self, **kwargs: Any) -> jax.Array:
        """Returns the array; no gradient flows through what is returned."""
        return jax.lax.stop_gradient(super().get_value(**kwargs))


def keep_constants(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the same optimizer, with updates of exactly zero for every `Constant` of a model."""

    def zero(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        return jax.tree.map(
            lambda node: jax.tree.map(jnp.zeros_like, node) if _is_constant(node) else node,
            updates,
            is_leaf=_is_constant,
        )

    return optax.chain(optimizer, optax.stateless(zero))


def parameter_count(model: PyTree) -> int:
    """Returns how many numbers of a model are trained: all but those of its `Constant`s."""
    nodes = jax.tree.leaves(model, is_leaf=_is_constant)
    return sum(leaf.size for node in nodes if not _is_constant(node) for leaf in jax.tree.leaves(node))


def _is_constant(node: Any) -> bool:
    return isinstance(node, Constant)
