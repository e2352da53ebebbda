"""Networks for whole tasks, made of the layers of `rnn_jax.layers`."""

from rnn_jax.models.attention import AttendingCell, Attention
from rnn_jax.models.captioner import Captioner
from rnn_jax.models.classifier import SequenceClassifier
from rnn_jax.models.decoding import attention_map, beam_search, greedy
from rnn_jax.models.encoder_decoder import EncoderDecoder
from rnn_jax.models.generation import Sampling, generate, stream
from rnn_jax.models.grid_network import GridNetwork
from rnn_jax.models.language_model import LanguageModel
from rnn_jax.models.pooling import POOLS, AttentionPool

__all__ = [
    "POOLS",
    "AttendingCell",
    "Attention",
    "AttentionPool",
    "Captioner",
    "EncoderDecoder",
    "GridNetwork",
    "LanguageModel",
    "Sampling",
    "SequenceClassifier",
    "attention_map",
    "beam_search",
    "generate",
    "greedy",
    "stream",
]
