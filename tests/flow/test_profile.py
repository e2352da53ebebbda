"""Claims about the gradient profile.

The brute force: a zero is added to every carry on its way into the next step, in a loop in plain Python
(`reference.python_unroll`), and one `jax.grad` with respect to these zeros gives every adjoint.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, Bidirectional, Stack, flow
from rnn_jax.models import SequenceClassifier
from tests import reference

B, T, F, H = 3, 5, 2, 3
LENGTHS = np.array([5, 2, 0])
RESETS = np.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1]], bool)
PATHS = ["lstm", "gru_reset_before"]  # the fast path, the plain scan


def cell(name="lstm", in_features=F, seed=1, **kwargs):
    return reference.make_cell(name, in_features, H, seed=seed, **kwargs)


def inputs(seed=2):
    return reference.normal(seed, B, T, F)


def last_output_loss(model, xs):
    return jnp.sum(jnp.square(model(xs)[..., -1, :]))


def profile_of(loss_fn, model, *args, **kwargs):
    """Returns the profile by a jitted program: the eager one runs the same, and compiles for longer."""
    return reference.quick_jit(lambda model, args: flow.gradient_profile(loss_fn, model, *args, **kwargs))(model, args)


def of_weighted_outputs(model, xs, weights, resets):
    """Returns the profile of the loss `weights . outputs`, weights `[B, T, 1]`."""
    return flow.gradient_profile(lambda m, xs: jnp.sum(weights * m(xs, resets=resets)), model, xs)


run_weighted = reference.quick_jit(of_weighted_outputs)


def weighted(name, weight_of_step, resets=None, weight_of_example=(1, 1, 1)):
    """Returns `of_weighted_outputs` of a cell in float32, compiled once for each."""
    weights = np.outer(weight_of_example, weight_of_step).astype(np.float32)[..., None]
    resets = np.zeros((B, T), bool) if resets is None else resets
    return run_weighted(RNN(cell(name, dtype=jnp.float32)), reference.normal(2, B, T, F, dtype=jnp.float32),
                        weights, resets)  # fmt: skip


def compare(profile, name, adjoint, tolerance=1e-6):
    """Holds a profile of one layer, the whole carry and its parts, to brute-force adjoints `[*batch, time, ...]`."""
    batch_axes = jax.tree.leaves(adjoint)[0].ndim - 2
    norms = {name: reference.root_mean_square(adjoint, batch_axes)}
    if isinstance(adjoint, tuple):  # (c, h)
        for part, value in zip(("c", "h"), adjoint, strict=True):
            norms[f"{name}/{part}"] = reference.root_mean_square(value, batch_axes)
    mine = {key: value for key, value in profile.log10_norm.items() if key == name or key.startswith(name + "/")}
    assert set(mine) == set(norms)
    for key, norm in norms.items():
        assert mine[key].dtype == jnp.float32
        reference.assert_log10_of(mine[key], norm, tolerance)


# ------------------------------------------------------------------------------------------------- against brute force

LOSSES = {"last": (1.0, 0.0, 0.0), "all": (0.0, 1.0, 0.0), "carry": (0.0, 0.0, 1.0)}
HOW = {
    "padded-reset": {"lengths": LENGTHS, "resets": RESETS},
    "padded-reset-reverse": {"lengths": LENGTHS, "resets": RESETS, "reverse": True},
}


def loss_of(final, ys, weights):
    """A loss of the last output, of all outputs, or of the final carry, by its weights."""
    last, everything, carry = weights
    of_carry = sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(final))
    return last * jnp.sum(jnp.square(ys[:, -1])) + everything * jnp.sum(jnp.cos(ys)) + carry * of_carry


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("lstm", "padded-reset-reverse"),
        ("gru_reset_before", "padded-reset"),
    ],
)
def test_profile_is_brute_force(name, how):
    """For a loss of the last output, of all outputs, and of the final carry.

    On every cell: test_every_cell.py; of one loss on every kind of cell: test_every_kind.py.
    """
    the_cell, xs = cell(name), inputs()
    arguments = dict(HOW[how])
    lengths, resets, reverse = arguments.get("lengths"), arguments.get("resets"), arguments.get("reverse", False)

    def loss_fn(model, xs, weights):
        final, ys = model(xs, seq_lengths=lengths, resets=resets, reverse=reverse, keep_order=True, return_carry=True)
        return loss_of(final, ys, weights)

    run = reference.quick_jit(lambda weights: flow.gradient_profile(loss_fn, RNN(the_cell), xs, weights))
    for weights in LOSSES.values():
        adjoint = reference.adjoints(lambda final, ys, w=weights: loss_of(final, ys, w), the_cell, xs, **arguments)
        profile = run(jnp.asarray(weights))
        compare(profile, "rnn", adjoint)
        value = loss_of(*reference.python_unroll(the_cell, xs, **arguments), weights)
        np.testing.assert_allclose(profile.loss, value, rtol=1e-12)


@pytest.mark.parametrize(("name", "batch_shape"), [("elman", (2, 2)), ("gru_reset_before", ())])
def test_the_mean_is_over_all_batch_axes(name, batch_shape):
    the_cell, xs = cell(name), reference.normal(2, *batch_shape, T, F)
    profile = profile_of(last_output_loss, RNN(the_cell), xs)
    adjoint = reference.adjoints(lambda final, ys: jnp.sum(jnp.square(ys[..., -1, :])), the_cell, xs)
    compare(profile, "rnn", adjoint)


def test_time_major_changes_nothing():
    @reference.quick_jit
    def run(the_cell, xs):
        def last(model, xs):
            return jnp.sum(jnp.square(model(xs)[-1]))

        turned = flow.gradient_profile(last, RNN(the_cell, time_major=True), jnp.swapaxes(xs, 0, 1))
        return turned, flow.gradient_profile(last_output_loss, RNN(the_cell), xs)

    profile, expected = run(cell("elman"), inputs())
    np.testing.assert_allclose(profile.log10_norm["rnn"], expected.log10_norm["rnn"], rtol=1e-6)


def test_padding_of_any_kind_changes_nothing():
    clean = np.where((np.arange(T) < LENGTHS[:, None])[..., None], np.asarray(inputs()), 0.0)
    dirty = np.where((np.arange(T) < LENGTHS[:, None])[..., None], np.asarray(inputs()), np.nan)

    def loss_fn(model, xs):
        return jnp.sum(jnp.square(model(xs, seq_lengths=LENGTHS)))

    for name in PATHS:
        run = reference.quick_jit(functools.partial(flow.gradient_profile, loss_fn, RNN(cell(name))))
        expected, actual = run(jnp.asarray(clean)), run(jnp.asarray(dirty))
        reference.assert_close(actual.grads, expected.grads, 0.0)
        np.testing.assert_array_equal(actual.log10_norm["rnn"], expected.log10_norm["rnn"])


@pytest.mark.parametrize("name", PATHS)
def test_an_output_sees_no_carry_from_its_own_step_on(name):
    """y_t comes out of step t: what it tells the loss is not counted in a_t, nor in any later one: exact zeros."""
    norm = np.asarray(weighted(name, [0, 0, 1, 0, 0]).log10_norm["rnn"])
    assert np.all(np.isfinite(norm[:2]))
    np.testing.assert_array_equal(norm[2:], np.full(3, -np.inf))


def test_a_reset_reads_minus_infinity_before_it():
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    norm = np.asarray(weighted("lstm", [0, 0, 0, 0, 1], resets).log10_norm["rnn"])
    np.testing.assert_array_equal(np.isfinite(norm), [False, False, False, True, False])


def test_a_loss_without_the_layers_outputs_reads_minus_infinity_everywhere():
    profile = weighted("lstm", np.zeros(T))
    for norm in profile.log10_norm.values():
        np.testing.assert_array_equal(norm, np.full(T, -np.inf))
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(profile.grads))


# ------------------------------------------------------------------------------------------------------- whole models


def test_stack_of_layers_by_brute_force():
    lower, upper, xs = cell("elman"), cell("lstm", H, seed=5), inputs()

    def loss_fn(model, xs):
        return jnp.sum(jnp.square(model(xs, seq_lengths=LENGTHS)))

    profile = profile_of(loss_fn, Stack([RNN(lower), RNN(upper)]), xs)
    assert set(profile.log10_norm) == {"layers/0", "layers/1", "layers/1/c", "layers/1/h"}

    def by_loop(eps):
        _, between = reference.python_unroll(lower, xs, lengths=LENGTHS, eps=eps[0])
        _, ys = reference.python_unroll(upper, between, lengths=LENGTHS, eps=eps[1])
        return jnp.sum(jnp.square(ys))

    adjoint = jax.grad(by_loop)((reference.zero_eps(lower, (B,), T), reference.zero_eps(upper, (B,), T)))
    compare(profile, "layers/0", adjoint[0])
    compare(profile, "layers/1", adjoint[1])


def test_both_directions_by_brute_force():
    forward, backward, xs = cell("elman"), cell("elman", seed=5), inputs()

    def loss_fn(model, xs):
        return jnp.sum(jnp.square(model(xs, seq_lengths=LENGTHS)[:, 1]))

    profile = profile_of(loss_fn, Bidirectional(RNN(forward), RNN(backward)), xs)
    assert set(profile.log10_norm) == {"forward_rnn", "backward_rnn"}

    def by_loop(eps):
        _, one = reference.python_unroll(forward, xs, lengths=LENGTHS, eps=eps[0])
        _, other = reference.python_unroll(backward, xs, lengths=LENGTHS, eps=eps[1], reverse=True)
        return jnp.sum(jnp.square(one[:, 1])) + jnp.sum(jnp.square(other[:, 1]))

    adjoint = jax.grad(by_loop)((reference.zero_eps(forward, (B,), T), reference.zero_eps(backward, (B,), T)))
    compare(profile, "forward_rnn", adjoint[0])
    compare(profile, "backward_rnn", adjoint[1])
    # The forward gradient lives before step 1, the backward one behind it.
    np.testing.assert_array_equal(np.isfinite(profile.log10_norm["forward_rnn"]), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.isfinite(profile.log10_norm["backward_rnn"]), [0, 0, 1, 1, 1])


def test_keys_are_paths_in_the_model():
    xs = jax.ShapeDtypeStruct((B, T, F), jnp.float32)

    def keys(loss_fn, build):
        profile = jax.eval_shape(lambda xs: flow.gradient_profile(loss_fn, build(), xs), xs)
        assert all(norm.shape == (T,) for norm in profile.log10_norm.values())
        return set(profile.log10_norm)

    def classifier(**kwargs):
        return SequenceClassifier("elman", F, H, 2, rngs=nnx.Rngs(0), **kwargs)

    def layer(name, seed=0):
        return RNN(rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(seed)))

    def total(model, xs):
        return jnp.sum(model(xs))

    assert keys(total, classifier) == {"rnn"}
    assert keys(total, lambda: classifier(layers=2, bidirectional=True)) == {
        f"rnn/layers/{k}/{direction}_rnn" for k in range(2) for direction in ("forward", "backward")
    }
    of_encoder = keys(lambda m, xs: total(m["encoder"], xs), lambda: {"encoder": layer("lstm")})
    assert of_encoder == {"encoder", "encoder/c", "encoder/h"}
    of_list = keys(lambda m, xs: total(m[0], xs) + total(m[1], xs), lambda: [layer("gru", k) for k in range(2)])
    assert of_list == {"0", "1"}


def test_a_user_defined_cell_with_a_counter_has_a_profile():
    leaky = rnn_jax.make_cell("tests.reference:LeakyCell(rate=0.25)", F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)

    def loss_fn(model, xs):
        final, _ = model(xs, return_carry=True)
        return jnp.sum(final["h"])

    profile = profile_of(loss_fn, RNN(leaky), inputs())
    expected = 0.5 * np.log10(H) + np.log10(0.75) * np.arange(T)[::-1]
    np.testing.assert_allclose(profile.log10_norm["rnn"], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(profile.log10_norm["rnn/h"], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(profile.log10_norm["rnn/steps"], np.full(T, -np.inf))


# --------------------------------------------------------------------------------------- far below what floats can hold


def plain_adjoints(the_cell, xs):
    """Returns every adjoint of `last_output_loss` by `jax.vjp` of a scan that adds a zero to the carry: right until
    something underflows."""

    def last(eps):
        def step(carry, inputs):
            x, e = inputs
            carry, y = the_cell(carry, x)
            return jax.tree.map(jnp.add, carry, e), y

        start = the_cell.initialize_carry((xs.shape[0], F), nnx.Rngs(0))
        return jax.lax.scan(step, start, (jnp.swapaxes(xs, 0, 1), eps))[1][-1]

    zero = the_cell.initialize_carry((xs.shape[1], xs.shape[0], F), nnx.Rngs(0))
    y, pull_back = jax.vjp(last, zero)
    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), pull_back(2.0 * y)[0])


@pytest.mark.parametrize("name", ["lstm(forget_bias=0)", "gru_reset_before"])
def test_a_float32_profile_is_that_of_float64_down_to_1e_140(name):
    narrow = rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(1))
    wide = jax.eval_shape(lambda: rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(1), param_dtype=jnp.float64))
    same_numbers = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(narrow)]
    wide = jax.tree.unflatten(jax.tree.structure(wide), same_numbers)

    @reference.quick_jit
    def run(narrow, wide, xs):
        profile = flow.gradient_profile(last_output_loss, RNN(narrow), xs)
        return profile.log10_norm["rnn"], plain_adjoints(wide, xs.astype(jnp.float64))

    log10_norm, adjoint = run(narrow, wide, reference.normal(2, B, 900, F, dtype=jnp.float32))
    log10_norm = np.asarray(log10_norm)
    expected = np.log10(np.maximum(reference.root_mean_square(adjoint), 1e-320))
    seen = (expected > -140.0) & np.isfinite(log10_norm)
    assert expected[0] < -100.0, "the case does not reach far enough to prove anything"
    assert np.array_equal(seen[:-1], expected[:-1] > -140.0)
    np.testing.assert_allclose(log10_norm[seen], expected[seen], rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("name", ["elman", "gru_reset_before"])
def test_a_profile_of_20000_steps_falls_without_end_and_without_nan(name):
    time = 20_000
    model = RNN(rnn_jax.make_cell(name, 1, 2, rngs=nnx.Rngs(1), recurrent_kernel_init=half_identity))
    xs = reference.normal(2, 1, time, 1, dtype=jnp.float32)
    profile = profile_of(last_output_loss, model, xs)
    norm = np.asarray(profile.log10_norm["rnn"], np.float64)
    assert np.all(np.isfinite(norm[:-1]))
    assert norm[-1] == -np.inf
    assert norm[0] < -1000.0
    assert np.mean(np.diff(norm[:-1]) > 0) > 0.9  # it falls on its way back, nearly everywhere
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(profile.grads))


def half_identity(key, shape, dtype):
    return 0.5 * jnp.eye(shape[0], shape[1], dtype=dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_gradient_of_any_size_reads_as_what_it_is(dtype):
    """h' = w h for 2000 steps: 10**-602, 10**602, 10**954, 10**-59970, 10**59970. No float holds any of them."""
    linear = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="identity", param_dtype=dtype)
    xs, lag = jnp.zeros((4, 2000, 1), dtype), np.arange(2000)[::-1]
    run = reference.quick_jit(lambda m: flow.gradient_profile(lambda m: jnp.sum(m(xs, return_carry=True)[0]), m))
    for factor in (0.5, 2.0, -3.0, 1e-30, 1e30):  # the squares of the last two are no float32
        profile = run(RNN(reference.with_params(linear, recurrent_kernel=np.array([[factor]]))))
        np.testing.assert_allclose(profile.log10_norm["rnn"], lag * np.log10(abs(factor)), rtol=1e-6)


