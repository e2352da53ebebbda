r"""How fast are our layers against what people use now?

Times `rnn_jax.RNN` beside torch.nn, flax.nnx.RNN, flax.linen.RNN, Equinox cells under lax.scan, and Keras on JAX, all
with the same weights and the same inputs.

    pip install -r requirements-bench.txt
    python -m experiments.benchmark                                                   (30 min on 2 quiet CPU cores)
    python -m experiments.benchmark --quick                                           (1 min)
    python -m experiments.benchmark --cells=lstm --grid=32x128x64x64,1x512x64x128 --peers=torch,keras --passes=step
    python -m experiments.benchmark --grid=32x128x64x64 --layers=2 --bidirectional
    python -m experiments.benchmark --what=profile        what flow.gradient_profile adds to the gradient  (10 min)
    python -m experiments.benchmark --memory              peak memory, a process for each number           (30 min)

A grid point BxTxIxH is a batch of B sequences of T steps, I input features and H hidden features. The passes are
`forward` (outputs only), `gradient` (forward and backward, of every parameter) and `step` (that, and Adam).

How it is kept fair:

* Our weights are copied into each peer (the mapping is in its `_build_*` function). A peer whose outputs or kernel
  gradients differ from ours by more than 1e-4 of their largest entry is not timed, and the exit status is 1.
* Everyone gets float32 `[batch, time, features]`, batch first, and computes 0.5 mean((ys - targets)^2). JAX peers are
  under one plain `jax.jit` with the parameters as argument, donated in `step`; Adam is optax's, and torch's own, fused.
* Of several ways of one library to the same result the fastest counts: Flax's LSTMCell and OptimizedLSTMCell, torch
  with its default number of threads and with one.
* Turns go round, A B C A B C ..., after two calls each to warm up. A turn repeats short calls, up to 50 times,
  to last 20 ms. A number is the median over rounds, a ratio the median of the ratios of each round.
* torch's threads spin after each call and take the cores from whoever comes next: on 2 busy cores JAX took 15 to 23 ms
  right after torch and 8 after itself, and torch 22 to 50 ms. With OMP_WAIT_POLICY=passive they sleep, JAX takes 7 to
  8 ms after torch too, and torch 13; but on quiet cores torch alone may do better spinning. So the run first compares
  torch alone under both policies and takes the better one for torch; if that is not `passive`, it waits 20 ms after
  each turn of torch. `--quick` takes `passive` unseen, and a policy in the environment is left as it is.

It writes config.json, machine.json, benchmark.csv (a row a measurement) and figures/benchmark.png, and prints where.
"""

import csv
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import app, flags, logging
from flax import linen, nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rnn_jax
from rnn_jax import flow
from rnn_jax.layers import Bidirectional, Stack, make_rnn
from rnn_jax.training import run_directory

_WHAT = flags.DEFINE_enum(
    "what", "layers", ["layers", "profile"], "Our layers against peers, or the cost of flow.gradient_profile."
)
_MEMORY = flags.DEFINE_bool("memory", False, "Measure peak memory instead of time.")
_CELLS = flags.DEFINE_string("cells", "elman,gru,lstm", "Comma-separated: elman, gru, lstm.")
_GRID = flags.DEFINE_string("grid", None, "Comma-separated points BxTxIxH; a wide choice by default.")
_LAYERS = flags.DEFINE_integer("layers", 1, "Recurrent layers, one above the other.", lower_bound=1)
_BIDIRECTIONAL = flags.DEFINE_bool("bidirectional", False, "Run every layer in both directions.")
_PASSES = flags.DEFINE_string(
    "passes", None, "Comma-separated: forward, gradient, step. By default all; if quick, memory or profile: gradient."
)
_PEERS = flags.DEFINE_string("peers", None, "Comma-separated libraries; every one that is installed by default.")
_QUICK = flags.DEFINE_bool("quick", False, "Two grid points, the gradient alone, few rounds.")
_REPEATS = flags.DEFINE_integer("repeats", None, "Rounds of each measurement: 15, or 5 if quick.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/benchmark-<time> by default.")

Array = jax.Array
PyTree = Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PASSES = ("forward", "gradient", "step")
CELL_GATES = {"elman": 1, "gru": 3, "lstm": 4}  # blocks of H columns in each kernel
TOLERANCE = 1e-4  # of float32 results, relative to the largest entry
PROFILE_GOAL = 1.05  # gradient_profile / plain gradient, at batch 8 or more
GRID = (
    "32x128x64x64",  # the size of a first experiment
    "64x48x32x32",  # small and short
    "32x784x1x128",  # digits pixel by pixel
    "20x35x200x200",  # a small language model
    "32x128x128x256",
    "32x50x300x512",  # sentences on word vectors
    "128x128x128x256",  # a large batch
    "256x32x64x64",  # a larger one, of short sequences
    "16x1024x64x128",  # long sequences
    "8x256x64x32",  # a small batch: the loop itself
    "1x512x64x128",  # one sequence
)
QUICK_GRID = ("32x64x32x64", "8x128x64x32")
_TURN_SECONDS = 0.02
_LEARNING_RATE = 1e-3
_REST = 0.1  # seconds between calls whose memory is measured
# glibc then gives freed memory back at once, so that memory held is memory in use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


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


