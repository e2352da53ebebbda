r"""The bias of truncated back-propagation: how the gradient of a truncation length differs from the whole one.

With g the gradient of the loss and g_k that of `Truncated(every=k)`, which lets none flow between pieces of k steps,

    cosine = <g, g_k> / (|g| |g_k|),    norm ratio = |g_k| / |g|.

A cosine near 1 means that training goes the same way, at another speed. A loss of the last output alone reaches the
steps of the last piece: with k no divisor of the sequence that is fewer than k.

References:
  Williams, Peng 1990, Neural Computation 2(4); Tallec, Ollivier 2017, "Unbiasing truncated backpropagation through
  time", arXiv 1705.08209; Aicher, Foti, Fox 2019, arXiv 1905.07473: adaptive truncation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax.flow.calls import calls_of_loss, layer_names, layers_of_model, with_probes
from rnn_jax.flow.run_order import has_nan, refuse_gradient
from rnn_jax.unroll.running_scale import is_inexact
from rnn_jax.unroll.truncated import TruncatedAt

Array = jax.Array
PyTree = Any

_AT_ONCE = 8  # gradients in memory, the whole one among them


@partial(jax.tree_util.register_dataclass, data_fields=["every", "cosine", "norm_ratio"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TruncationBias:
    """The gradient of each truncation length beside the whole one.

    Attributes:
      every: steps in a piece, int32 `[lengths]`, ascending.
      cosine: by layer, and "" for the whole model, between the gradients of its parameters, `[lengths]`; 0 where that
        of the truncation is 0.
      norm_ratio: likewise, norm of the truncated gradient over that of the whole one, `[lengths]`.
    """

    every: Array
    cosine: dict[str, Array]
    norm_ratio: dict[str, Array]


def truncation_bias(
    loss_fn: Callable[..., Array], model: PyTree, *args: Any, every: Sequence[int] | None = None
) -> TruncationBias:
    """Returns cosine and norm ratio of truncated gradients and the whole one, for many truncation lengths at once.

    All layers are truncated, each in the order of its run; a `Truncated` of their own is set aside. The lengths share
    one program: seven backward passes and that of the whole gradient side by side, behind one forward pass. So n
    lengths cost n + n / 7 backward and n / 7 forward passes, and the memory of 8 gradients.

    Args:
      loss_fn: `loss_fn(model, *args) -> scalar`.
      model: a layer, or any pytree that contains `rnn_jax.RNN` layers.
      *args: passed to the loss.
      every: the lengths; by default the powers of 2 below the longest run of a layer, and that.

    Raises:
      ValueError: if the model has no recurrent layer, the loss is not a scalar or runs no layer, a length is below 1 or
        beyond the sequence, or an input, a carry or the gradient is not finite (where values can be known).
    """
    calls, names = calls_of_loss(loss_fn, model, *args), layer_names(model)
    longest = max((call.time for runs in calls.values() for call in runs), default=0)
    if not longest:
        raise ValueError("loss_fn ran no recurrent layer of the model; allowed: one at least.")
    lengths = _lengths(every, longest)

    def compare(group: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        def grad_at(length: Array) -> PyTree:
            grads = jax.grad(
                lambda m: loss_fn(with_probes(m, dict.fromkeys(names, TruncatedAt(length))), *args), allow_int=True
            )(model)
            return {"": grads, **layers_of_model(grads)}

        grads = jax.vmap(grad_at)(jnp.append(group, jnp.int32(longest)))
        compared = {name: _compare(of_layer) for name, of_layer in grads.items() if _inexact_leaves(of_layer)}
        return tuple({name: values[k] for name, values in compared.items()} for k in range(2))  # type: ignore[return-value]

    size = min(len(lengths), _AT_ONCE - 1)
    padded = np.resize(np.asarray(lengths, np.int32), -(-len(lengths) // size) * size).reshape(-1, size)
    cosine, ratio = jax.lax.map(compare, jnp.asarray(padded))
    cosine, ratio = jax.tree.map(lambda values: values.reshape(-1)[: len(lengths)], (cosine, ratio))
    result = TruncationBias(jnp.asarray(lengths, jnp.int32), cosine, ratio)
    if has_nan(result.norm_ratio[""]):
        refuse_gradient(lambda m: loss_fn(m, *args), model)
    return result


def _lengths(every: Sequence[int] | None, longest: int) -> list[int]:
    if every is None:
        return sorted({2**power for power in range(longest.bit_length()) if 2**power < longest} | {longest})
    chosen = sorted({int(length) for length in every})
    wrong = [length for length in chosen if not 1 <= length <= longest]
    if wrong or not chosen:
        raise ValueError(
            f"every holds {wrong[0] if wrong else 'nothing'}; allowed: 1 to {longest}, the steps of the longest run."
        )
    return chosen


def _inexact_leaves(tree: PyTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype") and is_inexact(leaf) and leaf.size]


def _compare(grads: PyTree) -> tuple[Array, Array]:
    """Returns cosine and norm ratio of all but the last of stacked gradients to the last, `[lengths]` each."""
    rows = [leaf.reshape(len(leaf), -1) for leaf in _inexact_leaves(grads)]
    dtype = np.result_type(*(jnp.finfo(row.dtype).dtype for row in rows), jnp.float32)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(row)).astype(dtype) for row in rows]))  # so that no square is lost
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    rows = [(row.astype(dtype) if not jnp.iscomplexobj(row) else row) / scale.astype(row.dtype) for row in rows]

    def inner(a: Array, b: Array) -> Array:
        return jnp.real(jnp.sum(jnp.conj(a) * b, axis=-1))

    squares = sum((inner(row, row) for row in rows), start=jnp.zeros(len(rows[0]), dtype))
    products = sum((inner(row, jnp.broadcast_to(row[-1:], row.shape)) for row in rows), start=jnp.zeros_like(squares))
    norms = jnp.sqrt(squares)
    nothing = norms == 0
    cosine = products / jnp.where(nothing, jnp.ones_like(norms), norms) / norms[-1]
    return cosine[:-1], norms[:-1] / norms[-1]
