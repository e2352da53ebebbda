import csv
import datetime
import json
import math
import multiprocessing
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax.report import read
from rnn_jax.training import lock, run_directory
from rnn_jax.training.resume import open_run
from tests.experiments.command import fork


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
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "config.json"]


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


@pytest.mark.parametrize("name", ["notes.txt", "metrics.csv", "summary.csv", ".git"])
def test_a_folder_with_files_of_the_user_is_refused_and_left_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"^--out='.*' holds other files, such as '{name}'; allowed: "):
        run_directory.create(str(tmp_path), {})
    assert contents(tmp_path) == {pathlib.Path(name): b"mine"}


def test_a_folder_with_what_file_managers_and_a_killed_start_leave_is_empty(tmp_path):
    for name in (".DS_Store", "Thumbs.db", ".lock", ".config.json.123"):
        (tmp_path / name).touch()
    assert (run_directory.create(str(tmp_path), {}) / "config.json").exists()


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


def start_twenty(folder):
    os.chdir(folder)
    processes = multiprocessing.get_context("fork")
    together = processes.Barrier(20)
    started = [processes.Process(target=start_one, args=(number, together)) for number in range(20)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(any(process.exitcode for process in started))


def start_one(number, together):
    run_directory.time.strftime = lambda _: "20260102-030405"
    together.wait()
    run_dir = run_directory.create(run_directory.make_default_out("flow"), {"number": number})
    with (run_dir / "metrics.csv").open("a") as file:
        file.write(f"{number}")


def test_twenty_starts_in_one_second_have_twenty_folders(tmp_path):
    process = fork(start_twenty, tmp_path)
    process.join(300)
    assert process.exitcode == 0
    names = ["flow-20260102-030405" + suffix for suffix in ("", *(f"-{k}" for k in range(2, 21)))]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(names)
    numbers = set()
    for name in names:
        number = json.loads((tmp_path / "runs" / name / "config.json").read_text())["flags"]["number"]
        assert (tmp_path / "runs" / name / "metrics.csv").read_text() == str(number)
        numbers.add(number)
    assert numbers == set(range(20))


def test_a_default_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ValueError, match=r"^'runs/flow-.*' cannot be made \(File exists\); allowed: with --out=FOLDER"):
        run_directory.make_default_out("flow")


def hold(run_dir, told):
    """Tells `held`, or why not, and waits for its end."""
    try:
        lock.hold(run_dir)
        told.send("held")
        told.recv()
    except ValueError as error:
        told.send(str(error))


def test_a_folder_has_one_writer_which_the_second_names_and_which_may_be_killed(run_dir):
    """The lock is of the operating system, so any process shows it; and this one holds the folder it has made."""

    told, there = multiprocessing.Pipe()
    fork(hold, str(run_dir), there)
    said = told.recv()
    sentence = r"--out='{}' is being written by process {} on '{}', since \d{{4}}-.*; allowed: one process at a time"
    host = re.escape(socket.gethostname())
    assert re.match(sentence.format(re.escape(str(run_dir)), os.getpid(), host), said)
    released = lock._held.pop(run_dir.resolve())[0]
    released.release()
    process = fork(hold, str(run_dir), there)
    assert told.recv() == "held"
    with pytest.raises(ValueError, match=sentence.format(re.escape(str(run_dir)), process.pid, host)):
        open_run("train", str(run_dir), {}, {}, resume=True)
    process.kill()
    process.join()
    lock.hold(run_dir)


def test_a_folder_that_cannot_be_written_cannot_be_locked(tmp_path):
    with pytest.raises(ValueError, match=r"^--out='/proc/1' cannot be locked"):
        lock.hold("/proc/1")


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
