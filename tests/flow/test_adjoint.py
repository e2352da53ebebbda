"""Claims about the adjoint vectors, most of them in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, flow
from rnn_jax.cells.lstm import LSTMCarry
from tests import reference

B, T, F, H = 3, 5, 2, 3
HOW = {
    "padded-reset": {
        "lengths": np.array([5, 2, 0]),
        "resets": np.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1]], bool),
    },
}
USER = ("tests.user_cells:IndRNNCell", "tests.user_cells:Zoneout")
HOW["padded-reset-reverse"] = {**HOW["padded-reset"], "reverse": True}


# The eager instrument runs the same, and compiles for longer; cells and inputs of the same shapes share a program.
adjoints = reference.quick_jit(flow.adjoints)


def vectors(result):
    """Returns a_t = direction * 10**log10_scale, as a list of arrays `[*batch, time, H]`, one a carry part."""
    scale = 10.0 ** np.asarray(result.log10_scale, np.float64)[..., None]
    return [np.asarray(part, np.float64) * scale for part in jax.tree.leaves(result.direction)]


def assert_unit(direction, log10_scale):
    """Asserts that directions have norm 1 over the whole carry, and are exactly 0 where the scale is 10**-inf."""
    squares = sum(np.sum(np.square(np.asarray(part, np.float64)), axis=-1) for part in jax.tree.leaves(direction))
    alive = np.asarray(log10_scale) > -np.inf
    np.testing.assert_allclose(squares[alive], 1.0, rtol=1e-5)
    np.testing.assert_array_equal(squares[~alive], 0.0)


# ------------------------------------------------------------------------------------------------- against brute force


def check_brute_force(name, batch_shape, how):
    the_cell, xs = reference.make_cell(name, F, H, seed=1), reference.normal(2, *batch_shape, T, F)
    carry = reference.random_carry(the_cell, batch_shape, seed=3)
    ys_cotangent = reference.normal(6, *batch_shape, T, H)
    carry_cotangent = reference.random_carry(the_cell, batch_shape, seed=7)

    def loss(final, ys):
        pairs = zip(jax.tree.leaves(final), jax.tree.leaves(carry_cotangent), strict=True)
        return jnp.sum(ys * ys_cotangent) + sum(jnp.sum(a * b) for a, b in pairs)

    run = reference.quick_jit(
        lambda xs, carry: flow.adjoints(the_cell, xs, ys_cotangent, carry, carry_cotangent=carry_cotangent, **how)
    )
    result = run(xs, carry)
    assert jax.tree.structure(result.direction) == jax.tree.structure(carry)
    assert result.log10_scale.shape == (*batch_shape, T)
    assert result.log10_scale.dtype == jnp.float32
    assert_unit(result.direction, result.log10_scale)
    expected = reference.adjoints(loss, the_cell, xs, carry, **how)
    for actual, wanted in zip(vectors(result), jax.tree.leaves(expected), strict=True):
        size = np.sqrt(sum(np.sum(np.square(part), axis=-1, keepdims=True) for part in jax.tree.leaves(expected)))
        assert np.all(np.abs(actual - wanted) <= 2e-6 * size)  # each step by its own size; the scale is a float32


@pytest.mark.parametrize(
    "name", ["elman", "flax.nnx:LSTMCell", *(pytest.param(name, marks=pytest.mark.slow) for name in USER)]
)
def test_adjoints_of_every_kind_of_cell_are_brute_force(name):
    check_brute_force(name, (B,), HOW["padded-reset-reverse" if len(name) % 2 else "padded-reset"])


@pytest.mark.parametrize(("name", "how"), [("lstm", "padded-reset-reverse"), ("gru_reset_before", "padded-reset")])
def test_adjoints_of_every_kind_of_run_are_brute_force(name, how):
    check_brute_force(name, (B,), HOW[how])


@pytest.mark.parametrize(("name", "batch_shape"), [("elman", ()), ("gru_reset_before", (2, 2))])
def test_any_number_of_batch_axes_will_do(name, batch_shape):
    check_brute_force(name, batch_shape, {})


def test_the_carry_is_the_cells_own_and_its_cotangent_zero_unless_given():
    the_cell, xs = reference.make_cell("lstm", F, H), reference.normal(2, B, T, F)
    ys_cotangent = reference.normal(6, B, T, H)
    own = the_cell.initialize_carry((B, F))
    given = adjoints(the_cell, xs, ys_cotangent, own, carry_cotangent=jax.tree.map(np.zeros_like, own))
    reference.assert_close(vectors(adjoints(the_cell, xs, ys_cotangent)), vectors(given), 0.0)


def test_a_user_defined_cell_with_a_counter_has_adjoints():
    leaky = rnn_jax.make_cell("tests.reference:LeakyCell(rate=0.25)", F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    ys_cotangent = jnp.zeros((B, T, H)).at[:, -1].set(1.0)
    result = adjoints(leaky, reference.normal(2, B, T, F), ys_cotangent)
    lag = np.arange(T)[::-1]
    expected = np.where(lag > 0, 0.5 * np.log10(H) + lag * np.log10(0.75), -np.inf)
    np.testing.assert_allclose(result.log10_scale, np.tile(expected, (B, 1)), rtol=1e-6)


# --------------------------------------------------------------------------------------------------- beside the profile


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_their_norms_are_the_profile(name):
    the_cell, xs = reference.make_cell(name, F, H, seed=1), reference.normal(2, B, T, F)
    weight = reference.normal(6, B, T, H)
    profile = reference.quick_jit(
        lambda cell, xs: flow.gradient_profile(lambda m, xs: jnp.sum(m(xs) * weight), RNN(cell), xs)
    )(the_cell, xs)
    result = adjoints(the_cell, xs, weight)
    scale = 10.0 ** np.asarray(result.log10_scale, np.float64)
    reference.assert_log10_of(profile.log10_norm["rnn"], np.sqrt(np.mean(np.square(scale), axis=0)), 2e-6)
    if "lstm" in name.lower():
        for part, value in zip(("c", "h"), vectors(result), strict=True):
            reference.assert_log10_of(profile.log10_norm[f"rnn/{part}"], reference.root_mean_square(value), 2e-6)


def test_each_example_has_a_scale_of_its_own():
    """In float32, 1e-30 beside 1e30: the smaller one keeps all of its digits."""
    the_cell, xs = rnn_jax.make_cell("lstm", F, H, rngs=nnx.Rngs(0)), np.random.default_rng(2).normal(size=(1, T, F))
    ys_cotangent = np.zeros((3, T, H), np.float32)
    ys_cotangent[:, -1] = np.array([[1.0], [1e30], [1e-30]])
    result = jax.tree.map(np.asarray, adjoints(the_cell, np.tile(xs, (3, 1, 1)).astype(np.float32), ys_cotangent))
    for part in jax.tree.leaves(result.direction):
        np.testing.assert_allclose(part[1:], np.tile(part[:1], (2, 1, 1)), rtol=2e-5, atol=1e-6)
    offset = np.asarray(result.log10_scale)[:, :-1] - np.asarray(result.log10_scale)[:1, :-1]
    np.testing.assert_allclose(offset, np.tile([[0.0], [30.0], [-30.0]], (1, T - 1)), atol=1e-5)


def test_padding_of_any_kind_changes_nothing():
    the_cell, lengths = reference.make_cell("lstm", F, H), np.array([5, 2, 0])
    padding = (np.arange(T) >= lengths[:, None])[..., None]
    xs, weight = np.asarray(reference.normal(2, B, T, F)), reference.normal(6, B, T, H)
    clean, dirty = (
        adjoints(the_cell, np.where(padding, filling, xs), weight, lengths=lengths) for filling in (0.0, np.nan)
    )
    reference.assert_close(dirty.direction, clean.direction, 0.0)
    np.testing.assert_array_equal(dirty.log10_scale, clean.log10_scale)


def test_it_can_be_jitted_and_vmapped_over_seeds():
    cells = [reference.make_cell("lstm", F, H, seed=seed) for seed in (0, 1)]
    xs, cotangent = reference.normal(2, B, T, F), jnp.ones((B, T, H))

    def run(cell):
        return flow.adjoints(cell, xs, cotangent)

    together = reference.quick_jit(jax.vmap(run))(jax.tree.map(lambda *leaves: np.stack(leaves), *cells))
    for k, cell in enumerate(cells):
        alone = jax.tree.map(lambda a: np.asarray(a)[:, :-1], adjoints(cell, xs, cotangent))
        reference.assert_close(jax.tree.map(lambda a, k=k: np.asarray(a)[k, :, :-1], together), alone, 1e-5)


def test_a_cotangent_of_the_wrong_shape_is_refused():
    the_cell, xs = reference.make_cell("lstm", F, H), reference.normal(2, B, T, F)
    with pytest.raises(ValueError, match=r"ys_cotangent has shape \(3, 3\); allowed: that of ys, \(3, 5, 3\)\."):
        flow.adjoints(the_cell, xs, jnp.zeros((B, H)))


def test_wrong_lengths_are_refused_as_unroll_refuses_them():
    the_cell, xs = reference.make_cell("lstm", F, H), reference.normal(2, B, T, F)
    with pytest.raises(ValueError, match=r"lengths holds 9; allowed: 0 to 5, the number of time steps\."):
        flow.adjoints(the_cell, xs, jnp.zeros((B, T, H)), lengths=np.array([9, 1, 1]))


def test_a_bare_tuple_will_do_for_the_carry_of_an_lstm():
    the_cell, xs = reference.make_cell("lstm", F, H), reference.normal(2, B, T, F)
    carry, ys_cotangent = reference.random_carry(the_cell, (B,), seed=3), jnp.ones((B, T, H))
    expected = adjoints(the_cell, xs, ys_cotangent, carry, carry_cotangent=jax.tree.map(np.zeros_like, carry))
    of_tuple = adjoints(the_cell, xs, ys_cotangent, (carry.c, carry.h))
    for a, b in zip(jax.tree.leaves(of_tuple), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


# -------------------------------------------------------------------------------------------------------- closed forms


@reference.quick_jit
def adjoints_of_final_carry(cell, xs, carry_cotangent):
    """Returns the adjoints of a loss of the final carry alone, jitted once for all parameters of one shape."""
    ys = jax.eval_shape(lambda: rnn_jax.unroll(cell, xs)[1])
    return flow.adjoints(cell, xs, jnp.zeros(ys.shape, ys.dtype), carry_cotangent=carry_cotangent)


@reference.quick_jit
def profile_of_final_carry(cell, xs, weight):
    """Returns the profile of the loss `weight . final carry`."""

    def loss_fn(model, xs):
        final, _ = model(xs, return_carry=True)
        pairs = zip(jax.tree.leaves(final), jax.tree.leaves(weight), strict=True)
        return sum(jnp.sum(part * w) for part, w in pairs)

    return flow.gradient_profile(loss_fn, RNN(cell), xs)


def linear_cell(R, dtype=jnp.float64):
    """Returns h' = h R, an Elman cell without input, bias or activation."""
    size = R.shape[0]
    cell = rnn_jax.make_cell("elman", 1, size, rngs=nnx.Rngs(0), activation="identity", param_dtype=dtype)
    return reference.with_params(cell, kernel=np.zeros((1, size)), recurrent_kernel=R)


