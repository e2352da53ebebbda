"""A recurrent network that reads a whole sequence and answers once, or at every step."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_jax.layers import Bidirectional, Stack, as_inputs, check_dropout, dropout, make_rnn, output_features
from rnn_jax.registry import make_cell
from rnn_jax.unroll import check_lengths

Array = jax.Array

POOLS = ("last", "mean", "max", "attention")


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
      frozen_embedding: whether no gradient reaches the embedding. An optimiser's weight decay must leave it out itself.
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
            ys = self.rnn(xs, context=context, seq_lengths=lengths, key=layers_key)
            ys = as_inputs(ys, 1, leading)
        else:
            ys = as_inputs(xs, 1, leading)
            ys = ys if true_steps is None else jnp.where(true_steps, ys, jnp.zeros_like(ys))
        if self.per_step:
            answers = self.head(ys if head_key is None else dropout(ys, self.dropout, head_key))
            return answers if true_steps is None else jnp.where(true_steps, answers, jnp.zeros_like(answers))
        pooled = self._pool(ys, lengths)
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
        last = last_step(ys, lengths)
        top = self.rnn.layers[-1] if isinstance(self.rnn, Stack) else self.rnn
        if isinstance(top, Bidirectional):  # the first half of the features is the forward layer's
            half = ys.shape[-1] // 2
            last = jnp.concatenate([last[..., :half], ys[..., 0, half:]], axis=-1)
        return last


# ------------------------------------------------------------------------------------------------------- the pools


def last_step(ys: Array, lengths: Array | None = None) -> Array:
    """Returns `ys [*batch, time, H]` at the last step of each sequence, `[*batch, H]`.

    With `lengths`, that is the last true step; a sequence of length 0 gives the output of its first (padded) step, 0.
    """
    if lengths is None:
        return ys[..., -1, :]
    index = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(ys, index[..., None, None], axis=-2)[..., 0, :]


def mean_over_steps(ys: Array, lengths: Array | None = None) -> Array:
    """Returns the mean of `ys [*batch, time, H]` over the true steps, `[*batch, H]`; 0 if there is none."""
    wide = at_least_float32(ys)
    if lengths is None:
        return jnp.mean(wide, axis=-2).astype(ys.dtype)
    total = jnp.sum(jnp.where(steps_within(lengths, ys.shape[-2]), wide, jnp.zeros_like(wide)), axis=-2)
    return (total / jnp.maximum(lengths, 1)[..., None].astype(wide.dtype)).astype(ys.dtype)


def max_over_steps(ys: Array, lengths: Array | None = None) -> Array:
    """Returns the largest of `ys [*batch, time, H]` over the true steps, `[*batch, H]`; 0 if there is none."""
    if lengths is None:
        return jnp.max(ys, axis=-2)
    lowest = jnp.full_like(ys, jnp.finfo(ys.dtype).min)
    largest = jnp.max(jnp.where(steps_within(lengths, ys.shape[-2]), ys, lowest), axis=-2)
    return jnp.where((lengths > 0)[..., None], largest, jnp.zeros_like(largest))


class AttentionPool(nnx.Module):
    r"""Mean of the outputs over time, weighted by how well each of them answers a learned query.

    .. math::
        u_t = \tanh(h_t W + b), \qquad
        a_t = \frac{\exp(u_t \cdot q)}{\sum_s \exp(u_s \cdot q)}, \qquad
        \mathrm{pooled} = \sum_t a_t h_t

    over the true steps t and s: the word attention of Yang et al.; without b, one hop of Lin et al.

    Args:
      features: H of the outputs, and of u and q.
      dtype, param_dtype: as in `flax.nnx.Linear`.
      rngs: draws W and q.

    References:
      Yang, Yang, Dyer, He, Smola, Hovy 2016, "Hierarchical attention networks for document classification", NAACL.
      Lin, Feng, dos Santos, Yu, Xiang, Zhou, Bengio 2017, "A structured self-attentive sentence embedding",
      arXiv 1703.03130.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, **dtypes: Any):
        self.projection = nnx.Linear(features, features, **dtypes, rngs=rngs)
        self.query = nnx.Linear(features, 1, use_bias=False, **dtypes, rngs=rngs)

    def weights(self, ys: Array, lengths: Array | None = None) -> Array:
        """Returns a_t for `ys [*batch, time, H]`, `[*batch, time]`, float32 at least.

        They sum to 1 over the true steps and are exactly 0 beyond; all are 0 in a sequence of length 0.
        """
        scores = at_least_float32(self.query(jnp.tanh(self.projection(ys))))
        if lengths is None:
            return jax.nn.softmax(scores, axis=-2)[..., 0]
        true_steps = steps_within(lengths, ys.shape[-2])
        # Not -inf, whose softmax is NaN where no step is true.
        scores = jnp.where(true_steps, scores, jnp.full_like(scores, jnp.finfo(scores.dtype).min))
        return jnp.where(true_steps, jax.nn.softmax(scores, axis=-2), jnp.zeros_like(scores))[..., 0]

    def __call__(self, ys: Array, lengths: Array | None = None) -> Array:
        """Pools `ys [*batch, time, H]`, finite at padded steps, to `[*batch, H]`."""
        return jnp.einsum("...t,...th->...h", self.weights(ys, lengths).astype(ys.dtype), ys)