def test_examples_of_very_different_size_read_as_their_root_mean_square():
    """1e-10 beside 1: in the mean of squares it is 1e-20, below what float32 can add to 1, but no zero and no NaN."""
    last = [0, 0, 0, 0, 1]
    profile = weighted("lstm", last, weight_of_example=(1.0, 1e-10, 1e-30))
    of_first = weighted("lstm", last, weight_of_example=(1, 0, 0))  # the mean is over three in both
    np.testing.assert_allclose(profile.log10_norm["rnn"], of_first.log10_norm["rnn"], rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_a_huge_gradient_that_joins_a_tiny_one_takes_over(name):
    """In float32, 1e30 from an early output meets 1e-35 from the last: at the scale of that, it would be inf."""
    both, late, early = (weighted(name, w) for w in ([0, 0, 1e30, 0, 1e-35], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]))
    np.testing.assert_allclose(both.log10_norm["rnn"][2:], late.log10_norm["rnn"][2:] - 35.0, rtol=1e-5)
    np.testing.assert_allclose(both.log10_norm["rnn"][:2], early.log10_norm["rnn"][:2] + 30.0, rtol=1e-5)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(both.grads))


def test_a_gradient_that_is_nan_reads_nan_and_not_some_number():
    for name in PATHS:
        norm = np.asarray(weighted(name, [0, 0, 0, 0, np.nan]).log10_norm["rnn"])
        assert np.all(np.isnan(norm[:-1])), name


