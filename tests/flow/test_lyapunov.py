"""Claims about the Lyapunov spectrum: published exponents, closed forms, brute force in float64, calls of any kind."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import digamma, polygamma

import rnn_jax
from rnn_jax import RNN, flow
from tests import reference
from tests.flow import spectra


def spectrum_of(*args, **kwargs):
    """Returns `flow.lyapunov_spectrum` by a jitted program: the eager one runs the same, and compiles for longer."""
    arrays = {name: kwargs.pop(name) for name in ("lengths", "resets", "context", "carry") if name in kwargs}
    return jax.tree.map(np.asarray, run(args, arrays, tuple(kwargs.items())))


@functools.partial(reference.quick_jit, static_argnums=2)
def run(args, arrays, how):
    return flow.lyapunov_spectrum(*args, **arrays, **dict(how))


# ------------------------------------------------------------------------------------------------ published exponents


class Map(nnx.RNNCellBase):
    """A map of the plane or of space as a cell: it reads no input."""

    num_feature_axes = in_features = 1
    size = 1

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.full((*input_shape[:-1], self.size), 0.1)

    def __call__(self, carry, x):
        carry = jnp.stack(self.image(*jnp.unstack(carry, axis=-1)), axis=-1)
        return carry, carry[..., :1]


class Logistic(Map):
    def image(self, x):
        return (4.0 * x * (1.0 - x),)


class Henon(Map):
    size = 2

    def image(self, x, y):
        return 1.0 - 1.4 * x * x + y, 0.3 * x


class Lorenz(Map):
    """One step of Runge and Kutta's, of 0.02."""

    size = 3

    def image(self, *state):
        def slope(x, y, z):
            return 10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z

        def moved(slopes, by):
            return [a + by * b for a, b in zip(state, slopes)]

        k1 = slope(*state)
        k2 = slope(*moved(k1, 0.01))
        k3 = slope(*moved(k2, 0.01))
        k4 = slope(*moved(k3, 0.02))
        return tuple(a + 0.02 / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(state, k1, k2, k3, k4))


def starts(batch, size):
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.3, size=(batch, size)))


def mean_and_error(exponents):
    """Returns the mean over many runs, and its standard error."""
    exponents = np.asarray(exponents)
    return exponents.mean(axis=0), exponents.std(axis=0) / np.sqrt(len(exponents))


def test_the_logistic_map_has_ln_2():
    result = spectrum_of(Logistic(), carry=starts(8, 1), steps=10_000, transient=100)
    mean, _ = mean_and_error(result.exponents)
    np.testing.assert_allclose(mean, np.log(2), atol=5e-4)  # textbook
    np.testing.assert_allclose(result.entropy_rate, result.exponents[:, 0])
    np.testing.assert_array_equal(result.dimension, np.ones(8))
    np.testing.assert_allclose(np.mean(result.part_exponents, axis=1), result.exponents, rtol=1e-10)


def test_the_henon_map_has_its_published_exponents():
    """0.4192 and -1.6232, dimension 1.258 (Sprott 2003); the sum is ln 0.3 by hand."""
    result = spectrum_of(Henon(), carry=starts(128, 2), steps=20_000, transient=100, every=4)
    mean, error = mean_and_error(result.exponents)
    assert np.all(error < 4e-4)
    np.testing.assert_array_less(np.abs(mean - [0.4192, -1.6232]), 4 * error)
    np.testing.assert_allclose(np.sum(result.exponents, axis=-1), np.log(0.3), rtol=1e-10)
    np.testing.assert_allclose(np.mean(result.dimension), 1.258, atol=1e-3)
    spread = np.std(np.asarray(result.exponents)[:, 0])
    assert 0.5 * spread < np.mean(result.standard_error[:, 0]) < 2 * spread


def test_lorenz_63_has_its_published_exponents():
    """0.9056, 0, -14.572, dimension 2.062 (Sprott 2003); the sum is -41/3 by hand."""
    # Most of its time it runs.
    quick = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    run = jax.jit(
        lambda carry: flow.lyapunov_spectrum(Lorenz(), carry=carry, steps=20_000, transient=5000, every=20),
        compiler_options=quick,
    )
    result = jax.tree.map(np.asarray, run(starts(512, 3)))
    mean, error = mean_and_error(result.exponents / 0.02)
    assert np.all(error < 5e-4)
    np.testing.assert_array_less(np.abs(mean - [0.9056, 0.0, -14.572]), 4 * error + [0, 0, 2e-3])
    np.testing.assert_allclose(np.mean(result.dimension), 2.062, atol=1e-3)
    np.testing.assert_allclose(np.sum(result.exponents, axis=-1) / 0.02, -41 / 3, rtol=1e-3)


