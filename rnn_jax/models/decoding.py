"""The answer of a model that writes a sequence token by token: the likeliest next token, or a beam search.

It works on any model that has

* `start(inputs, lengths) -> (carry, context)`: what is known before the first token, every array `[B, ...]`;
* `next(carry, tokens, context) -> (carry, logits, weights)`: one step, given the token before, int32 `[B]`; logits
  `[B, V]` of the token that comes now, and the weights of attention over S places of the input, `[B, S]`.

`END` starts an answer and ends it, so that the number of tokens V needs no other one for the start.
"""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rnn_jax.models.pooling import at_least_float32

Array = jax.Array
Carry = Any
PyTree = Any

END = 0  # as `rnn_jax.tasks.END`, which this package does not import


class Decodable(Protocol):
    """A model whose answers can be searched for."""

    def start(self, inputs: Array, lengths: Array | None = None) -> tuple[Carry, PyTree]: ...

    def next(self, carry: Carry, tokens: Array, context: PyTree) -> tuple[Carry, Array, Array]: ...


@partial(jax.jit, static_argnames=("steps",))
def greedy(model: Decodable, inputs: Array, lengths: Array | None, steps: int) -> Array:
    """Takes at each step the likeliest token.

    Args:
      model: as this file says.
      inputs, lengths: a batch, as the model reads it.
      steps: tokens at most.

    Returns:
      int32 `[B, steps]`, `END` at the end and behind it.
    """
    carry, context = model.start(inputs, lengths)
    first = jnp.full(inputs.shape[:1], END, jnp.int32)

    def step(state: tuple[Carry, Array, Array], _: None) -> tuple[tuple[Carry, Array, Array], Array]:
        carry, token, ended = state
        carry, logits, _weights = model.next(carry, token, context)
        token = jnp.argmax(at_least_float32(logits), axis=-1).astype(jnp.int32)
        token = jnp.where(ended, jnp.full_like(token, END), token)
        return (carry, token, ended | (token == END)), token

    _, tokens = jax.lax.scan(step, (carry, first, jnp.zeros(first.shape, bool)), None, steps)
    return jnp.moveaxis(tokens, 0, 1)


def beam_search(
    model: Decodable,
    inputs: Array,
    lengths: Array | None,
    *,
    beam: int,
    steps: int,
    length_penalty: float = 0.0,
) -> tuple[Array, Array]:
    r"""Keeps at each step the best `beam` answers, ended or not, and goes on from these.

    .. math::
        \mathrm{score}(y \mid x) = \frac{\log p(y \mid x)}{lp(y)}, \qquad lp(y) = \left(\frac{5 + |y|}{6}\right)^\alpha

    alpha being `length_penalty` and |y| counting `END`: at 0 the score is the log-probability, and a larger one
    favours longer answers. (Wu et al. also add a coverage penalty, which is left out.) The penalty counts during the
    search, too, where answers that have ended compete with those that go on. A beam of 1 is `greedy`.

    Args:
      model, inputs, lengths, steps: as `greedy`.
      beam: K, answers to keep.
      length_penalty: alpha, 0 or more.

    Returns:
      The answers, int32 `[B, K, steps]`, the best first, `END` at the end and behind it; and their scores, `[B, K]`. An
      answer that has not ended after `steps` has the score of what is there. Where fewer than K answers of so many
      tokens exist, the scores of the others are -inf.

    Raises:
      ValueError: if the beam or the number of steps is below 1, or the penalty negative.

    References:
      Wu, Schuster, Chen et al. 2016, "Google's neural machine translation system", arXiv 1609.08144.
    """
    for name, value in (("beam", beam), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}={value} is out of range; allowed: 1 or more.")
    if not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty={length_penalty} is out of range; allowed: a finite number, 0 or more.")
    return _beam_search(model, inputs, lengths, beam, steps, length_penalty)