# ---------------------------------------------------------------------------------------------- the gradients beside it


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("lstm", jnp.float32),
        pytest.param("gru", jnp.float64, marks=pytest.mark.slow),
        pytest.param("gru_reset_before", jnp.float32, marks=pytest.mark.slow),
        ("flax.nnx:OptimizedLSTMCell", jnp.float64),
    ],
)
def test_the_gradients_are_those_of_jax_grad(name, dtype):
    """Scaled by powers of two only: kernels have the same bits, biases, whose sum may run in another order, nearly."""
    model = RNN(cell(name, dtype=dtype))
    xs = reference.normal(2, B, 40, F, dtype=dtype)

    def loss_fn(model, xs):
        return jnp.mean(jnp.square(model(xs)))

    loss, expected = jax.jit(jax.value_and_grad(loss_fn))(model, xs)
    profile = jax.jit(functools.partial(flow.gradient_profile, loss_fn))(model, xs)
    assert jax.tree.structure(profile.grads) == jax.tree.structure(model) == jax.tree.structure(expected)
    np.testing.assert_array_equal(profile.loss, loss)
    for (path, actual), (_, wanted) in zip(
        jax.tree.leaves_with_path(profile.grads), jax.tree.leaves_with_path(expected), strict=True
    ):
        assert actual.dtype == dtype
        if "kernel" in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(actual, wanted)
        else:
            assert reference.relative_error(actual, wanted) < 8 * jnp.finfo(dtype).eps


