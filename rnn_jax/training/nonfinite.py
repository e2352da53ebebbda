"""Where a loss, a gradient or a weight that is not finite began: the layer and the parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from rnn_jax import tasks
from rnn_jax.flow import layer_calls
from rnn_jax.training.update import State, training_loss

PyTree = Any


class NotFinite(Exception):
    """The loss, a gradient or what it makes of the weights is not finite; the message says where that began."""


def parameter_names(model: PyTree) -> list[str]:
    """Returns the path of every parameter, in the order of the leaves: "rnn/cell/kernel"."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(model):
        words = [jax.tree_util.keystr((key,), simple=True) for key in path]
        names.append("/".join(words[:-1] if words[-1] == "value" and len(words) > 1 else words))
    return names


def layer_of(parameter: str) -> str:
    """Returns the layer a parameter belongs to: "rnn" for "rnn/cell/kernel"."""
    words = parameter.split("/")[:-1]
    return "/".join(words[:-1] if words[-1:] == ["cell"] else words) or parameter


def finite_members(models: PyTree) -> np.ndarray:
    """Returns which members of an ensemble, `[S, ...]`, have weights that are all finite: bool `[S]`."""
    leaves = [np.isfinite(np.asarray(leaf)) for leaf in jax.tree.leaves(models)]
    return np.all([finite.reshape(len(finite), -1).all(axis=1) for finite in leaves], axis=0)


def describe_diverged(finite: Mapping[str, Sequence[bool]], first_seed: int) -> str:
    """Says which members of trainings that take every update have ended with weights that are not finite; "" if none.

    Args:
      finite: of each training, by its name, as `finite_members`.
      first_seed: the seed of the first member.

    Raises:
      NotFinite: there is no other, and so no result.
    """
    lost = [
        f"{name}/seed{first_seed + k}" for name, members in finite.items() for k, ok in enumerate(members) if not ok
    ]
    if lost and len(lost) == sum(map(len, finite.values())):
        raise NotFinite(
            f"The training of all {len(lost)} members diverged: the weights of {lost[0]!r} are not finite; a smaller"
            " learning rate may help."
        )
    shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    return f"The training diverged, and left weights that are not finite, of: {shown}." if lost else ""


def describe_not_finite(
    task: tasks.Task, optimizer: optax.GradientTransformation, state: State, batch: tasks.Batch, step: int
) -> str:
    """Says where a loss, a gradient or an update that is not finite begins.

    A loss is followed forward: the first recurrent layer whose outputs are not finite, or else what stands behind
    them all. A gradient is followed backward: of the layers where it is not finite, the one next to the loss. Where
    both are finite, it is the update that makes a weight which is not.

    Args:
      task: what is learned.
      optimizer: what makes an update of the gradient.
      state: of one model, before that update.
      batch: of that update.
      step: its number, from 1 on.
    """
    index = np.int32(step - 1)
    loss_fn = training_loss(task)
    names = parameter_names(state.model)
    for name, leaf in zip(names, jax.tree.leaves(state.model)):
        if not np.all(np.isfinite(leaf)):
            return f"the parameter {name!r} of layer {layer_of(name)!r} is not finite"
    for name, array in batch.items():
        if not np.all(np.isfinite(np.asarray(array))):
            return f"the batch is not finite, in {name!r}, before any layer or parameter"
    loss_and_grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, _), grads = loss_and_grads(state.model, state.carry, batch, state.key, index)
    bad = [name for name, leaf in zip(names, jax.tree.leaves(grads)) if not np.all(np.isfinite(leaf))]
    if np.isfinite(loss) and not bad:
        updates, _ = optimizer.update(grads, state.opt_state, state.model)
        after = jax.tree.leaves(optax.apply_updates(state.model, updates))
        name = next((name for name, leaf in zip(names, after) if not np.all(np.isfinite(leaf))), names[0])
        return f"the update makes weights that are not finite, first in layer {layer_of(name)!r}, parameter {name!r}"

    calls = layer_calls(lambda model: loss_fn(model, state.carry, batch, state.key, index), state.model)
    rank = {layer: position for position, layer in enumerate(calls)}

    def position(name: str) -> int:
        """Of the layer of a parameter on the way from the input to the loss."""
        return -1 if "embedding" in name.split("/") else rank.get(layer_of(name), len(rank))

    if np.isfinite(loss):
        first, what = max(bad, key=position, default=names[0]), "a gradient is not finite"
    else:
        what = f"the loss is {float(loss)}"
        overflown = [
            layer for layer, runs in calls.items() if not all(_all_finite((run.final_carry, run.ys)) for run in runs)
        ]
        here = rank[overflown[0]] if overflown else len(rank)
        inside = [name for name in names if position(name) == here] or names
        first = next((name for name in inside if name in bad), inside[0])
    return f"{what}, first in layer {layer_of(first)!r}, parameter {first!r}"


def _all_finite(tree: PyTree) -> bool:
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
