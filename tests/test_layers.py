"""Claims about RNN, Bidirectional and Stack."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import RNN, Bidirectional, Stack, flow, unroll
from rnn_jax.layers import dropout, make_rnn
from rnn_jax.models import SequenceClassifier
from tests import reference

B, T, F, H = 3, 5, 2, 4
LENGTHS = np.array([5, 2, 4])


def cell(name="lstm", in_features=F, seed=1):
    return reference.make_cell(name, in_features, H, seed=seed)


def inputs(seed=2):
    return reference.normal(seed, B, T, F)


def true_steps(ys, lengths=LENGTHS):
    """Returns the outputs at true steps; those at padding are 0 with us, and anything with Flax."""
    return np.asarray(ys)[np.arange(ys.shape[1]) < lengths[:, None]]


# -------------------------------------------------------------------------------------------------- RNN is Flax's RNN


@pytest.mark.parametrize(
    ("padded", "time_major", "reverse", "keep_order"),
    [
        (False, False, False, False),
        (False, True, True, False),
        (True, False, False, True),
        (True, False, True, False),
        (True, True, True, True),
    ],
)
def test_our_cell_in_the_rnn_of_flax_gives_what_it_gives_in_ours(padded, time_major, reverse, keep_order):
    lstm, xs = cell(), inputs()
    arguments = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order, "return_carry": True}
    call = {
        "initial_carry": reference.random_carry(lstm, (B,), seed=3),
        "seq_lengths": jnp.asarray(LENGTHS) if padded else None,
    }
    xs = jnp.swapaxes(xs, 0, 1) if time_major else xs
    compiled = reference.quick_jit(lambda cell, call: nnx.RNN(cell, rngs=False, **arguments)(xs, **call))
    expected_carry, expected = compiled(lstm, call)
    # Given to the constructor or to the call, an argument means the same.
    ours = reference.quick_jit(
        lambda cell, call: (RNN(cell, **arguments)(xs, **call), RNN(cell)(xs, **arguments, **call))
    )
    for carry, ys in ours(lstm, call):
        assert ys.shape == expected.shape
        reference.assert_close(carry, expected_carry, 1e-13)
        one, other = (jnp.swapaxes(y, 0, 1) if time_major else y for y in (ys, expected))
        lengths = LENGTHS if padded else np.full(B, T)
        reference.assert_close(true_steps(one, lengths), true_steps(other, lengths), 1e-13)
        assert not np.any(np.asarray(one)[np.arange(T) >= lengths[:, None]])


@pytest.mark.parametrize("name", [f"flax.nnx:{name}" for name in reference.FLAX_CELLS])
def test_a_cell_of_flax_in_our_rnn_gives_what_it_gives_in_theirs(name):
    theirs, xs = cell(name), inputs()
    arguments = {"reverse": True, "keep_order": True, "return_carry": True}
    expected = reference.quick_jit(lambda cell: nnx.RNN(cell, **arguments)(xs))(theirs)
    actual = reference.quick_jit(lambda cell: RNN(cell, **arguments)(xs))(theirs)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    reference.assert_close(actual, expected, 1e-13)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_our_cell_needs_no_initial_carry_in_the_rnn_of_flax(name):
    xs = inputs()
    for options in ({}, {"rngs": False}):
        run = reference.quick_jit(lambda cell, options=options: [kind(cell, **options)(xs) for kind in (nnx.RNN, RNN)])
        reference.assert_close(*run(cell(name)), 1e-13)


def test_rnn_takes_every_argument_of_flax_and_calls_it_by_the_same_default():
    for ours, theirs in ((RNN.__init__, nnx.RNN.__init__), (RNN.__call__, nnx.RNN.__call__),
                         (Bidirectional.__init__, nnx.Bidirectional.__init__),
                         (Bidirectional.__call__, nnx.Bidirectional.__call__)):  # fmt: skip
        our_parameters = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            assert name in our_parameters, name
            # A function of the same effect (see below), and 1, or on a GPU 8.
            if name not in ("merge_fn", "unroll"):
                assert our_parameters[name].default == parameter.default, name


class Stateful(nnx.RNNCellBase):
    """A GRU followed by a layer with state of its own."""

    def __init__(self, make_layer):
        self.gru = nnx.GRUCell(F, H, rngs=nnx.Rngs(0))
        self.layer = make_layer()

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.gru.initialize_carry(input_shape, rngs, carry_init)

    def __call__(self, carry, x):
        carry, y = self.gru(carry, x)
        return carry, self.layer(y)

    @property
    def num_feature_axes(self):
        return 1


class CountingScale(nnx.Module):
    """Multiplies by the number of its calls."""

    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros((), jnp.float32))

    def __call__(self, y):
        self.calls[...] = self.calls[...] + 1
        return y * self.calls[...]


STATEFUL = {
    "dropout": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
    "batch norm": lambda: nnx.BatchNorm(H, rngs=nnx.Rngs(1)),
    "counter": CountingScale,
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_cell_with_state_of_its_own_runs_as_in_flax(kind):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as Flax's layers need it
        ours, flaxs = (kind_of_rnn(Stateful(STATEFUL[kind])) for kind_of_rnn in (RNN, nnx.RNN))
        xs = reference.normal(0, B, T, F, dtype=jnp.float32)
        gradient = nnx.jit(lambda rnn: nnx.grad(lambda rnn: jnp.sum(rnn(xs) ** 2))(rnn))
        for run in (nnx.jit(lambda rnn: rnn(xs)), gradient):
            for a, b in zip(*(jax.tree.leaves(run(rnn)) for rnn in (ours, flaxs)), strict=True):
                np.testing.assert_array_equal(a, b)
            state, expected = (nnx.state(rnn.cell, nnx.Not(nnx.RngState)) for rnn in (ours, flaxs))
            jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_state_axes_and_broadcast_rngs_are_those_of_flax():
    xs = reference.normal(0, B, T, F, dtype=jnp.float32)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for kind, options in (
            ("counter", {"state_axes": nnx.StateAxes({...: nnx.Carry})}),
            ("dropout", {"broadcast_rngs": "default"}),
        ):
            ours, flaxs = (kind_of_rnn(Stateful(STATEFUL[kind]), **options) for kind_of_rnn in (RNN, nnx.RNN))
            np.testing.assert_array_equal(ours(xs), flaxs(xs))


def test_what_flax_cannot_do_for_a_cell_with_state_is_refused():
    xs = jnp.zeros((B, T, F), jnp.float32)
    layer = RNN(Stateful(CountingScale))
    with pytest.raises(ValueError, match=r"Stateful keeps state of its own and is run by flax.nnx.RNN"):
        layer(xs, resets=jnp.zeros((B, T), bool))
    with pytest.raises(ValueError, match="allowed there: no context, no resets, no gradient profile"):
        flow.gradient_profile(lambda layer: jnp.sum(layer(xs)), layer)
    with pytest.raises(ValueError, match=r"a step of Stateful updates variables of the cell; allowed: .* rnn_jax.RNN"):
        rnn_jax.unroll(layer.cell, xs)


def test_a_variable_that_no_step_updates_is_no_state():
    layer = RNN(Stateful(CountingScale))
    layer.cell.layer = nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0))
    xs = reference.normal(0, B, T, F, dtype=jnp.float32)
    np.testing.assert_allclose(layer(xs), RNN(layer.cell.gru)(xs), rtol=1e-6)
    assert flow.layer_calls(lambda layer: layer(xs), layer)  # ran by `unroll`


class RandomCarry(nnx.GRUCell):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape, rngs, nnx.initializers.normal(1.0))


def random_start(seed):
    return RNN(RandomCarry(F, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(seed))


def test_a_layer_with_rngs_is_built_within_the_transforms_of_flax():
    xs = jnp.zeros((B, T, F), jnp.float32)
    expected = random_start(3)(xs)
    np.testing.assert_allclose(nnx.jit(lambda: random_start(3))()(xs), expected, rtol=1e-6)
    assert nnx.eval_shape(lambda: random_start(3)).cell.hidden_features == H

    @nnx.vmap
    def build(key):
        return random_start(key)

    members = build(jax.vmap(jax.random.key)(jnp.arange(4)))
    ys = nnx.vmap(lambda rnn, xs: rnn(xs), in_axes=(0, None))(members, xs)
    np.testing.assert_allclose(ys[3], expected, rtol=1e-6)
    assert np.all(np.asarray(ys[2]) != np.asarray(expected))


def test_layers_of_different_seeds_have_one_structure():
    layers = [random_start(seed) for seed in (1, 2)]
    assert nnx.graphdef(layers[0]) == nnx.graphdef(layers[1])
    xs = jnp.zeros((B, T, F), jnp.float32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    ys = jax.vmap(lambda layer: layer(xs))(stacked)
    for k, layer in enumerate(layers):
        np.testing.assert_allclose(ys[k], layer(xs), rtol=1e-6)
    gradient = jax.grad(lambda layer: jnp.sum(layer(xs) ** 2))(layers[0])
    np.testing.assert_array_equal(gradient.carry_key.halves[...], 0)


class PairOutput(nnx.GRUCell):
    """Puts out its state and a sum of it."""

    def __call__(self, carry, x):
        carry, y = super().__call__(carry, x)
        return carry, (y, {"sum": jnp.sum(y, axis=-1)})


@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}, {"time_major": True}]
)
def test_outputs_may_be_a_pytree(options):
    xs = reference.normal(0, B, T, F, dtype=jnp.float32)
    xs = jnp.moveaxis(xs, 1, 0) if options.get("time_major") else xs
    pair = PairOutput(F, H, rngs=nnx.Rngs(0))
    ours, flaxs = RNN(pair, **options)(xs), nnx.RNN(pair, **options)(xs)
    assert jax.tree.structure(ours) == jax.tree.structure(flaxs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, flaxs)


def test_every_part_of_a_padded_output_is_zero():
    xs = reference.normal(0, B, T, F, dtype=jnp.float32)
    y, other = RNN(PairOutput(F, H, rngs=nnx.Rngs(0)))(xs, seq_lengths=jnp.full((B,), 2))
    np.testing.assert_array_equal(y[:, 2:], 0)
    np.testing.assert_array_equal(other["sum"][:, 2:], 0)
    assert np.all(np.asarray(other["sum"][:, :2]) != 0)


@pytest.mark.parametrize("build", [Bidirectional, lambda one, two: Stack([one, two])], ids=["Bidirectional", "Stack"])
def test_layers_around_one_cell_are_refused(build):
    build(RNN(cell("gru", H)), RNN(cell("gru", H)))
    shared = cell("gru", H)
    with pytest.raises(ValueError, match=r" share 'cell/\w+'; allowed: layers each with its own weights"):
        build(RNN(shared), RNN(shared))


@pytest.mark.parametrize(("dtype", "reverse"), [(jnp.int8, False), (jnp.uint32, True)])
def test_lengths_beyond_the_sequence_are_clipped_where_they_cannot_be_checked(reverse, dtype):
    layer, xs = RNN(cell(), reverse=reverse), reference.normal(0, 3, 4, F)
    run = jax.jit(lambda lengths: layer(xs, seq_lengths=lengths))
    np.testing.assert_array_equal(run(jnp.array([9, 100, 2], dtype)), run(jnp.array([4, 4, 2], dtype)))
    assert np.all(np.isfinite(run(jnp.array([9, 100, 2], dtype))))


def test_the_default_returns_outputs_alone():
    ys = RNN(cell())(inputs())
    assert ys.shape == (B, T, H)
    carry, same = RNN(cell(), return_carry=True)(inputs())
    np.testing.assert_array_equal(ys, same)
    np.testing.assert_array_equal(carry.h, ys[:, -1])
    np.testing.assert_array_equal(RNN(cell(), return_carry=True)(inputs(), return_carry=False), ys)


@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_any_number_of_batch_axes_will_do(batch_shape):
    lstm, xs = cell(), reference.normal(2, *batch_shape, T, F)
    lengths = np.random.default_rng(0).integers(0, T + 1, batch_shape)
    how = {"seq_lengths": lengths, "reverse": True, "keep_order": True, "return_carry": True}
    expected = reference.python_unroll(lstm, xs, lengths=lengths, reverse=True)
    reference.assert_close(reference.quick_jit(lambda xs: RNN(lstm)(xs, **how))(xs), expected)
    time_first = jnp.moveaxis(xs, len(batch_shape), 0)
    carry, ys = reference.quick_jit(lambda xs: RNN(lstm)(xs, **how, time_major=True))(time_first)
    reference.assert_close((carry, jnp.moveaxis(ys, 0, len(batch_shape))), expected)


def test_without_keep_order_outputs_come_in_the_order_of_the_run_and_padding_last():
    xs = inputs()
    ys = RNN(cell(), reverse=True)(xs, seq_lengths=LENGTHS)
    kept = RNN(cell(), reverse=True, keep_order=True)(xs, seq_lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(ys[b, :length], kept[b, :length][::-1])
        np.testing.assert_array_equal(ys[b, length:], np.zeros((T - length, H)))


def test_lengths_of_int32_will_do():
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    for reverse in (False, True):
        expected = RNN(cell(), reverse=reverse)(inputs(), seq_lengths=LENGTHS)
        np.testing.assert_array_equal(RNN(cell(), reverse=reverse)(inputs(), seq_lengths=lengths), expected)


@pytest.mark.parametrize("time_major", [False, True])
def test_resets_are_those_of_unroll(time_major):
    xs, resets = inputs(), np.eye(B, T, k=2, dtype=bool)
    expected = unroll(cell(), xs, resets=resets)[1]
    if time_major:
        xs, resets, expected = jnp.swapaxes(xs, 0, 1), resets.T, jnp.swapaxes(expected, 0, 1)
    np.testing.assert_array_equal(RNN(cell(), time_major=time_major)(xs, resets=resets), expected)


class RandomStart(rnn_jax.ElmanCell):
    """An Elman cell that begins anywhere."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape, rngs, nnx.initializers.normal(1.0))