@pytest.mark.parametrize("name", ["LearnedStart", "LearnedStartOffTheFastPath"])
def test_a_learned_first_carry_has_its_gradient_through_starts_and_resets(name):
    model = RNN(reference.randomized(getattr(reference, name)(F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64), 1))

    def loss_fn(model, xs):
        return 1e6 * jnp.sum(jnp.square(model(xs, resets=RESETS, seq_lengths=LENGTHS)))  # of a scale that is not 1

    def by_loop(model, xs):
        return 1e6 * jnp.sum(jnp.square(reference.python_unroll(model.cell, xs, resets=RESETS, lengths=LENGTHS)[1]))

    expected = jax.grad(by_loop)(model, inputs())
    (start,) = [leaf for path, leaf in jax.tree.leaves_with_path(expected) if "start" in jax.tree_util.keystr(path)]
    assert np.all(np.asarray(start) != 0.0)

    @reference.quick_jit
    def run(model, xs):
        return jax.grad(loss_fn)(model, xs), flow.gradient_profile(loss_fn, model, xs).grads

    for grads in run(model, inputs()):
        reference.assert_close(grads, expected)


def test_the_model_itself_is_left_as_it_was():
    model = Stack([RNN(cell("elman")), RNN(cell("elman", H))])
    before = jax.tree.flatten(model)
    profile = jax.eval_shape(lambda: flow.gradient_profile(last_output_loss, model, inputs()))
    after = jax.tree.flatten(model)
    assert before[1] == after[1] == jax.tree.structure(profile.grads)
    assert all(a is b for a, b in zip(before[0], after[0], strict=True))


