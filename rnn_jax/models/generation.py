"""Text from a language model: each token is drawn from the model's distribution after those before it.

The carry is all that the model keeps of a text, so that a token costs the same however long the text is.

References:
  Graves 2013, "Generating sequences with recurrent neural networks", arXiv 1308.0850.
  Fan, Lewis, Dauphin 2018, "Hierarchical neural story generation", arXiv 1805.04833 (top k).
  Holtzman, Buys, Du, Forbes, Choi 2020, "The curious case of neural text degeneration", arXiv 1904.09751 (top p).
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rnn_jax.models.embedding import check_tokens
from rnn_jax.models.language_model import LanguageModel
from rnn_jax.models.pooling import at_least_float32

Array = jax.Array
Carry = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from logits.

    Attributes:
      temperature: by what logits are divided; below 1 likely tokens become likelier, and 0 takes the likeliest.
      top_k: of how many tokens, the likeliest, one is drawn; None draws of all.
      top_p: draws of the fewest tokens, the likeliest, whose probabilities (after the temperature) sum to it or more.
      excluded: tokens that are never drawn.

    Raises:
      ValueError: if one of them is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} is out of range; allowed: a finite number, 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} is out of range; allowed: 1 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is out of range; allowed: above 0, and 1 or less.")


def draw(logits: Array, key: Array, sampling: Sampling) -> Array:
    """Draws a token from logits `[*batch, V]`: int32 `[*batch]`."""
    logits = restrict(logits, sampling)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def restrict(logits: Array, sampling: Sampling) -> Array:
    """Returns the logits `[*batch, V]` of the distribution that is drawn from, float32 at least, -inf where it is 0."""
    logits = at_least_float32(logits)
    size, impossible = logits.shape[-1], jnp.full_like(logits, -jnp.inf)
    if sampling.excluded:
        excluded = jnp.zeros((size,), bool).at[jnp.array(sampling.excluded)].set(True)
        logits = jnp.where(excluded.reshape((1,) * (logits.ndim - 1) + (size,)), impossible, logits)
    if sampling.temperature:
        logits = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1:
        return logits
    order = jnp.argsort(-logits, axis=-1)
    falling = jnp.take_along_axis(logits, order, axis=-1)
    probabilities = jax.nn.softmax(falling, axis=-1)
    # Whether the likelier tokens alone have less than p: so the first is always kept.
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < sampling.top_p
    if sampling.top_k is not None:
        rank = jnp.arange(size).reshape((1,) * (logits.ndim - 1) + (size,))
        kept &= rank < sampling.top_k
    kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, impossible)


def generate(model: LanguageModel, prompt: Array, steps: int, key: Array, sampling: Sampling = Sampling()) -> Array:
    """Continues a prompt by `steps` tokens.

    Args:
      model: the language model.
      prompt: integers `[*batch, time]`, at least one step.
      steps: how many tokens to draw.
      key: of `jax.random`; that of step t is folded from it and t.
      sampling: how.

    Returns:
      int32 `[*batch, steps]`, without the prompt.

    Raises:
      ValueError: if the prompt is empty or holds a token beyond the vocabulary, or `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps={steps} is out of range; allowed: 0 or more.")
    return _generate(model, _checked(model, prompt), steps, key, sampling)


def stream(model: LanguageModel, prompt: Array, key: Array, sampling: Sampling = Sampling()) -> Iterator[Array]:
    """Yields the tokens of `generate` one after another, int32 `[*batch]` each, without end.

    Args and errors are those of `generate`.
    """
    state = _read(model, _checked(model, prompt))
    step = 0
    while True:
        state, token = _step(model, state, jnp.int32(step), key, sampling)
        yield token
        step += 1


def _checked(model: LanguageModel, prompt: Array) -> Array:
    if jnp.ndim(prompt) < 1 or jnp.shape(prompt)[-1] < 1:
        raise ValueError(f"prompt has shape {jnp.shape(prompt)}; allowed: [*batch, time], at least one token.")
    check_tokens("prompt", prompt, model.embedding.num_embeddings)
    return jnp.asarray(prompt)


@jax.jit
def _read(model: LanguageModel, prompt: Array) -> tuple[Carry, Array]:
    """Returns the carry after a prompt and the logits `[*batch, V]` of the token behind it."""
    carry, logits = model(prompt, return_carry=True)
    return carry, logits[..., -1, :]


@partial(jax.jit, static_argnames="sampling")
def _step(
    model: LanguageModel, state: tuple[Carry, Array], step: Array, key: Array, sampling: Sampling
) -> tuple[tuple[Carry, Array], Array]:
    carry, logits = state
    token = draw(logits, jax.random.fold_in(key, step), sampling)
    carry, logits = model(token[..., None], carry=carry, return_carry=True)
    return (carry, logits[..., 0, :]), token


# Compiled once for each shape and number of steps: without, `jax.lax.scan` compiles its closure at every call.
@partial(jax.jit, static_argnames=("steps", "sampling"))
def _generate(model: LanguageModel, prompt: Array, steps: int, key: Array, sampling: Sampling) -> Array:
    def step(state: tuple[Carry, Array], t: Array) -> tuple[tuple[Carry, Array], Array]:
        return _step(model, state, t, key, sampling)

    _, tokens = jax.lax.scan(step, _read(model, prompt), jnp.arange(steps, dtype=jnp.int32))
    return jnp.moveaxis(tokens, 0, -1)