def test_a_random_carry_comes_from_the_rngs_of_the_layer_or_of_the_call():
    start, xs = RandomStart(F, H, rngs=nnx.Rngs(0)), jnp.zeros((B, 1, F), jnp.float32)
    layer = RNN(start, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer(xs), layer(xs))
    assert np.all(np.asarray(layer(xs)) != np.asarray(RNN(start, rngs=nnx.Rngs(2))(xs)))
    rngs = nnx.Rngs(3)
    assert np.all(np.asarray(layer(xs, rngs=rngs)) != np.asarray(layer(xs, rngs=rngs)))


def test_a_layer_keeps_no_random_state():
    both = Bidirectional(RNN(cell("gru", H)), RNN(cell("gru", H)), rngs=nnx.Rngs(2))
    model = Stack([RNN(cell(), rngs=nnx.Rngs(1)), both])
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(model))


# ------------------------------------------------------------------------------------------------------- Bidirectional


def pair(**kwargs):
    return Bidirectional(RNN(cell("lstm")), RNN(cell("gru", seed=5)), **kwargs)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_bidirectional_is_two_runs_joined_step_by_step(lengths):
    model, xs = pair(), inputs()
    initial = (reference.random_carry(cell("lstm"), (B,), seed=3), reference.random_carry(cell("gru"), (B,), seed=6))
    carry, ys = model(xs, seq_lengths=lengths, initial_carry=initial, return_carry=True)
    forward_carry, forward = reference.python_unroll(cell("lstm"), xs, initial[0], lengths=lengths)
    backward_carry, backward = reference.python_unroll(
        cell("gru", seed=5), xs, initial[1], lengths=lengths, reverse=True
    )
    reference.assert_close(ys, np.concatenate([forward, backward], axis=-1))
    reference.assert_close(carry, (forward_carry, backward_carry))