def test_an_auxiliary_output_comes_back():
    def loss_fn(model, xs, scale):
        ys = model(xs)
        return scale * jnp.sum(ys[:, -1]), {"ys": ys}

    @reference.quick_jit
    def run(model, xs):
        profile = flow.gradient_profile(loss_fn, model, xs, 3.0, has_aux=True)
        return profile, flow.gradient_profile(lambda m, xs: 3.0 * jnp.sum(m(xs)[:, -1]), model, xs), model(xs)

    profile, without, ys = run(RNN(cell("elman")), inputs())
    reference.assert_close(profile.aux["ys"], ys, 1e-14)
    assert without.aux is None
    np.testing.assert_allclose(profile.log10_norm["rnn"], without.log10_norm["rnn"], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------- as one wants


def test_a_profile_can_be_jitted_and_traced_once():
    traces = []

    @jax.jit
    def run(model, xs):
        traces.append(1)
        return flow.gradient_profile(last_output_loss, model, xs)

    model = RNN(cell("elman"))
    for seed in (2, 3, 4):
        expected = flow.gradient_profile(last_output_loss, model, inputs(seed))
        actual = run(model, inputs(seed))
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for key, norm in expected.log10_norm.items():
            np.testing.assert_allclose(actual.log10_norm[key], norm, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("name", PATHS)
def test_a_profile_of_an_ensemble_has_a_scale_for_each_seed(name):
    """Members whose gradients lie 1e60 apart, in float32: one common scale would read the smaller ones as 0."""
    model = RNN(rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(0)))
    members = [jax.tree.map(lambda w, scale=scale: w.dtype.type(scale) * w, model) for scale in (1.0, 0.5, 1e-3)]
    xs, no_resets = reference.normal(2, B, T, F, dtype=jnp.float32), np.zeros((B, T), bool)
    weights = np.zeros((3, B, T, 1), np.float32)
    weights[:, :, -1, 0] = np.array([[1.0], [1e30], [1e-30]])

    ensemble = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    run = reference.quick_jit(jax.vmap(of_weighted_outputs, in_axes=(0, None, 0, None)))
    together = jax.tree.map(np.asarray, run(ensemble, xs, weights, no_resets))
    for k in range(3):
        alone = run_weighted(members[k], xs, weights[k], no_resets)
        for key, norm in alone.log10_norm.items():
            np.testing.assert_allclose(together.log10_norm[key][k], norm, atol=1e-4)
        reference.assert_close(jax.tree.map(lambda g, k=k: g[k], together.grads), alone.grads, 1e-4)


def test_a_profile_can_be_taken_inside_a_scan_of_training_steps():
    model, xs = RNN(cell("elman")), inputs()

    def step(model, _):
        profile = flow.gradient_profile(last_output_loss, model, xs)
        return jax.tree.map(lambda w, g: w - 0.1 * g, model, profile.grads), profile.log10_norm["rnn"]

    _, norms = jax.lax.scan(step, model, None, length=3)
    assert norms.shape == (3, T)
    first = flow.gradient_profile(last_output_loss, model, xs).log10_norm["rnn"]
    np.testing.assert_allclose(norms[0], first, rtol=1e-5)
    assert np.all(norms[0, :-1] != norms[1, :-1])


def test_a_tapped_affine_cell_still_takes_the_fast_path(monkeypatch):
    module, calls = importlib.import_module("rnn_jax.unroll"), []

    def spied(path, original):
        def run(*args, **kwargs):
            calls.append(path)
            return original(*args, **kwargs)

        return run

    for path in ("scan_fused", "scan_cell"):
        monkeypatch.setattr(module, path, spied(path, getattr(module, path)))
    jax.eval_shape(lambda: flow.gradient_profile(last_output_loss, RNN(cell()), inputs()))
    assert calls == ["scan_fused"] * 2  # an abstract run, and the one that counts


def test_where_the_plain_adjoint_overflows_the_profile_does_not():
    """dL/dy = 1e38, and it grows by 1e4 a step: in float32 the adjoint is inf, its log10 is 42, 46, ..."""
    linear = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="identity")
    linear = reference.with_params(linear, recurrent_kernel=np.array([[1e4]]))
    xs = jnp.zeros((1, 9, 1), jnp.float32)
    profile = profile_of(lambda m, xs: 1e38 * jnp.sum(m(xs)[:, -1]), RNN(linear), xs)
    expected = 38.0 + 4.0 * np.arange(1, 9)[::-1]
    np.testing.assert_allclose(profile.log10_norm["rnn"][:-1], expected, rtol=1e-6)


