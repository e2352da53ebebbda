"""Claims about carrying a cell through time."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import Checkpointed, Truncated, Whole, unroll
from rnn_jax.unroll import fused_obstacle
from tests import reference

KINDS = ["lstm", "gru", "gru_reset_before"]  # the fast path with carry parts, with gates apart, and the plain path
F, H = 2, 3


@functools.cache
def make(name):
    return reference.make_cell(name, F, H, seed=1)


run_unroll = reference.quick_jit(unroll, static_argnames=("reverse",))  # tests of equal shapes share a program


def assert_zero(tree):
    """Asserts that every array is 0, exactly."""
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def eager_losses_and_grads(run, cell, xs, carry, **how):
    """Returns the final carry, ys, and the gradients of cell, xs and initial carry, for fixed random cotangents."""

    def loss(cell, xs, carry):
        final, ys = run(cell, xs, carry, **how)
        ys_weight = reference.normal(10, *ys.shape)
        parts = [part for part in jax.tree.leaves(final) if jnp.issubdtype(part.dtype, jnp.inexact)]
        carry_terms = [jnp.sum(part * reference.normal(11 + k, *part.shape)) for k, part in enumerate(parts)]
        return jnp.sum(ys * ys_weight) + sum(carry_terms), (final, ys)

    grad_fn = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    (_, outputs), grads = grad_fn(cell, xs, carry)
    return outputs, jax.tree.map(lambda g: jnp.zeros(g.shape) if g.dtype == jax.dtypes.float0 else g, grads)


losses_and_grads = reference.quick_jit(
    eager_losses_and_grads, static_argnames=("run", "reverse", "gradient", "unroll", "method")
)


# ---------------------------------------------------------------------------------------------- the loop in Python


# The cells of the catalogue, for one shape of batch: test_every_cell.py; a cell with a context: test_user_cells.py.
@pytest.mark.parametrize(
    ("name", "batch_shape"),
    [
        ("lstm", (2, 2)),
        ("gru_reset_before", (3,)),
        ("flax.nnx:LSTMCell", (3,)),
        ("tests.user_cells:IndRNNCell", ()),
        ("tests.user_cells:MatrixCell", (3,)),
        ("tests.user_cells:Zoneout", (3,)),
    ],
)
def test_unroll_is_a_loop_in_python(name, batch_shape):
    count = int(np.prod(batch_shape))
    lengths, resets = np.array([5, 4, 0, 2])[:count], np.zeros((count, 5), bool)
    resets[0, 2] = resets[-1, 4] = True
    resets[count // 2, [0, 3]] = True
    reverse = len(name) % 2 == 0  # either direction for one half of them
    check_against_loop(name, batch_shape, 5, lengths.reshape(batch_shape), resets.reshape(*batch_shape, 5), reverse)


@pytest.fixture
def small_segments(monkeypatch):
    """Has the fast path go back over segments of 3 steps of an LSTM, not of megabytes, and keep carries alone."""
    affine = importlib.import_module("rnn_jax.unroll.fused")
    monkeypatch.setattr(affine, "_SEGMENT_BYTES", 3 * 8 * 2 * 4 * H)
    monkeypatch.setattr(affine, "_SHORT_BYTES", 0)


def test_a_sequence_of_several_segments_is_a_loop_in_python(small_segments):
    """Of a prime number of steps; of one that the segments divide: tests/unroll/test_fused.py."""
    resets = np.zeros((2, 11), bool)
    resets[0, 2] = resets[0, 9] = resets[1, 6] = True
    check_against_loop("lstm", (2,), 11, np.array([11, 7]), resets, reverse=True)


def check_against_loop(name, batch_shape, time, lengths, resets, reverse):
    cell, xs = make(name), reference.normal(2, *batch_shape, time, F)
    carry = reference.random_carry(cell, batch_shape, seed=3)
    how = {"lengths": lengths, "resets": resets, "reverse": reverse}
    expected, expected_grads = eager_losses_and_grads(reference.python_unroll, cell, xs, carry, **how)
    actual, grads = losses_and_grads(unroll, cell, xs, carry, **how)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    reference.assert_close(actual, expected)
    reference.assert_close(grads, expected_grads)
    if lengths is not None:
        padded = np.broadcast_to(np.arange(time) >= lengths[..., None], (*batch_shape, time))
        assert_zero(actual[1][padded])  # outputs at padding
        assert_zero(grads[1][padded])  # and the gradient of what stands there


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_without_a_carry_the_run_begins_with_the_cells_own(name):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    own = cell.initialize_carry((3, F), nnx.Rngs(0))
    reference.assert_close(run_unroll(cell, xs), run_unroll(cell, xs, own), 0.0)


def test_a_user_defined_cell_with_a_counter_is_a_loop_in_python():
    cell = rnn_jax.make_cell("tests.reference:LeakyCell", F, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    xs, lengths = reference.normal(2, 3, 5, F), np.array([5, 0, 2])
    actual = unroll(cell, xs, lengths=lengths)
    reference.assert_close(actual, reference.python_unroll(cell, xs, lengths=lengths))
    np.testing.assert_array_equal(actual[0]["steps"], lengths)
    grad = jax.grad(lambda c: jnp.sum(unroll(c, xs, lengths=lengths)[1]))(cell)
    expected = jax.grad(lambda c: jnp.sum(reference.python_unroll(c, xs, lengths=lengths)[1]))(cell)
    reference.assert_close(grad, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_no_steps_at_all_leave_the_carry_as_it_is(name):
    cell = make(name)
    carry = reference.random_carry(cell, (3,), seed=3)
    final, ys = unroll(cell, jnp.zeros((3, 0, F)), carry)
    reference.assert_close(final, carry, 0.0)
    assert ys.shape == (3, 0, H)


# ------------------------------------------------------------------------------------------------------- two paths


def spy_on(monkeypatch, path):
    """Counts the calls of `rnn_jax.unroll.<path>` and lets them through."""
    module, calls = importlib.import_module("rnn_jax.unroll"), []
    original = getattr(module, path)

    def spied(*args, **kwargs):
        calls.append(path)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, path, spied)
    return calls


def test_the_method_scan_takes_the_plain_path(monkeypatch):
    fast_calls = spy_on(monkeypatch, "scan_fused")
    jax.eval_shape(lambda xs: unroll(make("lstm"), xs, method="scan"), reference.normal(0, 3, 4, F))
    assert not fast_calls


@pytest.mark.parametrize(("name", "steps"), [("lstm", 100), ("gru_reset_before", 2)])
def test_steps_per_iteration_change_nothing(name, steps):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    one = losses_and_grads(unroll, cell, xs, carry)
    reference.assert_close(losses_and_grads(unroll, cell, xs, carry, unroll=steps), one, 1e-13)


@pytest.mark.parametrize(
    ("name", "every", "reverse"),
    [("lstm", 1, False), ("lstm", 3, True), ("gru_reset_before", 3, True), ("gru_reset_before", 100, False)],
)
def test_checkpoints_change_nothing(name, every, reverse):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry, lengths = reference.random_carry(cell, (3,), seed=3), np.array([7, 0, 5])
    how = {"lengths": lengths, "reverse": reverse}
    plain = losses_and_grads(unroll, cell, xs, carry, gradient=Whole(), **how)
    reference.assert_close(losses_and_grads(unroll, cell, xs, carry, gradient=Checkpointed(every), **how), plain, 1e-13)


@pytest.mark.parametrize(("name", "reverse"), [("lstm", True), ("gru_reset_before", False)])
def test_truncation_lets_no_gradient_pass_between_pieces(name, reverse):
    """Of four steps and of the three that are left."""
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)

    def in_pieces(cell, xs, carry):
        first, second = (slice(4, 7), slice(0, 4)) if reverse else (slice(0, 4), slice(4, 7))
        carry, one = unroll(cell, xs[:, first], carry, reverse=reverse)
        carry, two = unroll(cell, xs[:, second], jax.lax.stop_gradient(carry), reverse=reverse)
        return carry, jnp.concatenate([two, one] if reverse else [one, two], axis=1)

    expected = losses_and_grads(in_pieces, cell, xs, carry)
    actual = losses_and_grads(unroll, cell, xs, carry, gradient=Truncated(4), reverse=reverse)
    reference.assert_close(actual, expected, 1e-13)


@pytest.mark.parametrize(("name", "every"), [("lstm", 7), ("gru_reset_before", 8)])
def test_truncation_at_full_length_is_no_truncation_bit_for_bit(name, every):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    whole = losses_and_grads(unroll, cell, xs, carry)
    reference.assert_close(losses_and_grads(unroll, cell, xs, carry, gradient=Truncated(every)), whole, 0.0)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_forward_mode_is_reverse_mode(name):
    """jvp along a direction is the inner product of the gradient and that direction."""
    cell, xs, direction = make(name), reference.normal(2, 3, 5, F), reference.normal(3, 3, 5, F)

    def loss(xs):
        return jnp.sum(jnp.square(unroll(cell, xs)[1]))

    @reference.quick_jit
    def slope_and_curvature(xs):  # the latter forward over reverse: a Hessian times a vector
        return [jax.jvp(f, (xs,), (direction,))[1] for f in (loss, jax.grad(loss))]

    slope, curvature = slope_and_curvature(xs)
    gradient = reference.quick_jit(jax.grad(loss))
    np.testing.assert_allclose(slope, jnp.vdot(gradient(xs), direction), rtol=1e-12)
    h = 1e-5
    finite = (gradient(xs + h * direction) - gradient(xs - h * direction)) / (2 * h)
    reference.assert_close(curvature, finite, 1e-8)


# -------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize(
    ("name", "filling"), [*((name, np.nan) for name in [*KINDS, "flax.nnx:LSTMCell"]), ("lstm", np.inf)]
)
def test_padded_steps_change_nothing(name, filling):
    lengths = np.array([7, 3, 0])
    xs = np.array(reference.normal(2, 3, 7, F))
    padding = np.arange(7) >= lengths[:, None]
    cell, carry = make(name), reference.random_carry(make(name), (3,), seed=3)
    clean = losses_and_grads(unroll, cell, jnp.asarray(np.where(padding[..., None], 0.0, xs)), carry, lengths=lengths)
    (final, ys), grads = losses_and_grads(
        unroll, cell, jnp.asarray(np.where(padding[..., None], filling, xs)), carry, lengths=lengths
    )
    reference.assert_close(((final, ys), grads), clean, 0.0)
    assert_zero((ys[padding], grads[1][padding]))
    # A sequence without a step hands its carry on, and the carry's gradient back, untouched.
    for before, after in zip(jax.tree.leaves(carry), jax.tree.leaves(final), strict=True):
        np.testing.assert_array_equal(after[2], before[2])
    for k, part in enumerate(jax.tree.leaves(grads[2])):
        np.testing.assert_array_equal(part[2], reference.normal(11 + k, 3, H)[2])


@pytest.mark.parametrize(("name", "reverse"), [("lstm", True), ("gru_reset_before", False)])
def test_a_batch_padded_to_50_is_one_padded_to_9(name, reverse):
    lengths, cell = np.array([9, 4, 1]), make(name)
    xs = reference.normal(2, 3, 9, F)
    padded = jnp.concatenate([xs, jnp.full((3, 41, F), 7.0)], axis=1)
    carry = reference.random_carry(cell, (3,), seed=3)

    def run(cell, xs, carry):
        final, ys = unroll(cell, xs, carry, lengths=lengths, reverse=reverse)
        return final, ys[:, :9]

    short = losses_and_grads(run, cell, xs, carry)
    outputs, grads = losses_and_grads(run, cell, padded, carry)
    assert_zero(grads[1][:, 9:])
    reference.assert_close((outputs, (grads[0], grads[1][:, :9], grads[2])), short, 1e-13)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_full_lengths_are_no_lengths(name):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    with_lengths = losses_and_grads(unroll, cell, xs, carry, lengths=np.array([7, 7, 7]))
    reference.assert_close(with_lengths, losses_and_grads(unroll, cell, xs, carry), 1e-13)


def test_lengths_may_be_integers_of_any_type():
    cell, xs, lengths = make("gru_reset_before"), reference.normal(2, 3, 7, F), jnp.array([7, 0, 2])
    expected = run_unroll(cell, xs, lengths=lengths)
    for dtype in (jnp.int8, jnp.int32, jnp.uint32):
        reference.assert_close(run_unroll(cell, xs, lengths=lengths.astype(dtype)), expected, 0.0)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_new_lengths_and_resets_need_no_new_compilation(name):
    cell, xs, traces = make(name), reference.normal(2, 3, 6, F), []

    @jax.jit
    def run(xs, lengths, resets):
        traces.append(1)
        return unroll(cell, xs, lengths=lengths, resets=resets)

    for lengths in ([6, 6, 6], [0, 1, 2], [3, 0, 0]):
        for resets in (np.zeros((3, 6), bool), np.eye(3, 6, dtype=bool)):
            expected = reference.python_unroll(cell, xs, lengths=np.array(lengths), resets=resets)
            reference.assert_close(run(xs, jnp.array(lengths), resets), expected)
    assert len(traces) == 1


# ----------------------------------------------------------------------------------------- time, resets, causality


@pytest.mark.parametrize(("name", "split"), [("lstm", 1), ("gru", 4), ("gru_reset_before", 1)])
def test_two_halves_with_the_carry_handed_on_are_the_whole(name, split):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)

    def in_halves(cell, xs, carry):
        carry, first = unroll(cell, xs[:, :split], carry)
        carry, second = unroll(cell, xs[:, split:], carry)
        return carry, jnp.concatenate([first, second], axis=1)

    whole = losses_and_grads(unroll, cell, xs, carry)
    reference.assert_close(losses_and_grads(in_halves, cell, xs, carry), whole, 1e-12)


@pytest.mark.parametrize("name", [*KINDS, "tests.user_cells:MatrixCell"])
def test_a_stream_one_step_at_a_time_is_the_whole_sequence(name):
    cell, xs = make(name), reference.normal(1, 3, 7, F)
    _, whole = run_unroll(cell, xs)
    carry = layer_carry = cell.initialize_carry((3, F), nnx.Rngs(0))

    @reference.quick_jit
    def step(carry, layer_carry, x):
        layer = rnn_jax.RNN(cell, return_carry=True)
        return cell(carry, x), layer(jnp.expand_dims(x, 1), initial_carry=layer_carry)

    for t in range(7):
        (carry, y), (layer_carry, ys) = step(carry, layer_carry, xs[:, t])
        np.testing.assert_allclose(y, whole[:, t], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(ys[:, 0], whole[:, t], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_no_gradient_passes_a_reset(name):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    resets = np.zeros((3, 7), bool)
    resets[:, 4] = True

    def loss(xs, carry):
        return jnp.sum(unroll(cell, xs, carry, resets=resets)[1][:, 4:])

    to_xs, to_carry = reference.quick_jit(jax.grad(loss, argnums=(0, 1)))(xs, carry)
    assert_zero((to_xs[:, :4], to_carry))
    assert np.all(np.asarray(to_xs)[:, 4:] != 0.0)


@pytest.mark.parametrize(
    ("name", "reverse"), [("lstm", False), ("lstm", True), ("gru_reset_before", False), ("gru_reset_before", True)]
)
def test_future_inputs_have_zero_gradient(name, reverse):
    cell, xs = make(name), reference.normal(2, 3, 7, F)
    grad_fn = jax.grad(lambda xs: jnp.sum(unroll(cell, xs, reverse=reverse)[1][:, 3]))
    grad = np.asarray(reference.quick_jit(grad_fn)(xs))
    past, future = (grad[:, 3:], grad[:, :3]) if reverse else (grad[:, :4], grad[:, 4:])
    assert np.all(np.any(past != 0.0, axis=-1))
    assert_zero(future)


def test_one_example_has_no_influence_on_another():
    cell, xs = make("lstm"), reference.normal(2, 3, 7, F)
    grad_fn = jax.grad(lambda xs: jnp.sum(unroll(cell, xs, lengths=np.array([7, 3, 5]))[1][1]))
    grad = reference.quick_jit(grad_fn)(xs)
    assert_zero((grad[0], grad[2]))
    assert np.any(np.asarray(grad[1]) != 0.0)


# ------------------------------------------------------------------------------------------------------------ vmap


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_vmap_over_examples_is_a_batch(name):
    cell, xs, lengths = make(name), reference.normal(2, 3, 5, F), jnp.array([5, 0, 3])
    carry, resets = reference.random_carry(cell, (3,), seed=3), jnp.eye(3, 5, k=2, dtype=bool)

    def mapped(cell, xs, carry, lengths, resets):
        run = lambda x, c, length, reset: unroll(cell, x, c, lengths=length, resets=reset)  # noqa: E731
        return jax.vmap(run)(xs, carry, lengths, resets)

    options = {"lengths": lengths, "resets": resets}
    batch = losses_and_grads(unroll, cell, xs, carry, **options)
    reference.assert_close(losses_and_grads(mapped, cell, xs, carry, **options), batch, 1e-12)


def test_a_member_of_an_ensemble_of_seeds_is_that_model_alone():
    def build(key):
        return rnn_jax.make_cell("lstm", F, H, rngs=nnx.Rngs(key), dtype=jnp.float64, param_dtype=jnp.float64)

    keys, xs = jax.random.split(jax.random.key(0), 3), reference.normal(2, 4, 5, F)

    def value_and_grad(key):
        return jax.value_and_grad(lambda cell: jnp.sum(jnp.square(unroll(cell, xs)[1])))(build(key))

    together = reference.quick_jit(jax.vmap(value_and_grad))(keys)
    one_alone = reference.quick_jit(value_and_grad)
    for k in range(3):
        alone = one_alone(keys[k])
        reference.assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), alone, 1e-12)


@pytest.mark.parametrize("features", [1, F + H])
@pytest.mark.parametrize("name", [*KINDS, "flax.nnx:LSTMCell"])
def test_inputs_of_another_width_are_refused_by_every_kind_of_cell_and_method(name, features):
    cell = make(name)
    xs = jnp.zeros((3, 5, features))
    sentence = rf"have {features} features; allowed: {F}, the in_features of this {type(cell).__name__}"
    for method in ("auto", "scan"):
        with pytest.raises(ValueError, match=sentence):
            unroll(cell, xs, method=method)
    if isinstance(cell, rnn_jax.Cell):
        with pytest.raises(ValueError, match=sentence):
            cell(cell.initialize_carry((3, F)), xs[:, 0])


class ScaledHidden(rnn_jax.PointwiseCell):
    """An Elman cell that reads its state through a learned scale."""

    input_gates = recurrent_gates = ("n",)

    def __init__(self, in_features, hidden_features, *, rngs, **kwargs):
        self.scale = nnx.Param(0.5 * jnp.ones((), jnp.float64))  # `hidden` reads it
        super().__init__(in_features, hidden_features, rngs=rngs, **kwargs)

    def hidden(self, carry):
        return self.scale[...] * carry

    def activate(self, z, carry):
        return {"n": jnp.tanh(z["n"])}

    def pointwise(self, z, carry):
        h = self.activate(z, carry)["n"]
        return h, h


def test_a_parameter_that_hidden_reads_has_its_gradient():
    cell, xs = ScaledHidden(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), reference.normal(2, 3, 5, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    (_, grads), (_, plain) = (losses_and_grads(unroll, cell, xs, carry, method=m) for m in ("auto", "scan"))
    assert plain[0].scale[...] != 0
    reference.assert_close(grads, plain)


class CountedElman(rnn_jax.PointwiseCell):
    """An Elman cell that counts its steps, in a type and with batch axes as asked."""

    input_gates = recurrent_gates = ("n",)
    hidden = staticmethod(lambda carry: carry["h"])

    def __init__(self, dtype, batched):
        self.counter_dtype, self.batched = dtype, batched
        super().__init__(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    def carry_spec(self):
        return {
            "h": jax.ShapeDtypeStruct((H,), self.param_dtype),
            "steps": jax.ShapeDtypeStruct((), self.counter_dtype),
        }

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        batch = input_shape[:-1]
        return {"h": jnp.zeros((*batch, H)), "steps": jnp.zeros(batch if self.batched else (), self.counter_dtype)}

    def activate(self, z, carry):
        return {"n": jnp.tanh(z["n"])}

    def pointwise(self, z, carry):
        h = self.activate(z, carry)["n"]
        return {"h": h, "steps": carry["steps"] + jnp.ones((), carry["steps"].dtype)}, h


@pytest.mark.parametrize(
    ("dtype", "batched", "obstacle"),
    [
        ("float64", True, None),
        ("float64", False, "the part 'steps' of the carry has no batch axes"),
        ("int32", True, "the part 'steps' of the carry is int32"),
    ],
)
def test_a_counter_in_the_carry_runs_and_the_path_is_told(monkeypatch, dtype, batched, obstacle):
    cell, xs, lengths = CountedElman(dtype, batched), reference.normal(2, 3, 5, F), np.array([5, 2, 0])
    fast_calls = spy_on(monkeypatch, "scan_fused")
    final, ys = unroll(cell, xs, lengths=lengths)
    assert fused_obstacle(cell, xs) == obstacle
    assert len(fast_calls) == (obstacle is None)
    np.testing.assert_array_equal(final["steps"], lengths if batched else 5)
    elman = rnn_jax.make_cell("elman", F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    reference.assert_close(ys, unroll(elman, xs, lengths=lengths)[1])


def test_the_reason_for_the_plain_path_is_given():
    xs = jax.ShapeDtypeStruct((3, 5, F), jnp.float64)
    assert fused_obstacle(make("lstm"), xs) is None
    assert fused_obstacle(make("gru_reset_before"), xs) == "GRUResetBeforeCell is not a PointwiseCell"
    assert fused_obstacle(make("lstm"), jax.ShapeDtypeStruct((3, 5, F), jnp.int32)) == "the inputs are int32"
    scaled = ScaledHidden(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert fused_obstacle(scaled, xs) == "`hidden` reads a parameter"


def test_integers_are_read_as_numbers():
    for name in ("lstm", "gru_reset_before"):
        cell = rnn_jax.make_cell(name, F, H, rngs=nnx.Rngs(0))
        xs = np.random.default_rng(0).integers(-3, 4, (3, 5, F))
        with jax.numpy_dtype_promotion("standard"):
            integers, floats = (run_unroll(cell, xs.astype(dtype)) for dtype in (np.int32, np.float32))
        reference.assert_close(integers, floats, 1e-6)


# ------------------------------------------------------------------------------------- jax.export, meshes, annotations


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_a_program_can_be_exported_for_any_batch(name):
    layer = rnn_jax.RNN(make(name))
    (batch,) = jax.export.symbolic_shape("batch")

    def outputs_and_gradient(xs):
        return layer(xs), jax.grad(lambda layer: jnp.sum(layer(xs) ** 2))(layer).cell.kernel[...]

    exported = jax.export.export(jax.jit(outputs_and_gradient))(jax.ShapeDtypeStruct((batch, 40, F), jnp.float64))
    for size in (1, 3):
        xs = reference.normal(0, size, 40, F)
        reference.assert_close(exported.call(xs), reference.quick_jit(outputs_and_gradient)(xs))


@reference.needs_two_devices
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_replicated_weights_have_the_gradient_of_the_whole_batch_within_shard_map(name):
    layer, xs = rnn_jax.RNN(make(name)), reference.normal(0, 4, 5, F)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(layer, xs):
        return jax.grad(lambda layer: jnp.sum(layer(xs) ** 2))(layer)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    reference.assert_close(*(reference.quick_jit(function)(layer, xs) for function in (sharded, gradient)))


@reference.needs_two_devices
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_batch_spread_by_jit_stays_on_its_devices(name, small_segments):
    """No device is sent the inputs or states of another; gradients of parameters are added up."""
    layer, xs = rnn_jax.RNN(make(name)), reference.normal(0, 4, 11, F)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = (jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P("data")))
    program = jax.jit(jax.grad(lambda layer, xs: jnp.sum(layer(xs) ** 2)), in_shardings=shardings)
    text = program.lower(layer, xs).compile().as_text()
    assert "all-reduce(" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


@reference.needs_two_devices
def test_an_initializer_may_say_how_a_parameter_is_spread():
    annotated = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        cell = rnn_jax.make_cell("lstm", F, 4, kernel_init=annotated, rngs=nnx.Rngs(0))
    assert nnx.get_partition_spec(cell).kernel.get_raw_value() == jax.P(None, "model")
    plain = rnn_jax.make_cell("lstm", F, 4, kernel_init="lecun_normal", rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(cell.kernel[...], plain.kernel[...])


# ----------------------------------------------------------------------------------------------- carries and errors


def test_a_bare_tuple_will_do_for_the_carry_of_an_lstm():
    cell, xs = make("lstm"), reference.normal(2, 3, 5, F)
    carry = reference.random_carry(cell, (3,), seed=3)
    from_tuple = unroll(cell, xs, (carry.c, carry.h))
    assert jax.tree.structure(from_tuple) == jax.tree.structure(unroll(cell, xs, carry))
    reference.assert_close(from_tuple, unroll(cell, xs, carry), 0.0)


def test_rngs_draw_a_random_first_carry():
    class RandomStart(rnn_jax.ElmanCell):
        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return super().initialize_carry(input_shape, rngs, nnx.initializers.normal(1.0))

    cell = RandomStart(F, H, rngs=nnx.Rngs(0))
    xs = jnp.zeros((3, 1, F), jnp.float32)
    one, same, other = (unroll(cell, xs, rngs=nnx.Rngs(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.all(np.asarray(one) != np.asarray(other))


XS = jnp.zeros((3, 5, F))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"lengths": np.array([5, 6, 0])}, r"lengths holds 6; allowed: 0 to 5, the number of time steps\."),
        ({"lengths": np.array([5, -1, 0])}, r"lengths holds -1; allowed: 0 to 5, the number of time steps\."),
        ({"lengths": np.array([5, 5])}, r"lengths has shape \(2,\) .*; allowed: integers of shape \(3,\)\."),
        ({"lengths": np.array(5)}, r"lengths has shape \(\) .*; allowed: integers of shape \(3,\)\."),
        ({"lengths": np.ones((3, 5), int)}, r"lengths has shape \(3, 5\) .*; allowed: integers of shape \(3,\)\."),
        ({"lengths": np.array([5.0, 1.0, 2.0])}, r"lengths has .* dtype float64; allowed: integers of shape \(3,\)\."),
        ({"lengths": np.array([True, True, False])}, r"lengths has .* dtype bool; allowed: integers of shape \(3,\)\."),
        ({"resets": np.zeros((3,), bool)}, r"resets has shape \(3,\); allowed: \[\*batch, time\], here \(3, 5\)\."),
        ({"resets": np.zeros((5, 3), bool)}, r"resets has shape \(5, 3\); allowed: .*, here \(3, 5\)\."),
        ({"method": "magic"}, r"method='magic' is unknown; allowed: auto, fused, scan"),
        ({"carry": np.zeros((3, H))}, r"carry has arrays of shapes \[\(3, 3\)\]; allowed: \[\(3, 3\), \(3, 3\)\]\."),
        (
            {"carry": (np.zeros((3, H)), np.zeros((2, H)))},
            r"carry has arrays of shapes \[\(3, 3\), \(2, 3\)\]; allowed: \[\(3, 3\), \(3, 3\)\]\.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        unroll(make("lstm"), XS, **kwargs)


def test_the_fused_method_refuses_a_cell_that_it_cannot_run():
    with pytest.raises(ValueError, match=r"method='fused' cannot run this cell, as GRUResetBeforeCell is not a Pointw"):
        unroll(make("gru_reset_before"), XS, method="fused")
    reference.assert_close(unroll(make("lstm"), XS, method="fused"), unroll(make("lstm"), XS), 0.0)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_inputs_without_a_time_axis_are_refused(name):
    with pytest.raises(ValueError, match=r"xs has shape \(2,\); allowed: \[\*batch, time, \.\.\.features\]"):
        unroll(make(name), jnp.zeros((F,)))
