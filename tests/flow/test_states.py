"""The carry and the gates at every step, and a model that is run again with one of them changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import RNN, flow
from rnn_jax.models import SequenceClassifier
from tests import reference

B, T, F, H = 3, 6, 2, 4
LENGTHS = np.array([6, 4, 1])


@reference.quick_jit
def gates_and_step(cell, carry, x):
    return cell.gates(carry, x), cell(carry, x)[0]


def by_hand(cell, xs, lengths=None, reverse=False):
    """The carries and the gates of a loop in Python, one sequence: lists by step of the input."""
    steps = range(len(xs) if lengths is None else lengths)
    carry, carries, gates = cell.initialize_carry((F,)), {}, {}
    for t in reversed(steps) if reverse else steps:
        gates[t], carry = jax.tree.map(np.asarray, gates_and_step(cell, carry, xs[t]))
        carries[t] = carry
    return carries, gates


@pytest.mark.parametrize("reverse", [False, True])
def test_states_are_those_of_a_loop_in_either_direction_and_0_at_padding(reverse):
    layer = RNN(reference.make_cell("lstm", F, H), reverse=reverse)
    xs = np.asarray(reference.normal(0, B, T, F))

    @reference.quick_jit
    def run(layer, xs):
        calls = flow.layer_calls(lambda layer: layer(xs, seq_lengths=jnp.asarray(LENGTHS)), layer)
        return flow.states(calls["rnn"][0])

    seen = jax.tree.map(np.asarray, run(layer, xs))
    assert set(seen.carry) == {"c", "h"}
    for b, length in enumerate(LENGTHS):
        carries, gates = by_hand(layer.cell, xs[b], length, reverse)
        for t in range(T):
            for part in ("c", "h"):
                expected = getattr(carries[t], part) if t < length else np.zeros(H)
                np.testing.assert_allclose(seen.carry[part][b, t], expected, rtol=1e-12)
            for name, values in seen.gates.items():
                np.testing.assert_allclose(values[b, t], gates[t][name] if t < length else 0.0, rtol=1e-12)


@pytest.mark.parametrize("name", ["flax.nnx:LSTMCell", "elman", "tests.user_cells:MatrixCell"])
def test_states_of_any_cell_end_at_the_last_carry(name):
    layer = RNN(reference.make_cell(name, F, H))
    xs = reference.normal(0, B, T, F)

    @reference.quick_jit
    def run(layer):
        call = flow.layer_calls(lambda layer: layer(xs), layer)["rnn"][0]
        return flow.states(call).carry, call.final_carry

    carries, final = jax.tree.map(np.asarray, run(layer))
    for part, last in zip(carries.values(), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(part[:, -1], last, rtol=1e-12)


def classifier(cell="lstm", **kwargs):
    return reference.drawn(
        lambda: SequenceClassifier(cell, F, H, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **kwargs), scale=0.6
    )


def test_a_change_of_the_carry_is_that_change_in_a_loop_and_begins_behind_its_step():
    model, xs, at = classifier(), reference.normal(0, T, F), 2

    def set_unit(parts, t):
        return parts | {"c": parts["c"].at[..., 1].set(jnp.where(t == at, 2.0, parts["c"][..., 1]))}

    @reference.quick_jit
    def run(model):
        changed = flow.change_carry(model, "rnn", set_unit)
        calls = flow.layer_calls(lambda model: model(xs[None]), changed)
        same = flow.change_carry(model, "rnn", lambda parts, t: parts)
        return changed(xs[None]), calls["rnn"][0].ys[0], model(xs[None]), same(xs[None])

    @reference.quick_jit
    def by_loop(model):
        carry, ys = model.rnn.cell.initialize_carry((F,)), []
        for t in range(T):
            carry, y = model.rnn.cell(carry, xs[t])
            ys.append(y)
            if t == at:
                carry = carry._replace(c=carry.c.at[1].set(2.0))
        return jnp.stack(ys), model.head(y)

    scores, ys, plain, same = map(np.asarray, run(model))
    expected_ys, expected_scores = by_loop(model)
    np.testing.assert_allclose(ys, expected_ys, rtol=1e-12)
    np.testing.assert_allclose(scores[0], expected_scores, rtol=1e-12)
    assert np.all(np.abs(scores - plain) > 1e-6)
    np.testing.assert_allclose(same, plain, rtol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_held_gates_are_held_and_the_rest_of_the_equations_is_as_it_was(name):
    model, xs = classifier(name), reference.normal(0, B, T, F)
    values = {"lstm": {"forget": 1.0, "input": 0.0}, "gru_reset_before": {"update": 1.0}}[name]
    held = flow.hold_gates(model, "rnn", values)

    @reference.quick_jit
    def run(held, model):
        call = flow.layer_calls(lambda model: model(xs), held)["rnn"][0]
        return flow.states(call), call.ys, model(xs), held(xs)

    seen, ys, plain, of_held = jax.tree.map(np.asarray, run(held, model))
    for gate, value in values.items():
        np.testing.assert_array_equal(seen.gates[gate], value)
    if name == "lstm":  # nothing is forgotten and nothing written: c stays what it was, 0
        np.testing.assert_array_equal(seen.carry["c"], 0.0)
        np.testing.assert_array_equal(ys, 0.0)
    else:  # h' = (1 - z) n + z h
        np.testing.assert_array_equal(seen.carry[""], 0.0)
    assert type(model.rnn.cell).__name__ in type(held.rnn.cell).__name__
    assert np.any(plain != of_held)


def test_a_layer_or_a_gate_that_does_not_exist_is_refused():
    model = classifier()
    with pytest.raises(ValueError, match="the model has no recurrent layer 'rnn/layers/1'; allowed: rnn"):
        flow.change_carry(model, "rnn/layers/1", lambda parts, t: parts)
    with pytest.raises(ValueError, match="LSTMCell has no gate 'update'; allowed: candidate, forget, input, output"):
        flow.hold_gates(model, "rnn", {"update": 1.0})
