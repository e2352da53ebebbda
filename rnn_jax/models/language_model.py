"""A recurrent language model: after each token, what the next one will be."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import check_sizes
from rnn_jax.layers import (
    as_inputs,
    check_dropout,
    drop_recurrent_weights,
    dropout,
    feature_sizes,
    layers_of,
    make_rnn,
)
from rnn_jax.models.embedding import embed, make_embedding
from rnn_jax.models.pooling import steps_within

Array = jax.Array
Carry = Any


class LanguageModel(nnx.Module):
    """Embedding, recurrent layers, and at each step a linear map to a logit for every token that may come next.

    Dropout is applied between the recurrent layers and before the head (`rnn_jax.layers.dropout`).

    Args:
      cell: a name, as `rnn_jax.make_cell` takes.
      vocabulary_size: V, how many tokens there are.
      emb_size: E of the embedding, which starts with entries of variance 1 / E.
      hidden_features: H of each layer.
      layers: how many, one above the other.
      dropout: a rate, 0 to below 1, for calls that are given a `key`.
      weight_dropout: rate of dropout of the recurrent weights, for the same calls, as
        `rnn_jax.layers.drop_recurrent_weights`.
      tie: whether the embedding is the matrix of the head, too (Press and Wolf; Inan et al.); a bias remains.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell; `dtype` and `param_dtype` are those of all other parts, too.

    Raises:
      ValueError: if a size is below 1, a rate not within [0, 1), `weight_dropout` meets a cell without a recurrent
        kernel, or `tie` an `emb_size` that is not the size of the outputs of the last layer; or as `rnn_jax.make_cell`.

    References:
      Mikolov, Karafiat, Burget, Cernocky, Khudanpur 2010, "Recurrent neural network based language model", Interspeech.
      Press, Wolf 2017, "Using the output embedding to improve language models", arXiv 1608.05859.
      Inan, Khosravi, Socher 2017, "Tying word vectors and word classifiers", arXiv 1611.01462.
      Graves 2013, "Generating sequences with recurrent neural networks", arXiv 1308.0850.
    """

    def __init__(
        self,
        cell: str,
        vocabulary_size: int,
        emb_size: int,
        hidden_features: int,
        *,
        layers: int = 1,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        tie: bool = False,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        check_sizes(vocabulary_size=vocabulary_size, emb_size=emb_size, hidden_features=hidden_features)
        dtypes = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.dropout = check_dropout(dropout)
        self.weight_dropout = check_dropout(weight_dropout, "weight_dropout")
        self.embedding = make_embedding(vocabulary_size, emb_size, rngs=rngs, **dtypes)
        self.rnn = make_rnn(cell, emb_size, hidden_features, layers=layers, dropout=dropout, rngs=rngs, **kwargs)
        if weight_dropout:
            drop_recurrent_weights(self.rnn, weight_dropout, jax.random.key(0))  # refuses cells that it cannot serve
        *sizes, features = feature_sizes(self.rnn, emb_size)
        self.layer_features = tuple(sizes)  # of the inputs of each layer
        if tie and emb_size != features:
            raise ValueError(f"tie=True with emb_size={emb_size}; allowed: {features}, the size of the outputs.")
        self.head = None if tie else nnx.Linear(features, vocabulary_size, **dtypes, rngs=rngs)
        zeros = jnp.zeros((vocabulary_size,), kwargs.get("param_dtype", jnp.float32))
        self.head_bias = nnx.Param(zeros) if tie else nnx.data(None)

    def __call__(
        self,
        tokens: Array,
        lengths: Array | None = None,
        *,
        carry: Carry | None = None,
        return_carry: bool = False,
        key: Array | None = None,
    ) -> Any:
        """Returns the logits of the token behind each step; with `return_carry`, `(carry, logits)`.

        Args:
          tokens: integers `[*batch, time]`.
          lengths: true lengths, int `[*batch]`; what padding holds changes nothing.
          carry: of the step before the first, as an earlier call returned it or `initialize_carry` makes it: a
            sequence may be read in pieces. (Gradients flow through it; for truncated back-propagation, stop them by
            `jax.lax.stop_gradient`.)
          return_carry: whether to return the carry after the last true step.
          key: of `jax.random`, for dropout and for cells that ask for one; None is deterministic.

        Returns:
          Logits `[*batch, time, V]`, 0 at padded steps.

        Raises:
          ValueError: for inputs of another shape or kind, or lengths as `rnn_jax.unroll`.
        """
        layers_key = head_key = None
        rnn = self.rnn
        if key is not None:
            layers_key, head_key = jax.random.split(key)
            if self.weight_dropout:
                rnn = drop_recurrent_weights(rnn, self.weight_dropout, jax.random.fold_in(key, 0))
        xs = embed(self.embedding, tokens)
        carry, ys = rnn(xs, initial_carry=carry, seq_lengths=lengths, key=layers_key, return_carry=True)
        ys = as_inputs(ys, 1, xs.ndim - 1)
        if head_key is not None:
            ys = dropout(ys, self.dropout, head_key)
        logits = self.read_out(ys)
        if lengths is not None:
            true_steps = steps_within(lengths, logits.shape[-2])
            logits = jnp.where(true_steps, logits, jnp.zeros_like(logits))
        return (carry, logits) if return_carry else logits

    def initialize_carry(self, batch_shape: tuple[int, ...]) -> Carry:
        """Returns the carry before the first step of sequences `[*batch, time]`, of the structure of any later one."""
        carries = tuple(
            layer.cell.initialize_carry((*batch_shape, size), layer.carry_rngs())
            for layer, size in zip(layers_of(self.rnn), self.layer_features)
        )
        return carries if len(carries) > 1 else carries[0]

    def read_out(self, ys: Array) -> Array:
        """Returns the logits `[*batch, time, V]` of outputs of the last layer, `[*batch, time, H]`."""
        if self.head is not None:
            return self.head(ys)
        assert self.head_bias is not None
        logits = self.embedding.attend(ys)
        bias = self.head_bias[...].astype(logits.dtype)
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
