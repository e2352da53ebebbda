"""A run directory damaged in many ways: each time one sentence that names the file, or what was written comes back.

One small language model is trained once. Each case damages a copy, and opens it as a program would: `train --resume`,
`generate`, `compare`, or what draws figures.
"""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_jax import tasks
from rnn_jax.report import comparison, read
from rnn_jax.training import checkpoints, loop, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.config import TrainConfig, every
from rnn_jax.training.load import load_run, save_interface
from rnn_jax.training.resume import load_notes, open_run
from rnn_jax.training.update import initial_state
from tests import reference
from tests.training.small_runs import assert_same_weights

FLAGS = {"cell": "gru", "hidden": 4, "emb_size": 4, "recurrent": True, "seed": 0, "pool": None}
CONFIG = TrainConfig(steps=12, batch_size=4, eval_at=every(2, 12), look_at=frozenset({0}) | every(6, 12))


@dataclasses.dataclass(frozen=True)
class Trained:
    """Folders of one run: killed behind its checkpoint of step 4, and of step 8, where step 4 was the best; its end."""

    task: tasks.Task
    flags: dict
    like: object
    optimizer: optax.GradientTransformation
    early: object
    late: object
    end: object

    def open(self, folder):
        """Opens a folder as `train --resume` does, up to where it would train."""
        run_dir = open_run("train", str(folder), self.flags, self.task.fingerprint, resume=True)
        save_interface(run_dir, self.task)
        return loop._Run(self.task, self.like, self.optimizer, run_dir, CONFIG, ["gru"], [0], one_model=True)

    def train(self, folder):
        return loop.train(self.task, self.like.model, self.optimizer, folder, CONFIG, name="gru")


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "song.txt").write_text("the carry goes on and on; " * 40, encoding="utf-8")
    flags = {"task": f"text:{folder / 'song.txt'}", "seq_len": 8, **FLAGS}
    # It climbs down to step 4, and then up: no later evaluation is better.
    optimizer = optax.sgd(lambda step: jnp.where(step < 4, 0.3, -0.3))
    with jax.numpy_dtype_promotion("standard"):
        task = tasks.make_task(flags["task"], seq_len=8)
        model = reference.drawn(lambda: make_model(task.interface, ModelSettings.of_flags(flags), nnx.Rngs(0)))
        like = initial_state(task, model, optimizer, CONFIG)
        run = Trained(task, flags, like, optimizer, folder / "early", folder / "late", folder / "end")
        run_dir = open_run("train", str(folder / "end"), flags, task.fingerprint, resume=False)
        save_interface(run_dir, task)
        save = checkpoints.save_checkpoint

        def copying(run_dir, name, tree, note, *rest):
            for step, copy in ((6, run.early), (10, run.late)):
                if name == "last" and note["step"] == step:
                    shutil.copytree(run_dir, copy)
            return save(run_dir, name, tree, note, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "save_checkpoint", copying)
            result = run.train(run_dir)
    assert (result.step, result.steps) == (4, 12)
    common = {"test_score": result.test_score, "validation_score": 0.5, "baseline_score": 0.5, "parameters": 9}
    row = {"cell": "gru", "seed": 0, "layer": "rnn", "part": "", "horizon_e": 1, "horizon_1000": 2, "seconds": 1.0}
    stages = ({"stage": stage} for stage in ("initialization", "trained"))
    run_directory.save_table(run_dir, [{**row, **stage, **common} for stage in stages])
    return run


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def bad_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] = 0xFF
    path.write_bytes(bytes(content))


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(500))


def make_list(path):
    path.write_text("[1, 2]")


def without(*keys):
    def drop(path):
        content = inner = json.loads(path.read_text())
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        path.write_text(json.dumps(content))

    return drop


def having(**values):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def replaced(pattern, text):
    def change(path):
        content = path.read_text()
        assert re.search(pattern, content)
        path.write_text(re.sub(pattern, text, content, count=1))

    return change