@pytest.mark.parametrize(("padded", "time_major"), [(False, True), (True, False)])
def test_bidirectional_is_that_of_flax(padded, time_major):
    xs = jnp.swapaxes(inputs(), 0, 1) if time_major else inputs()
    arguments = {"time_major": time_major, "return_carry": True, "merge_fn": lambda a, b: a - 2.0 * b}
    lengths = jnp.asarray(LENGTHS) if padded else None

    @reference.quick_jit
    def theirs(*cells):
        layers = [nnx.RNN(cell, rngs=False) for cell in cells]
        return nnx.Bidirectional(*layers, rngs=False, **arguments)(xs, seq_lengths=lengths)

    expected_carry, expected = theirs(cell("lstm"), cell("gru", seed=5))
    carry, ys = reference.quick_jit(lambda: pair(**arguments)(xs, seq_lengths=lengths))()
    reference.assert_close(carry, expected_carry, 1e-13)
    one, other = (jnp.swapaxes(y, 0, 1) if time_major else y for y in (ys, expected))
    which = LENGTHS if padded else np.full(B, T)
    reference.assert_close(true_steps(one, which), true_steps(other, which), 1e-13)


def test_reverse_and_keep_order_do_nothing_to_bidirectional():
    np.testing.assert_array_equal(pair()(inputs(), reverse=True, keep_order=False), pair()(inputs()))


