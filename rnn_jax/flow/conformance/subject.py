"""The cell under test: its parameters in any precision, its inputs, and ways to carry it through time."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import asks_for, step
from rnn_jax.errors import exception_text
from rnn_jax.flow.conformance.numbers import (
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
    on_device,
    on_host,
    with_inexact,
)
from rnn_jax.unroll import unroll

Array = jax.Array
Carry = Any

BATCH = 3  # examples in a batch
TIME, HALF = 4, 2  # steps

# The programs of the kit run once, on little data: nearly all of their time is compilation, so no time goes into
# making them fast. The two options of XLA's back end for CPUs halve the time twice; later versions may not know them.
_QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    _QUICK |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
jit_once = partial(jax.jit, compiler_options=_QUICK)


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
      cell: as it was given, or built without a word about dtypes. A cell that asks for a context is wrapped in
        `ContextAsInput`, so that all checks hold for it, too.
      asks_for_context: whether it is.
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
        self.cell: Any = cell if build is None else self.draw()
        self.asks_for_context = isinstance(self.cell, nnx.RNNCellBase) and asks_for(self.cell, "context")
        if self.asks_for_context:
            self.build, self.cell = (
                None if build is None else lambda **kwargs: ContextAsInput(build(**kwargs)),
                ContextAsInput(self.cell),
            )
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
        return moved if all_finite(one_step(moved, self.initial_carry(moved, BATCH), self.inputs(BATCH))) else cell

    @property
    def features(self) -> list[tuple[int, ...]]:
        """The feature axes of each array of an input."""
        if self.asks_for_context:
            context = jax.tree.leaves(self.cell.cell.context_spec())
            return [*self._features_of(self.cell.cell), *(part.shape for part in context)]
        return self._features_of(self.cell)

    def _features_of(self, cell: nnx.RNNCellBase) -> list[tuple[int, ...]]:
        counts = jax.tree.leaves(cell.num_feature_axes)
        return [(4,) * (count - 1) + (self.in_features,) if count else () for count in counts]

    def input_shape(self, *batch: int) -> tuple[int, ...]:
        """Returns the shape of a step's input, as `initialize_carry` takes it."""
        return (*batch, *self.features[0])

    def inputs(self, *leading: int, dtype: Any = jnp.float64, draw: int = 0) -> Any:
        """Returns standard normal inputs `[*leading, ...features]`; positive ones where there are no feature axes."""
        rng = np.random.default_rng([self.seed, draw, *leading])

        def draw_array(features: tuple[int, ...]) -> np.ndarray:
            numbers = rng.normal(size=(*leading, *features))
            return np.asarray(numbers if features else 0.1 + np.abs(numbers)).astype(jnp.dtype(dtype))

        structure = jax.tree.structure(self.cell.num_feature_axes)
        return jax.tree.unflatten(structure, [draw_array(features) for features in self.features])

    def abstract_inputs(self, *leading: int, dtype: Any) -> Any:
        """Returns the shapes and types of `inputs`."""
        structure = jax.tree.structure(self.cell.num_feature_axes)
        arrays = [jax.ShapeDtypeStruct((*leading, *features), dtype) for features in self.features]
        return jax.tree.unflatten(structure, arrays)

    def abstract_carry(self, cell: nnx.RNNCellBase, *batch: int) -> Carry:
        """Returns the shapes and types of the carry that the cell makes."""
        return jax.eval_shape(lambda: cell.initialize_carry(self.input_shape(*batch), nnx.Rngs(0)))

    def initial_carry(self, cell: nnx.RNNCellBase, *batch: int, dtype: Any = jnp.float64) -> Carry:
        """Returns the initial carry, cast where the cell makes it of another type (`float64` tells of that)."""
        return cast(on_host(cell.initialize_carry(self.input_shape(*batch), nnx.Rngs(0))), dtype)

    def carry_after_steps(self, cell: nnx.RNNCellBase, *, dtype: Any = jnp.float64, draw: int = 0) -> Carry:
        """Returns a carry `[BATCH, ...]` as it is after two steps: not zero, and none that the cell is never in."""
        carry = self.initial_carry(cell, BATCH, dtype=dtype)
        for k in range(2):
            carry, _ = one_step(cell, carry, self.inputs(BATCH, dtype=dtype, draw=100 + 2 * draw + k))
            carry = cast(on_host(carry), dtype)
        return carry


class ContextAsInput(nnx.RNNCellBase):
    """A cell that asks for a context, as one that reads the pair (x, context) at every step."""

    def __init__(self, cell: nnx.RNNCellBase):
        if not hasattr(cell, "context_spec"):
            raise ValueError(
                f"{type(cell).__name__} asks for a context and has no `context_spec()`; allowed: that method, which"
                " returns a pytree of jax.ShapeDtypeStruct without batch axes."
            )
        self.cell = cell

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Carry:
        return self.cell.initialize_carry(input_shape, rngs, carry_init)

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Any]:
        return step(self.cell, carry, x[0], context=x[1])

    @property
    def num_feature_axes(self) -> Any:
        axes = jax.tree.map(lambda part: len(part.shape), self.cell.context_spec())
        return (self.cell.num_feature_axes, axes)


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
    return on_device(cell)