def test_products_of_gaussian_matrices_have_newmans_spectrum():
    """Exponent i of N is (ln 2 + digamma((N - i + 1) / 2)) / 2 for entries of variance 1 (Newman 1986)."""
    N, steps = 8, 4000

    class Product(nnx.RNNCellBase):
        num_feature_axes = 2

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros(input_shape[:-1])

        def __call__(self, carry, x):
            carry = jnp.einsum("...ij,...j->...i", x, carry)
            return carry, carry

    result = spectrum_of(Product(), reference.normal(0, steps, N, N), transient=50)
    expected = (np.log(2) + digamma((N - np.arange(N)) / 2)) / 2
    error = np.sqrt(polygamma(1, (N - np.arange(N)) / 2) / 4 / (steps - 50))  # of the mean of independent logarithms
    np.testing.assert_array_less(np.abs(result.exponents - expected), 4 * error)
    np.testing.assert_array_less(np.abs(np.log2(result.standard_error / error)), 1.0)


# ------------------------------------------------------------------------------------------------------- closed forms


def test_an_lstm_with_pinned_gates_forgets_at_the_rate_of_its_forget_gate():
    b_f = np.array([-2.0, 0.0, 5.0])
    cell = rnn_jax.make_cell("lstm", 1, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    bias = np.concatenate([np.full(3, 0.3), b_f, np.full(3, -0.7), np.full(3, 0.2)])
    cell = reference.with_params(cell, kernel=np.zeros((1, 12)), recurrent_kernel=np.zeros((3, 12)), bias=bias)
    result = spectrum_of(cell, steps=500, transient=100)
    np.testing.assert_allclose(result.exponents[:3], np.sort(-np.log1p(np.exp(-b_f)))[::-1], rtol=1e-6)
    np.testing.assert_array_equal(result.exponents[3:], np.full(3, -np.inf))
    assert (result.dimension, result.entropy_rate) == (0.0, 0.0)


def test_outputs_may_be_fed_back():
    """y = w h + v x, h' = y / 2: with x the last output, y' = (w / 2 + v) y: one exponent, and one lost direction."""
    w, v = 1.2, 0.7

    class Loop(nnx.RNNCellBase):
        num_feature_axes = in_features = 1

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros(input_shape)

        def __call__(self, carry, x):
            y = w * carry + v * x
            return 0.5 * y, y

    exponents = spectrum_of(Loop(), steps=60, feed_back=True, transient=1).exponents
    np.testing.assert_allclose(exponents[0], np.log(w / 2 + v), rtol=1e-6)
    assert exponents[1] == -np.inf


# --------------------------------------------------------------------------------------------------------------- cost


def test_the_memory_of_a_run_does_not_grow_with_its_length():
    cell = jax.eval_shape(lambda: rnn_jax.make_cell("elman", 1, 8, rngs=nnx.Rngs(0)))

    def bytes_of(steps):
        run = reference.quick_jit(lambda cell: flow.lyapunov_spectrum(cell, steps=steps, k=4, every=5))
        return run.lower(cell).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(100_000) == bytes_of(1_000) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize(("k", "every"), [(128, 1), (64, 2)])
def test_the_cost_of_100000_steps_of_64_lstm_units_is_told(k, every, capsys):
    cell = rnn_jax.make_cell("lstm", 1, 64, rngs=nnx.Rngs(0))
    xs = reference.normal(0, 100_000, 1, dtype=jnp.float32)
    run = jax.jit(lambda xs: flow.lyapunov_spectrum(cell, xs, k=k, every=every, transient=500)).lower(xs).compile()
    start = time.perf_counter()
    exponents = jax.block_until_ready(run(xs)).exponents
    with capsys.disabled():
        print(
            f"k={k}, every={every}: {time.perf_counter() - start:.1f} s, {run.memory_analysis().temp_size_in_bytes} B"
        )
    assert np.all(np.diff(exponents) <= 0)
    assert -1 < exponents[0] < 0  # a fresh LSTM forgets


# ------------------------------------------------------------------------------------------------- against brute force


def first_basis(n, k):
    return np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(0), (n, k), jnp.float64)))[0]


