r"""Gates over time: their means, the shares near the ends of their range, and the time constants that they imply.

A gate near an end of its range passes no gradient. A gate f that the state is multiplied by keeps, over many steps, the
product of its values: e^{-1} of the state after tau = -1 / mean(ln f) steps.

References:
  Karpathy, Johnson, Fei-Fei 2015, "Visualizing and understanding recurrent networks", arXiv 1506.02078.
  Tallec, Ollivier 2018, "Can recurrent neural networks warp time?", arXiv 1804.11188: gates and time constants.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import Cell, gate_values
from rnn_jax.flow.run_order import as_call, check_finite, in_run_order, refuse_nan
from rnn_jax.unroll.record import LayerCall
from rnn_jax.unroll.running_scale import wide_dtype
from rnn_jax.unroll.scan import Steps, where_batched

Array = jax.Array
Carry = Any

_NEAR = 0.05  # of an end of the range
_KEEPING = ("forget", "update", "time_forget")  # the roles of gates that keep the state where they are 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "std", "low", "high", "unit_mean", "time_constant", "sequences"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class GateStatistics:
    """One gate over the steps of a run; step 0 is the first that the layer ran on a sequence.

    Attributes:
      mean, std: of its values, over the sequences that have the step and over units, `[time]`.
      low, high: the share of values within 0.05 of the lower and the upper end of its range, `[time]`; None for a gate
        without a range.
      unit_mean: of each unit, over all true steps, `[...units]`.
      time_constant: -1 / mean(ln f) of each unit, in steps, over all true steps, `[...units]`, of the gates `forget`
        and `update` (of each level of a grid, `time_forget`) of range 0 to 1, which keep the state where they are 1;
        inf where nothing is forgotten. None for other gates.
      sequences: how many sequences have the step, int32 `[time]`; where none has, all of the step is 0.
    """

    mean: Array
    std: Array
    low: Array | None
    high: Array | None
    unit_mean: Array
    time_constant: Array | None
    sequences: Array


def gate_statistics(
    cell: nnx.RNNCellBase | LayerCall,
    xs: Any = None,
    carry: Carry | None = None,
    *,
    context: Any = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
) -> dict[str, GateStatistics]:
    """Returns the statistics of every gate of a cell that names its gates; of others, none.

    Args:
      cell: any cell; or the record of a call, as `layer_calls` makes it, in the place of all other arguments.
      xs, carry, context, lengths, resets, reverse, key: as `rnn_jax.unroll`.

    Raises:
      ValueError: for inputs that are not finite, or gates that become so, where values can be known; or as
        `rnn_jax.unroll`.
    """
    call = as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key)
    result = _statistics(call)
    refuse_nan(call, result)
    return result


def gate_saturation(call: LayerCall) -> dict[str, Array]:
    """Returns for each gate the share of its values within 0.05 of an end of its range, a float32 scalar.

    The mean is over true steps, sequences and units; a gate may have any shape `[*batch, ...]`. It is NaN where no step
    is true. Gates without a range in `gate_ranges` are left out, and so are all gates of a cell that names none.

    Args:
      call: of a layer, as `layer_calls` records it.

    Raises:
      ValueError: for inputs that are not finite, where values can be known.
    """
    check_finite(call)
    shares = {}
    for gate, found in _statistics(call).items():
        if found.low is not None and found.high is not None:
            near = jnp.sum((found.low + found.high) * found.sequences.astype(found.low.dtype))
            shares[gate] = near.astype(jnp.float32) / jnp.sum(found.sequences).astype(jnp.float32)
    return shares


def _statistics(call: LayerCall) -> dict[str, GateStatistics]:
    if not _names_gates(call):
        return {}
    cell = call.cell
    assert isinstance(cell, Cell)
    run, axis = in_run_order(call), len(call.batch_shape)
    count = math.prod(call.batch_shape)

    def values_at(carry: Carry, inputs: Steps) -> dict[str, Array]:
        if inputs.reset is not None:
            carry = jax.tree.map(partial(where_batched, inputs.reset), call.fresh_carry, carry, carry)
        gates = gate_values(cell, carry, inputs.x, context=call.context, key=inputs.key)
        return {gate: value.astype(wide_dtype(value)) for gate, value in gates.items()}

    def step(state: tuple[Carry, Any, Any], inputs: Steps) -> tuple[tuple[Carry, Any, Any], Any]:
        carry, unit_sums, log_sums = state
        gates = values_at(carry, inputs)
        carry, _ = run.step(carry, inputs)
        weight = jnp.ones(call.batch_shape, jnp.float32) if inputs.active is None else inputs.active
        of_step = {}
        for gate, value in gates.items():
            rows = value.reshape(count, -1)
            w = weight.astype(value.dtype).reshape(count, 1)
            total = jnp.maximum(jnp.sum(w), 1) * rows.shape[-1]
            mean = jnp.sum(w * rows) / total
            std = jnp.sqrt(jnp.sum(w * jnp.square(rows - mean)) / total)
            low = high = None
            if gate in cell.gate_ranges:
                least, most = cell.gate_ranges[gate]
                low = jnp.sum(w * (rows < least + _NEAR).astype(w.dtype)) / total
                high = jnp.sum(w * (rows > most - _NEAR).astype(w.dtype)) / total
            of_step[gate] = (mean, std, low, high)
            logs = jnp.log(jnp.where(w > 0, rows, jnp.ones_like(rows)))
            shape = value.shape[axis:]
            unit_sums = unit_sums | {gate: unit_sums[gate] + jnp.sum(w * rows, axis=0).reshape(shape)}
            if gate in log_sums:
                log_sums = log_sums | {gate: log_sums[gate] + jnp.sum(logs, axis=0).reshape(shape)}
        sequences = jnp.sum(weight.astype(jnp.int32), dtype=jnp.int32)
        return (carry, unit_sums, log_sums), (of_step, sequences)

    shapes = jax.eval_shape(values_at, call.carry, jax.tree.map(lambda x: x[0], run.steps))
    zeros = {gate: jnp.zeros(value.shape[axis:], value.dtype) for gate, value in shapes.items()}
    kept = {
        gate: zero
        for gate, zero in zeros.items()
        if _role(gate) in _KEEPING and cell.gate_ranges.get(gate) == (0.0, 1.0)
    }
    state, (of_steps, sequences) = jax.lax.scan(step, (call.carry, zeros, kept), run.steps)
    _, unit_sums, log_sums = state
    result = {}
    for gate, (mean, std, low, high) in of_steps.items():
        steps = jnp.sum(sequences).astype(unit_sums[gate].dtype)
        constant = steps / jnp.abs(log_sums[gate]) if gate in log_sums else None
        result[gate] = GateStatistics(mean, std, low, high, unit_sums[gate] / steps, constant, sequences)
    return result


def _role(gate: str) -> str:
    """Returns what a gate does, without the level of a grid: `time_forget` of `0/time_forget`."""
    return gate.rpartition("/")[2]


def _names_gates(call: LayerCall) -> bool:
    """Whether the cell of a call says what its gates are."""
    return isinstance(call.cell, Cell) and type(call.cell).gates is not Cell.gates and call.time > 0