class Contestant(Protocol):
    """One network of one library. Each pass waits until its result is there."""

    def forward(self) -> Any:
        """Returns the outputs, `[batch, time, features]`, as the library's own array."""

    def gradient(self) -> Any:
        """Returns the gradient of the loss, in the library's own form."""

    def step(self) -> None:
        """Updates the weights by Adam."""

    def kernels(self, gradient: Any) -> Kernels:
        """Returns the part of a gradient that belongs to kernels, in our order."""

    def compile(self, pass_name: str) -> float | None:
        """Compiles a pass without running it, and returns the bytes its program needs, if they are known."""


class JaxModel(NamedTuple):
    """What a JAX library makes of a workload: `kernels` takes a pytree like `params`."""

    params: PyTree
    apply: Callable[[PyTree, Array], Array]
    kernels: Callable[[PyTree], Kernels]


class JaxContestant:
    """Runs a `JaxModel`; with `profile`, its gradients come from `flow.gradient_profile`."""

    def __init__(self, model: JaxModel, xs: np.ndarray, targets: np.ndarray, *, profile: bool = False):
        def loss_fn(params: PyTree, xs: Array, targets: Array) -> Array:
            return 0.5 * jnp.mean(jnp.square(model.apply(params, xs) - targets))

        def gradient(params: PyTree, xs: Array, targets: Array) -> Any:
            if not profile:
                return jax.value_and_grad(loss_fn)(params, xs, targets)
            result = flow.gradient_profile(loss_fn, params, xs, targets)
            return (result.loss, result.log10_norm), result.grads

        def step(params: PyTree, state: PyTree, xs: Array, targets: Array) -> Any:
            loss, grads = gradient(params, xs, targets)
            updates, state = adam.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        adam = optax.adam(_LEARNING_RATE)
        self.kernels = model.kernels
        self._data = (jnp.asarray(xs), jnp.asarray(targets))
        self._params = jax.tree.map(lambda x: jnp.array(x, copy=True), model.params)
        self._state = jax.jit(adam.init)(self._params)
        self._run: dict[str, Callable[..., Any]] = {
            "forward": jax.jit(model.apply),
            "gradient": jax.jit(gradient),
            "step": jax.jit(step, donate_argnums=(0, 1)),
        }

    def _arguments(self, pass_name: str) -> tuple[Any, ...]:
        xs, targets = self._data
        return {
            "forward": (self._params, xs),
            "gradient": (self._params, xs, targets),
            "step": (self._params, self._state, xs, targets),
        }[pass_name]

    def _call(self, pass_name: str) -> Any:
        return jax.block_until_ready(self._run[pass_name](*self._arguments(pass_name)))

    def forward(self) -> Array:
        return self._call("forward")

    def gradient(self) -> PyTree:
        return self._call("gradient")[1]

    def step(self) -> None:
        self._params, self._state, _ = self._call("step")

    def compile(self, pass_name: str) -> float | None:
        compiled: Any = self._run[pass_name]
        compiled = compiled.lower(*self._arguments(pass_name)).compile()
        self._run[pass_name] = compiled
        sizes = compiled.memory_analysis()
        if sizes is None:
            return None
        used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
        return float(used - sizes.alias_size_in_bytes)


@functools.cache
def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


class TorchContestant:
    """Runs a `torch.nn` layer, on as many threads as torch takes by itself or on `threads`."""

    def __init__(self, layer: Any, xs: np.ndarray, targets: np.ndarray, *, threads: int | None):
        import torch

        self._torch = torch
        self._threads = threads or _torch_threads()
        self._device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        self._layer = layer.to(self._device)
        self._xs, self._targets = (torch.tensor(array, device=self._device) for array in (xs, targets))
        self._adam = torch.optim.Adam(self._layer.parameters(), lr=_LEARNING_RATE, fused=True)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def forward(self) -> Any:
        self._torch.set_num_threads(self._threads)
        with self._torch.no_grad():
            ys = self._layer(self._xs)[0]
        self._wait()
        return ys

    def _backward(self) -> None:
        self._torch.set_num_threads(self._threads)
        self._layer.zero_grad(set_to_none=True)
        ys = self._layer(self._xs)[0]
        loss = 0.5 * (ys - self._targets).square().mean()
        loss.backward()

    def gradient(self) -> dict[str, Any]:
        self._backward()
        self._wait()
        return {name: p.grad for name, p in self._layer.named_parameters()}

    def step(self) -> None:
        self._backward()
        self._adam.step()
        self._wait()

    def kernels(self, gradient: dict[str, Any]) -> Kernels:
        return [as_numpy(gradient[name]).T for name in gradient if name.startswith("weight")]

    def compile(self, pass_name: str) -> float | None:
        del pass_name
        return None


