"""One update of one model: what it reads and writes, and the program that does it.

An update whose loss or gradient is not finite, or that makes weights which are not, is found out on the device, and
leaves weights and optimizer as they were, unless the config says to take it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnn_jax import tasks
from rnn_jax.flow import gradient_profile
from rnn_jax.training.config import TrainConfig

Array = jax.Array
PyTree = Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "opt_state", "carry", "key", "step", "loss_sum", "loss_count", "skipped", "bad_step"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """All that an update reads and writes, on the device; of an ensemble, every array is `[S, ...]`.

    Attributes:
      model, opt_state: as they are.
      carry: state carried from batch to batch by a language model; None for others.
      key: data of a `jax.random` key, of dropout. As data of the program, runs that differ in their seed share it.
      step: updates done, those skipped among them.
      loss_sum, loss_count: over the losses of the updates taken since the last that was logged.
      skipped: updates left out.
      bad_step: the first of them; 0 if there was none.
    """

    model: PyTree
    opt_state: PyTree
    carry: PyTree
    key: Array
    step: Array
    loss_sum: Array
    loss_count: Array
    skipped: Array
    bad_step: Array


def initial_state(
    task: tasks.Task, model: PyTree, optimizer: optax.GradientTransformation, config: TrainConfig
) -> State:
    """Returns the state of one model before the first update."""
    zero = jnp.zeros((), jnp.int32)
    carry = model.initialize_carry((config.batch_size,)) if task.kind is tasks.Kind.STREAM else None
    key = jax.random.key_data(jax.random.key(config.seed))
    opt_state = jax.jit(optimizer.init)(model)
    return State(model, opt_state, carry, key, zero, jnp.zeros((), jnp.float32), zero, zero, zero)


def ensemble_state(
    task: tasks.Task, models: PyTree, opt_states: PyTree, seeds: Sequence[int], config: TrainConfig
) -> State:
    """Returns the state of an ensemble before the first update: member k draws its dropout from `seeds[k]`."""
    zeros, losses = jnp.asarray(np.zeros(len(seeds), np.int32)), jnp.asarray(np.zeros(len(seeds), np.float32))
    carry = (
        jax.vmap(lambda model: model.initialize_carry((config.batch_size,)))(models)
        if task.kind is tasks.Kind.STREAM
        else None
    )
    keys = jnp.asarray(np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds]))
    return State(models, opt_states, carry, keys, zeros, losses, zeros, zeros, zeros)


def make_update(
    task: tasks.Task, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[State, tasks.Batch], tuple[State, dict[str, Any]]]:
    """Makes the update of one model: `(state, batch) -> (state, seen)`.

    What is seen depends on `config.look`. "probe": the squared norms of "gradient", "update" and "weight", [P leaves]
    each. "update": the "loss", and the gradient profile as "log10_norm", {(layer, part): [time]}, in run order.
    """
    loss_fn = training_loss(task)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def update(state: State, batch: tasks.Batch) -> tuple[State, dict[str, Any]]:
        seen: dict[str, Any] = {}
        inputs = (state.carry, batch, state.key, state.step)
        if config.look == "update":
            profile = gradient_profile(loss_fn, state.model, *inputs, has_aux=True)
            loss, carry, grads = profile.loss, profile.aux, profile.grads
            seen = {"loss": loss, "log10_norm": profile.by_layer_and_part()}
        else:
            (loss, carry), grads = grad_fn(state.model, *inputs)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)

        finite, taken = _judge(loss, (grads, model), state, config.on_nonfinite)

        def choose(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(partial(jnp.where, taken), new, old)

        step = state.step + 1
        loss = loss.astype(jnp.float32)
        after = State(
            model=choose(model, state.model),
            opt_state=choose(opt_state, state.opt_state),
            carry=choose(carry, state.carry),
            key=state.key,
            step=step,
            loss_sum=state.loss_sum + jnp.where(taken, loss, jnp.zeros_like(loss)),
            loss_count=state.loss_count + taken.astype(jnp.int32),
            skipped=state.skipped + (~taken).astype(jnp.int32),
            bad_step=jnp.where(finite | (state.bad_step > 0), state.bad_step, step),
        )
        if config.look == "probe":
            seen = {"gradient": _squares(grads), "update": _squares(updates), "weight": _squares(state.model)}
        return after, seen

    return update


def training_loss(task: tasks.Task) -> Callable[..., tuple[Array, PyTree]]:
    """Returns `(model, carry, batch, key, step) -> (loss, new carry)`."""

    def loss_of(model: PyTree, carry: PyTree, batch: tasks.Batch, key: Array, step: Array) -> tuple[Array, PyTree]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        if task.kind is not tasks.Kind.STREAM:
            return task.loss(partial(model, key=step_key), batch), None
        return run_on(task.loss, model, carry, batch, key=step_key)

    return loss_of


def run_on(
    function: Callable[..., Any], model: PyTree, carry: PyTree, batch: tasks.Batch, **kwargs: Any
) -> tuple[Any, PyTree]:
    """Applies a loss or score to a model that goes on from the carry of the batch before; returns the new carry, too.

    The gradient stops at the border of the batch: truncated back-propagation through time.

    References:
      Williams, Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
      trajectories", Neural Computation 2(4).
    """
    first = jnp.asarray(batch["first"])
    initial = model.initialize_carry(batch["tokens"].shape[:1])
    carry = jax.lax.stop_gradient(jax.tree.map(partial(jnp.where, first), initial, carry))
    carries = []

    def model_from_carry(tokens: Array, lengths: Array | None = None) -> Array:
        carry_out, ys = model(tokens, lengths, carry=carry, return_carry=True, **kwargs)
        carries.append(carry_out)
        return ys

    value = function(model_from_carry, batch)
    return value, carries[0]


def own_copy(tree: PyTree) -> PyTree:
    """Copies every array, as an update takes over those it is given.

    By way of NumPy it loses JAX's weak types, which do not come back from a checkpoint either, and with which the
    update would be another program.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), tree)


def _judge(loss: Array, arrays: PyTree, state: State, on_nonfinite: str) -> tuple[Array, Array]:
    """Returns whether the loss and all arrays are finite (not looked at for "take"), and if the update is taken."""
    if on_nonfinite == "take":
        return jnp.ones((), bool), jnp.ones((), bool)
    finite = jnp.isfinite(loss)
    for leaf in jax.tree.leaves(arrays):
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite, finite if on_nonfinite == "skip" else finite & (state.bad_step == 0)


def _squares(tree: PyTree) -> Array:
    return jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)])
