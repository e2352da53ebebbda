"""What a recurrent cell is: the contract every cell keeps, and the catalogue of cells by name.

A cell is one step of a recurrence, `(carry_{t-1}, x_t) -> (carry_t, y_t)`. It is a `flax.nnx.RNNCellBase`, so
`flax.nnx.RNN` runs our cells and our layers run Flax's. Three base classes ask for more and give more:

* `flax.nnx.RNNCellBase`: any step at all. Everything in this library works on it.
* `Cell`: names its gates, so that the instruments of `rnn_jax.flow` can look inside a step.
* `PointwiseCell`: one matrix product of input and hidden state, then pointwise operations. The driver fuses the gates
  into one product and runs the step on its fast path, with no more work by the author of the cell.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer

Array = jax.Array
Carry = Any  # a pytree of arrays, [*batch, ...features] each

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


def identity_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Initialises a kernel to the identity matrix (Le, Jaitly, Hinton 2015, arXiv 1504.00941)."""
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
    """Returns an initialiser `(key, shape, dtype) -> Array`, given itself or its name.

    Raises:
      ValueError: if the name is unknown.
    """
    if callable(spec):
        return spec
    if spec not in _INITIALIZERS:
        raise ValueError(f"initializer {spec!r} is unknown; allowed: {', '.join(_INITIALIZERS)}, or a function.")
    return _INITIALIZERS[spec]