def steps_within(lengths: Array, time: int) -> Array:
    """Returns which steps are true ones, bool `[*batch, time, 1]`."""
    lengths = jnp.asarray(lengths, jnp.int32)[..., None, None]
    return jnp.arange(time, dtype=jnp.int32).reshape((1,) * (lengths.ndim - 2) + (time, 1)) < lengths


def at_least_float32(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


# --------------------------------------------------------------------------------------- what models have in common


def make_embedding(
    vocabulary_size: int,
    emb_size: int | None,
    matrix: Array | np.ndarray | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> nnx.Embed:
    """Makes an embedding of tokens, drawn from a normal distribution of variance 1 / E, or given as a matrix `[V, E]`.

    Raises:
      ValueError: if the size is below 1, or the matrix has another shape.
    """
    if matrix is not None:
        shape = np.shape(matrix)
        if len(shape) != 2 or shape[0] != vocabulary_size or emb_size not in (None, shape[1]):
            wanted = f"[{vocabulary_size}, {'E' if emb_size is None else emb_size}]"
            raise ValueError(f"embedding has shape {shape}; allowed: {wanted}, a row for each token.")
        emb_size = shape[1]
    assert emb_size is not None
    check_sizes(emb_size=emb_size)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        if matrix is not None:
            return jnp.asarray(matrix, dtype)
        return emb_size**-0.5 * jax.random.normal(key, shape, dtype)

    return nnx.Embed(vocabulary_size, emb_size, embedding_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def embed(embedding: nnx.Embed, tokens: Array, frozen: bool = False) -> Array:
    """Maps tokens, integers `[*batch, time]`, to vectors, `[*batch, time, E]`.

    Raises:
      ValueError: if they are no such array.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim < 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"inputs have shape {tokens.shape} and dtype {tokens.dtype}; allowed: tokens, integers [*batch, time]."
        )
    vectors = embedding(tokens)
    return jax.lax.stop_gradient(vectors) if frozen else vectors


def reads_one_axis(cell: str, in_features: int, hidden_features: int, **kwargs: Any) -> bool:
    """Whether a cell of this name reads one feature axis; arguments as `rnn_jax.make_cell`."""
    built = jax.eval_shape(lambda: make_cell(cell, in_features, hidden_features, rngs=nnx.Rngs(0), **kwargs))
    return built.num_feature_axes == 1


def check_sizes(**sizes: int) -> None:
    """Raises ValueError if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} is not a size; allowed: 1 or more.")
