"""Claims about signals forward: brute force in float64, closed forms, scikit-learn's ridge regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import Ridge

import rnn_jax
from rnn_jax import RNN, flow
from tests import reference
from tests.flow import spectra


def spread_of(*args, **kwargs):
    """Returns `flow.signal_spread` by a jitted program: the eager one runs the same, and compiles for longer."""
    arrays = {name: kwargs.pop(name) for name in ("lengths", "resets", "context", "carry") if name in kwargs}
    found = reference.quick_jit(lambda args, arrays: flow.signal_spread(*args, **arrays, **kwargs))(args, arrays)
    return jax.tree.map(np.asarray, found)


def linear_cell(R, dtype=jnp.float64):
    """Returns h' = h R + x in the first unit, an Elman cell without bias or activation."""
    size = R.shape[0]
    cell = rnn_jax.make_cell(
        "elman", 1, size, rngs=nnx.Rngs(0), activation="identity", use_bias=False, param_dtype=dtype
    )
    return reference.with_params(cell, kernel=np.eye(1, size), recurrent_kernel=R)


# ------------------------------------------------------------------------------------------------------------ spread


@pytest.mark.parametrize("name", ["lstm", "tests.user_cells:MatrixCell", "tests.user_cells:AttendingCell"])
def test_a_change_of_the_carry_spreads_as_by_the_product_of_jacobians(name):
    cell, xs, arguments, matrices = spectra.case(name)
    result = spread_of(cell, xs, of="carry", at=1, **arguments)
    np.testing.assert_array_equal(result.lags, np.arange(1, 6))
    for b, of_example in enumerate(matrices):
        product, norms = np.eye(of_example.shape[-1]), []
        for matrix in of_example[1:]:
            product = matrix @ product
            norms.append(np.linalg.norm(product) / np.sqrt(len(product)))
        reference.assert_log10_of(result.log10_norm[""][b], norms)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_change_of_an_input_spreads_to_carry_and_outputs_as_by_brute_force(reverse):
    """Through lengths and a reset, in both directions: one derivative of a loop in Python."""
    cell, xs, at = reference.make_cell("lstm", 2, 3, seed=1), reference.normal(2, 2, 6, 2), 1
    lengths, resets = np.array([6, 4]), np.zeros((2, 6), bool)
    resets[0, 2 if reverse else 4] = True
    how = {"lengths": lengths, "resets": resets, "reverse": reverse}
    result = spread_of(cell, xs, at=at, **how)
    assert set(result.log10_norm) == {"", "c", "h", "y"}
    orders = [np.arange(length)[::-1] if reverse else np.arange(length) for length in lengths]

    def carries(x, b):
        state, seen = cell.initialize_carry((2,)), []
        for t in orders[b]:
            state = cell.initialize_carry((2,)) if resets[b, t] else state
            state, _ = cell(state, x if t == orders[b][at] else xs[b, t])
            seen.append(state)
        return jax.tree.map(lambda *parts: jnp.stack(parts), *seen[at:])

    @reference.quick_jit
    def derivatives():
        return [jax.jacrev(carries)(xs[b, order[at]], b) for b, order in enumerate(orders)]

    for b, (length, derivative) in enumerate(zip(lengths, jax.tree.map(np.asarray, derivatives()))):
        inside = slice(0, length - at)
        squares = {name: np.sum(np.square(getattr(derivative, name)), axis=(1, 2)) / 2 for name in "ch"}
        squares |= {"": squares["c"] + squares["h"], "y": squares["h"]}
        for name, square in squares.items():
            reference.assert_log10_of(result.log10_norm[name][b][inside], np.sqrt(square))
        np.testing.assert_array_equal(result.inside[b], at + np.arange(1, 6) <= length)
        if b == 0:
            assert np.isneginf(result.log10_norm[""][b][-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_change_never_underflows(dtype):
    """h' = w h: log10 |w| a step, down to 1e-30000."""
    result = spread_of(linear_cell(np.array([[1e-3]]), dtype), jnp.zeros((10_000, 1), dtype), of="carry")
    np.testing.assert_allclose(result.log10_norm[""], -3.0 * np.arange(1, 10_001), rtol=1e-6)
    np.testing.assert_allclose(result.log10_norm["y"], -3.0 * np.arange(1, 10_001), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ memory


def curve_of(*args, **kwargs):
    return jax.tree.map(np.asarray, reference.quick_jit(lambda args: flow.memory_curve(*args, **kwargs))(args))


def test_a_delay_line_remembers_as_many_inputs_as_it_has_units_and_no_more():
    line = linear_cell(np.eye(6, k=1))
    curve = curve_of(line, reference.normal(0, 2000, 1), lags=range(12))
    np.testing.assert_allclose(curve.fit[:6, 0], np.ones(6), atol=1e-6)
    np.testing.assert_array_less(curve.fit[6:, 0], 0.01)
    np.testing.assert_allclose(curve.capacity, 6.0, atol=0.01)


def test_a_linear_network_remembers_one_input_a_unit_and_the_ridge_is_that_of_scikit_learn():
    """The capacity of N linear units is N, whatever R is (Jaeger 2001), here 0.8 times orthogonal (White et al.)."""
    N, time = 6, 6000
    R = 0.8 * np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
    xs = np.asarray(reference.normal(1, time, 1))
    curve = curve_of(linear_cell(R), jnp.asarray(xs), lags=range(60), washout=100, held_out=0.25, ridge=1e-9)
    np.testing.assert_allclose(curve.capacity, N, rtol=0.03)

    states, h = np.zeros((time, N)), np.zeros(N)
    for t in range(time):
        h = h @ R + np.eye(1, N)[0] * xs[t]
        states[t] = h
    curve = curve_of(linear_cell(R), jnp.asarray(xs), lags=(3, 20), washout=100, held_out=0.25, ridge=1e-3)
    fitted, scored = slice(100, time - round((time - 100) * 0.25)), slice(time - round((time - 100) * 0.25), time)
    centered = states[fitted] - states[fitted].mean(0)
    for lag, fit in zip((3, 20), np.asarray(curve.fit)[:, 0]):
        target = np.roll(xs[:, 0], lag)
        ridge = Ridge(alpha=1e-3 * np.sum(centered**2) / N).fit(states[fitted], target[fitted])
        np.testing.assert_allclose(fit, ridge.score(states[scored], target[scored]), rtol=1e-6)


def test_lengths_resets_and_direction_are_those_of_sequences_cut_and_turned_by_hand():
    """A batch whose sequences differ, run in reverse from the record of a layer's call: rows by hand, least squares."""
    cell, lags, lengths = reference.make_cell("gru", 2, 3, seed=1), (0, 2), np.array([12] * 7 + [9] * 3)
    xs, resets = np.array(reference.normal(2, 10, 12, 2)), np.zeros((10, 12), bool)
    resets[1, 7] = True
    dirty = jnp.asarray(np.where((np.arange(12) < lengths[:, None])[..., None], xs, np.nan))
    layer = RNN(cell, reverse=True)

    def measure(layer):
        ((call,),) = flow.layer_calls(lambda layer: layer(dirty, seq_lengths=lengths, resets=resets), layer).values()
        return flow.memory_curve(call, lags=lags, ridge=0.0)

    step = reference.quick_jit(cell)
    rows, targets = [[], []], [[], []]
    for b, length in enumerate(lengths):
        state, age, seen = jnp.zeros(3), 0, []
        for t in range(length)[::-1]:
            if resets[b, t]:
                state, age = jnp.zeros(3), 0
            state, _ = step(state, jnp.asarray(xs[b, t]))
            seen.append(xs[b, t])
            if age >= 2:
                rows[b >= 8].append(np.asarray(state))
                targets[b >= 8].append(np.concatenate([seen[-1], seen[-3]]))
            age += 1
    model = Ridge(alpha=0.0, solver="svd").fit(rows[0], targets[0])
    error = np.sum((np.array(targets[1]) - model.predict(rows[1])) ** 2, axis=0)
    expected = 1 - error / (np.var(targets[1], axis=0) * len(targets[1]))
    result = reference.quick_jit(measure)(layer)
    np.testing.assert_allclose(np.ravel(result.fit), expected, rtol=1e-6)
    np.testing.assert_allclose(result.capacity, np.maximum(expected.reshape(2, 2), 0).sum(0), rtol=1e-6)


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    cell, xs = reference.make_cell("lstm", 2, 3), reference.normal(0, 2, 5, 2)
    with pytest.raises(ValueError, match=r"at=5 is out of range; allowed: 0 to 4, as the sequence has 5 steps\."):
        flow.signal_spread(cell, xs, at=5)
    with pytest.raises(ValueError, match=r"of='output' is unknown; allowed: input, carry\."):
        flow.signal_spread(cell, xs, of="output")
    with pytest.raises(
        ValueError, match=r"the inputs of layer 'rnn' are int32; allowed with of='input': floating-point"
    ):
        flow.signal_spread(cell, jnp.zeros((2, 5, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"lags holds 5; allowed: 0 to 4, as the sequence has 5 steps\."):
        flow.memory_curve(cell, xs, lags=[5])
    with pytest.raises(ValueError, match=r"no step is left to score a lag of 4"):
        flow.memory_curve(cell, xs[0], lags=[4])
    with pytest.raises(ValueError, match=r"held_out=1\.0, ridge=1e-06, washout=0; allowed: above 0 and below 1"):
        flow.memory_curve(cell, xs, held_out=1.0)
    with pytest.raises(ValueError, match=r"the input of layer 'rnn' is not finite at time step 2 of example 1"):
        flow.memory_curve(cell, xs.at[1, 2].set(jnp.inf))
