"""A batch spread over devices: each carries its share of the sequences through time, and none waits for another.

    jax.config.update("jax_num_cpu_devices", 2)  # on a CPU, before anything is computed: devices are made of its cores
    with jax.set_mesh(batch_mesh()):
        loss, grads = jax.jit(jax.value_and_grad(loss_fn))(model, batch)

`unroll` asks which mesh is set. Left to XLA's partitioner, the devices of a fast path would meet at each segment to sum
the gradients of the parameters; here they do at the end, once. Two devices of one CPU are faster than one that has both
cores, as XLA computes the products of one step, too small for two, on one core.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rnn_jax.unroll.scan import State, Steps

Array = jax.Array
PyTree = Any

BATCH = "batch"  # the axis of the mesh
Run = Callable[[PyTree, State, Steps], tuple[State, Array]]


def batch_mesh(devices: int | None = None) -> jax.sharding.Mesh:
    """Returns a mesh of one axis, "batch", over so many devices, or over all of them.

    Raises:
      ValueError: if there are not so many.
    """
    count = jax.device_count()
    if devices is not None and not 1 <= devices <= count:
        hint = "; on a CPU, jax_num_cpu_devices makes more" if jax.default_backend() == "cpu" else ""
        raise ValueError(f"devices={devices} is out of range; allowed: 1 to {count}, the devices there are{hint}.")
    return jax.make_mesh((devices or count,), (BATCH,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def over_batch(run: Run, carries: PyTree, batch_shape: tuple[int, ...]) -> Run:
    """Spreads `run((cell, fresh_carry, context), state, steps)` over the axis "batch" of the mesh that is set.

    The cell goes to every device. Of all else each gets its share of the first batch axis. Where there is no such mesh
    or axis, the batch cannot be shared out evenly, or an array of the carries has no batch axes, it stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types))
    if (
        types.get(BATCH) is not AxisType.Auto
        or not batch_shape
        or batch_shape[0] % mesh.shape[BATCH]
        or any(part.shape[: len(batch_shape)] != batch_shape for part in jax.tree.leaves(carries))
    ):
        return run
    state, over_time = (P(BATCH), P()), P(None, BATCH)
    in_specs = ((P(), P(BATCH), P(BATCH)), state, over_time)
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=(state, over_time), check_vma=False)
