"""Claims about the Jacobian spectrum: brute force in float64, numbers of 60 digits, closed forms, calls of any kind."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import rnn_jax
from rnn_jax import RNN, Bidirectional, flow
from rnn_jax.flow import graded
from rnn_jax.models import EncoderDecoder
from rnn_jax.models.decoding import END, shifted
from tests import reference
from tests.flow import spectra


def spectrum_of(*args, **kwargs):
    """Returns `flow.jacobian_spectrum` by a jitted program: the eager one runs the same, and compiles for longer."""
    how = {name: kwargs.pop(name) for name in ("k", "lags", "start", "reverse") if name in kwargs}
    return reference.quick_jit(lambda args, kwargs: flow.jacobian_spectrum(*args, **how, **kwargs))(args, kwargs)


def assert_values(actual, expected, smallest=-13.0):
    """Asserts that log10 of singular values agree to 1e-6 down to where brute force is right, and are below it there.

    Args:
      actual, expected: `[lags, n]`.
      smallest: log10 of a share of the largest.
    """
    known = expected >= expected[:, :1] + smallest
    np.testing.assert_allclose(actual[known], expected[known], atol=1e-6 / np.log(10))
    assert np.all((actual < expected[:, :1] + smallest + 1)[~known])


@pytest.mark.parametrize("name", spectra.KINDS)
def test_the_spectrum_of_every_kind_of_cell_is_brute_force(name):
    cell, xs, arguments, matrices = spectra.case(name)
    result = spectrum_of(cell, xs, **arguments)
    np.testing.assert_array_equal(result.lags, np.arange(1, 7))
    assert np.all(result.inside)
    for b, of_example in enumerate(matrices):
        assert_values(np.asarray(result.log10_values[b]), spectra.log10_values(of_example))
        radius = [np.max(np.abs(np.linalg.eigvals(matrix))) for matrix in of_example]
        np.testing.assert_allclose(result.spectral_radius[b], radius, rtol=1e-6)
        distance = [np.sqrt(np.mean((np.linalg.svd(m, compute_uv=False) ** 2 - 1) ** 2)) for m in of_example]
        np.testing.assert_allclose(result.from_orthogonal[b], distance, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------- closed forms


def linear_cell(R, dtype=jnp.float64):
    """Returns h' = h R, an Elman cell without input, bias or activation."""
    size = R.shape[0]
    cell = rnn_jax.make_cell("elman", 1, size, rngs=nnx.Rngs(0), activation="identity", param_dtype=dtype)
    return reference.with_params(cell, kernel=np.zeros((1, size)), recurrent_kernel=R)


@reference.quick_jit
def of_linear_cell(cell, xs):
    """The spectrum of a linear cell at a few lags, jitted once for all matrices of one size."""
    time = xs.shape[-2]
    return flow.jacobian_spectrum(cell, xs, lags=(1, 7, 100, time))


@pytest.mark.parametrize("w", [1e-3, 0.5, 1.0, 10.0])
def test_a_linear_unit_falls_by_its_weight_to_1e_30000(w):
    """h' = w h: log10 |w| a step, by hand, to a relative error of 1e-6."""
    result = of_linear_cell(linear_cell(np.array([[w]])), jnp.zeros((10_000, 1)))
    np.testing.assert_allclose(result.log10_values[:, 0], np.log10(w) * np.asarray(result.lags), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.spectral_radius, w, rtol=1e-12)


def test_a_diagonal_keeps_its_entries_apart_in_any_order():
    w = np.array([1e-3, 0.9, 10.0, -0.5, 0.0])
    result = of_linear_cell(linear_cell(np.diag(w)), jnp.zeros((10_000, 1)))
    with np.errstate(divide="ignore"):
        expected = np.sort(np.log10(np.abs(w)))[::-1] * np.asarray(result.lags)[:, None]
    np.testing.assert_allclose(result.log10_values, expected, rtol=1e-6)


def test_an_orthogonal_matrix_neither_stretches_nor_shrinks_in_10000_steps():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    result = of_linear_cell(linear_cell(Q), jnp.zeros((10_000, 1)))
    np.testing.assert_allclose(result.log10_values, np.zeros((4, 5)), atol=1e-5)
    np.testing.assert_allclose(result.from_orthogonal, np.zeros(4), atol=1e-12)


