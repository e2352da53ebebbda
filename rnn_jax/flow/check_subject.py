"""The cell under test: its parameters in any precision, its inputs, and ways to carry it through time."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.flow.check_numbers import (
    Arrays,
    all_finite,
    cast,
    counterpart,
    dot,
    inexact,
    is_inexact,
    is_variable,
    jittered,
    normals,
    with_inexact,
)
from rnn_jax.flow.check_report import exception_text
from rnn_jax.unroll import unroll

Array = jax.Array
Carry = Any

# The programs of the kit run once, on little data: nearly all of their time is compilation, so no time goes into
# making them fast.
jit_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Subject:
    """The cell under test.

    Args:
      name: what the report calls it.
      build: builds it, given `rngs` and perhaps `param_dtype`; None for a built cell.
      in_features: F.
      seed: of parameters and inputs.
      cell: a built cell.

    Attributes:
      build: as given.
      cell: as it was given, or built without a word about dtypes.
      dtype: the (real) type of its parameters.

    Raises:
      ValueError: if it cannot be built.
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., nnx.RNNCellBase] | None,
        in_features: int,
        seed: int,
        cell: Any = None,
    ):
        self.name, self.in_features, self.seed = name, in_features, seed
        self.build = build
        self.cell = cell if build is None else self.draw()
        floating = inexact(self.cell)
        self.dtype = jnp.finfo(floating[0].dtype).dtype if floating else jnp.dtype(jnp.float32)
        self._cells: dict[Any, nnx.RNNCellBase] = {self.dtype: self.cell}

    def draw(self, **kwargs: Any) -> nnx.RNNCellBase:
        """Returns a newly built cell; a cell that was given is returned as it is."""
        if self.build is None:
            return self.cell
        try:
            return self.build(rngs=nnx.Rngs(self.seed), **kwargs)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"cell {self.name!r} cannot be built: {exception_text(error)}") from error

    def draw_in(self, dtype: Any) -> nnx.RNNCellBase:
        """Returns the cell built with `param_dtype`, or as it is where it takes no such argument."""
        try:
            return self.draw(param_dtype=dtype)
        except ValueError as error:
            if "param_dtype" not in str(error):
                raise
            return self.cell

    def at(self, dtype: Any) -> nnx.RNNCellBase:
        """Returns the cell with parameters of a type: drawn in float64 where it can be, else cast."""
        dtype = jnp.dtype(dtype)
        if dtype not in self._cells:
            self._cells[dtype] = cast_cell(self.draw_in(dtype) if dtype == jnp.float64 else self.cell, dtype)
        return self._cells[dtype]

    def perturbed(self) -> nnx.RNNCellBase:
        """Returns the cell in float64 with every `nnx.Param` moved a little, so that an initial zero hides nothing.

        Where the cell is not defined there (a rate beyond 1, say), the cell as it was drawn is returned.
        """
        cell = self.at(jnp.float64)
        noise = normals(inexact(cell), np.random.default_rng([self.seed, 13]))
        moved = jittered(cell, [moves * n for moves, n in zip(trainable(cell), noise, strict=True)])
        return moved if all_finite(one_step(moved, self.initial_carry(moved, 3), self.inputs(3))) else cell

    @property
    def features(self) -> tuple[int, ...]:
        """The feature axes of an input."""
        return (4,) * (self.cell.num_feature_axes - 1) + (self.in_features,)

    def inputs(self, *leading: int, dtype: Any = jnp.float64, draw: int = 0) -> Array:
        """Returns standard normal inputs `[*leading, ...features]`."""
        rng = np.random.default_rng([self.seed, draw, *leading])
        return jnp.asarray(rng.normal(size=(*leading, *self.features)), dtype)

    def initial_carry(self, cell: nnx.RNNCellBase, *batch: int, dtype: Any = jnp.float64) -> Carry:
        """Returns the initial carry, cast where the cell makes it of another type (`float64` tells of that)."""
        return cast(cell.initialize_carry((*batch, *self.features), nnx.Rngs(0)), dtype)

    def carry_after_steps(self, cell: nnx.RNNCellBase, *batch: int, dtype: Any = jnp.float64, draw: int = 0) -> Carry:
        """Returns a carry as it is after two steps: not zero, and none that the cell would never be in."""
        carry = self.initial_carry(cell, *batch, dtype=dtype)
        for k in range(2):
            carry, _ = one_step(cell, carry, self.inputs(*batch, dtype=dtype, draw=100 + 2 * draw + k))
        return cast(carry, dtype)


