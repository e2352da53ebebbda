"""Claims about the language model and what it says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_jax import flow
from rnn_jax.layers import drop_recurrent_weights
from rnn_jax.models import LanguageModel, generate
from tests import reference
from tests.models import torch_models

B, T, V, E, H = 2, 9, 5, 3, 4
SIZES = {"vocabulary_size": V, "emb_size": E, "hidden_features": H}


def make(cell="elman", dtype=jnp.float64, seed=1, **kwargs):
    sizes = {**SIZES, **kwargs}
    return reference.drawn(lambda: LanguageModel(cell, **sizes, param_dtype=dtype, rngs=nnx.Rngs(0)), seed)


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape or (B, T)).astype(np.int32)


@pytest.mark.parametrize(("kind", "layers", "tie"), [("lstm", 2, False), ("gru", 1, True)])
def test_it_is_the_language_model_of_torch_piece_by_piece(kind, layers, tie):
    torch_models.check_language_model(kind, layers, tie)


@pytest.mark.parametrize(("layers", "cuts"), [(1, [1, 2, 8]), (2, [4])])
def test_a_text_read_in_pieces_is_the_whole_text(layers, cuts):
    model, text = make("lstm", layers=layers), tokens()

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
    run = reference.quick_jit(model)
    one, other = np.asarray(run(text)), np.asarray(run(changed))
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert np.all(np.any(one[:, 5:] != other[:, 5:], axis=-1))


def test_padding_changes_neither_logits_nor_carry_nor_gradients():
    model, lengths = make(layers=2, dropout=0.5), np.array([9, 4])
    long = np.concatenate([tokens(), tokens(B, 20, seed=1)], axis=1)

    def loss(model, text):
        carry, logits = model(text, lengths, return_carry=True, key=jax.random.key(0))
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(carry[1])), (carry, logits[:, :T], logits[:, T:])

    run = reference.quick_jit(jax.value_and_grad(loss, has_aux=True))
    (value, (carry, logits, beyond)), grads = run(model, long)
    (expected_value, (expected_carry, expected, _)), expected_grads = run(model, tokens())
    reference.assert_close(
        (value, carry, logits, grads), (expected_value, expected_carry, expected, expected_grads), 1e-12
    )
    assert not np.any(beyond)


def test_dropout_needs_a_key_and_hangs_on_it():
    @reference.quick_jit
    def run(model, without, key):
        return without(tokens()), model(tokens()), model(tokens(), key=key)

    models = make(layers=2, dropout=0.5), make(layers=2)
    (plain, unkeyed, one), (*_, same), (*_, other) = (
        jax.device_get(run(*models, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(unkeyed, plain)
    np.testing.assert_array_equal(one, same)
    assert np.all(np.any(one != other, axis=-1))
    assert np.all(np.any(one != plain, axis=-1))


def test_weight_dropout_thins_the_recurrent_kernels_and_nothing_else():
    model, without = (make(layers=2, hidden_features=40, weight_dropout=rate) for rate in (0.25, 0.0))
    thinned = reference.quick_jit(lambda rnn, key: drop_recurrent_weights(rnn, 0.25, key))(model.rnn, jax.random.key(1))
    kernels = 0
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(model.rnn), jax.tree.leaves(thinned)):
        if "recurrent_kernel" not in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(before, after)
            continue
        kernels += 1
        kept = np.asarray(after) != 0
        np.testing.assert_allclose(np.asarray(after)[kept], np.asarray(before)[kept] / 0.75, rtol=1e-12)
        assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5
    assert kernels == 2
    run = reference.quick_jit(lambda model, key: model(tokens(), key=key))
    plain, one, same, other = (np.asarray(run(model, key)) for key in (None, *map(jax.random.key, (0, 0, 1))))
    np.testing.assert_array_equal(plain, run(without, None))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one[:, 0], plain[:, 0])  # the first carry is 0
    assert np.all(np.any(one[:, 1:] != plain[:, 1:], axis=-1))
    assert np.all(np.any(one[:, 1:] != other[:, 1:], axis=-1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weight_dropout": 1.0}, "weight_dropout=1.0 is no rate; allowed: 0 or more, and below 1."),
        (
            {"weight_dropout": 0.5, "cell": "flax.nnx:GRUCell"},
            "weight_dropout=0.5 drops entries of a recurrent kernel, and GRUCell has none; allowed: 0.",
        ),
    ],
)
def test_what_has_no_weights_to_drop_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        LanguageModel(**{"cell": "lstm", **SIZES, **changes}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("flax.nnx:GRUCell", 1)])
def test_the_first_carry_is_what_no_tokens_leave(cell, layers):
    model = make(cell, layers=layers)

    @reference.quick_jit
    def run(model):
        return model(np.zeros((B, 0), np.int32), return_carry=True)[0], model.initialize_carry((B,))

    expected, carry = run(model)
    assert jax.tree.structure(carry) == jax.tree.structure(expected)
    reference.assert_close(carry, expected, 0.0)


def test_its_loss_has_a_gradient_profile_that_names_its_layers():
    """To make the first carry within the loss is no second run of the layers, of which a profile allows one."""
    model = make("lstm", layers=2, dtype=jnp.float32)

    def loss(model):
        return jnp.sum(jnp.square(model(tokens(), carry=model.initialize_carry((B,)))))

    profile = jax.eval_shape(lambda model: flow.gradient_profile(loss, model), model)
    assert set(profile.log10_norm) == {f"rnn/layers/{k}{part}" for k in (0, 1) for part in ("", "/c", "/h")}


@pytest.mark.parametrize("tie", [False, True], ids=["own-head", "tied"])
def test_bfloat16_is_float32_to_its_two_digits(tie):
    full = make(dtype=jnp.float32, emb_size=H, tie=tie)
    low = jax.eval_shape(lambda: LanguageModel("elman", V, H, H, tie=tie, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    low = jax.tree.unflatten(jax.tree.structure(low), jax.tree.leaves(full))
    logits, expected = (reference.quick_jit(model)(tokens()) for model in (low, full))
    assert logits.dtype == jnp.bfloat16
    assert reference.relative_error(logits, expected) < 0.03
    said = generate(low, tokens(), 3, jax.random.key(0))
    assert said.shape == (B, 3)
    assert said.dtype == jnp.int32
