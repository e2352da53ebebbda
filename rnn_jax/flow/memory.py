r"""Signals forward: how far a perturbation spreads, and what of earlier inputs can be read back from the carry.

`signal_spread` pushes small changes of one input, or of the carry, through the run: the growth of a change of random
direction and length 1, in the root mean square, is |J|_F / sqrt(m) with J the derivative and m its columns. It never
underflows.

`memory_curve` is the linear memory of Jaeger: a ridge regression reads the input of each lag back from the carry, and
is scored on steps that it was not fitted to. The scores, summed over lags, are the memory capacity. For independent
inputs of one feature it is at most the number of real numbers in the carry.

References:
  Jaeger 2001, "Short term memory in echo state networks", GMD report 152.
  White, Lee, Sompolinsky 2004, "Short-term memory in orthogonal neural networks", Phys. Rev. Lett. 92(14).
  Madsen 2019, "Visualizing memorization in RNNs", Distill: the gradient of an output to each earlier input.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.flow import lapack
from rnn_jax.flow.run_order import (
    Coordinates,
    Run,
    as_call,
    check_start,
    coordinates,
    in_run_order,
    push,
    refuse_nan,
    vectors_of,
)
from rnn_jax.unroll.record import LayerCall
from rnn_jax.unroll.running_scale import is_inexact, times_power_of_two
from rnn_jax.unroll.scan import Steps

Array = jax.Array
Carry = Any


@partial(jax.tree_util.register_dataclass, data_fields=["lags", "log10_norm", "inside"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SignalSpread:
    """How a small change of one input, or of the carry, has grown after each lag.

    Attributes:
      lags: int32 `[lags]`: steps run since the change, from 1 (the step that reads the input) to the end.
      log10_norm: log10 of the root mean square over directions of the change, by part: "" for the whole carry, its
        parts by name, and "y" for the outputs, `[*batch, lags]`; -inf where nothing of it is left.
      inside: whether the lag lies within the true steps of the sequence, bool `[*batch, lags]`.
    """

    lags: Array
    log10_norm: dict[str, Array]
    inside: Array


def signal_spread(
    cell: nnx.RNNCellBase | LayerCall,
    xs: Any = None,
    carry: Carry | None = None,
    *,
    at: int = 0,
    of: str = "input",
    context: Any = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
) -> SignalSpread:
    """Returns how a change of an input, or of the carry, spreads through the steps that follow.

    It takes as many derivatives a step as the input has features, or the carry numbers.

    Args:
      cell: any cell; or the record of a call, as `layer_calls` makes it, in the place of all arguments but at and of.
      xs, carry, context, lengths, resets, reverse, key: as `rnn_jax.unroll`.
      at: the step of the run, from 0, whose input is changed, or the carry before it.
      of: "input" or "carry".

    Raises:
      ValueError: for a step beyond the sequence, another `of`, inputs that are no floating-point numbers with
        `of="input"`, inputs that are not finite, or a carry that becomes so (where values can be known: inside
        `jax.jit` the curve is NaN there); or as `rnn_jax.unroll`.
    """
    if of not in ("input", "carry"):
        raise ValueError(f"of={of!r} is unknown; allowed: input, carry.")
    call = as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key)
    run, space = in_run_order(call), coordinates(call)
    check_start("at", at, call.time)
    axis = len(call.batch_shape)
    first_carry = run.after(at)
    first = jax.tree.map(lambda x: x[at], run.steps)
    rest = jax.tree.map(lambda x: x[at + 1 :], run.steps)
    if of == "input":
        carry, tangents, of_y = _push_input(run, space, first_carry, first)
    else:
        eye = jnp.broadcast_to(jnp.eye(space.size, dtype=space.dtype), (*call.batch_shape, space.size, space.size))
        carry, _, tangents, of_y = push(run, space, first_carry, first, eye)
    exponent = jnp.zeros(call.batch_shape, space.dtype)

    def measure(tangents: Array, of_y: Array, exponent: Array) -> tuple[Array, Array, Array]:
        pieces = jnp.split(tangents, np.cumsum(space.sizes)[:-1].tolist(), axis=-2)
        norms = jnp.stack([_log2_root_mean_square(part) for part in (tangents, *pieces, of_y)], axis=-1)
        largest = jnp.max(jnp.abs(tangents), axis=(-2, -1))
        shift = jnp.where(largest > 0, jnp.floor(jnp.log2(largest)), jnp.zeros_like(largest))
        shift = jnp.where(jnp.isfinite(shift), shift, jnp.zeros_like(shift))
        scaled = times_power_of_two(tangents, jnp.broadcast_to(-shift[..., None, None], tangents.shape))
        return norms + exponent[..., None], scaled, exponent + shift

    def step(state: Any, inputs: Steps) -> tuple[Any, Array]:
        carry, tangents, exponent = state
        carry, _, tangents, of_y = push(run, space, carry, inputs, tangents)
        norms, tangents, exponent = measure(tangents, of_y, exponent)
        return (carry, tangents, exponent), norms

    norms, tangents, exponent = measure(tangents, of_y, exponent)
    _, later = jax.lax.scan(step, (carry, tangents, exponent), rest)
    log2_norms = jnp.moveaxis(jnp.concatenate([norms[None], later]), 0, axis)  # [*batch, lags, parts]
    names = ["", *(name for name in space.names if name), *["y"]]
    columns = [0, *(k + 1 for k, name in enumerate(space.names) if name), -1]
    log10_norm = {name: log2_norms[..., column] * math.log10(2.0) for name, column in zip(names, columns)}
    lags = jnp.arange(1, call.time - at + 1, dtype=jnp.int32)
    inside = at + lags.reshape((1,) * axis + (-1,)) <= run.lengths[..., None]
    result = SignalSpread(lags, log10_norm, inside)
    refuse_nan(call, result)
    return result


def _log2_root_mean_square(tangents: Array) -> Array:
    """Returns log2 of |J|_F / sqrt(m) for `[*batch, n, m]`."""
    largest = jnp.max(jnp.abs(tangents), axis=(-2, -1), initial=0.0)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    squares = jnp.sum(jnp.square(tangents / scale[..., None, None]), axis=(-2, -1)) / tangents.shape[-1]
    return 0.5 * jnp.log2(squares) + jnp.log2(scale)


def _push_input(run: Run, space: Coordinates, carry: Carry, inputs: Steps) -> tuple[Carry, Array, Array]:
    """Runs one step; returns the carry, and the derivatives of carry and output with respect to the step's input."""
    leaves, structure = jax.tree.flatten(inputs.x)
    if not all(is_inexact(leaf) for leaf in leaves):
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        raise ValueError(
            f"the inputs of layer {run.call.layer!r} are {kinds}; allowed with of='input': floating-point numbers, of"
            " which derivatives are taken."
        )
    batch = run.call.batch_shape
    sizes = [math.prod(leaf.shape[len(batch) :]) for leaf in leaves]

    def step(leaves: list[Array]) -> tuple[Any, Carry]:
        new, y = run.step(carry, inputs._replace(x=jax.tree.unflatten(structure, leaves)))
        return (space.split(new)[0], [leaf for leaf in jax.tree.leaves(y) if is_inexact(leaf)]), new

    _, linear, new = jax.linearize(step, leaves, has_aux=True)

    def push_one(direction: Array) -> tuple[Array, Array]:
        pieces = jnp.split(direction, np.cumsum(sizes)[:-1].tolist())
        parts, y = linear(
            [
                jnp.broadcast_to(piece.astype(leaf.dtype).reshape(leaf.shape[len(batch) :]), leaf.shape)
                for piece, leaf in zip(pieces, leaves)
            ]
        )
        return space.to_vector(parts), vectors_of(y, space)

    tangents, of_y = jax.vmap(push_one, -1, -1)(jnp.eye(sum(sizes), dtype=space.dtype))
    return new, tangents, of_y


