"""The training loop: its updates and scores against plain ones, and what it does about numbers that are not finite."""

import csv
import re

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.models import LanguageModel, SequenceClassifier
from rnn_jax.tasks.task import accuracy, cross_entropy, mean_squared_error
from rnn_jax.training import run_directory
from rnn_jax.training.loop import (
    Evaluator,
    NotFinite,
    TrainConfig,
    batches_of,
    initial_state,
    layer_of,
    make_update,
    parameter_names,
    train,
    widths_of,
)

needs_two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_task(train, test=None, validation=None, **changes):
    example = train[0]
    reads_tokens = "tokens" in example
    return tasks.Task(
        **{
            "name": "small",
            "description": "",
            "source": "",
            "train": train,
            "test": test or train,
            "validation": validation,
            "kind": tasks.Kind.ONE_ANSWER,
            "seq_len": 6,
            "in_features": 7 if reads_tokens else 1,
            "out_features": 1,
            "loss": mean_squared_error,
            "score": mean_squared_error,
            "metric": "mse",
            "higher_is_better": False,
            "baseline_score": 1.0,
            "fingerprint": {},
            "reads_tokens": reads_tokens,
            **changes,
        }
    )


def numbers(count=32, seed=0):
    xs = np.random.default_rng(seed).normal(size=(count, 6, 1)).astype(np.float32)
    return {"xs": xs, "target": xs[:, 0].copy()}


def regression(**changes):
    return make_task(tasks.ArraySource(**numbers()), validation=tasks.ArraySource(**numbers(seed=1)), **changes)


def small_model(cell="gru(update_bias=1)"):
    return SequenceClassifier(cell, 1, 4, 1, rngs=nnx.Rngs(0))


def config(**changes):
    return TrainConfig(**{"steps": 12, "batch_size": 8, "eval_every": 4, "profile_every": 6, **changes})


def new_run(tmp_path, name="run"):
    return run_directory.create(str(tmp_path / name), {})


def metrics(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def assert_same_weights(a, b, rtol=0.0):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_a_run_is_plain_gradient_steps_on_its_batches(tmp_path):
    task, model, optimizer, chosen = regression(), small_model(), optax.sgd(0.1), config()
    result = train(task, model, optimizer, run_dir := new_run(tmp_path), chosen)
    plain, losses = model, []
    for _, batch in zip(range(12), batches_of(task, chosen)):
        loss, grads = jax.value_and_grad(task.loss)(plain, batch)
        losses.append(float(loss))
        plain = jax.tree.map(lambda p, g: p - 0.1 * g, plain, grads)
    last = run_directory.restore_checkpoint(run_dir, "last", initial_state(task, model, optimizer, chosen))
    assert_same_weights(last.model, plain, rtol=1e-5)
    found = metrics(run_dir)
    np.testing.assert_allclose(found[10, "train/loss"], np.mean(losses[:10]), rtol=1e-5)
    np.testing.assert_allclose(found[12, "train/loss"], np.mean(losses[10:]), rtol=1e-5)
    np.testing.assert_allclose(
        found[12, "validation/mse"], task.score(plain, tasks.as_batch(task.validation)), rtol=1e-5
    )
    best = min((score, step) for (step, name), score in found.items() if name == "validation/mse")
    assert (result.validation_score, result.step) == best
    np.testing.assert_allclose(result.test_score, task.score(result.model, tasks.as_batch(task.test)), rtol=1e-5)
    assert result.profile_steps == [0, 6, 12]
    assert result.profiles["rnn"].shape == (3, 6)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads.rnn)))
    weight = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(plain.rnn)))
    np.testing.assert_allclose(found[12, "gradient_norm/rnn"], norm, rtol=1e-4)
    np.testing.assert_allclose(found[12, "update_to_weight/rnn"], 0.1 * norm / weight, rtol=1e-2)


