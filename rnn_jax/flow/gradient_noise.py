r"""Gradient noise: how far the gradients of single examples agree.

With g_b the gradient of example b of B, m their mean and S = sum_b |g_b - m|^2 / (B - 1) the trace of their covariance,
the mean of a batch stands out of its noise by the signal-to-noise ratio |m| / sqrt(S / B). The noise scale S / |m|^2
(less its bias) is about the batch size above which more examples gain little.

References:
  McCandlish, Kaplan, Amodei et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.flow.calls import calls_of_loss, layers_of_model
from rnn_jax.flow.run_order import has_nan, refuse_gradient
from rnn_jax.unroll.running_scale import is_inexact

Array = jax.Array
PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["signal", "noise", "ratio", "noise_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class GradientNoise:
    """Signal and noise of the gradients of a batch: by layer, and "" for the whole model; scalars.

    Attributes:
      signal: |m|, the norm of the mean gradient.
      noise: sqrt(S), how far the gradient of one example lies from it.
      ratio: |m| / sqrt(S / B), of the batch; 1 is what noise alone would give.
      noise_scale: S / (|m|^2 - S / B), in examples; inf where the signal does not stand out of the noise.
    """

    signal: dict[str, Array]
    noise: dict[str, Array]
    ratio: dict[str, Array]
    noise_scale: dict[str, Array]


def gradient_noise(loss_fn: Callable[..., Array], model: PyTree, *args: Any) -> GradientNoise:
    """Returns signal and noise of the gradient over the examples of a batch.

    One example after another: the cost of B gradients of batches of one, the memory of two gradients.

    Args:
      loss_fn: `loss_fn(model, *args) -> scalar`, a mean over examples, each of which weighs the same.
      model: a layer, or any pytree that contains `rnn_jax.RNN` layers.
      *args: passed to the loss: pytrees of arrays whose first axis is that of the examples.

    Raises:
      ValueError: if the model has no recurrent layer, the loss is not a scalar, there are fewer than two examples or
        arrays of different numbers of them, or a gradient is not finite (where values can be known).
    """
    calls_of_loss(loss_fn, model, *args)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(args)}
    if len(sizes) != 1 or sizes == {()} or next(iter(sizes))[0] < 2:
        raise ValueError(
            f"the arrays given to loss_fn begin with {sorted(sizes)}; allowed: one number of examples, 2 or more."
        )
    batch_size = next(iter(sizes))[0]

    def grads_of(example: PyTree) -> PyTree:
        one = jax.tree.map(lambda leaf: leaf[None], example)
        return jax.grad(lambda m: loss_fn(m, *one), allow_int=True)(model)

    first = jax.eval_shape(grads_of, jax.tree.map(lambda leaf: leaf[0], args))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_inexact(leaf) else None, first)
    norms = _squared_norms(zeros, zeros)

    def add(state: Any, example: PyTree) -> tuple[Any, None]:
        mean, spread, count = state
        grads = jax.tree.map(lambda g, old: None if old is None else g, grads_of(example), mean, is_leaf=_is_none)
        away = jax.tree.map(jnp.subtract, grads, mean)
        mean = jax.tree.map(lambda old, d: old + d / count.astype(d.dtype), mean, away)
        left = jax.tree.map(jnp.subtract, grads, mean)
        spread = jax.tree.map(jnp.add, spread, _squared_norms(away, left))  # Welford's sum
        return (mean, spread, count + 1), None

    (mean, spread, _), _ = jax.lax.scan(add, (zeros, norms, jnp.ones((), jnp.int32)), args)
    squared_signal = _squared_norms(mean, mean)
    variance = {name: value / (batch_size - 1) for name, value in spread.items()}
    excess = {name: squared_signal[name] - variance[name] / batch_size for name in variance}
    result = GradientNoise(
        {name: jnp.sqrt(value) for name, value in squared_signal.items()},
        {name: jnp.sqrt(value) for name, value in variance.items()},
        {name: jnp.sqrt(squared_signal[name] / (variance[name] / batch_size)) for name in variance},
        {name: jnp.where(excess[name] > 0, variance[name] / excess[name], jnp.inf) for name in variance},
    )
    if has_nan(result.signal[""]):
        refuse_gradient(lambda m: loss_fn(m, *args), model)
    return result


def _is_none(node: Any) -> bool:
    return node is None


def _squared_norms(a: PyTree, b: PyTree) -> dict[str, Array]:
    """Returns the inner products of two gradients of a model: the whole, and by layer."""

    def inner(a: PyTree, b: PyTree) -> Array:
        products = [jnp.sum(jnp.real(jnp.conj(x) * y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
        dtype = np.result_type(jnp.float32, *(product.dtype for product in products))
        return sum((product.astype(dtype) for product in products), start=jnp.zeros((), dtype))

    of_a, of_b = layers_of_model(a), layers_of_model(b)
    return {"": inner(a, b), **{name: inner(of_a[name], of_b[name]) for name in of_a}}