@partial(jax.jit, static_argnames=("beam", "steps", "length_penalty"))
def _beam_search(
    model: Decodable, inputs: Array, lengths: Array | None, beam: int, steps: int, length_penalty: float
) -> tuple[Array, Array]:
    carry, context = model.start(inputs, lengths)
    batch = inputs.shape[0]
    # A hypothesis is a row of its own to the model: row b K + k.
    carry, context = jax.tree.map(lambda part: jnp.repeat(part, beam, axis=0), (carry, context))
    abstract = jax.eval_shape(model.next, carry, jax.ShapeDtypeStruct((batch * beam,), jnp.int32), context)[1]
    vocabulary, dtype = abstract.shape[-1], jnp.float64 if abstract.dtype == jnp.float64 else jnp.float32
    ends_only = jnp.where(jnp.arange(vocabulary) == END, 0.0, -jnp.inf).astype(dtype)

    log_p = jnp.tile(jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf).astype(dtype)[None], (batch, 1))
    tokens = jnp.full((batch, beam, steps), END, jnp.int32)
    counts = jnp.zeros((batch, beam), jnp.int32)
    ended = jnp.zeros((batch, beam), bool)

    def penalty(counts: Array) -> Array:
        return ((5.0 + counts.astype(dtype)) / 6.0) ** length_penalty

    def step(state: Any, t: Array) -> tuple[Any, None]:
        carry, last, log_p, tokens, counts, ended = state
        carry, logits, _ = model.next(carry, last.reshape(-1), context)
        next_log_p = jax.nn.log_softmax(logits.astype(dtype), axis=-1).reshape(batch, beam, vocabulary)
        next_log_p = jnp.where(ended[..., None], ends_only[None, None], next_log_p)
        new_counts = counts + (~ended).astype(jnp.int32)
        candidates = log_p[..., None] + next_log_p
        scores = (candidates / penalty(new_counts)[..., None]).reshape(batch, -1)
        _, best = jax.lax.top_k(scores, beam)
        parent, token = best // vocabulary, (best % vocabulary).astype(jnp.int32)
        log_p = jnp.take_along_axis(candidates.reshape(batch, -1), best, axis=-1)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1).at[:, :, t].set(token)
        counts, ended = (jnp.take_along_axis(part, parent, axis=1) for part in (new_counts, ended))
        rows = (jnp.arange(batch, dtype=parent.dtype)[:, None] * beam + parent).reshape(-1)
        carry = jax.tree.map(lambda part: part[rows], carry)
        return (carry, token, log_p, tokens, counts, ended | (token == END)), None

    first = jnp.full((batch, beam), END, jnp.int32)
    state = (carry, first, log_p, tokens, counts, ended)
    (_, _, log_p, tokens, counts, _), _ = jax.lax.scan(step, state, jnp.arange(steps, dtype=jnp.int32))
    return tokens, log_p / penalty(counts)


@jax.jit
def attention_map(model: Decodable, inputs: Array, lengths: Array | None, tokens: Array) -> Array:
    """Returns where the model looked for each token of an answer, `[B, steps, S]`.

    Args:
      model, inputs, lengths: as `greedy`.
      tokens: the answer, int32 `[B, steps]`, as `greedy` gives it.
    """
    carry, context = model.start(inputs, lengths)

    def step(carry: Carry, token: Array) -> tuple[Carry, Array]:
        carry, _, weights = model.next(carry, token, context)
        return carry, weights

    _, weights = jax.lax.scan(step, carry, jnp.moveaxis(shifted(tokens), 1, 0))
    return jnp.moveaxis(weights, 0, 1)


def shifted(tokens: Array) -> Array:
    """Returns the token before each of `tokens [B, steps]`: `END` before the first, and in the place of padding."""
    before = jnp.concatenate([jnp.full_like(tokens[..., :1], END), tokens[..., :-1]], axis=-1)
    return jnp.where(before < 0, jnp.full_like(before, END), before)
