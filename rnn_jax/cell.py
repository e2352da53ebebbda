"""What a recurrent cell is: the contract every cell keeps.

A cell is one step of a recurrence, `(carry_{t-1}, x_t) -> (carry_t, y_t)`. It is a `flax.nnx.RNNCellBase`, so
`flax.nnx.RNN` runs our cells and our layers run Flax's. Three base classes ask for more and give more:

* `flax.nnx.RNNCellBase`: any step at all. Everything in this library works on it.
* `Cell`: names its gates, so that the instruments of `rnn_jax.flow` can look inside a step.
* `PointwiseCell`: one matrix product of input and hidden state, then operations on the result. The driver fuses the
  gates into one product and runs the step on its fast path, with no more work by the author of the cell.

What a step may be given beside `(carry, x)`: a cell asks for it by naming the argument in `__call__`.

* `context`: a pytree `[*batch, ...]` that is the same at every step: an encoder's outputs, an image.
* `key`: a `jax.random` key of this step, or None, which means deterministic: zoneout, dropout within a step, noise.

Whoever runs a step of a cell does it by `step`, which hands over what the cell asks for.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer

from rnn_jax.constant import Constant
from rnn_jax.initializers import as_initializer, draw_kernel

Array = jax.Array
Carry = Any  # a pytree of arrays, [*batch, ...features] each
PyTree = Any


class Cell(nnx.RNNCellBase):
    """A recurrent cell whose gates have names.

    A subclass writes `gates` and `__call__` (which calls `gates`, so that an equation stands in one place), and
    declares its carry: by `carry_type` if it is several arrays of H features, by `carry_spec` if it is anything else.
    All leading axes are batch axes.

    One rule of types holds for all cells. Matrix products and the output have the type `dtype`; if that is None, the
    promotion of the types of input and parameters, so that integer inputs give the type of the parameters. Gates are
    computed in the type of the carry, which is `param_dtype` and which every step keeps. With `dtype=bfloat16` the
    products thus run in bfloat16 and the state is kept in float32. `dense` and `as_output` keep the rule for a
    subclass, without implicit promotion of types or ranks.

    Attributes:
      in_features: F, size of the last axis of the input.
      hidden_features: H, size of the state.
      out_features: size of the last axis of the output, H unless a subclass overrides it.
      dtype: type of the products and the output, or None.
      param_dtype: type of the parameters and of the carry.
      carry_type: the `NamedTuple` of a carry with several parts; None if the carry is one array.
      gate_ranges: the smallest and the largest value of a gate, by name; gates not named here may be anything.
      check_exemptions: checks of `rnn_jax.flow.check_cell` that the cell is meant to break, each with the reason:
        `{"gradients": "straight-through estimator: the gradient is not the derivative"}`.
    """

    carry_type: ClassVar[Callable[..., Any] | None] = None
    gate_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    check_exemptions: ClassVar[Mapping[str, str]] = {}

    def __init__(self, in_features: int, hidden_features: int, *, dtype: Dtype | None, param_dtype: Dtype):
        check_sizes(in_features=in_features, hidden_features=hidden_features)
        check_dtypes(dtype=dtype, param_dtype=param_dtype)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.first_carry = nnx.data(None)

    @property
    def out_features(self) -> int:
        return self.hidden_features

    @property
    def num_feature_axes(self) -> Any:
        """Feature axes of the input; of an input that is a pytree, a pytree of numbers: `{"dt": 0, "x": 1}`."""
        return 1

    def carry_spec(self) -> Carry:
        """Declares the carry: a pytree of `jax.ShapeDtypeStruct`, one for each part, without batch axes.

        By default one array `[H]` of `param_dtype`, or a `carry_type` of such arrays. A subclass may declare any shapes
        and types: a matrix memory, a counter, a state of another width.
        """
        part = jax.ShapeDtypeStruct((self.hidden_features,), self.param_dtype)
        if self.carry_type is None:
            return part
        return self.carry_type(*[part] * len(inspect.signature(self.carry_type).parameters))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Carry:
        """Returns the carry before the first step, as `carry_spec` declares it.

        Args:
          input_shape: shape of one step's input, `[*batch, ...features]`; of an input that is a pytree, of its first
            leaf.
          rngs: needed only with a random `carry_init`; the stream `carry` of an `nnx.Rngs` is drawn from.
          carry_init: of floating-point parts. By default the carry that was learned (`learn_carry`), or zeros; parts of
            other types are zeros.
        """
        axes = jax.tree.leaves(self.num_feature_axes)[0]
        batch_shape = tuple(input_shape[: len(input_shape) - axes])
        if self.first_carry is not None and carry_init is None:
            return jax.tree.map(
                lambda part: jnp.broadcast_to(part[...], (*batch_shape, *part.shape)),
                self.first_carry,
                is_leaf=lambda node: isinstance(node, nnx.Variable),
            )
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs

        def draw(part: jax.ShapeDtypeStruct) -> Array:
            shape = (*batch_shape, *part.shape)
            key = jax.random.key(0) if stream is None else stream()
            if carry_init is None or not jnp.issubdtype(part.dtype, jnp.inexact):
                return jnp.zeros(shape, part.dtype)
            return carry_init(key, shape, part.dtype)

        return jax.tree.map(draw, self.carry_spec())

    def context_spec(self) -> PyTree:
        """Declares the context of a cell that asks for one: a pytree of `jax.ShapeDtypeStruct`, without batch axes.

        `rnn_jax.flow.check_cell` tests the cell with it; sizes that may be anything are those of an example.

        Raises:
          NotImplementedError: if the subclass has not written it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no `context_spec()`; a cell that asks for a context writes it."
        )

    def gates(self, carry: Carry, x: Array) -> dict[str, Array]:
        """Returns the values of the gates of one step by name, `[*batch, H]` each.

        Raises:
          NotImplementedError: if the subclass has not written it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no `gates(carry, x)`; write it (gate values by name, `[*batch, H]` each), "
            "or subclass flax.nnx.RNNCellBase."
        )

    def dense(self, x: Array, kernel: Array, bias: Array | None = None) -> Array:
        """Returns `x kernel + bias`: the product in the type of products, the result in `param_dtype`.

        Args:
          x: `[*batch, F]`.
          kernel: `[F, G]`.
          bias: `[G]`, or None.
        """
        return dense(x, kernel, bias, dtype=self.dtype, param_dtype=self.param_dtype)

    def as_output(self, y: Array, x: Array) -> Array:
        """Returns y in the type of the output: `dtype`, or the promotion of the types of input x and parameters."""
        return y.astype(self.dtype or jnp.promote_types(x.dtype, self.param_dtype))


class PointwiseCell(Cell):
    """A cell of the form `z = x W + h R + b`, then operations on z and the carry that keep sequences apart.

    A subclass names the columns of the two kernels and writes what follows the products:

    * `input_gates`, `recurrent_gates`: one name for each block of H columns of W and of R. Blocks of one name are
      added; a name that stands in only one of the two is handed over as it is (the reset-after GRU needs this). With
      `recurrent_gates = ()` there is no R: the recurrence is in `pointwise` alone (IndRNN, SRU, QRNN).
    * `activate(z, carry)`: pre-activations by name, `[*batch, H]` each, to gate values by name.
    * `pointwise(z, carry) -> (carry, y)`: the rest of the step, calling `activate`. It may mix features (layer
      normalization, softmax) and use parameters of its own, but neither `kernel`, `recurrent_kernel` and `bias`, nor
      one sequence for the result of another: the batch has one axis or more, and its size may change.
    * `hidden(carry)`: the h that R is multiplied by, of any width K: the carry itself, or its part `h`.

    Parameters: `kernel [F, Gx H]`, `recurrent_kernel [K, Gh H]`, `bias [G H]`, where G counts the distinct names (in
    the order of `gate_columns`). Kernels are drawn block by block, so an orthogonal recurrent kernel has
    orthogonal blocks. A subclass whose `carry_spec` or `hidden` reads attributes sets them before `super().__init__`.
    """

    input_gates: ClassVar[tuple[str, ...]]
    recurrent_gates: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        use_bias: bool = True,
        kernel_init: str | Initializer = "lecun_normal",
        recurrent_kernel_init: str | Initializer = "orthogonal",
        bias_init: str | Initializer = "zeros",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype)
        if not isinstance(use_bias, bool):
            raise ValueError(f"use_bias={use_bias!r} is neither yes nor no; allowed: True, False.")
        self.kernel = draw_kernel(
            kernel_init, in_features, hidden_features, len(self.input_gates), dtype=param_dtype, rngs=rngs
        )
        self.recurrent_kernel = nnx.data(None)
        if self.recurrent_gates:
            width = jax.eval_shape(self.hidden, self.carry_spec()).shape[-1]
            self.recurrent_kernel = draw_kernel(
                recurrent_kernel_init, width, hidden_features, len(self.recurrent_gates), dtype=param_dtype, rngs=rngs
            )
        bias_shape = (len(self.gate_columns()) * hidden_features,)
        bias = as_initializer(bias_init)(rngs.params(), bias_shape, param_dtype)
        self.bias = nnx.Param(bias) if use_bias else nnx.data(None)

    @classmethod
    def gate_columns(cls) -> tuple[str, ...]:
        """Returns the distinct names of the pre-activations, those of W first: the order of `bias`."""
        return tuple(dict.fromkeys((*cls.input_gates, *cls.recurrent_gates)))

    def set_gate_bias(self, gate: str, value: Array | float) -> None:
        """Fills the bias of one gate. It is for constructors: a cell is not changed once it is built.

        Raises:
          ValueError: if the cell was built with `use_bias=False`.
        """
        if self.bias is None:
            raise ValueError(f"use_bias=False leaves no bias to initialise for gate {gate!r}; allowed: use_bias=True.")
        start = self.gate_columns().index(gate) * self.hidden_features
        stop = start + self.hidden_features
        self.bias[...] = self.bias[...].at[start:stop].set(jnp.asarray(value, self.bias.dtype))

    def weights(self) -> tuple[Array, Array, Array | None]:
        """Returns W `[F, Gx H]`, R `[K, Gh H]` and b `[G H]` as the products use them.

        A cell with a structured recurrent matrix (orthogonal, masked, skew) overrides this: it is called once for
        a whole sequence, and JAX differentiates through it.
        """
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if self.recurrent_kernel is None:
            return kernel, jnp.zeros((self.hidden_features, 0), kernel.dtype), bias
        return kernel, self.recurrent_kernel[...], bias

    def hidden(self, carry: Carry) -> Array:
        """Returns h, the part of the carry that the recurrent kernel multiplies, `[*batch, K]`.

        A cell whose `hidden` reads a parameter runs by the plain scan.
        """
        return carry if self.carry_type is None else carry.h

    def activate(self, z: Mapping[str, Array], carry: Carry) -> dict[str, Array]:
        """Returns the gate values for the pre-activations z."""
        raise NotImplementedError(f"{type(self).__name__} has no `activate(z, carry)`; a PointwiseCell writes it.")

    def pointwise(self, z: Mapping[str, Array], carry: Carry) -> tuple[Carry, Array]:
        """Returns `(carry, y)` of the step, given the pre-activations z."""
        raise NotImplementedError(f"{type(self).__name__} has no `pointwise(z, carry)`; a PointwiseCell writes it.")

    def gates(self, carry: Carry, x: Array) -> dict[str, Array]:
        return self.activate(self._preactivations(carry, x)[0], carry)

    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Runs one step.

        Args:
          carry: as `initialize_carry` makes it.
          x: `[*batch, F]`.

        Returns:
          The next carry, and the output y `[*batch, H]`.

        Raises:
          ValueError: if x has not F features.
        """
        z, dtype = self._preactivations(carry, x)
        carry, y = self.pointwise(z, carry)
        return carry, y.astype(dtype)

    def _preactivations(self, carry: Carry, x: Array) -> tuple[dict[str, Array], Dtype]:
        check_input(self, x)
        kernel, recurrent_kernel, bias = self.weights()
        x, kernel, recurrent_kernel = dtypes.promote_dtype((x, kernel, recurrent_kernel), dtype=self.dtype)
        products = [(x @ kernel, self.input_gates)]
        if self.recurrent_gates:
            products.append((self.hidden(carry).astype(x.dtype) @ recurrent_kernel, self.recurrent_gates))
        z = sum_gates(self, products, bias)
        # The state may be kept in a wider type than the products: gates are computed in the type of the state.
        dtype = self.state_dtype(carry)
        return {name: value.astype(dtype) for name, value in z.items()}, x.dtype

    def state_dtype(self, carry: Carry) -> Dtype:
        """Returns the type in which the gates are computed: that of h, or without an R `param_dtype`."""
        return self.hidden(carry).dtype if self.recurrent_gates else self.param_dtype