def test_the_backward_direction_sees_the_future_and_the_forward_one_does_not():
    @reference.quick_jit
    def gradients(xs, cotangents):
        _, pull = jax.vjp(pair(), xs)
        return jax.lax.map(lambda cotangent: pull(cotangent)[0], cotangents)

    cotangents = np.zeros((2, B, T, 2 * H))
    cotangents[0, :, 2, :H] = cotangents[1, :, 2, H:] = 1.0
    forward, backward = np.asarray(gradients(inputs(), cotangents))
    np.testing.assert_array_equal(forward[:, 3:], np.zeros((B, 2, F)))
    np.testing.assert_array_equal(backward[:, :2], np.zeros((B, 2, F)))
    assert np.all(backward[:, 2:] != 0.0)


def test_the_same_layer_twice_is_refused():
    layer = RNN(cell())
    with pytest.raises(ValueError, match="forward_rnn and backward_rnn are one object; allowed: two layers"):
        Bidirectional(layer, layer)


def test_resets_in_both_directions_are_refused():
    with pytest.raises(ValueError, match="resets cannot be used in both directions; allowed: None"):
        pair()(inputs(), resets=np.zeros((B, T), bool))


# --------------------------------------------------------------------------------------------------------------- Stack


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_stack_is_composition(lengths):
    lower, upper, xs = cell("lstm"), cell("gru", H, seed=5), inputs()
    initial = (reference.random_carry(lower, (B,), seed=3), reference.random_carry(upper, (B,), seed=6))
    carry, ys = Stack([RNN(lower), RNN(upper)], return_carry=True)(xs, seq_lengths=lengths, initial_carry=initial)
    carry_0, between = reference.python_unroll(lower, xs, initial[0], lengths=lengths)
    carry_1, expected = reference.python_unroll(upper, between, initial[1], lengths=lengths)
    reference.assert_close(ys, expected)
    reference.assert_close(carry, (carry_0, carry_1))
    np.testing.assert_array_equal(
        Stack([RNN(lower), RNN(upper)])(xs, seq_lengths=lengths, initial_carry=initial, return_carry=False), ys
    )