def make_data(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Draws inputs `[B, T, I]` and targets `[B, T, directions H]`."""
    rng = np.random.default_rng(0)
    out_features = w.hidden * (2 if w.bidirectional else 1)
    xs = rng.standard_normal((w.batch, w.time, w.in_features), np.float32)
    return xs, rng.standard_normal((w.batch, w.time, out_features), np.float32)


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
                cell.set_gate_bias("nh", 0.0)
            arrays = (cell.kernel, cell.recurrent_kernel, cell.bias)
            weights[-1].append(Weights(*(np.asarray(array[...]) for array in arrays)))
    return JaxModel(model, lambda model, xs: model(xs), kernels), weights


_ONE_THREAD = " on 1 thread"  # the second implementation of torch


def _columns(array: np.ndarray, blocks: int) -> list[np.ndarray]:
    return np.split(array, blocks, axis=-1)


def _build_torch(w: Workload, weights: AllWeights, implementation: str) -> Any:
    """`torch.nn`: our columns are its rows. Of its two biases one is 0, but for the GRU's b_nh."""
    import torch

    layer_type = getattr(torch.nn, implementation.removesuffix(_ONE_THREAD))
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
    cell: (name, name + _ONE_THREAD) for cell, name in (("elman", "RNN"), ("gru", "GRU"), ("lstm", "LSTM"))
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
OURS, PROFILE = "ours", "profile"
Key = tuple[str, str]  # library, implementation


def contestants_of(w: Workload, libraries: Sequence[str]) -> list[Key]:
    """Names who competes: ours first, then each implementation that a library has of the cell."""
    keys = [(OURS, type_name(w.cell))]
    for library in libraries:
        names = ("flow.gradient_profile",) if library == PROFILE else LIBRARIES[library].implementations.get(w.cell, ())
        keys += [(library, name) for name in names]
    return keys


def type_name(cell: str) -> str:
    return rnn_jax.catalogue()[cell].__name__


def build(w: Workload, key: Key) -> Contestant:
    """Builds a contestant; all of one workload have the same weights, inputs and targets."""
    library, implementation = key
    data = make_data(w)
    ours, weights = build_ours(w)
    if library in (OURS, PROFILE):
        return JaxContestant(ours, *data, profile=library == PROFILE)
    model = LIBRARIES[library].build(w, weights, implementation)
    if isinstance(model, JaxModel):
        return JaxContestant(model, *data)
    return TorchContestant(model, *data, threads=1 if implementation.endswith(_ONE_THREAD) else None)


def as_numpy(array: Any) -> np.ndarray:
    """Returns an array of JAX or torch, on whatever device, as a NumPy array."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def difference(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """Returns the largest difference between arrays of two lists, relative to the largest entry of each of ours."""
    if [np.shape(array) for array in theirs] != [np.shape(array) for array in ours]:
        return math.inf
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(theirs, ours, strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs]))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contestant in one pass of one workload: a row of benchmark.csv.

    Attributes:
      workload, what, library, implementation, version: who and where.
      rounds, calls: turns, and calls in each.
      ms, ms_q25, ms_q75: a call, in milliseconds: median and quartiles over rounds.
      ratio, ratio_q25, ratio_q75: to ours, above 1 where ours is faster (or needs less memory).
      chosen: whether it is the library's fastest implementation here, which tables and figure show.
      compile_s: the first call less the median; None for torch.
      product_share: of the machine's own float32 rate in a product of 2048 x 2048 matrices.
      error: the largest relative difference to our outputs and kernel gradients.
      peak_mb, added_mb, program_mb: memory, as `memory_of` has it.
    """

    workload: Workload
    what: str
    library: str
    implementation: str
    version: str
    rounds: int | None = None
    calls: int | None = None
    ms: float | None = None
    ms_q25: float | None = None
    ms_q75: float | None = None
    ratio: float = math.nan
    ratio_q25: float | None = None
    ratio_q75: float | None = None
    chosen: bool = True
    compile_s: float | None = None
    product_share: float | None = None
    error: float | None = None
    peak_mb: float | None = None
    added_mb: float | None = None
    program_mb: float | None = None

    def as_row(self) -> dict[str, object]:
        fields = dataclasses.asdict(self)
        what = {"pass": fields.pop("what"), "point": self.workload.point}
        return {**fields.pop("workload"), **what, **fields}


def with_choice(measurements: list[Measurement], cost: Callable[[Measurement], float]) -> list[Measurement]:
    """Marks the cheapest implementation of each library."""
    cheapest = {m.library: m for m in sorted(measurements, key=cost, reverse=True)}
    return [dataclasses.replace(m, chosen=m is cheapest[m.library]) for m in measurements]


def version_of(library: str) -> str:
    if library in (OURS, PROFILE):
        return rnn_jax.__version__
    return importlib.metadata.version(LIBRARIES[library].pip)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def race(
    turns: dict[Key, Callable[[], Any]], calls: dict[Key, int], rounds: int, pauses: dict[str, float], bar: tqdm.tqdm
) -> dict[Key, np.ndarray]:
    """Lets all take turns, round after round, and returns the seconds a call took in each, `[rounds]`."""
    seconds = {key: np.zeros(rounds) for key in turns}
    for k in range(rounds):
        for key, turn in turns.items():
            start = time.perf_counter()
            for _ in range(calls[key]):
                turn()
            seconds[key][k] = (time.perf_counter() - start) / calls[key]
            time.sleep(pauses.get(key[0], 0.0))
        bar.update()
    return seconds


def time_workload(
    w: Workload,
    libraries: Sequence[str],
    passes: Sequence[str],
    rounds: int,
    *,
    product_rate: float,
    pauses: dict[str, float],
    bar: tqdm.tqdm,
) -> tuple[list[Measurement], list[str]]:
    """Holds everyone against ours, then times those who agree.

    Returns:
      The measurements, and a sentence for each contestant that was refused.
    """
    contestants: dict[Key, Contestant] = {}
    errors: dict[Key, float] = {}
    first_calls: dict[tuple[Key, str], float] = {}
    refusals: list[str] = []
    for key in contestants_of(w, libraries):
        contestant = build(w, key)
        first_calls[key, "forward"], outputs = timed(contestant.forward)
        first_calls[key, "gradient"], gradient = timed(contestant.gradient)
        results = [[as_numpy(outputs)], contestant.kernels(gradient)]
        if key[0] == OURS:
            ours = results
        differences = [difference(theirs, own) for theirs, own in zip(results, ours, strict=True)]
        sentence = refusal(w, key, *differences)
        if sentence is None:
            contestants[key], errors[key] = contestant, max(differences)
        else:
            refusals.append(sentence)
        del outputs, gradient, results

    measurements: list[Measurement] = []
    for name in passes:
        turns: dict[Key, Callable[[], Any]] = {key: getattr(c, name) for key, c in contestants.items()}
        calls = {}
        for key, turn in turns.items():
            if name == "step":
                first_calls[key, name] = timed(turn)[0]
            calls[key] = max(1, min(50, round(_TURN_SECONDS / timed(turn)[0])))
        seconds = race(turns, calls, rounds, pauses, bar)
        of_ours = next(values for key, values in seconds.items() if key[0] == OURS)
        rows = []
        for key, values in seconds.items():
            low, median, high = np.percentile(values, (25, 50, 75))
            ratio_low, ratio, ratio_high = np.percentile(values / of_ours, (25, 50, 75))
            rows.append(
                Measurement(
                    w,
                    name,
                    *key,
                    version_of(key[0]),
                    rounds=rounds,
                    calls=calls[key],
                    ms=1e3 * median,
                    ms_q25=1e3 * low,
                    ms_q75=1e3 * high,
                    ratio=ratio,
                    ratio_q25=ratio_low,
                    ratio_q75=ratio_high,
                    compile_s=None if key[0] == "torch" else first_calls[key, name] - median,
                    product_share=w.flop(name) / median / product_rate,
                    error=errors[key],
                )
            )
        measurements += with_choice(rows, lambda m: m.ratio)
    return measurements, refusals


def refusal(w: Workload, key: Key, outputs: float, gradients: float) -> str | None:
    """Returns why a contestant that differs from ours is not timed, or None."""
    for name, error in (("outputs", outputs), ("kernel gradients", gradients)):
        if not error <= TOLERANCE:  # NaN is refused too
            return (
                f"{key[0]} ({key[1]}) was not timed on {w.cell} at {w.point}: its {name} differ from ours by "
                f"{error:.1e} of the largest; allowed: {TOLERANCE:.0e}."
            )
    return None


def memory_workload(
    w: Workload, libraries: Sequence[str], passes: Sequence[str], bar: tqdm.tqdm
) -> tuple[list[Measurement], list[str]]:
    """Measures the peak memory of each contestant and pass, each in a process of its own."""
    measurements: list[Measurement] = []
    failures: list[str] = []
    for name in passes:
        rows: list[Measurement] = []
        for key in contestants_of(w, libraries):
            code = "import sys; from experiments import benchmark; benchmark.memory_worker(*sys.argv[1:])"
            command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(w)), *key, name]
            environment = {**os.environ, **_MALLOC}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                failures.append(f"{key[0]} ({key[1]}) on {w.cell} at {w.point} could not be measured: {reason}")
                continue
            rows.append(Measurement(w, name, *key, version_of(key[0]), **json.loads(done.stdout.splitlines()[-1])))
        own = next((m.added_mb for m in rows if m.library == OURS), None)
        rows = [dataclasses.replace(m, ratio=(m.added_mb or 0.0) / own if own else math.nan) for m in rows]
        measurements += with_choice(rows, lambda m: m.added_mb or 0.0)
        bar.update()
    return measurements, failures