def sum_gates(
    cell: PointwiseCell, products: Sequence[tuple[Array, tuple[str, ...]]], bias: Array | None
) -> dict[str, Array]:
    """Splits each product `[..., G H]` into one array a gate, and adds those of one name, and the bias.

    Args:
      cell: says how wide a gate is, and the order of the bias.
      products: such as `x W` and `h R`, each with the names of its blocks of H columns.
      bias: `[G H]`, in the order of `gate_columns`, or None.
    """
    size = cell.hidden_features
    z: dict[str, Array] = {}
    for product, names in products:
        for k, name in enumerate(names):
            column = product[..., k * size : (k + 1) * size]
            z[name] = z[name] + column if name in z else column
    if bias is not None:
        for k, name in enumerate(cell.gate_columns()):
            z[name] = add_bias(z[name], bias[k * size : (k + 1) * size])
    return z


def dense(x: Array, kernel: Array, bias: Array | None = None, *, dtype: Dtype | None, param_dtype: Dtype) -> Array:
    """Returns `x kernel + bias`: the product in the type `dtype`, the result in `param_dtype`; as `Cell.dense`."""
    x, kernel = dtypes.promote_dtype((jnp.asarray(x), jnp.asarray(kernel)), dtype=dtype)
    z = (x @ kernel).astype(param_dtype)
    return z if bias is None else add_bias(z, jnp.asarray(bias))