def test_a_jordan_block_lags_behind_by_the_log_of_the_lag():
    """Of [[w, 1], [0, w]]^k = w^(k - 1) [[w, k], [0, w]] the determinant is w^2k, and the sum of squares is known."""
    w = 0.9
    matrix = np.diag([w] * 5) + np.diag([1.0, 0, 0, 0], 1)
    result = of_linear_cell(linear_cell(matrix.T), jnp.zeros((10_000, 1)))
    for lag, values in zip(np.asarray(result.lags), np.asarray(result.log10_values)):
        squares = 2 * w**2 + lag**2
        largest = np.sqrt((squares + np.sqrt(squares**2 - 4 * w**4)) / 2)
        outer = (lag - 1) * np.log10(w) + np.array([np.log10(largest), 2 * np.log10(w) - np.log10(largest)])
        np.testing.assert_allclose(values[[0, -1]], outer, rtol=1e-6)
        np.testing.assert_allclose(values[1:-1], lag * np.log10(w), rtol=1e-6)


def test_an_lstm_with_pinned_gates_forgets_by_its_forget_gate():
    """Kernels of zero leave the gates to their biases: c falls by sigmoid(b_f) a step; nothing of h stays."""
    b_f = np.array([-2.0, 0.0, 1.0, 5.0])
    cell = rnn_jax.make_cell("lstm", 1, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    bias = np.concatenate([np.full(4, 0.3), b_f, np.full(4, -0.7), np.full(4, 0.2)])
    cell = reference.with_params(cell, kernel=np.zeros((1, 16)), recurrent_kernel=np.zeros((4, 16)), bias=bias)
    values = np.asarray(spectrum_of(cell, jnp.zeros((2000, 1)), lags=(1000, 2000)).log10_values)
    np.testing.assert_array_equal(values[:, 4:], -np.inf)
    slope = np.sort(np.log10(1 / (1 + np.exp(-b_f))))[::-1]
    np.testing.assert_allclose(values[1, :4] - values[0, :4], 1000 * slope, rtol=1e-6)


def test_a_complex_unit_counts_twice_and_shrinks_by_its_modulus():
    class Rotating(nnx.RNNCellBase):
        num_feature_axes = 1

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros((*input_shape[:-1], 2), jnp.complex128)

        def __call__(self, carry, x):
            carry = carry * jnp.array([0.5 * np.exp(1j), 0.9 * np.exp(2j)]).reshape((1,) * (carry.ndim - 1) + (2,))
            return carry, jnp.real(carry)

    values = spectrum_of(Rotating(), jnp.zeros((1, 50, 1)), lags=(50,)).log10_values
    np.testing.assert_allclose(values[0, 0], 50 * np.log10([0.9, 0.9, 0.5, 0.5]), rtol=1e-6)


def compound(matrices, order):
    """Returns matrices of all minors of an order: of a product it is the product, and its largest singular value is
    the product of the largest of the matrix."""
    picks = np.array(list(itertools.combinations(range(matrices.shape[-1]), order)))
    return np.linalg.det(matrices[:, picks[:, None, :, None], picks[None, :, None, :]])


def log10_largest(matrices):
    """Returns log10 of the largest singular value of a product of any size."""
    product, log10_scale = np.eye(len(matrices[0])), 0.0
    for matrix in matrices:
        product = matrix @ product
        size = np.max(np.abs(product))
        product, log10_scale = product / size, log10_scale + np.log10(size)
    return log10_scale + np.log10(np.linalg.norm(product, 2))


@jax.jit
def log10_values_of_product(matrices):
    product, _ = jax.lax.scan(
        lambda product, matrix: (graded.times(product, matrix @ product.q), None),
        graded.identity((), 4, jnp.float64),
        matrices,
    )
    return graded.singular_values(product)[1] * np.log10(2.0)


@pytest.mark.parametrize("kind", ["gaussian", "turned over", "triangular"])
def test_the_spectrum_is_right_far_beyond_a_condition_of_1e16(kind):
    """Against the products of minors, each of which is right for its largest singular value."""
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(600, 4, 4))
    if kind == "turned over":  # what grew first shrinks later: the order of the directions changes
        matrices = np.eye(4) + 0.1 * matrices + np.diag([1.0, 0.0, 0.0, -0.5])
        matrices[300:] = matrices[300:, ::-1, ::-1]
    elif kind == "triangular":
        matrices = np.tril(matrices) + np.diag([0.1, 1.0, 3.0, 5.0])

    expected = np.diff([0.0, *(log10_largest(compound(matrices, order)) for order in range(1, 5))])
    assert kind == "turned over" or expected[0] - expected[-1] > 300
    np.testing.assert_allclose(log10_values_of_product(jnp.asarray(matrices)), expected, atol=1e-8)


