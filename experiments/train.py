r"""What does a network learn, and how did its gradients flow while it learned?

Trains any cell on any task, evaluates it, and shows the gradient flow before, during and after training.

    python -m experiments.train --task=digits --cell=lstm --steps=500              (20 s on 2 CPU cores)
    python -m experiments.train --task=adding --seq_len=200 --cell='gru(update_bias=1)' --steps=3000 --schedule=cosine
    python -m experiments.train --task=dates --cell=gru --bidirectional --steps=400 --batch=128 --learning_rate=5e-3
    python -m experiments.train --task=csv:my/texts.csv --text_column=text --label_column=topic --pool=mean
    python -m experiments.train --task=adding --cell=gru --steps=3000 --instruments=lyapunov,memory \
        --instruments_every=500                                             (before, on the way, and after training)
    python -m experiments.train ... --out=runs/mine --resume       (the same flags again: goes on where it stopped)

It writes a run directory (config.json, metrics.csv, timing.csv, TensorBoard events, gradient_flow.npz and .csv,
summary.csv, checkpoints/last and best, figures/, report.html) and prints where. A run that was killed at any moment and
resumed ends with the same metrics.csv and the same weights as one left alone. Files that were damaged meanwhile are
said, and come back from the checkpoints. A cell of your own that was edited meanwhile is refused; --resume=force goes
on with it.
"""

import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax
from absl import flags, logging
from flax import nnx

from experiments import running
from experiments.instruments import INSTRUMENTS, measure_trained, parse_instruments
from experiments.option_flags import define_option_flags
from experiments.resume_flag import define_resume_flag
from rnn_jax import batch_mesh, flow, tasks
from rnn_jax.constant import parameter_count
from rnn_jax.models.encoder_decoder import ATTENTION
from rnn_jax.report.profiles import lag_text
from rnn_jax.report.read import load_metrics, load_profiles, load_table
from rnn_jax.report.run_report import write_report
from rnn_jax.tasks.bucketing import padding_share
from rnn_jax.tasks.embeddings import load_embeddings
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.training import checkpoints, run_directory
from rnn_jax.training.build import ModelSettings, make_model
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.config import TrainConfig, batches_of, every, kept_at, widths_of
from rnn_jax.training.estimate import check_update
from rnn_jax.training.load import save_interface
from rnn_jax.training.loop import TrainResult, train
from rnn_jax.training.nonfinite import NotFinite
from rnn_jax.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer
from rnn_jax.training.resume import open_run, other_versions, resume_command
from rnn_jax.training.samples import sampler
from rnn_jax.training.session import Interrupted

_known = [*sorted(tasks.TASKS), *(f"{prefix}:..." for prefix in sorted(tasks.PREFIXES))]

_TASK = flags.DEFINE_string("task", "digits", f"What to learn: {', '.join(_known)}.")
_CELL = flags.DEFINE_string("cell", "lstm", "A name of the catalogue or path.to.module:Class: lstm(chrono=128).")
_HIDDEN = flags.DEFINE_integer("hidden", 64, "Hidden features of each layer and direction.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 1, "Recurrent layers, one above the other.", lower_bound=1, upper_bound=100)
_BIDIRECTIONAL = flags.DEFINE_bool("bidirectional", False, "Run every layer in both directions.")
_DROPOUT = flags.DEFINE_float("dropout", 0.0, "Rate of dropout between layers and before the head.", lower_bound=0.0)
_EMB_SIZE = flags.DEFINE_integer("emb_size", 64, "Features of the embedding of tokens.", lower_bound=1)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "Text file of GloVe or word2vec to start the embedding from.")
_FREEZE = flags.DEFINE_bool("freeze_embeddings", False, "Leave the embeddings as the file has them.")
_TIE = flags.DEFINE_bool("tie_embeddings", False, "Language model: the embedding is the matrix of the head, too.")
_WEIGHT_DROPOUT = flags.DEFINE_float(
    "weight_dropout", 0.0, "Language model: rate of dropout of the recurrent weights (AWD-LSTM).", lower_bound=0.0
)
_HARD = flags.DEFINE_bool("hard_attention", False, "Captions: look at one drawn place a word, trained by REINFORCE.")
_DOUBLY = flags.DEFINE_float(
    "doubly_stochastic", 1.0, "Captions: weight of the penalty for places looked at too little.", lower_bound=0.0
)
_ATTENTION = flags.DEFINE_enum(
    "attention", None, list(ATTENTION), "Translation: how the decoder sees the source; additive by default."
)
_SAMPLING = flags.DEFINE_float(
    "scheduled_sampling", 0.0, "Translation: rate at which the decoder is fed its own tokens.", lower_bound=0.0
)
_POOL = flags.DEFINE_enum("pool", None, ["last", "mean", "max", "attention"], "Over true steps; last by default.")
_RECURRENT = flags.DEFINE_bool("recurrent", True, "--norecurrent pools the embeddings themselves: a bag of them.")