def time_of(xs: Any) -> int:
    """Returns the number of steps of inputs `[batch, time, ...]`."""
    return jax.tree.leaves(xs)[0].shape[1]


def at_step(xs: Any, t: int | slice) -> Any:
    """Returns step t, or some steps, of `[batch, time, ...]`."""
    return jax.tree.map(lambda x: x[:, t], xs)


def stacked(trees: list[Any], axis: int = 0) -> Any:
    """Returns pytrees of one structure as one, within a compiled program."""
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis), *trees)


def swapped(tree: Any) -> Any:
    """Returns arrays `[batch, time, ...]` time-major, and the reverse."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


# Ways to carry a cell through time, `method(cell, carry, xs, ...) -> (carry, ys)`, xs `[batch, time, ...]`.


@jit_once
def one_step(cell: nnx.RNNCellBase, carry: Carry, x: Array) -> tuple[Carry, Array]:
    """A step, compiled once for each shape."""
    return cell(carry, x)


def loop(cell: nnx.RNNCellBase, carry: Carry, xs: Any) -> tuple[Carry, Any]:
    """The plain loop."""
    ys = []
    for t in range(time_of(xs)):
        carry, y = cell(carry, at_step(xs, t))
        ys.append(y)
    return carry, stacked(ys, axis=1)


def two_loops(cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> tuple[Carry, Array]:
    """The plain loop over the first half, and one over the second from the cell's own initial carry."""
    half = time_of(xs) // 2
    _, first = loop(cell, carry, at_step(xs, slice(half)))
    fresh = reinitialized(cell, carry, jax.tree.leaves(at_step(xs, 0))[0].shape)
    last, second = loop(cell, fresh, at_step(xs, slice(half, None)))
    return last, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), first, second)


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
            h, row = jax.tree.map(lambda part, b=b: part[b], (carry, xs))
            x = jax.tree.map(lambda part: part[0], row)
            zeros = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), jax.eval_shape(cell, h, x)[1])
            ys = [zeros] * time_of(xs)
            for t in reversed(range(length)):
                if t in self.resets[b]:
                    h = reinitialized(cell, h, jax.tree.leaves(x)[0].shape)
                h, ys[t] = cell(h, jax.tree.map(lambda part, t=t: part[t], row))
            rows.append((h, stacked(ys)))
        return stacked(rows)


def scanned(cell: nnx.RNNCellBase, carry: Carry, xs: Array, **options: Any) -> tuple[Carry, Array]:
    """`rnn_jax.unroll`, with the arguments in the order of the loops."""
    return unroll(cell, xs, carry, **options)


def weights_for(subject: Subject, cell: nnx.RNNCellBase, carry: Carry, xs: Array) -> list[np.ndarray]:
    """Draws the loss, `dot(weights, (carry, ys))`: every output counts, each with another weight."""
    return normals(inexact(abstract_outputs(cell, carry, xs)), np.random.default_rng([subject.seed, 7]))


def abstract_outputs(cell: nnx.RNNCellBase, carry: Carry, xs: Any) -> tuple[Carry, Any]:
    """Returns the shapes and types of (carry, ys)."""
    last, y = jax.eval_shape(cell, carry, at_step(xs, 0))
    batch, time = jax.tree.leaves(xs)[0].shape[:2]
    return last, jax.tree.map(lambda part: jax.ShapeDtypeStruct((batch, time, *part.shape[1:]), part.dtype), y)


def outputs_and_gradients(*args: Any, **options: Any) -> tuple[tuple[Carry, Any], tuple[list[Any], ...]]:
    """Returns (carry, ys), and the gradients of `dot(weights, (carry, ys))` to the cell, the carry and the inputs.

    Args:
      *args: a method, cell, carry, xs, weights. Compiled once for each method, cell and shape, whichever checks ask.
      **options: lengths, resets, reverse.
    """
    return on_host(_outputs_and_gradients(*args, **options))


@partial(jit_once, static_argnames=("method", "reverse"))
def _outputs_and_gradients(
    method: Callable[..., tuple[Carry, Array]],
    cell: nnx.RNNCellBase,
    carry: Carry,
    xs: Array,
    weights: Arrays,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool | None = None,
) -> tuple[tuple[Carry, Array], tuple[list[Array], list[Array], list[Array]]]:
    given = {"lengths": lengths, "resets": resets, "reverse": reverse}
    options = {name: value for name, value in given.items() if value is not None}

    def loss(leaves):
        parts = [with_inexact(tree, part) for tree, part in zip((cell, carry, xs), leaves, strict=True)]
        outputs = method(*parts, **options)
        return dot(weights, inexact(outputs)), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)((inexact(cell), inexact(carry), inexact(xs)))
    return outputs, gradients
