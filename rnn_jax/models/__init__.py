"""Networks for whole tasks, made of the layers of `rnn_jax.layers`."""

from rnn_jax.models.classifier import SequenceClassifier

__all__ = ["SequenceClassifier"]
