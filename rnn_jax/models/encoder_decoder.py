"""A network that reads one sequence and writes another: translation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rnn_jax.cell import check_sizes, step
from rnn_jax.layers import (
    RNN,
    Bidirectional,
    Stack,
    as_inputs,
    check_dropout,
    dropout,
    feature_sizes,
    layers_of,
    make_rnn,
)
from rnn_jax.models.attention import SCORES, AttendingCarry, AttendingCell
from rnn_jax.models.decoding import END, shifted
from rnn_jax.models.decoding import greedy as greedy_answer
from rnn_jax.models.embedding import embed, make_embedding
from rnn_jax.models.pooling import steps_within

Array = jax.Array
Carry = Any
PyTree = Any

ATTENTION = ("none", *SCORES)


class EncoderDecoder(nnx.Module):
    r"""An encoder reads the source; a decoder, started from the encoder's last state, writes the answer.

    .. math::
        p(y \mid x) = \prod_u p(y_u \mid y_{<u}, x), \qquad
        p(y_u \mid \cdot) = \mathrm{softmax}(\mathrm{head}(\mathrm{decoder}(y_{u-1}, \ldots)))

    Without attention all that the decoder knows of the source is its first state, as in Sutskever et al. (who reverse
    the source, which we do not) and, but for the context at every step, Cho et al. With attention, `AttendingCell` is
    the decoder's top layer. An answer begins after the token `END` and ends with it.

    The bridge from encoder to decoder: layer k of the decoder starts from the last state of layer k of the encoder,
    part by part of the carry. Of a bidirectional encoder, a linear map joins the last states of both directions.
    (Bahdanau et al. take the backward one, and a tanh of the map.)

    Dropout is applied between the layers and before the head (`rnn_jax.layers.dropout`).

    Args:
      cell: of encoder and decoder: a name, as `rnn_jax.make_cell` takes, of one feature axis.
      in_features: how many tokens sources are made of.
      out_features: V, how many tokens answers are made of.
      emb_size: E of both embeddings.
      hidden_features: H of each layer and direction.
      layers: of the encoder, and as many of the decoder.
      bidirectional: whether the encoder runs in both directions.
      attention: "none", "additive", "dot" or "general".
      dropout: a rate, 0 to below 1, for calls that are given a `key`.
      scheduled_sampling: rate, 0 to 1, at which the decoder is fed a token drawn from its own distribution in the
        place of the true one, on calls that are given a `key` (Bengio et al.). Constant, where the paper raises it as
        training goes on; as in the paper, no gradient passes the choice.
      rngs: draws the parameters.
      **kwargs: more arguments of the cell; `dtype` and `param_dtype` are those of all other parts, too.

    Raises:
      ValueError: if a size is below 1, a rate out of range, or the attention unknown; or as `rnn_jax.make_cell`,
        `AttendingCell`.

    References:
      Sutskever, Vinyals, Le 2014, "Sequence to sequence learning with neural networks", arXiv 1409.3215.
      Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio 2014, "Learning phrase representations using
      RNN encoder-decoder for statistical machine translation", arXiv 1406.1078.
      Bahdanau, Cho, Bengio 2014, arXiv 1409.0473; Luong, Pham, Manning 2015, arXiv 1508.04025.
      Bengio, Vinyals, Jaitly, Shazeer 2015, "Scheduled sampling for sequence prediction with recurrent neural
      networks", arXiv 1506.03099.
    """

    def __init__(
        self,
        cell: str,
        in_features: int,
        out_features: int,
        emb_size: int,
        hidden_features: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        attention: str = "additive",
        dropout: float = 0.0,
        scheduled_sampling: float = 0.0,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        check_sizes(in_features=in_features, out_features=out_features, emb_size=emb_size)
        check_sizes(hidden_features=hidden_features, layers=layers)
        if attention not in ATTENTION:
            raise ValueError(f"attention={attention!r} is unknown; allowed: {', '.join(ATTENTION)}.")
        if not 0.0 <= scheduled_sampling <= 1.0:
            raise ValueError(f"scheduled_sampling={scheduled_sampling} is no rate; allowed: 0 to 1.")
        dtypes: dict[str, Any] = {name: kwargs[name] for name in ("dtype", "param_dtype") if name in kwargs}
        self.attention, self.scheduled_sampling = attention, scheduled_sampling
        self.dropout = check_dropout(dropout)
        self.embedding = make_embedding(in_features, emb_size, rngs=rngs, **dtypes)
        self.answer_embedding = make_embedding(out_features, emb_size, rngs=rngs, **dtypes)

        build = partial(make_rnn, cell, emb_size, hidden_features, layers=layers, dropout=dropout, rngs=rngs)
        self.encoder = build(bidirectional=bidirectional, **kwargs)
        self.decoder = build(**kwargs)
        *sizes, size = feature_sizes(self.decoder, emb_size)
        if attention != "none":
            top = RNN(
                AttendingCell(
                    sizes[-1],
                    hidden_features,
                    cell=cell,
                    score=attention,
                    value_features=feature_sizes(self.encoder, emb_size)[-1],
                    rngs=rngs,
                    **kwargs,
                )
            )
            size = hidden_features
            self.decoder = top if layers == 1 else Stack([*layers_of(self.decoder)[:-1], top], dropout=dropout)
        self.layer_features = tuple(sizes)  # of the inputs of each layer of the decoder
        self.bridge = nnx.List(_bridge(layer, rngs, dtypes) for layer in layers_of(self.encoder))
        self.head = nnx.Linear(size, out_features, **dtypes, rngs=rngs)

    def __call__(
        self, inputs: Array, lengths: Array | None = None, *, answer: Array, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns the logits of each token of the answers, given the true ones before it: teacher forcing.

        Args:
          inputs: sources, integers `[B, T]`.
          lengths: true lengths, int `[B]`; what padding holds changes nothing.
          answer: int32 `[B, U]`, `END` last and a negative number behind.
          key: of `jax.random`, for dropout, scheduled sampling and cells that ask for one; None is deterministic.

        Returns:
          Logits `[B, U, V]`, 0 behind the end of an answer; and what is to be added to the loss of each, `[B]`: 0.

        Raises:
          ValueError: for inputs of another shape or kind, or lengths as `rnn_jax.unroll`.
        """
        source_key = decoder_key = head_key = sampling_key = None
        if key is not None:
            source_key, decoder_key, head_key, sampling_key = jax.random.split(key, 4)
        answer = jnp.asarray(answer)
        carry, context = self._encode(inputs, lengths, source_key)
        tokens = shifted(answer)
        if sampling_key is not None and self.scheduled_sampling > 0.0:
            tokens = self._sampled(carry, context, tokens, sampling_key)
        answer_lengths = jnp.sum(answer >= 0, axis=-1, dtype=jnp.int32)
        xs = embed(self.answer_embedding, tokens)
        ys = self.decoder(
            xs,
            initial_carry=self._decoder_carry(carry),
            context=context if self.attention != "none" else None,
            seq_lengths=answer_lengths,
            key=decoder_key,
        )
        ys = as_inputs(ys, 1, xs.ndim - 1)
        if head_key is not None:
            ys = dropout(ys, self.dropout, head_key)
        logits = self.head(ys)
        logits = jnp.where(steps_within(answer_lengths, logits.shape[-2]), logits, jnp.zeros_like(logits))
        return logits, jnp.zeros(logits.shape[:-2], logits.dtype)

    def start(self, inputs: Array, lengths: Array | None = None) -> tuple[Carry, PyTree]:
        """Reads the source. Returns what `next` goes on from: the carry of each layer, and the context.

        Args:
          inputs, lengths: as `__call__`.
        """
        return self._encode(inputs, lengths, None)

    def next(self, carry: Carry, tokens: Array, context: PyTree) -> tuple[Carry, Array, Array]:
        """Runs one step of the decoder, deterministic.

        Args:
          carry: as `start` or `next` returned it.
          tokens: the token before, int32 `[B]`: `END` at first.
          context: as `start` returned it.

        Returns:
          The carry, logits `[B, V]`, and the weights over the source, `[B, T]`, which are 0 without attention.
        """
        y = self.answer_embedding(tokens)
        mask = context if self.attention == "none" else context.mask
        weights = jnp.zeros(mask.shape, jnp.float32)
        carries = []
        for layer, one in zip(layers_of(self.decoder), carry):
            y = as_inputs(y, 1, tokens.ndim)
            if isinstance(layer.cell, AttendingCell):
                one, y, weights = layer.cell.attend(one, y, context)
            else:
                one, y = step(layer.cell, one, y)
            carries.append(one)
        return tuple(carries), self.head(as_inputs(y, 1, tokens.ndim)), weights

    def greedy(self, inputs: Array, lengths: Array | None, steps: int) -> Array:
        """Returns the answers that take the likeliest token at each step; as `rnn_jax.models.decoding.greedy`."""
        return greedy_answer(self, inputs, lengths, steps)

    def _encode(self, inputs: Array, lengths: Array | None, key: Array | None) -> tuple[Carry, PyTree]:
        """Returns the first carry of each layer of the decoder, and the context."""
        xs = embed(self.embedding, inputs)
        last, ys = self.encoder(xs, seq_lengths=lengths, key=key, return_carry=True)
        ys = as_inputs(ys, 1, xs.ndim - 1)
        last = last if isinstance(self.encoder, Stack) else (last,)
        carries = []
        for k, layer in enumerate(layers_of(self.decoder)):
            cell = layer.cell
            first = cell.initialize_carry((*xs.shape[:-2], self.layer_features[k]), layer.carry_rngs())
            inner = first.cell if isinstance(cell, AttendingCell) else first
            inner = _across(self.bridge[k], last[k], inner)
            carries.append(AttendingCarry(inner, first.attended) if isinstance(cell, AttendingCell) else inner)
        top = layers_of(self.decoder)[-1].cell
        if isinstance(top, AttendingCell):
            return tuple(carries), top.attention.memory(ys, lengths)
        mask = jnp.ones(xs.shape[:-1], bool)
        return tuple(carries), mask if lengths is None else mask & steps_within(lengths, xs.shape[-2])[..., 0]

    def _decoder_carry(self, carry: Carry) -> Carry:
        return carry if isinstance(self.decoder, Stack) else carry[0]

    def _sampled(self, carry: Carry, context: PyTree, tokens: Array, key: Array) -> Array:
        """Returns the tokens to feed, `[B, U]`: at some steps what the model itself drew at the step before.

        The decoder runs once for this, without gradient and dropout; the run that learns is fed what was drawn.
        """

        def one_step(state: tuple[Carry, Array], now: tuple[Array, Array]) -> tuple[tuple[Carry, Array], Array]:
            (carry, drawn), (token, t) = state, now
            coin_key, token_key = jax.random.split(jax.random.fold_in(key, t))
            coin = jax.random.bernoulli(coin_key, jnp.float32(self.scheduled_sampling), token.shape)
            token = jnp.where(coin & (t > 0), drawn, token)
            carry, logits, _ = self.next(carry, token, context)
            return (carry, jax.random.categorical(token_key, logits, axis=-1).astype(token.dtype)), token

        steps = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
        state = (carry, jnp.full_like(tokens[..., 0], END))
        _, fed = jax.lax.scan(one_step, state, (jnp.moveaxis(tokens, -1, 0), steps))
        return jax.lax.stop_gradient(jnp.moveaxis(fed, 0, -1))


