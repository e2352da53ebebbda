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
from rnn_jax.flow.calls import check_loss, get_probes, layer_calls, with_probes
from rnn_jax.unroll.running_scale import Probe, log2_of_whole

Array = jax.Array
PyTree = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["loss", "log10_norm", "grads", "aux"],
    meta_fields=["reversed_parts", "layers_and_parts"],
)
@dataclasses.dataclass(frozen=True)
class GradientProfile:
    """What one backward pass showed.

    Attributes:
      loss: the value of the loss.
      log10_norm: for every layer, and for every part of its carry, p_t as float32 `[time]`; -inf where the
        adjoint is exactly zero. Keys are the layer's path in the model (`rnn`, `layers/0`, `encoder/forward_rnn`;
        `rnn` for a lone layer), and `path/part` for the parts of a carry (`rnn/c`, `rnn/h`).
      grads: dL/d model, a pytree like the model.
      aux: the second output of the loss, with `has_aux`.
      reversed_parts: the keys of layers that ran from the last step to the first, and of their parts.
      layers_and_parts: (layer, part) of every key, ("rnn", "c") for `rnn/c`; part is "" for the whole carry.
    """

    loss: Array
    log10_norm: dict[str, Array]
    grads: PyTree
    aux: Any = None
    reversed_parts: frozenset[str] = frozenset()
    layers_and_parts: tuple[tuple[str, str], ...] = ()

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


def gradient_profile(loss_fn: Callable[..., Any], model: PyTree, *args: Any, has_aux: bool = False) -> GradientProfile:
    """Returns the norm of every adjoint on its way back through time, and the parameter gradients, in one pass.

    It may be jitted, vmapped (over an ensemble of models, for instance) and called inside a training step, where
    it takes the place of `jax.value_and_grad`.

    Args:
      loss_fn: `loss_fn(model, *args) -> scalar`, or `(scalar, aux)` with `has_aux`. Any loss: of the last output, of
        all outputs, of the final carry.
      model: a layer, or any pytree that contains `rnn_jax.RNN` layers: a module, a list of layers.
      *args: passed to the loss.
      has_aux: as in `jax.value_and_grad`.

    Raises:
      ValueError: if the model contains no `rnn_jax.RNN`, the loss is not a scalar, or it runs one of them never or
        more than once (its profile would be a sum of several; give each run a layer of its own, or `flow.adjoints`).
    """
    names = check_loss(loss_fn, model, *args, has_aux=has_aux)
    calls: dict[str, list[Any]] = {}
    jax.eval_shape(lambda m: calls.update(layer_calls(lambda m: loss_fn(m, *args), m)), model)
    probes, parts = {}, {}
    for name in names:
        runs = calls.get(name, [])
        if len(runs) != 1:
            raise ValueError(f"loss_fn ran layer {name!r} {len(runs)} times; allowed: once.")
        parts[name] = carry_names(runs[0].cell, runs[0].carry)
        zeros = jnp.zeros((runs[0].time, len(parts[name]) + 1), jnp.float32)
        record = partial(_log10_norms, math.prod(runs[0].batch_shape))
        probes[name] = Probe(zeros, jnp.zeros((), jnp.float32), record)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=has_aux, allow_int=True)
    value, grads = grad_fn(with_probes(model, probes), *args)
    recorded = get_probes(grads)
    log10_norm: dict[str, Array] = {}
    reversed_parts: set[str] = set()
    layers_and_parts: list[tuple[str, str]] = []
    for name in names:
        profile = _checked(name, recorded[name])
        of_layer = {name: profile[:, -1]}
        layers_and_parts.append((name, ""))
        if len(parts[name]) > 1:
            of_layer |= {f"{name}/{part}": profile[:, k] for k, part in enumerate(parts[name])}
            layers_and_parts += [(name, part) for part in parts[name]]
        log10_norm |= of_layer
        if calls[name][0].reverse:
            reversed_parts |= set(of_layer)
    loss, aux = value if has_aux else (value, None)
    return GradientProfile(
        loss,
        log10_norm,
        with_probes(grads, dict.fromkeys(names)),
        aux,
        frozenset(reversed_parts),
        tuple(layers_and_parts),
    )


def _checked(name: str, recorded: Probe) -> Array:
    """Returns the recording, NaN (or, where its value is known, an error) if it is a sum over several runs."""
    if not isinstance(recorded.count, jax.core.Tracer) and np.any(np.asarray(recorded.count) != 1):
        raise ValueError(
            f"the gradient passed layer {name!r} {np.max(np.asarray(recorded.count)):.0f} times; allowed: once "
            "(a model closed over by jax.vmap runs once for each example: pass it the whole batch)."
        )
    return jnp.where(recorded.count == 1, recorded.zeros, jnp.nan)


def _log10_norms(batch_size: int, adjoint: PyTree, norms: Array, log2_scale: Array) -> Array:
    """Returns log10 of the root of the batch mean of |adjoint|^2 for each part of the carry, then for the whole."""
    del adjoint
    by_part = norms - 0.5 * math.log2(batch_size)  # -inf for a counter, which has no adjoint
    return (jnp.append(by_part, log2_of_whole(by_part)) + log2_scale) * math.log10(2.0)