def test_a_short_run_reads_batches_of_fewer_widths_also_after_a_resume():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    texts = tasks.RaggedSource({"tokens": [np.full(length, k) for k, length in enumerate(lengths)]})
    task = make_task(texts, in_features=500)
    for steps, count in ((12, 2), (300, 3), (800, 8)):
        batches = batches_of(task, config(steps=steps))
        read = [next(batches) for _ in range(60)]
        assert sorted({batch["tokens"].shape[1] for batch in read}) == list(widths_of(task, config(steps=steps)))
        assert len(widths_of(task, config(steps=steps))) == count
        resumed, state = batches_of(task, config(steps=steps)), batches.get_state()
        resumed.set_state(state)
        np.testing.assert_array_equal(next(resumed)["tokens"], next(batches)["tokens"])
    for batch, by_default in zip(read, tasks.batches(texts, 8, 0)):  # a long run's are what they are without a config
        np.testing.assert_array_equal(batch["tokens"], by_default["tokens"])
    assert widths_of(regression(), config()) is None


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("classifier", 1), ("language model", 1), pytest.param("language model", 2, marks=needs_two_devices)],
)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bytes_and_weights(tmp_path, monkeypatch, kind, devices):
    # A language model reads its stream in passes of five batches here, and carries its state from one to the next.
    task, model = language() if kind == "language model" else (regression(), small_model())
    chosen = config(steps=20, batch_size=4, devices=devices)
    optimizer = optax.adam(1e-2)
    alone = train(task, model, optimizer, new_run(tmp_path, "alone"), chosen)
    run_dir = new_run(tmp_path)
    save, saved = run_directory.save_checkpoint, []

    def killed_on_the_third(folder, name, *rest):
        if name == "last":
            saved.append(name)
        if len(saved) == 3:
            raise KeyboardInterrupt
        return save(folder, name, *rest)

    monkeypatch.setattr(run_directory, "save_checkpoint", killed_on_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(task, model, optimizer, run_dir, chosen)
    monkeypatch.undo()
    assert run_directory.load_note(run_dir, "last")["step"] == 8
    resumed = train(task, model, optimizer, run_dir, chosen)
    assert_same_weights(resumed.model, alone.model)
    for name in ("metrics.csv", "gradient_flow.csv"):
        assert (run_dir / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@needs_two_devices
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_run_on_two_devices_is_the_run_on_one(tmp_path, kind):
    task, model = language() if kind == "language model" else (regression(), small_model())
    one, two = (
        train(task, model, optax.sgd(0.1), new_run(tmp_path, str(n)), config(batch_size=4, devices=n)) for n in (1, 2)
    )
    assert_same_weights(two.model, one.model, rtol=1e-5)
    one, two = (metrics(tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


def test_patience_stops_and_the_best_weights_are_tested(tmp_path):
    # Training makes the score worse: what it lowers is the distance to the opposite.
    def opposite(model, batch):
        return mean_squared_error(model, {**batch, "target": -batch["target"]})

    task = regression(loss=opposite)
    chosen = config(steps=400, eval_every=20, patience=2, profile_every=0)
    result = train(task, small_model(), optax.adam(1e-2), run_dir := new_run(tmp_path), chosen)
    scores = {step: value for (step, name), value in metrics(run_dir).items() if name == "validation/mse"}
    assert result.step == min(scores, key=scores.get)
    assert result.steps == result.step + 40 < 400
    assert max(step for step, _ in metrics(run_dir)) == result.steps


def poisoned(where):
    """Batches of 8 in order: example 17, in the third batch, is not finite."""
    arrays = numbers()
    arrays[where][17] = np.nan
    return make_task(tasks.ArraySource(**arrays), tasks.ArraySource(**numbers()))


def in_order(source, batch_size, seed, augment=None, widths=None):
    return iter(grain.MapDataset.source(source).repeat().batch(batch_size, batch_fn=tasks.collate).to_iter_dataset())


@pytest.mark.parametrize("where", ["xs", "target"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch, where):
    monkeypatch.setattr(tasks, "batches", in_order)
    task = poisoned(where)
    result = train(
        task,
        model := small_model(),
        optax.sgd(0.1),
        run_dir := new_run(tmp_path),
        config(on_nonfinite="skip", profile_every=0),
    )
    assert result.skipped == 3  # one batch in four, of twelve
    plain = model
    for k, batch in zip(range(12), in_order(task.train, 8, 0)):
        if k % 4 != 2:
            plain = jax.tree.map(lambda p, g: p - 0.1 * g, plain, jax.grad(task.loss)(plain, batch))
    assert_same_weights(result.model, plain, rtol=1e-5)
    assert metrics(run_dir)[12, "train/skipped"] == 3
    assert all(np.isfinite(value) for value in metrics(run_dir).values())


def test_a_batch_that_is_not_finite_stops_the_run_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "batches", in_order)
    sentence = "^Stopped at step 3: the batch is not finite, in 'xs', .*; no checkpoint has been written yet.$"
    with pytest.raises(NotFinite, match=sentence):
        train(poisoned("xs"), small_model(), optax.sgd(0.1), new_run(tmp_path), config(profile_every=0))


def test_a_layer_whose_outputs_overflow_stops_the_run_and_is_named_with_the_last_good_checkpoint(tmp_path):
    task, run_dir = regression(), new_run(tmp_path)

    def update(grads, state, params=None):
        del params
        count = state + 1  # the sixth update makes the rectifiers of the recurrent layer overflow
        return jax.tree.map(lambda g: jnp.where(count == 6, 1e30, 0.0) * jnp.ones_like(g), grads), count

    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    sentence = (
        "Stopped at step 7: the loss is (nan|inf), first in layer 'rnn', parameter 'rnn/cell/[a-z_]+'; "
        f"the last good checkpoint is {re.escape(str(run_dir))}/checkpoints/last, of step 4."
    )
    with pytest.raises(NotFinite, match=f"^{sentence}$"):
        train(task, small_model("irnn"), optimizer, run_dir, config(profile_every=0))
    note = run_directory.load_note(run_dir, "last")
    assert note["step"] == 4


def test_a_gradient_that_is_not_finite_is_followed_back_to_the_layer_next_to_the_loss(tmp_path):
    @jax.custom_vjp
    def spoil(x):
        return x

    spoil.defvjp(lambda x: (x, None), lambda _, ct: (ct * jnp.nan,))

    class Spoiled(SequenceClassifier):
        def _embed(self, inputs):
            return super()._embed(inputs) + 0 * spoil(jnp.sum(self.rnn.layers[0].cell.bias[...]))

    model = Spoiled("gru", 1, 4, 1, layers=2, rngs=nnx.Rngs(0))
    with pytest.raises(
        NotFinite, match=r"Stopped at step 1: a gradient .* layer 'rnn/layers/0', parameter 'rnn/layers/0/cell/bias'"
    ):
        train(regression(), model, optax.sgd(0.1), new_run(tmp_path), config(profile_every=0))


def test_scores_are_means_over_all_examples_of_any_length():
    rng = np.random.default_rng(0)
    lengths = rng.choice([1, 2, 9, 29], 45)
    texts = [rng.integers(0, 7, length).astype(np.int32) for length in lengths]
    source = tasks.RaggedSource({"tokens": texts}, label=rng.integers(0, 3, 45).astype(np.int32))
    model = SequenceClassifier("lstm", 7, 4, 3, emb_size=5, rngs=nnx.Rngs(0))
    for score in (accuracy, cross_entropy):
        task = make_task(source, out_features=3, score=score)
        one_by_one = [score(model, tasks.collate([source[k]], ragged=False)) for k in range(45)]
        evaluate = Evaluator(task)
        evaluate._size = 16  # so that the last batch has to be filled up
        np.testing.assert_allclose(evaluate(model, source), np.mean(one_by_one), rtol=1e-5)
        assert evaluate._scores._cache_size() <= 2


def test_scores_per_step_are_means_over_all_steps_asked():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (20, 6)).astype(np.int32)
    labels = rng.integers(-1, 3, (20, 6)).astype(np.int32)
    source = tasks.ArraySource(tokens=tokens, labels=labels)
    model = SequenceClassifier("lstm", 7, 4, 3, emb_size=5, per_step=True, rngs=nnx.Rngs(0))
    evaluate = Evaluator(make_task(source, out_features=3, score=cross_entropy, kind=tasks.Kind.ANSWER_A_STEP))
    evaluate._size = 8
    expected = cross_entropy(model, tasks.as_batch(source))
    np.testing.assert_allclose(evaluate(model, source), expected, rtol=1e-5)


def language():
    tokens = np.random.default_rng(0).integers(0, 7, 6 * 20 + 1).astype(np.int32)
    source = tasks.StreamSource(tokens, 6)
    changes = {"loss": cross_entropy, "score": cross_entropy, "out_features": 7, "kind": tasks.Kind.STREAM}
    return make_task(source, **changes), LanguageModel("gru", 7, 5, 4, rngs=nnx.Rngs(0))


def test_a_language_model_is_scored_with_the_state_it_carries_over(monkeypatch):
    task, model = language()
    monkeypatch.setattr("rnn_jax.training.loop._STREAMS", 3)
    found = Evaluator(task)(model, task.test)
    nats = []
    for start, stop in ((0, 42), (42, 84), (84, 120)):  # 20 pieces of 6 in streams of 7
        stream = task.test.tokens[start : stop + 1]
        logits = model(stream[None, :-1])[0]
        nats += list(optax.losses.softmax_cross_entropy_with_integer_labels(logits, stream[1:]))
    assert len(nats) == 120
    np.testing.assert_allclose(found, np.mean(nats), rtol=1e-5)


def test_an_update_goes_on_from_the_carry_of_the_batch_before_and_begins_anew_with_each_pass():
    task, model = language()
    chosen = config(batch_size=4)
    optimizer = optax.sgd(0.0)
    update = jax.jit(make_update(task, optimizer, chosen))
    state, losses = initial_state(task, model, optimizer, chosen), []
    for _, batch in zip(range(6), batches_of(task, chosen)):  # a pass is five batches
        before = float(state.loss_sum)
        state, _ = update(state, batch)
        losses.append(float(state.loss_sum) - before)
    streams = task.train.tokens[:120].reshape(4, 30)
    logits = model(streams)
    targets = np.stack([task.train.tokens[30 * k + 1 : 30 * k + 31] for k in range(4)])
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
    expected = np.asarray(nats).reshape(4, 5, 6).mean(axis=(0, 2))
    np.testing.assert_allclose(losses, [*expected, expected[0]], rtol=1e-4)


def test_dropout_is_drawn_anew_at_each_step_and_the_same_in_each_run(tmp_path):
    task = regression()
    model = SequenceClassifier("gru", 1, 16, 1, dropout=0.5, rngs=nnx.Rngs(0))
    optimizer, chosen = optax.sgd(0.0), config()
    update = jax.jit(make_update(task, optimizer, chosen))
    batch = tasks.collate([task.train[k] for k in range(8)])
    sums = []
    for _ in range(2):
        state, totals = initial_state(task, model, optimizer, chosen), []
        for _ in range(3):
            state, _ = update(state, batch)
            totals.append(float(state.loss_sum))
        sums.append(np.diff(totals, prepend=0.0))
    np.testing.assert_array_equal(sums[0], sums[1])
    assert len({round(loss, 5) for loss in sums[0]}) == 3


def test_runs_of_other_seeds_drop_other_units_in_the_same_program():
    task = regression()
    model = SequenceClassifier("gru", 1, 16, 1, dropout=0.5, rngs=nnx.Rngs(0))
    batch = tasks.collate([task.train[k] for k in range(8)])
    programs, losses = set(), set()
    for seed in range(2):
        chosen = config(seed=seed)
        update = jax.jit(make_update(task, optax.sgd(0.0), chosen))
        state = initial_state(task, model, optax.sgd(0.0), chosen)
        programs.add(update.lower(state, batch).as_text())
        losses.add(float(update(state, batch)[0].loss_sum))
    assert len(programs) == 1
    assert len(losses) == 2


def test_parameters_have_the_names_of_their_layers():
    model = SequenceClassifier("gru", 7, 4, 3, emb_size=5, layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    names = parameter_names(model)
    assert len(names) == len(jax.tree.leaves(model))
    layers = {"embedding", "head"} | {f"rnn/layers/{k}/{way}_rnn" for k in (0, 1) for way in ("forward", "backward")}
    assert {layer_of(name) for name in names} == layers


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps=0 is out of range; allowed: 1 or more."),
        ({"patience": 0}, "patience=0 is out of range; allowed: 1 or more evaluations, or None."),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore' is unknown; allowed: stop, skip."),
        ({"devices": 0}, "devices=0 is out of range; allowed: 1 or more."),
        (
            {"batch_size": 9, "devices": 2},
            "batch_size=9 cannot be shared out evenly over devices=2; allowed: a multiple of them.",
        ),
    ],
)
def test_an_impossible_plan_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        config(**changes)


def test_patience_without_a_validation_split_is_refused(tmp_path):
    task = make_task(tasks.ArraySource(**numbers()))
    with pytest.raises(ValueError, match="patience=2 needs a validation split, which the task 'small' has not"):
        train(task, small_model(), optax.sgd(0.1), new_run(tmp_path), config(patience=2))


def test_texts_that_are_not_there_are_not_augmented():
    with pytest.raises(ValueError, match=r"^crop=0\.5 and token_dropout=0\.0 change texts to be classified, which the"):
        batches_of(regression(), config(crop=0.5))
