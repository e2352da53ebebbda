"""The numbers of a cell: extreme inputs, long runs, what its gates promise."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import Cell, PointwiseCell
from rnn_jax.flow.conformance.checks import check
from rnn_jax.flow.conformance.numbers import (
    EXACT,
    difference_text,
    dot,
    equal,
    finite,
    inexact,
    largest,
    normals,
    on_device,
    on_host,
    relative_difference,
)
from rnn_jax.flow.conformance.report import Failed, NotApplicable
from rnn_jax.flow.conformance.subject import (
    BATCH,
    TIME,
    Subject,
    abstract_outputs,
    jit_once,
    outputs_and_gradients,
    scanned,
    swapped,
    weights_for,
)
from rnn_jax.flow.profile import gradient_profile
from rnn_jax.layers import RNN

Array = jax.Array
Carry = Any
PyTree = Any

_LONG = 2000  # steps
_SLACK = 1e-6  # by which rounding may carry a gate over its bound


@check("extreme inputs", relies_on=["carry"])
def extreme_inputs(subject: Subject) -> str:
    """4 steps of zeros, of 1e4, of -1e4 and of both signs give finite outputs and gradients, in the cell's own type.

    A linear or relu cell may grow: in 4 steps it stays far below the largest float32, 3e38.
    """
    cell = subject.cell
    carry = subject.initial_carry(cell, BATCH, dtype=subject.dtype)
    xs = subject.inputs(BATCH, TIME, dtype=subject.dtype)
    weights = weights_for(subject, cell, carry, xs)
    seen = 0.0
    kinds = {"zeros": np.zeros_like, "1e4": lambda x: 0 * x + 1e4, "-1e4": lambda x: 0 * x - 1e4}
    kinds["+-1e4"] = lambda x: np.sign(x) * 1e4
    for what, extreme in kinds.items():  # an interval (an array without feature axes) stays as it is
        inputs = jax.tree.map(lambda x, extreme=extreme: extreme(x).astype(x.dtype) if x.ndim > 2 else x, xs)
        outputs, gradients = outputs_and_gradients(scanned, cell, carry, inputs, weights)
        finite(outputs, f"outputs for inputs of {what}")
        finite(gradients, f"gradients for inputs of {what}")
        seen = max(seen, largest(inexact(outputs)))
    return f"{', '.join(kinds)}: finite in {subject.dtype}, gradients too; largest output {seen:.2g}"


@check("long run", relies_on=["carry", "parameters"])
def long_run(subject: Subject) -> str:
    """2000 steps with standard normal inputs give neither NaN nor inf, nor do their gradients; in the cell's own type.

    Growth is no mistake: numbers that have grown beyond the square root of the largest one may leave the range of the
    type at the next step (gradients are then not looked at), and gradients may where the adjoints grow so far.
    """
    cell, limit = subject.cell, float(jnp.finfo(subject.dtype).max) ** 0.5
    carry = subject.initial_carry(cell, 1, dtype=subject.dtype)
    xs = subject.inputs(1, _LONG, dtype=subject.dtype)

    def step(carry, x):
        new, y = cell(carry, x)
        return new, jnp.max(jnp.stack([jnp.max(jnp.abs(part)).astype(jnp.float64) for part in inexact((new, y))]))

    sizes_T = np.asarray(jit_once(partial(jax.lax.scan, step))(carry, swapped(xs))[1])
    if not np.all(np.isfinite(sizes_T)):
        gone = int(np.argmin(np.isfinite(sizes_T)))
        before = sizes_T[gone - 1] if gone else 0.0
        if before < limit:
            raise Failed(f"{sizes_T[gone]} at step {gone + 1}, behind numbers of {before:.1g}; allowed: finite ones.")
        return f"the state grows beyond {subject.dtype} by step {gone + 1}, which is allowed; no NaN before it"

    weights = normals(inexact(abstract_outputs(cell, carry, xs)), np.random.default_rng(subject.seed))

    def loss(model, carry, xs):
        return dot(weights, inexact(model(xs, initial_carry=carry)))

    profile = jit_once(partial(gradient_profile, loss))(RNN(cell, return_carry=True), carry, xs)
    log10_T = np.asarray(profile.log10_norm["rnn"])
    if np.any(np.isnan(log10_T)):
        raise Failed("the gradient profile holds NaN; allowed: numbers, and -inf for an exact zero.")
    if np.max(log10_T) > np.log10(limit):
        return f"outputs finite; the adjoints grow to 1e{np.max(log10_T):.0f}, which is allowed"
    finite(profile.grads, f"gradients of {_LONG} steps")
    return f"{_LONG} steps: finite in {subject.dtype}, gradients too; largest number {np.max(sizes_T):.2g}"


@check("gates", relies_on=["carry"])
def gates(subject: Subject) -> str:
    """`cell.gates(carry, x)` gives finite arrays `[*batch, ...]` by name, each within its `gate_ranges` (to 1e-6).

    For common inputs in float64, and for inputs of +-1e4 in the cell's own type. Every name of `gate_ranges` is a gate.
    In a `rnn_jax.Cell` the step itself calls `gates` (in an `PointwiseCell`: `activate`): halving what that returns for
    one gate must change the step, or an instrument would look at something that the step does not do. A gate that only
    another gate is computed from (the r of a GRU) may change nothing, if that is so in the jaxpr of `gates`.
    """
    if not hasattr(subject.cell, "gates"):
        raise NotApplicable("the cell has no method `gates`")
    if isinstance(subject.cell, Cell) and type(subject.cell).gates is Cell.gates:
        raise Failed(
            f"{type(subject.cell).__name__} is a rnn_jax.Cell without `gates(carry, x)`; allowed: that method, "
            "which returns gate values by name, or a subclass of flax.nnx.RNNCellBase."
        )
    smallest: dict[str, float] = {}
    highest: dict[str, float] = {}
    double, own = subject.at(jnp.float64), subject.cell
    carries = [subject.carry_after_steps(double, draw=draw) for draw in range(2)]
    large = jax.tree.map(lambda x: x * 1e4, subject.inputs(BATCH, dtype=subject.dtype))
    steps = {  # by batch axes
        (): (double, jax.tree.map(lambda part: part[0], carries[0]), subject.inputs()),
        (2, BATCH): (double, jax.tree.map(lambda *parts: np.stack(parts), *carries), subject.inputs(2, BATCH)),
        (BATCH,): (own, subject.carry_after_steps(own, dtype=subject.dtype), large),
    }
    ranges = getattr(own, "gate_ranges", {})
    for batch, values in zip(steps, on_host(gate_values(list(steps.values())))):
        if not values:
            raise NotApplicable("the cell names no gates")
        if unknown := set(ranges) - set(values):
            raise Failed(f"gate_ranges names {', '.join(sorted(unknown))}; allowed: gates, {', '.join(values)}.")
        for name, value in values.items():
            if value.shape[: len(batch)] != batch:
                raise Failed(f"gate {name} has shape {value.shape}; allowed: [*batch, ...], batch being {batch}.")
            finite(value, f"gate {name}")
            (low, high), (least, most) = (np.min(value), np.max(value)), ranges.get(name, (-np.inf, np.inf))
            if low < least - _SLACK or high > most + _SLACK:
                raise Failed(f"gate {name} is {low:.7g} to {high:.7g}; allowed: {least:g} to {most:g}.")
            smallest[name] = min(low, smallest.get(name, np.inf))
            highest[name] = max(high, highest.get(name, -np.inf))
    detail = ", ".join(f"{name} {smallest[name]:.2g} to {highest[name]:.2g}" for name in smallest)
    if not isinstance(subject.cell, Cell):
        return detail

    cell = subject.perturbed()
    carry, x = subject.carry_after_steps(cell), subject.inputs(BATCH)
    carry, x = on_device((carry, x))
    want = cell(carry, x)
    unchanged = [name for name in smallest if equal(halved_everywhere(cell, name)(carry, x), want)]
    if unused := [name for name in unchanged if not feeds_another_gate(cell, carry, x, name)]:
        method = "activate" if isinstance(cell, PointwiseCell) else "gates"
        raise Failed(
            f"halving what `{method}` returns for {', '.join(unused)} changes nothing in a step; "
            f"allowed: a step that calls `{method}` for its gates."
        )
    return f"{detail}; the step uses them"


@jit_once
def gate_values(steps: Sequence[tuple[Any, Carry, PyTree]]) -> list[dict[str, Array]]:
    """Returns the gates of some steps (cell, carry, x)."""
    return [cell.gates(carry, x) for cell, carry, x in steps]


def halved_everywhere(cell: nnx.RNNCellBase, name: str) -> nnx.RNNCellBase:
    """Returns the cell with one gate halved, also in the cells within it that a wrapper forwards to."""
    halved = jax.tree.map(lambda leaf: leaf, cell)
    for _, module in nnx.iter_modules(halved):
        method = "activate" if isinstance(module, PointwiseCell) else "gates"
        if isinstance(module, nnx.RNNCellBase) and hasattr(module, method):
            setattr(module, method, partial(half_of_gate, getattr(module, method), name))
    return halved


def half_of_gate(method: Callable[..., dict[str, Array]], name: str, *args: Any) -> dict[str, Array]:
    return {key: 0.5 * value if key == name else value for key, value in method(*args).items()}


def feeds_another_gate(cell: Any, carry: Carry, x: Array, name: str) -> bool:
    """Whether the variable that `gates` returns for a gate is read by an equation of its jaxpr."""
    jaxpr, outputs = jax.make_jaxpr(lambda: cell.gates(carry, x), return_shape=True)()
    return is_read(jaxpr.jaxpr, list(outputs).index(name))


def is_read(jaxpr: Any, output: int) -> bool:
    """Whether an equation reads that output variable, also within a jitted function that returns it among others."""
    variable = jaxpr.outvars[output]
    for equation in jaxpr.eqns:
        if any(read is variable for read in equation.invars):
            return True
        inner = equation.params.get("jaxpr")
        if hasattr(inner, "jaxpr") and len(equation.outvars) > 1 and variable in equation.outvars:
            return is_read(inner.jaxpr, equation.outvars.index(variable))
    return False


@check("pointwise", relies_on=["float64"])
def pointwise(subject: Subject) -> str:
    """For an `PointwiseCell`: a step is `pointwise` of the pre-activations by name, formed here one block at a time.

    `z[name] = x W_name + h R_name + b_name`, to a relative difference of 1e-12; and `gates` is `activate` of them. Does
    not apply to a cell that overrides `__call__`, which runs by the plain scan.
    """
    cell = subject.at(jnp.float64)
    if not isinstance(cell, PointwiseCell):
        raise NotApplicable("the cell is no rnn_jax.PointwiseCell")
    if type(cell).__call__ is not PointwiseCell.__call__:
        raise NotApplicable("the cell overrides `__call__`, so it runs by the plain scan")
    carry, x = subject.carry_after_steps(cell), subject.inputs(BATCH)
    carry, x = on_device((carry, x))
    kernel, recurrent_kernel, bias = on_host(cell.weights())
    names = cell.gate_columns()
    blocks = {name: np.zeros((BATCH, cell.hidden_features)) for name in names}
    for vector, matrix, columns in (
        (x, kernel, cell.input_gates),
        (cell.hidden(carry) if cell.recurrent_gates else x, recurrent_kernel, cell.recurrent_gates),
    ):
        for name, block in zip(columns, np.split(matrix, max(1, len(columns)), axis=1)):
            blocks[name] = blocks[name] + np.asarray(vector) @ block
    if bias is not None:
        blocks = {name: blocks[name] + part for name, part in zip(names, np.split(bias, len(names)), strict=True)}
    z = on_device(blocks)
    differences = [
        relative_difference(cell(carry, x), cell.pointwise(z, carry), EXACT, "a step against pointwise"),
        relative_difference(cell.gates(carry, x), cell.activate(z, carry), EXACT, "gates against activate"),
    ]
    return difference_text(differences, EXACT, f"a step against pointwise of {', '.join(names)}")