def trainable(cell: nnx.RNNCellBase) -> list[bool]:
    """Tells which of the floating-point leaves are an `nnx.Param`."""
    return [isinstance(x, nnx.Param) for x in jax.tree.leaves(cell, is_leaf=is_variable) if is_inexact(x)]


def cast_cell(cell: nnx.RNNCellBase, dtype: Any) -> nnx.RNNCellBase:
    """Casts the parameters, and lets `dtype` and `param_dtype` of the cell and its submodules follow."""
    cell = cast(cell, dtype)
    for _, module in nnx.iter_modules(cell):
        for attribute in ("dtype", "param_dtype"):
            if getattr(module, attribute, None) is not None:
                setattr(module, attribute, counterpart(jnp.dtype(getattr(module, attribute)), dtype))
    return cell


# Ways to carry a cell through time, `method(cell, carry, xs, ...) -> (carry, ys)`, xs `[batch, time, ...]`.


@jit_once
def one_step(cell: nnx.RNNCellBase, carry: Carry, x: Array) -> tuple[Carry, Array]:
    """A step, compiled once for each shape."""
    return cell(carry, x)


def loop(cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> tuple[Carry, Array]:
    """The plain loop."""
    ys = []
    for t in range(xs.shape[1]):
        carry, y = cell(carry, xs[:, t])
        ys.append(y)
    return carry, jnp.stack(ys, axis=1)


def two_loops(cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> tuple[Carry, Array]:
    """The plain loop over the first half, and one over the second from the cell's own initial carry."""
    half = xs.shape[1] // 2
    _, first = loop(cell, carry, xs[:, :half])
    last, second = loop(cell, reinitialized(cell, carry, (xs.shape[0], *xs.shape[2:])), xs[:, half:])
    return last, jnp.concatenate([first, second], axis=1)


def reinitialized(cell: nnx.RNNCellBase, carry: Carry, input_shape: tuple[int, ...]) -> Carry:
    """Returns the initial carry in the types of a given one."""
    initial = cell.initialize_carry(input_shape, nnx.Rngs(0))
    return jax.tree.map(lambda new, old: new.astype(old.dtype) if is_inexact(old) else new, initial, carry)


@dataclasses.dataclass(frozen=True)
class LoopByExample:
    """The loop from the last step to the first, one example after another, with lengths and steps of a reset."""

    lengths: tuple[int, ...]
    resets: tuple[tuple[int, ...], ...]

    def __call__(self, cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> tuple[Carry, Array]:
        """Runs the cell on single examples, without a batch axis."""
        rows = []
        for b, length in enumerate(self.lengths):
            h = jax.tree.map(lambda part, b=b: part[b], carry)
            y = jax.eval_shape(cell, h, xs[b, 0])[1]
            ys = [jnp.zeros(y.shape, y.dtype)] * xs.shape[1]
            for t in reversed(range(length)):
                if t in self.resets[b]:
                    h = reinitialized(cell, h, xs.shape[2:])
                h, ys[t] = cell(h, xs[b, t])
            rows.append((h, jnp.stack(ys)))
        return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)


def scanned(cell: nnx.RNNCellBase, carry: Carry, xs: Array, **options: Any) -> tuple[Carry, Array]:
    """`rnn_jax.unroll`, with the arguments in the order of the loops."""
    return unroll(cell, xs, carry, **options)


def weights_for(subject: Subject, cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> list[np.ndarray]:
    """Draws the loss, `dot(weights, (carry, ys))`: every output counts, each with another weight."""
    return normals(inexact(jax.eval_shape(loop, cell, carry, xs)), np.random.default_rng([subject.seed, 7]))


@partial(jit_once, static_argnames=("method", "reverse"))
def outputs_and_gradients(
    method: Callable[..., tuple[Carry, Array]],
    cell: nnx.RNNCellBase,
    carry: Carry,
    xs: Array,
    weights: Arrays,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool | None = None,
) -> tuple[tuple[Carry, Array], tuple[list[Array], list[Array], list[Array]]]:
    """Returns (carry, ys), and the gradients of `dot(weights, (carry, ys))` to the cell, the carry and the inputs.

    Compiled once for each method, cell and shape, whichever checks ask for it.
    """
    given = {"lengths": lengths, "resets": resets, "reverse": reverse}
    options = {name: value for name, value in given.items() if value is not None}

    def loss(leaves):
        parts = [with_inexact(tree, part) for tree, part in zip((cell, carry, xs), leaves, strict=True)]
        outputs = method(*parts, **options)
        return dot(weights, inexact(outputs)), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)((inexact(cell), inexact(carry), inexact(xs)))
    return outputs, gradients
