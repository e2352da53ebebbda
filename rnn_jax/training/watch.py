"""What a training run looks at beside its loss: the gradient flow and the gates, on one batch that stays the same.

The same sequences at every look, so that only the weights differ between two of them. Where sequences differ in
length, those of about the length that nine tenths stay below, so that lags mean the same in all of them; lags then
count from the end of each sequence.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import tasks
from rnn_jax.flow import gate_saturation, gradient_profile, layer_calls
from rnn_jax.flow.calls import layer_names

Array = jax.Array
PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["log10_norm", "saturation", "sequences"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """What one look at a model showed.

    Attributes:
      log10_norm: the gradient profile by (layer, part of its carry), `[time]`, as `GradientProfile.by_layer_and_part`:
        in the order in which the layer ran, so that lags count from the end also where it ran backward.
      saturation: by "layer/gate", the share of gate values within 0.05 of an end of their range.
      sequences: where sequences differ in length, for every layer over how many of them the profile is the mean,
        `[time]`, in the order of the profile; else empty.
    """

    log10_norm: dict[tuple[str, str], Array]
    saturation: dict[str, Array]
    sequences: dict[str, Array]


def probe_batch(task: tasks.Task, batch_size: int) -> tasks.Batch:
    """Returns the sequences of the training split to look at: the first, or those of a length few exceed."""
    count = min(batch_size, len(task.train))
    if task.train.lengths is None:
        return tasks.collate([task.train[index] for index in range(count)], ragged=False)
    by_length = np.argsort(task.train.lengths, kind="stable")
    stop = max(count, int(np.ceil(0.9 * len(by_length))))
    return tasks.collate([task.train[int(index)] for index in by_length[stop - count : stop]], ragged=True)


def diagnose(task: tasks.Task, model: PyTree, batch: tasks.Batch) -> Diagnostics:
    """Measures a model on a batch; nothing is dropped out. A model without recurrent layers shows nothing."""
    if not layer_names(model):
        return Diagnostics({}, {}, {})
    profile = gradient_profile(task.loss, model, batch, from_true_ends="lengths" in batch)
    sequences = {
        layer: jnp.flip(count) if layer in profile.reversed_parts else count
        for layer, count in profile.sequences.items()
    }
    shares: dict[str, Array] = {}
    for name, calls in layer_calls(lambda recorded: task.loss(recorded, batch), model).items():
        shares |= {f"{name}/{gate}": share for gate, share in gate_saturation(calls[-1]).items()}
    return Diagnostics(profile.by_layer_and_part(), shares, sequences)


def certain_lags(sequences_T: np.ndarray) -> slice:
    """Returns which steps of a profile at least half of its sequences reach: the last ones, in run order.

    Args:
      sequences_T: over how many sequences it is the mean, `[time]`.
    """
    return slice(int(np.argmax(2 * sequences_T >= np.max(sequences_T))), None)
