"""Claims about the language model and what it says."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import flow
from rnn_jax.models import LanguageModel, generate
from tests import reference
from tests.models import torch_models

B, T, V, E, H = 2, 9, 5, 3, 4


def make(cell="lstm", dtype=jnp.float64, **kwargs):
    sizes = {"vocabulary_size": V, "emb_size": E, "hidden_features": H, **kwargs}
    return reference.randomized(LanguageModel(cell, **sizes, param_dtype=dtype, rngs=nnx.Rngs(0)), seed=1)


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape or (B, T)).astype(np.int32)


@pytest.mark.parametrize("tie", [False, True], ids=["own-head", "tied"])
@pytest.mark.parametrize(("kind", "layers"), [("lstm", 2), ("gru", 1)])
def test_it_is_the_language_model_of_torch_piece_by_piece(kind, layers, tie):
    torch_models.check_language_model(kind, layers, tie)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cuts", [[4], [1, 2, 8], []])
def test_a_text_read_in_pieces_is_the_whole_text(layers, cuts):
    model, text = make(layers=layers), tokens()

    def read_in_pieces(model):
        carry, logits = model.initialize_carry((B,)), []
        for piece in np.split(text, cuts, axis=1):
            carry, some = model(piece, carry=carry, return_carry=True)
            logits.append(some)
        return carry, jnp.concatenate(logits, axis=1)

    pieces, whole = reference.quick_jit(lambda model: (read_in_pieces(model), model(text, return_carry=True)))(model)
    reference.assert_close(pieces, whole, 1e-12)
    assert jax.tree.structure(pieces[0]) == jax.tree.structure(model.initialize_carry((B,)))


def test_a_token_changes_no_logits_before_it():
    model, text = make(layers=2), tokens()
    changed = text.copy()
    changed[:, 5] = (changed[:, 5] + 1) % V
    one, other = np.asarray(model(text)), np.asarray(model(changed))
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert np.all(np.any(one[:, 5:] != other[:, 5:], axis=-1))


def test_padding_changes_neither_logits_nor_carry_nor_gradients():
    model, lengths = make(layers=2, dropout=0.5), np.array([9, 4])
    long = np.concatenate([tokens(), tokens(B, 20, seed=1)], axis=1)

    def loss(model, text):
        carry, logits = model(text, lengths, return_carry=True, key=jax.random.key(0))
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(carry[1].h)), (carry, logits[:, :T], logits[:, T:])

    run = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))
    (value, (carry, logits, beyond)), grads = run(model, long)
    (expected_value, (expected_carry, expected, _)), expected_grads = run(model, tokens())
    reference.assert_close(
        (value, carry, logits, grads), (expected_value, expected_carry, expected, expected_grads), 1e-12
    )
    assert not np.any(beyond)


def test_dropout_needs_a_key_and_hangs_on_it():
    model = make(layers=2, dropout=0.5)
    plain = make(layers=2)(tokens())
    np.testing.assert_array_equal(model(tokens()), plain)
    run = reference.quick_jit(lambda key: model(tokens(), key=key))
    one, same, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.all(np.any(one != other, axis=-1))
    assert np.all(np.any(one != np.asarray(plain), axis=-1))


@pytest.mark.parametrize("cell", ["lstm", "flax.nnx:GRUCell"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_carry_is_what_no_tokens_leave(cell, layers):
    model = make(cell, layers=layers)
    expected, _ = model(np.zeros((B, 0), np.int32), return_carry=True)
    carry = model.initialize_carry((B,))
    assert jax.tree.structure(carry) == jax.tree.structure(expected)
    reference.assert_close(carry, expected, 0.0)


def test_its_loss_has_a_gradient_profile_that_names_its_layers():
    """To make the first carry within the loss is no second run of the layers, of which a profile allows one."""
    model = make(layers=2, dtype=jnp.float32)

    def loss(model):
        return jnp.sum(jnp.square(model(tokens(), carry=model.initialize_carry((B,)))))

    profile = reference.quick_jit(lambda model: flow.gradient_profile(loss, model))(model)
    assert set(profile.log10_norm) == {f"rnn/layers/{k}{part}" for k in (0, 1) for part in ("", "/c", "/h")}
    assert np.isfinite(profile.log10_norm["rnn/layers/1"][:-1]).all()


@pytest.mark.parametrize("tie", [False, True], ids=["own-head", "tied"])
def test_bfloat16_is_float32_to_its_two_digits(tie):
    full = make("gru", dtype=jnp.float32, emb_size=H, tie=tie)
    low = LanguageModel("gru", V, H, H, tie=tie, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    low = jax.tree.unflatten(jax.tree.structure(low), jax.tree.leaves(full))
    logits = low(tokens())
    assert logits.dtype == jnp.bfloat16
    assert reference.relative_error(logits, full(tokens())) < 0.03
    said = generate(low, tokens(), 3, jax.random.key(0))
    assert said.shape == (B, 3)
    assert said.dtype == jnp.int32


# ------------------------------------------------------------------------------------------------------------ generate


def test_the_likeliest_continuation_is_a_loop_that_reads_all_again():
    model, text = jax.tree.map(lambda x: 3.0 * x, make("gru")), np.zeros((B, 12 + T), np.int32)
    model.head.bias = nnx.Param(jnp.zeros((V,)))  # or one token is the likeliest everywhere
    text[:, :T] = tokens()
    said = generate(model, text[:, :T], 12, jax.random.key(0), temperature=0.0)
    run = reference.quick_jit(lambda text: model(text))
    for t in range(T, T + 12):
        text[:, t] = np.argmax(run(text)[:, t - 1], axis=-1)
    np.testing.assert_array_equal(said, text[:, T:])
    assert len(np.unique(said)) > 2


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_model(temperature):
    """Pearson's statistic of all texts of two tokens, each by the chain rule: above 60 in 1 of 10^4 keys."""
    model, count, start = make("gru"), 20_000, np.array([2, 1], np.int32)
    said = generate(model, np.tile(start, (count, 1)), 2, jax.random.key(0), temperature=temperature)
    counted, statistic = collections.Counter(map(tuple, np.asarray(said).tolist())), 0.0
    texts = np.array([[*start, first] for first in range(V)], np.int32)
    logits = np.asarray(model(texts)) / temperature
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for first in range(V):
        for second in range(V):
            expected = count * p[first, 1, first] * p[first, 2, second]
            statistic += (counted[first, second] - expected) ** 2 / expected
    assert statistic < 60.0


