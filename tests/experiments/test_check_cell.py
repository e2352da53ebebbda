"""Claims about `python -m experiments.check_cell`, through its command line."""

from tests.experiments.command import run

MY_CELL = '''
from rnn_jax.cells.elman import ElmanCell


class Mine(ElmanCell):
    """An Elman cell, put on the bench from outside, that promises too much of its gate."""

    gate_ranges = {"candidate": (0.0, 1.0)}

'''


def check_cell(*flags, pythonpath=""):
    return run("check_cell", *flags, PYTHONPATH=str(pythonpath))


def test_a_cell_of_the_catalogue_passes():
    done = check_cell("--cell=elman", "--in_features=2", "--hidden=4", "--seed=3")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, empty, verdict = done.stdout.splitlines()
    assert not empty
    assert verdict == "elman passes all 22 checks (2 more do not apply)."
    assert all(line.startswith("ok    ") for line in lines if "the cell asks for no" not in line)
    assert "float32[*batch, 4]" in lines[0]
    assert not done.stderr


def test_a_cell_from_elsewhere_is_checked_and_its_failure_told(tmp_path):
    (tmp_path / "my_module.py").write_text(MY_CELL)
    done = check_cell("--cell=my_module:Mine", "--in_features=2", "--hidden=4", "--seed=3", pythonpath=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "my_module:Mine FAILS 1 of 22 checks (2 more do not apply): gates."
    (failure,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "gate candidate is -" in failure
    assert failure.endswith("allowed: 0 to 1.")
    assert not done.stderr


def test_help_tells_the_question_and_the_flags():
    help_text = check_cell("--helpshort").stdout
    assert "Does a cell keep the contract" in help_text
    for flag in ("--cell:", "--in_features:", "--hidden:", "--seed:"):
        assert flag in help_text
