"""Carries a cell through time one step after another, with `jax.lax.scan`.

In plain Python, for one sequence `xs [time, F]`:

    for t in range(len(xs)):
        if resets is not None and resets[t]: carry = fresh_carry
        if lengths is None or t < lengths:   carry, ys[t] = cell(carry, xs[t])

This file is the general form, for any cell. Arrays are time-major here, `[time, *batch, ...]`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.unroll.running_scale import Tap, rescale, times_power_of_two, unscale

Array = jax.Array
Carry = Any


def scan_cell(
    cell: nnx.RNNCellBase,
    xs: Array,
    carry: Carry,
    *,
    fresh_carry: Carry | None,
    lengths: Array | None,
    resets: Array | None,
    reverse: bool,
    tap: Tap | None,
    unroll: int,
) -> tuple[Carry, Array]:
    """Runs the cell over time.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      xs: `[time, *batch, ...features]`.
      carry: before the first step.
      fresh_carry: what a reset puts in the place of the carry; needed with `resets`.
      lengths: true lengths, int `[*batch]`.
      resets: bool `[time, *batch]`.
      reverse: from the last step to the first.
      tap: what to record of the adjoint.
      unroll: steps in one iteration of the loop, as in `jax.lax.scan`.

    Returns:
      The final carry, and ys `[time, *batch, ...]`, zero at padded steps.
    """
    e = jnp.zeros((), jnp.float32)
    if tap is not None:
        carry, e = start_of_scale(tap, carry, e)

    def step(carry_and_e, inputs):
        carry, e = carry_and_e
        x, t, reset, tap_t = inputs
        the_cell, old = cell, carry
        if tap is not None:
            (the_cell, x), e = unscale((cell, x), e)
        active = None if lengths is None else t < lengths
        if active is not None:
            x = where(active, x, jnp.zeros_like(x))  # padding may hold anything, NaN included
        if reset is not None:
            carry = jax.tree.map(partial(where, reset), fresh_carry, carry)
        carry, y = the_cell(carry, x)
        if active is not None:
            carry = jax.tree.map(partial(where, active), carry, old)
            y = where(active, y, jnp.zeros_like(y))
        if tap is not None:
            carry, y, e = rescale(tap.record, carry, y, e, tap_t)
        return (carry, e), y

    inputs = (xs, jnp.arange(xs.shape[0]), resets, None if tap is None else tap.zeros)
    (carry, _), ys = jax.lax.scan(step, (carry, e), inputs, reverse=reverse, unroll=unroll)
    return carry, ys


def where(condition: Array, x: Array, y: Array) -> Array:
    """`jnp.where` for a condition over the leading (batch) axes of x and y."""
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)


@jax.custom_vjp
def start_of_scale(tap: Tap, carry: Carry, e: Array) -> tuple[Carry, Array]:
    """Identity before the first step: returns the adjoint of the initial carry at its true scale, and counts the run."""
    del tap
    return carry, e


def _start_fwd(tap, carry, e):
    return (carry, e), tap


def _start_bwd(tap, cotangents):
    carry, log2_scale = cotangents
    counted = jax.tree.map(jnp.zeros_like, tap)
    counted = Tap(counted.zeros, jnp.ones_like(tap.count), tap.record)
    return counted, times_power_of_two(carry, log2_scale), jnp.zeros_like(log2_scale)


start_of_scale.defvjp(_start_fwd, _start_bwd)
