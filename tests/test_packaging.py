"""What an installation of the library brings along."""

import pathlib
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parsed(lines):
    requirements = map(Requirement, lines)
    return {requirement.name: str(requirement.specifier) for requirement in requirements}


def test_requirements_are_those_of_the_library_and_its_extras():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    extras = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    all_of_project = parsed([*PROJECT["dependencies"], *extras])
    del all_of_project["rnn_jax"]  # an extra that includes another
    assert parsed(filter(None, lines)) == all_of_project


def test_the_library_alone_imports_no_package_of_an_extra():
    program = """
import sys

class OnlyTheCore:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyTheCore())
import rnn_jax, rnn_jax.models
assert rnn_jax.make_cell
"""
    extras = parsed(line for group in PROJECT["optional-dependencies"].values() for line in group)
    own_or_of_flax = {"rnn_jax", "absl-py", "orbax-checkpoint", "importlib_resources"}  # Flax imports Orbax itself
    modules = {"tensorflow-datasets": "tensorflow_datasets", "scikit-learn": "sklearn"}
    blocked = [modules.get(name, name) for name in extras.keys() - own_or_of_flax]
    done = subprocess.run([sys.executable, "-c", program, *blocked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"django", "faker", "matplotlib", "sklearn", "grain"} <= set(blocked)