@pytest.mark.parametrize("w", [0.9, -0.5, 0.999, 1.0, 1.3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_linear_unit_falls_by_its_weight(w, dtype):
    """h' = w h: log10 |a| has the slope log10 |w| a step, and |a| stays below 1/e from lag ceil(1 / |ln |w||) on."""
    time = 3000
    cell, one = linear_cell(np.array([[w]]), dtype), jnp.ones((1,), dtype)
    xs = jnp.zeros((time, 1), dtype)
    result = adjoints_of_final_carry(cell, xs, one)
    lag = np.arange(time)[::-1]
    w = float(np.asarray(w, dtype))
    np.testing.assert_allclose(result.log10_scale, lag * np.log10(abs(w)), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(result.direction[:, 0], np.sign(w) ** lag, rtol=1e-6)

    profile = profile_of_final_carry(cell, xs, one)
    np.testing.assert_allclose(profile.log10_norm["rnn"], lag * np.log10(abs(w)), rtol=2e-6, atol=1e-6)
    horizon = flow.horizon(profile.log10_norm["rnn"])
    if abs(w) < 1.0:
        assert int(horizon.lag_e) == min(time, np.ceil(1.0 / abs(np.log(abs(w)))))
        assert int(horizon.lag_1000) == min(time, np.ceil(np.log(1000.0) / abs(np.log(abs(w)))))
    elif w == 1.0:
        assert int(horizon.lag_e) == int(horizon.lag_1000) == time


def test_an_orthogonal_matrix_keeps_the_norm_for_10000_steps():
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    cell, xs = linear_cell(Q), jnp.zeros((10_000, 1))
    start = np.array([3.0, 0.0, -4.0, 0.0])
    result = adjoints_of_final_carry(cell, xs, jnp.asarray(start))
    np.testing.assert_allclose(result.log10_scale, np.full(10_000, np.log10(5.0)), rtol=0.0, atol=1e-6)
    for lag in (1, 2, 100):  # a_{T - lag} = Q^lag a_T, as h' = h Q
        expected = np.linalg.matrix_power(Q, lag) @ start / 5.0
        np.testing.assert_allclose(result.direction[-1 - lag], expected, atol=1e-6)


def test_a_diagonal_matrix_falls_entry_by_entry():
    w = np.array([0.9, -0.8, 0.5])
    cell, xs = linear_cell(np.diag(w)), jnp.zeros((200, 1))
    result = adjoints_of_final_carry(cell, xs, jnp.ones(3))
    lag = np.arange(200)[::-1, None]
    np.testing.assert_allclose(vectors(result)[0], w**lag, rtol=2e-5)


def test_an_lstm_with_pinned_gates_forgets_by_its_forget_gate():
    """Kernels of zero leave the gates to their biases: a(c) falls by sigmoid(b_f) a step, for each unit its own."""
    b_f, time = np.array([-2.0, 0.0, 1.0, 5.0]), 400
    cell = rnn_jax.make_cell("lstm", 1, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    bias = np.concatenate([np.full(4, 0.3), b_f, np.full(4, -0.7), np.full(4, 0.2)])
    cell = reference.with_params(cell, kernel=np.zeros((1, 16)), recurrent_kernel=np.zeros((4, 16)), bias=bias)
    slope = np.log10(1.0 / (1.0 + np.exp(-b_f)))
    xs, start = jnp.zeros((4, time, 1)), LSTMCarry(c=jnp.eye(4), h=jnp.zeros((4, 4)))  # unit k in example k
    result = adjoints_of_final_carry(cell, xs, start)
    lag = np.arange(time)[::-1]
    np.testing.assert_allclose(result.log10_scale, slope[:, None] * lag, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result.direction.h, np.zeros((4, time, 4)))

    for unit in range(4):
        profile = profile_of_final_carry(cell, xs[0], jax.tree.map(lambda part, unit=unit: part[unit], start))
        np.testing.assert_allclose(profile.log10_norm["rnn/c"], slope[unit] * lag, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(profile.log10_norm["rnn/h"], np.full(time, -np.inf))


def test_chrono_spreads_the_time_constants_over_the_span_asked_for():
    """A unit keeps 1 - 1/k of its state a step; k, its time constant, lies between 2 and T_max (Tallec, Ollivier)."""
    t_max, size = 50.0, 16
    cell = rnn_jax.make_cell("lstm", 1, size, rngs=nnx.Rngs(0), chrono=t_max, param_dtype=jnp.float64)
    cell = reference.with_params(cell, kernel=np.zeros((1, 4 * size)), recurrent_kernel=np.zeros((size, 4 * size)))
    start = LSTMCarry(c=jnp.eye(size), h=jnp.zeros((size, size)))
    result = adjoints_of_final_carry(cell, jnp.zeros((size, 2, 1)), start)
    kept = 10.0 ** np.asarray(result.log10_scale[:, 0], np.float64)
    constants = 1.0 / (1.0 - kept)
    assert constants.min() > 1.999
    assert constants.max() < t_max + 0.01
    assert constants.max() - constants.min() > 0.8 * t_max
