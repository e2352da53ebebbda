"""Claims about the sine and the series of Mackey and Glass."""

import math

import numpy as np
import pytest
from scipy import integrate

from rnn_jax.tasks import as_batch, forecasting, mackey_glass, sine
from tests.tasks import worked_example


@pytest.mark.parametrize("build", [sine, mackey_glass])
@pytest.mark.parametrize(("seq_len", "horizon"), [(1, 1), (30, 1), (30, 6), (5, 20)])
def test_targets_are_the_inputs_of_later_steps(build, seq_len, horizon):
    source = build(seq_len, horizon, test_size=5).test
    whole = build(seq_len + horizon, horizon, test_size=5).test
    for index in range(5):
        xs = whole[index]["xs"]
        np.testing.assert_array_equal(source[index]["xs"], xs[:seq_len], strict=True)
        np.testing.assert_array_equal(source[index]["targets"], xs[horizon:], strict=True)


def test_the_sine_is_that_of_numpy():
    turns = np.random.default_rng(0).uniform(-0.5, 0.5, 10_000)
    turns[:5] = -0.5, -0.25, 0, 0.25, np.nextafter(0.5, 0)
    np.testing.assert_allclose(forecasting._sine_of_turns(turns), np.sin(2 * np.pi * turns), rtol=0, atol=1e-15)


def test_an_example_is_one_sine_of_a_frequency_within_the_band():
    source = sine(seq_len=200, test_size=200).test
    steps = np.arange(200)
    frequencies = []
    for index in range(200):
        xs = source[index]["xs"][:, 0].astype(np.float64)
        # x_{t+1} + x_{t-1} = 2 cos(2 pi f) x_t, in the sense of least squares, is exact for a sine.
        cosine = np.sum((xs[2:] + xs[:-2]) * xs[1:-1]) / np.sum(2 * xs[1:-1] ** 2)
        frequency = math.acos(cosine) / (2 * math.pi)
        frequencies.append(frequency)
        basis = np.stack([np.sin(2 * np.pi * frequency * steps), np.cos(2 * np.pi * frequency * steps)], axis=1)
        weights, *_ = np.linalg.lstsq(basis, xs)
        np.testing.assert_allclose(basis @ weights, xs, atol=1e-4)
        assert np.hypot(*weights) == pytest.approx(1, abs=1e-4)
    assert 1 / 50 - 1e-6 < min(frequencies) < 0.025
    assert 0.095 < max(frequencies) < 1 / 10 + 1e-6


@pytest.mark.parametrize("horizon", [1, 2, 3, 10])
def test_the_scores_of_zero_and_of_persistence_are_as_derived(horizon):
    task = sine(seq_len=50, horizon=horizon, test_size=4000)
    batch = as_batch(task.test)
    # The score of an example lies in [0, 4], so its standard deviation is 2 at the most.
    error = 4.5 * 2 / np.sqrt(4000)
    assert task.baseline_score == 1 / 2
    assert abs(np.divide(*task.score(lambda xs: np.zeros_like(xs), batch)) - 1 / 2) < error / 4
    derived = 1 - (math.sin(math.pi * horizon / 5) - math.sin(math.pi * horizon / 25)) / (4 * math.pi * horizon / 25)
    assert abs(np.divide(*task.score(lambda xs: xs, batch)) - derived) < error
    assert (derived < 1 / 2) == (horizon < 3)