_STEPS = flags.DEFINE_integer("steps", None, "Batches to train on; 1000 by default.", lower_bound=1)
_EPOCHS = flags.DEFINE_float("epochs", None, "The same in passes over the training split.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch.", lower_bound=1)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adamw", sorted(OPTIMIZERS), "The optimizer.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "The largest of the schedule.")
_SCHEDULE = flags.DEFINE_enum("schedule", "constant", list(SCHEDULES), "Of the learning rate.")
_WARMUP_STEPS = flags.DEFINE_integer("warmup_steps", 0, "Updates over which the learning rate rises.", lower_bound=0)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.0, "Of matrices, embeddings aside.", lower_bound=0.0)
_CLIP = flags.DEFINE_float("clip", 1.0, "Clip gradients to this global norm; 0 does not clip.", lower_bound=0.0)
_ACCUMULATE = flags.DEFINE_integer("accumulate", 1, "Batches whose mean gradient makes an update.", lower_bound=1)
_CROP = flags.DEFINE_float("crop", 1.0, "Train on pieces of half of the texts, of at least this share of them.")
_TOKEN_DROPOUT = flags.DEFINE_float("token_dropout", 0.0, "Rate at which tokens of training texts become unknown.")
_DEVICES = flags.DEFINE_integer(
    "devices",
    1,
    "Devices to spread each batch over; on a CPU they are made of its cores.",
    lower_bound=1,
    upper_bound=1024,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of parameters, dropout and the order of the data.", lower_bound=0)

_EVAL_EVERY = flags.DEFINE_integer(
    "eval_every", None, "Steps between evaluations and checkpoints; a tenth of all by default.", lower_bound=1
)
_PATIENCE = flags.DEFINE_integer("patience", None, "Stop after so many evaluations without a better score.")
_PROFILE_EVERY = flags.DEFINE_integer(
    "profile_every",
    None,
    "Steps between gradient profiles; a 20th of all, at least 25, by default. 0: none.",
    lower_bound=0,
)
_INSTRUMENTS = flags.DEFINE_list(
    "instruments", None, f"What to measure of the network before and after training: {', '.join(INSTRUMENTS)}."
)
_INSTRUMENTS_EVERY = flags.DEFINE_integer(
    "instruments_every",
    None,
    "Steps after which instruments also measure, on the way through training; weights are kept for it.",
    lower_bound=1,
)
_ON_NONFINITE = flags.DEFINE_enum(
    "on_nonfinite", "stop", ["stop", "skip"], "What to do with an update that is not finite."
)
_OUT = flags.DEFINE_string("out", None, "Folder for the results; runs/train-<time> by default.")
_RESUME = define_resume_flag()

_TASK_OPTIONS = define_option_flags()

# The columns of summary.csv that hold numbers, or nothing where there is none.
_NUMBERS = (
    "test_score", "validation_score", "baseline_score", "best_step", "steps", "skipped", "parameters", "seconds",
    "horizon_e", "horizon_1000",
)  # fmt: skip


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX and TFDS tell much on the level below
    enable_compilation_cache()
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    task = tasks.make_task(_TASK.value, **{name: flag.value for name, flag in _TASK_OPTIONS.items()})
    config = make_plan(task)
    optimizer = make_optimizer(
        _OPTIMIZER.value,
        _LEARNING_RATE.value,
        schedule=_SCHEDULE.value,
        steps=config.steps,
        warmup_steps=_WARMUP_STEPS.value,
        weight_decay=_WEIGHT_DECAY.value,
        clip=_CLIP.value or None,
        accumulate=_ACCUMULATE.value,
    )
    embedding = None if _EMBEDDINGS.value is None else read_embeddings(task)
    check(task, optimizer, config, embedding)
    run_dir = open_run(
        "train", _OUT.value, given_flags(), task.fingerprint, resume=_RESUME.value, question=__doc__.splitlines()[0]
    )
    save_interface(run_dir, task)
    finished = is_finished(run_dir)

    if finished:
        print("This run is finished.")
        measure(run_dir)
        show(run_dir, task)
        return
    if warning := other_versions(run_dir, task.fingerprint):
        running.say(warning)
    widths = widths_of(task, config)
    if widths is not None:
        assert task.train.lengths is not None
        bucketed, longest = (padding_share(task.train.lengths, config.batch_size, w) for w in (widths, widths[-1:]))
        print(
            f"Batches come in {len(widths)} widths, with {bucketed:.0%} of padding; padded to the longest it would be"
            f" {longest:.0%}, and {(1 - bucketed) / (1 - longest):.1f} times the steps to compute."
        )
    model = jax.jit(lambda embedding: make_model(task.interface, settings(), nnx.Rngs(_SEED.value), embedding))(
        embedding
    )
    try:
        result = train(task, model, optimizer, run_dir, config, name=network_name(), sample=sampler(task))
    except Interrupted as stop:
        command = resume_command("experiments.train", run_dir, _OUT.value)
        print(f"Stopped at step {stop.step} of {config.steps}. To go on:\n  {command}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except NotFinite as error:
        sys.exit(str(error))
    save(run_dir, task, result)
    measure(run_dir)
    show(run_dir, task)


def make_plan(task: tasks.Task) -> TrainConfig:
    """Works out what the flags leave open.

    Raises:
      ValueError: if flags contradict each other or are out of range.
    """
    if _FREEZE.value and _EMBEDDINGS.value is None:
        raise ValueError("--freeze_embeddings=True freezes nothing; allowed: with --embeddings=FILE.")
    if _INSTRUMENTS.value is not None:
        parse_instruments(_INSTRUMENTS.value)
        if not _RECURRENT.value:
            raise ValueError(
                f"--instruments={','.join(_INSTRUMENTS.value)} has no recurrent layer to measure with --norecurrent;"
                " allowed: without it."
            )
    if _STEPS.value is not None and _EPOCHS.value is not None:
        raise ValueError(f"--steps={_STEPS.value} and --epochs={_EPOCHS.value} say the same; allowed: one of them.")
    if _EPOCHS.value is not None:
        if not 0 < _EPOCHS.value < math.inf:
            raise ValueError(f"--epochs={_EPOCHS.value} is out of range; allowed: a finite number above 0.")
        steps = math.ceil(_EPOCHS.value * len(task.train) / _BATCH.value)
    else:
        steps = 1000 if _STEPS.value is None else _STEPS.value
    profile_every = _PROFILE_EVERY.value
    if profile_every is None:  # on a step that updates, of those that accumulate
        profile_every = math.ceil(max(25, steps / 20) / _ACCUMULATE.value) * _ACCUMULATE.value
    looks = profile_every > 0 and _RECURRENT.value
    return TrainConfig(
        steps=steps,
        batch_size=_BATCH.value,
        eval_at=every(_EVAL_EVERY.value or math.ceil(steps / 10), steps, "eval_every"),
        look_at=frozenset({0}) | every(profile_every, steps, "profile_every") if looks else frozenset(),
        seed=_SEED.value,
        patience=_PATIENCE.value,
        on_nonfinite=_ON_NONFINITE.value,
        devices=_DEVICES.value,
        keep_at=kept_at(_INSTRUMENTS_EVERY.value, steps),
        crop=_CROP.value,
        token_dropout=_TOKEN_DROPOUT.value,
    )


def read_embeddings(task: tasks.Task) -> np.ndarray:
    """Reads the file of --embeddings and says how much of the vocabulary it has.

    Raises:
      ValueError: if the task reads no text, or the file cannot be used.
    """
    if task.vocabulary is None:
        raise ValueError(
            f"--embeddings={_EMBEDDINGS.value} is for words, which the task {task.name!r} does not read; allowed: none."
        )
    if isinstance(task.vocabulary, SubwordVocabulary):
        raise ValueError(
            f"--embeddings={_EMBEDDINGS.value} is for words, and {task.name!r} reads subwords; allowed: none."
        )
    embedding, found = load_embeddings(str(_EMBEDDINGS.value), task.vocabulary)
    if flags.FLAGS["emb_size"].present and _EMB_SIZE.value != embedding.shape[1]:
        raise ValueError(
            f"--emb_size={_EMB_SIZE.value} differs from --embeddings={_EMBEDDINGS.value}, which has"
            f" {embedding.shape[1]} features; allowed: without --emb_size."
        )
    print(f"{_EMBEDDINGS.value} has {found:.1%} of the vocabulary, with {embedding.shape[1]} features.")
    return embedding


def network_name() -> str:
    return _CELL.value if _RECURRENT.value else "bag of embeddings"


def settings() -> ModelSettings:
    return ModelSettings.of_flags(given_flags())


def check(
    task: tasks.Task, optimizer: optax.GradientTransformation, config: TrainConfig, embedding: np.ndarray | None
) -> None:
    """Refuses what cannot work, before a folder is made.

    Raises:
      ValueError: if the network, the batch size or the task's loss cannot be as asked, or would not fit in memory.
    """
    if config.patience is not None and task.validation is None:
        raise ValueError(
            f"--patience={config.patience} needs a validation split, which the task {task.name!r} has not;"
            " allowed: none."
        )
    batches_of(task, config)
    batch_mesh(config.devices)
    sizes: dict[str, Any] = {"hidden": _HIDDEN.value, "layers": _LAYERS.value, "batch": _BATCH.value}
    sizes |= {"emb_size": _EMB_SIZE.value} if task.reads_tokens else {}
    check_update(
        task,
        lambda rngs: make_model(task.interface, settings(), rngs, embedding),
        optimizer,
        config,
        **sizes,
        seq_len=task.seq_len,
    )


def given_flags() -> dict[str, Any]:
    """Returns all flags that decide about a run, the options of tasks among them."""
    return running.given_flags(__name__) | {name: flag.value for name, flag in _TASK_OPTIONS.items()}


def is_finished(run_dir: pathlib.Path) -> bool:
    """Whether summary.csv and what belongs to it are there and whole.

    If one is damaged, that is said on stderr, and the end of the run is made again from its last checkpoint.

    Raises:
      ValueError: a file is damaged, and there is no checkpoint to make it from.
    """
    if not (run_dir / "summary.csv").exists():
        return False
    try:
        damaged = checkpoints.restore_files(run_dir, "last") if checkpoints.has_checkpoint(run_dir, "last") else []
        scores = [name for name in load_metrics(run_dir) if name.startswith("test/")]
        rows = load_table(run_dir)
        for row in rows:
            if row.get("cell") != network_name() or not row.keys() >= {*_NUMBERS, "layer", "part", "stage"}:
                raise ValueError(f"{str(run_dir / 'summary.csv')!r} is damaged (it is not of this network).")
            for name in _NUMBERS:
                float(row[name] or "nan")
        if rows[0]["layer"]:
            load_profiles(run_dir)
            if not (run_dir / "gradient_flow.csv").exists():
                raise ValueError(f"{str(run_dir / 'gradient_flow.csv')!r} is missing.")
    except run_directory.Damaged:
        raise
    except ValueError as error:
        if not checkpoints.has_checkpoint(run_dir, "last"):
            raise
        print(f"{error} The end of the run is made again.", file=sys.stderr)
        return False
    return bool(scores) and not damaged


def save(run_dir: pathlib.Path, task: tasks.Task, result: TrainResult) -> None:
    """Writes summary.csv, a row for each layer, part of its carry and stage; it is there once a run is finished.

    A horizon of -1 is that of a profile that is not finite.
    """
    common = {
        "test_score": result.test_score,
        "validation_score": result.validation_score,
        "baseline_score": task.baseline_score,
        "best_step": result.step,
        "steps": result.steps,
        "skipped": result.skipped,
        "parameters": parameter_count(result.model),
        "seconds": round(result.seconds, 1),
    }
    rows = []
    for (layer, part), profile_LST in result.profiles.items():
        for stage, profile_T in (("initialization", profile_LST[0, 0]), ("trained", profile_LST[-1, 0])):
            lags = flow.horizon(profile_T)
            levels = {"horizon_e": int(lags.lag_e), "horizon_1000": int(lags.lag_1000)}
            rows.append({"layer": layer, "part": part, "stage": stage, **levels})
    rows = rows or [{"layer": "", "part": "", "stage": "", "horizon_e": "", "horizon_1000": ""}]
    run_directory.save_table(run_dir, [{"cell": network_name(), "seed": _SEED.value, **row, **common} for row in rows])


def measure(run_dir: pathlib.Path) -> None:
    """Runs the instruments asked for over the networks that the run holds."""
    if _INSTRUMENTS.value is not None:
        measure_trained(run_dir, parse_instruments(_INSTRUMENTS.value))


def show(run_dir: pathlib.Path, task: tasks.Task) -> None:
    """Prints what summary.csv holds, draws the figures, and names the files."""
    rows = load_table(run_dir)
    result = rows[0]
    print(f"\n{task.name}, {result['cell']}: {task.description}")
    table = {
        f"test {task.metric}": number(result["test_score"]),
        f"validation {task.metric}": number(result["validation_score"])
        if result["validation_score"]
        else "none: the task has no such split, and the test score is that of the last step",
        f"{task.metric} of ignoring the input": number(result["baseline_score"]),
        **{f"{task.metric} of {name}": number(str(score)) for name, score in (task.references or dict)().items()},
        "parameters": f"{int(result['parameters']):,}",
        "steps": result["steps"] + (f" (best: {result['best_step']})" if result["validation_score"] else ""),
        "seconds": result["seconds"],
    }
    if int(result["skipped"]):
        table["updates skipped, not finite"] = result["skipped"]
    for row in rows:
        if row["layer"] and not row["part"]:
            time_steps = load_profiles(run_dir).whole_carries(row["cell"])[row["layer"]].shape[-1]
            lags = [lag_text(int(row[column]), time_steps) for column in ("horizon_e", "horizon_1000")]
            levels = (f"{level} {'at lag ' * lag.isdigit()}{lag}" for level, lag in zip(("1/e", "1/1000"), lags))
            text = "not finite" if "not finite" in lags else ", ".join(levels)
            table[f"horizon of {row['layer']}, {row['stage']}"] = text
    width = max(map(len, table)) + 2
    for name, text in table.items():
        print(f"  {name:{width}}{text}")
    files = ["summary.csv", "metrics.csv", "timing.csv", "checkpoints/last", "checkpoints/best", "gradient_flow.csv"]
    files += [f"samples/{path.name}" for path in sorted((run_dir / "samples").glob("*"))[-1:]]
    *figures, report = write_report(run_dir)
    print(f"\nThe run directory is {run_dir}. Diagnostics at:")
    for path in (report, *figures, *(run_dir / name for name in files if (run_dir / name).exists())):
        print(f"  {path}")


def number(text: str) -> str:
    return f"{float(text):.4g}"


if __name__ == "__main__":
    running.run(main)
