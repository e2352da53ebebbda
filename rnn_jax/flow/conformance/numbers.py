"""The numbers in a pytree, and how two pytrees of them are compared.

Losses and gradients see floating-point leaves: a counter in a carry, or a random key, has no gradient. Arrays outside a
compiled program are NumPy's: to index, stack or add up a `jax.Array` compiles a program for each shape.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.flow.conformance.report import Failed

Arrays = Sequence[Any]  # arrays of jax or numpy
PyTree = Any

EXACT = 1e-12  # float64, the same sums in another order
GRADIENT = 1e-8  # float64, the same gradient by another program; a saturated tanh costs digits


def is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def inexact(tree: PyTree) -> list[Any]:
    """Returns the leaves that have a gradient."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x)]


def with_inexact(tree: PyTree, leaves: Arrays) -> PyTree:
    """Returns the tree with those leaves replaced."""
    new = iter(leaves)
    return jax.tree.map(lambda x: next(new) if is_inexact(x) else x, tree)


def example(tree: PyTree, b: int) -> PyTree:
    """Returns one example of a batch, as a batch of one."""
    return jax.tree.map(lambda part: part[b : b + 1], tree)


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def on_host(tree: PyTree) -> PyTree:
    """Returns the leaves as NumPy arrays; typed random keys, which NumPy has not, as they are."""
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), tree)


def on_device(tree: PyTree) -> PyTree:
    """Returns the leaves as `jax.Array`s, as a cell expects them outside of a compiled program."""
    return jax.tree.map(jax.device_put, tree)  # jnp.asarray would compile a copy


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the floating-point leaves; complex ones to the complex type of that precision."""

    def of_type(x: Any) -> Any:
        return np.asarray(x).astype(jnp.dtype(counterpart(x.dtype, dtype))) if is_inexact(x) else x

    return jax.tree.map(of_type, tree)


def abstract_cast(tree: PyTree, dtype: Any) -> PyTree:
    """As `cast`, of shapes and types alone."""

    def of_type(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, counterpart(x.dtype, dtype))

    return jax.tree.map(of_type, tree)


def counterpart(old: Any, dtype: Any) -> Any:
    """Returns `dtype`, or its complex counterpart if `old` is complex (complex64 for the narrow types)."""
    if jnp.issubdtype(old, jnp.complexfloating):
        return jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return dtype if jnp.issubdtype(old, jnp.floating) else old


def normals(leaves: Arrays, rng: np.random.Generator) -> list[np.ndarray]:
    """Draws standard normal arrays of the given shapes and types."""

    def draw(x: Any) -> np.ndarray:
        value = rng.normal(size=x.shape)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            value = value + 1j * rng.normal(size=x.shape)
        return value.astype(x.dtype)

    return [draw(x) for x in leaves]


def dot(a: Arrays, b: Arrays) -> Any:
    """Returns Re(sum of a b) over lists of arrays: the loss of the kit, and a slope from its gradient."""
    return sum((x * y).real.sum() for x, y in zip(a, b, strict=True))


def norm(leaves: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(x)) ** 2) for x in leaves)))


def largest(tree: PyTree) -> float:
    """Returns the largest absolute entry, NaN if there is one; 0 of nothing."""
    return float(np.max([0.0, *(np.max(np.abs(np.asarray(x)), initial=0.0) for x in jax.tree.leaves(tree))]))


def relative_difference(got: PyTree, want: PyTree, allowed: float, what: str) -> float:
    """Returns the largest relative difference of the floating-point leaves, each measured on its own scale.

    Raises:
      Failed: if it is above `allowed` or NaN; if a leaf of another type (integer, bool, random key) is not equal; if
        shapes differ.
    """
    pairs = list(zip(*(map(comparable, jax.tree.leaves(tree)) for tree in (got, want)), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise Failed(f"{what}: shapes {[a.shape for a, _ in pairs]}; allowed: {[b.shape for _, b in pairs]}.")
    floating = [(a, b) for a, b in pairs if is_inexact(b)]
    for a, b in pairs:
        if not is_inexact(b) and not np.array_equal(a, b):
            raise Failed(f"{what}: {b.dtype}{list(b.shape)} differs; allowed: equal integers, bools and keys.")
    # A leaf that is zero but for rounding has no scale of its own: its rounding is that of the leaves it was computed
    # from, 1e-16 of them. A thousandth of the largest leaf keeps this below 1e-12 and hides little of a small leaf.
    least_scale = 1e-3 * largest([b for _, b in floating])
    relative = 0.0
    for a, b in floating:
        with np.errstate(invalid="ignore"):
            difference = largest(a - b)
        if difference:
            relative = float(np.max([relative, difference / (max(largest(b), least_scale) or 1.0)]))
    if not relative <= allowed:
        raise Failed(f"{what}: relative difference {relative:.2g}; allowed: {allowed:g}.")
    return relative


def comparable(x: Any) -> np.ndarray:
    """Returns a leaf as a NumPy array; of a typed random key, its numbers."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def equal(a: PyTree, b: PyTree) -> bool:
    """Whether two pytrees hold the same numbers, bit for bit but for NaN."""
    return all(
        np.array_equal(comparable(x), comparable(y), equal_nan=bool(is_inexact(x)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def all_finite(tree: PyTree) -> bool:
    return all(np.isfinite(largest(x)) for x in inexact(tree))


def jittered(tree: PyTree, noise: Arrays) -> PyTree:
    """Returns the tree with its floating-point leaves moved a little, also those that are zero."""
    pairs = zip(inexact(on_host(tree)), noise, strict=True)
    return on_device(with_inexact(tree, [x * (1 + 0.1 * n) + 0.01 * n for x, n in pairs]))


def difference_text(differences: list[float], allowed: float, of: str) -> str:
    """Writes the detail of a check that compared numbers."""
    return f"{of}: relative difference {max(differences):.2g}, allowed {allowed:g}"


def finite(tree: PyTree, what: str) -> None:
    """Raises `Failed` at the first NaN or inf."""
    for x in inexact(tree):
        size = largest(x)
        if not np.isfinite(size):
            raise Failed(f"{what}: {'NaN' if np.isnan(size) else 'inf'}; allowed: finite numbers.")
