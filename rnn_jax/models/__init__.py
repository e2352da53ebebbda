"""Networks for whole tasks, made of the layers of `rnn_jax.layers`."""

from rnn_jax.models.classifier import SequenceClassifier
from rnn_jax.models.generation import Sampling, generate, stream
from rnn_jax.models.grid_network import GridNetwork
from rnn_jax.models.language_model import LanguageModel
from rnn_jax.models.pooling import POOLS, AttentionPool

__all__ = [
    "POOLS",
    "AttentionPool",
    "GridNetwork",
    "LanguageModel",
    "Sampling",
    "SequenceClassifier",
    "generate",
    "stream",
]
