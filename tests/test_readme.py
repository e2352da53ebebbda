"""What the README shows runs as it stands there."""

import pathlib
import re
import sys

import jax
import pytest

from rnn_jax import flow

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def _numerics_of_a_reader():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_programs_run():
    instrument, training, spread, _ = BLOCKS
    training = training.replace("range(300)", "range(2)")
    shown: dict[str, object] = {}
    exec(instrument + training + spread, shown)
    assert shown["p"].log10_norm["rnn/c"].shape == (500,)
    assert shown["profile"].log10_norm["rnn/layers/1"].shape == (128,)
    assert len(shown["batch"]["xs"].sharding.device_set) == jax.device_count()
    shapes = [[leaf.shape for leaf in jax.tree.leaves(shown[name])] for name in ("grads", "model")]
    assert shapes[0] == shapes[1]


def test_the_cell_of_ones_own_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "mycells.py").write_text(BLOCKS[3])
    monkeypatch.syspath_prepend(tmp_path)
    report = flow.check_cell("mycells:UGRNNCell")
    sys.modules.pop("mycells")
    assert report.passed, str(report)
    assert len(BLOCKS[3].splitlines()) <= 20


def test_its_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README, re.DOTALL):
        assert (pathlib.Path(__file__).parents[1] / path).read_bytes().startswith(b"\x89PNG")