def classical_runge_kutta(history, time, step):
    """The equation as it stands, and the method as the books have it, one step at a time, in Python numbers.

    At the middle of a step, the past is the cubic through the values and slopes at both ends. (At time 0 there are two
    slopes: 0 before it, and that of the equation behind it.)
    """
    lag = round(17 / step)
    xs, slopes = [history] * (lag + 1), [0.0] * (lag + 1)

    def slope(x, delayed):
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

    for _ in range(round(time / step)):
        x, (d0, d1), (s0, s1) = xs[-1], xs[-lag - 1 :][:2], slopes[-lag - 1 :][:2]
        if len(xs) == 2 * lag + 1:
            s0 = slope(history, history)
        middle = (d0 + d1) / 2 + step / 8 * (s0 - s1)
        k1 = slope(x, d0)
        k2 = slope(x + step / 2 * k1, middle)
        k3 = slope(x + step / 2 * k2, middle)
        k4 = slope(x + step * k3, d1)
        xs.append(x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        slopes.append(slope(xs[-1], xs[-lag - 1]))
    return np.array(xs[lag :: round(1 / step)])


def by_scipy(history, delays):
    """The method of steps: each delay is an ordinary equation, whose past is the dense solution of the one before."""

    def past(t):
        return history

    x, values = history, [history]
    for k in range(delays):

        def slope(t, x, past=past):
            delayed = past(t - 17)
            return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

        solution = integrate.solve_ivp(
            slope, (17 * k, 17 * k + 17), [x], method="DOP853", dense_output=True, rtol=1e-12, atol=1e-13
        )
        dense = solution.sol
        values += dense(np.arange(17 * k + 1, 17 * k + 18))[0].tolist()
        x, past = solution.y[0, -1], lambda t, dense=dense: dense(t)[0]
    return np.array(values)


@pytest.mark.parametrize("history", [0.5, 0.9, 1.4])
def test_the_series_is_that_of_the_method_in_the_books(history):
    ours = forecasting._mackey_glass_series(history, 120)
    np.testing.assert_allclose(ours, classical_runge_kutta(history, 119, step=0.25), rtol=1e-11)


@pytest.mark.parametrize("history", [0.5, 1.4])
def test_the_series_solves_the_equation_of_mackey_and_glass(history):
    """An outside solver, its tolerance at 1e-12, finds the same, to the precision of a float32."""
    ours = forecasting._mackey_glass_series(history, 17 * 10 + 1)
    np.testing.assert_allclose(ours, by_scipy(history, 10), rtol=3e-7)


def test_a_series_begins_where_its_transient_has_ended():
    """Every example is a stretch of the solution from its own history, 300 to 599 units after it."""
    source = mackey_glass(seq_len=10, horizon=2, test_size=200).test
    histories, starts = [], []
    for index in range(200):
        bits = np.random.Philox(key=source.key, counter=np.array((0, 0, 0, index), np.uint64)).random_raw(2)
        histories.append(0.5 + float(bits[0] >> np.uint64(11)) / 2**53)
        starts.append(300 + int(bits[1]) % 300)
        series = forecasting._mackey_glass_series(histories[-1], starts[-1] + 12)
        np.testing.assert_array_equal(source[index]["xs"][:, 0], series[starts[-1] :][:10].astype(np.float32))
    assert 0.5 <= min(histories) < 0.55
    assert 1.45 < max(histories) < 1.5
    assert 300 <= min(starts) < 320
    assert 580 < max(starts) < 600


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_variance_of_mackey_glass_is_its_baseline_score(count):
    task = mackey_glass(test_size=count)
    targets_BT = np.stack([task.test[index]["targets"][:, 0] for index in range(count)]).astype(np.float64)
    squares_B = np.mean((targets_BT - targets_BT.mean()) ** 2, axis=1)
    # 0.00005: the score is given to the third decimal and a half.
    assert abs(squares_B.mean() - task.baseline_score) < 4.5 * squares_B.std() / np.sqrt(count) + 0.00005
    assert abs(targets_BT.mean() - 0.930) < 0.002
    assert targets_BT.min() > 0.416
    assert targets_BT.max() < 1.32
    for horizon, score in ((1, 0.0011), (6, 0.034), (17, 0.15)):
        persistence = np.mean((targets_BT[:, horizon:] - targets_BT[:, :-horizon]) ** 2)
        assert persistence == pytest.approx(score, rel=0.03)


def test_a_small_error_grows_as_chaos_has_it():
    """By a factor e in some 150 units: slower, and there were nothing to forecast; faster, and nobody could."""
    one, other = (forecasting._mackey_glass_series(history, 2500) for history in (0.9, 0.9 + 1e-9))
    error = np.log(np.abs(one - other))
    growth = np.polyfit(np.arange(500, 2500), error[500:], 1)[0]
    assert 1 / 250 < growth < 1 / 100


def test_the_worked_example_is_one():
    (xs,), (targets,) = worked_example.rows(sine, "xs", "targets")
    expected = np.sin(2 * np.pi * np.arange(7) / 12)
    np.testing.assert_allclose([float(word) for word in xs], expected[:4], atol=0.005)
    np.testing.assert_allclose([float(word) for word in targets], expected[3:], atol=0.005)