def test_a_linear_unit_falls_by_its_weight_to_1e_30000():
    """h' = w h: the profile has the slope log10 |w| a step, by hand, to a relative error of 1e-6."""
    linear = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="identity", use_bias=False)
    xs, lag = jnp.zeros((1, 10_000, 1), jnp.float32), np.arange(10_000)[::-1]
    run = reference.quick_jit(lambda m: flow.gradient_profile(lambda m: jnp.sum(m(xs, return_carry=True)[0]), m))
    for w in (1e-3, 0.9, 1.0, 10.0):
        profile = run(RNN(reference.with_params(linear, recurrent_kernel=np.full((1, 1), w))))
        exact = np.log10(np.float64(np.float32(w)))
        np.testing.assert_allclose(profile.log10_norm["rnn"], exact * lag, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------- shares, true ends, several calls


def test_shares_do_not_underflow_and_are_left_out_unless_asked_for():
    """h' = w h + x v, L = h_T: what step t adds to the gradient of v is w^(T - t) x, and of w w^(T - t) h_{t-1}."""
    linear = rnn_jax.make_cell("elman", 1, 1, rngs=nnx.Rngs(0), activation="identity", use_bias=False)
    linear = reference.with_params(linear, kernel=np.ones((1, 1)), recurrent_kernel=np.full((1, 1), 0.5))
    xs, time = jnp.zeros((1, 2000, 1), jnp.float32).at[0, 0].set(1.0), 2000

    def last(model, xs):
        return jnp.sum(model(xs, return_carry=True)[0])

    profile = profile_of(last, RNN(linear), xs, shares=True)
    steps = np.arange(time)
    of_v = np.where(steps == 0, (time - 1) * np.log10(0.5), -np.inf)  # w^(T - 1) x_1
    of_w = np.where(steps == 0, -np.inf, (time - 2) * np.log10(0.5))  # w^(T - 1 - t) w^(t - 1)
    np.testing.assert_allclose(profile.log10_share["rnn"][:120], np.maximum(of_v, of_w)[:120], rtol=1e-6)
    assert jax.eval_shape(lambda: flow.gradient_profile(last, RNN(linear), xs)).log10_share == {}


@pytest.mark.parametrize("reverse", [False, True])
def test_from_true_ends_is_the_mean_of_sequences_cut_by_hand(reverse):
    """Lags count from the last step of each sequence; the mean is over those that are longer than the lag."""
    the_cell, xs, lengths = cell(), inputs(), np.array([5, 2, 3])

    def loss_fn(model, xs, lengths):
        final, _ = model(xs, seq_lengths=lengths, reverse=reverse, return_carry=True)
        return sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(final))

    profile = profile_of(loss_fn, RNN(the_cell), xs, jnp.asarray(lengths), from_true_ends=True)
    adjoint = reference.adjoints(
        lambda final, ys: sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(final)),
        the_cell, xs, lengths=lengths, reverse=reverse,
    )  # fmt: skip
    squares = {key: np.zeros(T) for key in ("", "c", "h")}
    for b, length in enumerate(lengths):
        of_one = [np.asarray(part)[b, :length] for part in adjoint]  # behind it there is no step
        by_lag = [np.sum(np.square(part), axis=-1)[:: 1 if reverse else -1] for part in of_one]
        for key, square in (("c", by_lag[0]), ("h", by_lag[1]), ("", by_lag[0] + by_lag[1])):
            squares[key][:length] += square
    longer = np.array([np.sum(lengths > lag) for lag in range(T)])
    np.testing.assert_array_equal(profile.sequences["rnn"][:: 1 if reverse else -1], longer)
    for key, square in squares.items():
        found = profile.in_run_order()[f"rnn/{key}" if key else "rnn"]
        reference.assert_log10_of(found[::-1], np.sqrt(square / longer))


