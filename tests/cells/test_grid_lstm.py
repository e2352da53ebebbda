"""Claims about the Grid LSTM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rnn_jax
from rnn_jax.cells.grid_lstm import GridBlock, GridLSTM, GridLSTMCell, GridState
from tests import grid_reference, reference

H = 3
F64 = {"param_dtype": jnp.float64}


def make_block(transforms, seed=0, **kwargs):
    return reference.randomized(GridBlock(transforms, H, rngs=nnx.Rngs(seed), **F64, **kwargs), seed)


def make_grid(axes, seed=0, **kwargs):
    return reference.randomized(GridLSTM(2, H, axes=axes, rngs=nnx.Rngs(seed), **F64, **kwargs), seed)


# ------------------------------------------------------------------------------------------ against the transcription


@pytest.mark.parametrize(
    ("transforms", "options"),
    [
        (("lstm",), {}),
        (("lstm", "lstm"), {}),
        (("lstm", "lstm"), {"priority": (1,)}),
        (("lstm", "lstm", "lstm"), {"priority": (0,), "gate_inside": False}),
        (("lstm", "lstm", "lstm"), {"priority": (0, 2)}),
        (("lstm", "lstm", "lstm"), {"tied": True}),
        (("lstm", "tanh", "identity"), {"priority": (1,)}),
    ],
)
def test_a_block_of_n_dimensions_is_that_of_the_paper(transforms, options):
    block = make_block(transforms, **options)
    ms, hs = (np.asarray(reference.normal(seed, 2, len(transforms), H)) for seed in (1, 2))
    states, _ = block([GridState(jnp.asarray(ms[:, k]), jnp.asarray(hs[:, k])) for k in range(len(transforms))])
    for example in range(2):
        hs_new, ms_new = grid_reference.block(list(hs[example]), list(ms[example]), block)
        reference.assert_close([state.h[example] for state in states], hs_new, 1e-12)
        reference.assert_close([state.m[example] for state in states], ms_new, 1e-12)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((), {"depth": 3, "shared": False}),
        ((), {"depth": 3, "depth_transform": "tanh"}),
        ((4,), {"depth": 2, "shared": False}),
        ((4,), {"depth": 3, "priority": "time"}),
        ((3, 4), {"depth": 2}),
        ((3, 2), {"depth": 2, "shared": False, "priority": "none"}),
        ((2, 3, 2), {"depth": 1, "priority": "time"}),
    ],
)
def test_a_grid_over_any_axes_is_that_of_the_paper_at_every_place(sizes, options):
    grid = make_grid(len(sizes), **options)
    xs = reference.normal(1, 2, *sizes, 2)
    ys = np.asarray(reference.quick_jit(lambda grid, xs: grid(xs))(grid, xs))
    assert ys.shape == (2, *sizes, H)
    for example in range(2):
        for place, h in grid_reference.grid(grid, np.asarray(xs[example])).items():
            np.testing.assert_allclose(ys[(example, *place)], h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shared", "priority"), [(True, "depth"), (False, "time")])
def test_a_cell_carried_through_time_is_the_grid_over_a_sequence(shared, priority):
    cell = reference.make_cell("grid_lstm", 2, H, depth=2, shared=shared, priority=priority)
    xs = reference.normal(1, 2, 4, 2)

    def by_time(cell):
        return rnn_jax.unroll(cell, xs)[1]

    def by_level(cell):
        return cell.grid(xs)

    ours, expected = (reference.quick_jit(_with_gradient(run))(cell) for run in (by_time, by_level))
    reference.assert_close(ours, expected)


def _with_gradient(run):
    return lambda cell: (run(cell), jax.grad(lambda cell: jnp.sum(jnp.cos(run(cell))))(cell))


def test_the_gates_that_are_told_are_those_of_the_equations():
    cell = reference.make_cell("grid_lstm", 2, H, depth=2)
    carry, x = reference.random_carry(cell, (), seed=1), reference.normal(2, 2)
    gates = cell.gates(carry, x)
    assert set(gates) == set(cell.gate_ranges)
    assert len(gates) == 2 * 2 * 4
    after, y = cell(carry, x)
    m = gates["1/time_forget"] * carry[1].m + gates["1/time_input"] * gates["1/time_candidate"]
    np.testing.assert_allclose(after[1].m, m, rtol=1e-12)
    np.testing.assert_allclose(after[1].h, np.tanh(gates["1/time_output"] * m), rtol=1e-12)
    assert y.shape == (H,)
    plain = reference.make_cell("grid_lstm", 2, H, depth_transform="tanh")
    assert {gate for gate in plain.gates(reference.random_carry(plain, (), 1), x) if "depth" in gate} == {
        "0/depth_hidden", "1/depth_hidden",
    }  # fmt: skip
    assert not any("depth" in gate for gate in plain.gate_ranges)


# ------------------------------------------------------------------------------------------------ where it is the LSTM


def test_a_grid_of_one_dimension_is_the_lstm_without_input():
    """With the output gate where today's LSTM has it; in the paper h' = tanh(g^o o m') in both."""
    block = make_block(("lstm",), gate_inside=False)
    theirs = torch.nn.LSTMCell(2, H).double()
    with torch.no_grad():
        theirs.weight_hh.copy_(torch.tensor(np.asarray(block.kernels[0][...]).T))
        theirs.bias_ih.copy_(torch.tensor(np.asarray(block.biases[0][...])))
        theirs.bias_hh.zero_()
    m, h = (np.asarray(reference.normal(seed, 4, H)) for seed in (1, 2))
    state, expected = GridState(jnp.asarray(m), jnp.asarray(h)), (torch.tensor(h), torch.tensor(m))
    for _ in range(5):
        (state,), _ = block((state,))
        expected = theirs(torch.zeros(4, 2, dtype=torch.float64), expected)
    reference.assert_close((state.h, state.m), [part.detach().numpy() for part in expected], 1e-12)


def test_a_grid_whose_depth_hands_on_h_of_time_is_the_stacked_lstm():
    """The paper draws the stacked LSTM as the grid without memory along depth: h'_depth = h'_time."""
    cell = reference.make_cell("grid_lstm", H, H, depth=2, shared=False, depth_transform="identity", gate_inside=False)
    hand_on = np.concatenate([np.eye(H), np.zeros((H, H))])
    cell.grid.kernel[...] = jnp.concatenate([jnp.zeros((H, H)), jnp.eye(H)], axis=1)  # x is h of depth
    cell.grid.bias[...] = jnp.zeros(2 * H)
    layers = []
    for block in cell.grid.blocks:
        block.kernels[1][...], block.biases[1][...] = jnp.asarray(hand_on), jnp.zeros(H)
        recurrent_kernel, kernel = jnp.split(block.kernels[0][...], 2)
        lstm = rnn_jax.make_cell("lstm", H, H, rngs=nnx.Rngs(0), **F64)
        lstm = reference.with_params(lstm, kernel=kernel, recurrent_kernel=recurrent_kernel, bias=block.biases[0][...])
        layers.append(rnn_jax.RNN(lstm))
    xs = reference.normal(3, 2, 5, H)
    expected, ys = (reference.quick_jit(run)(xs) for run in (rnn_jax.Stack(layers), rnn_jax.RNN(cell)))
    reference.assert_close(ys, expected, 1e-12)


# ------------------------------------------------------------------------------------------------------- what it is of


def test_tied_networks_are_as_large_at_any_depth():
    def size(**kwargs):
        cell = jax.eval_shape(lambda: rnn_jax.make_cell("grid_lstm", 2, H, rngs=nnx.Rngs(0), **kwargs))
        return sum(leaf.size for leaf in jax.tree.leaves(cell))

    project, block = (2 + 1) * 2 * H, (2 * H + 1) * 4 * H
    assert size(depth=1) == size(depth=9) == project + 2 * block
    assert size(depth=9, shared=False) == project + 18 * block
    assert size(depth=9, tied=True) == project + block
    assert size(depth_transform="tanh") == project + block + (2 * H + 1) * H


def test_the_forget_bias_is_one_along_every_dimension():
    block = GridBlock(("lstm", "lstm"), H, rngs=nnx.Rngs(0))
    for bias in block.biases:
        np.testing.assert_array_equal(bias[...], np.repeat([0.0, 1.0, 0.0, 0.0], H))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: GridBlock(("lstm",), 0, rngs=nnx.Rngs(0)), r"hidden_features=0 is not a size"),
        (lambda: GridBlock((), 2, rngs=nnx.Rngs(0)), r"dimensions=0 is not a size"),
        (lambda: make_block(("lstm", "gru")), r"activation='gru' is unknown; allowed: tanh"),
        (lambda: make_block(("lstm", "lstm"), priority=(2,)), r"priority=\(2,\) .* allowed: numbers from 0 to 1"),
        (lambda: make_block(("lstm", "lstm"), priority=(0, 1)), r"priority=\(0, 1\) .* not all of them"),
        (lambda: make_block(("lstm", "tanh"), tied=True), r"tied=True .* allowed: all of one kind"),
        (lambda: make_grid(1, priority="up"), r"priority='up' is unknown; allowed: depth, time, none"),
        (lambda: make_grid(1, depth=0), r"depth=0 is not a size"),
        (lambda: make_grid(-1), r"axes=-1 is out of range"),
        (lambda: make_grid(2)(jnp.zeros((3, 2))), r"inputs have shape \(3, 2\); allowed: \[\*batch, axis, axis, 2\]"),
        (lambda: make_grid(1)(jnp.zeros((3, 2)), seq_lengths=jnp.ones(3)), r"seq_lengths is given .* allowed: None"),
    ],
)
def test_what_no_grid_can_be_is_refused_in_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        build()
    assert str(refusal.value).endswith(".")


def test_the_cell_is_in_the_catalogue():
    cell = rnn_jax.make_cell("grid_lstm(depth=5, priority='none')", 2, H, rngs=nnx.Rngs(0))
    assert type(cell) is GridLSTMCell
    assert len(cell.initialize_carry((2,))) == 5
    assert rnn_jax.GridLSTMCell is GridLSTMCell
