"""The gradient profile: how large the adjoint of every layer's carry is at every step, from one backward pass.

With `eps_t` a zero added to carry_t on its way into step t + 1, the adjoint is a_t = dL/d eps_t: what reaches the loss
through the steps after t (through y_t itself is not counted; at t = T it is what the caller does with the final carry).
The profile is p_t = log10 sqrt(mean over the batch of |a_t|^2), t = 1..T.

It comes from the backward pass of the gradient itself, keeps O(T) numbers, and never underflows: see
`rnn_jax.unroll.running_scale`.

References:
  Hochreiter 1991, diploma thesis (in German), TU Munich; Bengio, Simard, Frasconi 1994,
  IEEE Trans. Neural Networks 5(2).
  Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cell import carry_names
from rnn_jax.flow.calls import call_names, calls_of_loss, get_probes, layer_calls, layer_names, with_probes
from rnn_jax.flow.run_order import has_nan, refuse_inputs
from rnn_jax.unroll.record import CallCounter, CallProbes, LayerCall
from rnn_jax.unroll.running_scale import Probe, is_inexact, log2_norms, log2_of_whole

Array = jax.Array
PyTree = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["loss", "log10_norm", "grads", "aux", "log10_share", "sequences"],
    meta_fields=["reversed_parts", "layers_and_parts"],
)
@dataclasses.dataclass(frozen=True)
class GradientProfile:
    """What one backward pass showed.

    Attributes:
      loss: the value of the loss.
      log10_norm: for every layer, and for every part of its carry, p_t as float32 `[time]`; -inf where the
        adjoint is exactly zero. Keys are the layer's path in the model (`rnn`, `layers/0`, `encoder/forward_rnn`;
        `rnn` for a lone layer), and `path/part` for the parts of a carry (`rnn/c`, `rnn/h`). Of a layer that the loss
        called several times, `path[0]`, `path[1]`, ... in the order of the calls.
      grads: dL/d model, a pytree like the model.
      aux: the second output of the loss, with `has_aux`.
      reversed_parts: the keys of layers that ran from the last step to the first, and of their parts.
      layers_and_parts: (layer, part) of every key, ("rnn", "c") for `rnn/c`; part is "" for the whole carry.
      log10_share: with `shares`, for every layer log10 of |dL/d parameters through step t alone|, summed over the
        batch, float32 `[time]`; -inf where it is exactly zero. Else empty.
      sequences: with `from_true_ends`, for every layer over how many sequences each p_t is the mean, int32 `[time]`.
        Else empty.
    """

    loss: Array
    log10_norm: dict[str, Array]
    grads: PyTree
    aux: Any = None
    reversed_parts: frozenset[str] = frozenset()
    layers_and_parts: tuple[tuple[str, str], ...] = ()
    log10_share: dict[str, Array] = dataclasses.field(default_factory=dict)
    sequences: dict[str, Array] = dataclasses.field(default_factory=dict)

    def in_run_order(self) -> dict[str, Array]:
        """Returns `log10_norm` in the order in which each layer ran, so that lags count from the end in all of them."""
        return {
            part: jnp.flip(profile, -1) if part in self.reversed_parts else profile
            for part, profile in self.log10_norm.items()
        }

    def by_layer_and_part(self) -> dict[tuple[str, str], Array]:
        """Returns what `in_run_order` does, by ("rnn", "") and ("rnn", "c") for `rnn` and `rnn/c`."""
        ordered = self.in_run_order()
        return {(layer, part): ordered[f"{layer}/{part}" if part else layer] for layer, part in self.layers_and_parts}


def gradient_profile(
    loss_fn: Callable[..., Any],
    model: PyTree,
    *args: Any,
    has_aux: bool = False,
    shares: bool = False,
    from_true_ends: bool = False,
) -> GradientProfile:
    """Returns the norm of every adjoint on its way back through time, and the parameter gradients, in one pass.

    It may be jitted, vmapped (over an ensemble of models, for instance) and called inside a training step, where
    it takes the place of `jax.value_and_grad`.

    Args:
      loss_fn: `loss_fn(model, *args) -> scalar`, or `(scalar, aux)` with `has_aux`. Any loss: of the last output, of
        all outputs, of the final carry.
      model: a layer, or any pytree that contains `rnn_jax.RNN` layers: a module, a list of layers.
      *args: passed to the loss.
      has_aux: as in `jax.value_and_grad`.
      shares: also what each step adds to the gradient of the cell's parameters. All layers then run by the plain scan.
      from_true_ends: sequences of different lengths are aligned at their true ends: the profile at lag T - t is the
        mean over the sequences that are longer than that lag, each counted from its own last step. -inf where none is.

    Raises:
      ValueError: if the model contains no `rnn_jax.RNN`, the batch no sequence, the loss no floating-point scalar, or
        it never runs a layer; if it runs one in a loop or under `jax.vmap` (its profile would be a sum of several;
        `flow.adjoints` has those of single examples); or if a gradient is NaN because an input of a layer is not
        finite, where values can be known.
    """
    calls, names = calls_of_loss(loss_fn, model, *args, has_aux=has_aux), layer_names(model)
    runs: list[tuple[str, LayerCall]] = []
    probes: dict[str, Probe | CallProbes] = {}
    for name in names:
        of_layer = calls.get(name, [])
        if not of_layer:
            raise ValueError(f"loss_fn ran layer {name!r} 0 times; allowed: once or more.")
        if 0 in of_layer[0].batch_shape:
            raise ValueError(
                f"layer {name!r} read a batch of shape {of_layer[0].batch_shape}; allowed: a sequence or more."
            )
        runs += zip(call_names(name, len(of_layer)), of_layer)
        own = tuple(_probe(call, shares, from_true_ends) for call in of_layer)
        probes[name] = own[0] if len(own) == 1 else CallProbes(own, CallCounter())

    def counted(model: PyTree, *args: Any) -> Any:
        for probe in probes.values():
            if isinstance(probe, CallProbes):
                probe.counter.calls = 0
        return loss_fn(model, *args)

    grad_fn = jax.value_and_grad(counted, has_aux=has_aux, allow_int=True)
    value, grads = grad_fn(with_probes(model, probes), *args)
    recorded = [
        probe
        for of_layer in get_probes(grads).values()
        for probe in (of_layer.probes if isinstance(of_layer, CallProbes) else (of_layer,))
    ]
    lengths: list[Array | None] = [None] * len(runs)
    if from_true_ends:
        in_trace = layer_calls(lambda m: loss_fn(m, *args), model)
        lengths = [call.lengths for name in names for call in in_trace[name]]

    log10_norm: dict[str, Array] = {}
    log10_share: dict[str, Array] = {}
    sequences: dict[str, Array] = {}
    reversed_parts: set[str] = set()
    layers_and_parts: list[tuple[str, str]] = []
    for (name, call), recording, length in zip(runs, recorded, lengths, strict=True):
        profile, share = _checked(name, recording)
        if from_true_ends:
            profile, sequences[name] = _mean_from_true_ends(profile, length, call.reverse)
        parts = carry_names(call.cell, call.carry)
        of_layer_ = {name: profile[:, -1]}
        layers_and_parts.append((name, ""))
        if len(parts) > 1:
            of_layer_ |= {f"{name}/{part}": profile[:, k] for k, part in enumerate(parts)}
            layers_and_parts += [(name, part) for part in parts]
        log10_norm |= of_layer_
        if share is not None:
            log10_share[name] = share * math.log10(2.0)
        if call.reverse:
            reversed_parts |= set(of_layer_)
    if has_nan(log10_norm):
        refuse_inputs(lambda m: loss_fn(m, *args), model)
    loss, aux = value if has_aux else (value, None)
    return GradientProfile(
        loss,
        log10_norm,
        with_probes(grads, dict.fromkeys(names)),
        aux,
        frozenset(reversed_parts),
        tuple(layers_and_parts),
        log10_share,
        sequences,
    )


def _probe(call: LayerCall, shares: bool, by_example: bool) -> Probe:
    count = len(carry_names(call.cell, call.carry)) + 1
    size = math.prod(call.batch_shape)
    if by_example:
        zeros, record = jnp.zeros((call.time, size, count), jnp.float32), partial(_log10_norms_of_examples, size)
    else:
        zeros, record = jnp.zeros((call.time, count), jnp.float32), partial(_log10_norms, size)
    share = jnp.zeros((call.time,), jnp.float32) if shares else None
    return Probe(zeros, jnp.zeros((), jnp.float32), record, share)


def _checked(name: str, recorded: Probe) -> tuple[Array, Array | None]:
    """Returns the recordings, NaN (or, where its value is known, an error) if they are sums over several runs."""
    if not isinstance(recorded.count, jax.core.Tracer) and np.any(np.asarray(recorded.count) != 1):
        raise ValueError(
            f"the gradient passed layer {name!r} {np.max(np.asarray(recorded.count)):.0f} times; allowed: once "
            "(a model closed over by jax.vmap runs once for each example: pass it the whole batch)."
        )
    once = recorded.count == 1
    shares = None if recorded.shares is None else jnp.where(once, recorded.shares, jnp.nan)
    return jnp.where(once, recorded.zeros, jnp.nan), shares


def _mean_from_true_ends(log10_norms: Array, lengths: Array | None, reverse: bool) -> tuple[Array, Array]:
    """Returns log10 of the root mean square over examples, aligned at the last step of each, and their number.

    These are `[time, parts]` and `[time]`.

    Args:
      log10_norms: of each example, `[time, examples, parts]`.
      lengths: int `[*batch]`, or None.
      reverse: whether the layer ran from the last step to the first: all runs end at step 0.
    """
    time, examples, _ = log10_norms.shape
    lengths = jnp.full(examples, time, jnp.int32) if lengths is None else lengths.reshape(examples).astype(jnp.int32)
    lags = jnp.arange(time, dtype=jnp.int32)[:, None]
    source = jnp.broadcast_to(lags, (time, examples)) if reverse else (lengths[None] - 1 - lags) % time
    by_lag = jnp.take_along_axis(log10_norms, source[..., None], 0)
    within = lags < lengths[None]
    by_lag = jnp.where(within[..., None], by_lag, -jnp.inf)
    largest = jnp.max(by_lag, axis=1, keepdims=True)
    safe = jnp.where(jnp.isneginf(largest), jnp.zeros_like(largest), largest)
    squares = jnp.sum(10.0 ** (2.0 * (by_lag - safe)), axis=1)
    count = jnp.sum(within, axis=1, dtype=jnp.int32)
    mean = safe[:, 0] + 0.5 * jnp.log10(squares / jnp.maximum(count, 1).astype(squares.dtype)[:, None])
    return (mean, count) if reverse else (jnp.flip(mean, 0), jnp.flip(count, 0))


def _log10_norms_of_examples(examples: int, adjoint: PyTree, norms: Array, log2_scale: Array) -> Array:
    """Returns log10 |adjoint| of each example, for each part of the carry, then for the whole, `[examples, parts]`."""
    del norms

    def of_one(adjoint: list[Array]) -> Array:
        by_part = log2_norms(adjoint)
        return jnp.append(by_part, log2_of_whole(by_part))

    leaves = jax.tree.leaves(adjoint)
    rows = [
        leaf.reshape(examples, -1) if is_inexact(leaf) else jnp.zeros((examples, 0), jnp.float32) for leaf in leaves
    ]
    return (jax.vmap(of_one)(rows) + log2_scale) * math.log10(2.0)


def _log10_norms(batch_size: int, adjoint: PyTree, norms: Array, log2_scale: Array) -> Array:
    """Returns log10 of the root of the batch mean of |adjoint|^2 for each part of the carry, then for the whole."""
    del adjoint
    by_part = norms - 0.5 * math.log2(batch_size)  # -inf for a counter, which has no adjoint
    return (jnp.append(by_part, log2_of_whole(by_part)) + log2_scale) * math.log10(2.0)
