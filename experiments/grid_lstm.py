r"""Does depth need a memory of its own? Grid LSTM against stacked LSTM, and the gradient along each dimension.

Trains a Grid LSTM and the network it is to replace, of about as many parameters and as many levels, on one task; then
shows how large the gradient is along every dimension of the grid, before training and after it: along time (or the
rows and columns of an image), and along depth, which the profile of a layer over time does not show.

    python -m experiments.grid_lstm                                                (2-digit addition)
    python -m experiments.grid_lstm --digits=15 --depth=18 --hidden=400            (the paper's size, for a GPU)
    python -m experiments.grid_lstm --task=digits --depth=2 --hidden=48 --steps=1500   (images: a 3-LSTM)
    python -m experiments.grid_lstm --task=parity --seq_len=8 --depth=8            (all bits at once: a 1-LSTM)
    python -m experiments.grid_lstm --task=copy --seq_len=25 --symbols=8           (memorization)
    python -m experiments.grid_lstm ... --out=runs/mine --resume                   (the same flags again: goes on)
    python -m experiments.train --task=stdlib_text --cell='grid_lstm(depth=2)'     (a language model: not from here)

`addition` and any other task of the catalogue whose sequences have one length is read step by step, by a 2-LSTM and a
stacked LSTM. `parity` gives all bits at once to networks that are deep and not recurrent, a 1-LSTM and a stack of tanh
layers, and asks for the parity of all. `digits` gives the image to a 3-LSTM, and its rows one by one to a stacked LSTM.

It writes a run directory (config.json, metrics.csv, TensorBoard events, grid_profile.csv, summary.csv, a checkpoint for
each network, samples/ of the answers to a task that asks at every step, figures/grid_lstm.png) and prints where.

References:
  Kalchbrenner, Danihelka, Graves 2015, "Grid long short-term memory", arXiv 1507.01526.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags, logging
from flax import nnx

from experiments import running
from experiments.option_flags import define_option_flags
from experiments.resume_flag import define_resume_flag
from rnn_jax import flow, tasks
from rnn_jax.constant import parameter_count
from rnn_jax.flow.calls import layer_names
from rnn_jax.memory import check_memory
from rnn_jax.report.run_report import write_report
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.config import TrainConfig, check_members, evenly
from rnn_jax.training.ensemble import over_members, use_cores
from rnn_jax.training.estimate import check_update, device_memory
from rnn_jax.training.grid import GridSettings, MakeModel, as_in_paper, make_grid, make_networks, size_of
from rnn_jax.training.loop import train_ensemble
from rnn_jax.training.nonfinite import NotFinite, describe_diverged, finite_members
from rnn_jax.training.optimizers import make_ensemble_optimizer
from rnn_jax.training.resume import load_notes, open_run, other_versions, resume_command
from rnn_jax.training.samples import sampler
from rnn_jax.training.session import Interrupted, Session, open_session
from rnn_jax.training.step import make_ensemble
from rnn_jax.training.watch import probe_batch

_TASK = flags.DEFINE_string("task", "addition", f"What to learn: {', '.join(sorted(tasks.TASKS))}.")
_HIDDEN = flags.DEFINE_integer("hidden", 64, "Hidden features of the Grid LSTM; the other follows.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 4, "Levels of both networks.", lower_bound=1, upper_bound=100)
_SHARED = flags.DEFINE_bool("shared", True, "All levels of the Grid LSTM have the same weights, as in the paper.")
_PRIORITY = flags.DEFINE_enum("priority", "depth", ["depth", "time", "none"], "What a block computes last.")
_PATCH = flags.DEFINE_integer("patch", 2, "digits: rows and columns of the pixels that a block reads.", lower_bound=1)
_EMB_SIZE = flags.DEFINE_integer("emb_size", 32, "Features of the embedding, if the task reads tokens.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Sequences in a batch.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 3000, "Training steps.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Of Adam.", lower_bound=1e-9)
_CLIP = flags.DEFINE_float("clip", 1.0, "Clip gradients to this global norm; 0 does not clip.", lower_bound=0.0)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Members of each ensemble: seed, seed + 1, ...", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The first seed, of parameters and of the order of the data.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/grid_lstm-<time> by default.")
_RESUME = define_resume_flag()

_TASK_OPTIONS = define_option_flags()

_SCORES_KEPT = 20  # on the way through training, for the learning curve
_PROFILED = 64  # sequences that the gradient profile is of
_SETTINGS = tuple(field.name for field in dataclasses.fields(GridSettings))
_DIGITS = 2  # of addition, unless another number is said: what minutes on a CPU are enough for


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX and TFDS tell much on the level below
    enable_compilation_cache()
    use_cores(_SEEDS.value)
    task = make_task()
    tasks.batches(task.train, _BATCH.value, _SEED.value)
    check_members(_SEED.value, _SEEDS.value)
    networks = networks_of(task)
    for make_model in networks.values():
        check_update(
            task,
            make_model,
            make_ensemble_optimizer(_LEARNING_RATE.value, _CLIP.value or None),
            train_config(),
            members=_SEEDS.value,
            hidden=_HIDDEN.value,
            depth=_DEPTH.value,
            batch=_BATCH.value,
            seeds=_SEEDS.value,
            seq_len=task.seq_len,
        )
    given = running.given_flags(__name__) | task_options()
    run_dir = open_run(
        "grid_lstm", _OUT.value, given, task.fingerprint, resume=_RESUME.value, question=__doc__.splitlines()[0]
    )
    notes = load_notes(run_dir, networks)
    if _RESUME.value and (warning := other_versions(run_dir, task.fingerprint)):
        running.say(warning)

    position = [*notes.values()][-1]["position"] if notes else 0
    done = sum(note["step"] for note in notes.values())
    bar = tqdm.tqdm(total=len(networks) * _STEPS.value, initial=done, unit="step", disable=None)
    results = {name: note["finished"] for name, note in notes.items() if "finished" in note}
    with open_session(run_dir, position, bar) as session:
        for name, make_model in networks.items():
            if name not in results:
                bar.set_description(name)
                try:
                    results[name] = train(name, make_model, task, run_dir, session)
                except Interrupted as stop:
                    bar.close()
                    command = resume_command("experiments.grid_lstm", run_dir, _OUT.value)
                    print(f"Interrupted at {name!r}. To go on:\n  {command}", file=sys.stderr)
                    sys.exit(128 + stop.signal)
    rows = save(run_dir, task, results)
    print_table(task, rows)
    print(f"\nThe run directory is {run_dir}. Look at:")
    *figures, report = write_report(run_dir)
    tables = (run_dir / name for name in ("summary.csv", "grid_profile.csv", "metrics.csv"))
    for path in (report, *figures, *tables, *sorted((run_dir / "samples").glob(f"*-{_STEPS.value:06d}.txt"))):
        print(f"  {path}")
    try:
        if lost := describe_diverged({name: result["finite"] for name, result in results.items()}, _SEED.value):
            print(lost, file=sys.stderr)
    except NotFinite as error:
        sys.exit(str(error))


def make_task() -> tasks.Task:
    """Makes the task, laid out as in the paper.

    Raises:
      ValueError: if there is no such task, or its sequences differ in length.
    """
    task = tasks.make_task(_TASK.value, **task_options())
    if task.train.lengths is not None or task.kind is tasks.Kind.STREAM:
        raise ValueError(
            f"--task={_TASK.value} has no sequences of one length; allowed: a task that has."
            " `python -m experiments.train --cell=grid_lstm` takes this one."
        )
    if _TASK.value == "digits" and task.seq_len != 8:
        raise ValueError(f"--task=digits has {task.seq_len} rows; allowed: the 8 of the image, without blanks.")
    return as_in_paper(task)


def task_options() -> dict[str, Any]:
    options = {name: flag.value for name, flag in _TASK_OPTIONS.items()}
    if _TASK.value == "digits":
        options["rows"] = True
    if _TASK.value == "addition" and options["digits"] is None and options["seq_len"] is None:
        options["digits"] = _DIGITS
    return options


def networks_of(task: tasks.Task) -> dict[str, MakeModel]:
    """Returns the Grid LSTM and the network beside it, by name.

    Raises:
      ValueError: if they cannot be built, or the Grid LSTM does not fit in memory.
    """
    settings = GridSettings.of_flags({name: flags.FLAGS[name].value for name in _SETTINGS})
    grid = make_grid(task, settings)
    check_memory(4 * size_of(grid), device_memory(), hidden=_HIDDEN.value, depth=_DEPTH.value)
    model: Any = jax.eval_shape(lambda: grid(nnx.Rngs(0)))
    jax.eval_shape(task.loss, model, probe_batch(task, 2))
    return make_networks(task, settings)


def train_config() -> TrainConfig:
    return TrainConfig(
        steps=_STEPS.value,
        batch_size=_BATCH.value,
        eval_at=evenly(_SCORES_KEPT, _STEPS.value),
        look_at=frozenset(),
        keep_best=False,
        on_nonfinite="take",  # a member may diverge, and the others go on
    )


def train(
    name: str, make_model: MakeModel, task: tasks.Task, run_dir: pathlib.Path, session: Session
) -> dict[str, Any]:
    """Trains an ensemble of seeds, profiles it before and after, and returns what the note of its checkpoint tells.

    Raises:
      Interrupted: SIGINT or SIGTERM came; its checkpoint has been written.
    """
    seeds = list(range(_SEED.value, _SEED.value + _SEEDS.value))
    models = make_ensemble(make_model, seeds)
    optimizer = make_ensemble_optimizer(_LEARNING_RATE.value, _CLIP.value or None)
    judged = task if task.validation is not None else dataclasses.replace(task, validation=task.test)
    profile = over_members(functools.partial(profile_of, task))
    before = profile(models)
    result = train_ensemble(
        judged, models, jax.jit(jax.vmap(optimizer.init))(models), optimizer, run_dir, train_config(), session,
        labels=[name], seeds=seeds, checkpoint=name, sample=sampler(judged),
    )  # fmt: skip
    stages = {"initialization": before, "trained": profile(result.model)}
    told = {
        "finite": finite_members(result.model).tolist(),
        "scores": result.test_score.tolist(),
        "parameters": parameter_count(result.model) // len(seeds),
        "seconds": round(result.seconds, 1),
        "profiles": jax.tree.map(lambda array: np.asarray(array).tolist(), stages),
    }
    note = {"finished": told, "step": _STEPS.value, "position": session.writer.position}
    checkpoints.save_checkpoint(run_dir, name, result.model, note, checkpoints.COPIED)
    return told


def profile_of(task: tasks.Task, model: Any) -> dict[str, jax.Array]:
    """Returns the gradient profile of one model along each dimension that it has, `[places]` each.

    Along time it is that of the carries of all layers together.
    """
    batch = probe_batch(task, _PROFILED)
    grid = flow.grid_profile(task.loss, model, batch)
    along = {dimension: grid.along(dimension) for dimension in grid.log10_norm}
    if layer_names(model):
        carries = flow.gradient_profile(task.loss, model, batch).by_layer_and_part()
        whole = jnp.stack([norm for (_, part), norm in carries.items() if not part])
        name = "rows" if _TASK.value == "digits" else "time"
        along = {name: jax.nn.logsumexp(whole * (2.0 * np.log(10.0)), axis=0) / (2.0 * np.log(10.0)), **along}
    return along


def save(run_dir: pathlib.Path, task: tasks.Task, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes summary.csv, a row for each network and seed, and grid_profile.csv; returns the rows of the former."""
    rows = [
        {
            "network": name,
            "seed": _SEED.value + k,
            "test_score": score,
            "baseline_score": task.baseline_score,
            "parameters": result["parameters"],
            "steps": _STEPS.value,
            "seconds": result["seconds"],
        }
        for name, result in results.items()
        for k, score in enumerate(result["scores"])
    ]
    run_directory.save_table(run_dir, rows)
    columns = ["network", "stage", "seed", "dimension", "place", "lag", "log10_norm"]
    profiles = [
        dict(zip(columns, [name, stage, _SEED.value + k, dimension, place + 1, len(norms_P) - 1 - place, norm]))
        for name, result in results.items()
        for stage, along in result["profiles"].items()
        for dimension, norms_SP in along.items()
        for k, norms_P in enumerate(norms_SP)
        for place, norm in enumerate(norms_P)
    ]
    run_directory.save_table(run_dir, profiles, "grid_profile.csv")
    return rows


def print_table(task: tasks.Task, rows: list[dict[str, Any]]) -> None:
    print(f"\n{task.name}: {task.description}")
    print(f"{'network':14}{'parameters':>12}{'seconds':>10}{'test ' + task.metric:>18}   (median [smallest, largest])")
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        scores = [row["test_score"] for row in mine]
        spread = f"{np.median(scores):.4f} [{min(scores):.4f}, {max(scores):.4f}]"
        print(f"{name:14}{mine[0]['parameters']:>12,}{mine[0]['seconds']:>10.1f}   {spread}")
    sign = "above" if task.higher_is_better else "below"
    print(f"The input-independent baseline has {task.metric} {task.baseline_score:.3f}; {sign} that, it has learned.")


if __name__ == "__main__":
    running.run(main)
