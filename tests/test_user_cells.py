"""Claims about user-defined cells of many kinds: the path they run on, and models train them.

The conformance kit runs on them in test_every_cell.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import RNN, Stack, batch_mesh, flow, make_cell, unroll
from rnn_jax.models import LanguageModel, SequenceClassifier
from rnn_jax.unroll import fused_obstacle
from tests import reference, user_cells

PATHS = {  # None: the fast path; else why it is the plain scan
    "IndRNNCell": None,
    "SRUCell": None,
    "EchoStateCell": None,
    "LayerNormLSTMCell": None,
    "CoRNNCell": None,
    "ProjectedLSTMCell": "ProjectedLSTMCell is not a PointwiseCell",
    "Zoneout": "Zoneout is not a PointwiseCell",
    "PairCell": "PairCell is not a PointwiseCell",
    "MatrixCell": "MatrixCell is not a PointwiseCell",
    "ConvLSTMCell": "ConvLSTMCell is not a PointwiseCell",
    "AttendingCell": "AttendingCell is not a PointwiseCell",
    "DecayCell": "DecayCell is not a PointwiseCell",
}


def build(name, in_features=3, hidden_features=5, **kwargs):
    return make_cell(f"tests.user_cells:{name}", in_features, hidden_features, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize(("name", "obstacle"), PATHS.items())
def test_whoever_asks_sees_the_path(name, obstacle):
    cell = build(name)
    counts = cell.num_feature_axes
    xs = jax.tree.map(lambda count: jnp.zeros((2, 4, *(3,) * count), jnp.float32), counts)
    assert fused_obstacle(cell, xs) == obstacle


@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("ConvLSTMCell", "DecayCell")])
def test_two_layers_are_classified_and_profiled(name):
    """Compiled where a cell asks for a key or has a counter in its carry; else on shapes alone."""
    layers = 1 if name == "AttendingCell" else 2
    model = SequenceClassifier(f"tests.user_cells:{name}", 3, 5, 2, layers=layers, rngs=nnx.Rngs(0))
    xs, lengths = jnp.ones((2, 4, 3), jnp.float32), jnp.array([4, 2])

    def profile(model):
        def loss(model):
            return jnp.sum(model(xs, lengths, key=jax.random.key(0)) ** 2)

        return flow.gradient_profile(loss, model)

    bottom = "rnn" if layers == 1 else "rnn/layers/0"
    if name not in ("MatrixCell", "Zoneout"):
        assert jax.eval_shape(profile, model).log10_norm[bottom].shape == (4,)
        return
    shown = reference.quick_jit(profile)(model)
    assert np.isfinite(shown.loss)
    assert np.isfinite(shown.log10_norm[bottom][0])


def test_images_reach_a_cell_of_three_feature_axes_and_are_joined_for_others():
    frames = jnp.ones((2, 3, 4, 4, 1), jnp.float32)
    for cell, size in (("tests.user_cells:ConvLSTMCell", 4 * 4 * 5), ("lstm", 5)):
        model = SequenceClassifier(cell, (4, 4, 1), 5, 2, layers=2, rngs=nnx.Rngs(0))
        assert model.head.in_features == size
        assert jax.eval_shape(model, frames).shape == (2, 2)
    with pytest.raises(ValueError, match=r"^cell 'tests.user_cells:ConvLSTMCell' reads 3 feature axes, and the inputs"):
        SequenceClassifier("tests.user_cells:ConvLSTMCell", 3, 5, 2, rngs=nnx.Rngs(0))


def test_a_language_model_reads_the_width_of_a_projection():
    model = LanguageModel("tests.user_cells:ProjectedLSTMCell(projection=2)", 7, 4, 5, layers=2, rngs=nnx.Rngs(0))
    carry, logits = jax.eval_shape(lambda tokens: model(tokens, return_carry=True), jnp.zeros((2, 3), jnp.int32))
    assert logits.shape == (2, 3, 7)
    assert carry[1].c.shape == (2, 5)
    assert carry[1].h.shape == (2, 2)
    assert jax.tree.map(jnp.shape, model.initialize_carry((2,))) == jax.tree.map(jnp.shape, carry)


def test_the_gradient_of_a_context_is_the_sum_over_steps():
    cell = build("AttendingCell", param_dtype=jnp.float64)
    xs, context = reference.normal(1, 2, 4, 3), reference.normal(2, 2, 6, 3)

    def by_unroll(context):
        return jnp.sum(unroll(cell, xs, context=context)[1] ** 2)

    def by_loop(context):
        carry, total = cell.initialize_carry((2, 3)), 0.0
        for t in range(4):
            carry, y = cell(carry, xs[:, t], context=context)
            total += jnp.sum(y**2)
        return total

    np.testing.assert_allclose(
        reference.quick_jit(jax.grad(by_unroll))(context), reference.quick_jit(jax.grad(by_loop))(context), rtol=1e-10
    )


def test_noise_is_for_training_alone():
    stack = Stack([RNN(build("Zoneout", 3, 5)), RNN(build("Zoneout", 5, 5))])
    xs = jnp.ones((2, 4, 3), jnp.float32)
    run = reference.quick_jit(lambda key: stack(xs, key=key))
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(one, run(jax.random.key(0)))
    assert np.any(np.asarray(one) != np.asarray(other))
    quiet = reference.quick_jit(lambda: stack(xs))()
    np.testing.assert_array_equal(quiet, reference.quick_jit(lambda: stack(xs))())
    assert np.any(np.asarray(quiet) != np.asarray(one))


def test_the_first_carry_can_be_learned():
    cell = make_cell("lstm(learned_carry=True)", 3, 5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    xs, resets = reference.normal(1, 2, 4, 3), jnp.zeros((2, 4), bool).at[0, 2].set(True)

    def loss(cell):
        return jnp.sum(unroll(cell, xs, resets=resets)[1] ** 2)

    compiled_loss = reference.quick_jit(loss)
    gradient = reference.quick_jit(jax.grad(loss))(cell).first_carry
    step = 1e-6
    for part in ("c", "h"):
        slope = np.asarray(getattr(gradient, part)[...])
        assert np.all(slope != 0)
        losses = []
        for sign in (1, -1):
            moved = jax.tree.map(lambda x: x, cell)
            variable = getattr(moved.first_carry, part)
            variable[...] = variable[...].at[1].add(sign * step)
            losses.append(compiled_loss(moved))
        np.testing.assert_allclose((losses[0] - losses[1]) / (2 * step), slope[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unroll(build("IndRNNCell"), jnp.ones((2, 4, 3)), context=jnp.ones((2, 1))),
         r"^context is given, and IndRNNCell.__call__ has no argument `context`; allowed: None\.$"),
        (lambda: unroll(build("AttendingCell"), jnp.ones((2, 4, 3))),
         r"^context=None, and AttendingCell asks for one; allowed: a pytree \[\*batch, ...\]\.$"),
        (lambda: unroll(build("AttendingCell"), jnp.ones((2, 4, 3)), context=jnp.ones((3, 6, 3))),
         r"^context has shape \(3, 6, 3\); allowed: \[\*batch, ...\], batch being \(2,\)\.$"),
        (lambda: unroll(build("DecayCell"), {"dt": jnp.ones((2, 5)), "x": jnp.ones((2, 4, 3))}),
         r"^the arrays of xs begin with \[\(2, 4\), \(2, 5\)\]; allowed: one \[\*batch, time\] for all of them\.$"),
        (lambda: unroll(build("DecayCell"), {"dt": jnp.ones((4,)), "x": jnp.ones((2, 4, 3))}),
         r"^xs has shape .* all arrays\.$"),
        (lambda: Stack([RNN(build("IndRNNCell"))])(jnp.ones((2, 4, 3)), context=1.0),
         r"^context is given, and no layer has a cell that asks for it; allowed: None\.$"),
    ],
)  # fmt: skip
def test_what_a_cell_cannot_take_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_user_cell_is_tested():
    names = [
        name for name, cls in vars(user_cells).items() if isinstance(cls, type) and issubclass(cls, nnx.RNNCellBase)
    ]
    own = [name for name in names if vars(user_cells)[name].__module__ == user_cells.__name__]
    assert sorted(own) == sorted(PATHS)


@reference.needs_two_devices
def test_a_context_is_spread_over_devices_with_its_sequence():
    cell = build("AttendingCell", param_dtype=jnp.float64)
    xs, context = reference.normal(1, 4, 5, 3), reference.normal(2, 4, 6, 3)

    def loss(cell, xs, context):
        return jnp.sum(unroll(cell, xs, context=context)[1] ** 2)

    gradients = reference.quick_jit(jax.grad(loss, argnums=(0, 1, 2)))
    one = gradients(cell, xs, context)
    with jax.set_mesh(batch_mesh(2)):
        reference.assert_close(gradients(cell, xs, context), one, 1e-12)
