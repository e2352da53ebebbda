r"""What do many seeds in one program save over one run after another?

Trains an ensemble of seeds on digits in one program, then the same seeds one after the other, a program each,
compilation included (the cache of compiled programs is off), and holds their losses against each other.

    python -m experiments.ensembles                               (16 seeds of three cells; 3 to 6 min on 2 CPU cores)
    python -m experiments.ensembles --cells=lstm --seeds=8 --steps=300   (the longer the training, the less is saved)
"""

import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags, logging
from flax import nnx

from experiments import running
from rnn_jax import tasks
from rnn_jax.models import SequenceClassifier
from rnn_jax.registry import split_names
from rnn_jax.report.run_report import write_report
from rnn_jax.training import run_directory
from rnn_jax.training.config import TrainConfig
from rnn_jax.training.ensemble import over_members, use_cores
from rnn_jax.training.estimate import check_update
from rnn_jax.training.optimizers import make_ensemble_optimizer
from rnn_jax.training.step import make_ensemble, train_step

_CELLS = flags.DEFINE_string("cells", "elman,gru,lstm", "Comma-separated, as in experiments.gradient_flow.")
_SEEDS = flags.DEFINE_integer("seeds", 16, "Members of the ensemble.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 100, "Training steps.", lower_bound=1)
_HIDDEN = flags.DEFINE_integer("hidden", 32, "Hidden features.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/ensembles-<time> by default.")

_COMPARED = 5  # steps after which losses are held against each other: training magnifies the last bits of float32
_TOLERANCE = 1e-3  # of them, relative


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX and TFDS tell much on the level below
    use_cores(_SEEDS.value)
    cells = split_names(_CELLS.value)
    task = tasks.make_task("digits")
    tasks.batches(task.train, _BATCH.value, 0)
    config = TrainConfig(
        steps=_STEPS.value, batch_size=_BATCH.value, eval_at=frozenset(), look_at=frozenset(), keep_best=False
    )
    for cell in cells:
        check_update(
            task,
            functools.partial(make_model, cell, task),
            make_ensemble_optimizer(2e-3, clip=1.0),
            config,
            members=_SEEDS.value,
            cell=cell,
            hidden=_HIDDEN.value,
            batch=_BATCH.value,
            seeds=_SEEDS.value,
        )
    given, question = running.given_flags(__name__), __doc__.splitlines()[0]
    run_dir = run_directory.create(_OUT.value, given, experiment="ensembles", question=question)

    train_alone(cells[0], task, 0, steps=1)  # what JAX does once in a process counts for nobody
    rows: list[dict[str, Any]] = []
    bar = tqdm.tqdm(total=len(cells) * (_SEEDS.value + 1), unit="program", disable=None)
    with bar:
        for cell in cells:
            bar.set_description(cell)
            jax.clear_caches()
            start = time.perf_counter()
            together = train_together(cell, task)
            seconds_together = time.perf_counter() - start
            bar.update()
            alone, seconds_alone = [], 0.0
            for seed in range(_SEEDS.value):
                jax.clear_caches()
                start = time.perf_counter()
                alone.append(train_alone(cell, task, seed, _STEPS.value))
                seconds_alone += time.perf_counter() - start
                bar.update()
            rows.append(
                {
                    "cell": cell,
                    "seconds_together": seconds_together,
                    "seconds_alone": seconds_alone,
                    "ratio": seconds_alone / seconds_together,
                    "largest_difference": float(np.max(np.abs(together - np.array(alone)) / np.abs(alone))),
                }
            )
            run_directory.save_table(run_dir, rows, "ensembles.csv")

    print(f"{_SEEDS.value} seeds, {_STEPS.value} steps, {_HIDDEN.value} hidden features; seconds with compilation\n")
    print(f"{'cell':24}{'one program':>14}{'one by one':>14}{'ratio':>8}{'losses differ by':>18}")
    for row in rows:
        print(
            f"{row['cell']:24}{row['seconds_together']:>14.1f}{row['seconds_alone']:>14.1f}{row['ratio']:>8.2f}"
            f"{row['largest_difference']:>18.1e}"
        )
    print(f"\nWritten: {run_dir / 'ensembles.csv'}, {write_report(run_dir)[-1]}")
    if any(not row["largest_difference"] <= _TOLERANCE for row in rows):
        sys.exit(f"a member differs from its own run by more than {_TOLERANCE:.0e}")


def make_model(cell: str, task: tasks.Task, rngs: nnx.Rngs) -> SequenceClassifier:
    return SequenceClassifier(cell, task.in_features, _HIDDEN.value, task.out_features, rngs=rngs)


def examples(task: tasks.Task, seed: int) -> Iterator[tasks.Batch]:
    return iter(tasks.batches(task.train, _BATCH.value, seed))


def train_together(cell: str, task: tasks.Task) -> np.ndarray:
    """Trains all seeds in one program, and returns the loss of each at the step where they are compared."""
    optimizer = make_ensemble_optimizer(2e-3, clip=1.0)
    seeds = range(_SEEDS.value)
    models = make_ensemble(functools.partial(make_model, cell, task), list(seeds))
    states = jax.jit(jax.vmap(optimizer.init))(models)
    step = over_members(functools.partial(train_step, optimizer, task.loss), donate_argnums=(0, 1))
    streams = [examples(task, seed) for seed in seeds]
    losses = []
    for _ in range(_STEPS.value):
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *[next(stream) for stream in streams])
        models, states, profile = step(models, states, batch)
        losses.append(profile.loss)
    jax.block_until_ready(models)
    return np.asarray(losses[:_COMPARED][-1])


def train_alone(cell: str, task: tasks.Task, seed: int, steps: int) -> float:
    """Trains one seed, and returns its loss at the step where they are compared."""
    optimizer = make_ensemble_optimizer(2e-3, clip=1.0)
    model = jax.jit(lambda: make_model(cell, task, nnx.Rngs(seed)))()
    state = jax.jit(optimizer.init)(model)
    step = jax.jit(functools.partial(train_step, optimizer, task.loss), donate_argnums=(0, 1))
    stream = examples(task, seed)
    losses = []
    for _ in range(steps):
        model, state, profile = step(model, state, next(stream))
        losses.append(profile.loss)
    jax.block_until_ready(model)
    return float(losses[:_COMPARED][-1])


if __name__ == "__main__":
    running.run(main)