def weights_of(checkpoint):
    """The file that holds the weights: the largest."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def find(checkpoint, name):
    return weights_of(checkpoint) if name == "weights" else next(iter(sorted(checkpoint.glob(name))))


def assert_sentence(said, *words):
    assert "\n" not in said
    assert len(said) <= 500, said
    assert "allowed: " in said, said
    for word in words:
        assert word in said, said


def case(*values):
    names = [getattr(value, "__name__", str(value)) for value in values]
    return pytest.param(*values, id=" ".join(names))


FILES = ("_METADATA", "manifest.ocdbt", "weights", "d/*", "array_metadatas/process_0", "note.json", "checksums.json")
HARM = (delete, empty, halve, flip)


def assert_goes_on(run, of, step):
    """Whether a run goes on from one of its checkpoints, with the metrics and the profiles of that moment."""
    note = json.loads((of / "note.json").read_text())
    assert (run.step, note["step"], run.position) == (step, step, note["position"])
    content = (run.run_dir / "metrics.csv").read_bytes()
    assert content[: run.position] == (of / "metrics.csv").read_bytes()
    with np.load(of / "gradient_flow.npz") as arrays:
        assert sorted(run.profiles) == arrays["steps"].tolist()
        for k, number in enumerate(arrays["steps"].tolist()):
            np.testing.assert_array_equal(run.profiles[number]["rnn", ""], arrays["gru|rnn|"][k])


def every_harm():
    """Every file, damaged in every way; unasked, where one checksum after another finds it, in one way each."""
    for k, name in enumerate(FILES):
        for harm in HARM:
            unasked = name in ("weights", "checksums.json") or harm is HARM[k % len(HARM)]
            yield pytest.param(*(one := case(name, harm)).values, id=one.id, marks=() if unasked else pytest.mark.slow)


@pytest.mark.parametrize(("name", "harm"), [*every_harm()])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(trained, tmp_path, capsys, name, harm):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    path = find(folder / "checkpoints/last", name)
    harm(path)
    run = trained.open(folder)
    assert_goes_on(run, trained.late / "checkpoints/last.previous", 6)
    said = capsys.readouterr().err.splitlines()[0]
    file = "" if name == "checksums.json" else str(path.relative_to(folder / "checkpoints/last"))
    sentence = (
        rf"the checkpoint '{folder}/checkpoints/last' is damaged \({file}.*\); what is used is the one before it, "
    )
    assert re.match(sentence + rf"'{folder}/checkpoints/last.previous', of step 6\.$", said)
    assert len(said) <= 500
    # The whole one has taken its place, so that the next does not push it out.
    assert sorted(entry.name for entry in (folder / "checkpoints").glob("last*")) == ["last"]


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda path: (shutil.rmtree(path), path.write_text(""))])
def test_a_checkpoint_that_is_gone_or_no_folder_is_replaced_by_the_one_before(trained, tmp_path, capsys, harm):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    harm(folder / "checkpoints/last")
    assert trained.open(folder).step == 6
    assert "checkpoints/last' is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "harm"), [case("weights", flip), case("manifest.ocdbt", delete), case("d/*", halve)])
def test_two_damaged_checkpoints_are_named_beside_what_is_whole(trained, tmp_path, name, harm):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    for checkpoint in ("last", "last.previous"):
        harm(find(folder / "checkpoints" / checkpoint, name))
    with pytest.raises(run_directory.Damaged) as error:
        trained.open(folder)
    assert_sentence(
        str(error.value),
        "checkpoints/last'",
        "'last.previous' (",
        "still whole, 'best', 'best.previous', or",
        f"To use 'best': python -m experiments.generate --run={folder}",
    )


def harm_metrics(name, harm, said):
    return pytest.param(harm, said, id=f"metrics.csv {name}")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        harm_metrics("deleted", delete, "it is missing"),
        harm_metrics("emptied", empty, "it has 0 bytes, and had "),
        harm_metrics("halved", halve, "bytes, and had "),
        harm_metrics("one bit", flip, "not as it was written"),
        harm_metrics("one bad byte", bad_byte, "not as it was written"),
        harm_metrics("garbage", garbage, " and had |not as it was written"),
        harm_metrics("another number", replaced(r"(?m)\.\d", ".x"), "not as it was written"),
        harm_metrics("a row less", replaced(r"(?m)^2,.*\n", ""), "not as it was written"),
        harm_metrics("half a row more", lambda path: path.write_text(path.read_text() + "12,trai"), None),
    ],
)
def test_damaged_metrics_come_back_from_the_checkpoint(trained, tmp_path, capsys, harm, said):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    harm(folder / "metrics.csv")
    assert_goes_on(trained.open(folder), trained.late / "checkpoints/last", 8)
    told = capsys.readouterr().err
    if said is None:
        assert told == ""
    else:
        assert re.search(rf"run/metrics.csv' is damaged \(.*({said}).*\): it is now as it was at step 8", told)


@pytest.mark.parametrize("harm", [delete, empty, halve, flip, garbage])
def test_damaged_profiles_come_back_from_the_checkpoint(trained, tmp_path, capsys, harm):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    harm(folder / "gradient_flow.npz")
    assert_goes_on(trained.open(folder), trained.late / "checkpoints/last", 8)
    fault = "it is missing" if harm is delete else "it cannot be read"
    assert f"gradient_flow.npz' is damaged ({fault}): it is now as it was at step 8" in capsys.readouterr().err


def test_damaged_metrics_whose_copy_is_damaged_are_refused(trained, tmp_path):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    for path in (folder, folder / "checkpoints/last", folder / "checkpoints/last.previous"):
        halve(path / "metrics.csv")
    with pytest.raises(run_directory.Damaged) as error:
        trained.open(folder)
    assert_sentence(str(error.value), "metrics.csv")


HARM_TO_CONFIG = (
    empty, halve, garbage, bad_byte, make_list, without("flags"), without("versions"), without("device"),
    without("argv"), having(flags=[]), having(source=1),
)  # fmt: skip


@pytest.mark.parametrize("harm", HARM_TO_CONFIG)
def test_a_damaged_config_is_refused_by_all_who_read_it_and_its_copy_is_named(trained, tmp_path, harm):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    harm(folder / "config.json")
    readers = [trained.open, lambda folder: load_run(folder, tasks.Kind.STREAM)]
    if "source" not in (folder / "config.json").read_text(errors="ignore") or harm in (halve, bad_byte):
        readers += [read.load_config, lambda folder: comparison.compare([folder])]
    for reader in readers:
        with pytest.raises(ValueError, match=r"config\.json' is damaged ") as error:
            reader(folder)
        assert_sentence(str(error.value), f"{folder}/checkpoints/last/config.json")
    shutil.copyfile(folder / "checkpoints/last/config.json", folder / "config.json")
    assert trained.open(folder).step == 12


def test_checkpoints_without_a_config_are_refused_with_and_without_resume(trained, tmp_path):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    (folder / "config.json").unlink()
    for resume in (True, False):
        with pytest.raises(
            ValueError, match=r"holds checkpoints of a run, but not its config\.json; a copy is "
        ) as error:
            open_run("train", str(folder), trained.flags, trained.task.fingerprint, resume=resume)
        assert_sentence(str(error.value), f"{folder}/checkpoints/last/config.json")
    with pytest.raises(ValueError, match=r"has no config\.json; allowed: ") as error:
        load_run(folder, tasks.Kind.STREAM)
    assert_sentence(str(error.value), str(folder))


def test_what_the_run_can_make_itself_is_made_again(trained, tmp_path):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    garbage(folder / "task.json")
    (folder / "vocabulary.json").unlink()
    (folder / "timing.csv").write_text((folder / "timing.csv").read_text()[:-3])
    trained.open(folder)
    for name in ("task.json", "vocabulary.json"):
        assert (folder / name).read_bytes() == (trained.late / name).read_bytes()


def test_a_damaged_best_model_that_is_the_last_one_comes_back(trained, tmp_path):
    folder = shutil.copytree(trained.early, tmp_path / "run")
    flip(weights_of(folder / "checkpoints/best"))
    run = trained.open(folder)
    best = checkpoints.restore_checkpoint(folder, "best", run.state.model, newest=True)
    assert (run.step, run.members[0].best_step) == (4, 4)
    assert_same_weights(best, run.state.model)


def test_a_damaged_best_model_that_is_lost_is_refused(trained, tmp_path):
    """Not the one before it in its place: it is another model, and would be the answer of the run."""
    folder = shutil.copytree(trained.late, tmp_path / "run")
    flip(weights_of(folder / "checkpoints/best"))
    with pytest.raises(run_directory.Damaged) as error:
        trained.open(folder)
    assert_sentence(str(error.value), "checkpoints/best'", "'last'", "'best.previous'")


def test_a_run_damaged_in_three_places_ends_as_one_left_alone(trained, tmp_path):
    folder = shutil.copytree(trained.late, tmp_path / "run")
    flip(weights_of(folder / "checkpoints/last"))
    halve(folder / "metrics.csv")
    (folder / "gradient_flow.npz").unlink()
    result = trained.train(folder)
    assert result.step == 4
    for name in ("metrics.csv", "gradient_flow.csv"):
        assert (folder / name).read_bytes() == (trained.end / name).read_bytes()
    for name in ("last", "best"):
        like = trained.like if name == "last" else trained.like.model
        found, expected = (checkpoints.restore_checkpoint(run, name, like) for run in (folder, trained.end))
        assert_same_weights(found, expected)


# What `generate`, `translate` and `caption` read.


@pytest.mark.parametrize(
    ("name", "harm"),
    [case("weights", flip), case("weights", delete), case("_METADATA", halve), case("manifest.ocdbt", empty)],
)
def test_the_best_model_before_a_damaged_one_is_read(trained, tmp_path, capsys, name, harm):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    harm(find(folder / "checkpoints/best", name))
    run = load_run(folder, tasks.Kind.STREAM)
    assert run.step == 2
    shutil.copytree(folder / "checkpoints/best.previous", tmp_path / "other/checkpoints/best")
    assert_same_weights(run.model, checkpoints.restore_checkpoint(tmp_path / "other", "best", run.model))
    said = capsys.readouterr().err.splitlines()[0]
    assert re.match(r"the checkpoint '.*best' is damaged \(.*\); what is used is .*best.previous', of step 2.$", said)


def test_two_damaged_best_models_are_named_beside_what_is_whole(trained, tmp_path):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    for name in ("best", "best.previous"):
        flip(weights_of(folder / "checkpoints" / name))
    with pytest.raises(run_directory.Damaged) as error:
        load_run(folder, tasks.Kind.STREAM)
    assert_sentence(str(error.value), "checkpoints/best'", "still whole, 'last', 'last.previous', or")


def change_symbols(change):
    def changed(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "symbols": change(content["symbols"])}))

    return changed


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        *(case("task.json", harm) for harm in (delete, empty, halve, garbage, bad_byte, make_list, without("kind"))),
        *(case("task.json", harm) for harm in (without("in_features"), having(kind="x"), having(out_features="x"))),
        *(case("task.json", harm) for harm in (having(more=1), having(in_features=7))),
        *(case("vocabulary.json", harm) for harm in (delete, empty, halve, garbage, bad_byte, make_list)),
        *(case("vocabulary.json", change_symbols(change)) for change in (sorted, lambda s: s[:-1], lambda s: [s])),
        *(case("vocabulary.json", having(kind=kind)) for kind in ("x", 1)),
        *(case("config.json", having(flags=flags)) for flags in ({}, {"cell": 3}, {**FLAGS, "hidden": "x"}, FLAGS)),
    ],
)
def test_a_damaged_file_of_a_trained_model_is_named(trained, tmp_path, file, harm):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    harm(folder / file)
    with pytest.raises(ValueError, match="allowed: ") as error:
        load_run(folder, tasks.Kind.STREAM)
    assert_sentence(str(error.value), str(folder))
    if "checkpoint 'best'" not in str(error.value):
        assert file in str(error.value)


# What `compare` and the figures read.


@pytest.mark.parametrize(
    ("file", "reader", "harm"),
    [
        *(case("metrics.csv", read.load_metrics, harm) for harm in (delete, empty, garbage, bad_byte)),
        case("metrics.csv", read.load_metrics, replaced(r"(?m)\.\d", ".x")),
        case("metrics.csv", read.load_metrics, replaced(r"(?m)^2,", "")),
        case("metrics.csv", read.load_metrics, replaced("step", "stop")),
        *(case("gradient_flow.npz", read.load_profiles, harm) for harm in (delete, empty, halve, flip, garbage)),
        case("gradient_flow.npz", read.load_profiles, lambda path: np.savez(path, x=1)),
        case("gradient_flow.npz", read.load_profiles, lambda path: np.savez(path, steps=np.arange(3))),
        case("gradient_flow.npz", read.load_profiles, lambda path: np.savez(path, steps=[0], **{"a|b|": np.ones(2)})),
        *(case("summary.csv", read.load_table, harm) for harm in (empty, halve, garbage, bad_byte)),
        case("summary.csv", read.load_table, replaced("(?s)\n.*", "\n")),
        case("summary.csv", read.load_table, replaced("(?m),[^,]*$\n", "\n")),
    ],
)
def test_a_damaged_table_is_named_by_its_reader_and_by_compare(trained, tmp_path, file, reader, harm):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    harm(folder / file)
    for read_it in (reader, lambda folder: comparison.compare([folder])):
        with pytest.raises(ValueError, match=re.escape(file)) as error:
            read_it(folder)
        assert_sentence(str(error.value), str(folder))


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("summary.csv", delete, "has no summary.csv and so holds no test score"),
        ("summary.csv", replaced("test_score", "score"), "has no column 'test_score' in summary.csv"),
        ("summary.csv", replaced("(?m),9$", ",nine"), "has parameters 'nine' in summary.csv"),
        ("summary.csv", replaced("trained", "train"), "in summary.csv"),
        ("metrics.csv", halve, "holds no test score in metrics.csv"),
        ("config.json", without("flags", "seed"), "has no --seed in config.json, but None"),
        ("config.json", without("flags", "task"), "has no --task in config.json, but None"),
        ("config.json", without("device", "platform"), "config.json' is damaged (it does not say what the run ran on)"),
        ("config.json", having(argv=[1]), "config.json' is damaged (its 'argv' is no list of words)"),
    ],
)
def test_compare_names_run_and_file(trained, tmp_path, file, harm, said):
    folder = shutil.copytree(trained.end, tmp_path / "run")
    assert comparison.compare([folder]).task == trained.task.name
    harm(folder / file)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        comparison.compare([trained.end, folder])
    assert_sentence(str(error.value), str(folder))


# What `gradient_flow` and `grid_lstm` read: trainings that follow each other.


@pytest.fixture
def in_turn(tmp_path):
    """A run with a finished training and one at work."""
    run_dir = run_directory.create(str(tmp_path / "run"), {})
    for name, note in (("elman", {"finished": {}}), ("gru", {"step": 1}), ("gru", {"step": 2})):
        checkpoints.save_checkpoint(run_dir, name, {"x": jnp.ones(3)}, note)
    return run_dir


def test_lost_weights_of_a_finished_training_do_not_stop_the_ones_behind_it(in_turn):
    flip(weights_of(in_turn / "checkpoints/elman"))
    assert load_notes(in_turn, ["elman", "gru", "lstm"]) == {"elman": {"finished": {}}, "gru": {"step": 2}}
    flip(weights_of(in_turn / "checkpoints/gru"))
    assert load_notes(in_turn, ["elman", "gru"])["gru"] == {"step": 1}


def test_a_finished_training_that_is_not_known_any_more_is_refused(in_turn):
    halve(in_turn / "checkpoints/elman/note.json")
    with pytest.raises(run_directory.Damaged) as error:
        load_notes(in_turn, ["elman", "gru"])
    assert_sentence(str(error.value), "checkpoints/elman'", "note.json", "still whole, 'gru', 'gru.previous', or")
