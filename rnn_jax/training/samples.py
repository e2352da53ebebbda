"""What a model puts out, as text that a person reads beside the scores of an evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import tasks
from rnn_jax.models import Sampling, generate
from rnn_jax.tasks.task import END, NOT_ASKED, run_model
from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN

_TRANSLATIONS = 10  # sources of a sample
_PROMPT, _CONTINUATION = 32, 300  # tokens of a sample of a stream
_CAPTIONS = 20  # images of which the captions are shown
_SEQUENCES = 10  # whose answers, a step each, are shown
_SHOWN = 200  # tokens of each of these, the last ones


def sampler(task: tasks.Task) -> Callable[[Any], str] | None:
    """Returns what shows a model's outputs on the validation split, or else the test split, as text.

    None if the task asks for numbers, or for one class a sequence, of which there is not much to see.
    """
    if task.kind is tasks.Kind.STREAM:
        return _text_sampler(task)
    if task.kind is tasks.Kind.SEQUENCE:
        return _translation_sampler(task) if task.reads_tokens else _caption_sampler(task)
    if task.kind is tasks.Kind.ANSWER_A_STEP and task.reads_tokens:
        return _steps_sampler(task)
    return None


def _steps_sampler(task: tasks.Task) -> Callable[[Any], str]:
    """Shows the first sequences, as numbers, and the classes that are asked for and given, where they are asked."""
    source = task.test if task.validation is None else task.validation
    batch = tasks.collate([source[index] for index in range(min(_SEQUENCES, len(source)))], source.lengths is not None)
    names = task.class_names or tuple(map(str, range(task.out_features)))
    answers = jax.jit(lambda model: jnp.argmax(run_model(model, batch), axis=-1))

    def shown(words: list[str]) -> str:
        return ("... " if len(words) > _SHOWN else "") + " ".join(words[-_SHOWN:])

    def sample(model: Any) -> str:
        parts = []
        for tokens, labels, given in zip(batch["tokens"], batch["labels"], np.asarray(answers(model))):
            asked = labels != NOT_ASKED
            parts.append(
                f"read    {shown([str(token) for token in tokens])}\n"
                f"answer  {shown([names[label] for label in labels[asked]])}\n"
                f"given   {shown([names[label] for label in given[asked]])}\n"
            )
        return "\n".join(parts)

    return sample


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


def _caption_sampler(task: tasks.Task) -> Callable[[Any], str]:
    """Writes the captions of images all over the validation split, each below the right one."""
    assert task.answer_vocabulary is not None
    assert task.validation is not None
    vocabulary, source = task.answer_vocabulary, task.validation
    chosen = np.unique(np.linspace(0, len(source) - 1, _CAPTIONS).astype(int))
    batch = tasks.collate([source[int(index)] for index in chosen])

    def sample(model: Any) -> str:
        given = np.asarray(model.greedy(jnp.asarray(batch["xs"]), None, task.answer_length))
        return "\n".join(
            f"answer  {vocabulary.decode(answer[answer > END])}\ngiven   {vocabulary.decode(tokens)}\n"
            for answer, tokens in zip(batch["answer"], given)
        )

    return sample


def _translation_sampler(task: tasks.Task) -> Callable[[Any], str]:
    """Shows sources from all over the validation split, what is asked and what greedy decoding gives."""
    source, vocabulary, answer_vocabulary = task.validation, task.vocabulary, task.answer_vocabulary
    assert source is not None
    assert vocabulary is not None
    assert answer_vocabulary is not None
    chosen = np.unique(np.linspace(0, len(source) - 1, _TRANSLATIONS).astype(int))
    batch = tasks.collate([source[int(number)] for number in chosen], ragged=True)

    def sample(model: Any) -> str:
        given = model.greedy(jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"]), task.answer_length)
        rows = zip(batch["tokens"], batch["answer"], np.asarray(given))
        return "\n".join(
            f"source  {vocabulary.decode(tokens)}\nanswer  {answer_vocabulary.decode(answer[answer > END])}\n"
            f"given   {answer_vocabulary.decode(tokens_given)}\n"
            for tokens, answer, tokens_given in rows
        )

    return sample