def test_a_layer_that_is_called_twice_has_a_profile_for_each_call():
    """As two layers of the same weights have; the gradients are those of both calls."""
    xs, other = inputs(), reference.normal(9, B, T + 2, F)

    def loss_of(first, second):
        return jnp.sum(jnp.square(first(xs)[:, -1] * second(other)[:, 3]))

    layer = RNN(cell("elman"))
    shared = profile_of(lambda m: loss_of(m["a"], m["a"]), {"a": layer}, shares=True)
    apart = profile_of(lambda m: loss_of(m["a"], m["b"]), {"a": layer, "b": layer})
    assert set(shared.log10_norm) == set(shared.log10_share) == {"a[0]", "a[1]"}
    for call, name in (("a[0]", "a"), ("a[1]", "b")):
        np.testing.assert_array_equal(shared.log10_norm[call], apart.log10_norm[name])
    both = jax.tree.map(np.add, apart.grads["a"], apart.grads["b"])
    reference.assert_close(shared.grads["a"], both)
    abstract = jax.eval_shape(
        lambda: flow.gradient_profile(lambda m: loss_of(m["a"], m["a"]), {"a": RNN(cell("lstm"))})
    )
    parts = ("", "c", "h")
    assert list(abstract.layers_and_parts) == [(call, part) for call in ("a[0]", "a[1]") for part in parts]


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_model_without_layers_is_refused():
    for model in ({"w": jnp.ones(3)}, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), cell()):
        kind = type(model).__name__
        with pytest.raises(
            ValueError, match=rf"model is a {kind} without recurrent layers; allowed: one with rnn_jax\."
        ):
            flow.gradient_profile(lambda m: jnp.float64(0.0), model)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"loss_fn returned float64\[3, 5, 3\]; allowed: a floating-point scalar\."):
        flow.gradient_profile(lambda m, xs: m(xs), RNN(cell()), inputs())