def memory_worker(workload: str, library: str, implementation: str, pass_name: str) -> None:
    """Runs in a process of its own: prints the memory of one contestant in one pass, as JSON."""
    logging.set_verbosity(logging.WARNING)
    print(json.dumps(memory_of(Workload(**json.loads(workload)), (library, implementation), pass_name)))


def memory_of(w: Workload, key: Key, pass_name: str) -> dict[str, float | None]:
    """Runs a pass in this process, and returns its memory in MB.

    Returns:
      peak_mb: the most this process ever held, imports and (JAX) compilation with it; JAX is imported for torch too.
      added_mb: the most it held during three calls, less what it held before them, behind compilation and a call.
      program_mb: what the compiled program needs by XLA's own account: arguments, results and all that lies between.
    """
    contestant = build(w, key)
    program = contestant.compile(pass_name)
    run = getattr(contestant, pass_name)
    run()  # torch prepares much in its first call
    time.sleep(_REST)  # what a call needs may be freed by another thread, after its end
    peak_before = peak_memory()
    held = current_memory() if reset_peak() else peak_before
    for _ in range(3):
        run()
        time.sleep(_REST)
    peak = peak_memory()
    megabytes = {"peak_mb": max(peak, peak_before), "added_mb": peak - held}
    return {name: value / 1e6 for name, value in megabytes.items()} | {"program_mb": program and program / 1e6}


