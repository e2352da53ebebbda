"""The instruments: what the gradients did on their way back."""

from rnn_jax.flow.adjoint import Adjoints, adjoints
from rnn_jax.flow.horizon import Horizon, horizon
from rnn_jax.flow.profile import GradientProfile, gradient_profile

__all__ = [
    "Adjoints",
    "GradientProfile",
    "Horizon",
    "adjoints",
    "gradient_profile",
    "horizon",
]
