r"""Which tasks are there, how large are they, and what does their baseline score?

Lists every task with its size, its length, what it reads and answers, its license and the score of the
input-independent baseline; or shows one of them with three examples.

    python -m experiments.tasks                                            (20 s on 2 CPU cores, 5 s from then on)
    python -m experiments.tasks --task=language_id --baseline              (TF-IDF and logistic regression, 20 s)
    python -m experiments.tasks --task=docstrings --tokens=character --max_length=200
    python -m experiments.tasks --task=csv:my/texts.csv --text_column=text --label_column=topic
"""

import inspect

import numpy as np
from absl import flags, logging

from experiments import running
from experiments.option_flags import define_option_flags
from rnn_jax import tasks
from rnn_jax.tasks.bucketing import bucket_boundaries, padding_share
from rnn_jax.tasks.task import END, NOT_ASKED
from rnn_jax.tasks.text import tfidf_baseline

_known = [*sorted(tasks.TASKS), *(f"{prefix}:..." for prefix in sorted(tasks.PREFIXES))]

_TASK = flags.DEFINE_string("task", None, f"Show this one: {', '.join(_known)}. By default, all are listed.")
_BASELINE = flags.DEFINE_bool("baseline", False, "Score simple models: TF-IDF of text, nearest neighbors of images.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences in a batch, for the share of padding.", lower_bound=1)

_OPTIONS = define_option_flags()

_SHOWN = 3  # examples
_WIDTH = 160  # characters of an example, and of a list


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # TFDS tells much on the level below
    options = {name: flag.value for name, flag in _OPTIONS.items()}
    if _TASK.value is not None:
        show_task(tasks.make_task(_TASK.value, **options), _TASK.value)
        return
    given = [name for name, value in options.items() if value is not None and name != "data_dir"]
    if given:
        raise ValueError(f"--{given[0]}={options[given[0]]} is an option of one task; allowed: together with --task.")
    list_tasks()


def list_tasks() -> None:
    """Prints a row for each task, with its own options by default, and a line for each kind of data of the user."""
    header = ["task", "train", "validation", "test", "steps", "reads", "answers", "metric", "ignoring the input"]
    header += ["TF-IDF of characters", "of words"] if _BASELINE.value else []
    rows, refused = [[*header, "license"]], []
    for name in sorted(tasks.TASKS):
        try:
            task = tasks.make_task(name, data_dir=_OPTIONS["data_dir"].value)
        except ValueError as error:
            refused.append(f"{name}: {error}")
            continue
        sizes = [f"{len(split):,}" if split else "-" for split in (task.train, task.validation, task.test)]
        score = [task.metric, f"{task.baseline_score:.3f}"]
        if _BASELINE.value:
            score += [f"{value:.3f}" for value in tfidf_baseline(task).values()] if _is_text(task) else ["-", "-"]
        rows.append([name, *sizes, _steps(task), _reads(task), _answers(task), *score, task.license or "generated"])
    widths = [max(map(len, column)) + 2 for column in zip(*rows)]
    for row in rows:
        cells = [f"{text:>{width}}" for text, width in zip(row[1:-1], widths[1:-1])]
        print(f"{row[0]:{widths[0]}}" + "".join(cells) + f"  {row[-1]}")
    print("\nSteps that differ: min / median / max.")
    for sentence in refused:
        print(sentence)
    print("\nData of the user, and of tensorflow-datasets:\n")
    for prefix, build in sorted(tasks.PREFIXES.items()):
        described = inspect.getdoc(getattr(build, "func", build)) or ""
        print(f"{prefix + ':...':{widths[0]}}{described.splitlines()[0]}")
    print("\nMore of each, with examples: python -m experiments.tasks --task=NAME")


def show_task(task: tasks.Task, name: str) -> None:
    """Prints what a task is made of, and examples of its training split."""
    print(f"{task.name}: {task.description}\n")
    sizes = [f"{len(task.train):,} for training", f"{len(task.test):,} for the test"]
    if task.validation is not None:
        sizes.insert(1, f"{len(task.validation):,} for validation")
    print(f"source       {task.source}")
    print(f"license      {task.license or 'none needed: the examples are generated'}")
    print(f"examples     {', '.join(sizes)}")
    is_stream = task.kind is tasks.Kind.STREAM
    steps = "" if task.train.lengths is None else ", min, median and max"
    print(f"steps        {_steps(task)}{' a piece of one long text' if is_stream else steps}")
    if task.train.lengths is not None:
        print(f"padding      {_padding(task.train.lengths)}")
    print(f"reads        {_reads(task)}{_symbols(task)}")
    print(f"answers      {_answers(task)}{_classes(task)}")
    better = "more" if task.higher_is_better else "less"
    print(
        f"score        {task.metric}, {better} is better; {task.baseline_score:.4f} for the input-independent baseline"
    )
    if _BASELINE.value and _is_text(task):
        for features, score in tfidf_baseline(task).items():
            print(f"             {score:.4f} by logistic regression on the TF-IDF of {features}")
    elif _BASELINE.value and task.references is not None:
        for model, score in task.references().items():
            print(f"             {score:.4f} by {model}")
    elif _BASELINE.value:
        print("             no TF-IDF baseline: that is for classification of text")
    print(f"options      {_options(name)}")
    print("fingerprint  " + "\n             ".join(f"{key} {value}" for key, value in task.fingerprint.items()))
    for number in range(min(_SHOWN, len(task.train))):
        print(f"\nExample {number} of the training split:")
        for line in _show_example(task, task.train[number]):
            print(f"  {line}")