def block_kernel(
    init: str | Initializer, rows: int, columns: int, blocks: int, dtype: Dtype, rngs: nnx.Rngs
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


class Cell(nnx.RNNCellBase):
    """A recurrent cell whose gates have names.

    A subclass writes `gates` and `__call__` (which calls `gates`, so that an equation stands in one place), and
    declares what its carry is: one array, or a `NamedTuple` of arrays given as `carry_type`. All leading axes are
    batch axes.

    One rule of types holds for all cells. Matrix products and the output have the type `dtype`; if that is None, the
    promotion of the types of input and parameters, so that integer inputs give the type of the parameters. Gates are
    computed in the type of the carry, which is `param_dtype` and which every step keeps. With `dtype=bfloat16` the
    products thus run in bfloat16 and the state is kept in float32.

    Attributes:
      in_features: F, size of the last axis of the input.
      hidden_features: H, size of the last axis of each part of the carry.
      dtype: type of the products and the output, or None.
      param_dtype: type of the parameters and of the carry.
      carry_type: the `NamedTuple` of a carry with several parts; None if the carry is one array.
      gate_ranges: the least and the largest value of a gate, by name; gates that are not named here may be anything.
      check_exemptions: checks of `rnn_jax.flow.check_cell` that the cell is meant to break, each with the reason:
        `{"gradients": "straight-through estimator: the gradient is not the derivative"}`.
    """

    carry_type: ClassVar[Callable[..., Any] | None] = None
    gate_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    check_exemptions: ClassVar[Mapping[str, str]] = {}

    def __init__(self, in_features: int, hidden_features: int, *, dtype: Dtype | None, param_dtype: Dtype):
        for name, size in (("in_features", in_features), ("hidden_features", hidden_features)):
            if size < 1:
                raise ValueError(f"{name}={size} is not a size; allowed: 1 or more.")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.param_dtype = param_dtype

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Carry:
        """Returns the carry before the first step.

        Args:
          input_shape: shape of one step's input, `[*batch, F]`.
          rngs: needed only with a random `carry_init`; the stream `carry` of an `nnx.Rngs` is drawn from.
          carry_init: zeros by default.

        Returns:
          One array `[*batch, H]`, or a `carry_type` of such arrays.
        """
        carry_init = carry_init or nnx.initializers.zeros_init()
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        parts = 1 if self.carry_type is None else len(inspect.signature(self.carry_type).parameters)
        shape = (*input_shape[:-1], self.hidden_features)
        keys = [jax.random.key(0) if stream is None else stream() for _ in range(parts)]
        drawn = [carry_init(key, shape, self.param_dtype) for key in keys]
        return drawn[0] if self.carry_type is None else self.carry_type(*drawn)

    def gates(self, carry: Carry, x: Array) -> dict[str, Array]:
        """Returns the values of the gates of one step by name, `[*batch, H]` each.

        Raises:
          NotImplementedError: if the subclass has not written it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no `gates(carry, x)`; write it (gate values by name, `[*batch, H]` each), "
            "or subclass flax.nnx.RNNCellBase."
        )

    @property
    def num_feature_axes(self) -> int:
        return 1


class PointwiseCell(Cell):
    """A cell of the form `z = x W + h R + b`, then elementwise operations on z and the carry.

    A subclass names the columns of the two kernels and writes the elementwise part:

    * `input_gates`, `recurrent_gates`: one name for each block of H columns of W and of R. Blocks of one name are
      added; a name that stands in only one of the two is handed over as it is (the reset-after GRU needs this).
    * `activate(z, carry)`: pre-activations by name, `[*batch, H]` each, to gate values by name.
    * `pointwise(z, carry) -> (carry, y)`: the rest of the step, calling `activate`. Elementwise over batch and
      features, and free of `kernel`, `recurrent_kernel` and `bias`.
    * `hidden(carry)`: the h that R is multiplied by: the carry itself, or its part `h`.

    Parameters: `kernel [F, Gx H]`, `recurrent_kernel [H, Gh H]`, `bias [G H]`, where G counts the distinct names (in
    the order of `gate_columns`). Kernels are drawn block by block, so an orthogonal recurrent kernel has
    orthogonal blocks.
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
        blocks_x, blocks_h = len(self.input_gates), len(self.recurrent_gates)
        self.kernel = block_kernel(kernel_init, in_features, hidden_features, blocks_x, param_dtype, rngs)
        self.recurrent_kernel = block_kernel(
            recurrent_kernel_init, hidden_features, hidden_features, blocks_h, param_dtype, rngs
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
        """Returns W `[F, Gx H]`, R `[H, Gh H]` and b `[G H]` as the products use them.

        A cell with a structured recurrent matrix (orthogonal, masked, skew) overrides this: it is called once for
        a whole sequence, and JAX differentiates through it.
        """
        bias = None if self.bias is None else self.bias[...]
        return self.kernel[...], self.recurrent_kernel[...], bias

    def hidden(self, carry: Carry) -> Array:
        """Returns h, the part of the carry that the recurrent kernel multiplies, `[*batch, H]`.

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
        h = self.hidden(carry)
        x, kernel, recurrent_kernel = dtypes.promote_dtype((x, kernel, recurrent_kernel), dtype=self.dtype)
        products = ((x @ kernel, self.input_gates), (h.astype(x.dtype) @ recurrent_kernel, self.recurrent_gates))
        z = sum_gates(self, products, bias)
        # The state may be kept in a wider type than the products: gates are computed in the type of the state.
        return {name: value.astype(h.dtype) for name, value in z.items()}, x.dtype


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


def add_bias(z: Array, bias: Array) -> Array:
    """Returns `z + bias` in the type of z, without implicit promotion of dtype or rank.

    A bare `z + bias` raises under `jax_numpy_rank_promotion="raise"` where z has batch axes, and under
    `jax_numpy_dtype_promotion="strict"` where z has another dtype, as with products in bfloat16.

    Args:
      z: `[..., G]`.
      bias: `[G]`, in any floating-point type.
    """
    row = bias.astype(z.dtype)
    return z + row.reshape((1,) * (z.ndim - 1) + bias.shape)


def check_input(cell: nnx.RNNCellBase, x: Array) -> None:
    """Raises ValueError unless the last axis of x has the size that the cell was built for, if the cell tells it."""
    features = getattr(cell, "in_features", None)
    if not isinstance(features, int) or cell.num_feature_axes != 1:
        return
    shape = jnp.shape(x)
    if not shape or shape[-1] != features:
        raise ValueError(
            f"inputs of shape {shape} have {shape[-1] if shape else 'no'} features; allowed: {features}, the"
            f" in_features of this {type(cell).__name__}."
        )


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


_CATALOGUE: dict[str, type[nnx.RNNCellBase]] = {}


def register(name: str) -> Callable[[type[nnx.RNNCellBase]], type[nnx.RNNCellBase]]:
    """Class decorator: enters a cell in the catalogue under a name."""

    def enter(cls: type[nnx.RNNCellBase]) -> type[nnx.RNNCellBase]:
        if name in _CATALOGUE:
            raise ValueError(f"cell name {name!r} is taken by {_CATALOGUE[name].__name__}; allowed: a new name.")
        _CATALOGUE[name] = cls
        return cls

    return enter


def catalogue() -> dict[str, type[nnx.RNNCellBase]]:
    """Returns the cells of this library by name, in alphabetical order."""
    return dict(sorted(_CATALOGUE.items()))


def make_cell(name: str, in_features: int, hidden_features: int, *, rngs: nnx.Rngs, **kwargs: Any) -> nnx.RNNCellBase:
    """Builds a cell from its name.

    Args:
      name: a name of the catalogue (`lstm`) or `path.to.module:Class`, either of them with constructor arguments
        behind it if wanted: `lstm(forget_bias=0)`, `elman(activation="relu")`.
      in_features: F, size of the input.
      hidden_features: H, size of the state.
      rngs: the stream `params` draws the parameters.
      **kwargs: more constructor arguments; those in `name` win.

    Raises:
      ValueError: if there is no such cell, or it takes no such argument.
    """
    path, written = _parse_spec(name)
    cls = _find_class(path)
    kwargs = {**kwargs, **written}
    known = _constructor_arguments(cls)
    for argument in kwargs:
        if argument not in known:
            raise ValueError(f"cell {path!r} has no argument {argument!r}; allowed: {', '.join(known)}.")
    return cls(in_features, hidden_features, **kwargs, rngs=rngs)  # type: ignore[call-arg]


def split_names(text: str) -> list[str]:
    """Splits a comma-separated list of cell names, as a flag gives it; commas within parentheses belong to a name.

    Raises:
      ValueError: if there is no name, or one stands there twice.
    """
    names = [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"cells={text!r} names {'a cell twice' if names else 'no cell'}; allowed: different names.")
    return names


def _parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits `name(a=1, b="x")` into the name and its literal keyword arguments."""
    name, parenthesis, rest = spec.partition("(")
    if not parenthesis:
        return spec, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise SyntaxError
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len(set(names)) < len(names):  # None: `**`
            raise SyntaxError
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"cell {spec!r} cannot be read; allowed: name, or name(argument=value, ...) with literal values."
        ) from None


def _constructor_arguments(cls: type[nnx.RNNCellBase]) -> tuple[str, ...]:
    """Returns the optional arguments of a class, with those that its `**kwargs` hands to its base classes."""
    known: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        known |= dict.fromkeys(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return tuple(name for name in known if name not in ("self", "in_features", "hidden_features", "rngs"))


def _find_class(path: str) -> type[nnx.RNNCellBase]:
    if path in _CATALOGUE:
        return _CATALOGUE[path]
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"unknown cell {path!r}; allowed: {', '.join(catalogue())}, or path.to.module:Class.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module of the user's own raises
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"cell {path!r}: module {module_name!r} cannot be imported ({reason}).") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nnx.RNNCellBase)):
        raise ValueError(f"cell {path!r}: module {module_name!r} has no flax.nnx.RNNCellBase {class_name!r}.")
    return found