def test_a_nan_in_the_data_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"the input of layer 'rnn' is not finite at time step 3 of example 2;"):
        flow.gradient_profile(last_output_loss, RNN(cell("elman")), inputs().at[2, 3].set(jnp.nan))


def test_a_layer_that_never_runs_is_refused():
    model = {"a": RNN(cell()), "b": RNN(cell())}
    with pytest.raises(ValueError, match=r"loss_fn ran layer 'b' 0 times; allowed: once or more\."):
        flow.gradient_profile(lambda m, xs: jnp.sum(m["a"](xs)), model, inputs())


def per_example_loss(model, xs):
    """The model is closed over by a vmap over examples: it runs once for each."""
    return jnp.sum(jax.vmap(lambda x: jnp.sum(model(x)[-1]))(xs))


def test_a_layer_in_a_vmap_over_examples_is_refused():
    with pytest.raises(ValueError, match=r"passed layer 'rnn' 3 times; allowed: once .*jax\.vmap"):
        flow.gradient_profile(jax.jit(per_example_loss), RNN(cell("gru_reset_before")), inputs())


def test_a_layer_in_a_vmap_over_examples_reads_nan_where_it_cannot_be_refused():
    """And its gradients are right or NaN: never some number."""

    @reference.quick_jit
    def run(model, xs):
        return flow.gradient_profile(per_example_loss, model, xs), jax.grad(per_example_loss)(model, xs)

    profile, expected = run(RNN(cell("elman")), inputs())
    for actual, wanted in zip(jax.tree.leaves(profile.grads), jax.tree.leaves(expected), strict=True):
        assert np.isnan(np.asarray(actual)).all() or reference.relative_error(actual, wanted) < 1e-12
    np.testing.assert_array_equal(profile.log10_norm["rnn"], np.full(T, np.nan))


def test_a_layer_in_a_scan_is_refused():
    """A layer that runs at every step of an outer scan runs as often as that has steps."""

    def loss_fn(model, xs):
        return jax.lax.scan(lambda total, x: (total + jnp.sum(model(x)[-1]), None), jnp.float64(0.0), xs)[0]

    with pytest.raises(ValueError, match=r"passed layer 'rnn' 3 times; allowed: once"):
        flow.gradient_profile(loss_fn, RNN(cell("elman")), inputs())
