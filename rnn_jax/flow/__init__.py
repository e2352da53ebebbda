"""The instruments: what the gradients did on their way back, what the state holds, and what it does."""

from rnn_jax.flow.adjoint import Adjoints, adjoints
from rnn_jax.flow.calls import layer_calls
from rnn_jax.flow.conformance.kit import check_cell
from rnn_jax.flow.conformance.report import CellReport
from rnn_jax.flow.connectivity import connectivity
from rnn_jax.flow.gates import GateStatistics, gate_saturation, gate_statistics
from rnn_jax.flow.gradient_noise import GradientNoise, gradient_noise
from rnn_jax.flow.grid import GridProfile, grid_profile
from rnn_jax.flow.horizon import Horizon, horizon
from rnn_jax.flow.intervention import change_carry, hold_gates
from rnn_jax.flow.jacobian import JacobianSpectrum, jacobian_spectrum
from rnn_jax.flow.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from rnn_jax.flow.memory import MemoryCurve, SignalSpread, memory_curve, signal_spread
from rnn_jax.flow.profile import GradientProfile, gradient_profile
from rnn_jax.flow.readout import LinearProbe, UnitProbe, linear_probe, unit_probe
from rnn_jax.flow.states import States, states
from rnn_jax.flow.truncation import TruncationBias, truncation_bias

__all__ = [
    "Adjoints",
    "CellReport",
    "GateStatistics",
    "GradientNoise",
    "GradientProfile",
    "GridProfile",
    "Horizon",
    "JacobianSpectrum",
    "LinearProbe",
    "LyapunovSpectrum",
    "MemoryCurve",
    "SignalSpread",
    "States",
    "TruncationBias",
    "UnitProbe",
    "adjoints",
    "change_carry",
    "check_cell",
    "connectivity",
    "gate_saturation",
    "gate_statistics",
    "gradient_noise",
    "gradient_profile",
    "grid_profile",
    "hold_gates",
    "horizon",
    "jacobian_spectrum",
    "layer_calls",
    "linear_probe",
    "lyapunov_spectrum",
    "memory_curve",
    "signal_spread",
    "states",
    "truncation_bias",
    "unit_probe",
]
