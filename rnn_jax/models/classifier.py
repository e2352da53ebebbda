"""A recurrent network that reads a whole sequence and answers once."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.layers import Bidirectional, Stack, make_rnn

Array = jax.Array


class SequenceClassifier(nnx.Module):
    """Recurrent layers, then a linear map of the last output: class scores, or the value of a regression.

    Of a bidirectional network it reads what each direction has put out last: the forward output at the last true
    step and the backward output at the first step, joined.

    Args:
      cell: a name, as `rnn_jax.make_cell` takes.
      in_features: F of the inputs.
      hidden_features: H of each layer and direction.
      out_features: number of classes or values.
      layers, bidirectional: as `rnn_jax.layers.make_rnn`.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell; `dtype` and `param_dtype` are the head's, too.
    """

    def __init__(
        self,
        cell: str,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        self.rnn = make_rnn(
            cell, in_features, hidden_features, layers=layers, bidirectional=bidirectional, rngs=rngs, **kwargs
        )
        features = hidden_features * (2 if bidirectional else 1)
        dtypes = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.head = nnx.Linear(features, out_features, **dtypes, rngs=rngs)

    def __call__(self, xs: Array, lengths: Array | None = None) -> Array:
        """Maps `xs [*batch, time, F]` with true `lengths [*batch]` to `[*batch, out_features]`."""
        ys = self.rnn(xs, seq_lengths=lengths)
        last = last_step(ys, lengths)
        top = self.rnn.layers[-1] if isinstance(self.rnn, Stack) else self.rnn
        if isinstance(top, Bidirectional):
            half = ys.shape[-1] // 2
            last = jnp.concatenate([last[..., :half], ys[..., 0, half:]], axis=-1)
        return self.head(last)


def last_step(ys: Array, lengths: Array | None = None) -> Array:
    """Returns `ys [*batch, time, H]` at the last step of each sequence, `[*batch, H]`.

    With `lengths`, that is the last true step; a sequence of length 0 gives the output of its first (padded) step, 0.
    """
    if lengths is None:
        return ys[..., -1, :]
    index = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(ys, index[..., None, None], axis=-2)[..., 0, :]
