"""A recurrent network that reads a whole sequence and answers once, or at every step."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.cell import check_sizes
from rnn_jax.layers import Bidirectional, as_inputs, check_dropout, dropout, layers_of, make_rnn, output_features
from rnn_jax.models.embedding import embed, make_embedding
from rnn_jax.models.pooling import (
    POOLS,
    AttentionPool,
    last_step,
    max_over_steps,
    mean_over_steps,
    steps_within,
)
from rnn_jax.registry import make_cell
from rnn_jax.unroll import check_lengths

Array = jax.Array


class SequenceClassifier(nnx.Module):
    """Embedding (of tokens), recurrent layers, a pool over the true steps, and a linear map: scores of classes.

    The head may as well put out the value of a regression, or stand at every step in the place of the pool. With
    `recurrent=False` the embeddings themselves are pooled: the bag of embeddings, which knows no order.

    Dropout is applied between the recurrent layers and before the head (`rnn_jax.layers.dropout`). Outputs of a cell
    that are several arrays, or have several feature axes, are joined to one before the pool. A cell that asks for a
    context is given the embedded sequence itself, `[*batch, time, E]`, 0 at padded steps.

    Args:
      cell: a name, as `rnn_jax.make_cell` takes.
      in_features: F of the inputs, or the sizes of their feature axes; for tokens, how many there are. A cell that
        reads one feature axis is given all features joined.
      hidden_features: H of each layer and direction.
      out_features: number of classes or values.
      emb_size: E of the embedding; None (and no `embedding`) if the inputs are no tokens. An embedding starts with
        entries of variance 1 / E, so that its vectors have a length of about 1 at any size. Token 0 is one like any
        other: what is padding is said by `lengths`.
      embedding: a matrix `[in_features, E]` to start from, or to stay with.
      frozen_embedding: whether no gradient reaches the embedding. An optimizer's weight decay must leave it out itself.
      layers, bidirectional: as `rnn_jax.layers.make_rnn`.
      dropout: a rate, 0 to below 1, for calls that are given a `key`.
      pool: over the true steps: `last` (the last output; of a bidirectional network what each direction has put out
        last, joined), `mean`, `max`, or `attention`, as `AttentionPool`. By default `last`, and `mean` if nothing is
        recurrent.
      per_step: whether there is an answer at every step, and so no pool.
      recurrent: False takes the recurrent layers out; what is said of them then has no effect.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell; `dtype` and `param_dtype` are those of all other parts, too.

    Raises:
      ValueError: if a size is below 1, `dropout` not within [0, 1), the pool unknown, a pool asked for at every step,
        or the matrix not of the shape said; or as `rnn_jax.make_cell`.
    """

    def __init__(
        self,
        cell: str,
        in_features: int | tuple[int, ...],
        hidden_features: int,
        out_features: int,
        *,
        emb_size: int | None = None,
        embedding: Array | np.ndarray | None = None,
        frozen_embedding: bool = False,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pool: str | None = None,
        per_step: bool = False,
        recurrent: bool = True,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        in_features = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        for size in in_features:
            check_sizes(in_features=size)
        check_sizes(hidden_features=hidden_features, out_features=out_features)
        if pool is not None and pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; allowed: {', '.join(POOLS)}.")
        if pool is not None and per_step:
            raise ValueError(f"pool={pool!r} with per_step=True; allowed: either one answer a sequence or one a step.")
        if frozen_embedding and emb_size is None and embedding is None:
            raise ValueError("frozen_embedding=True freezes nothing; allowed: with emb_size or embedding.")
        dtypes = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.in_features = in_features
        self.frozen_embedding = frozen_embedding
        self.dropout = check_dropout(dropout)
        self.per_step = per_step
        self.pool = None if per_step else pool or ("last" if recurrent else "mean")

        reads_tokens = emb_size is not None or embedding is not None
        self.embedding = (
            make_embedding(in_features[0], emb_size, embedding, rngs=rngs, **dtypes) if reads_tokens else None
        )
        features = in_features if self.embedding is None else (self.embedding.features,)

        build = functools.partial(make_rnn, layers=layers, bidirectional=bidirectional, dropout=dropout)
        rnn = None
        if recurrent:
            if len(features) > 1 and reads_one_axis(cell, features[-1], hidden_features, **kwargs):
                features = (math.prod(features),)
            rnn = build(cell, features, hidden_features, rngs=rngs, **kwargs)
            features = output_features(rnn, features, jax.ShapeDtypeStruct((1, 1, *features), jnp.float32))
        self.rnn = rnn
        size = math.prod(features)
        self.attention = AttentionPool(size, rngs=rngs, **dtypes) if self.pool == "attention" else None
        self.head = nnx.Linear(size, out_features, **dtypes, rngs=rngs)

    def __call__(self, inputs: Array, lengths: Array | None = None, *, key: Array | None = None) -> Array:
        """Answers for each sequence, whatever its padding holds.

        Args:
          inputs: `[*batch, time, ...features]`, or tokens, integers `[*batch, time]`.
          lengths: true lengths, int `[*batch]`; None if nothing is padded. A sequence of length 0 is pooled to 0.
          key: of `jax.random`, for dropout and for cells that ask for one; None is deterministic.

        Returns:
          `[*batch, out_features]`; if per step, `[*batch, time, out_features]`, 0 at padded steps.

        Raises:
          ValueError: for inputs of another shape or kind, or lengths as `rnn_jax.unroll`.
        """
        layers_key = head_key = None
        if key is not None:
            layers_key, head_key = jax.random.split(key)
        xs = self._embed(inputs)
        leading = xs.ndim - (1 if self.embedding is not None else len(self.in_features))
        true_steps = None
        if lengths is not None:
            lengths = check_lengths(lengths, xs.shape[: leading - 1], xs.shape[leading - 1])
            true_steps = steps_within(lengths, xs.shape[leading - 1])
        if self.rnn is not None:
            xs = as_inputs(xs, self.rnn.num_feature_axes, leading)
            context = None
            if self.rnn.takes_context:
                context = xs if true_steps is None else jnp.where(true_steps, xs, jnp.zeros_like(xs))
            outputs = self.rnn(xs, context=context, seq_lengths=lengths, key=layers_key)
            ys = as_inputs(outputs, 1, leading)
        else:
            ys = as_inputs(xs, 1, leading)
            ys = ys if true_steps is None else jnp.where(true_steps, ys, jnp.zeros_like(ys))
        if self.per_step:
            answers = self.head(ys if head_key is None else dropout(ys, self.dropout, head_key))
            return answers if true_steps is None else jnp.where(true_steps, answers, jnp.zeros_like(answers))
        pooled = self._pool(ys, lengths)
        if self.pool == "last" and isinstance(self._top_layer(), Bidirectional):
            # The backward layer has seen all at the first step. Its features are the second half of each array.
            halves = jax.tree.map(lambda y: forward_half(y.shape[leading:]), outputs)
            forward = as_inputs(halves, 1, 0)
            pooled = jnp.where(forward.reshape((1,) * (pooled.ndim - 1) + forward.shape), pooled, ys[..., 0, :])
        if head_key is not None:
            pooled = dropout(pooled[..., None, :], self.dropout, head_key)[..., 0, :]
        return self.head(pooled)

    def _embed(self, inputs: Array) -> Array:
        if self.embedding is not None:
            return embed(self.embedding, inputs, self.frozen_embedding)
        inputs = jnp.asarray(inputs)
        axes = len(self.in_features)
        if inputs.ndim <= axes or inputs.shape[-axes:] != self.in_features:
            raise ValueError(
                f"inputs have shape {inputs.shape}; allowed: [*batch, time, {', '.join(map(str, self.in_features))}] "
                "(a model of tokens has an emb_size)."
            )
        return inputs

    def _pool(self, ys: Array, lengths: Array | None) -> Array:
        if self.attention is not None:
            return self.attention(ys, lengths)
        if self.pool == "mean":
            return mean_over_steps(ys, lengths)
        if self.pool == "max":
            return max_over_steps(ys, lengths)
        return last_step(ys, lengths)

    def _top_layer(self) -> Any:
        return None if self.rnn is None else layers_of(self.rnn)[-1]


def forward_half(features: tuple[int, ...]) -> Array:
    """Returns which outputs of a bidirectional layer are the forward layer's, bool of the shape of the features."""
    return jnp.broadcast_to(jnp.arange(features[-1]) < features[-1] // 2, features)


def reads_one_axis(cell: str, in_features: int, hidden_features: int, **kwargs: Any) -> bool:
    """Whether a cell of this name reads one feature axis; arguments as `rnn_jax.make_cell`."""
    built = jax.eval_shape(lambda: make_cell(cell, in_features, hidden_features, rngs=nnx.Rngs(0), **kwargs))
    return built.num_feature_axes == 1
