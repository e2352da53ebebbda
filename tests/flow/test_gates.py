"""Gate saturation against a loop in NumPy, for gates of any shape and layers however they are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, flow, make_cell
from tests import reference


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def saturation(layer, *args, **kwargs):
    """Returns the saturation in the one call of a layer."""

    @reference.quick_jit
    def run(layer, args, kwargs):
        ((call,),) = flow.layer_calls(lambda layer: layer(*args, **kwargs), layer).values()
        return flow.gate_saturation(call)

    return jax.tree.map(np.asarray, run(layer, args, kwargs))


def is_near(value, low):
    return (value < low + 0.05) | (value > 0.95)


LENGTHS = [None, [7, 3, 1]]


@pytest.mark.parametrize(
    ("lengths", "reverse", "resets"),
    [(None, False, False), (LENGTHS[1], False, True), (LENGTHS[1], True, True)],
)
def test_statistics_are_those_of_a_loop_over_true_steps(lengths, reverse, resets):
    cell = make_cell("lstm", 2, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    xs = 6 * np.random.default_rng(0).normal(size=(3, 7, 2))
    reset_BT = np.zeros((3, 7), bool)
    reset_BT[:, [2, 4]] = resets
    layer = RNN(cell, reverse=reverse)
    how = {
        "seq_lengths": None if lengths is None else jnp.asarray(lengths, jnp.int32),
        "resets": jnp.asarray(reset_BT) if resets else None,
    }

    @reference.quick_jit
    def measure(layer, xs):
        ((call,),) = flow.layer_calls(lambda layer: layer(xs, **how), layer).values()
        return flow.gate_statistics(call), flow.gate_saturation(call)

    found, shares = measure(layer, jnp.asarray(xs))
    kernel, recurrent, bias = (np.asarray(array) for array in cell.weights())
    values = {gate: [[] for _ in range(7)] for gate in ("input", "forget", "candidate", "output")}
    for b, length in enumerate(lengths or [7] * 3):
        c = h = np.zeros(5)
        for lag, t in enumerate(range(length)[::-1] if reverse else range(length)):
            if reset_BT[b, t]:
                c = h = np.zeros(5)
            z = np.split(xs[b, t] @ kernel + h @ recurrent + bias, 4)
            i, f, o, g = sigmoid(z[0]), sigmoid(z[1]), sigmoid(z[3]), np.tanh(z[2])
            c = f * c + i * g
            h = o * np.tanh(c)
            for gate, value in (("input", i), ("forget", f), ("candidate", g), ("output", o)):
                values[gate][lag].append(value)
    assert set(found) == set(shares) == set(values)
    for gate, of_steps in values.items():
        least, result = -1 if gate == "candidate" else 0, found[gate]
        all_values = np.concatenate([np.array(rows) for rows in of_steps])
        share = np.mean(is_near(all_values, least))
        assert 0 < share < 1
        np.testing.assert_allclose(shares[gate], share, rtol=1e-6)
        np.testing.assert_array_equal(result.sequences, [len(rows) for rows in of_steps])
        for t, rows in enumerate(np.array(rows) for rows in of_steps):
            wanted = (np.mean(rows), np.std(rows), np.mean(rows < least + 0.05), np.mean(rows > 0.95))
            np.testing.assert_allclose(
                [result.mean[t], result.std[t], result.low[t], result.high[t]], wanted, atol=1e-12
            )
        np.testing.assert_allclose(result.unit_mean, np.mean(all_values, axis=0), rtol=1e-10)
        if gate == "forget":
            np.testing.assert_allclose(result.time_constant, -1 / np.mean(np.log(all_values), axis=0), rtol=1e-10)
        else:
            assert result.time_constant is None


def test_the_update_gate_of_a_gru_with_chrono_biases_implies_their_time_constants():
    """Kernels of zero leave the gate to its bias ln(k - 1): 1 - 1/k of the state is kept (Tallec, Ollivier 2018)."""
    cell = reference.make_cell("gru", 1, 3)
    kept = np.array([0.5, 0.9, 1.0])
    bias = np.zeros(12)
    bias[3:6] = [0.0, np.log(9.0), 800.0]
    cell = reference.with_params(cell, kernel=np.zeros((1, 9)), recurrent_kernel=np.zeros((3, 9)), bias=bias)
    statistics = reference.quick_jit(flow.gate_statistics)(cell, jnp.zeros((2, 5, 1)))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(statistics["update"].time_constant, np.abs(1 / np.log(kept)), rtol=1e-10)
    assert statistics["reset"].time_constant is None


class OddGates(rnn_jax.Cell):
    """A leaky integrator with a scalar gate for a sequence, and a gate of two heads of two."""

    gate_ranges = {"scalar": (0.0, 1.0), "heads": (0.0, 1.0)}

    def __init__(self):
        super().__init__(4, 4, dtype=None, param_dtype=jnp.float64)

    def gates(self, carry, x):
        scalar = 1 / (1 + jnp.exp(-jnp.sum(x, axis=-1)))
        return {"scalar": scalar, "heads": (1 / (1 + jnp.exp(-2 * x))).reshape(*x.shape[:-1], 2, 2)}

    def __call__(self, carry, x):
        gates = self.gates(carry, x)
        h = gates["scalar"][..., None] * carry + gates["heads"].reshape(x.shape)
        return h, h


@pytest.mark.parametrize("lengths", LENGTHS)
def test_gates_may_have_any_shape(lengths):
    xs = 2 * np.asarray(reference.normal(0, 3, 7, 4))
    found = saturation(RNN(OddGates()), xs, seq_lengths=None if lengths is None else np.asarray(lengths))
    true_steps = np.concatenate([row[:length] for row, length in zip(xs, lengths or [7] * 3)])
    np.testing.assert_allclose(found["scalar"], np.mean(is_near(sigmoid(true_steps.sum(axis=-1)), 0)), rtol=1e-6)
    np.testing.assert_allclose(found["heads"], np.mean(is_near(sigmoid(2 * true_steps), 0)), rtol=1e-6)


def test_a_cell_without_ranges_has_no_saturation():
    layer = RNN(jax.eval_shape(lambda: nnx.GRUCell(2, 3, rngs=nnx.Rngs(0))))
    xs = jnp.zeros((1, 2, 2), jnp.float32)

    def measure(layer):
        ((call,),) = flow.layer_calls(lambda layer: layer(xs), layer).values()
        return flow.gate_saturation(call)

    assert jax.eval_shape(measure, layer) == {}


def test_the_lags_of_a_layer_that_runs_in_reverse_count_from_its_own_end():
    xs = np.asarray(reference.normal(0, 3, 12, 2))
    ahead = RNN(reference.make_cell("lstm", 2, 3), return_carry=True)
    back = RNN(ahead.cell, return_carry=True, reverse=True)

    def loss(model, xs):
        return jnp.sum(model(xs)[0].h ** 2)

    run = reference.quick_jit(lambda model, xs: flow.gradient_profile(loss, model, xs))
    of_flipped, profile = run(ahead, np.flip(xs, axis=1)), run(back, xs)
    assert profile.reversed_parts == {"rnn", "rnn/c", "rnn/h"}
    assert not of_flipped.reversed_parts
    for part, log10_norm in profile.in_run_order().items():
        np.testing.assert_allclose(log10_norm, of_flipped.log10_norm[part], atol=1e-5)
    np.testing.assert_allclose(profile.log10_norm["rnn"], of_flipped.log10_norm["rnn"][::-1], atol=1e-5)
