"""The checklists of CONTRIBUTING.md, each followed once: what it says is enough."""

import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rnn_jax
from rnn_jax import flow, registry, tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.tasks import generated, task
from rnn_jax.tasks.task import Kind

CELL = '''
import jax.numpy as jnp
from rnn_jax.cell import PointwiseCell
from rnn_jax.registry import register

@register("sine_rnn", paper="Example 2026, A test")
class SineCell(PointwiseCell):
    """h' = sin(x W + h R + b)."""

    input_gates = recurrent_gates = ("candidate",)

    def activate(self, z, carry):
        return {"candidate": jnp.sin(z["candidate"])}

    def pointwise(self, z, carry):
        h = self.activate(z, carry)["candidate"]
        return h, h
'''


def test_add_a_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    (tmp_path / "sines.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("sines")
    assert rnn_jax.list_cells("sines") == ["sine_rnn"]
    assert "| `sine_rnn` | `SineCell` | sines | pointwise | Example 2026, A test |" in registry.cell_table()
    report = flow.check_cell("sine_rnn", only=["contract", "carry", "construction", "strict promotion"])
    assert report.passed, str(report)
    del sys.modules["sines"]


def first_bit(seq_len: int = 5, test_seq_len: int | None = None) -> task.Task:
    """Which token came first? "tokens" is [T], "label" the first of them; the baseline is right half of the time."""
    generated.check_lengths(seq_len, test_seq_len, 1)

    def example(bits):
        tokens = generated.integers(bits, 2)
        return {"tokens": tokens, "label": tokens[0]}

    return generated.generated_task(
        lambda steps: example, lambda steps: steps, seq_len=seq_len, test_seq_len=test_seq_len, train_size=64,
        test_size=16, seed=0, name="first_bit", description="The first of all bits.", source="made up here",
        kind=Kind.ONE_ANSWER, reads_tokens=True, in_features=2, out_features=2, baseline_score=1 / 2,
        class_names=("0", "1"), **generated.CLASSES,
    )  # fmt: skip


def test_add_a_task(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "first_bit", first_bit)
    made = tasks.make_task("first_bit", test_seq_len=7)
    batch = tasks.as_batch(made.test)
    assert batch["tokens"].shape == (16, 7)
    np.testing.assert_array_equal(batch["label"], batch["tokens"][:, 0])
    model = SequenceClassifier("elman", made.in_features, 4, made.out_features, emb_size=3, rngs=nnx.Rngs(0))
    right, asked = made.score(model, batch)
    assert asked == 16
    assert 0 <= right <= 16


@partial(jax.tree_util.register_dataclass, data_fields=["by_step"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Activity:
    """Mean of |y| over sequences and units, by step in the order of the run, `[time]`."""

    by_step: jax.Array


def activity(call: flow.calls.LayerCall) -> Activity:
    by_step = jnp.mean(jnp.abs(call.ys), axis=(0, 2))
    return Activity(jnp.flip(by_step) if call.reverse else by_step)


def test_add_an_instrument():
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    cell = rnn_jax.make_cell("elman", 2, 5, rngs=nnx.Rngs(0))
    seen = {}
    for reverse in (False, True):
        layer = rnn_jax.RNN(cell, reverse=reverse, keep_order=True)
        look = jax.jit(lambda layer: activity(flow.layer_calls(lambda m: m(xs), layer)["rnn"][0]))
        seen[reverse] = look(layer).by_step
    _, flipped = rnn_jax.unroll(cell, jnp.flip(xs, 1))
    np.testing.assert_allclose(seen[True], np.mean(np.abs(flipped), axis=(0, 2)), rtol=1e-6)
    assert np.any(np.asarray(seen[False]) != np.asarray(seen[True]))