def add_bias(z: Array, bias: Array) -> Array:
    """Returns `z + bias` in the type of z, without implicit promotion of dtype or rank.

    A bare `z + bias` raises under `jax_numpy_rank_promotion="raise"` where z has batch axes, and under
    `jax_numpy_dtype_promotion="strict"` where z has another dtype, as with products in bfloat16.

    Args:
      z: `[..., G]`.
      bias: `[G]`, in any floating-point type.
    """
    return z + _along_features(bias, z)


def scale_by(z: Array, scale: Array) -> Array:
    """Returns `z * scale` in the type of z, without implicit promotion of dtype or rank; as `add_bias`.

    Args:
      z: `[..., G]`.
      scale: `[G]`, in any floating-point type.
    """
    return z * _along_features(scale, z)


def _along_features(vector: Array, z: Array) -> Array:
    """Returns `vector [G]` in the type and the rank of `z [..., G]`."""
    return vector.astype(z.dtype).reshape((1,) * (z.ndim - 1) + vector.shape)


def step(
    cell: nnx.RNNCellBase, carry: Carry, x: PyTree, *, context: PyTree = None, key: Array | None = None
) -> tuple[Carry, Any]:
    """Runs one step of any cell; context and key go to a cell that asks for them.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      carry: before the step.
      x: `[*batch, ...features]`.
      context: a pytree `[*batch, ...]` that is the same at every step, or None.
      key: of `jax.random`, of this step; None is deterministic.
    """
    return call_with(cell.__call__, carry, x, context=context, key=key)


