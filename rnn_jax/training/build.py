"""Which network a task needs, built from the settings that a run was given."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import Captioner, EncoderDecoder, LanguageModel, SequenceClassifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of a network. Each stands under its name in the config.json of a run.

    Attributes:
      cell: a name of the catalogue, or path.to.module:Class.
      hidden: hidden features of each layer and direction.
      layers, bidirectional, dropout: as `rnn_jax.layers.make_rnn`.
      emb_size: features of the embedding of tokens.
      freeze_embeddings, pool, recurrent: of `SequenceClassifier` alone (`frozen_embedding` there).
      tie_embeddings, weight_dropout: of `LanguageModel` alone (`tie` there).
      hard_attention, doubly_stochastic: of `Captioner` alone (`hard` there).
      attention, scheduled_sampling: of `EncoderDecoder` alone; no attention given is the additive one.
    """

    cell: str
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    emb_size: int = 64
    freeze_embeddings: bool = False
    pool: str | None = None
    recurrent: bool = True
    tie_embeddings: bool = False
    weight_dropout: float = 0.0
    hard_attention: bool = False
    doubly_stochastic: float = 1.0
    attention: str | None = None
    scheduled_sampling: float = 0.0

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> "ModelSettings":
        """Picks the settings from the flags of a run; one that an older run does not have is the default."""
        return cls(**{field.name: flags[field.name] for field in dataclasses.fields(cls) if field.name in flags})


# The settings that only some kinds of tasks can use.
_CLASSIFIER = ("freeze_embeddings", "pool", "recurrent")
_LANGUAGE_MODEL = ("tie_embeddings", "weight_dropout")
_ENCODER_DECODER = ("attention", "scheduled_sampling")
_CAPTIONER = ("hard_attention", "doubly_stochastic")
_OF_SEQUENCES = (*_LANGUAGE_MODEL, *_ENCODER_DECODER, *_CAPTIONER)
_UNUSED: Mapping[tasks.Kind, tuple[str, ...]] = {
    tasks.Kind.ONE_ANSWER: _OF_SEQUENCES,
    tasks.Kind.ANSWER_A_STEP: _OF_SEQUENCES,
    tasks.Kind.STREAM: ("bidirectional", *_CLASSIFIER, *_ENCODER_DECODER, *_CAPTIONER),
    tasks.Kind.SEQUENCE: (*_CLASSIFIER, *_LANGUAGE_MODEL),
}
_UNUSED_BY_ENCODER_DECODER = _CAPTIONER
_UNUSED_BY_CAPTIONER = ("bidirectional", "layers", *_ENCODER_DECODER)


def make_model(
    task: tasks.Interface,
    settings: ModelSettings,
    rngs: nnx.Rngs,
    embedding: jax.Array | np.ndarray | None = None,
) -> nnx.Module:
    """Builds the network for a task.

    Args:
      task: its interface.
      settings: of the network.
      rngs: draws the parameters.
      embedding: of a `SequenceClassifier`, a matrix `[in_features, E]` to start from.

    Raises:
      ValueError: if a setting or an embedding is given that the network for this kind of task does not have, or as the
        network.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ModelSettings)}
    unused = _UNUSED[task.kind]
    if task.kind is tasks.Kind.SEQUENCE:
        unused += _UNUSED_BY_ENCODER_DECODER if task.reads_tokens else _UNUSED_BY_CAPTIONER
    for name in unused:
        if getattr(settings, name) != defaults[name]:
            raise ValueError(
                f"--{name}={getattr(settings, name)} has no effect on the task {task.name!r}, whose answer is"
                f" {task.kind.value}; allowed: {defaults[name]}."
            )
    if embedding is not None and task.kind in (tasks.Kind.STREAM, tasks.Kind.SEQUENCE):
        raise ValueError(
            f"an embedding to start from is for classification, and the answer of the task {task.name!r} is"
            f" {task.kind.value}; allowed: none."
        )
    if task.kind is tasks.Kind.STREAM:
        return LanguageModel(
            settings.cell,
            task.out_features,
            settings.emb_size,
            settings.hidden,
            layers=settings.layers,
            dropout=settings.dropout,
            weight_dropout=settings.weight_dropout,
            tie=settings.tie_embeddings,
            rngs=rngs,
        )
    if task.kind is tasks.Kind.SEQUENCE:
        if not task.reads_tokens:
            return Captioner(
                settings.cell,
                task.in_features,
                task.out_features,
                settings.emb_size,
                settings.hidden,
                hard=settings.hard_attention,
                doubly_stochastic=settings.doubly_stochastic,
                dropout=settings.dropout,
                rngs=rngs,
            )
        assert isinstance(task.in_features, int)
        return EncoderDecoder(
            settings.cell,
            task.in_features,
            task.out_features,
            settings.emb_size,
            settings.hidden,
            layers=settings.layers,
            bidirectional=settings.bidirectional,
            attention=settings.attention or "additive",
            dropout=settings.dropout,
            scheduled_sampling=settings.scheduled_sampling,
            rngs=rngs,
        )
    return SequenceClassifier(
        settings.cell,
        task.in_features,
        settings.hidden,
        task.out_features,
        emb_size=settings.emb_size if task.reads_tokens and embedding is None else None,
        embedding=embedding,
        frozen_embedding=settings.freeze_embeddings,
        layers=settings.layers,
        bidirectional=settings.bidirectional,
        dropout=settings.dropout,
        pool=settings.pool,
        per_step=task.kind is tasks.Kind.ANSWER_A_STEP,
        recurrent=settings.recurrent,
        rngs=rngs,
    )
