"""Who competes in the benchmark, what they must compute, and whether they do.

A contestant is a network of `experiments.benchmark_peers` with inputs, targets and an optimizer. All of one workload
have the same of each, so that their outputs and gradients can be held against ours.
"""

import contextlib
import functools
import importlib.metadata
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import rnn_jax
from experiments.benchmark_peers import LIBRARIES, ONE_THREAD, AllWeights, JaxModel, Kernels, Workload
from rnn_jax import flow

Array = jax.Array
PyTree = Any
Key = tuple[str, str]  # library, implementation

OURS, PROFILE = "ours", "profile"
PASSES = ("forward", "gradient", "step")
TOLERANCE = 1e-4  # of float32 results, relative to the largest entry
_LEARNING_RATE = 1e-3


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


class JaxContestant:
    """Runs a `JaxModel`; with `profile`, its gradients come from `flow.gradient_profile`.

    On several devices it does what a user would: puts a share of the batch on each, and sets the mesh.
    """

    def __init__(
        self, model: JaxModel, xs: np.ndarray, targets: np.ndarray, *, profile: bool = False, devices: int = 1
    ):
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
        self._mesh = rnn_jax.batch_mesh(devices) if devices > 1 else None
        self._data = (jnp.asarray(xs), jnp.asarray(targets))
        self._params = jax.tree.map(lambda x: jnp.array(x, copy=True), model.params)
        if self._mesh is not None:
            self._data = jax.device_put(self._data, NamedSharding(self._mesh, P("batch")))
            self._params = jax.device_put(self._params, NamedSharding(self._mesh, P()))
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
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
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
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._threads = threads or _torch_threads()
        self._device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        self._layer = layer.to(self._device)
        self._xs, self._targets = (torch.tensor(array, device=self._device) for array in (xs, targets))

    @functools.cached_property
    def _adam(self) -> Any:  # only where steps are timed: what it imports takes seconds
        return self._torch.optim.Adam(self._layer.parameters(), lr=_LEARNING_RATE, fused=True)

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


def contestants_of(w: Workload, libraries: Sequence[str], devices: int = 1) -> list[Key]:
    """Names who competes: ours first, then each implementation that a library has of the cell.

    With several devices every one of JAX competes twice: on one, and on as many as share out the batch evenly.
    """
    keys = [(OURS, rnn_jax.cell_info(w.cell).cls.__name__)]
    for library in libraries:
        names = ("flow.gradient_profile",) if library == PROFILE else LIBRARIES[library].implementations.get(w.cell, ())
        keys += [(library, name) for name in names]
    shared_by = max(count for count in range(1, devices + 1) if w.batch % count == 0)
    on_all = [(library, f"{name} on {shared_by} devices") for library, name in keys if library != "torch"]
    return keys + on_all if shared_by > 1 else keys


def build(w: Workload, key: Key, drawn: tuple[JaxModel, AllWeights]) -> Contestant:
    """Builds a contestant; all of one workload have the same weights, inputs and targets.

    Args:
      w: the workload.
      key: library and implementation.
      drawn: what `build_ours(w)` returned.
    """
    library, implementation = key
    on_devices = re.search(r" on (\d+) devices$", implementation)
    devices = int(on_devices[1]) if on_devices else 1
    implementation = implementation.removesuffix(f" on {devices} devices")
    data = make_data(w)
    ours, weights = drawn
    if library in (OURS, PROFILE):
        return JaxContestant(ours, *data, profile=library == PROFILE, devices=devices)
    model = LIBRARIES[library].build(w, weights, implementation)
    if isinstance(model, JaxModel):
        return JaxContestant(model, *data, devices=devices)
    return TorchContestant(model, *data, threads=1 if implementation.endswith(ONE_THREAD) else None)


def make_data(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Draws inputs `[B, T, I]` and targets `[B, T, directions H]`."""
    rng = np.random.default_rng(0)
    out_features = w.hidden * (2 if w.bidirectional else 1)
    xs = rng.standard_normal((w.batch, w.time, w.in_features), np.float32)
    return xs, rng.standard_normal((w.batch, w.time, out_features), np.float32)


def version_of(library: str) -> str:
    if library in (OURS, PROFILE):
        return rnn_jax.__version__
    return importlib.metadata.version(LIBRARIES[library].pip)


def as_numpy(array: Any) -> np.ndarray:
    """Returns an array of JAX or torch, on whatever device, as a NumPy array."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def difference(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """Returns the largest difference between arrays of two lists, relative to the largest entry of each of ours."""
    if [np.shape(array) for array in theirs] != [np.shape(array) for array in ours]:
        return math.inf
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(theirs, ours, strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs]))


def refusal(w: Workload, key: Key, outputs: float, gradients: float) -> str | None:
    """Returns why a contestant that differs from ours is not timed, or None."""
    for name, error in (("outputs", outputs), ("kernel gradients", gradients)):
        if not error <= TOLERANCE:  # NaN is refused too
            return (
                f"{key[0]} ({key[1]}) was not timed on {w.cell} at {w.point}: its {name} differ from ours by "
                f"{error:.1e} of the largest; allowed: {TOLERANCE:.0e}."
            )
    return None