def _bridge(layer: RNN | Bidirectional, rngs: nnx.Rngs, dtypes: dict[str, Any]) -> nnx.List:
    """Returns the linear map of each part of a carry of two directions; none for one direction."""
    if not isinstance(layer, Bidirectional):
        return nnx.List([])
    cell = layer.forward_rnn.cell
    carry = jax.eval_shape(lambda: cell.initialize_carry((1,), nnx.Rngs(0)))
    return nnx.List(
        nnx.Linear(2 * part.shape[-1], part.shape[-1], **dtypes, rngs=rngs)
        if part.shape and jnp.issubdtype(part.dtype, jnp.inexact)
        else None
        for part in jax.tree.leaves(carry)
    )


def _across(bridge: nnx.List, last: Carry, first: Carry) -> Carry:
    """Returns the first carry of a layer of the decoder.

    Args:
      bridge: as `_bridge`.
      last: the encoder's last carry, or the pair of both directions'.
      first: what the decoder's cell would start from; its structure and types, and the parts that have no bridge.
    """
    structure = jax.tree.structure(first)
    if not len(bridge):
        parts = [one.astype(own.dtype) for one, own in zip(jax.tree.leaves(last), jax.tree.leaves(first), strict=True)]
        return jax.tree.unflatten(structure, parts)
    forward, backward = (jax.tree.leaves(one) for one in last)
    parts = []
    for linear, ahead, back, own in zip(bridge, forward, backward, jax.tree.leaves(first), strict=True):
        parts.append(own if linear is None else linear(jnp.concatenate([ahead, back], axis=-1)).astype(own.dtype))
    return jax.tree.unflatten(structure, parts)
