"""What models are built from: `RNN`, `Bidirectional`, `Stack`. Signatures are those of `flax.nnx`."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import asks_for
from rnn_jax.constant import Constant
from rnn_jax.registry import make_cell
from rnn_jax.unroll import Checkpointed, Probe, Truncated, Whole, unroll, updates_variables
from rnn_jax.unroll.inputs import abstract_step, clip_lengths, time_axis
from rnn_jax.unroll.record import CallProbes, CallRecorder
from rnn_jax.unroll.truncated import TruncatedAt

Array = jax.Array
Carry = Any
PyTree = Any


class RNN(nnx.Module):
    """Applies a cell over a sequence; takes every argument of `flax.nnx.RNN`, with its meaning and default.

    Unlike that one it may be closed over by, or passed to, any of `jax.jit`, `jax.grad`, `jax.vmap` and `jax.lax.scan`.
    It keeps no random state, and outputs at padded steps are zero.

    A cell whose step updates variables of its own (`nnx.Dropout`, `nnx.BatchNorm`, a counter), `state_axes` and
    `broadcast_rngs` are handed over to `flax.nnx.RNN`: no gradient profile, no fast path, no resets, no options that
    only this class has, and Flax's outputs at padded steps.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      time_major: inputs are `[time, *batch, ...]` instead of `[*batch, time, ...]`.
      return_carry: return `(carry, ys)` instead of `ys`.
      reverse: run from the last (true) step to the first.
      keep_order: with `reverse`, outputs stay at the step of their input; else they come in the order of the run,
        the last input's output first, padding at the end.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`; by default 8 on a GPU, else 1.
      method, gradient: as `rnn_jax.unroll`; not in Flax.
      state_axes, broadcast_rngs: as `flax.nnx.RNN`, which then runs the cell.
      rngs: for a random initial carry. An `nnx.Rngs` is drawn from once, here; pass one to the call to draw again.
    """

    def __init__(
        self,
        cell: nnx.RNNCellBase,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int | None = None,
        method: str = "auto",
        gradient: Whole | Checkpointed | Truncated | None = None,
        state_axes: Any = None,
        broadcast_rngs: Any = None,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ):
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.method = method
        self.gradient = gradient
        self.state_axes = state_axes
        self.broadcast_rngs = broadcast_rngs
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        self.carry_key = _KeptKey(stream()) if isinstance(stream, nnx.RngStream) else None
        self.probe = nnx.data(None)

    def __call__(
        self,
        inputs: PyTree,
        *,
        initial_carry: Carry | None = None,
        context: PyTree = None,
        seq_lengths: Array | None = None,
        resets: Array | None = None,
        key: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Runs the cell over the inputs.

        Args:
          inputs: `[*batch, time, ...features]`, or `[time, *batch, ...features]` if time-major; or a pytree of such
            arrays, if the cell reads one.
          initial_carry: by default what `cell.initialize_carry` makes.
          context: of a cell that asks for it, a pytree `[*batch, ...]`; see `rnn_jax.unroll`.
          seq_lengths: true lengths, int `[*batch]`; see `rnn_jax.unroll`.
          resets: bool, of the shape of the inputs without features; see `rnn_jax.unroll`.
          key: of `jax.random`, for a cell that asks for it; None is deterministic. See `rnn_jax.unroll`.
          return_carry, time_major, reverse, keep_order: in the place of the constructor's.
          rngs: for a random initial carry.

        Returns:
          ys, time where it is in the inputs; or `(carry, ys)`. A cell may put out a pytree of arrays.

        Raises:
          ValueError: as `rnn_jax.unroll`, and for `context`, `resets` or a gradient profile where `flax.nnx.RNN` runs
            the cell.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        rngs = self.carry_rngs() if rngs is None else rngs
        axis = time_axis(self.cell, inputs)
        if time_major:
            inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), inputs)
            resets = None if resets is None else jnp.moveaxis(resets, 0, -1)
        if self._needs_flax(inputs, axis, initial_carry, context):
            if context is not None or resets is not None or self.probe is not None:
                raise ValueError(
                    f"{type(self.cell).__name__} keeps state of its own and is run by flax.nnx.RNN; allowed there:"
                    " no context, no resets, no gradient profile."
                )
            layer = nnx.RNN(
                self.cell,
                unroll=self.unroll or 1,
                state_axes=self.state_axes,
                broadcast_rngs=self.broadcast_rngs,
                rngs=False,
            )
            carry, ys = layer(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=True,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        else:
            carry, ys = unroll(
                self.cell,
                inputs,
                initial_carry,
                context=context,
                lengths=seq_lengths,
                resets=resets,
                reverse=reverse,
                key=key,
                method=self.method,
                unroll=self.unroll,
                gradient=self.gradient,
                rngs=rngs,
                probe=self.probe,
            )
            if reverse and not keep_order:
                ys = jax.tree.map(lambda y: _flip(y, seq_lengths, axis), ys)
        if time_major:
            ys = jax.tree.map(lambda y: jnp.moveaxis(y, axis, 0), ys)
        return (carry, ys) if return_carry else ys

    @property
    def num_feature_axes(self) -> Any:
        """Feature axes of the inputs, as the cell has them."""
        return self.cell.num_feature_axes

    @property
    def takes_context(self) -> bool:
        """Whether the cell asks for a context."""
        return asks_for(self.cell, "context")

    def carry_rngs(self) -> nnx.Rngs:
        """Returns what a random initial carry is drawn from: always the same numbers."""
        return nnx.Rngs(0) if self.carry_key is None else nnx.Rngs(carry=self.carry_key())

    def _needs_flax(self, inputs: PyTree, axis: int, carry: Carry | None, context: PyTree) -> bool:
        if self.state_axes is not None or self.broadcast_rngs is not None:
            return True
        x = abstract_step(inputs, axis)
        return updates_variables(self.cell, x, jax.tree.leaves(x)[0].shape, carry, context)

    def with_probe(self, probe: Probe | CallProbes | CallRecorder | TruncatedAt | None) -> "RNN":
        """Returns the same layer with another probe; the instruments of `rnn_jax.flow` call this."""
        layer = jax.tree.map(lambda x: x, self)
        layer.probe = nnx.data(probe)
        return layer


class _KeptKey(nnx.Module):
    """A random key among the arrays of a model: as floating-point numbers, since `jax.grad` takes no others.

    A float32 holds 16 of the bits of a key exactly.
    """

    def __init__(self, key: Array):
        bits = jax.random.key_data(key)
        self.halves = Constant(jnp.stack([bits >> 16, bits & 0xFFFF]).astype(jnp.float32))
        self.impl = str(jax.random.key_impl(key))

    def __call__(self) -> Array:
        high, low = self.halves[...].astype(jnp.uint32)
        return jax.random.wrap_key_data((high << 16) | low, impl=self.impl)


def _flip(ys: Array, lengths: Array | None, time_axis: int) -> Array:
    """Reverses the true steps of every sequence, padding stays behind."""
    if lengths is None:
        return jnp.flip(ys, time_axis)
    time = ys.shape[time_axis]
    lengths = clip_lengths(jnp.asarray(lengths), time)
    steps = jnp.arange(time, dtype=jnp.int32).reshape((1,) * lengths.ndim + (time,))
    source = jnp.expand_dims(lengths, -1) - 1 - steps
    source = jnp.where(source < 0, source + time, source)
    return jnp.take_along_axis(ys, source.reshape(source.shape + (1,) * (ys.ndim - source.ndim)), time_axis)


def concatenate(forward: Array, backward: Array) -> Array:
    """Joins the outputs of two directions along the last axis."""
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nnx.Module):
    """Runs one layer forward and one backward over the same sequence and merges their outputs step by step.

    Args:
      forward_rnn, backward_rnn: `RNN` layers (or anything of the same signature), one set of weights each.
      merge_fn: of the two outputs, each at the step of its input; by default joined along the last axis.
      time_major, return_carry: as in `RNN`; the carry is the pair (forward, backward).
      rngs: taken for compatibility with `flax.nnx.Bidirectional`; each layer has its own.

    Raises:
      ValueError: if the layers are one object, or share a parameter.
    """

    def __init__(
        self,
        forward_rnn: RNN,
        backward_rnn: RNN,
        *,
        merge_fn: Callable[[Array, Array], Array] = concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ):
        del rngs
        if forward_rnn is backward_rnn:
            raise ValueError("forward_rnn and backward_rnn are one object; allowed: two layers, each with its weights.")
        _check_nothing_shared({"forward_rnn": forward_rnn, "backward_rnn": backward_rnn})
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn
        self.time_major = time_major
        self.return_carry = return_carry

    def __call__(
        self,
        inputs: PyTree,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        context: PyTree = None,
        seq_lengths: Array | None = None,
        resets: Array | None = None,
        key: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Runs both directions; arguments as `RNN.__call__` (`reverse` and `keep_order` do nothing, as in Flax).

        Raises:
          ValueError: for `resets`: the two directions begin sequences at different steps.
        """
        del reverse, keep_order
        if resets is not None:
            raise ValueError("resets cannot be used in both directions; allowed: None, or `lengths` of a padded batch.")
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        outputs = []
        for direction, layer in enumerate((self.forward_rnn, self.backward_rnn)):
            outputs.append(
                layer(
                    inputs,
                    initial_carry=None if initial_carry is None else initial_carry[direction],
                    seq_lengths=seq_lengths,
                    return_carry=True,
                    time_major=time_major,
                    reverse=direction == 1,
                    keep_order=direction == 1,
                    rngs=rngs,
                    **_for_layer(layer, context, None if key is None else jax.random.fold_in(key, direction)),
                )
            )
        (carry_forward, ys_forward), (carry_backward, ys_backward) = outputs
        ys = jax.tree.map(self.merge_fn, ys_forward, ys_backward)
        return ((carry_forward, carry_backward), ys) if return_carry else ys

    @property
    def num_feature_axes(self) -> Any:
        """Feature axes of the inputs, as the cells have them."""
        return _num_feature_axes(self.forward_rnn)

    @property
    def takes_context(self) -> bool:
        """Whether a cell asks for a context."""
        return any(getattr(layer, "takes_context", False) for layer in (self.forward_rnn, self.backward_rnn))