def test_a_reversed_layer_hands_its_outputs_up_at_the_step_of_their_input():
    lower, upper, xs = cell("lstm"), cell("gru", H, seed=5), inputs()
    ys = Stack([RNN(lower, reverse=True), RNN(upper)])(xs, seq_lengths=LENGTHS)
    _, between = reference.python_unroll(lower, xs, lengths=LENGTHS, reverse=True)
    reference.assert_close(ys, reference.python_unroll(upper, between, lengths=LENGTHS)[1])


def test_a_stack_may_hold_bidirectional_layers_and_stacks():
    both, upper, top, xs = pair(), RNN(cell("gru", 2 * H)), RNN(cell("elman", H)), inputs()
    carry, ys = Stack([both, Stack([upper, top])])(xs, seq_lengths=LENGTHS, return_carry=True)
    expected = top(upper(both(xs, seq_lengths=LENGTHS), seq_lengths=LENGTHS), seq_lengths=LENGTHS)
    reference.assert_close(ys, expected, 1e-14)
    assert [len(part) for part in carry] == [2, 2]


def test_a_time_major_stack_is_a_batch_major_one():
    layers = [RNN(cell("lstm")), pair_of_grus()]
    expected = Stack(layers)(inputs(), seq_lengths=LENGTHS)
    ys = Stack(layers)(jnp.swapaxes(inputs(), 0, 1), seq_lengths=LENGTHS, time_major=True)
    reference.assert_close(jnp.swapaxes(ys, 0, 1), expected, 1e-14)


