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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.cell import carry_names
from rnn_jax.layers import RNN
from rnn_jax.unroll.running_scale import Tap, TapRequest, log2_of_whole

Array = jax.Array
PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["loss", "log10_norm", "grads", "aux"], meta_fields=[])
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
    """

    loss: Array
    log10_norm: dict[str, Array]
    grads: PyTree
    aux: Any = None


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
      ValueError: if the model contains no `rnn_jax.RNN`, or the loss runs one of them never or more than once
        (its profile would be a sum of several; give each run a layer of its own, or `flow.adjoints`).
    """
    names = layer_names(model)
    if not names:
        raise ValueError(f"model is a {type(model).__name__} without recurrent layers; allowed: one with rnn_jax.RNN.")

    requests = {name: TapRequest() for name in names}
    jax.eval_shape(lambda m: loss_fn(m, *args), with_taps(model, requests))
    taps, parts = {}, {}
    for name, request in requests.items():
        if len(request.runs) != 1:
            raise ValueError(f"loss_fn ran layer {name!r} {len(request.runs)} times; allowed: once.")
        cell, carry, batch_shape, time = request.runs[0]
        parts[name] = carry_names(cell, carry)
        zeros = jnp.zeros((time, len(parts[name]) + 1), jnp.float32)
        record = partial(_log10_norms, math.prod(batch_shape))
        taps[name] = Tap(zeros, jnp.zeros((), jnp.float32), record)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=has_aux, allow_int=True)
    value, grads = grad_fn(with_taps(model, taps), *args)
    recorded = get_taps(grads)
    log10_norm = {}
    for name in names:
        profile = _checked(name, recorded[name])
        log10_norm[name] = profile[:, -1]
        if len(parts[name]) > 1:
            log10_norm |= {f"{name}/{part}": profile[:, k] for k, part in enumerate(parts[name])}
    loss, aux = value if has_aux else (value, None)
    return GradientProfile(loss, log10_norm, with_taps(grads, dict.fromkeys(names)), aux)


def _checked(name: str, recorded: Tap) -> Array:
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


def layer_names(model: PyTree) -> list[str]:
    """Returns the path of every `rnn_jax.RNN` in the model, `rnn` for a lone layer."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_rnn)
    return [_name(path) for path, node in leaves if _is_rnn(node)]


def with_taps(model: PyTree, taps: Mapping[str, Tap | TapRequest | None]) -> PyTree:
    """Returns the model with the taps of its layers replaced."""

    def replace(path, node):
        return node.with_tap(taps[_name(path)]) if _is_rnn(node) else node

    return jax.tree_util.tree_map_with_path(replace, model, is_leaf=_is_rnn)


def get_taps(model: PyTree) -> dict[str, Tap]:
    """Returns the taps of the layers by name."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_rnn)
    return {_name(path): node.tap for path, node in leaves if _is_rnn(node)}


def _is_rnn(node: Any) -> bool:
    return isinstance(node, RNN)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "rnn"
