"""Claims about the sequence classifier."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import RNN, Bidirectional, Stack, flow
from rnn_jax.layers import make_rnn
from rnn_jax.models import POOLS, AttentionPool, SequenceClassifier
from rnn_jax.models.pooling import last_step
from rnn_jax.training.step import make_ensemble
from tests import reference
from tests.models import torch_models

B, T, F, H, C = 3, 5, 2, 4, 6
V, E = 7, 3
LENGTHS = np.array([5, 2, 1])
LABELS = np.array([0, 3, 5], np.int32)
ANSWERS = [*({"pool": pool} for pool in POOLS), {"per_step": True}]
BAGS = [{"recurrent": False}, {"recurrent": False, "per_step": True}]


def make(cell="elman", **kwargs):
    return reference.drawn(lambda: SequenceClassifier(cell, F, H, C, rngs=nnx.Rngs(0), **kwargs))


def make_of_tokens(cell="elman", dtype=jnp.float64, **kwargs):
    kwargs = {"emb_size": E, "param_dtype": dtype, "dtype": dtype, **kwargs}
    return reference.drawn(lambda: SequenceClassifier(cell, V, H, C, **kwargs, rngs=nnx.Rngs(0)))


def tokens(*shape, seed=3):
    return np.random.default_rng(seed).integers(0, V, shape or (B, T)).astype(np.int32)


def cross_entropy(logits):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[:, None], axis=-1))


def inputs(*batch_shape):
    return reference.normal(2, *(batch_shape or (B,)), T, F, dtype=jnp.float32)


def test_an_empty_sequence_in_both_directions_has_the_scores_of_zeros():
    model = make(bidirectional=True)
    scores = reference.quick_jit(model)(inputs(), np.array([5, 0, 2]))
    scores = np.asarray(scores)
    np.testing.assert_allclose(scores[1], model.head.bias[...], rtol=1e-6)
    assert np.all(np.abs(scores[0] - scores[1]) > 1e-4)


def test_any_number_of_batch_axes_will_do():
    model = make("elman", bidirectional=True)
    xs = reference.normal(2, 2, 2, T, F, dtype=jnp.float32)
    lengths = np.random.default_rng(0).integers(1, T + 1, (2, 2))

    @reference.quick_jit
    def run(xs, lengths):
        return model(xs), model(xs, lengths)

    together = [np.asarray(scores) for scores in run(xs, lengths)]
    assert [scores.shape for scores in together] == [(2, 2, C)] * 2
    for b in np.ndindex(2, 2):
        for scores, alone in zip(together, run(np.asarray(xs)[b], lengths[b]), strict=True):
            np.testing.assert_allclose(scores[b], alone, rtol=1e-5, atol=1e-6)


def test_the_cell_takes_its_arguments_from_name_and_keywords():
    @reference.quick_jit
    def bias():
        model = SequenceClassifier("lstm(forget_bias=3)", F, H, C, rngs=nnx.Rngs(0), use_bias=True)
        return model.rnn.cell.bias[...]

    np.testing.assert_array_equal(bias()[H : 2 * H], np.full(H, 3.0))


def test_it_is_built_of_the_layers_asked_for():
    assert isinstance(make().rnn, RNN)
    assert isinstance(make(bidirectional=True).rnn, Bidirectional)
    stack = make(layers=3, bidirectional=True).rnn
    assert isinstance(stack, Stack)
    assert [type(layer) for layer in stack.layers] == [Bidirectional] * 3


def test_the_same_seed_builds_the_same_model():
    one, same = (SequenceClassifier("elman", F, H, C, layers=2, rngs=nnx.Rngs(0)) for _ in range(2))
    reference.assert_close(one, same, 0.0)


def test_no_layers_and_unknown_cells_are_refused():
    with pytest.raises(ValueError, match="layers=0 is no number of layers; allowed: 1 or more"):
        make(layers=0)
    with pytest.raises(ValueError, match=r"unknown cell 'ltsm'; allowed: .*lstm"):
        make("ltsm")


def test_the_last_step_is_the_last_true_one():
    ys = np.arange(24.0).reshape(2, 4, 3)

    @reference.quick_jit
    def read(ys):
        some, first, one = np.array([2, 4]), np.array([0, 1]), np.array(3)
        return last_step(ys), last_step(ys, some), last_step(ys, first), last_step(ys[0], one)

    reference.assert_close(read(ys), (ys[:, -1], np.stack([ys[0, 1], ys[1, 3]]), ys[:, 0], ys[0, 2]), 0.0)


# ---------------------------------------------------------------------------------------- embedding, pools, steps


def named(answer):
    return "-".join(str(value) if key == "pool" else key for key, value in answer.items())


def torch_cases(dtype, few):
    """Returns all kinds of cells and shapes of networks, those that are not among the few marked as slow."""
    shapes = [(layers, bidirectional) for layers in (1, 2) for bidirectional in (False, True)]
    cases = [(kind, dtype, *shape) for kind in ("elman", "lstm", "gru") for shape in shapes]
    return [pytest.param(*case, marks=() if (case[0], *case[2:]) in few else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("kind", "dtype", "layers", "bidirectional"),
    [
        *torch_cases("float64", few=[("elman", 1, False), ("lstm", 1, True), ("lstm", 2, False), ("gru", 2, True)]),
        *torch_cases("float32", few=[]),
    ],
)
def test_it_is_the_packed_network_of_torch(kind, dtype, layers, bidirectional):
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    torch_models.check_classifier(kind, dtype, tolerance, layers=layers, bidirectional=bidirectional, pool="last")


@pytest.mark.parametrize("answer", ANSWERS[1:], ids=named)
def test_every_pool_over_a_packed_network_is_that_of_torch(answer):
    torch_models.check_classifier("elman", "float64", 1e-10, layers=1, bidirectional=False, **answer)


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[-1], BAGS[0]], ids=named)
def test_a_batch_padded_to_500_is_one_padded_to_50(answer):
    """In outputs and all gradients, dropout included, whatever tokens the padding holds."""
    layers = {"bidirectional": True} if answer == {"pool": "last"} else {"layers": 2}
    model = make_of_tokens(dropout=0.3, **layers, **answer)
    lengths, short = np.array([50, 13, 1]), tokens(B, 50)
    long = np.concatenate([short, tokens(B, 450, seed=4)], axis=1)
    other = np.where(np.arange(50) < lengths[:, None], short, (short + 1) % V)

    def loss(model, tokens):
        answers = model(tokens, lengths, key=jax.random.key(5))
        return jnp.sum(jnp.sin(answers)), answers[:, :50] if model.per_step else answers

    run = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))
    expected = run(model, short)
    assert reference.relative_error(expected[0][1], np.zeros_like(expected[0][1])) > 0.0
    reference.assert_close(run(model, long), expected, 1e-12)
    reference.assert_close(run(model, other), expected, 1e-12)


@pytest.mark.parametrize("answer", [*ANSWERS, *BAGS], ids=named)
def test_padding_of_nan_changes_nothing_and_gets_no_gradient(answer):
    model, padding = make("elman", **answer), np.arange(T) >= LENGTHS[:, None]
    xs = inputs()
    spoilt = np.where(padding[..., None], np.float32(np.nan), xs)

    def loss(model, xs):
        answers = model(xs, LENGTHS)
        return jnp.sum(jnp.sin(answers)), answers

    run = reference.quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    actual = run(model, spoilt)
    reference.assert_close(actual, run(model, xs), 1e-6)
    np.testing.assert_array_equal(np.asarray(actual[1][1])[padding], 0.0)
    if model.per_step:
        np.testing.assert_array_equal(np.asarray(actual[0][1])[padding], 0.0)


@pytest.mark.parametrize("answer", [*ANSWERS, *BAGS], ids=named)
def test_an_empty_sequence_leaves_values_and_gradients_finite(answer):
    model, lengths = make_of_tokens("elman", **answer), np.array([5, 0, 2])

    def loss(model):
        answers = model(tokens(), lengths)
        return jnp.sum(jnp.square(answers)), answers

    (_, answers), grads = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((answers, grads)))
    nothing = np.zeros((T, C)) if model.per_step else model.head.bias[...]
    np.testing.assert_allclose(answers[1], nothing, rtol=1e-12)


@pytest.mark.parametrize("answer", [*ANSWERS, *BAGS], ids=named)
def test_full_lengths_are_no_lengths_for_every_pool(answer):
    model = make_of_tokens(bidirectional=answer == {"pool": "last"}, **answer)
    full, none = reference.quick_jit(lambda model: (model(tokens(), np.full(B, T)), model(tokens())))(model)
    reference.assert_close(full, none, 1e-13)


@pytest.mark.parametrize("answer", [{"pool": "attention"}, *BAGS], ids=named)
def test_any_number_of_batch_axes_will_do_for_tokens(answer):
    model = make_of_tokens(dropout=0.5, **answer)
    many, lengths = tokens(2, 3, T), np.random.default_rng(0).integers(1, T + 1, (2, 3))
    run = reference.quick_jit(lambda tokens, lengths: model(tokens, lengths))
    answers = run(many, lengths)
    assert answers.shape == ((2, 3, T, C) if model.per_step else (2, 3, C))
    for b in np.ndindex(2, 3):
        np.testing.assert_allclose(answers[b], run(many[b], lengths[b]), rtol=1e-12)
    alone = jax.eval_shape(lambda key: model(many[0, 0], key=key), jax.random.key(0))
    assert alone.shape == answers[0, 0].shape


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
def test_a_bag_of_embeddings_is_a_loop(pool):
    model = make_of_tokens(recurrent=False, pool=pool)
    matrix, kernel, bias = (np.asarray(a[...]) for a in (model.embedding.embedding, model.head.kernel, model.head.bias))
    read = tokens()
    answers = np.asarray(reference.quick_jit(model)(read, LENGTHS))
    for sequence, length, scores in zip(read, LENGTHS, answers, strict=True):
        vectors = [matrix[token] for token in sequence[:length]]
        if pool == "mean":
            pooled = sum(vectors) / len(vectors)
        else:
            pooled = vectors[-1] if pool == "last" else [max(column) for column in zip(*vectors, strict=True)]
        np.testing.assert_allclose(scores, pooled @ kernel + bias, rtol=1e-12)


def test_a_bag_knows_no_order_and_has_no_recurrent_weights():
    model = make_of_tokens(recurrent=False)
    assert model.pool == "mean"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    assert sorted(paths) == [".embedding.embedding.value", ".head.bias.value", ".head.kernel.value"]
    run = reference.quick_jit(model)
    reference.assert_close(run(tokens()[:, ::-1].copy()), run(tokens()), 1e-13)


def pool_by_attention(dtype, scale=0.5):
    """Returns a pool, and its weights and what it gives, both of ys and lengths."""
    pool = reference.drawn(lambda: AttentionPool(H, rngs=nnx.Rngs(0), param_dtype=dtype), scale=scale)
    return pool, reference.quick_jit(lambda ys, lengths: (pool.weights(ys, lengths), pool(ys, lengths)))


def test_attention_weights_sum_to_1_over_true_steps_and_are_0_beyond():
    _, run = pool_by_attention(jnp.float64)
    ys, lengths = reference.normal(0, 4, T, H), np.array([5, 2, 1, 0])
    weights = np.asarray(run(ys, lengths)[0])
    true_steps = np.arange(T) < lengths[:, None]
    np.testing.assert_array_equal(weights[~true_steps], 0.0)
    assert np.all(weights[true_steps] > 0.0)
    np.testing.assert_allclose(weights.sum(axis=1), [1.0, 1.0, 1.0, 0.0], rtol=1e-14)
    assert np.ptp(weights[0]) > 0.01


def test_attention_is_the_equations_of_its_docstring():
    attention, run = pool_by_attention(jnp.float64)
    ys = np.asarray(reference.normal(0, B, T, H))
    W, b, q = (
        np.asarray(a[...]) for a in (attention.projection.kernel, attention.projection.bias, attention.query.kernel)
    )
    for y, length, pooled in zip(ys, LENGTHS, np.asarray(run(ys, LENGTHS)[1]), strict=True):
        strength = [np.exp(np.tanh(h @ W + b) @ q[:, 0]) for h in y[:length]]
        expected = sum(s * h for s, h in zip(strength, y[:length], strict=True)) / sum(strength)
        np.testing.assert_allclose(pooled, expected, rtol=1e-12)


def test_attention_to_scores_beyond_the_range_of_exp_stays_finite():
    _, run = pool_by_attention(jnp.float32, scale=1e4)
    weights = np.asarray(run(reference.normal(0, B, T, H, dtype=jnp.float32), LENGTHS)[0])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- the embedding


def test_an_embedding_starts_with_vectors_of_length_1():
    @reference.quick_jit
    def embedding():
        return SequenceClassifier("elman", 2000, H, C, emb_size=64, rngs=nnx.Rngs(0)).embedding.embedding[...]

    squares = np.sum(np.square(np.asarray(embedding())), axis=1)
    np.testing.assert_allclose(squares.mean(), 1.0, atol=5 * np.sqrt(2 / 64 / 2000))


def test_a_given_embedding_is_where_it_starts():
    matrix = np.random.default_rng(0).normal(size=(V, E))
    for emb_size in (None, E):
        model = SequenceClassifier("elman", V, H, C, emb_size=emb_size, embedding=matrix, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(model.embedding.embedding[...], matrix.astype(np.float32))
    grads = reference.quick_jit(jax.grad(lambda model: cross_entropy(model(tokens(), LENGTHS))))(model)
    assert np.any(grads.embedding.embedding[...])


def test_a_frozen_embedding_gets_no_gradient_and_all_else_the_same():
    tuned, frozen = (make_of_tokens(frozen_embedding=frozen) for frozen in (False, True))
    loss_and_grad = reference.quick_jit(jax.value_and_grad(lambda model: cross_entropy(model(tokens(), LENGTHS))))
    (loss, grads), (expected_loss, expected) = loss_and_grad(frozen), loss_and_grad(tuned)
    assert loss == expected_loss
    np.testing.assert_array_equal(grads.embedding.embedding[...], 0.0)
    assert np.any(expected.embedding.embedding[...])
    reference.assert_close((grads.rnn, grads.head), (expected.rnn, expected.head), 1e-13)


def test_tokens_that_are_not_read_get_no_gradient():
    grad = reference.quick_jit(jax.grad(lambda model: cross_entropy(model(tokens(), LENGTHS))))
    grads = grad(make_of_tokens())
    read = np.unique(tokens()[np.arange(T) < LENGTHS[:, None]])
    touched = np.any(np.asarray(grads.embedding.embedding[...]), axis=1)
    assert 0 < len(read) < V
    np.testing.assert_array_equal(np.flatnonzero(touched), read)


# ---------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("answer", [{"pool": "mean"}, {"per_step": True}, {"recurrent": False}], ids=named)
def test_dropout_leaves_the_expectation_of_a_linear_network(answer):
    """Without nonlinearity the scores are linear in each of the masks, which are independent and of mean 1."""
    model = make_of_tokens("elman(activation='identity')", layers=2, dropout=0.4, **answer)
    count, read = 4000, tokens(1, T)

    @reference.quick_jit
    def run(model):
        keys = jax.random.split(jax.random.key(0), count)
        return jax.vmap(lambda key: model(read, key=key))(keys), model(read)

    drawn, expected = (np.asarray(answers) for answers in run(model))
    error = drawn.std(axis=0) / np.sqrt(count)
    assert np.all(error > 0.0)
    assert np.all(np.abs(drawn.mean(axis=0) - expected) < 5.0 * error)


def test_dropout_hangs_on_its_key_alone():
    model, read = make_of_tokens(layers=2, dropout=0.5), tokens()
    run = reference.quick_jit(lambda model, key: model(read, LENGTHS, key=key))
    one, same, other = (np.asarray(run(model, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.all(np.any(one != other, axis=-1))


def test_dropout_without_a_key_or_a_rate_is_none():
    plain, dropping = make_of_tokens(layers=2), make_of_tokens(layers=2, dropout=0.5)

    @reference.quick_jit
    def run(plain, dropping):
        keyed = plain(tokens(), LENGTHS, key=jax.random.key(0))
        return plain(tokens(), LENGTHS), dropping(tokens(), LENGTHS), keyed

    expected, without_a_key, without_a_rate = run(plain, dropping)
    np.testing.assert_array_equal(without_a_key, expected)
    np.testing.assert_array_equal(without_a_rate, expected)


def test_dropout_before_the_head_hides_its_inputs_from_the_gradient_too():
    model = make_of_tokens("elman", dropout=0.5)

    def run(model, kernel):
        model = nnx.clone(model)
        model.head.kernel = nnx.Param(kernel)
        return jnp.sum(model(tokens(1, T), key=jax.random.key(3)))

    value_and_grad = reference.quick_jit(jax.value_and_grad(run, argnums=1))
    value, grad = value_and_grad(model, model.head.kernel[...])
    dropped = ~np.any(np.asarray(grad), axis=1)
    assert 0 < dropped.sum() < H
    assert value_and_grad(model, model.head.kernel[...] + 10.0 * dropped[:, None])[0] == value


# ------------------------------------------------------------------------------------------------ the whole machine


def test_the_plain_model_draws_its_layers_and_then_its_head():
    model, rngs = SequenceClassifier("elman", F, H, C, layers=2, bidirectional=True, rngs=nnx.Rngs(7)), nnx.Rngs(7)
    rnn = make_rnn("elman", F, H, layers=2, bidirectional=True, rngs=rngs)
    reference.assert_close((model.rnn, model.head), (rnn, nnx.Linear(2 * H, C, rngs=rngs)), 0.0)


def test_its_loss_has_a_gradient_profile_that_names_its_layers():
    options = {"layers": 2, "dropout": 0.5, "pool": "attention", "dtype": jnp.float32}

    def loss(model, key):
        return cross_entropy(model(tokens(), LENGTHS, key=key))

    def profile_and_gradient(model, key):
        return flow.gradient_profile(loss, model, key), jax.grad(loss)(model, key)

    profile, grads = reference.quick_jit(profile_and_gradient)(make_of_tokens(**options), jax.random.key(0))
    top = np.asarray(profile.log10_norm["rnn/layers/1"])
    assert np.all(np.isfinite(top[:-1]))
    assert top[-1] == -np.inf  # the top layer's last carry is read by nothing
    reference.assert_close(profile.grads, grads, 1e-5)

    both = jax.eval_shape(
        lambda *args: flow.gradient_profile(loss, *args),
        make_of_tokens(bidirectional=True, **options),
        jax.random.key(0),
    )
    assert set(both.log10_norm) == {
        f"rnn/layers/{k}/{direction}_rnn" for k in (0, 1) for direction in ("forward", "backward")
    }


def test_an_ensemble_of_seeds_is_each_of_them_alone():
    def build(rngs):
        return SequenceClassifier(
            "elman", V, H, C, emb_size=E, dropout=0.5, recurrent_kernel_init=nnx.initializers.normal(), rngs=rngs
        )

    def run(model):
        return model(tokens(), LENGTHS, key=jax.random.key(0))

    together = reference.quick_jit(jax.vmap(run))(make_ensemble(build, [3, 4]))
    alone = reference.quick_jit(lambda key: run(build(nnx.Rngs(key))))
    for seed, scores in zip((3, 4), np.asarray(together), strict=True):
        reference.assert_close(alone(jax.random.key(seed)), scores, 1e-5)


def test_bfloat16_is_float32_to_its_two_digits():
    answer = {"pool": "attention"}
    model = make_of_tokens(dropout=0.5, dtype=jnp.float32, **answer)
    low = make_of_tokens(dropout=0.5, param_dtype=jnp.float32, dtype=jnp.bfloat16, **answer)
    low = jax.tree.unflatten(jax.tree.structure(low), jax.tree.leaves(model))

    def loss(model):
        answers = model(tokens(), LENGTHS, key=jax.random.key(0))
        return jnp.sum(jnp.square(answers.astype(jnp.float32))), answers

    (_, scores), grads = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))(low)
    _, expected = reference.quick_jit(loss)(model)
    assert scores.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert reference.relative_error(scores, expected) < 0.03


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"pool": "sum"}, "pool='sum' is unknown; allowed: last, mean, max, attention."),
        (
            {"pool": "mean", "per_step": True},
            "pool='mean' with per_step=True; allowed: either one answer a sequence or one a step.",
        ),
        ({"dropout": 1.0}, "dropout=1.0 is no rate; allowed: 0 or more, and below 1."),
        ({"dropout": -0.1}, "dropout=-0.1 is no rate; allowed: 0 or more, and below 1."),
        ({"dropout": float("nan")}, "dropout=nan is no rate; allowed: 0 or more, and below 1."),
        ({"emb_size": 0}, "emb_size=0 is not a size; allowed: 1 or more."),
        ({"in_features": 0}, "in_features=0 is not a size; allowed: 1 or more."),
        ({"hidden_features": 0}, "hidden_features=0 is not a size; allowed: 1 or more."),
        ({"out_features": 0}, "out_features=0 is not a size; allowed: 1 or more."),
        ({"embedding": np.zeros((V + 1, E))}, "embedding has shape (8, 3); allowed: [7, 3], a row for each token."),
        (
            {"embedding": np.zeros((V, 9)), "emb_size": 4},
            "embedding has shape (7, 9); allowed: [7, 4], a row for each token.",
        ),
        (
            {"embedding": np.zeros(V), "emb_size": None},
            "embedding has shape (7,); allowed: [7, E], a row for each token.",
        ),
        (
            {"frozen_embedding": True, "emb_size": None},
            "frozen_embedding=True freezes nothing; allowed: with emb_size or embedding.",
        ),
    ],
)
def test_an_impossible_model_is_refused_in_one_sentence(kwargs, sentence):
    sizes = {"in_features": V, "hidden_features": H, "out_features": C, "emb_size": E}
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        SequenceClassifier("flax.nnx:GRUCell", **{**sizes, **kwargs}, rngs=nnx.Rngs(0))


def test_what_is_no_input_is_refused_in_one_sentence():
    sentence = "inputs have shape (3, 5, 2) and dtype float32; allowed: tokens, integers [*batch, time]."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make_of_tokens()(inputs())
    sentence = "inputs have shape (3, 5); allowed: [*batch, time, 2] (a model of tokens has an emb_size)."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()(tokens())
    with pytest.raises(ValueError, match="lengths holds 6; allowed: 0 to 5, the number of time steps"):
        make_of_tokens(recurrent=False)(tokens(), np.array([5, 6, 1]))
