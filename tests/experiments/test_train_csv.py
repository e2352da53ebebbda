"""Claims about a table of the user: from the file to a trained, evaluated, reported model in one command."""

import ast
import csv
import json
import pathlib
import sysconfig

import pytest

from rnn_jax.tasks.vocabulary import Vocabulary
from tests.experiments.command import run

_PACKAGES = ("asyncio", "email", "xml")
_ROWS = 100  # of each
_WORDS = 20  # at least, so that all batches have one width: the time of this test is that of compiling the update


def docstrings(package):
    """Real texts of this package of the standard library: some with commas, quotes and many lines."""
    for path in sorted((pathlib.Path(sysconfig.get_paths()["stdlib"]) / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text.split()) >= _WORDS:
                    yield text


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "docstrings.csv"
    rows = [(text, package) for package in _PACKAGES for text in list(docstrings(package))[:_ROWS]]
    assert len(rows) == len(_PACKAGES) * _ROWS
    assert sum("\n" in text and '"' in text for text, _ in rows) > 10
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # with a byte order mark, as Excel writes it
        csv.writer(file).writerows([("docstring", "package"), *rows])
    return path


def test_a_csv_goes_from_file_to_a_reported_model_in_one_command(table, tmp_path):
    done = run(
        "train",
        f"--task=csv:{table}",
        "--text_column=docstring",
        "--label_column=package",
        f"--max_length={_WORDS}",
        "--cell=gru",
        "--hidden=16",
        "--pool=mean",
        "--steps=90",
        "--eval_every=45",
        "--learning_rate=1e-2",
        f"--out={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run/summary.csv", newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert float(row["baseline_score"]) == pytest.approx(1 / 3)
    assert float(row["test_score"]) > 0.6  # of 30 texts; 0.33 with a standard deviation of 0.09 by chance
    assert f"{float(row['test_score']):.4g}" in done.stdout
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {"train_sha256", "validation_sha256", "test_sha256"} <= set(config["flags"]["data"])
    vocabulary = Vocabulary.load(tmp_path / "run/vocabulary.json")
    assert (vocabulary.kind, "the" in vocabulary.symbols) == ("word", True)
    assert (tmp_path / "run/figures/gradient_flow.png").stat().st_size > 10_000
