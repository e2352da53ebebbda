"""What a resumed run is held against: the source of its cells, and the files of the library."""

import json
import os
import sys

import pytest
from absl import flags

from experiments.resume_flag import define_resume_flag
from rnn_jax.training.resume import open_run, other_versions, resume_command

CELL = """
import jax.numpy as jnp
from flax import nnx
from bases_of_mine import Leaky

class Mine(Leaky):
    def __call__(self, h, x):
        return 0.5 * h, h
"""
BASE = """
from flax import nnx

class Leaky(nnx.RNNCellBase):
    leak = 0.5
"""


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Modules of a user, a run with the cell in them, and a function that opens it."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = {name: tmp_path / f"{name}.py" for name in ("cells_of_mine", "bases_of_mine")}
    for path, text in zip(modules.values(), (CELL, BASE)):
        path.write_text(text)

    def open_it(resume, **given):
        given = {"task": "adding", "cell": "cells_of_mine:Mine(leak=1)", **given}
        return open_run("train", str(tmp_path / "run"), given, {}, resume=resume)

    open_it(False)
    yield modules, open_it
    for name in modules:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("module", ["cells_of_mine", "bases_of_mine"])
def test_a_run_whose_cell_was_edited_goes_on_by_force_alone_and_notes_it(begun, capsys, module):
    modules, open_it = begun
    run_dir = open_it(True)
    assert "forced" not in json.loads((run_dir / "config.json").read_text())
    modules[module].write_text(modules[module].read_text().replace("0.5", "0.6"))
    sentence = (
        rf"^the cell 'cells_of_mine:Mine\(leak=1\)' has another source than when the run in '{run_dir}' began:"
        rf" '{modules[module]}' has changed; allowed with --resume: the same source. --resume=force goes on"
    )
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        open_it(True)
    assert (run_dir / "config.json").read_bytes() == before
    assert open_it("force") == run_dir
    assert "--resume=force: the source of cells_of_mine:Mine(leak=1) has changed" in capsys.readouterr().err
    noted, was = json.loads((run_dir / "config.json").read_text()), json.loads(before)
    (entry,) = noted.pop("forced")
    assert entry["changed_cells"] == {"cells_of_mine:Mine(leak=1)": str(modules[module])}
    assert entry["source_before"] == was.pop("source") != noted.pop("source")
    assert noted == was
    open_it(True)  # it is the source of the run now
    open_it("force")
    assert len(json.loads((run_dir / "config.json").read_text())["forced"]) == 1


def test_cells_by_name_are_found_in_a_list_and_those_of_the_library_are_not_compared(begun, tmp_path):
    modules, _ = begun
    given = {"task": "adding", "cells": "lstm(forget_bias=0),cells_of_mine:Mine"}
    for resume in (False, True):
        run_dir = open_run("gradient_flow", str(tmp_path / "other"), given, {}, resume=resume)
    source = json.loads((run_dir / "config.json").read_text())["source"]
    assert source["cells"].keys() == {"cells_of_mine:Mine"}
    assert source["cells"]["cells_of_mine:Mine"].keys() == set(modules)


def test_force_goes_on_with_no_other_flags_or_data(begun):
    _, open_it = begun
    with pytest.raises(ValueError, match=r"^--task=copy differs from the run in .*, which has adding; allowed"):
        open_it("force", task="copy")


def test_other_files_of_the_library_are_said(begun):
    run_dir = begun[1](True)
    assert other_versions(run_dir, {}) == ""
    config = json.loads((run_dir / "config.json").read_text())
    config["source"]["rnn_jax"] = "0" * 64
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "began with other packages (other files of rnn_jax): it goes on" in other_versions(run_dir, {})


def test_a_run_without_a_checkpoint_begins_again_and_says_so(begun, capsys):
    run_dir = begun[1](True)
    assert capsys.readouterr().err == ""
    (run_dir / "metrics.csv").touch()
    begun[1](True)
    assert capsys.readouterr().err == f"The run in {str(run_dir)!r} has no checkpoint: it begins again.\n"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False), (["--resume"], True), (["--resume=true"], True), (["--noresume"], False),
        (["--resume=false"], False), (["--resume=force"], "force"), (["--resume=1"], True),
    ],
)  # fmt: skip
def test_the_flag_is_a_boolean_or_force(monkeypatch, words, value):
    values = flags.FlagValues()
    held = define_resume_flag(values)
    values(["program", *words, "--"])
    assert held.value == value
    with pytest.raises(flags.IllegalFlagValueError, match="flag --resume=maybe: allowed: true, false or force"):
        values(["program", "--resume=maybe"])
    monkeypatch.setattr(sys, "argv", ["program", *words, "--out=x"])
    assert resume_command("experiments.train", os.curdir, "x") == "python -m experiments.train --out=x --resume"