@partial(jax.tree_util.register_dataclass, data_fields=["lags", "fit", "capacity"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class MemoryCurve:
    """How much of earlier inputs a linear map reads back from the carry.

    Attributes:
      lags: int32 `[lags]`; 0 is the input that the step has just read.
      fit: the share of the variance of each input feature that is explained, R^2 on held-out steps, `[lags, features]`;
        1 is all of it, below 0 is worse than the mean.
      capacity: the sum of `fit` over lags, where it is positive, `[features]`.
    """

    lags: Array
    fit: Array
    capacity: Array


def memory_curve(
    cell: nnx.RNNCellBase | LayerCall,
    xs: Any = None,
    carry: Carry | None = None,
    *,
    lags: Sequence[int] | None = None,
    washout: int = 0,
    held_out: float = 0.2,
    ridge: float = 1e-6,
    context: Any = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
) -> MemoryCurve:
    """Returns how well the input of each lag is read back from the carry by a ridge regression.

    All steps that have as many steps of their sequence before them as the largest lag, in the order of the run, are
    used, those of all sequences together. Of 1 / held_out sequences or more, the last are held out; of fewer, the last
    steps of each. All floating-point parts of the carry are read.

    Memory and time are those of the carries of all steps, and of their singular value decomposition.

    Args:
      cell: any cell; or the record of a call, as `layer_calls` makes it, in the place of all arguments but lags,
        washout, held_out and ridge.
      xs, carry, context, lengths, resets, reverse, key: as `rnn_jax.unroll`.
      lags: by default 0 to twice the numbers in the carry, or half of the sequence if that is shorter.
      washout: steps at the start of a sequence, and behind a reset, that are not used.
      held_out: the share that the map is not fitted to, between 0 and 1.
      ridge: penalty on the squared weights, in units of the mean variance of a number in the carry times the steps.

    Raises:
      ValueError: for a lag beyond the sequence, numbers out of range, no step left to fit or to score, or inputs that
        are not finite, or a carry that becomes so (where values can be known); or as `rnn_jax.unroll`.
    """
    if not 0.0 < held_out < 1.0 or ridge < 0.0 or washout < 0:
        raise ValueError(
            f"held_out={held_out}, ridge={ridge}, washout={washout}; allowed: above 0 and below 1; 0 or more; 0 or"
            " more."
        )
    call = as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse, key=key)
    run, space = in_run_order(call), coordinates(call)
    chosen = list(range(min(2 * space.size, (call.time - 1) // 2) + 1)) if lags is None else sorted({*map(int, lags)})
    wrong = [lag for lag in chosen if not 0 <= lag < call.time]
    if wrong or not chosen:
        raise ValueError(
            f"lags holds {wrong[0] if wrong else 'nothing'}; allowed: 0 to {call.time - 1}, as the sequence has"
            f" {call.time} steps."
        )

    def step(state: tuple[Carry, Array], inputs: Steps) -> tuple[tuple[Carry, Array], tuple[Array, Array]]:
        carry, age = state
        if inputs.reset is not None:
            age = jnp.where(inputs.reset, 0, age)
        carry, _ = run.step(carry, inputs)
        return (carry, age + 1), (space.to_vector(space.split(carry)[0]), age)

    ages = jnp.zeros(call.batch_shape, jnp.int32)
    _, (carries, ages) = jax.lax.scan(step, (call.carry, ages), run.steps)
    used = ages >= max(chosen[-1], washout)
    if run.steps.active is not None:
        used &= run.steps.active
    time, sequences = call.time, math.prod(call.batch_shape)
    if sequences * held_out >= 1.0:
        held = np.arange(sequences) >= sequences - max(1, round(sequences * held_out))
        is_held = jnp.asarray(np.broadcast_to(held, (time, sequences)))
    else:
        first = max(chosen[-1], washout)
        is_held = jnp.asarray(np.arange(time) >= time - round((time - first) * held_out))[:, None]
    used = used.reshape(time, sequences)
    fitted, scored = (mask.astype(space.dtype).reshape(-1, 1) for mask in (used & ~is_held, used & is_held))
    for name, mask in (("fit", fitted), ("score", scored)):
        if not isinstance(mask, jax.core.Tracer) and not np.any(np.asarray(mask)):
            raise ValueError(
                f"no step is left to {name} a lag of {chosen[-1]}; allowed: shorter lags, longer sequences, or another"
                f" held_out than {held_out}."
            )

    states = carries.reshape(time * sequences, space.size)
    states = states - _mean(states, fitted)
    targets = jnp.concatenate(
        [leaf.astype(space.dtype).reshape(time, sequences, -1) for leaf in jax.tree.leaves(run.steps.x)], axis=-1
    )
    # The regression in the coordinates in which the carries that are fitted to do not correlate.
    _, values, directions = lapack.svd(lapack.qr(fitted * states, mode="r"))
    states = states @ directions.T
    penalty = ridge * jnp.sum(jnp.square(values)) / space.size
    shrunk = jnp.square(values) + penalty
    inverse = jnp.where(shrunk > 0, 1 / jnp.where(shrunk > 0, shrunk, jnp.ones_like(shrunk)), jnp.zeros_like(shrunk))

    def fit_of(lag: Array) -> Array:
        target = jnp.roll(targets, lag, axis=0).reshape(time * sequences, -1)
        mean = _mean(target, fitted)
        weights = inverse[:, None] * (states.T @ (fitted * (target - mean)))
        error = jnp.sum(scored * jnp.square(target - mean - states @ weights), axis=0)
        variation = jnp.sum(scored * jnp.square(target - _mean(target, scored)), axis=0)
        return jnp.where(variation > 0, 1 - error / variation, jnp.zeros_like(error))

    of_lags = jnp.asarray(chosen, jnp.int32)
    fit = jax.lax.map(fit_of, of_lags)
    result = MemoryCurve(of_lags, fit, jnp.sum(jnp.maximum(fit, 0), axis=0))
    refuse_nan(call, result)
    return result


def _mean(rows: Array, weights: Array) -> Array:
    return jnp.sum(weights * rows, axis=0, keepdims=True) / jnp.sum(weights)
