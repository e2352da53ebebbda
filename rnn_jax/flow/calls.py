"""The recurrent layers of a model by name, and the record of how each was called."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.layers import RNN
from rnn_jax.unroll.record import CallProbes, CallRecorder, LayerCall
from rnn_jax.unroll.running_scale import Probe
from rnn_jax.unroll.truncated import TruncatedAt

PyTree = Any


def call_names(layer: str, calls: int) -> list[str]:
    """Returns a name for each call of a layer: its own, or, of several, `rnn[0]`, `rnn[1]`, ..."""
    return [layer] if calls == 1 else [f"{layer}[{number}]" for number in range(calls)]


def layer_names(model: PyTree) -> list[str]:
    """Returns the path of every `rnn_jax.RNN` in the model, `rnn` for a lone layer."""
    return list(layers_of_model(model))


def layer_calls(function: Callable[[PyTree], Any], model: PyTree) -> dict[str, list[LayerCall]]:
    """Calls `function(model)` and returns how every recurrent layer was called in it.

    Returns:
      the calls by the layer's name, layers and calls in the order in which they ran; a layer that was not called is
      missing. Within a traced function the records hold traced arrays.
    """
    calls: list[tuple[str, LayerCall]] = []
    function(with_probes(model, {name: CallRecorder(name, calls) for name in layer_names(model)}))
    by_layer: dict[str, list[LayerCall]] = {}
    for name, call in calls:
        by_layer.setdefault(name, []).append(call)
    return by_layer


def calls_of_loss(
    loss_fn: Callable[..., Any], model: PyTree, *args: Any, has_aux: bool = False
) -> dict[str, list[LayerCall]]:
    """Returns how a loss calls the recurrent layers of a model, as `layer_calls`, in shapes and types alone.

    Raises:
      ValueError: if the model has no `rnn_jax.RNN`, or the loss is no floating-point scalar.
    """
    if not layer_names(model):
        raise ValueError(f"model is a {type(model).__name__} without recurrent layers; allowed: one with rnn_jax.RNN.")
    calls: dict[str, list[LayerCall]] = {}

    def run(model: PyTree) -> None:
        calls.update(layer_calls(lambda m: check_loss(loss_fn(m, *args), has_aux), model))

    jax.eval_shape(run, model)
    return calls


def check_loss(value: Any, has_aux: bool = False) -> None:
    """Raises ValueError unless what a loss has returned is a floating-point scalar, or a pair that begins with one."""
    if has_aux and not (isinstance(value, tuple) and len(value) == 2):
        raise ValueError(f"loss_fn returned {type(value).__name__} with has_aux=True; allowed: a pair (loss, aux).")
    loss = value[0] if has_aux else value
    shape = getattr(loss, "shape", None) if not isinstance(loss, float) else ()
    if shape != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        told = type(loss).__name__ if shape is None else f"{loss.dtype}{list(shape)}"
        raise ValueError(f"loss_fn returned {told}; allowed: a floating-point scalar.")


def layers_of_model(model: PyTree) -> dict[str, RNN]:
    """Returns every `rnn_jax.RNN` of a model, or of its gradient, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_rnn)
    return {_name(path): node for path, node in leaves if _is_rnn(node)}


def with_probes(model: PyTree, probes: Mapping[str, Probe | CallProbes | CallRecorder | TruncatedAt | None]) -> PyTree:
    """Returns the model with the probes of its layers replaced."""
    return map_layers(model, lambda name, layer: layer.with_probe(probes[name]))


def map_layers(model: PyTree, function: Callable[[str, RNN], Any]) -> PyTree:
    """Returns the model with each recurrent layer replaced by `function(name, layer)`."""

    def replace(path: tuple[Any, ...], node: Any) -> Any:
        return function(_name(path), node) if _is_rnn(node) else node

    return jax.tree_util.tree_map_with_path(replace, model, is_leaf=_is_rnn)


def get_probes(model: PyTree) -> dict[str, Any]:
    """Returns the probes of the layers by name."""
    return {name: layer.probe for name, layer in layers_of_model(model).items()}


def _is_rnn(node: Any) -> bool:
    return isinstance(node, RNN)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "rnn"
