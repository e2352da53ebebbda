r"""Which cells keep the gradient alive?

Trains each cell on one task, an ensemble of seeds in one program, and shows how large the gradient of the loss with
respect to the carry is at every step: before training, on the way, and after it. How well each cell had learned the
task by then is shown beside it.

    python -m experiments.gradient_flow                                   (1 to 2 min on 2 CPU cores)
    python -m experiments.gradient_flow --cells='elman,irnn,lstm(forget_bias=0),my.module:MyCell' --blanks=0
    python -m experiments.gradient_flow --cells=lstm,gru --learning_rate=1e-2,3e-3,1e-3
    python -m experiments.gradient_flow --task=adding --seq_len=200 --steps=2000 --hidden=128
    python -m experiments.gradient_flow --task=temporal_order --cells=elman,lstm --steps=1000
    python -m experiments.gradient_flow --task=surnames           (texts: the lag counts from the end of each)
    python -m experiments.gradient_flow --cells=elman,lstm --instruments=jacobian,lyapunov,truncation,memory
    python -m experiments.gradient_flow --cells=elman,lstm --instruments=lyapunov,gates --instruments_every=100
    python -m experiments.gradient_flow ... --out=runs/mine --resume       (the same flags again: goes on)

It writes a run directory (config.json, metrics.csv, TensorBoard events, gradient_flow.npz and .csv, summary.csv, a
checkpoint for each cell, figures/, report.html) and prints where. A cell in training is saved at every tenth of its
steps. A run that was killed at any moment and resumed ends with the same metrics.csv, profiles and weights as one left
alone. With --instruments_every its weights are kept on the way, for the instruments and for experiments.measure.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags, logging
from flax import nnx

from experiments import running
from experiments.instruments import INSTRUMENTS, measure_trained, parse_instruments
from experiments.resume_flag import define_resume_flag
from rnn_jax import flow, tasks
from rnn_jax.constant import parameter_count
from rnn_jax.models import SequenceClassifier
from rnn_jax.registry import split_names
from rnn_jax.report.profiles import lag_text
from rnn_jax.report.run_report import write_report
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.config import TrainConfig, check_members, evenly, kept_at
from rnn_jax.training.ensemble import use_cores
from rnn_jax.training.estimate import check_update
from rnn_jax.training.loop import train_ensemble
from rnn_jax.training.nonfinite import NotFinite, describe_diverged, finite_members
from rnn_jax.training.optimizers import make_ensemble_optimizer
from rnn_jax.training.resume import load_notes, open_run, other_versions, resume_command
from rnn_jax.training.session import Interrupted, Session, open_session
from rnn_jax.training.step import make_ensemble

_CELLS = flags.DEFINE_string(
    "cells",
    "elman,gru,gru(update_bias=1),lstm",
    "Comma-separated: names of the catalogue or path.to.module:Class, with arguments if wanted: lstm(chrono=128).",
)
_TASK = flags.DEFINE_string("task", "digits", f"What to learn: {', '.join(sorted(tasks.TASKS))}.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Time steps in a sequence; the task's own by default.", lower_bound=1)
_BLANKS = flags.DEFINE_integer(
    "blanks", None, "digits: empty steps behind the 64 pixels (64 by default).", lower_bound=0
)
_EMB_SIZE = flags.DEFINE_integer("emb_size", 64, "Features of the embedding, if the task reads tokens.", lower_bound=1)
_HIDDEN = flags.DEFINE_integer("hidden", 64, "Hidden features of each layer and direction.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 1, "Recurrent layers, one above the other.", lower_bound=1, upper_bound=100)
_BIDIRECTIONAL = flags.DEFINE_bool("bidirectional", False, "Run every layer in both directions.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 300, "Training steps.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_list("learning_rate", ["2e-3"], "Of Adam; several are trained side by side.")
_CLIP = flags.DEFINE_float("clip", 1.0, "Clip gradients to this global norm; 0 does not clip.", lower_bound=0.0)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Members of the ensemble: seed, seed + 1, ...", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The first seed, of parameters and of the order of the data.", lower_bound=0)
_INSTRUMENTS = flags.DEFINE_list(
    "instruments", ["profile"], f"Beside the profile, before and after training: {', '.join(INSTRUMENTS)}."
)
_INSTRUMENTS_EVERY = flags.DEFINE_integer(
    "instruments_every",
    None,
    "Steps after which instruments also measure, on the way through training; weights are kept for it.",
    lower_bound=1,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/gradient_flow-<time> by default.")
_RESUME = define_resume_flag()

_PROFILES_KEPT = 20  # on the way through training, for the heat map
_SCORES_KEPT = 10  # on the way through training, for the learning curve
_LONGEST_NAME = 200  # bytes; a file's name may have 255, and some are kept for what is written beside it
_HELD_OUT = 512  # examples that these scores are of, at most


@dataclasses.dataclass(frozen=True)
class Result:
    """What one cell at one learning rate showed, over seeds.

    Attributes:
      profiles: by (layer, part of its carry), `[logged steps, seeds, time]`.
      scores: on the test split, `[seeds]`.
      baseline_score: of the input-independent baseline.
      parameters: of one member.
      seconds: that the training took, with all that was trained beside it in the same program.
      finite: whether the weights are, at the end, `[seeds]`.
    """

    profiles: dict[tuple[str, str], np.ndarray]
    scores: np.ndarray
    baseline_score: float
    parameters: int
    seconds: float
    finite: np.ndarray


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX and TFDS tell much on the level below
    enable_compilation_cache()
    cells = split_names(_CELLS.value)
    instruments = [name for name in parse_instruments(_INSTRUMENTS.value) if name != "profile"]
    learning_rates = parse_learning_rates(_LEARNING_RATE.value)
    use_cores(_SEEDS.value * len(learning_rates))
    blanks = _BLANKS.value
    if _TASK.value == "digits" and blanks is None and _SEQ_LEN.value is None:
        blanks = 64
    task = tasks.make_task(_TASK.value, seq_len=_SEQ_LEN.value, blanks=blanks)
    check_kind(task)
    tasks.batches(task.train, _BATCH.value, _SEED.value)
    check_members(_SEED.value, _SEEDS.value)
    for cell in cells:
        check_name(cell)
        check_update(
            task,
            functools.partial(make_model, cell, task),
            make_ensemble_optimizer(learning_rates[0], _CLIP.value or None),
            train_config(task),
            members=_SEEDS.value * len(learning_rates),
            cell=cell,
            hidden=_HIDDEN.value,
            layers=_LAYERS.value,
            batch=_BATCH.value,
            seeds=_SEEDS.value,
            seq_len=task.seq_len,
        )
    given = running.given_flags(__name__)
    given["blanks"] = blanks
    run_dir = open_run(
        "gradient_flow", _OUT.value, given, task.fingerprint, resume=_RESUME.value, question=__doc__.splitlines()[0]
    )
    notes = load_notes(run_dir, cells)
    results: dict[str, Result] = {}
    for cell, note in notes.items():
        if "finished" in note:
            results |= finished(cell, task, learning_rates, run_dir, note["finished"])

    if results:
        save(run_dir, results)
    if len(results) < len(cells) * len(learning_rates) and (warning := other_versions(run_dir, task.fingerprint)):
        running.say(warning)
    position = [*notes.values()][-1]["position"] if notes else 0
    look_at_end = train_config(task).look == "update"  # at what the last update left, by one more
    done = sum(note["step"] + (look_at_end and "finished" in note) for note in notes.values())
    bar = tqdm.tqdm(total=len(cells) * (_STEPS.value + look_at_end), initial=done, unit="step", disable=None)
    judged = dataclasses.replace(task, validation=held_out(task))
    with open_session(run_dir, position, bar) as session:
        for cell in cells:
            if "finished" in notes.get(cell, {}):
                continue
            bar.set_description(cell)
            try:
                if session.signals:  # that came while the cell before ended
                    raise Interrupted(session.signals[0], 0)
                results |= train(cell, judged, learning_rates, run_dir, session)
            except (Interrupted, KeyboardInterrupt) as stop:  # the latter at a second Ctrl-C, without a checkpoint
                bar.close()
                command = resume_command("experiments.gradient_flow", run_dir, _OUT.value)
                print(
                    f"Interrupted at {cell!r}; what the cells before it showed is in {run_dir}. To go on:\n  {command}",
                    file=sys.stderr,
                )
                sys.exit(128 + stop.signal if isinstance(stop, Interrupted) else 130)
            save(run_dir, results)
    print_table(task, results)
    if instruments:
        measure_trained(run_dir, instruments)
    print(f"\nThe run directory is {run_dir}. Look at:")
    *figures, report = write_report(run_dir)
    for path in (
        report,
        *figures,
        run_dir / "summary.csv",
        run_dir / "gradient_flow.csv",
        run_dir / "metrics.csv",
    ):
        print(f"  {path}")
    try:
        if lost := describe_diverged({label: result.finite.tolist() for label, result in results.items()}, _SEED.value):
            print(lost, file=sys.stderr)
    except NotFinite as error:
        sys.exit(str(error))


def check_kind(task: tasks.Task) -> None:
    """Raises ValueError if a task asks for more than a classifier can answer."""
    if task.kind not in (tasks.Kind.ONE_ANSWER, tasks.Kind.ANSWER_A_STEP):
        raise ValueError(
            f"--task={_TASK.value} asks for {task.kind.value}; allowed: {tasks.Kind.ONE_ANSWER.value}, or"
            f" {tasks.Kind.ANSWER_A_STEP.value}. `python -m experiments.train` takes this one."
        )


def check_name(cell: str) -> None:
    """Raises ValueError if the checkpoint of a cell cannot have its name."""
    if len(cell.encode()) > _LONGEST_NAME:
        raise ValueError(f"--cells has {cell!r}, of {len(cell)} characters; allowed: {_LONGEST_NAME}.")


def train_config(task: tasks.Task) -> TrainConfig:
    """What a run does when. Profiles are of its updates, or, where sequences differ in length, of the same few."""
    return TrainConfig(
        steps=_STEPS.value,
        batch_size=_BATCH.value,
        eval_at=evenly(_SCORES_KEPT, _STEPS.value),
        look_at=evenly(_PROFILES_KEPT, _STEPS.value),
        look="update" if task.train.lengths is None else "probe",
        keep_at=kept_at(_INSTRUMENTS_EVERY.value, _STEPS.value),
        keep_best=False,
        on_nonfinite="take",  # a member may diverge, and the others go on
    )


def make_model(cell: str, task: tasks.Task, rngs: nnx.Rngs) -> SequenceClassifier:
    return SequenceClassifier(
        cell,
        task.in_features,
        _HIDDEN.value,
        task.out_features,
        emb_size=_EMB_SIZE.value if task.reads_tokens else None,
        per_step=task.kind is tasks.Kind.ANSWER_A_STEP,
        layers=_LAYERS.value,
        bidirectional=_BIDIRECTIONAL.value,
        rngs=rngs,
    )


def held_out(task: tasks.Task) -> tasks.Source:
    """Examples for the learning curve, by which nothing is chosen: of the validation split, else of the test split."""
    source = task.test if task.validation is None else task.validation
    examples = [source[index] for index in range(min(_HELD_OUT, len(source)))]
    if source.lengths is None:
        return tasks.ArraySource(**tasks.collate(examples, ragged=False))
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return tasks.RaggedSource(
        {name: column for name, column in columns.items() if name not in ("label", "target")},
        **{name: np.array(column) for name, column in columns.items() if name in ("label", "target")},
    )


def parse_learning_rates(texts: list[str]) -> list[float]:
    """Raises ValueError unless all are different positive numbers."""
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = []
    if not rates or len(set(rates)) < len(rates) or not all(0 < rate < np.inf for rate in rates):
        raise ValueError(f"--learning_rate={','.join(texts)} is no list of rates; allowed: different numbers above 0.")
    return rates


def labels(cell: str, learning_rates: list[float]) -> list[str]:
    """Names the cell at each learning rate."""
    return [cell] if len(learning_rates) == 1 else [f"{cell} at {rate:g}" for rate in learning_rates]


def train(
    cell: str, task: tasks.Task, learning_rates: list[float], run_dir: pathlib.Path, session: Session
) -> dict[str, Result]:
    """Trains a member for each learning rate and seed, all in one program; returns a result for each learning rate.

    A seed draws the parameters and the order of the data, and is the same at every learning rate.

    Args:
      cell: its name.
      task: its validation split is what the learning curve is of.
      learning_rates: of Adam.
      run_dir: the run directory. The checkpoint named like the cell is that of its training, and then the models.
      session: open at the end of what was trained before.
    """
    start = time.perf_counter()
    seeds = list(range(_SEED.value, _SEED.value + _SEEDS.value))
    models = make_ensemble(functools.partial(make_model, cell, task), seeds * len(learning_rates))
    member_rates = np.repeat(np.asarray(learning_rates, np.float32), len(seeds))
    clip = _CLIP.value or None
    init = jax.vmap(lambda rate, model: make_ensemble_optimizer(rate, clip).init(model))
    opt_states = jax.jit(init)(member_rates, models)
    seconds = time.perf_counter() - start
    result = train_ensemble(
        task,
        models,
        opt_states,
        make_ensemble_optimizer(0.0, clip),
        run_dir,
        train_config(task),
        session,
        labels=labels(cell, learning_rates),
        seeds=seeds,
        checkpoint=cell,
    )
    # First the profiles, then what says that the cell is finished: a kill between them has it end once more.
    by_label = {}
    for k, label in enumerate(labels(cell, learning_rates)):
        mine = slice(k * len(seeds), (k + 1) * len(seeds))
        by_label[label] = {name: array_LST[:, mine] for name, array_LST in result.profiles.items()}
    run_directory.save_profiles(run_dir, result.look_steps, by_label, result.sequences)
    told = {
        "finite": finite_members(result.model).tolist(),
        "scores": result.test_score.tolist(),
        "parameters": parameter_count(result.model) // len(member_rates),
        "seconds": seconds + result.seconds,
    }
    note = {"finished": told, "step": _STEPS.value, "position": session.writer.position}
    checkpoints.save_checkpoint(run_dir, cell, result.model, note, checkpoints.COPIED)
    return finished(cell, task, learning_rates, run_dir, told)


def finished(
    cell: str, task: tasks.Task, learning_rates: list[float], run_dir: pathlib.Path, told: dict[str, Any]
) -> dict[str, Result]:
    """Returns the results of a cell whose training is finished, from the note of its checkpoint and the profiles."""
    profiles = run_directory.load_profiles(run_dir)[1]
    scores = np.array(told["scores"], np.float64).reshape(len(learning_rates), -1)
    finite = np.array(told["finite"]).reshape(scores.shape)
    return {
        label: Result(profiles[label], scores[k], task.baseline_score, told["parameters"], told["seconds"], finite[k])
        for k, label in enumerate(labels(cell, learning_rates))
    }


def save(run_dir: pathlib.Path, results: dict[str, Result]) -> None:
    """Writes the profiles of all cells so far as a table, and a summary row for each cell, layer, part, stage, seed."""
    rows = []
    for cell, result in results.items():
        for (layer, part), profiles_LST in result.profiles.items():
            for stage, profiles_ST in (("initialization", profiles_LST[0]), ("trained", profiles_LST[-1])):
                lags = jax.device_get(flow.horizon(profiles_ST))
                rows += [
                    {
                        "cell": cell,
                        "layer": layer,
                        "part": part,
                        "stage": stage,
                        "seed": _SEED.value + k,
                        "horizon_e": int(lags.lag_e[k]),
                        "horizon_1000": int(lags.lag_1000[k]),
                        "test_score": result.scores[k],
                        "baseline_score": result.baseline_score,
                        "parameters": result.parameters,
                        "seconds": round(result.seconds, 1),
                    }
                    for k in range(_SEEDS.value)
                ]
    run_directory.save_profile_table(run_dir)
    run_directory.save_table(run_dir, rows)


def print_table(task: tasks.Task, results: dict[str, Result]) -> None:
    """Prints a row for each cell and layer: medians over seeds, smallest to largest in brackets."""
    steps = task.seq_len
    if task.train.lengths is not None:  # the lags that half of the sequences of the profile reach
        steps = min(array.shape[-1] for result in results.values() for array in result.profiles.values())
    of_each = "" if task.train.lengths is None else " from the end of each sequence"
    print(f"\n{task.name}: {steps} steps{of_each}, {_SEEDS.value} seeds, {_HIDDEN.value} hidden features.", end=" ")
    print(task.description)
    print("The lag at which |dL/d carry_t| has fallen for good below 1/e and 1/1000 of its largest value,")
    print("and log10 of the share of it that is left at step 1:\n")
    rows = []
    for label, result in results.items():
        layers = {layer: array_LST for (layer, part), array_LST in result.profiles.items() if not part}
        for layer, profiles_LST in layers.items():
            row = [label if len(layers) == 1 else f"{label} {layer}"]
            for profiles_ST in (profiles_LST[0], profiles_LST[-1]):
                lags = jax.device_get(flow.horizon(profiles_ST))
                with np.errstate(invalid="ignore"):  # a profile of zeros leaves no share: NaN
                    left = profiles_ST[:, 0] - profiles_ST.max(axis=-1)
                row += [lag_text(lags.lag_e, steps), lag_text(lags.lag_1000, steps), spread(left, ".1f")]
            rows.append([*row, spread(result.scores, ".3f"), f"{result.parameters:,}", f"{result.seconds:.1f}"])
    stage = ["1/e", "1/1000", "at step 1"]
    header = ["cell", *stage, *stage, f"test {task.metric}", "parameters", "seconds"]
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows)]
    before, after = sum(widths[1:4]), sum(widths[4:7])
    print(f"{'':{widths[0]}}{'at initialization':>{before}}{f'after {_STEPS.value} updates':>{after}}")
    for row in (header, *rows):
        print(f"{row[0]:{widths[0]}}" + "".join(f"{text:>{width}}" for text, width in zip(row[1:], widths[1:])))
    sign = "above" if task.higher_is_better else "below"
    baseline = f"The input-independent baseline has {task.metric} {task.baseline_score:.3f}"
    print(f"{baseline}; {sign} that, something was learned.")


def spread(values: np.ndarray, form: str) -> str:
    return f"{np.median(values):{form}} [{np.min(values):{form}}, {np.max(values):{form}}]"


if __name__ == "__main__":
    running.run(main)