def pair_of_grus():
    return Bidirectional(RNN(cell("gru", H)), RNN(cell("gru", H, seed=5)))


def test_resets_go_to_every_layer():
    lower, upper, xs = cell("lstm"), cell("gru", H, seed=5), inputs()
    resets = np.eye(B, T, k=2, dtype=bool)
    ys = Stack([RNN(lower), RNN(upper)])(xs, resets=resets)
    _, between = reference.python_unroll(lower, xs, resets=resets)
    reference.assert_close(ys, reference.python_unroll(upper, between, resets=resets)[1])


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="layers is empty; allowed: at least one layer"):
        Stack([])


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (3, True)])
def test_make_rnn_builds_layers_of_the_right_sizes_with_weights_of_their_own(layers, bidirectional):
    model = make_rnn("lstm", F, H, layers=layers, bidirectional=bidirectional, rngs=nnx.Rngs(0), forget_bias=3.0)
    paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(model)]
    kernels = [leaf for path, leaf in paths if ".kernel" in path]
    assert all(leaf[H] == 3.0 for path, leaf in paths if ".bias" in path)
    width = H * (2 if bidirectional else 1)
    sizes = [F] + [width] * (layers - 1)
    assert sorted(k.shape[0] for k in kernels) == sorted(sizes * (2 if bidirectional else 1))
    assert len({float(k[0, 0]) for k in kernels}) == len(kernels)
    assert model(jnp.zeros((B, T, F), jnp.float32)).shape == (B, T, width)


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="layers=0 is no number of layers; allowed: 1 or more"):
        make_rnn("lstm", F, H, layers=0, rngs=nnx.Rngs(0))


# ------------------------------------------------------------------------- through the transforms, given or closed over


def classifier():
    return reference.randomized(SequenceClassifier("gru", F, H, 3, bidirectional=True, rngs=nnx.Rngs(0)), seed=1)


MODELS = {
    "fast-path": lambda: RNN(cell("lstm")),
    "plain-path": lambda: RNN(cell("gru_reset_before"), reverse=True),
    "stack": lambda: Stack([pair(), RNN(cell("flax.nnx:GRUCell", 2 * H))]),
    "classifier": classifier,
}


@pytest.mark.parametrize(
    ("transform", "passed", "kind"),
    [
        ("jit", True, "plain-path"),
        ("grad", True, "fast-path"),
        ("grad", False, "plain-path"),
        ("grad", True, "stack"),
        ("vmap", True, "plain-path"),
        ("vmap", False, "stack"),
        ("vmap", True, "classifier"),
        ("scan", False, "fast-path"),
        ("scan", True, "stack"),
        ("scan", False, "classifier"),
    ],
)
def test_a_model_goes_through_every_transform(kind, passed, transform):
    model = MODELS[kind]()
    dtype = jax.tree.leaves(model)[0].dtype
    xs, wide = inputs().astype(dtype), dtype == jnp.float64
    close = functools.partial(reference.assert_close, tolerance=1e-12 if wide else 1e-5)

    def loss(model, xs):
        return jnp.sum(jnp.square(model(xs)))

    def halved(model):
        return jax.tree.map(lambda w: 0.5 * w, model)

    plain_loss = reference.quick_jit(loss)
    # Larger models go through grad and vmap inside jit, which takes half the time.
    outside = (lambda f: f) if kind.endswith("path") else reference.quick_jit
    if transform == "jit":
        run = jax.jit(loss) if passed else jax.jit(functools.partial(loss, model))
        close(run(model, xs) if passed else run(xs), loss(model, xs))
    elif transform == "grad":
        # The slope along a direction, of weights or of inputs, against a difference quotient.
        grads = outside(jax.grad(loss))(model, xs) if passed else outside(jax.grad(functools.partial(loss, model)))(xs)
        h = 1e-5 if wide else 1e-2

        def moved(h):
            moved_model = jax.tree.map(lambda w: w + dtype.type(h), model)
            return float(plain_loss(moved_model, xs) if passed else plain_loss(model, xs + dtype.type(h)))

        slope = sum(float(jnp.sum(g)) for g in jax.tree.leaves(grads))
        np.testing.assert_allclose(slope, (moved(h) - moved(-h)) / (2 * h), rtol=1e-7 if wide else 2e-2)
    elif transform == "vmap" and passed:  # an ensemble of two
        ensemble = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w]), model)
        expected = jnp.stack([plain_loss(model, xs), plain_loss(halved(model), xs)])
        close(outside(jax.vmap(loss, in_axes=(0, None)))(ensemble, xs), expected)
    elif transform == "vmap":
        close(jnp.sum(outside(jax.vmap(functools.partial(loss, model)))(xs)), plain_loss(model, xs))
    elif passed:  # the model is the carry of the scan, as in a training loop
        final, losses = jax.lax.scan(lambda m, x: (halved(m), loss(m, x)), model, xs)
        close(losses[:2], jnp.stack([plain_loss(model, xs[0]), plain_loss(halved(model), xs[1])]))
        assert jax.tree.structure(final) == jax.tree.structure(model)
    else:
        _, losses = jax.lax.scan(lambda _, x: (None, loss(model, x)), None, xs)
        close(jnp.sum(losses), plain_loss(model, xs))


