"""The memory that training needs, estimated from shapes before anything is computed."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rnn_jax import tasks
from rnn_jax.flow.calls import check_loss
from rnn_jax.memory import check_memory, host_memory
from rnn_jax.training.config import TrainConfig
from rnn_jax.training.update import initial_state, training_loss

PyTree = Any


def check_update(
    task: tasks.Task,
    make_model: Callable[[nnx.Rngs], PyTree],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    members: int = 1,
    **sizes: object,
) -> None:
    """Goes through an update on shapes alone, so that what cannot work is said before anything is computed or written.

    The estimate is the sum of the state (weights and optimizer) and the data of all members, and of the gradient and
    what is kept for it of as many members as are computed side by side, one on a CPU.

    Args:
      task: what is trained on.
      make_model: builds one model.
      optimizer: of one model.
      config: of the training.
      members: of the ensemble.
      **sizes: by name, what a refusal shows.

    Raises:
      ValueError: if the memory does not suffice; or whatever model, loss and optimizer refuse.
    """
    available, on_cpu = device_memory(), jax.default_backend() == "cpu"
    state = shapes_of(lambda: initial_state(task, make_model(nnx.Rngs(0)), optimizer, config))
    batch = largest_batch(task, config.batch_size)
    needed = members * (bytes_of(state) + bytes_of(batch)) + bytes_of(state.model)
    check_memory(needed, available, **sizes)

    kept = 0

    def one_update(state: Any, batch: tasks.Batch) -> Any:
        nonlocal kept

        def loss_of(model: PyTree) -> Any:
            return training_loss(task)(model, state.carry, batch, state.key, state.step)

        loss, pull_back, _ = jax.vjp(loss_of, state.model, has_aux=True)
        check_loss(loss)
        kept = bytes_of(pull_back)
        (grads,) = pull_back(jnp.ones_like(loss))
        return optimizer.update(grads, state.opt_state, state.model)

    jax.eval_shape(one_update, state, batch)
    check_memory(needed + (kept if on_cpu else members * kept // config.devices), available, **sizes)


def shapes_of(make: Callable[[], PyTree]) -> PyTree:
    """Returns shapes and types of what a function would make, and leaves out JAX's warnings about very large arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jax.eval_shape(make)


def largest_batch(task: tasks.Task, batch_size: int) -> Any:
    """Returns the shapes and types of a training batch of the longest sequences there are."""
    ragged = task.train.lengths is not None
    example: Any = tasks.collate([task.train[0]], ragged=ragged, width=task.seq_len if ragged else None)
    batch: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype) for name, array in example.items()
    }
    if task.kind is tasks.Kind.STREAM:
        batch["first"] = jax.ShapeDtypeStruct((), jnp.bool_)
    return batch


def kept_for_gradient(loss: Callable[..., jax.Array], model: PyTree, *args: PyTree) -> int:
    """Returns the bytes that `loss(model, *args)` keeps for the gradient of the model; all may be abstract."""
    kept = 0

    def forward(model: PyTree, *args: PyTree) -> jax.Array:
        nonlocal kept
        value, pull_back = jax.vjp(lambda model: loss(model, *args), model)
        kept = bytes_of(pull_back)
        return value

    jax.eval_shape(forward, model, *args)
    return kept


def bytes_of(tree: PyTree) -> int:
    """Returns the bytes of all arrays of a pytree, which may be abstract; one that stands there twice counts once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values() if hasattr(leaf, "dtype"))


def device_memory() -> int:
    """Returns the bytes of memory of the device that JAX computes on."""
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    return host_memory() if not stats or "bytes_limit" not in stats else stats["bytes_limit"]
