"""Checkpoints: what comes back, what a kill leaves, and what is said of one that is damaged."""

import itertools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from flax import nnx

from rnn_jax.training import checkpoints, run_directory


@pytest.fixture
def run_dir(tmp_path):
    return run_directory.create(str(tmp_path / "run"), {})


def training_state(seed, features=4):
    model = {"rnn": [nnx.Linear(3, features, rngs=nnx.Rngs(seed)), nnx.Dropout(0.1, rngs=nnx.Rngs(seed))]}
    arrays = {
        "step": 10 + seed,
        "best": np.float64(0.1 + seed),
        "curve": np.full(3, seed, np.float64),
        "half": jnp.full((2,), seed, jnp.bfloat16),
        "a/b": jnp.full((2,), seed, jnp.complex64),
    }
    return {"model": model, "optimizer": optax.adam(0.1).init(model["rnn"][0]), "rest": arrays}


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if hasattr(theirs, "dtype"):
            assert ours.dtype == theirs.dtype
            assert isinstance(ours, jax.Array) == isinstance(theirs, jax.Array)
            if jax.dtypes.issubdtype(theirs.dtype, jax.dtypes.prng_key):
                ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("abstract", [False, True])
def test_a_checkpoint_restores_models_optimizers_keys_and_numbers(run_dir, abstract):
    saved, like = training_state(0), training_state(1)
    if abstract:
        for name in ("model", "optimizer"):
            like[name] = jax.eval_shape(lambda tree: tree, like[name])
    path = checkpoints.save_checkpoint(run_dir, "step_10", saved)
    assert path == run_dir / "checkpoints" / "step_10"

    restored = checkpoints.restore_checkpoint(run_dir, "step_10", like)

    assert_trees_equal(restored, saved)
    xs = jnp.ones((2, 3), jnp.float32)
    np.testing.assert_array_equal(restored["model"]["rnn"][0](xs), saved["model"]["rnn"][0](xs))


def saved_value(run_dir):
    return checkpoints.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"]


def folders(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_last_two_checkpoints_of_a_name_are_kept_and_nothing_else_is_left(run_dir):
    for value in (1.0, 2.0, 3.0):
        checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.full((), value)})
    assert folders(run_dir) == ["last", "last.previous"]
    assert saved_value(run_dir) == 3.0
    (run_dir / "checkpoints" / "last").rename(run_dir / "away")
    assert saved_value(run_dir) == 2.0


@pytest.mark.parametrize("calls_before_kill", range(4))
def test_a_kill_while_replacing_loses_no_checkpoint(run_dir, monkeypatch, capsys, calls_before_kill):
    """Killed before each of the calls that move or delete folders once the new checkpoint is complete."""
    for value in (0.0, 1.0):
        checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.full((), value)})
    calls = itertools.count()

    def dying(function):
        def call(*arguments, **options):
            if ".last.new.orbax" not in str(arguments[0]) and next(calls) >= calls_before_kill:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.pathlib.Path, "rename", dying(checkpoints.pathlib.Path.rename))
        patch.setattr(checkpoints.shutil, "rmtree", dying(checkpoints.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.full((), 2.0)})
    assert saved_value(run_dir) == (1.0 if calls_before_kill < 2 else 2.0)

    checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.full((), 3.0)})
    assert saved_value(run_dir) == 3.0
    assert folders(run_dir) == ["last", "last.previous"]
    (run_dir / "checkpoints" / "last").rename(run_dir / "away")
    assert saved_value(run_dir) == (1.0 if calls_before_kill < 2 else 2.0)
    assert capsys.readouterr().err.count("\n") == 1  # of the one that was taken away


@pytest.mark.parametrize(
    ("like", "there", "here"),
    [
        ({"out_features": 5}, "float32[4]", "float32[5]"),
        ({"param_dtype": jnp.float64}, "float32[4]", "float64[4]"),
        ({"use_bias": False}, "float32[4]", "absent"),
        ({}, "absent", "float32[4]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_a_leaf(run_dir, like, there, here):
    saved = nnx.Linear(3, 4, use_bias=bool(like), rngs=nnx.Rngs(0))
    checkpoints.save_checkpoint(run_dir, "best", saved)
    like = nnx.Linear(**{"in_features": 3, "out_features": 4, "rngs": nnx.Rngs(0)} | like)
    with pytest.raises(ValueError, match="; allowed: the same leaves, shapes and dtypes") as error:
        checkpoints.restore_checkpoint(run_dir, "best", like)
    wanted = f"checkpoint 'best' has leaf '.bias.value' as {there}, `like` has it as {here}; "
    assert str(error.value).startswith(wanted)


def test_an_absent_checkpoint_is_named_beside_those_there_are(run_dir):
    checkpoints.save_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"has no checkpoint 'bset'; allowed: \['best'\]"):
        checkpoints.restore_checkpoint(run_dir, "bset", {"x": jnp.ones(2)})


@pytest.mark.parametrize("name", ["", ".", "..", "../config", "a/b", "/tmp", ".hidden", "last.previous"])
def test_a_checkpoint_stays_below_its_folder(run_dir, name):
    with pytest.raises(ValueError, match="no checkpoint can be named"):
        checkpoints.save_checkpoint(run_dir, name, {"x": jnp.ones(2)})


def test_checkpoints_say_nothing_and_leave_the_log_as_it_was(run_dir):
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = absl_logging.get_absl_logger(), Lines()
    verbosity = absl_logging.get_verbosity()
    logger.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.INFO)
    before = (logger.level, list(logger.filters))
    try:
        checkpoints.save_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
        checkpoints.restore_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
        absl_logging.info("the user's own line")
        assert lines == ["the user's own line"]
        assert (logger.level, logger.filters) == before
    finally:
        absl_logging.set_verbosity(verbosity)
        logger.removeHandler(handler)


def test_a_note_comes_back_exactly_with_its_checkpoint(run_dir):
    note = {"step": 7, "best": 0.1 + 0.2, "none": None, "worst": math.inf, "stream": {"next_index": 2**60}}
    checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.ones(())}, note)
    assert checkpoints.load_note(run_dir, "last") == note
    checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.ones(())})
    assert checkpoints.load_note(run_dir, "last") == {}
    assert checkpoints.has_checkpoint(run_dir, "last")
    assert not checkpoints.has_checkpoint(run_dir, "best")
    with pytest.raises(ValueError, match="has no checkpoint 'best'"):
        checkpoints.load_note(run_dir, "best")


def test_the_only_checkpoint_a_kill_has_left_is_kept_until_the_next_is_complete(run_dir, monkeypatch):
    """A kill between the two renames, and another one while the next checkpoint is being written."""
    checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.ones(())})
    (run_dir / "checkpoints" / "last").rename(run_dir / "checkpoints" / ".last.new")

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_checkpoint(run_dir, "last", {"x": jnp.zeros(())})
    assert checkpoints.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"] == 1.0