def test_a_model_is_a_pytree_that_optax_updates():
    model, xs = MODELS["stack"](), inputs()
    optimizer = optax.sgd(0.3)

    @reference.quick_jit
    def step(model, state):
        loss, grads = jax.value_and_grad(lambda m: jnp.mean(jnp.square(m(xs) - 0.3)))(model)
        updates, state = optimizer.update(grads, state, model)
        return optax.apply_updates(model, updates), state, loss

    state, losses = optimizer.init(model), []
    for _ in range(100):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate):
    ones = jnp.ones((10, 20, 30))
    dropped = np.asarray(dropout(ones, rate, jax.random.key(0)))
    np.testing.assert_allclose(dropped[dropped != 0.0], 1.0 / (1.0 - rate), rtol=1e-15)
    for axis in range(3):  # no example, step or unit is favored
        share = np.mean(dropped == 0.0, axis=tuple({0, 1, 2} - {axis}))
        assert np.all(np.abs(share - rate) < 5.0 * np.sqrt(rate * (1.0 - rate) * ones.shape[axis] / ones.size))


def test_dropout_of_more_steps_begins_as_dropout_of_fewer():
    long, key = reference.normal(0, 3, 50, 4), jax.random.key(0)
    np.testing.assert_array_equal(dropout(long, 0.5, key)[:, :20], dropout(long[:, :20], 0.5, key))
    time_first = dropout(jnp.swapaxes(long, 0, 1), 0.5, key, time_axis=0)
    np.testing.assert_array_equal(jnp.swapaxes(time_first, 0, 1), dropout(long, 0.5, key))


class Echo(nnx.Module):
    """A user-defined layer: it puts out what it reads, and keeps it as its carry."""

    def __call__(self, inputs, **kwargs):
        return inputs, inputs


@pytest.mark.parametrize("time_major", [False, True])
def test_a_stack_drops_between_its_layers_and_in_each_place_anew(time_major):
    stack = Stack([Echo(), Echo(), Echo()], dropout=0.5)
    read, ys = stack(jnp.ones((8, 9, 10)), return_carry=True, time_major=time_major, key=jax.random.key(0))
    first, second, third = (np.asarray(xs) for xs in read)
    np.testing.assert_array_equal(first, 1.0)
    np.testing.assert_array_equal(ys, third)  # what leaves the stack is whole
    np.testing.assert_array_equal(np.unique(second), [0.0, 2.0])
    np.testing.assert_array_equal(np.unique(third), [0.0, 4.0])
    survivors = third[second != 0.0]
    assert abs(np.mean(survivors == 0.0) - 0.5) < 5.0 * 0.5 / np.sqrt(survivors.size)


def test_a_stack_without_a_key_drops_nothing():
    stack = Stack([Echo(), Echo()], dropout=0.5)
    np.testing.assert_array_equal(stack(jnp.ones((2, 3, 4))), 1.0)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_rate_that_is_none_is_refused(layers):
    with pytest.raises(ValueError, match=r"^dropout=1\.5 is no rate; allowed: 0 or more, and below 1\.$"):
        make_rnn("gru", F, H, layers=layers, dropout=1.5, rngs=nnx.Rngs(0))
