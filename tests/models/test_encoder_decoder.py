"""Claims about the encoder-decoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rnn_jax
from rnn_jax import flow
from rnn_jax.models import EncoderDecoder
from rnn_jax.tasks.task import answer_cross_entropy, exact_match
from tests import reference

B, T, U = 3, 6, 4
SIZES = {"in_features": 7, "out_features": 5, "emb_size": 3, "hidden_features": 4}
SOURCES = np.random.default_rng(0).integers(0, 7, (B, T)).astype(np.int32)
LENGTHS = np.array([6, 2, 4], np.int32)
ANSWERS = np.array([[1, 2, 3, 0], [4, 0, -1, -1], [2, 2, 0, -1]], np.int32)


def make(cell="elman", dtype=jnp.float64, **kwargs):
    return reference.drawn(lambda: EncoderDecoder(cell, **{**SIZES, **kwargs}, param_dtype=dtype, rngs=nnx.Rngs(0)))


def test_padding_of_source_and_answer_changes_neither_loss_nor_gradient():
    """With dropout and scheduled sampling at work."""
    model = make(bidirectional=True, dropout=0.3, scheduled_sampling=0.5)
    true = np.arange(T) < LENGTHS[:, None]
    longer = np.concatenate([np.where(true, SOURCES, 6), np.full((B, 3), 5, np.int32)], axis=1)
    padded = np.concatenate([ANSWERS, np.full((B, 2), -1, np.int32)], axis=1)

    def loss(model, tokens, answer):
        outputs = []

        def noted(*args, **kwargs):
            outputs.append(model(*args, **kwargs, key=jax.random.key(1)))
            return outputs[0]

        return answer_cross_entropy(noted, {"tokens": tokens, "lengths": LENGTHS, "answer": answer}), outputs[0]

    run = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))
    ((value, (logits, penalty)), grads) = run(model, longer, padded)
    ((expected, _), expected_grads) = run(model, SOURCES, ANSWERS)
    reference.assert_close((value, grads), (expected, expected_grads), 1e-12)
    assert np.all(np.any(grads.answer_embedding.embedding[...], axis=-1)[:4])
    assert not np.any(np.asarray(logits)[padded < 0])
    assert not np.any(penalty)


def test_an_answer_depends_on_no_token_after_it():
    model = make(bidirectional=True)
    changed = ANSWERS.copy()
    changed[0, 2] = 1
    run = reference.quick_jit(lambda answer: model(SOURCES, LENGTHS, answer=answer)[0][0])
    one, other = (np.asarray(run(answer)) for answer in (ANSWERS, changed))
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.all(one[3] != other[3])


def test_without_attention_the_decoder_knows_the_last_state_of_the_encoder_alone():
    """In one direction, layer by layer: it starts from that state, and is given nothing else."""

    @reference.quick_jit
    def run(model):
        carry, _ = model.start(SOURCES, LENGTHS)
        last, _ = model.encoder(model.embedding(SOURCES), seq_lengths=LENGTHS, return_carry=True)
        ys = model.decoder(
            model.answer_embedding(np.array([[0, 1, 2, 3]], np.int32)),
            initial_carry=jax.tree.map(lambda part: part[:1], last),
        )
        logits, _ = model(SOURCES[:1], LENGTHS[:1], answer=ANSWERS[:1])
        return carry, last, logits, model.head(ys)

    carry, last, logits, expected = run(make("lstm", attention="none", layers=2))
    reference.assert_close(carry, last, 0.0)
    reference.assert_close(logits, expected, 1e-12)


def test_the_bridge_of_two_directions_is_a_linear_map_of_both():
    model = make("lstm", bidirectional=True)

    @reference.quick_jit
    def run(model):
        (first,), _ = model.start(SOURCES, LENGTHS)
        ends, _ = model.encoder(model.embedding(SOURCES), seq_lengths=LENGTHS, return_carry=True)
        return first, ends

    first, (ahead, back) = run(model)
    for linear, part in zip(model.bridge[0], ("c", "h"), strict=True):
        joined = np.concatenate([getattr(ahead, part), getattr(back, part)], axis=-1)
        expected = joined @ np.asarray(linear.kernel) + np.asarray(linear.bias)
        np.testing.assert_allclose(getattr(first.cell, part), expected, rtol=1e-10)
    assert not np.any(first.attended)


def test_scheduled_sampling_of_rate_1_reads_no_true_token_and_of_rate_0_every_one():
    other = np.where(ANSWERS > 0, 5 - ANSWERS, ANSWERS)

    @reference.quick_jit
    def run(model, answer, key):
        return model(SOURCES, LENGTHS, answer=answer, key=key)[0]

    def logits(rate, answer, key):
        return np.asarray(run(make(scheduled_sampling=rate), answer, key))

    key = jax.random.key(0)
    np.testing.assert_array_equal(logits(1.0, ANSWERS, key), logits(1.0, other, key))
    assert np.any(logits(1.0, ANSWERS, key) != logits(1.0, ANSWERS, jax.random.key(1)))
    forced = logits(0.0, ANSWERS, None)
    np.testing.assert_array_equal(logits(0.0, ANSWERS, key), forced)
    np.testing.assert_array_equal(logits(1.0, ANSWERS, None), forced)
    assert np.all(np.any(forced != logits(0.0, other, None), axis=(1, 2)))


def test_its_loss_has_a_gradient_profile_of_encoder_and_decoder():
    model = make("lstm", jnp.float32, bidirectional=True, scheduled_sampling=0.5)

    def loss(model):
        logits, _ = model(SOURCES, LENGTHS, answer=ANSWERS, key=jax.random.key(0))
        return jnp.sum(jnp.square(logits))

    profile = jax.eval_shape(lambda model: flow.gradient_profile(loss, model), model)
    encoder = {f"encoder/{way}_rnn{part}" for way in ("forward", "backward") for part in ("", "/c", "/h")}
    assert set(profile.log10_norm) == encoder | {f"decoder{part}" for part in ("", "/cell/c", "/cell/h", "/attended")}


@pytest.mark.parametrize("name", [*rnn_jax.list_cells(), "flax.nnx:LSTMCell", "tests.user_cells:Zoneout"])
def test_any_cell_of_one_feature_axis_translates(name):
    """On shapes alone: forced, and one step of decoding."""
    if jax.eval_shape(lambda: rnn_jax.make_cell(name, 3, 4, rngs=nnx.Rngs(0))).num_feature_axes != 1:
        pytest.skip("the cell reads several feature axes")

    def run():
        model = EncoderDecoder(name, **SIZES, bidirectional=True, rngs=nnx.Rngs(0))
        carry, context = model.start(SOURCES, LENGTHS)
        after, logits, weights = model.next(carry, ANSWERS[:, 0], context)
        return model(SOURCES, LENGTHS, answer=ANSWERS, key=jax.random.key(0))[0], carry, after, logits, weights

    forced, carry, after, logits, weights = jax.eval_shape(run)
    assert (forced.shape, logits.shape, weights.shape) == ((B, U, 5), (B, 5), (B, T))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def test_a_tiny_one_learns_to_write_backward():
    """Sequences of 1 to 5 of 5 symbols; those of the test are not trained on. What a constant answer gets is 0.03."""
    rng = np.random.default_rng(0)

    def batch(lengths, digits):
        tokens = np.where(np.arange(5) < lengths[:, None], digits, 0).astype(np.int32)
        answer = np.full((len(lengths), 6), -1, np.int32)
        for row, source, length in zip(answer, tokens, lengths):
            row[: length + 1] = [*source[:length][::-1], 0]
        return {"tokens": tokens, "answer": answer, "lengths": lengths.astype(np.int32)}

    whole = batch(rng.integers(1, 6, 1200), rng.integers(1, 6, (1200, 5)))
    words = [tuple(row) for row in whole["tokens"]]
    tested = np.array([hash(word) % 5 == 0 for word in words])
    train, test = ({name: array[some] for name, array in whole.items()} for some in (~tested, tested))
    model = reference.drawn(lambda: EncoderDecoder("gru", 6, 6, 16, 32, rngs=nnx.Rngs(0)), scale=0.2)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(model, picks):
        def step(state, pick):
            model, opt_state = state
            chosen = {name: jnp.asarray(array)[pick] for name, array in train.items()}
            grads = jax.grad(answer_cross_entropy)(model, chosen)
            updates, opt_state = optimizer.update(grads, opt_state, model)
            return (optax.apply_updates(model, updates), opt_state), None

        return jax.lax.scan(step, (model, optimizer.init(model)), picks)[0][0]

    picks = rng.integers(0, len(train["lengths"]), (150, 64))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):  # optax promotes
        model = learn(model, picks)
        right, count = exact_match(model, test)
    assert float(right) / int(count) > 0.95


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"attention": "cosine"}, "attention='cosine' is unknown; allowed: none, additive, dot, general."),
        ({"scheduled_sampling": 1.5}, "scheduled_sampling=1.5 is no rate; allowed: 0 to 1."),
        ({"dropout": 1.0}, "dropout=1.0 is no rate; allowed: 0 or more, and below 1."),
        ({"layers": 0}, "layers=0 is not a size; allowed: 1 or more."),
        ({"out_features": 0}, "out_features=0 is not a size; allowed: 1 or more."),
        (
            {"attention": "dot", "bidirectional": True},
            "attention='dot' compares 4 features of the decoder with 8 of the encoder; allowed: as many (an encoder of"
            " one direction), or attention='general' or 'additive'.",
        ),
    ],
)
def test_an_impossible_model_is_refused_in_one_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        EncoderDecoder("gru", **{**SIZES, **kwargs}, rngs=nnx.Rngs(0))