def test_equal_keys_say_equal_texts_for_any_batch_shape():
    model = make()
    one, same, other = (generate(model, tokens(), 20, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    assert generate(model, tokens(4), 3, jax.random.key(0)).shape == (3,)
    assert generate(model, tokens(2, 3, 4), 3, jax.random.key(0)).shape == (2, 3, 3)
    assert generate(model, tokens(), 0, jax.random.key(0)).shape == (B, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((tokens(B, 0), 3, 1.0), "prompt has shape (2, 0); allowed: [*batch, time], at least one token."),
        ((tokens(), -1, 1.0), "steps=-1 is negative; allowed: 0 or more."),
        ((tokens(), 3, -0.5), "temperature=-0.5 is negative; allowed: 0 or more."),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_sentence(arguments, sentence):
    prompt, steps, temperature = arguments
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        generate(make(), prompt, steps, jax.random.key(0), temperature)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"tie": True}, "tie=True with emb_size=3; allowed: 4, the size of the outputs."),
        ({"vocabulary_size": 0}, "vocabulary_size=0 is not a size; allowed: 1 or more."),
        ({"emb_size": 0}, "emb_size=0 is not a size; allowed: 1 or more."),
        ({"hidden_features": 0}, "hidden_features=0 is not a size; allowed: 1 or more."),
        ({"layers": 0}, "layers=0 is no number of layers; allowed: 1 or more."),
        ({"dropout": 1.0}, "dropout=1.0 is no rate; allowed: 0 or more, and below 1."),
    ],
)
def test_an_impossible_model_is_refused_in_one_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make(**kwargs)
