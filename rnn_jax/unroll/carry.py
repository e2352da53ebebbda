"""A carry that is given, brought to the form of the cell's own: order of its parts, shapes and types."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import Cell, carry_names

Array = jax.Array
Carry = Any

# Cells whose carry is what `initialize_carry` makes, and nothing else. Another cell may run on a carry of other shapes.
_DECLARED = (Cell, nnx.SimpleCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell)


def fit_carry(cell: nnx.RNNCellBase, carry: Carry, input_shape: tuple[int, ...]) -> Carry:
    """Returns the carry in the pytree structure and the types of the cell's own.

    Parts are matched by name where both have names (`(h=..., c=...)` or `{"c": ..., "h": ...}` becomes
    `LSTMCarry(c, h)`), and by their order where one has none (a bare tuple). A cell of the user without
    `initialize_carry`, or whose own carry has other shapes, is given the carry as it is.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      carry: a pytree of arrays.
      input_shape: of one step's input, `[*batch, ...features]`, as `initialize_carry` takes it.

    Raises:
      ValueError: if names, number or shapes of the parts, or a type that cannot be cast, are not those of the cell.
    """
    own = _own_carry(cell, input_shape)
    if own is None:
        return carry
    own_leaves = jax.tree.leaves(own)
    structure: Any = jax.tree.structure(own)
    names = carry_names(cell, own)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(carry)]
    if structure != jax.tree.structure(carry):
        given = _path_names(carry)
        if sorted(given) == sorted(names):
            leaves = [leaves[given.index(name)] for name in names]
        elif _has_words(given) and _has_words(names):
            raise ValueError(f"carry has parts {', '.join(given)}; allowed: {', '.join(names)}.")
    shapes, wanted = [leaf.shape for leaf in leaves], [leaf.shape for leaf in own_leaves]
    if shapes != wanted:
        if isinstance(cell, _DECLARED):
            raise ValueError(f"carry has arrays of shapes {shapes}; allowed: {wanted}.")
        return carry
    return jax.tree.unflatten(structure, [_cast(*part) for part in zip(names, leaves, own_leaves)])


def _own_carry(cell: nnx.RNNCellBase, input_shape: tuple[int, ...]) -> Carry | None:
    """Returns the abstract carry that the cell makes; None if it makes none."""
    if not hasattr(cell, "initialize_carry"):
        return None
    try:
        return jax.eval_shape(lambda: cell.initialize_carry(input_shape, nnx.Rngs(0)))
    except NotImplementedError:
        return None


def _path_names(carry: Carry) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def _has_words(names: list[str] | tuple[str, ...]) -> bool:
    """Whether the parts are named, not numbered."""
    return any(word and not word.isdigit() for name in names for word in name.split("/"))


def _cast(name: str, part: Array, own: jax.ShapeDtypeStruct) -> Array:
    if part.dtype == own.dtype:
        return part
    allowed: list[Any] = [jnp.bool_, jnp.integer]
    if jnp.issubdtype(own.dtype, jnp.inexact):
        allowed.append(jnp.inexact if jnp.issubdtype(own.dtype, jnp.complexfloating) else jnp.floating)
    if not any(jnp.issubdtype(part.dtype, kind) for kind in allowed):
        raise ValueError(f"the part {name!r} of the carry has type {part.dtype}; allowed: {own.dtype}.")
    return part.astype(own.dtype)
