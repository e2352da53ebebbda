"""What a model puts out, as text that a person reads beside the scores of an evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import tasks
from rnn_jax.models import Sampling, generate
from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN

_PROMPT, _CONTINUATION = 32, 300  # tokens of a sample of a stream


def sampler(task: tasks.Task) -> Callable[[Any], str] | None:
    """Returns what shows a model's outputs on the validation split, as text; None if the task's answers are no text."""
    if task.kind is tasks.Kind.STREAM:
        return _text_sampler(task)
    return None


def _text_sampler(task: tasks.Task) -> Callable[[Any], str]:
    """Continues the beginning of the validation text twice: by the likeliest characters, and at temperature 0.8."""
    assert task.vocabulary is not None
    vocabulary = task.vocabulary
    assert isinstance(task.validation, tasks.StreamSource)
    prompt = np.asarray(task.validation.tokens[:_PROMPT])

    def sample(model: Any) -> str:
        parts = []
        for temperature in (0.0, 0.8):
            sampling = Sampling(temperature=temperature, excluded=(PADDING, UNKNOWN))
            tokens = generate(model, jnp.asarray(prompt), _CONTINUATION, jax.random.key(0), sampling)
            text = vocabulary.decode([*prompt, *np.asarray(tokens)])
            parts.append(f"--- temperature {temperature}, behind a prompt of {len(prompt)} tokens\n{text}\n")
        return "\n".join(parts)

    return sample
