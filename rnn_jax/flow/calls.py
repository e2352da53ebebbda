"""The recurrent layers of a model by name, and the record of how each was called."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from rnn_jax.layers import RNN
from rnn_jax.unroll.record import CallRecorder, LayerCall
from rnn_jax.unroll.running_scale import Probe

PyTree = Any


def layer_names(model: PyTree) -> list[str]:
    """Returns the path of every `rnn_jax.RNN` in the model, `rnn` for a lone layer."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_rnn)
    return [_name(path) for path, node in leaves if _is_rnn(node)]


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


def with_probes(model: PyTree, probes: Mapping[str, Probe | CallRecorder | None]) -> PyTree:
    """Returns the model with the probes of its layers replaced."""
    return map_layers(model, lambda name, layer: layer.with_probe(probes[name]))


def map_layers(model: PyTree, function: Callable[[str, RNN], Any]) -> PyTree:
    """Returns the model with each recurrent layer replaced by `function(name, layer)`."""

    def replace(path: tuple[Any, ...], node: Any) -> Any:
        return function(_name(path), node) if _is_rnn(node) else node

    return jax.tree_util.tree_map_with_path(replace, model, is_leaf=_is_rnn)


def get_probes(model: PyTree) -> dict[str, Probe]:
    """Returns the probes of the layers by name."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_rnn)
    return {_name(path): node.probe for path, node in leaves if _is_rnn(node)}


def _is_rnn(node: Any) -> bool:
    return isinstance(node, RNN)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "rnn"
