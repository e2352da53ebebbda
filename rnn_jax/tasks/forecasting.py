"""Forecasting: what will a sine, or a chaotic series, be some steps from now?

Both series are made of additions, multiplications and divisions alone, one numpy operation each: those are rounded
alike on every machine, where the sine or the power of a mathematical library is not.
"""

import functools
import itertools
import math

import numpy as np

from rnn_jax.tasks import generated, task

_PERIODS = (10, 50)  # steps: of the fastest and the slowest sine

# The equation of Mackey and Glass, as everybody takes it since Farmer (1982).
_BETA, _GAMMA, _TAU = 0.2, 0.1, 17
_SUBSTEPS = 4  # of the integration in a unit of time
_TRANSIENT, _OFFSETS = 300, 300  # units of time before a series begins, and how many later ones it may begin at
_MACKEY_GLASS_VARIANCE = 0.051  # a property of the attractor; there is no formula for it, so a test measures it


def sine(
    seq_len: int = 100,
    horizon: int = 10,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """A sine of unknown frequency and phase: at every step, say what it will be `horizon` steps later.

    "xs" is [T, 1], x_t = sin(2 pi (f t + phase)), with f uniform on 1/50 to 1/10 cycles a step and the phase uniform;
    "targets" is [T, 1], x_{t + horizon}. For f = 1/12, phase 0, seq_len = 4, horizon = 3:

        xs        0.00  0.50  0.87  1.00
        targets   1.00  0.87  0.50  0.00

    Two values of memory carry the sine on, x_{t+1} = 2 cos(2 pi f) x_t - x_{t-1}, but which f that is must be found
    in each sequence, and kept. The first step or two cannot be foretold by anybody.

    The baseline answers 0, the mean. As the phase is uniform, the score of a constant c is E sin^2 + c^2 =
    1/2 + c^2, so that is the best, with 1/2. Who says that all stays as it is, x_t, scores
    1 - E cos(2 pi f horizon) = 1 - (sin(pi h / 5) - sin(pi h / 25)) / (4 pi h / 25), h being the horizon: 0.08 and
    0.30 at horizons 1 and 2, where that is the score to beat, and more than 1/2 from 3 on.

    Jaeger has a network generate one sine, always the same; here each sequence has a sine of its own.

    Args:
      seq_len: T, 1 or more.
      horizon: steps from what is read to what is asked, 1 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      H. Jaeger (2002). A tutorial on training recurrent neural networks, covering BPPT, RTRL, EKF and the "echo state
        network" approach. GMD Report 159.
    """
    generated.check_lengths(seq_len, test_seq_len, 1)
    generated.check_range("horizon", horizon, 1)
    return generated.generated_task(
        lambda steps: functools.partial(_sine, steps, horizon),
        lambda steps: 2,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="sine",
        description=f"A sine of unknown frequency, {horizon} steps ahead.",
        source="Jaeger 2002, GMD Report 159",
        kind=task.Kind.ANSWER_A_STEP,
        in_features=1,
        out_features=1,
        baseline_score=1 / 2,
        **generated.VALUES,
    )


def mackey_glass(
    seq_len: int = 256,
    horizon: int = 6,
    train_size: int = 100_000,
    test_size: int = 1_000,
    seed: int = 0,
    test_seq_len: int | None = None,
) -> task.Task:
    """The chaotic series of Mackey and Glass: at every step, say what it will be `horizon` steps later.

        dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t)

    "xs" is [T, 1], x at T times one unit apart; "targets" is [T, 1], x_{t + horizon}. x runs between 0.42 and 1.32,
    once up and down in some 50 steps, never twice the same. What comes depends on what was 17 steps ago: the memory
    must hold a stretch of the past, and the longer the horizon the more exactly, as errors grow by a factor e in some
    150 steps.

    Every example starts from a constant history of its own, uniform on 0.5 to 1.5, and is read from a time of its own,
    uniform on 300 to 599. The integration is the classical Runge-Kutta method of fourth order with four steps a unit;
    between two of them the past is the cubic that has their values and their derivatives. After 200 units the error
    is some 1e-7, what a float32 does not show; from there on it grows as all errors do.

    The baseline answers the mean of the series, 0.930, and scores its variance, 0.051: both measured, as
    there is no formula for them. Who says that all stays as it is, x_t, scores 0.0011 at horizon 1, 0.034 at 6, and
    0.15, worse than the mean, at 17: at short horizons that is the score to beat.

    Args:
      seq_len: T, 1 or more.
      horizon: steps from what is read to what is asked, 1 or more.
      train_size, test_size: examples in the splits; they cost no memory.
      seed: of the examples, 0 to 2**64 - 1.
      test_seq_len: T of the test split; None: as in training.

    Raises:
      ValueError: if an argument is out of range.

    References:
      M. C. Mackey, L. Glass (1977). Oscillation and chaos in physiological control systems. Science 197(4300).
      J. D. Farmer (1982). Chaotic attractors of an infinite-dimensional dynamical system. Physica D 4(3).
    """
    generated.check_lengths(seq_len, test_seq_len, 1)
    generated.check_range("horizon", horizon, 1)
    return generated.generated_task(
        lambda steps: functools.partial(_mackey_glass, steps, horizon),
        lambda steps: 2,
        seq_len=seq_len,
        test_seq_len=test_seq_len,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        name="mackey_glass",
        description=f"A chaotic series, {horizon} steps ahead.",
        source="Mackey and Glass 1977, Science 197(4300)",
        kind=task.Kind.ANSWER_A_STEP,
        in_features=1,
        out_features=1,
        baseline_score=_MACKEY_GLASS_VARIANCE,
        **generated.VALUES,
    )


def _sine(seq_len: int, horizon: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    fastest, slowest = (2**64 // period for period in _PERIODS)
    frequency = np.uint64(slowest + int(bits[1]) % (fastest - slowest))
    # Phases in units of 2**-64 turns: integers that run over where a turn is full.
    phases = bits[:1] + frequency * np.arange(seq_len + horizon, dtype=np.uint64)
    return _ahead(_sine_of_turns(phases.view(np.int64) * 2.0**-64), horizon)


def _sine_of_turns(turns: np.ndarray) -> np.ndarray:
    """Returns sin(2 pi turns) for turns from -1/2 to 1/2, to within 1e-15, by Taylor's series."""
    folded = np.where(np.abs(turns) > 0.25, np.copysign(0.5, turns) - turns, turns)
    x = folded * (2 * math.pi)
    square, value = x * x, np.zeros_like(x)
    for power in range(23, 0, -2):
        value = value * square + (-1) ** (power // 2) / math.factorial(power)
    return value * x


def _mackey_glass(seq_len: int, horizon: int, bits: np.ndarray) -> dict[str, np.ndarray]:
    history = 0.5 + int(bits[0] >> np.uint64(11)) * 2.0**-53
    start = _TRANSIENT + int(bits[1]) % _OFFSETS
    series = _mackey_glass_series(history, start + seq_len + horizon)
    return _ahead(series[start:], horizon)


def _mackey_glass_series(history: float, size: int) -> np.ndarray:
    """Integrates the equation from a constant history; returns x at the times 0, 1, ..., size - 1.

    Over one delay the past is known, and with it the forcing f(t) = beta x(t - tau) / (1 + x(t - tau)^10), at all steps
    at once. What is left, dx/dt = f - gamma x, is linear in x, and so is a Runge-Kutta step: x' = a x + r, the r being
    a weighted sum of f before, in the middle of, and after the step.
    """
    h = 1 / _SUBSTEPS
    z = h * _GAMMA
    decay = 1 - z * (1 - z / 2 * (1 - z / 3 * (1 - z / 4)))
    before, middle, after = 1 - z * (1 - z / 2 * (1 - z / 2)), 4 - z * (2 - z / 2), 1.0
    steps = _TAU * _SUBSTEPS
    past = np.full(steps + 1, history)
    slopes = np.zeros(steps + 1)
    pieces = [past[-1:]]
    for _ in range(-(-size // _TAU)):
        halfway = (past[:-1] + past[1:]) / 2 + (slopes[:-1] - slopes[1:]) * (h / 8)
        forcing = _forcing(past)
        r = (forcing[:-1] * before + _forcing(halfway) * middle + forcing[1:] * after) * (h / 6)
        steps_on = itertools.accumulate(r.tolist(), lambda x, r: decay * x + r, initial=float(past[-1]))
        past = np.fromiter(steps_on, np.float64, steps + 1)
        slopes = forcing - past * _GAMMA
        pieces.append(past[1:])
    return np.concatenate(pieces)[::_SUBSTEPS][:size]


def _forcing(delayed: np.ndarray) -> np.ndarray:
    square = delayed * delayed
    fourth = square * square
    return delayed * _BETA / (fourth * fourth * square + 1)


def _ahead(series: np.ndarray, horizon: int) -> dict[str, np.ndarray]:
    """Reads all but the last `horizon` values of a series, and asks for all but the first."""
    column = series.astype(np.float32)[:, None]
    return {"xs": column[:-horizon], "targets": column[horizon:]}
