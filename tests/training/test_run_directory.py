import csv
import datetime
import itertools
import json
import logging
import math
import os
import struct
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from flax import nnx

from rnn_jax.report import read
from rnn_jax.training import run_directory


@pytest.fixture
def run_dir(tmp_path):
    return run_directory.create(str(tmp_path / "run"), {})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_config_holds_the_flags_and_what_ran_them(tmp_path):
    flags = {
        "cells": ["elman", "lstm"],
        "lr": np.float32(0.5),
        "clip": math.inf,
        "out": tmp_path,
        "bound": None,
    }
    run_dir = run_directory.create(str(tmp_path / "a" / "b"), flags)

    config = json.loads((run_dir / "config.json").read_text())

    assert config["flags"] == flags | {"lr": 0.5, "out": str(tmp_path)}
    assert config["versions"]["jax"] == jax.__version__
    assert config["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    packages = {"jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint", "rnn_jax"}
    assert set(config["versions"]) == {"python"} | packages
    assert all(config["versions"][name] for name in packages - {"rnn_jax"})
    assert config["device"] == {
        "platform": jax.devices()[0].platform,
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
    }
    assert config["argv"] == sys.argv
    assert config["cpu_count"] == os.cpu_count()
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(config["start_time_utc"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with run_directory.py where the package has it, and a function that runs git there."""
    source = tmp_path / "checkout" / "rnn_jax" / "training" / "run_directory.py"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(run_directory, "__file__", str(source))
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]

    def git(*arguments, folder=tmp_path / "checkout"):
        command = ["git", *identity, "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return types.SimpleNamespace(source=source, git=git, parent=tmp_path)


def git_in_config(tmp_path, name):
    return json.loads((run_directory.create(str(tmp_path / name), {}) / "config.json").read_text())["git"]


def test_config_names_the_commit_and_whether_files_differ_from_it(tmp_path, checkout):
    checkout.git("init", "-q")
    assert git_in_config(tmp_path, "before the first commit") == {"commit": None, "dirty": None}
    checkout.git("add", ".")
    checkout.git("commit", "-qm", "first")
    commit = checkout.git("rev-parse", "HEAD")
    assert git_in_config(tmp_path, "clean") == {"commit": commit, "dirty": False}
    checkout.source.write_text("changed")
    assert git_in_config(tmp_path, "changed") == {"commit": commit, "dirty": True}


def test_config_names_no_commit_of_a_repository_that_merely_surrounds_the_package(tmp_path, checkout):
    checkout.git("init", "-q", folder=checkout.parent)
    checkout.git("add", ".", folder=checkout.parent)
    checkout.git("commit", "-qm", "somebody's project", folder=checkout.parent)
    assert git_in_config(tmp_path, "run") == {"commit": None, "dirty": None}


def test_a_folder_with_a_run_in_it_is_refused_and_left_untouched(run_dir):
    (run_dir / "metrics.csv").write_text("step,name,value\n1,loss,0.5\n")
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"^--out='.*run' already holds a run; allowed: "):
        run_directory.create(str(run_dir), {"another": "run"})
    assert contents(run_dir) == before


def test_an_existing_folder_without_a_run_is_allowed_and_keeps_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run_directory.create(str(tmp_path), {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "out", ["", "  ", "{tmp}/file", "{tmp}/file/below", "/proc/run", "{tmp}/nu\0ll", "{tmp}/" + "x" * 300]
)
def test_a_place_that_cannot_be_written_is_refused_in_one_sentence(tmp_path, out):
    (tmp_path / "file").write_text("kept")
    out = out.format(tmp=tmp_path)
    with pytest.raises(ValueError, match=r"^--out=.*; allowed: a writable folder") as error:
        run_directory.create(out, {})
    assert repr(out) in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == {(tmp_path / "file").relative_to(tmp_path): b"kept"}


def test_out_may_start_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_directory.create("~/run", {}) == tmp_path / "run"


def test_default_out_does_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory.time, "strftime", lambda _: "20260102-030405")
    names = []
    for _ in range(3):
        names.append(run_directory.default_out("flow"))
        run_directory.create(names[-1], {})
    assert names == ["runs/flow-20260102-030405" + suffix for suffix in ("", "-2", "-3")]


def read_metrics(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as table:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(table)]


def read_events(run_dir):
    """The scalars that TensorBoard shows, from its files: records of a length, its checksum, the message, its checksum.

    Where a session starts at a step, TensorBoard drops what it has from that step on.
    """
    from tensorboardX.proto import event_pb2

    scalars = []
    for path in sorted(run_dir.glob("events.out.tfevents*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                scalars = [scalar for scalar in scalars if scalar[0] < event.step]
            scalars += [(event.step, point.tag, point.simple_value) for point in event.summary.value]
            content = content[16 + length :]
    return scalars


def test_metrics_read_back_exactly(run_dir):
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, math.nan]
    with run_directory.MetricWriter(run_dir) as writer:
        for step, number in enumerate(numbers):
            writer.write(step, {'odd, "name"': number, "loss": jnp.float32(0.1)}, prefix="train")

    rows = read_metrics(run_dir)

    assert (run_dir / "metrics.csv").read_text().startswith("step,name,value\n")
    assert [row[:2] for row in rows] == [(s, n) for s in range(8) for n in ('train/odd, "name"', "train/loss")]
    np.testing.assert_array_equal([row[2] for row in rows[::2]], numbers)
    assert {row[2] for row in rows[1::2]} == {float(np.float32(0.1))}


def test_a_written_metric_is_in_the_file_before_the_writer_closes(run_dir):
    with run_directory.MetricWriter(run_dir) as writer:
        writer.write(7, {"loss": 0.25})
        assert read_metrics(run_dir) == [(7, "loss", 0.25)]


@pytest.mark.parametrize("cut", [0, 3, 9])
def test_metrics_are_appended_and_a_line_cut_short_by_a_kill_is_dropped(run_dir, cut):
    with run_directory.MetricWriter(run_dir) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": 0.123456})
    content = (run_dir / "metrics.csv").read_bytes()
    (run_dir / "metrics.csv").write_bytes(content[: len(content) - cut])
    with run_directory.MetricWriter(run_dir) as writer:
        writer.write(3, {"loss": 0.75})
    kept = [(2, "loss", 0.123456)] if cut == 0 else []
    assert read_metrics(run_dir) == [(1, "loss", 0.5), *kept, (3, "loss", 0.75)]


def test_tensorboard_gets_the_same_numbers_also_from_two_writers_in_one_second(run_dir):
    for step in (1, 2):
        with run_directory.MetricWriter(run_dir) as writer:
            writer.write(step, {"loss": 0.5 * step, "accuracy": math.nan}, prefix="valid")
    expected = [(s, n, v) for s in (1, 2) for n, v in (("valid/loss", 0.5 * s), ("valid/accuracy", math.nan))]
    for found, wanted in zip(read_events(run_dir), expected, strict=True):
        assert found[:2] == wanted[:2]
        np.testing.assert_array_equal(found[2], wanted[2])


def example_profiles():
    values = np.random.default_rng(0).normal(-300, 100, (3, 2, 5))
    values[0, 1, 4], values[1, 0, 0] = -np.inf, np.nan
    return [0, 10, 2000], {
        "lstm": {("rnn", ""): values, ("rnn", "c"): values.astype(np.float32)},
        "my.module:MyCell": {("layers/0", ""): values[:, :1, :1]},
    }


def test_profiles_read_back_exactly(run_dir):
    steps, log10_norm = example_profiles()
    path = run_directory.save_profiles(run_dir, steps, log10_norm)
    profiles = read.load_profiles(run_dir)
    assert path == run_dir / "gradient_flow.npz"
    np.testing.assert_array_equal(profiles.steps, steps)
    assert {cell: list(parts) for cell, parts in profiles.log10_norm.items()} == {
        cell: list(parts) for cell, parts in log10_norm.items()
    }
    for cell, parts in log10_norm.items():
        for name, values in parts.items():
            np.testing.assert_array_equal(profiles.log10_norm[cell][name], values, strict=True)
    assert list(profiles.whole_carries("lstm")) == ["rnn"]
    steps_again, again = run_directory.load_profiles(run_dir)
    assert steps_again.tolist() == steps
    assert {cell: list(parts) for cell, parts in again.items()} == {
        cell: list(parts) for cell, parts in log10_norm.items()
    }


def test_profiles_in_csv_are_those_in_npz(run_dir):
    steps, log10_norm = example_profiles()
    run_directory.save_profiles(run_dir, steps, log10_norm)
    assert run_directory.save_profile_table(run_dir) == run_dir / "gradient_flow.csv"
    with (run_dir / "gradient_flow.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["cell", "layer", "part", "step", "seed", "t", "lag", "log10_norm"]
    assert len(rows) == 2 * 3 * 2 * 5 + 3
    for row in rows:
        values = log10_norm[row["cell"]][row["layer"], row["part"]]
        t, time = int(row["t"]), values.shape[-1]
        assert int(row["lag"]) == time - t
        value = values[steps.index(int(row["step"])), int(row["seed"]), t - 1]
        np.testing.assert_array_equal(float(row["log10_norm"]), float(value))
    assert len({tuple(row.values())[:-1] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("cell", "name", "values"),
    [
        ("a|b", ("rnn", ""), np.zeros((1, 1, 4))),
        ("a", ("rnn", "|c"), np.zeros((1, 1, 4))),
        ("a", ("rnn", ""), np.zeros((2, 1, 4))),
        ("a", ("rnn", ""), np.zeros((1, 4))),
        ("a", ("rnn", ""), np.zeros((1, 0, 4))),
        ("a", ("rnn", ""), np.zeros((1, 1, 4), int)),
        ("a", ("rnn", ""), jnp.zeros((1, 1, 4), jnp.bfloat16)),
    ],
)
def test_profiles_that_would_not_read_back_are_refused_and_leave_the_old_ones(run_dir, cell, name, values):
    run_directory.save_profiles(run_dir, [0], {"old": {("rnn", ""): np.ones((1, 1, 1))}})
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"[;:] allowed: "):
        run_directory.save_profiles(run_dir, [0], {cell: {name: values}})
    assert contents(run_dir) == before


def test_profiles_of_other_cells_stay_and_are_unknown_at_steps_that_they_lack(run_dir):
    run_directory.save_profiles(run_dir, [0, 4], {"old": {("rnn", ""): np.float32([[[1]], [[2]]])}})
    run_directory.save_profiles(run_dir, [0], {"new": {("rnn", "c"): np.float32([[[3]]])}})
    run_directory.save_profiles(run_dir, [0, 2], {"new": {("rnn", "c"): np.float32([[[4]], [[5]]])}})
    steps, found = run_directory.load_profiles(run_dir)
    assert steps.tolist() == [0, 2, 4]
    assert list(found) == ["old", "new"]
    for cell, name, values in (("old", ("rnn", ""), [1, np.nan, 2]), ("new", ("rnn", "c"), [4, 5, np.nan])):
        np.testing.assert_array_equal(found[cell][name], np.float32(values).reshape(3, 1, 1), strict=True)


def test_no_profiles_are_refused(run_dir):
    with pytest.raises(ValueError, match="allowed: some"):
        run_directory.save_profiles(run_dir, [0], {})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(run_dir, monkeypatch):
    run_directory.save_profiles(run_dir, [0], {"old": {("rnn", ""): np.ones((1, 1, 1))}})
    before = contents(run_dir)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_directory.save_profiles(run_dir, [0], {"new": {("rnn", ""): np.ones((1, 1, 1))}})
    assert contents(run_dir) == before


def test_summary_reads_back(run_dir):
    rows = [{"cell": "a, b", "seed": 0, "horizon_e": 3}, {"seed": 1, "horizon_e": math.inf, "cell": "lstm"}]
    assert run_directory.save_table(run_dir, rows) == run_dir / "summary.csv"
    assert read.load_table(run_dir) == [
        {"cell": "a, b", "seed": "0", "horizon_e": "3"},
        {"cell": "lstm", "seed": "1", "horizon_e": "inf"},
    ]


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"a": 1, "b": 2}], [{"a": 1, "b": 2}, {"a": 1}]])
def test_a_summary_without_one_set_of_columns_is_refused(run_dir, rows):
    with pytest.raises(ValueError, match="; allowed: "):
        run_directory.save_table(run_dir, rows)
    assert read.load_table(run_dir) == []


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
    path = run_directory.save_checkpoint(run_dir, "step_10", saved)
    assert path == run_dir / "checkpoints" / "step_10"

    restored = run_directory.restore_checkpoint(run_dir, "step_10", like)

    assert_trees_equal(restored, saved)
    xs = jnp.ones((2, 3), jnp.float32)
    np.testing.assert_array_equal(restored["model"]["rnn"][0](xs), saved["model"]["rnn"][0](xs))


def test_a_checkpoint_of_the_same_name_is_replaced_and_nothing_else_is_left(run_dir):
    for value in (1.0, 2.0, 3.0):
        run_directory.save_checkpoint(run_dir, "last", {"x": jnp.full((), value)})
    assert run_directory.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"] == 3.0
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["last"]


@pytest.mark.parametrize("calls_before_kill", range(4))
def test_a_kill_while_replacing_loses_no_checkpoint(run_dir, monkeypatch, calls_before_kill):
    """Killed before each of the calls that move or delete folders once the new checkpoint is complete."""
    run_directory.save_checkpoint(run_dir, "last", {"x": jnp.ones(())})
    calls = itertools.count()

    def dying(function):
        def call(*arguments, **options):
            if ".last.new.orbax" not in str(arguments[0]) and next(calls) >= calls_before_kill:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(run_directory.pathlib.Path, "rename", dying(run_directory.pathlib.Path.rename))
        patch.setattr(run_directory.shutil, "rmtree", dying(run_directory.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            run_directory.save_checkpoint(run_dir, "last", {"x": jnp.full((), 2.0)})
    restored = run_directory.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"]
    assert restored == (1.0 if calls_before_kill < 2 else 2.0)

    run_directory.save_checkpoint(run_dir, "last", {"x": jnp.full((), 3.0)})
    assert run_directory.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"] == 3.0
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["last"]


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
    run_directory.save_checkpoint(run_dir, "best", saved)
    like = nnx.Linear(**{"in_features": 3, "out_features": 4, "rngs": nnx.Rngs(0)} | like)
    with pytest.raises(ValueError, match="; allowed: the same leaves, shapes and dtypes") as error:
        run_directory.restore_checkpoint(run_dir, "best", like)
    wanted = f"checkpoint 'best' has leaf '.bias.value' as {there}, `like` has it as {here}; "
    assert str(error.value).startswith(wanted)


def test_an_absent_checkpoint_is_named_beside_those_there_are(run_dir):
    run_directory.save_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"has no checkpoint 'bset'; allowed: \['best'\]"):
        run_directory.restore_checkpoint(run_dir, "bset", {"x": jnp.ones(2)})


@pytest.mark.parametrize("name", ["", ".", "..", "../config", "a/b", "/tmp", ".hidden"])
def test_a_checkpoint_stays_below_its_folder(run_dir, name):
    with pytest.raises(ValueError, match="no checkpoint can be named"):
        run_directory.save_checkpoint(run_dir, name, {"x": jnp.ones(2)})


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
        run_directory.save_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
        run_directory.restore_checkpoint(run_dir, "best", {"x": jnp.ones(2)})
        absl_logging.info("the user's own line")
        assert lines == ["the user's own line"]
        assert (logger.level, logger.filters) == before
    finally:
        absl_logging.set_verbosity(verbosity)
        logger.removeHandler(handler)


def test_a_note_comes_back_exactly_with_its_checkpoint(run_dir):
    note = {"step": 7, "best": 0.1 + 0.2, "none": None, "worst": math.inf, "stream": {"next_index": 2**60}}
    run_directory.save_checkpoint(run_dir, "last", {"x": jnp.ones(())}, note)
    assert run_directory.load_note(run_dir, "last") == note
    run_directory.save_checkpoint(run_dir, "last", {"x": jnp.ones(())})
    assert run_directory.load_note(run_dir, "last") == {}
    assert run_directory.has_checkpoint(run_dir, "last")
    assert not run_directory.has_checkpoint(run_dir, "best")
    with pytest.raises(ValueError, match="has no checkpoint 'best'"):
        run_directory.load_note(run_dir, "best")


def test_the_only_checkpoint_a_kill_has_left_is_kept_until_the_next_is_complete(run_dir, monkeypatch):
    """A kill between the two renames, and another one while the next checkpoint is being written."""
    run_directory.save_checkpoint(run_dir, "last", {"x": jnp.ones(())})
    (run_dir / "checkpoints" / "last").rename(run_dir / "checkpoints" / ".last.new")

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_directory.ocp.Checkpointer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run_directory.save_checkpoint(run_dir, "last", {"x": jnp.zeros(())})
    assert run_directory.restore_checkpoint(run_dir, "last", {"x": jnp.zeros(())})["x"] == 1.0


@pytest.mark.parametrize("kept", [0, 3, 4])  # steps; of the fourth, something was written behind its position
def test_tensorboard_shows_no_lost_steps_and_every_other_once(run_dir, kept):
    positions = [0]
    with run_directory.MetricWriter(run_dir, 0) as writer:
        for step in range(4):
            writer.write(step, {"loss": 0.5 * step})
            writer.write(step, {"accuracy": 0.25 * step})
            positions.append(writer.position)
        writer.write(3, {"test": 0.125})
        writer.write(7, {"loss": 8.0})
    assert (7, "loss", 8.0) in read_events(run_dir)
    with run_directory.MetricWriter(run_dir, positions[kept]) as writer:
        writer.write(4, {"loss": 16.0})
    shown = [point for step in range(kept) for point in ((step, "loss", 0.5 * step), (step, "accuracy", 0.25 * step))]
    assert read_events(run_dir) == read_metrics(run_dir) == [*shown, (4, "loss", 16.0)]


def test_tensorboard_keeps_the_later_steps_of_an_earlier_training(run_dir):
    positions = []
    with run_directory.MetricWriter(run_dir, 0) as writer:
        for name in ("first", "second"):
            for step in range(3):
                writer.write(step, {name: 0.5 * step})
                positions.append(writer.position)
    with run_directory.MetricWriter(run_dir, positions[-2]) as writer:
        writer.write(2, {"second": 8.0})
    assert sorted(read_events(run_dir)) == sorted(read_metrics(run_dir))
    assert read_metrics(run_dir)[-3:] == [(0, "second", 0.0), (1, "second", 0.5), (2, "second", 8.0)]


def test_metrics_behind_a_position_are_dropped(run_dir):
    with run_directory.MetricWriter(run_dir) as writer:
        writer.write(1, {"loss": 0.5})
        position = writer.position
        writer.write(2, {"loss": 0.25})
    with run_directory.MetricWriter(run_dir, position) as writer:
        assert writer.position == position
        writer.write(3, {"loss": 0.75})
    assert read_metrics(run_dir) == [(1, "loss", 0.5), (3, "loss", 0.75)]
    with run_directory.MetricWriter(run_dir, 0) as writer:
        writer.write(4, {"loss": 1.0})
    assert read_metrics(run_dir) == [(4, "loss", 1.0)]
