"""The instruments: what the gradients did on their way back, what the state holds, and what it does."""

from rnn_jax.flow.adjoint import Adjoints, adjoints
from rnn_jax.flow.calls import layer_calls
from rnn_jax.flow.check import CellReport, check_cell
from rnn_jax.flow.connectivity import connectivity
from rnn_jax.flow.gates import gate_saturation
from rnn_jax.flow.grid import GridProfile, grid_profile
from rnn_jax.flow.horizon import Horizon, horizon
from rnn_jax.flow.intervention import change_carry, hold_gates
from rnn_jax.flow.profile import GradientProfile, gradient_profile
from rnn_jax.flow.readout import LinearProbe, UnitProbe, linear_probe, unit_probe
from rnn_jax.flow.states import States, states

__all__ = [
    "Adjoints",
    "CellReport",
    "GradientProfile",
    "GridProfile",
    "Horizon",
    "LinearProbe",
    "States",
    "UnitProbe",
    "adjoints",
    "change_carry",
    "check_cell",
    "connectivity",
    "gate_saturation",
    "gradient_profile",
    "grid_profile",
    "hold_gates",
    "horizon",
    "layer_calls",
    "linear_probe",
    "states",
    "unit_probe",
]