def test_the_decomposition_by_panels_is_that_of_householder():
    matrix = np.random.default_rng(0).normal(size=(2, 80, 70))
    matrix[0, :, 40] = 0.0
    q, r = map(np.asarray, reference.quick_jit(graded.qr)(matrix))
    reference.assert_close(q @ r, matrix, 1e-13)
    reference.assert_close(np.swapaxes(q, -1, -2) @ q, np.tile(np.eye(70), (2, 1, 1)), 1e-13)
    np.testing.assert_array_equal(np.tril(r, -1), np.zeros_like(r))


# ------------------------------------------------------------------------------------------------- calls of any kind

LENGTHS = np.array([6, 4, 1])
RESETS = np.array([[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_resets_and_direction_are_those_of_sequences_cut_and_turned_by_hand(reverse):
    cell, xs = reference.make_cell("lstm", 2, 2, seed=1), reference.normal(2, 3, 6, 2)
    how = {"lengths": LENGTHS, "resets": RESETS, "reverse": reverse}
    expected = spectra.jacobians_by_hand(cell, xs, **how)
    padded = np.where((np.arange(6) < LENGTHS[:, None])[..., None], xs, np.nan)
    result = jax.tree.map(np.asarray, spectrum_of(cell, padded, **how))
    for b, matrices in enumerate(expected):
        values = np.asarray(result.log10_values[b])
        np.testing.assert_array_equal(result.inside[b], np.arange(6) < LENGTHS[b])
        alive = np.any(np.cumprod(matrices.any(axis=(1, 2)))[:, None], axis=1)
        assert_values(values[: LENGTHS[b]][alive], spectra.log10_values(matrices)[alive])
        np.testing.assert_array_equal(values[: LENGTHS[b]][~alive], -np.inf)
        held = np.tile(values[LENGTHS[b] - 1], (6 - LENGTHS[b], 1))
        np.testing.assert_allclose(values[LENGTHS[b] :], held, rtol=1e-12)
    assert np.any(np.isneginf(np.asarray(result.log10_values[0])))


def test_both_directions_of_a_model_are_two_cells_on_the_sequence_and_on_the_turned_one():
    """From the record of the calls, jitted with the model, vmapped over two seeds."""
    xs = np.asarray(reference.normal(2, 2, 5, 2))

    def model_of(seed):
        make = [reference.make_cell("elman", 2, 2, seed=seed + k) for k in range(2)]
        return Bidirectional(RNN(make[0]), RNN(make[1]))

    def spectra_of(model):
        calls = flow.layer_calls(lambda model: model(xs), model)
        return {name: flow.jacobian_spectrum(call, start=1, k=1) for name, (call,) in calls.items()}

    models = [model_of(seed) for seed in (0, 5)]
    together = reference.quick_jit(jax.vmap(spectra_of))(jax.tree.map(lambda *leaves: np.stack(leaves), *models))
    together = jax.tree.map(np.asarray, together)
    assert set(together) == {"forward_rnn", "backward_rnn"}
    for seed, model in enumerate(models):
        for name, inputs in (("forward_rnn", xs), ("backward_rnn", np.flip(xs, 1))):
            matrices = spectra.jacobians_by_hand(getattr(model, name).cell, inputs)
            for b in range(2):
                expected = spectra.log10_values(matrices[b][1:])[:, :1]
                np.testing.assert_allclose(together[name].log10_values[seed, b], expected, atol=1e-6)


def test_a_decoder_starts_from_its_encoder_and_attends_to_its_source():
    """From the record of its call: products of the Jacobians of `next`, the step that decoding takes."""
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    model = reference.drawn(lambda: EncoderDecoder("gru", 5, 6, 2, 2, rngs=nnx.Rngs(0), **dtypes), seed=0, scale=0.7)
    inputs, lengths = np.array([[1, 2, 3, 4], [4, 3, 2, 0]], np.int32), np.array([4, 3], np.int32)
    answer = np.array([[2, 3, 4, END], [5, END, -1, -1]], np.int32)

    @reference.quick_jit
    def measure(model):
        calls = flow.layer_calls(lambda model: model(inputs, lengths, answer=answer), model)
        return flow.jacobian_spectrum(calls["decoder"][0]), model.start(inputs, lengths), shifted(jnp.asarray(answer))

    @reference.quick_jit
    def one_step(model, carry, token, context):
        vector, back = ravel_pytree(carry)
        new = model.next(carry, token, context)[0]
        return jax.jacrev(lambda v: ravel_pytree(model.next(back(v), token, context)[0])[0])(vector), new

    result, first, tokens = jax.tree.map(np.asarray, measure(model))
    for b, count in enumerate([4, 2]):
        carry, context = jax.tree.map(lambda part, b=b: part[b : b + 1], first)
        matrices = []
        for t in range(count):
            matrix, carry = one_step(model, carry, tokens[b : b + 1, t], context)
            matrices.append(np.asarray(matrix))
        assert_values(result.log10_values[b, :count], spectra.log10_values(np.stack(matrices)))
        np.testing.assert_array_equal(result.inside[b], np.arange(4) < count)


# ------------------------------------------------------------------------------------------------------- bad requests


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    cell, xs = reference.make_cell("lstm", 2, 3), np.array(reference.normal(0, 2, 5, 2))
    with pytest.raises(ValueError, match=r"lags holds 6; allowed: 1 to 5, the steps of the sequence\."):
        flow.jacobian_spectrum(cell, xs, lags=(1, 6))
    with pytest.raises(ValueError, match=r"lags holds 4; allowed: 1 to 3, the steps of the sequence behind start=2\."):
        flow.jacobian_spectrum(cell, xs, lags=(4,), start=2)
    with pytest.raises(ValueError, match=r"start=5 is out of range; allowed: 0 to 4"):
        flow.jacobian_spectrum(cell, xs, start=5)
    with pytest.raises(ValueError, match=r"k=7 is out of range; allowed: 1 to 6"):
        flow.jacobian_spectrum(cell, xs, k=7)
    with pytest.raises(ValueError, match=r"xs=None, and the cell reads inputs"):
        flow.jacobian_spectrum(cell)
    xs[1, 3, 0] = np.nan
    ((call,),) = flow.layer_calls(lambda model: model[0](jnp.asarray(xs)), [RNN(cell)]).values()
    with pytest.raises(ValueError, match=r"the input of layer '0' is not finite at time step 3 of example 1"):
        flow.jacobian_spectrum(call)
    with pytest.raises(ValueError, match=r"lengths is given beside the record of a call"):
        flow.jacobian_spectrum(call, lengths=LENGTHS)


def test_a_carry_that_leaves_the_numbers_is_refused_with_the_step():
    class Exploding(nnx.RNNCellBase):
        num_feature_axes = 1

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.ones((*input_shape[:-1], 1))

        def __call__(self, carry, x):
            carry = carry + x * jnp.exp(carry)
            return carry, carry

    xs = jnp.zeros((2, 6, 1)).at[1, 2].set(1e3).at[1, 3].set(1.0)
    with pytest.raises(ValueError, match=r"the carry of layer 'rnn' is not finite behind time step 3 of example 1;"):
        flow.jacobian_spectrum(Exploding(), xs, lags=(6,))
    assert np.all(
        np.isnan(reference.quick_jit(lambda xs: flow.jacobian_spectrum(Exploding(), xs, lags=(6,)))(xs).log10_values[1])
    )
