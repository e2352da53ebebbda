"""Claims about attention and the decoder's cell that attends."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_jax
from rnn_jax.models.attention import SCORES, AttendingCarry, AttendingCell, Attention
from tests import reference

B, S, Q, F, U = 3, 5, 4, 4, 3
LENGTHS = np.array([5, 2, 0])


def make(score):
    return reference.drawn(lambda: Attention(score, Q, F, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def scores_in_numpy(attention, query, values):
    """The equations of the papers for one query `[Q]` and the true positions `[S, F]`, position by position."""
    key = None if attention.key is None else np.asarray(attention.key.kernel)
    scores = []
    for h in values:
        if attention.score == "additive":
            w, b, v = (np.asarray(x) for x in (attention.query.kernel, attention.query.bias, attention.v.kernel))
            scores.append(v[:, 0] @ np.tanh(query @ w + b + h @ key))
        else:
            scores.append(query @ (h if key is None else h @ key))
    return np.array(scores)


@pytest.mark.parametrize("score", SCORES)
def test_weights_are_those_of_the_papers_and_exactly_zero_on_padding(score):
    attention, values, query = make(score), reference.normal(2, B, S, F), reference.normal(3, B, Q)

    @reference.quick_jit
    def run(attention, values, query):
        memory = attention.memory(values, LENGTHS)
        weights = attention.weights(query, memory)
        return weights, attention.read(weights, memory)

    weights, read = (np.asarray(array) for array in run(attention, values, query))
    values, query = np.asarray(values), np.asarray(query)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(weights[b, length:], 0.0)
        if length:
            expected = softmax(scores_in_numpy(attention, query[b], values[b, :length]))
            np.testing.assert_allclose(weights[b, :length], expected, rtol=1e-12)
            np.testing.assert_allclose(weights[b].sum(), 1.0, rtol=1e-12)
            np.testing.assert_allclose(read[b], expected @ values[b, :length], rtol=1e-10, atol=1e-14)
        else:
            np.testing.assert_array_equal(read[b], 0.0)


@pytest.mark.parametrize("score", SCORES)
def test_what_padding_holds_changes_no_gradient(score):
    attention, values, query = make(score), reference.normal(2, B, S, F), reference.normal(3, B, Q)
    other = np.where((np.arange(S) < LENGTHS[:, None])[..., None], values, 1e3)

    def loss(attention, values):
        memory = attention.memory(values, LENGTHS)
        return jnp.sum(jnp.sin(attention.read(attention.weights(query, memory), memory)))

    grad = reference.quick_jit(jax.grad(loss, argnums=(0, 1)))
    grads, others = (grad(attention, some) for some in (values, other))
    reference.assert_close(grads, others, 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_cell_is_the_equations_of_its_docstring_step_by_step():
    """An Elman cell within, in NumPy, one sequence and one step after another."""
    kwargs = {"value_features": F, "param_dtype": jnp.float64}
    cell = reference.drawn(lambda: AttendingCell(2, 4, cell="elman", **kwargs, rngs=nnx.Rngs(0)))
    xs, values = reference.normal(2, B, U, 2), reference.normal(3, B, S, F)
    lengths = np.array([5, 2, 1])
    run = reference.quick_jit(lambda cell: rnn_jax.unroll(cell, xs, context=cell.attention.memory(values, lengths)))
    carry, ys = jax.device_get(run(cell))
    xs, values = np.asarray(xs), np.asarray(values)
    w, r, b, combine = (
        np.asarray(x) for x in (cell.cell.kernel, cell.cell.recurrent_kernel, cell.cell.bias, cell.combine)
    )
    for k in range(B):
        state, attended, true = np.zeros(4), np.zeros(4), values[k, : lengths[k]]
        for u in range(U):
            state = np.tanh(np.concatenate([xs[k, u], attended]) @ w + state @ r + b)
            weights = softmax(scores_in_numpy(cell.attention, state, true))
            attended = np.tanh(np.concatenate([weights @ true, state]) @ combine)
            np.testing.assert_allclose(ys[k, u], attended, rtol=1e-10)
        reference.assert_close(jax.tree.map(lambda part, k=k: part[k], carry), AttendingCarry(state, attended), 1e-10)


def test_keys_are_made_once_and_not_at_each_step():
    """The loop over steps holds no product with the matrix of the keys: the cell runs as well without it."""
    cell = reference.drawn(lambda: AttendingCell(2, 4, cell="elman", value_features=F, rngs=nnx.Rngs(0)))
    values, xs = np.ones((B, S, F), np.float32), np.ones((B, U, 2), np.float32)

    @reference.quick_jit
    def run(cell):
        memory = cell.attention.memory(values)
        _, ys = rnn_jax.unroll(cell, xs, context=memory)
        cell.attention.key = nnx.data(None)
        return ys, rnn_jax.unroll(cell, xs, context=memory)[1]

    ys, without = run(cell)
    np.testing.assert_array_equal(ys, without)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"score": "cosine"}, "attention='cosine' is unknown; allowed: additive, dot, general."),
        (
            {"score": "dot", "value_features": 6},
            "attention='dot' compares 4 features of the decoder with 6 of the encoder; allowed: as many (an encoder of"
            " one direction), or attention='general' or 'additive'.",
        ),
        ({"value_features": 0}, "value_features=0 is not a size; allowed: 1 or more."),
        (
            {"cell": "tests.user_cells:ConvLSTMCell"},
            "cell 'tests.user_cells:ConvLSTMCell' cannot attend; allowed: a cell of one feature axis that asks for no"
            " context.",
        ),
    ],
)
def test_an_impossible_attention_is_refused_in_one_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        AttendingCell(2, 4, **kwargs, rngs=nnx.Rngs(0))
