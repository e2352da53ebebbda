"""The adjoints themselves: the vector dL/d carry_t of every example at every step, direction and size apart."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.flow.run_order import as_call
from rnn_jax.unroll import Probe, check_lengths, fit_carry, unroll
from rnn_jax.unroll.inputs import input_axes
from rnn_jax.unroll.running_scale import log2_of_whole, times_power_of_two

Array = jax.Array
Carry = Any


@partial(jax.tree_util.register_dataclass, data_fields=["direction", "log10_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Adjoints:
    """a_t = direction * 10**log10_scale for every example and every step t = 1..T.

    Attributes:
      direction: a pytree like the carry, `[*batch, time, ...]` each, of norm 1 over the whole carry; 0 where a_t = 0.
      log10_scale: float32 `[*batch, time]`; -inf where a_t = 0.
    """

    direction: Carry
    log10_scale: Array


def adjoints(
    cell: nnx.RNNCellBase,
    xs: Any,
    ys_cotangent: Any,
    carry: Carry | None = None,
    *,
    context: Any = None,
    carry_cotangent: Carry | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
) -> Adjoints:
    """Returns the adjoint of every carry, each example with a scale of its own.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      xs: `[*batch, time, ...features]`, or a pytree of such arrays.
      ys_cotangent: dL/d ys, of the structure of ys, `[*batch, time, ...]` each.
      carry: before the first step; by default the cell's own.
      context: of a cell that asks for it, a pytree `[*batch, ...]`.
      carry_cotangent: dL/d of the final carry through other ways than ys; 0 by default.
      lengths, resets, reverse: as `rnn_jax.unroll`.

    Raises:
      ValueError: if `ys_cotangent` has not the shape of ys, or inputs are not finite, where values can be known; or as
        `rnn_jax.unroll`.
    """
    as_call(cell, xs, carry, context=context, lengths=lengths, resets=resets, reverse=reverse)  # for what it refuses
    axes = input_axes(cell, xs)
    time = axes.time
    if carry is None:
        carry = cell.initialize_carry(axes.input_shape, nnx.Rngs(0))
    else:
        carry = fit_carry(cell, carry, axes.input_shape)
    if lengths is not None:
        lengths = check_lengths(lengths, axes.batch_shape, time)
    ys = jax.eval_shape(lambda: unroll(cell, xs, carry, context=context)[1])
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (ys_cotangent, ys))
    if given != wanted:
        raise ValueError(f"ys_cotangent has shape {given}; allowed: that of ys, {wanted}.")
    if carry_cotangent is None:
        carry_cotangent = jax.tree.map(jnp.zeros_like, carry)
    else:
        carry_cotangent = fit_carry(cell, carry_cotangent, axes.input_shape)

    def one_example(x, y_cotangent, carry, context, carry_cotangent, length, reset):
        directions = jax.tree.map(lambda part: jnp.zeros((time, *part.shape), part.dtype), carry)
        zeros = (directions, jnp.zeros((time,), jnp.float32))
        probe = Probe(zeros, jnp.zeros((), jnp.float32), _direction_and_scale)

        def run(probe):
            return unroll(cell, x, carry, context=context, lengths=length, resets=reset, reverse=reverse, probe=probe)

        _, pullback = jax.vjp(run, probe)
        return pullback((carry_cotangent, y_cotangent))[0].zeros

    run = one_example
    for _ in axes.batch_shape:
        run = jax.vmap(run)
    direction, log10_scale = run(xs, ys_cotangent, carry, context, carry_cotangent, lengths, resets)
    return Adjoints(direction, log10_scale)


def _direction_and_scale(adjoint: Carry, norms: Array, log2_scale: Array) -> tuple[Carry, Array]:
    log2_size = log2_of_whole(norms)
    nonzero = jnp.isfinite(log2_size)
    exponent = jnp.where(nonzero, jnp.floor(log2_size), 0.0)
    mantissa = jnp.where(nonzero, jnp.exp2(log2_size - exponent), 1.0)
    unit = jax.tree.map(lambda x: x / mantissa.astype(x.dtype), times_power_of_two(adjoint, -exponent))
    return unit, (log2_scale + log2_size) * math.log10(2.0)