def _is_text(task: tasks.Task) -> bool:
    return task.vocabulary is not None and task.kind is tasks.Kind.ONE_ANSWER


def _steps(task: tasks.Task) -> str:
    lengths = [
        split.lengths for split in (task.train, task.validation, task.test) if split and split.lengths is not None
    ]
    if not lengths:
        test = "" if task.test_seq_len in (None, task.seq_len) else f", {task.test_seq_len:,} in the test"
        return f"{task.seq_len:,}{test}"
    shortest, median, longest = np.quantile(np.concatenate(lengths), (0, 0.5, 1))
    return f"{shortest:,.0f} / {median:,.0f} / {longest:,.0f}"


def _padding(lengths: np.ndarray) -> str:
    boundaries = bucket_boundaries(lengths)
    batch = min(_BATCH.value, len(lengths))
    with_buckets, without = (padding_share(lengths, batch, widths) for widths in (boundaries, boundaries[-1:]))
    return (
        f"{with_buckets:.0%} of the steps of batches of {batch}, in widths of {', '.join(map(str, boundaries))};"
        f" {without:.0%} if all had the last"
    )


def _reads(task: tasks.Task) -> str:
    if isinstance(task.in_features, tuple):
        return f"{' x '.join(map(str, task.in_features))} numbers"
    if not task.reads_tokens:
        return f"{task.in_features} number{'s' if task.in_features > 1 else ''}"
    return f"{task.in_features:,} {task.vocabulary.kind if task.vocabulary else 'token'}s"


def _answers(task: tasks.Task) -> str:
    if task.kind is tasks.Kind.SEQUENCE:
        return f"to {task.answer_length} of {task.out_features:,} tokens"
    is_regression = task.metric == "mse"
    kind = "number" if is_regression else "token" if task.kind is tasks.Kind.STREAM else "class"
    plural = {"number": "numbers", "token": "tokens", "class": "classes"}[kind]
    answer = f"{task.out_features:,} {plural if task.out_features > 1 else kind}"
    return answer if task.kind is tasks.Kind.ONE_ANSWER else f"{answer} a step"


def _symbols(task: tasks.Task) -> str:
    if task.vocabulary is None:
        return ""
    symbols = [running.printable(symbol) if symbol.strip() else repr(symbol) for symbol in task.vocabulary.symbols]
    return ": " + _cut(" ".join(symbols))


def _classes(task: tasks.Task) -> str:
    """How many examples of the training split each class has."""
    if not task.class_names or task.kind is not tasks.Kind.ONE_ANSWER:
        return ""
    names = map(running.printable, task.class_names)
    if not (_is_text(task) or isinstance(task.train, tasks.ArraySource | tasks.RaggedSource)):
        return ": " + _cut(", ".join(names))  # to count them would make every example
    counts = np.bincount([int(task.train[k]["label"]) for k in range(len(task.train))], minlength=task.out_features)
    return ": " + _cut(", ".join(f"{name} ({count:,})" for name, count in zip(names, counts)), 2 * _WIDTH)


def _options(name: str) -> str:
    prefix = name.partition(":")[0]
    build = tasks.TASKS[name] if name in tasks.TASKS else tasks.PREFIXES[prefix]
    parameters = list(inspect.signature(build).parameters.values())[0 if name in tasks.TASKS else 1 :]
    shown = [f"--{p.name}" + ("" if p.default in (None, p.empty) else f"={p.default}") for p in parameters]
    return " ".join(flag for flag in shown if flag.partition("=")[0] != "--seed") or "none"


def _show_example(task: tasks.Task, example: dict[str, np.ndarray]) -> list[str]:
    if task.vocabulary is not None:
        lines = [_cut(repr(task.vocabulary.decode(example["tokens"])))]
        if task.kind is tasks.Kind.STREAM:
            return [*lines, _cut("-> " + repr(task.vocabulary.decode(example["labels"])))]
    elif task.reads_tokens:
        lines = ["tokens  " + _cut(" ".join(f"{token:3d}" for token in example["tokens"]))]
    elif isinstance(task.in_features, tuple):
        xs = example["xs"]
        lines = [f"xs  {' x '.join(map(str, xs.shape))} numbers, {xs.min():.3f} to {xs.max():.3f}"]
    else:
        lines = [
            f"xs[:, {feature}]  " + _cut(" ".join(f"{value:6.3f}" for value in example["xs"][:, feature]))
            for feature in range(min(task.in_features, 4))
        ]
    if "answer" in example and task.answer_vocabulary is not None:
        answer = example["answer"]
        return [*lines, _cut("-> " + repr(task.answer_vocabulary.decode(answer[answer > END])))]
    if "labels" in example:
        asked = [f"{label:3d}" if label != NOT_ASKED else "  ." for label in example["labels"]]
        return [*lines, "labels  " + _cut(" ".join(asked))]
    if "targets" in example:
        return [*lines, "targets  " + _cut(" ".join(f"{value:6.3f}" for value in example["targets"][:, 0]))]
    if "target" in example:
        return [*lines, "-> " + " ".join(f"{value:.3f}" for value in example["target"])]
    label = int(example["label"])
    return [*lines, f"-> {running.printable(task.class_names[label]) if task.class_names else label}"]


def _cut(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."


if __name__ == "__main__":
    running.run(main)