class Stack(nnx.Module):
    """Several recurrent layers, one above the other: each reads the outputs of the one below.

    Outputs with more feature axes than the layer above reads, or of several arrays, are joined (`join_features`).

    Args:
      layers: `RNN`, `Bidirectional` or other layers of that signature, the lowest first. (`reverse` layers must have
        `keep_order`, or a layer above would meet its inputs out of order: in this class they always do.)
      dropout: rate of `rnn_jax.layers.dropout` between layers, on calls that are given a `key`.
      return_carry: return `(carries, ys)`, one carry a layer, instead of `ys`.

    Raises:
      ValueError: if there is no layer, two layers share a parameter, or `dropout` is not within [0, 1).
    """

    def __init__(self, layers: Sequence[Any], *, dropout: float = 0.0, return_carry: bool = False):
        if not layers:
            raise ValueError("layers is empty; allowed: at least one layer.")
        _check_nothing_shared({f"layers[{k}]": layer for k, layer in enumerate(layers)})
        self.layers = nnx.List(layers)
        self.dropout = check_dropout(dropout)
        self.return_carry = return_carry

    def __call__(
        self,
        inputs: PyTree,
        *,
        initial_carry: Sequence[Carry] | None = None,
        context: PyTree = None,
        seq_lengths: Array | None = None,
        key: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs all layers; arguments as `RNN.__call__`, `initial_carry` being one carry a layer.

        The context goes to the layers that ask for it. With a `key`, the outputs of every layer but the last one pass
        through `dropout`; each layer has random numbers of its own.

        Raises:
          ValueError: if no layer asks for a context that is given; or as the layers.
        """
        if context is not None and not self.takes_context:
            raise ValueError("context is given, and no layer has a cell that asks for it; allowed: None.")
        return_carry = self.return_carry if return_carry is None else return_carry
        batch_axes = time_axis(self, inputs)
        carries, ys = [], inputs
        for k, layer in enumerate(self.layers):
            layer_key = None if key is None else jax.random.fold_in(key, k)
            if k > 0:
                ys = as_inputs(ys, _num_feature_axes(layer), batch_axes + 1)
                if layer_key is not None:
                    drop = partial(dropout, rate=self.dropout, key=layer_key, time_axis=0 if time_major else batch_axes)
                    ys = jax.tree.map(drop, ys)
            carry, ys = layer(
                ys,
                initial_carry=None if initial_carry is None else initial_carry[k],
                seq_lengths=seq_lengths,
                return_carry=True,
                time_major=time_major,
                rngs=rngs,
                **{"keep_order": True, **_for_layer(layer, context, layer_key), **kwargs},
            )
            carries.append(carry)
        return (tuple(carries), ys) if return_carry else ys

    @property
    def num_feature_axes(self) -> Any:
        """Feature axes of the inputs, as the lowest layer has them."""
        return _num_feature_axes(self.layers[0])

    @property
    def takes_context(self) -> bool:
        """Whether a cell asks for a context."""
        return any(getattr(layer, "takes_context", False) for layer in self.layers)


def _num_feature_axes(layer: Any) -> Any:
    return getattr(layer, "num_feature_axes", 1)


def _for_layer(layer: Any, context: PyTree, key: Array | None) -> dict[str, Any]:
    """Returns the arguments of a layer, which may be Flax's, that only layers of this file have."""
    if not isinstance(layer, RNN | Bidirectional | Stack):
        return {}
    return {"key": key, "context": context if layer.takes_context else None}


def as_inputs(ys: PyTree, feature_axes: Any, leading: int) -> PyTree:
    """Returns the outputs of a layer as one reads them that is built for so many feature axes.

    Args:
      ys: arrays `[*leading, ...features]`.
      feature_axes: of the reader. If it is 1, all features of all arrays are joined to one axis.
      leading: number of the axes before the features: batch and time.

    Raises:
      ValueError: if the outputs have another number of feature axes, and the reader's is not 1.
    """
    leaves = jax.tree.leaves(ys)
    if not isinstance(feature_axes, int):
        return ys
    if len(leaves) == 1 and leaves[0].ndim == leading + feature_axes:
        return leaves[0]
    if feature_axes != 1:
        shapes = [leaf.shape[leading:] for leaf in leaves]
        raise ValueError(
            f"outputs have features {shapes}; allowed for the next layer: one array of {feature_axes} axes."
        )
    flat = [leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def _check_nothing_shared(layers: dict[str, Any]) -> None:
    """Raises ValueError if two layers hold one variable: JAX would make two of it, which training moves apart."""
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for path, node in jax.tree_util.tree_leaves_with_path(layer, is_leaf=lambda x: isinstance(x, nnx.Variable)):
            if isinstance(node, nnx.Variable) and owners.setdefault(id(node), name) != name:
                raise ValueError(
                    f"{owners[id(node)]} and {name} share {jax.tree_util.keystr(path, simple=True, separator='/')!r};"
                    " allowed: layers each with its own weights, built from a cell of its own."
                )


def dropout(ys: Array, rate: float, key: Array, time_axis: int = -2) -> Array:
    """Sets each entry of `ys [*batch, time, H]` to 0 with probability `rate`, and divides the others by 1 - `rate`.

    Random numbers are new at every step, as in Zaremba et al., and step t draws its own from `(key, t)`: to pad a
    batch further changes none of those before.

    Args:
      ys: what to drop from.
      rate: within [0, 1).
      key: of `jax.random`.
      time_axis: where time is.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, "Dropout", JMLR 15.
      Zaremba, Sutskever, Vinyals 2014, "Recurrent neural network regularization", arXiv 1409.2329.
    """
    if rate == 0.0:
        return ys
    time_first = jnp.moveaxis(ys, time_axis, 0)

    def keep(t: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, t), jnp.float32(1.0 - rate), time_first.shape[1:])

    kept = jnp.moveaxis(jax.vmap(keep)(jnp.arange(time_first.shape[0], dtype=jnp.int32)), 0, time_axis)
    return jnp.where(kept, ys / (1.0 - rate), jnp.zeros_like(ys))


def check_dropout(rate: float, name: str = "dropout") -> float:
    """Returns the rate of a dropout.

    Raises:
      ValueError: if it is not within [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}={rate} is no rate; allowed: 0 or more, and below 1.")
    return rate


def drop_recurrent_weights(
    layer: "RNN | Bidirectional | Stack", rate: float, key: Array
) -> "RNN | Bidirectional | Stack":
    """Returns the layer with each entry of the recurrent kernels set to 0 with probability `rate` (DropConnect).

    The others are divided by 1 - `rate`. The kernels stay the same for all steps and all sequences of a call, so that
    the recurrence itself needs no change (Merity et al.).

    Args:
      layer: an `RNN`, `Bidirectional` or `Stack` of cells that have a `recurrent_kernel`.
      rate: within [0, 1).
      key: of `jax.random`.

    Raises:
      ValueError: if a cell has no recurrent kernel.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus 2013, "Regularization of neural networks using DropConnect", ICML.
      Merity, Keskar, Socher 2018, "Regularizing and optimizing LSTM language models", arXiv 1708.02182.
    """
    for cell in (node.cell for node in jax.tree.leaves(layer, is_leaf=_is_rnn)):
        if getattr(cell, "recurrent_kernel", None) is None:
            raise ValueError(
                f"weight_dropout={rate} drops entries of a recurrent kernel, and {type(cell).__name__} has none;"
                " allowed: 0."
            )
    leaves, structure = jax.tree_util.tree_flatten_with_path(layer)
    dropped = []
    for number, (path, leaf) in enumerate(leaves):
        if "recurrent_kernel" in jax.tree_util.keystr(path, simple=True, separator="/").split("/"):
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), jnp.float32(1.0 - rate), leaf.shape)
            leaf = jnp.where(kept, leaf / (1.0 - rate), jnp.zeros_like(leaf))
        dropped.append(leaf)
    return jax.tree.unflatten(structure, dropped)


def _is_rnn(node: Any) -> bool:
    return isinstance(node, RNN)


def make_rnn(
    cell: str,
    in_features: int | tuple[int, ...],
    hidden_features: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    **kwargs: Any,
) -> RNN | Bidirectional | Stack:
    """Builds a recurrent network of one kind of cell: one layer, or several, in one direction or both.

    A cell that asks for a context is built for one that has the features of the inputs.

    Args:
      cell: a name, as `rnn_jax.make_cell` takes.
      in_features: F of the inputs; or the sizes of their feature axes, `(rows, columns, channels)`, for a cell that
        reads several. Such a cell is built with the last of them.
      hidden_features: H of each layer and direction.
      layers: how many, one above the other.
      bidirectional: whether each layer runs in both directions.
      dropout: rate between layers, as in `Stack`; one layer has none.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell.

    Raises:
      ValueError: if `layers` is below 1, `dropout` not within [0, 1), the cell reads another number of feature axes; or
        as `rnn_jax.make_cell`.
    """
    if layers < 1:
        raise ValueError(f"layers={layers} is no number of layers; allowed: 1 or more.")
    check_dropout(dropout)
    features = (in_features,) if isinstance(in_features, int) else tuple(in_features)

    def one(size: int) -> RNN:
        return RNN(make_cell(cell, size, hidden_features, rngs=rngs, **kwargs))

    context = jax.ShapeDtypeStruct((1, 1, *features), jnp.float32)
    stack: list[RNN | Bidirectional] = []
    for _ in range(layers):
        if stack:
            features = _features_for(stack[0], output_features(stack[-1], features, context))
        layer = Bidirectional(one(features[-1]), one(features[-1])) if bidirectional else one(features[-1])
        if layer.num_feature_axes != len(features):
            raise ValueError(
                f"cell {cell!r} reads {layer.num_feature_axes} feature axes, and the inputs have {len(features)}, of"
                f" sizes {features}; allowed: as many."
            )
        stack.append(layer)
    return stack[0] if layers == 1 else Stack(stack, dropout=dropout)


def layers_of(rnn: RNN | Bidirectional | Stack) -> list[Any]:
    """Returns the layers of a network, the lowest first; a lone layer is a stack of one."""
    return list(rnn.layers) if isinstance(rnn, Stack) else [rnn]


def feature_sizes(rnn: RNN | Bidirectional | Stack, in_features: int) -> list[int]:
    """Returns the sizes of the inputs of each layer, and that of the outputs of the last, each joined to one axis."""
    sizes = [in_features]
    for layer in layers_of(rnn):
        sizes.append(math.prod(output_features(layer, (sizes[-1],))))
    return sizes


def _features_for(layer: RNN | Bidirectional, features: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the features as a layer like this one reads them, as `as_inputs` makes them."""
    return features if layer.num_feature_axes != 1 else (math.prod(features),)


def output_features(
    layer: RNN | Bidirectional | Stack, features: tuple[int, ...], context: PyTree = None
) -> tuple[int, ...]:
    """Returns the sizes of the feature axes that a layer puts out, those of several arrays joined to one axis.

    Args:
      layer: any.
      features: sizes of the feature axes of its inputs.
      context: of a layer that asks for one, arrays `[1, ...]`, of which only the shapes are read.
    """
    floating = (leaf.dtype for leaf in jax.tree.leaves(layer) if jnp.issubdtype(leaf.dtype, jnp.floating))
    xs = jax.ShapeDtypeStruct((1, 1, *features), next(floating, jnp.float32))
    context = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, xs.dtype), context)
    ys = jax.eval_shape(partial(layer, return_carry=False), xs, **_for_layer(layer, context, None))
    leaves = jax.tree.leaves(ys)
    if len(leaves) == 1:
        return leaves[0].shape[2:]
    return (sum(math.prod(leaf.shape[2:]) for leaf in leaves),)
