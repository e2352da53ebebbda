"""The examples run, and print what they promise."""

import pathlib
import re
import runpy

import jax
import pytest

EXAMPLES = {
    "compare_gradient_flow": r"^lstm +-?\d+\.\d +\d+$",
    "user_defined_cell": r"MinimalGatedCell passes all 4 checks\.[\s\S]*^forget: \d+\.\d% of its values",
    "train_and_profile": r"^update 100: loss \d\.\d+, 10\^-?\d+\.\d of the largest gradient is left at the first row$",
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name, capsys):
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_module(f"examples.{name}", run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(EXAMPLES[name], printed, re.MULTILINE), printed


def test_all_examples_are_run():
    assert sorted(EXAMPLES) == sorted(
        path.stem for path in (pathlib.Path(__file__).parents[1] / "examples").glob("*.py")
    )
