"""One network in six libraries, all with the same weights: ours, torch, flax.nnx, flax.linen, Equinox and Keras.

Ours is drawn by `build_ours`; each `_build_*` function states how its library orders the same numbers.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from rnn_jax.layers import Bidirectional, Stack, make_rnn

Array = jax.Array
PyTree = Any

CELL_GATES = {"elman": 1, "gru": 3, "lstm": 4}  # blocks of H columns in each kernel
ONE_THREAD = " on 1 thread"  # the second implementation of torch


@dataclasses.dataclass(frozen=True)
class Workload:
    """One cell at one grid point."""

    cell: str
    batch: int
    time: int
    in_features: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False

    @property
    def point(self) -> str:
        parts = [f"{self.batch}x{self.time}x{self.in_features}x{self.hidden}"]
        parts += [f"{self.layers} layers"] if self.layers > 1 else []
        parts += ["bidirectional"] if self.bidirectional else []
        return " ".join(parts)

    def memory(self) -> int:
        """Returns about how many bytes of float32 a step of one library holds: activations, and weights four times."""
        directions = 2 if self.bidirectional else 1
        columns = directions * (CELL_GATES[self.cell] + 2) * self.hidden
        numbers = self.batch * self.time * (self.in_features + self.layers * columns)
        for k in range(self.layers):
            size = self.in_features if k == 0 else self.hidden * directions
            numbers += 4 * directions * CELL_GATES[self.cell] * self.hidden * (size + self.hidden + 1)
        return 4 * numbers

    def flop(self, pass_name: str) -> float:
        """Returns the operations of the matrix products alone, one for each multiplication and each addition."""
        directions = 2 if self.bidirectional else 1
        per_column = 2 * self.batch * self.time * directions * CELL_GATES[self.cell] * self.hidden
        total = 0
        for k in range(self.layers):
            size = self.in_features if k == 0 else self.hidden * directions
            total += per_column * (size + self.hidden)
            if pass_name != "forward":  # of W and R, through R, and to the layer below
                total += per_column * (size + self.hidden + self.hidden + (size if k else 0))
        return float(total)


class Weights(NamedTuple):
    """One layer in one direction, in our order: LSTM i, f, g, o; GRU r, u, n, and the biases r, u, nx, nh.

    b_nh is 0: Flax's `nnx.GRUCell` has none.
    """

    kernel: np.ndarray  # [F, G H]
    recurrent_kernel: np.ndarray  # [H, G H]
    bias: np.ndarray


AllWeights = list[list[Weights]]  # [layers][directions]
Kernels = list[np.ndarray]  # W and R of each layer and direction in turn, in our order


class JaxModel(NamedTuple):
    """What a JAX library makes of a workload: `kernels` takes a pytree like `params`."""

    params: PyTree
    apply: Callable[[PyTree, Array], Array]
    kernels: Callable[[PyTree], Kernels]


def build_ours(w: Workload) -> tuple[JaxModel, AllWeights]:
    """Draws our network (biases too, so that each has a part to play), and returns it and its weights."""
    model = make_rnn(
        w.cell,
        w.in_features,
        w.hidden,
        layers=w.layers,
        bidirectional=w.bidirectional,
        bias_init=nnx.initializers.normal(0.1),
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )

    def cells(model: Any) -> list[list[Any]]:
        layers = model.layers if isinstance(model, Stack) else [model]
        pairs = [(k.forward_rnn, k.backward_rnn) if isinstance(k, Bidirectional) else (k,) for k in layers]
        return [[layer.cell for layer in pair] for pair in pairs]

    def kernels(tree: Any) -> Kernels:
        pairs = [(cell.kernel, cell.recurrent_kernel) for layer in cells(tree) for cell in layer]
        return [np.asarray(kernel[...]) for pair in pairs for kernel in pair]

    weights: AllWeights = []
    for layer in cells(model):
        weights.append([])
        for cell in layer:
            if w.cell == "gru":
                cell.set_gate_bias("candidate_h", 0.0)
            arrays = (cell.kernel, cell.recurrent_kernel, cell.bias)
            weights[-1].append(Weights(*(np.asarray(array[...]) for array in arrays)))
    return JaxModel(model, lambda model, xs: model(xs), kernels), weights


def _columns(array: np.ndarray, blocks: int) -> list[np.ndarray]:
    return np.split(array, blocks, axis=-1)


def _build_torch(w: Workload, weights: AllWeights, implementation: str) -> Any:
    """`torch.nn`: our columns are its rows. Of its two biases one is 0, but for the GRU's b_nh."""
    import torch

    layer_type = getattr(torch.nn, implementation.removesuffix(ONE_THREAD))
    layer = layer_type(w.in_features, w.hidden, w.layers, batch_first=True, bidirectional=w.bidirectional)
    for k, directions in enumerate(weights):
        for one, suffix in zip(directions, ("", "_reverse"), strict=False):
            columns = CELL_GATES[w.cell] * w.hidden
            bias_h = np.zeros(columns, np.float32)
            if w.cell == "gru":
                bias_h[-w.hidden :] = one.bias[columns:]
            values = {"weight_ih": one.kernel.T, "weight_hh": one.recurrent_kernel.T}
            values |= {"bias_ih": one.bias[:columns], "bias_hh": bias_h}
            with torch.no_grad():
                for name, value in values.items():
                    getattr(layer, f"{name}_l{k}{suffix}").copy_(torch.tensor(value))
    return layer