def peak_memory() -> float:
    """Returns the most bytes this process ever held, or, on Linux, since `reset_peak`."""
    status = _process_status("VmHWM")  # ru_maxrss counts the process that started this one in
    if status is not None:
        return status
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def current_memory() -> float:
    return _process_status("VmRSS") or peak_memory()


def _process_status(field: str) -> float | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def reset_peak() -> bool:
    """Starts the count of `peak_memory` again; False where the system does not let us."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def product_rate() -> float:
    """Returns the float32 operations a second of a 2048 x 2048 matrix product by JAX, the best of 5."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((2048, 2048), np.float32))
    product = jax.jit(jnp.dot)
    seconds = [timed(lambda: jax.block_until_ready(product(matrix, matrix)))[0] for _ in range(6)][1:]
    return 2 * 2048**3 / min(seconds)


_TORCH_ALONE = """
import time, torch
layers = [layer(32, 64, batch_first=True) for layer in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)]
xs = torch.randn(32, 64, 32)
def turn():
    start = time.perf_counter()
    for layer in layers:
        layer(xs)[0].square().mean().backward()
    return time.perf_counter() - start
turn(), turn()
print(sorted(turn() for _ in range(15))[7])
"""


def choose_wait_policy(*, compare: bool) -> dict[str, Any]:
    """Decides how torch's threads wait, before torch is imported; see the docstring of this file.

    Returns:
      `policy`, and, if they were compared, the milliseconds of torch alone under each.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {"policy": os.environ["OMP_WAIT_POLICY"]}
    milliseconds: dict[str, float] = {}
    if compare:
        for policy in ("passive", "default") * 2:
            environment = {**os.environ, **({"OMP_WAIT_POLICY": policy} if policy == "passive" else {})}
            command = [sys.executable, "-c", _TORCH_ALONE]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            milliseconds[policy] = min(1e3 * float(done.stdout), milliseconds.get(policy, math.inf))
    policy = min(milliseconds, key=lambda name: milliseconds[name]) if milliseconds else "passive"
    if policy == "passive":
        os.environ["OMP_WAIT_POLICY"] = policy
    return {"policy": policy, "ms": milliseconds}


def parse_list(flag: str, text: str, allowed: Iterable[str]) -> list[str]:
    """Splits a comma-separated flag; raises ValueError for a name that is unknown or stands there twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{flag}={text!r}: {name!r} is unknown; allowed: {', '.join(allowed)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{flag}={text!r} names {'one twice' if names else 'none'}; allowed: {', '.join(allowed)}.")
    return names


def parse_grid(text: str) -> list[tuple[int, ...]]:
    """Reads points BxTxIxH; raises ValueError for any that are none."""
    points = []
    for part in text.split(","):
        sizes = part.strip().split("x")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ValueError(
                f"grid={text!r}: {part.strip()!r} is no point; allowed: BxTxIxH (batch, time, input and hidden "
                "features), each 1 or more, as in 32x128x64x64."
            )
        points.append(tuple(int(size) for size in sizes))
    return list(dict.fromkeys(points))


def find_peers(text: str | None) -> tuple[list[str], list[str]]:
    """Returns the peers to compare with, and a line for each that is left out as it is not there.

    Raises:
      ValueError: if one was asked for by name and is not there, or is unknown.
    """
    asked = list(LIBRARIES) if text is None else parse_list("peers", text, LIBRARIES)
    found, lines = [], []
    for name in asked:
        library = LIBRARIES[name]
        missing = importlib.util.find_spec(library.module) is None
        line = f"{name} is not installed and left out; to have it: pip install {library.pip}"
        if missing and text is not None:
            raise ValueError(f"peers={text!r}: {name} is not installed; to have it: pip install {library.pip}.")
        if name == "torch" and not missing and jax.default_backend() != "cpu" and not torch_has_gpu():
            missing, line = True, f"torch is left out: JAX runs on {jax.default_backend()}, this torch on the CPU only"
        if missing:
            lines.append(line)
        else:
            found.append(name)
    return found, lines


def torch_has_gpu() -> bool:
    import torch

    return jax.default_backend() == "gpu" and torch.cuda.is_available()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the flags ask for."""

    workloads: list[Workload]
    libraries: list[str]
    passes: list[str]
    rounds: int
    absent: list[str]  # a line for each peer that is not there


def make_plan() -> Plan:
    """Reads the flags; raises ValueError with a sentence for what they cannot mean."""
    cells = parse_list("cells", _CELLS.value, CELL_GATES)
    grid = parse_grid(",".join(QUICK_GRID if _QUICK.value else GRID) if _GRID.value is None else _GRID.value)
    profile = _WHAT.value == "profile"
    only_gradient = profile or _MEMORY.value or _QUICK.value
    passes = ["gradient"] if only_gradient else list(PASSES)
    if _PASSES.value is not None:
        passes = parse_list("passes", _PASSES.value, PASSES[1:] if profile else PASSES)
        passes.sort(key=PASSES.index)  # weights change in `step` alone, which must be the last
    if profile and _PEERS.value is not None:
        raise ValueError(f"peers={_PEERS.value!r} has no meaning with what='profile', where ours runs alone.")
    if _MEMORY.value and jax.default_backend() != "cpu":
        raise ValueError(
            f"memory is measured on the CPU only; JAX runs on {jax.default_backend()}: set JAX_PLATFORMS=cpu."
        )
    libraries, absent = ([PROFILE], []) if profile else find_peers(_PEERS.value)
    shapes: list[dict[str, Any]] = [
        dict(zip(("batch", "time", "in_features", "hidden"), point, strict=True))
        | {"layers": _LAYERS.value, "bidirectional": _BIDIRECTIONAL.value}
        for point in grid
    ]
    plain = _LAYERS.value == 1 and not _BIDIRECTIONAL.value
    if _GRID.value is None and not _QUICK.value and plain:
        shapes += [shapes[0] | {"layers": 2}, shapes[0] | {"bidirectional": True}]
    workloads = [Workload(cell, **shape) for cell in cells for shape in shapes]
    rounds = _REPEATS.value or (5 if _QUICK.value else 15)
    return Plan(workloads, libraries, passes, rounds, absent)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags start with --")
    logging.set_verbosity(logging.WARNING)  # JAX tells which devices it looked for
    try:
        plan = make_plan()
        given = {flag.name: flag.value for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__])}
        out = run_directory.default_out("benchmark") if _OUT.value is None else _OUT.value
        run_dir = run_directory.create(out, {**given, "peers": plan.libraries, "passes": plan.passes})
    except ValueError as error:
        sys.exit(str(error))
    for line in plan.absent:
        print(line)

    machine: dict[str, Any] = {"cpu_count": os.cpu_count()}
    if "torch" in plan.libraries:
        machine["torch_threads"] = choose_wait_policy(compare=not _QUICK.value and not _MEMORY.value)
    machine["product_gflop_per_s"] = 1e-9 * (rate := product_rate())
    (run_dir / "machine.json").write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")
    print_machine(machine)
    spinning = machine.get("torch_threads", {}).get("policy", "").lower() != "passive"
    pauses = {"torch": 0.02} if spinning else {}

    measurements: list[Measurement] = []
    refusals: list[str] = []
    rounds = 1 if _MEMORY.value else plan.rounds
    bar = tqdm.tqdm(total=len(plan.workloads) * len(plan.passes) * rounds, unit="round", disable=None)
    try:
        with bar:
            for w in plan.workloads:
                bar.set_description(f"{w.cell} {w.point}")
                if _MEMORY.value:
                    new, refused = memory_workload(w, plan.libraries, plan.passes, bar)
                else:
                    new, refused = time_workload(
                        w, plan.libraries, plan.passes, rounds, product_rate=rate, pauses=pauses, bar=bar
                    )
                measurements += new
                refusals += refused
                if measurements:
                    save(run_dir, measurements)
    except KeyboardInterrupt:
        print(f"Interrupted; what was measured before is in {run_dir}.", file=sys.stderr)
        sys.exit(130)
    if not measurements:
        sys.exit("\n".join(refusals))
    print_tables(measurements, plan.libraries, memory=_MEMORY.value)
    if _WHAT.value == "profile" and not _MEMORY.value:
        print_goal(measurements)
    print(f"\nThe run directory is {run_dir}. Look at:")
    figure = draw(run_dir, measurements, memory=_MEMORY.value)
    for path in (figure, run_dir / "benchmark.csv", run_dir / "machine.json"):
        print(f"  {path}")
    if refusals:
        sys.exit("\n".join(refusals))


def save(run_dir: pathlib.Path, measurements: Sequence[Measurement]) -> None:
    """Writes benchmark.csv, over an earlier one of this run."""
    rows = [m.as_row() for m in measurements]
    temporary = run_dir / ".benchmark.csv"
    with temporary.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(run_dir / "benchmark.csv")


def print_machine(machine: dict[str, Any]) -> None:
    rate = f"{machine['product_gflop_per_s']:.0f} GFLOP/s"
    print(f"{machine['cpu_count']} CPU cores; product of 2048 x 2048 matrices in float32: {rate}.")
    threads = machine.get("torch_threads", {})
    if threads.get("ms"):
        compared = ", ".join(f"{ms:.1f} ms with {name}" for name, ms in threads["ms"].items())
        print(f"OMP_WAIT_POLICY, torch's three layers alone: {compared}. This run has {threads['policy']}.")


def print_tables(measurements: Sequence[Measurement], libraries: Sequence[str], *, memory: bool) -> None:
    """Prints a table for each cell and pass, then compile times and geometric means of the ratios."""
    unit = "MB added during the calls" if memory else "ms a call, median over rounds (ours: ± half the quartile range)"
    meaning = "ours needs less" if memory else "ours is faster"
    print(f"\n{unit}; in brackets the ratio to ours: above 1, {meaning}.")
    if not memory:
        print("Last column: the share of the machine's matrix-product rate that ours reaches.")
    groups = list(dict.fromkeys((m.workload.cell, m.what) for m in measurements))
    width = max(len(m.workload.point) for m in measurements)
    for cell, what in groups:
        rows = [m for m in measurements if (m.workload.cell, m.what) == (cell, what) and m.chosen]
        title = f"{cell}, {what}"
        print(f"\n{title:{width}} {OURS:>16}" + "".join(f"{name:>18}" for name in libraries))
        for point in dict.fromkeys(m.workload.point for m in rows):
            by_library = {m.library: m for m in rows if m.workload.point == point}
            print(f"{point:{width}} " + _table_row(by_library, libraries, memory))
    if not memory:
        print_compile_times(measurements, libraries)
    print_means(measurements, libraries, groups)


def _table_row(by_library: dict[str, Measurement], libraries: Sequence[str], memory: bool) -> str:
    ours = by_library.get(OURS)
    if ours is None:
        return f"{'-':>16}"
    cells = [f"{ours.added_mb:.1f}" if memory else f"{ours.ms:.2f} ±{_half_range(ours):.2f}"]
    for name in libraries:
        m = by_library.get(name)
        cells.append("-" if m is None else f"{m.added_mb if memory else m.ms:.2f} ({m.ratio:.2f})")
    share = "" if memory else f"{ours.product_share:8.0%}"
    return f"{cells[0]:>16}" + "".join(f"{text:>18}" for text in cells[1:]) + share


def _half_range(m: Measurement) -> float:
    return ((m.ms_q75 or 0.0) - (m.ms_q25 or 0.0)) / 2


def print_compile_times(measurements: Sequence[Measurement], libraries: Sequence[str]) -> None:
    parts = []
    for name in (OURS, *libraries):
        seconds = [m.compile_s for m in measurements if m.library == name and m.chosen and m.compile_s is not None]
        parts += [f"{name} {np.median(seconds):.2f}"] if seconds else []
    print(f"\nCompile time (first call less the median), in seconds, median over all rows: {', '.join(parts)}.")


def geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if len(ratios) else math.nan


def print_means(
    measurements: Sequence[Measurement], libraries: Sequence[str], groups: Sequence[tuple[str, str]]
) -> None:
    """Prints geometric means of the ratios: by cell and pass, by pass, and of all."""
    best = "best JAX peer"
    columns = [*libraries, *([best] if len(set(libraries) - {"torch"}) > 1 else [])]
    print("\nGeometric means of the ratios over the grid" + (f" ({best}: at each point)" if best in columns else ""))
    print(" " * 18 + "".join(f"{name:>15}" for name in columns))
    passes = list(dict.fromkeys(what for _, what in groups))
    selections: list[tuple[str, Callable[[Measurement], bool]]] = [
        (f"{cell} {what}", lambda m, cell=cell, what=what: (m.workload.cell, m.what) == (cell, what))  # type: ignore[misc]
        for cell, what in groups
    ]
    if len(groups) > 1:
        if len(passes) > 1:
            selections += [(f"all {what}", lambda m, what=what: m.what == what) for what in passes]  # type: ignore[misc]
        selections += [("all", lambda m: True)]
    for title, selected in selections:
        rows = [m for m in measurements if m.chosen and selected(m)]
        texts = []
        for name in columns:
            ratios = best_jax_ratios(rows) if name == best else [m.ratio for m in rows if m.library == name]
            texts.append(f"{geometric_mean(ratios):.2f}" if ratios else "-")
        print(f"{title:18}" + "".join(f"{text:>15}" for text in texts))


def best_jax_ratios(measurements: Sequence[Measurement]) -> list[float]:
    """Returns the lowest ratio that a JAX library reaches, for each workload and pass."""
    lowest: dict[tuple[Workload, str], float] = {}
    for m in measurements:
        if m.library not in (OURS, PROFILE, "torch"):
            key = (m.workload, m.what)
            lowest[key] = min(m.ratio, lowest.get(key, math.inf))
    return list(lowest.values())


def print_goal(measurements: Sequence[Measurement]) -> None:
    """Prints whether the profile costs as little as we want it to."""
    rows = [m for m in measurements if m.library == PROFILE and m.workload.batch >= 8]
    if rows:
        kept = sum(m.ratio <= PROFILE_GOAL for m in rows)
        worst = max(rows, key=lambda m: m.ratio)
        print(
            f"\nGoal: profile / plain gradient at most {PROFILE_GOAL} at batch 8 or more. Kept in {kept} of "
            f"{len(rows)} rows; the worst is {worst.ratio:.3f}, {worst.workload.cell} at {worst.workload.point}."
        )


# Okabe and Ito's colours, which differ for every eye.
_STYLES = {
    "torch": ("#D55E00", "s"),
    "flax.nnx": ("#0072B2", "o"),
    "flax.linen": ("#56B4E9", "D"),
    "equinox": ("#009E73", "^"),
    "keras": ("#CC79A7", "v"),
    PROFILE: ("#0072B2", "o"),
}


def plot_ratios(ax: Axes, measurements: Sequence[Measurement], points: Sequence[str], libraries: Sequence[str]) -> Axes:
    """Draws the ratio to ours of each library at each point, with its quartiles; the line at 1 is ours."""
    ax.axvline(1, color="black", linewidth=1)
    for k, name in enumerate(libraries):
        color, marker = _STYLES[name]
        offset = 0.7 * ((k + 0.5) / len(libraries) - 0.5)
        rows = [m for m in measurements if m.library == name and m.chosen and math.isfinite(m.ratio)]
        ratios = np.array([m.ratio for m in rows])
        low = np.array([m.ratio if m.ratio_q25 is None else m.ratio_q25 for m in rows])
        high = np.array([m.ratio if m.ratio_q75 is None else m.ratio_q75 for m in rows])
        places = [points.index(m.workload.point) + offset for m in rows]
        errors = np.abs([ratios - low, high - ratios]) if rows else None
        ax.errorbar(ratios, places, xerr=errors, fmt=marker, color=color, markersize=4, elinewidth=1, label=name)
    ax.set_xscale("log")
    ax.set_yticks(range(len(points)), points)
    ax.set_ylim(len(points) - 0.5, -0.5)
    for edge in range(1, len(points)):
        ax.axhline(edge - 0.5, color="0.9", linewidth=0.7, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def ratios_figure(measurements: Sequence[Measurement], title: str, *, memory: bool) -> Figure:
    """A panel for each cell (columns) and pass (rows)."""
    cells = list(dict.fromkeys(m.workload.cell for m in measurements))
    passes = list(dict.fromkeys(m.what for m in measurements))
    points = list(dict.fromkeys(m.workload.point for m in measurements))
    libraries = [name for name in _STYLES if any(m.library == name for m in measurements)]
    height = 0.075 * max(4, len(libraries)) * len(points) + 0.6
    figure = Figure(figsize=(2.2 + 3.6 * len(cells), 1.5 + height * len(passes)), dpi=150, layout="constrained")
    axes = figure.subplots(len(passes), len(cells), sharex=True, sharey=True, squeeze=False)
    for row, what in zip(axes, passes):
        for ax, cell in zip(row, cells):
            rows = [m for m in measurements if (m.workload.cell, m.what) == (cell, what)]
            plot_ratios(ax, rows, points, libraries)
            ax.set_title(f"{cell}, {what}", fontsize=10)
            ax.tick_params(labelsize=8)
    set_log_ticks(axes[0, 0])
    less, more = ("ours needs less", "ours needs more") if memory else ("ours is faster", "ours is slower")
    label = "added memory / ours" if memory else "time / ours"
    figure.supxlabel(f"{label}     ({more} \N{LEFTWARDS ARROW} 1 \N{RIGHTWARDS ARROW} {less})", fontsize=9)
    figure.supylabel("batch x time x inputs x hidden", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    columns = 6 if len(cells) > 1 else 3
    figure.legend(*handles, title=title, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def set_log_ticks(ax: Axes) -> None:
    """Puts the ticks of a logarithmic x axis at whole and half numbers inside its limits, without a power of ten."""
    low, high = ax.get_xlim()
    low, high = min(low, 0.9), max(high, 1.15)
    ax.set_xlim(low, high)
    every = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    if high / low < 4:
        every = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 2.5, 3]
    ticks = [tick for tick in every if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def draw(run_dir: pathlib.Path, measurements: Sequence[Measurement], *, memory: bool) -> pathlib.Path:
    """Writes figures/benchmark.png, with the command line as "Source" in its metadata."""
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    device = jax.devices()[0]
    title = f"rnn_jax {rnn_jax.__version__} = 1, on {os.cpu_count()} cores"
    title += "" if device.platform == "cpu" else f" and {device.device_kind}"
    figure = ratios_figure(measurements, title, memory=memory)
    figure.savefig(folder / "benchmark.png", dpi="figure", metadata={"Source": " ".join(sys.argv)})
    return folder / "benchmark.png"


if __name__ == "__main__":
    app.run(main)
