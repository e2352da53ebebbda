"""Connectivity: how strongly what a layer puts out at one step depends on each of its earlier inputs.

With L_p a function of the output y_p at step p, it is log10 |dL_p / dx_t| for every t up to p: the adjoint of the
carry, carried on through one step to that step's input.

References:
  Madsen 2019, "Visualizing memorization in RNNs", Distill, doi 10.23915/distill.00016.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.cell import carry_names, step
from rnn_jax.flow.adjoint import adjoints
from rnn_jax.flow.states import states
from rnn_jax.unroll.record import LayerCall

Array = jax.Array

_AT_ONCE = 64  # windows that run side by side


def connectivity(call: LayerCall, ys_cotangent: Any, window: int) -> Array:
    """Returns log10 |dL_p / dx_(p - lag)| for every step p and every lag below `window`.

    Each step p has a window of its own, which begins with the true carry: as many backward passes as there are steps.

    Args:
      call: of a layer, as `layer_calls` records it.
      ys_cotangent: dL_p / dy_p at step p, `[*batch, time, ...]` each, of the structure of the outputs.
      window: lags to look at, 1 or more; at most the whole sequence is.

    Returns:
      `[*batch, time, min(window, time)]`; -inf where there is no such step, at padding, and where the gradient is 0.

    Raises:
      ValueError: if the layer ran backward or with resets, or the window is below 1; or as `states`.
    """
    if call.reverse or call.resets is not None:
        raise ValueError("connectivity of a layer that ran backward, or with resets; allowed: forward, without resets.")
    if window < 1:
        raise ValueError(f"window={window} is out of range; allowed: 1 or more.")
    window = min(window, call.time)
    names = carry_names(call.cell, call.carry)
    seen = states(call).carry
    carries = jax.tree.unflatten(jax.tree.structure(call.carry), [seen[name] for name in names])

    def one_sequence(xs: Any, cotangents: Any, first: Any, carries: Any, context: Any) -> Array:
        before = jax.tree.map(lambda one, all: jnp.concatenate([one[None], all[:-1]]), first, carries)

        def one_step(p: Array) -> Array:
            start = jnp.clip(p - (window - 1), 0, call.time - window)
            here = p - start  # of p in its window

            def cut(tree: Any) -> Any:
                return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, window), tree)

            is_p = jnp.arange(window, dtype=p.dtype) == here
            ys_cotangent = jax.tree.map(
                lambda x: jnp.where(is_p.reshape(window, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), cut(cotangents)
            )
            carries_before, inputs = cut(before), cut(xs)
            found = adjoints(
                call.cell, inputs, ys_cotangent, jax.tree.map(lambda x: x[0], carries_before), context=context
            )

            def of_input(carry: Any, x: Any, carry_cotangent: Any, y_cotangent: Any) -> Array:
                def outcome(x: Any) -> list[Array]:
                    return _floating(step(call.cell, carry, x, context=context))

                (gradient,) = jax.vjp(outcome, x)[1](_floating((carry_cotangent, y_cotangent)))
                return jnp.sum(jnp.stack([jnp.sum(jnp.square(part)) for part in jax.tree.leaves(gradient)]))

            squares = jax.vmap(of_input)(carries_before, inputs, found.direction, ys_cotangent)
            scale = jnp.where(is_p, jnp.zeros_like(found.log10_scale), found.log10_scale)
            log10_norm = jnp.where(squares > 0, 0.5 * jnp.log10(squares) + scale.astype(squares.dtype), -jnp.inf)
            lags = here - jnp.arange(window, dtype=p.dtype)
            return jnp.where(lags >= 0, log10_norm[jnp.maximum(lags, 0)], -jnp.inf)

        return jax.lax.map(one_step, jnp.arange(call.time, dtype=jnp.int32), batch_size=min(_AT_ONCE, call.time))

    run = one_sequence
    for _ in call.batch_shape:
        run = jax.vmap(run)
    log10_norm = run(call.xs, ys_cotangent, call.carry, carries, call.context)
    if call.lengths is not None:
        steps = jnp.arange(call.time, dtype=jnp.int32).reshape((1,) * len(call.batch_shape) + (-1, 1))
        lengths = jnp.asarray(call.lengths, jnp.int32)[..., None, None]
        log10_norm = jnp.where(steps < lengths, log10_norm, -jnp.inf)
    return log10_norm


def _floating(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
