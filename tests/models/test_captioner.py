"""The captioner against the equations of the paper, and hard attention against the gradient that it estimates."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import flow, tasks
from rnn_jax.cell import step
from rnn_jax.models import Captioner
from rnn_jax.models.captioner import doubly_stochastic_penalty
from rnn_jax.models.decoding import attention_map
from rnn_jax.tasks.task import END, NOT_ASKED, answer_cross_entropy, exact_match
from tests import reference

PLACES, FEATURES, WORDS = 5, 3, 7
ANSWER = np.array([[3, 5, 2, END], [4, END, NOT_ASKED, NOT_ASKED]], np.int32)


def captioner(cell="lstm", **changes):
    """A captioner of given features, all of whose parameters are drawn, biases too, in float64."""
    sizes = {"out_features": WORDS, "emb_size": 4, "hidden_features": 6}
    return reference.drawn(
        lambda: Captioner(cell, FEATURES, **sizes, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **changes), seed=0
    )


def features(batch=2, places=PLACES):
    return np.random.default_rng(1).normal(size=(batch, places, FEATURES))


def array(variable):
    return np.asarray(variable[...])


def affine(x, linear):
    bias = 0.0 if linear.bias is None else array(linear.bias)
    return x @ array(linear.kernel) + bias


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_caption_is_written_as_the_paper_says():
    model = captioner(doubly_stochastic=0.7)
    cell = model.decoder.cell
    a, answer = features(1)[0], ANSWER[0]
    f_c, f_h = model.initial
    c, h = np.tanh(affine(a.mean(axis=0), f_c)), np.tanh(affine(a.mean(axis=0), f_h))
    logits, alphas = [], []
    for before in (END, *answer[:-1]):
        Ey = array(model.answer_embedding.embedding)[before]
        hidden = np.tanh(affine(h, cell.attention.query) + affine(a, cell.attention.key))
        e = affine(hidden, cell.attention.v)[:, 0]
        alpha = np.exp(e) / np.exp(e).sum()
        beta = sigmoid(affine(h, cell.beta))
        z = beta * (alpha @ a)
        gates = np.concatenate([Ey, z]) @ array(cell.cell.kernel) + h @ array(cell.cell.recurrent_kernel)
        i, f, g, o = np.split(gates + array(cell.cell.bias), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits.append(affine(Ey + affine(h, model.from_h) + affine(z, model.from_z), model.head))
        alphas.append(alpha)
    ours, penalty = jax.jit(lambda model: model(features(1), answer=ANSWER[:1]))(model)
    np.testing.assert_allclose(ours[0], logits, rtol=1e-10)
    # The loss is a mean over the four tokens.
    np.testing.assert_allclose(penalty, [0.7 * np.sum((1 - np.sum(alphas, axis=0)) ** 2) / 4], rtol=1e-10)


def test_the_penalty_counts_true_steps_only():
    weights = np.random.default_rng(0).dirichlet(np.ones(PLACES), size=(2, 4))
    weights[1, 2:] = 0.0
    expected = [sum((1 - sum(weights[b, t, i] for t in range(4))) ** 2 for i in range(PLACES)) for b in range(2)]
    np.testing.assert_allclose(doubly_stochastic_penalty(jnp.asarray(weights)), expected, rtol=1e-12)


def test_step_by_step_is_teacher_forcing():
    model = captioner("tests.user_cells:MatrixCell")
    forced, _ = jax.jit(lambda model: model(features(), answer=ANSWER))(model)

    @jax.jit
    def one_by_one(model):
        carry, context = model.start(features())
        rows = []
        for t in range(ANSWER.shape[1]):
            before = jnp.full(2, END) if t == 0 else jnp.maximum(ANSWER[:, t - 1], END)
            carry, logits, weights = model.next(carry, before, context)
            rows.append((logits, weights))
        return rows

    asked = ANSWER != NOT_ASKED
    forced, rows = jax.device_get((forced, one_by_one(model)))
    for t, (logits, weights) in enumerate(rows):
        np.testing.assert_allclose(logits[asked[:, t]], forced[asked[:, t], t], rtol=1e-9)
        np.testing.assert_allclose(np.sum(weights, axis=-1), 1.0, rtol=1e-12)
        assert np.all(weights > 0)


def test_the_map_has_a_row_of_weights_for_each_word():
    model = captioner()
    tokens = model.greedy(features(), None, 4)
    weights = attention_map(model, features(), None, tokens)
    assert weights.shape == (2, 4, PLACES)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1.0, rtol=1e-12)


def test_padding_of_the_answer_changes_neither_loss_nor_gradient():
    model = captioner("elman", hard=True, dropout=0.3)
    value = jax.jit(
        jax.value_and_grad(
            lambda model, answer: answer_cross_entropy(
                functools.partial(model, key=jax.random.key(3)), {"xs": features(), "answer": answer}
            )
        )
    )
    loss, grads = value(model, ANSWER)
    padded_loss, padded_grads = value(model, np.pad(ANSWER, [(0, 0), (0, 3)], constant_values=NOT_ASKED))
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-12)
    for padded, grad in zip(jax.tree.leaves(padded_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(padded, grad, rtol=1e-9, atol=1e-14)
    # Where nothing is drawn, both kinds of attention are the same.
    run = jax.jit(lambda *models: [model(features(), answer=ANSWER)[0] for model in models])
    np.testing.assert_array_equal(*run(model, captioner("elman")))


def test_a_drawn_place_is_read_alone():
    @reference.quick_jit
    def read_once(model):
        carry, context = model.start(features(400, 2)[:1].repeat(400, axis=0))
        context = context._replace(sampled=jnp.arange(400) > 0)
        x, cell = jnp.zeros((400, 4)), model.decoder.cell
        _, glimpse = step(cell, carry, x, context=context, key=jax.random.key(0))
        return glimpse, cell.gates(carry, x, context=context)["beta"]

    glimpse, beta = jax.device_get(read_once(captioner("elman", hard=True, expected_rate=0.0)))
    first = np.isclose(glimpse.log_p, np.log(glimpse.weights[:, 0]), rtol=1e-12)
    read = glimpse.z / beta
    np.testing.assert_allclose(read[0], glimpse.weights[0] @ features(400, 2)[0], rtol=1e-9)
    assert glimpse.log_p[0] == 0
    np.testing.assert_allclose(read[1:], features(400, 2)[0][np.where(first, 0, 1)][1:], rtol=1e-9)
    share = float(glimpse.weights[0, 0])
    assert abs(first[1:].mean() - share) < 4 * np.sqrt(share * (1 - share) / 399)


def test_the_estimator_of_hard_attention_has_the_gradient_of_the_expected_log_likelihood(monkeypatch):
    """All paths of two captions over three places: five choices in the first, of two steps; one step in the second."""
    places, key = 3, jax.random.key(0)
    answer = np.array([[3, END], [END, NOT_ASKED]], np.int32)
    xs = features(2, places)
    weights = {"reinforce_weight": 1.0, "entropy_weight": 0.0, "doubly_stochastic": 0.0}
    model = captioner("elman", hard=True, expected_rate=0.0, **weights)
    step_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key, 3)[0], jnp.arange(2, dtype=jnp.uint32))
    look_keys = jax.random.key_data(jax.vmap(jax.random.split)(step_keys)[:, 0])
    paths = np.array([((s, t), (u, 0)) for s, t, u in itertools.product(range(places), repeat=3)])

    def estimate(model, path):  # the loss as it is, but with places from a list in the place of drawn ones
        def chosen(step_key, logits, axis):
            del logits, axis
            t = jnp.argmax(jnp.all(look_keys == jax.random.key_data(step_key)[None], axis=-1))
            return jnp.take(path, t, axis=1)

        monkeypatch.setattr(jax.random, "categorical", chosen)
        return answer_cross_entropy(functools.partial(model, key=key), {"xs": xs, "answer": answer})

    def log_probabilities(model, path):  # of the words and of the choices, [2] each
        cell, words, choices = model.decoder.cell, [], []
        for b in range(2):
            carry, context = model.start(xs[b : b + 1])
            before, total, chosen = jnp.array([END]), 0.0, 0.0
            for t in range(2 - b):
                query = cell.query(carry)
                weights = cell.attention.weights(query, context.memory)[0]
                chosen += jnp.log(weights[path[b, t]])
                z = jax.nn.sigmoid(cell.beta(query)) * jnp.asarray(xs)[b, path[b, t]][None]
                x = model.answer_embedding(before)
                carry, h = step(cell.cell, carry, jnp.concatenate([x, z], axis=-1))
                logits = model.head(x + model.from_h(h) + model.from_z(z))
                total += jax.nn.log_softmax(logits)[0, answer[b, t]]
                before = jnp.asarray(answer[b : b + 1, t])
            words.append(total)
            choices.append(chosen)
        return jnp.stack(words), jnp.stack(choices)

    def expected_loss(model):
        def of_path(path):
            words, choices = log_probabilities(model, path)
            return -jnp.exp(jnp.sum(choices)) * jnp.sum(words) / 3  # three tokens

        return jnp.sum(jax.lax.map(of_path, jnp.asarray(paths)))

    def weighted(path):
        _, choices = log_probabilities(model, path)
        value, grads = jax.value_and_grad(estimate)(model, path)
        return jax.tree.map(lambda leaf: jnp.exp(jnp.sum(choices)) * leaf, (value, grads))

    value, grads = jax.jit(lambda: jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(weighted, paths)))()
    exact_value, exact_grads = jax.jit(jax.value_and_grad(expected_loss))(model)
    np.testing.assert_allclose(value, exact_value, rtol=1e-10)
    for ours, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grads), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-7, atol=1e-12)
    # The scores of places are reached by the estimator alone.
    assert np.abs(exact_grads.decoder.cell.attention.v.kernel[...]).max() > 1e-3


def test_the_profile_sees_the_decoder():
    model = captioner()
    profile = jax.jit(lambda model: flow.gradient_profile(answer_cross_entropy, model, batch()))(model)
    assert {"decoder", "decoder/c", "decoder/h"} <= set(profile.log10_norm)
    assert np.isfinite(profile.log10_norm["decoder"][0])


def batch():
    return {"xs": features(), "answer": ANSWER}


def test_a_tiny_captioner_reads_its_image_and_is_lost_without_it():
    images = np.zeros((4, 8, 8, 1), np.float32)  # a bar at one of four places
    for k, (rows, columns) in enumerate([(slice(0, 2), slice(8)), (slice(6, 8), slice(8)), (slice(8), slice(0, 2)),
                                         (slice(8), slice(6, 8))]):  # fmt: skip
        images[k, rows, columns] = 1
    answer = np.array([[2, 3, END], [2, 4, END], [5, 6, END], [5, 7, END]], np.int32)
    data = {"xs": images, "answer": answer}
    model = reference.drawn(lambda: Captioner("gru", (8, 1), 8, 8, 16, rngs=nnx.Rngs(0)), scale=0.3)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(model):
        def update(state, key):
            model, opt_state = state
            grads = jax.grad(lambda model: answer_cross_entropy(functools.partial(model, key=key), data))(model)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(model, updates), opt_state), None

        return jax.lax.scan(update, (model, optimizer.init(model)), jax.random.split(jax.random.key(0), 80))[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax
        model = train(model)
    assert exact_match(model, data) == (4, 4)
    blind = np.broadcast_to(images.mean(axis=0), images.shape)
    assert exact_match(model, {**data, "xs": blind})[0] <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"doubly_stochastic": -1.0}, "doubly_stochastic=-1.0 is no weight"),
        ({"reinforce_weight": -1.0}, "reinforce_weight=-1.0 is no weight"),
        ({"expected_rate": 1.5}, "expected_rate=1.5 is no rate"),
        ({"cell": "tests.user_cells:AttendingCell"}, "cannot attend"),
    ],
)
def test_bad_arguments_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        captioner(**changes)


def test_inputs_of_another_shape_are_told():
    with pytest.raises(ValueError, match=r"inputs have shape \(2, 5, 4\); allowed: \[batch, places, 3\]"):
        captioner()(np.zeros((2, 5, 4)), answer=ANSWER)
    interface = {"name": "t", "kind": tasks.Kind.SEQUENCE, "reads_tokens": False, "out_features": WORDS}
    assert tasks.Interface(**interface, in_features=(8, 1), answer_length=4).in_features == (8, 1)
