"""Arguments that would give NaN, a wrong number or an error from deep inside JAX are refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import RNN, make_cell, tasks, unroll
from rnn_jax.cells.lstm import LSTMCell
from rnn_jax.flow import gradient_profile
from rnn_jax.memory import check_memory
from rnn_jax.models import LanguageModel, Sampling, SequenceClassifier, generate, stream
from rnn_jax.models.decoding import beam_search
from rnn_jax.models.pooling import AttentionPool, last_step, max_over_steps, mean_over_steps
from rnn_jax.tasks.embeddings import load_embeddings
from rnn_jax.tasks.series import series
from rnn_jax.tasks.task import accuracy, answer_cross_entropy, cross_entropy, mean_squared_error
from rnn_jax.tasks.vocabulary import build_vocabulary
from rnn_jax.training.config import TrainConfig, check_members, every
from rnn_jax.training.step import train_step


def lstm(*sizes, **kwargs):
    return LSTMCell(*(sizes or (2, 3)), rngs=nnx.Rngs(0), **kwargs)


def run(xs=None, **kwargs):
    return unroll(lstm(), jnp.zeros((2, 4, 2), jnp.float32) if xs is None else xs, **kwargs)


def classifier(**kwargs):
    return SequenceClassifier("elman", 5, 2, 3, rngs=nnx.Rngs(0), **kwargs)


def language_model():
    return LanguageModel("elman", 5, 2, 3, rngs=nnx.Rngs(0))


def profile(loss, xs=None, **kwargs):
    return gradient_profile(loss, RNN(lstm()), jnp.zeros((2, 4, 2), jnp.float32) if xs is None else xs, **kwargs)


def logits_of(*shape):
    return lambda *_, **__: jnp.zeros(shape)


def answering(*shape):
    return lambda *_, answer: (jnp.zeros(shape), jnp.zeros(shape[0]))


def config(**kwargs):
    given = {"steps": 1, "batch_size": 1, "eval_at": frozenset(), "look_at": frozenset()}
    return TrainConfig(**{**given, **kwargs})


TOKENS = np.array([[0, 4, 1]], np.int32)
NOTHING = jnp.zeros((2, 0, 3), jnp.float32)

REFUSED = {
    # cells
    "use_bias='no' is neither yes nor no; allowed: True, False.": lambda: lstm(use_bias="no"),
    "use_bias=0 is neither yes nor no": lambda: lstm(use_bias=0),
    "use_bias=False leaves no bias to initialise for gate 'forget'": lambda: lstm(use_bias=False, forget_bias=1),
    "param_dtype='foo' is no type of floating-point numbers": lambda: lstm(param_dtype="foo"),
    "param_dtype=None is no type of floating-point numbers": lambda: lstm(param_dtype=None),
    "dtype='int8' is no type of floating-point numbers": lambda: lstm(dtype="int8"),
    "hidden_features=2.5 is not a size": lambda: lstm(3, 2.5),
    "in_features='3' is not a size": lambda: lstm("3", 2),
    "hidden_features=True is not a size": lambda: lstm(3, True),
    "chrono=1 is not a longest time scale": lambda: lstm(chrono=1),
    "cell 'flax.nnx:RNNCellBase' has no `initialize_carry`": lambda: make_cell(
        "flax.nnx:RNNCellBase", 2, 3, rngs=nnx.Rngs(0)
    ),
    # runs
    "xs holds a float; allowed: arrays, as jnp.asarray makes of lists.": lambda: run([[1.0, 2.0]]),
    "xs holds a int; allowed: arrays": lambda: RNN(lstm())([[1, 2]]),
    "lengths holds 9223372036854775808; allowed: 0 to 4": lambda: run(lengths=np.array([4, 2**63], np.uint64)),
    "lengths holds 4294967296; allowed: 0 to 4": lambda: run(lengths=np.array([4, 2**32], np.int64)),
    "dtype object; allowed: integers of shape": lambda: run(lengths=[4, 2**64]),
    "lengths holds -1; allowed: 0 to 4": lambda: run(lengths=[-1, 2]),
    "lengths holds 5; allowed: 0 to 4": lambda: run(lengths=[5, 2]),
    "lengths has shape (2,) and dtype float64": lambda: run(lengths=[1.0, 2.0]),
    "resets has shape (2, 1)": lambda: run(resets=[[True], [False]]),
    # losses
    "loss_fn returned float32[2]; allowed: a floating-point scalar.": lambda: profile(
        lambda layer, xs: jnp.sum(layer(xs), (1, 2))
    ),
    "loss_fn returned int64[]; allowed: a floating-point scalar.": lambda: profile(
        lambda layer, xs: jnp.sum(layer(xs)).astype(int)
    ),
    "loss_fn returned NoneType; allowed: a floating-point scalar.": lambda: profile(lambda layer, xs: print(layer(xs))),
    "loss_fn returned list with has_aux=True; allowed: a pair": lambda: profile(
        lambda layer, xs: [jnp.sum(layer(xs))], has_aux=True
    ),
    "layer 'rnn' read a batch of shape (0,); allowed: a sequence or more.": lambda: profile(
        lambda layer, xs: jnp.sum(layer(xs)), jnp.zeros((0, 4, 2), jnp.float32)
    ),
    "loss_fn returned float32[1]; allowed": lambda: train_step(
        optax.sgd(0.1), lambda layer, xs: jnp.sum(layer(xs))[None], RNN(lstm()), None, jnp.zeros((2, 4, 2), jnp.float32)
    ),
    "the batch has answers of shape (0,); allowed: one sequence or more": lambda: cross_entropy(
        logits_of(0, 3), {"xs": NOTHING, "label": np.zeros(0, np.int32)}
    ),
    "the batch has answers of shape (0,); allowed": lambda: mean_squared_error(
        logits_of(0, 1), {"xs": NOTHING, "target": np.zeros((0, 1))}
    ),
    "the batch has answers of shape (2, 0); allowed": lambda: accuracy(
        logits_of(2, 0, 3), {"xs": NOTHING, "labels": np.zeros((2, 0), np.int32)}
    ),
    "label holds 3; allowed: 0 to 2, the classes there are.": lambda: cross_entropy(
        logits_of(1, 3), {"xs": NOTHING, "label": np.array([3])}
    ),
    "label holds -1; allowed: 0 to 2": lambda: cross_entropy(logits_of(1, 3), {"xs": NOTHING, "label": np.array([-1])}),
    "labels holds -2; allowed: -1 to 2": lambda: cross_entropy(
        logits_of(1, 2, 3), {"xs": NOTHING, "labels": np.array([[-1, -2]])}
    ),
    "answer holds 7; allowed: -1 to 2": lambda: answer_cross_entropy(
        answering(1, 2, 3), {"xs": NOTHING, "answer": np.array([[7, 0]])}
    ),
    "examples is empty; allowed: one or more": lambda: tasks.collate([]),
    "batch_size=0 is out of range; allowed: 1 to 2": lambda: tasks.batches(
        tasks.ArraySource(xs=np.zeros((2, 3, 1))), 0, 0
    ),
    # tokens
    "inputs: the token 5 is out of range; allowed: 0 to 4": lambda: classifier(emb_size=2)(TOKENS + 1),
    "inputs: the token -1 is out of range; allowed: 0 to 4": lambda: language_model()(TOKENS - 1),
    "inputs: the token 4294967296 is out of range; allowed": lambda: language_model()(TOKENS.astype(np.int64) * 2**30),
    "inputs have shape (1, 3) and dtype float32": lambda: language_model()(TOKENS.astype(np.float32)),
    "prompt: the token 9 is out of range; allowed: 0 to 4": lambda: generate(
        language_model(), np.array([9]), 1, jax.random.key(0)
    ),
    "prompt: the token -3 is out of range; allowed: 0 to 4": lambda: next(
        stream(language_model(), np.array([-3]), jax.random.key(0))
    ),
    "prompt has shape (0,); allowed": lambda: generate(language_model(), TOKENS[0, :0], 1, jax.random.key(0)),
    "temperature=nan is out of range; allowed: a finite number": lambda: Sampling(temperature=float("nan")),
    "temperature=inf is out of range": lambda: Sampling(temperature=float("inf")),
    "top_p=nan is out of range": lambda: Sampling(top_p=float("nan")),
    "length_penalty=nan is out of range": lambda: beam_search(
        None, TOKENS, None, beam=2, steps=1, length_penalty=float("nan")
    ),
    # pools
    "ys has shape (2, 0, 3), of no time steps; allowed: one or more to pool.": lambda: mean_over_steps(NOTHING),
    "ys has shape (2, 0, 3), of no": lambda: max_over_steps(NOTHING, jnp.array([0, 0])),
    "ys has shape (2, 0, 3), of": lambda: last_step(NOTHING),
    "ys has shape (2, 0, 3)": lambda: AttentionPool(3, rngs=nnx.Rngs(0))(NOTHING),
    "ys has shape (2, 0, 5)": lambda: classifier(recurrent=False, pool="mean")(jnp.zeros((2, 0, 5), jnp.float32)),
    # training
    "steps=2147483648 is out of range; allowed: at most 2147483647.": lambda: config(steps=2**31),
    "steps=0 is out of range; allowed: 1 or more.": lambda: config(steps=0),
    "seed=9223372036854775808 is out of range": lambda: config(seed=2**63),
    "eval_every=1 is out of range for 1000000000 steps": lambda: every(1, 10**9, "eval_every"),
    "seed=2147483647 with seeds=2 is out of range": lambda: check_members(2**31 - 1, 2),
    "hidden=9, batch=2 would need about 8 EB of memory, and there are 64 GB; allowed: sizes that fit.": lambda: (
        check_memory(8 * 10**18, 64 * 10**9, hidden=9, batch=2)
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_bad_argument_is_refused_in_one_sentence_that_names_it(sentence):
    with pytest.raises(ValueError, match=r"[^\n]") as refused:
        REFUSED[sentence]()
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 500


def test_the_last_tokens_labels_and_lengths_that_are_allowed_are_taken():
    assert classifier(emb_size=2)(TOKENS, [3]).shape == (1, 3)
    assert np.isfinite(cross_entropy(logits_of(1, 2, 3), {"xs": NOTHING, "labels": np.array([[-1, 2]])}))
    assert run(lengths=np.array([4, 0], np.uint64))[1].shape == (2, 4, 3)
    assert np.all(mean_over_steps(jnp.ones((2, 4, 3)), jnp.array([4, 0])) == np.array([[1.0], [0.0]]))


@pytest.mark.parametrize(("number", "words"), [("1e39", "'1e39' is too large"), ("nan", "'nan' is no finite number")])
def test_an_embedding_beyond_float32_is_named_by_its_line(tmp_path, number, words):
    path = tmp_path / "vectors.txt"
    path.write_text(f"a 1 2\nb {number} 4\n")
    with pytest.raises(ValueError, match=f"line 2: {words}"):
        load_embeddings(path, build_vocabulary(["a b"], "word"))


@pytest.mark.parametrize(
    ("scale", "test", "words"),
    [
        (1e-170, 0.0, "so close to each other that their standard deviation underflows"),
        (1.0, 1e300, "row 0: 1e.300 is too far from the mean of the training split"),
    ],
)
def test_series_that_underflow_or_overflow_are_refused(tmp_path, scale, test, words):
    for split, xs in (("train", [[0.0, 1.0], [1.0, 0.0]] * 4), ("test", [[test, test]] * 2)):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "xs.npy", scale * np.array(xs))
        np.save(tmp_path / split / "labels.npy", np.array([0, 1] * (len(xs) // 2)))
    with pytest.raises(ValueError, match=words):
        series(tmp_path)