def _build_nnx(w: Workload, weights: AllWeights, implementation: str) -> JaxModel:
    """`flax.nnx.RNN`: columns as ours, the bias on the input side, or, in an LSTM, on the hidden side.

    `rngs=False` and a carry from outside keep random state out of the layer, so that plain JAX transforms take it.
    """

    def parts(cell: Any) -> tuple[list[Any], list[Any]]:
        if implementation == "LSTMCell":
            return [cell.ii, cell.if_, cell.ig, cell.io], [cell.hi, cell.hf, cell.hg, cell.ho]
        return [cell.dense_i], [cell.dense_h]

    def rnn(one: Weights) -> nnx.RNN:
        cell = getattr(nnx, implementation)(len(one.kernel), w.hidden, rngs=nnx.Rngs(0))
        inputs, hiddens = parts(cell)
        for side, kernel in ((inputs, one.kernel), (hiddens, one.recurrent_kernel)):
            for dense, part in zip(side, _columns(kernel, len(side))):
                dense.kernel = nnx.Param(jnp.asarray(part))
        biased = hiddens if w.cell == "lstm" else inputs
        for dense, part in zip(biased, _columns(one.bias[: CELL_GATES[w.cell] * w.hidden], len(biased))):
            dense.bias = nnx.Param(jnp.asarray(part))
        return nnx.RNN(cell, rngs=False)

    def directions(layer: Any) -> list[nnx.RNN]:
        return [layer.forward_rnn, layer.backward_rnn] if w.bidirectional else [layer]

    def apply(layers: PyTree, xs: Array) -> Array:
        for layer in layers:
            step_shape = (w.batch, xs.shape[-1])
            carries = [rnn.cell.initialize_carry(step_shape, nnx.Rngs(0)) for rnn in directions(layer)]
            xs = layer(xs, initial_carry=tuple(carries) if w.bidirectional else carries[0])
        return xs

    def kernels(layers: PyTree) -> Kernels:
        sides = [side for layer in layers for rnn in directions(layer) for side in parts(rnn.cell)]
        return [np.concatenate([np.asarray(dense.kernel[...]) for dense in side], axis=-1) for side in sides]

    rnns = [[rnn(one) for one in layer] for layer in weights]
    layers = [nnx.Bidirectional(*pair, rngs=False) if w.bidirectional else pair[0] for pair in rnns]
    return JaxModel(layers, apply, kernels)