def check_step(cell: nnx.RNNCellBase, carry: Carry, returned: Any, batch_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a step has returned a pair (carry, y) that a next step can go on with.

    Args:
      cell: whose step it was.
      carry: that the step was given.
      returned: by the step.
      batch_shape: of the inputs.
    """
    name = f"{type(cell).__module__}:{type(cell).__qualname__}"
    if not isinstance(returned, tuple) or len(returned) != 2:
        what = f"{len(returned)} values" if isinstance(returned, tuple) else "no tuple"
        raise ValueError(f"cell {name}: a step returned {what}; allowed: a pair (carry, y).")
    if _signature(returned[0]) != _signature(carry):
        raise ValueError(
            f"cell {name}: a step returned a carry {_carry_text(returned[0])} for a carry {_carry_text(carry)};"
            " allowed: the same shapes and types."
        )
    for y in jax.tree.leaves(returned[1]):
        if jnp.shape(y)[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"cell {name}: a step returned an output of shape {jnp.shape(y)}; allowed: [*batch, ...], batch being"
                f" {batch_shape}."
            )


def _signature(carry: Carry) -> Any:
    leaves, structure = jax.tree.flatten(carry)
    return structure, [(jnp.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves]


def _carry_text(carry: Carry) -> str:
    return str(jax.tree.map(lambda leaf: f"{jax.dtypes.result_type(leaf)}{list(jnp.shape(leaf))}", carry)).replace(
        "'", ""
    )


def gate_values(
    cell: "Cell", carry: Carry, x: PyTree, *, context: PyTree = None, key: Array | None = None
) -> dict[str, Array]:
    """Returns `cell.gates(carry, x)`; arguments as `step`."""
    return call_with(cell.gates, carry, x, context=context, key=key)


def call_with(method: Callable[..., Any], carry: Carry, x: PyTree, **optional: Any) -> Any:
    """Calls a method of a cell with those of the optional arguments whose names it has."""
    names = _argument_names(getattr(method, "__func__", method))
    return method(carry, x, **{name: value for name, value in optional.items() if name in names})


def asks_for(cell: nnx.RNNCellBase, name: str) -> bool:
    """Whether a step of the cell takes an argument of this name: `context` or `key`."""
    return name in _argument_names(type(cell).__call__)


@functools.cache
def _argument_names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def learn_carry(cell: "Cell") -> None:
    """Makes the first carry parameters of the cell, from zeros on. It is for a cell that has just been built.

    `make_cell("lstm(learned_carry=True)", ...)` calls it. Parts that are not floating-point numbers become constants.
    """

    def parameter(part: jax.ShapeDtypeStruct) -> nnx.Variable:
        zeros = jnp.zeros(part.shape, part.dtype)
        return nnx.Param(zeros) if jnp.issubdtype(part.dtype, jnp.inexact) else Constant(zeros)

    cell.first_carry = nnx.data(jax.tree.map(parameter, cell.carry_spec()))


def check_input(cell: nnx.RNNCellBase, x: Array) -> None:
    """Raises ValueError unless the last axis of x has the size that the cell was built for, if the cell tells it.

    An input that is a pytree, or has several feature axes, is not checked.
    """
    features = getattr(cell, "in_features", None)
    if not isinstance(features, int) or cell.num_feature_axes != 1 or not hasattr(x, "shape"):
        return
    shape = jnp.shape(x)
    if not shape or shape[-1] != features:
        raise ValueError(
            f"inputs of shape {shape} have {shape[-1] if shape else 'no'} features; allowed: {features}, the"
            f" in_features of this {type(cell).__name__}."
        )


def check_sizes(**sizes: int) -> None:
    """Raises ValueError if a size is no whole number, or below 1."""
    for name, size in sizes.items():
        if isinstance(size, bool | float | str) or size < 1:
            raise ValueError(f"{name}={size!r} is not a size; allowed: 1 or more.")


def check_dtypes(*, dtype: Dtype | None, param_dtype: Dtype) -> None:
    """Raises ValueError if a type is none of floating-point (or complex) numbers."""
    for name, given in (("dtype", dtype), ("param_dtype", param_dtype)):
        if given is None and name == "dtype":
            continue
        try:
            fits = given is not None and jnp.issubdtype(jnp.dtype(given), jnp.inexact)
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}={given!r} is no type of floating-point numbers; allowed: 'float32', 'bfloat16', 'float16',"
                " 'float64'."
            )


def check_finite(name: str, value: float) -> None:
    """Raises ValueError if a number is infinite or NaN."""
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} is out of range; allowed: a finite number.")


def check_one_given(of: str, **arguments: Any) -> None:
    """Raises ValueError if more than one of the arguments is given, as all of them say the same."""
    given = [f"{name}={value}" for name, value in arguments.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both set the {of}; allowed: one of them.")


def carry_names(cell: nnx.RNNCellBase, carry: Carry) -> tuple[str, ...]:
    """Names the parts of a carry, one a leaf of the pytree; `("",)` if the carry is one array.

    Our cells name them by the fields of their carry. Flax's LSTM cells carry a bare tuple (c, h).
    """
    if isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell):
        return ("c", "h")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path in paths)