@pytest.mark.parametrize("name", spectra.KINDS)
def test_the_spectrum_of_every_kind_of_cell_is_brute_force(name):
    cell, xs, arguments, matrices = spectra.case(name)
    result = spectrum_of(cell, xs, **arguments)
    for b, of_example in enumerate(matrices):
        expected = spectra.rates(of_example, first_basis(*of_example.shape[1:]))
        lost = expected < -5  # 1e-17 in at least one of six steps
        assert name.endswith("IndRNNCell") or not np.any(lost)
        np.testing.assert_allclose(result.exponents[b][~lost], expected[~lost], rtol=1e-6, atol=1e-9)
        assert np.all(result.exponents[b][lost] < -5)


LENGTHS = np.array([6, 4, 1])
RESETS = np.array([[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


def test_lengths_resets_and_direction_are_those_of_sequences_cut_and_turned_by_hand():
    cell, xs = reference.make_cell("lstm", 2, 2, seed=1), reference.normal(2, 3, 6, 2)
    how = {"lengths": LENGTHS, "resets": RESETS, "reverse": True}
    result = spectrum_of(cell, xs, k=2, **how)
    without = spectrum_of(cell, xs, k=2, **(how | {"resets": None}), every=2)
    for b, length in enumerate(LENGTHS):
        pieces = [xs[b, :length]] if b else [xs[b, :4], xs[b, 4:]]  # a reset comes before step 3 on the way back
        total = 0.0
        for piece in pieces:
            (matrices,) = spectra.jacobians_by_hand(cell, piece[None], reverse=True)
            basis = first_basis(4, 2)
            for matrix in matrices:
                basis, r = np.linalg.qr(matrix @ basis)
                total = total + np.log(np.abs(np.diagonal(r)))
        np.testing.assert_allclose(result.exponents[b], np.sort(total / length)[::-1], rtol=1e-6)
    (matrices,) = spectra.jacobians_by_hand(cell, xs[1:2], lengths=LENGTHS[1:2], reverse=True)
    np.testing.assert_allclose(without.exponents[1], spectra.rates(matrices, first_basis(4, 2)), rtol=1e-6)


def test_a_layer_of_a_model_is_measured_from_the_record_of_its_call_under_vmap_over_seeds():
    xs = np.asarray(reference.normal(2, 2, 8, 2))
    models = [[RNN(reference.make_cell("elman", 2, 2, seed=seed), reverse=True)] for seed in (0, 5)]

    def exponents_of(model):
        ((call,),) = flow.layer_calls(lambda model: model[0](xs), model).values()
        return flow.lyapunov_spectrum(call, k=1, transient=2).exponents

    together = reference.quick_jit(jax.vmap(exponents_of))(jax.tree.map(lambda *a: np.stack(a), *models))
    for seed, model in enumerate(models):
        of_turned = spectrum_of(model[0].cell, np.flip(xs, 1), k=1, transient=2).exponents
        np.testing.assert_allclose(together[seed], of_turned, rtol=1e-10)


# ------------------------------------------------------------------------------------------------------- bad requests


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    cell, xs = reference.make_cell("lstm", 2, 3), reference.normal(0, 2, 5, 2)
    with pytest.raises(ValueError, match=r"xs=None and steps=None; allowed: inputs, or how many steps"):
        flow.lyapunov_spectrum(cell)
    with pytest.raises(ValueError, match=r"steps and feed_back are of a run without inputs"):
        flow.lyapunov_spectrum(cell, xs, steps=3)
    with pytest.raises(ValueError, match=r"a run of 5 steps has none left behind transient=4 with every=2"):
        flow.lyapunov_spectrum(cell, xs, transient=4, every=2)
    with pytest.raises(ValueError, match=r"k=7 is out of range; allowed: 1 to 6"):
        flow.lyapunov_spectrum(cell, xs, k=7)
    with pytest.raises(ValueError, match=r"outputs of LSTMCell have shape \(3,\); allowed with feed_back: .* \(2,\)"):
        flow.lyapunov_spectrum(cell, steps=5, feed_back=True)
    with pytest.raises(ValueError, match=r"the input of layer 'rnn' is not finite at time step 2 of example 1"):
        flow.lyapunov_spectrum(cell, xs.at[1, 2].set(jnp.inf))
    # The two that are found behind a run have the shapes in common.
    with pytest.raises(ValueError, match=r"the free run of Henon does not stay finite"):
        flow.lyapunov_spectrum(Henon(), carry=jnp.array([[0.1, 0.1], [10.0, 0.0]]), steps=50, parts=2)
    with pytest.raises(ValueError, match=r"no step is left behind the transient of example 1 of layer 'rnn'"):
        flow.lyapunov_spectrum(Henon(), jnp.zeros((2, 5, 1)), transient=3, lengths=jnp.array([5, 3]))