_LINEN_GATES = {"elman": ("",), "gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}


def _build_linen(w: Workload, weights: AllWeights, implementation: str) -> JaxModel:
    """`flax.linen.RNN`: a parameter each gate, `i<gate>` and `h<gate>`; the bias as in nnx, and b_nh beside `hn`."""
    gates = _LINEN_GATES[w.cell]
    biased = "h" if w.cell == "lstm" else "i"

    def params(one: Weights) -> PyTree:
        dense: dict[str, dict[str, np.ndarray]] = {}
        for side, kernel in (("i", one.kernel), ("h", one.recurrent_kernel)):
            dense |= {side + gate: {"kernel": part} for gate, part in zip(gates, _columns(kernel, len(gates)))}
        names = [biased + gate for gate in gates] + (["hn"] if w.cell == "gru" else [])
        for name, part in zip(names, _columns(one.bias, len(names)), strict=True):
            dense[name]["bias"] = part
        return {"cell": dense}

    def rnn() -> linen.RNN:
        return linen.RNN(getattr(linen, implementation)(w.hidden))

    layer = linen.Bidirectional(rnn(), rnn()) if w.bidirectional else rnn()
    names = ("forward_rnn", "backward_rnn")

    def apply(layers: PyTree, xs: Array) -> Array:
        for params in layers:
            xs = cast(Array, layer.apply({"params": params}, xs))
        return xs

    def kernels(layers: PyTree) -> Kernels:
        pairs = [[layer[name] for name in names] if w.bidirectional else [layer] for layer in layers]
        cells = [one["cell"] for pair in pairs for one in pair]
        sides = [[cell[side + gate]["kernel"] for gate in gates] for cell in cells for side in ("i", "h")]
        return [np.concatenate([np.asarray(part) for part in side], axis=-1) for side in sides]

    own = [[params(one) for one in directions] for directions in weights]
    return JaxModel([dict(zip(names, k, strict=True)) if w.bidirectional else k[0] for k in own], apply, kernels)


def _build_equinox(w: Workload, weights: AllWeights, implementation: str) -> JaxModel:
    """Equinox cells under `jax.lax.scan`, as its examples have them: our columns are its rows, `bias_n` is b_nh."""
    import equinox as eqx

    def cell(one: Weights) -> Any:
        cell = getattr(eqx.nn, implementation)(len(one.kernel), w.hidden, key=jax.random.key(0))
        columns = CELL_GATES[w.cell] * w.hidden
        values = {"weight_ih": one.kernel.T, "weight_hh": one.recurrent_kernel.T, "bias": one.bias[:columns]}
        values |= {"bias_n": one.bias[columns:]} if w.cell == "gru" else {}
        arrays = tuple(jnp.asarray(value) for value in values.values())
        return eqx.tree_at(lambda cell: tuple(getattr(cell, name) for name in values), cell, arrays)

    def one_direction(cell: Any, xs_TF: Array, reverse: bool) -> Array:
        def step(state: Any, x: Array) -> Any:
            state = cell(x, state)
            return state, state[0] if w.cell == "lstm" else state

        zeros = jnp.zeros(w.hidden, xs_TF.dtype)
        return jax.lax.scan(step, (zeros, zeros) if w.cell == "lstm" else zeros, xs_TF, reverse=reverse)[1]

    def one_sequence(layers: PyTree, xs_TF: Array) -> Array:
        for directions in layers:
            xs_TF = jnp.concatenate([one_direction(cell, xs_TF, k == 1) for k, cell in enumerate(directions)], -1)
        return xs_TF

    def kernels(layers: PyTree) -> Kernels:
        cells = [cell for directions in layers for cell in directions]
        return [np.asarray(kernel).T for cell in cells for kernel in (cell.weight_ih, cell.weight_hh)]

    layers = [[cell(one) for one in directions] for directions in weights]
    return JaxModel(layers, jax.vmap(one_sequence, in_axes=(None, 0)), kernels)


def _build_keras(w: Workload, weights: AllWeights, implementation: str) -> JaxModel:
    """Keras on JAX, by `stateless_call`. The GRU's columns are u, r, n, its biases [(u, r, nx), (0, 0, nh)]."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError("keras was imported with another backend; allowed: jax.")

    def swapped(array: np.ndarray) -> np.ndarray:
        if w.cell != "gru":
            return array
        r, u, n = _columns(array, 3)
        return np.concatenate([u, r, n], axis=-1)

    def params(one: Weights) -> list[Array]:
        bias = one.bias
        if w.cell == "gru":
            bias_x, bias_h = one.bias[: 3 * w.hidden], np.zeros_like(one.bias[: 3 * w.hidden])
            bias_h[2 * w.hidden :] = one.bias[3 * w.hidden :]
            bias = np.stack([swapped(bias_x), bias_h])
        return [jnp.asarray(array) for array in (swapped(one.kernel), swapped(one.recurrent_kernel), bias)]

    layers, all_params = [], []
    for directions in weights:
        layer = getattr(keras.layers, implementation)(w.hidden, return_sequences=True)
        layer = keras.layers.Bidirectional(layer, merge_mode="concat") if w.bidirectional else layer
        layer.build((w.batch, w.time, len(directions[0].kernel)))
        layers.append(layer)
        all_params.append([array for one in directions for array in params(one)])
    # Random state for dropout, which there is none of.
    fixed = [[np.asarray(variable.value) for variable in layer.non_trainable_variables] for layer in layers]

    def apply(all_params: PyTree, xs: Array) -> Array:
        for layer, params, state in zip(layers, all_params, fixed, strict=True):
            xs, _ = layer.stateless_call(params, [jnp.asarray(array) for array in state], xs)
        return xs

    def kernels(all_params: PyTree) -> Kernels:
        arrays = [array for params in all_params for array in params]
        return [swapped(np.asarray(array)) for k, array in enumerate(arrays) if k % 3 < 2]

    return JaxModel(all_params, apply, kernels)


class Library(NamedTuple):
    """A peer: the module to import, what pip calls it, the implementations of each cell, and its builder."""

    module: str
    pip: str
    implementations: dict[str, tuple[str, ...]]
    build: Callable[[Workload, AllWeights, str], Any]


_FLAX_CELLS = {"elman": ("SimpleCell",), "gru": ("GRUCell",), "lstm": ("OptimizedLSTMCell", "LSTMCell")}
_TORCH_LAYERS: dict[str, tuple[str, ...]] = {
    cell: (name, name + ONE_THREAD) for cell, name in (("elman", "RNN"), ("gru", "GRU"), ("lstm", "LSTM"))
}
# Equinox has no Elman cell. memax 0.1.1 computes other functions, and is left out: its LSTM puts out o * c without
# tanh, its GRU resets before the product and takes H inputs only, its Elman layer has another product behind it.
LIBRARIES = {
    "torch": Library("torch", "torch", _TORCH_LAYERS, _build_torch),
    "flax.nnx": Library("flax.nnx", "flax", _FLAX_CELLS, _build_nnx),
    "flax.linen": Library("flax.linen", "flax", _FLAX_CELLS, _build_linen),
    "equinox": Library("equinox", "equinox", {"gru": ("GRUCell",), "lstm": ("LSTMCell",)}, _build_equinox),
    "keras": Library("keras", "keras", {"elman": ("SimpleRNN",), "gru": ("GRU",), "lstm": ("LSTM",)}, _build_keras),
}
