"""Networks for whole tasks, made of the layers of `rnn_jax.layers`."""

from rnn_jax.models.classifier import POOLS, AttentionPool, SequenceClassifier
from rnn_jax.models.language_model import LanguageModel, generate

__all__ = ["POOLS", "AttentionPool", "LanguageModel", "SequenceClassifier", "generate"]
