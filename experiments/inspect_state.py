r"""What does the state of a trained network hold, and what does it do?

Looks for flags in the carry of a run of `experiments.train` on text or tokens: units that are high where a property of
the text holds. It reads properties from the state (probes), sees how long a flag lasts, forces it (switching), and
takes units and gates away (ablation).

    python -m experiments.train --task=agreement --cell=lstm --hidden=32 --emb_size=32 --steps=800 --batch=64 \
        --learning_rate=5e-3 --schedule=cosine --out=runs/agreement
    python -m experiments.inspect_state --run=runs/agreement                                          (1 min)
    python -m experiments.inspect_state --run=runs/agreement --text='alice met tom and said that'
    python -m experiments.inspect_state --run=runs/text --property=inside_quotes
    python -m experiments.inspect_state --run=runs/text --text="$(cat my.txt)" --labels=my.labels

--labels holds one label for each token of --text, between blanks. It writes state_probes.csv, state_memory.csv,
state_switch.csv, state_ablation.csv, state.npz, figures/state.png and state.html, and names them. state.html shows the
state along --text, the gates, and how strongly each answer depends on each earlier token.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags, logging

from experiments import inspect_changes as changes
from experiments import inspect_reading as reading_of
from experiments import running
from rnn_jax import tasks
from rnn_jax.report import read
from rnn_jax.report.state_figures import draw_state
from rnn_jax.report.state_page import StateArrays, save_state, write_page
from rnn_jax.tasks.agreement import find_subject
from rnn_jax.tasks.properties import OF_AGREEMENT, OF_TEXT, PROPERTIES, Property, shown_symbols
from rnn_jax.tasks.sources import StreamSource
from rnn_jax.training import run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.load import LoadedRun, load_run

_RUN = flags.DEFINE_string("run", None, "Run directory of experiments.train, of a classifier or a language model.")
_TEXT = flags.DEFINE_string("text", None, "Text to show; by default some of the test split.")
_LAYER = flags.DEFINE_string("layer", None, "Recurrent layer to look at; the top one by default.")
_UNIT = flags.DEFINE_integer("unit", None, "Unit that the page opens with; the best of the first property by default.")
_PROPERTY = flags.DEFINE_string("property", None, f"To be read: {', '.join(PROPERTIES)}; all that fit by default.")
_LABELS = flags.DEFINE_string("labels", None, "File with a label for each token of --text, to be read instead.")

_STREAM_TOKENS = 40_000  # of the test split of a language model that are read
_SENTENCE_TOKENS = 50_000  # of that of another task
_SHOWN_TOKENS = 1000  # by default
_MOST_SHOWN = 20_000
_RANKS = 3  # answers that are shown at each token
# Sentences that differ in their subject alone, shown first.
_TRIPLE = (
    "alice near the dogs who saw carl said that",
    "alice and tom near the dogs who saw carl said that",
    "tom near the dogs who saw carl said that",
)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    run = read_run()
    layers = reading_of.recurrent_layers(run)
    layer = layers[-1] if _LAYER.value is None else _LAYER.value
    if layer not in layers:
        raise ValueError(f"--layer={layer!r} is no recurrent layer of the run; allowed: {', '.join(layers)}.")
    text = None if _TEXT.value is None else encode(run, _TEXT.value)
    labels = None if _LABELS.value is None else read_labels(_LABELS.value, text)
    properties = choose_properties(run)
    task = None if labels is not None else run.make_task()
    sequences = [text] if text is not None else shown_by_default(run, task)
    shown = reading_of.read(run.model, sequences)
    symbols = shown_symbols(run.vocabulary, shown.tokens)
    of_layer = [(name, part) for name, part in shown.parts if name == layer]
    units = shown.parts[of_layer[0]].shape[1]
    if _UNIT.value is not None and not 0 <= _UNIT.value < units:
        raise ValueError(f"--unit={_UNIT.value} is no unit of the layer {layer!r}; allowed: 0 to {units - 1}.")

    written: list[pathlib.Path] = []
    if labels is not None:
        names = sorted(set(labels))
        given = Property(
            "of --labels", tuple(names), lambda symbols: np.array([names.index(label) for label in labels])
        )
        properties = {"labels": given}
        written += probe_all(run, layer, shown, symbols, properties, must=True)
    elif task is not None:
        examined = reading_of.read(run.model, test_sequences(task))
        all_symbols = shown_symbols(run.vocabulary, examined.tokens)
        written += probe_all(run, layer, examined, all_symbols, properties, must=_PROPERTY.value is not None)
        if run.task.name == "agreement":
            written += follow_flags(run, layer, of_layer[0][1], examined, all_symbols, task)
        written += take_away(run, task, layer, units)
    path = save_shown(run, shown, symbols, sequences, properties)
    written += [path, *draw_state(run.run_dir, layer=layer), write_page(run.run_dir, layer=layer, unit=_UNIT.value)]
    print("\nWritten:")
    for path in dict.fromkeys(written):
        print(f"  {path}")


def read_run() -> LoadedRun:
    """Reads the run of --run; raises ValueError if it is none that can be looked at."""
    run = load_run(_RUN.value, tasks.Kind.ONE_ANSWER, tasks.Kind.ANSWER_A_STEP, tasks.Kind.STREAM)
    if not run.task.reads_tokens:
        raise ValueError(
            f"--run={_RUN.value!r} is a run of the task {run.task.name!r}, which reads no tokens;"
            " allowed: a run on text or other tokens."
        )
    return run


def encode(run: LoadedRun, text: str) -> np.ndarray:
    """Returns the tokens of --text, int32 `[T]`; raises ValueError if there are none, or too many."""
    if run.vocabulary is None:
        raise ValueError(f"--text with a run of the task {run.task.name!r}, whose tokens are no text; allowed: none.")
    tokens = run.vocabulary.encode(text)
    if not 1 <= len(tokens) <= _MOST_SHOWN:
        raise ValueError(f"--text has {len(tokens)} tokens; allowed: 1 to {_MOST_SHOWN}.")
    return tokens


def read_labels(path: str, text: np.ndarray | None) -> list[str]:
    """Reads the labels of --labels; raises ValueError if they are not one for each token of --text."""
    if text is None:
        raise ValueError("--labels without --text; allowed: labels for the tokens of --text.")
    try:
        labels = pathlib.Path(path).expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--labels={path!r} cannot be read ({error}); allowed: a text file.") from error
    if len(labels) != len(text):
        raise ValueError(
            f"--labels={path!r} has {len(labels)} labels; allowed: {len(text)}, one for each token of --text."
        )
    return labels


def choose_properties(run: LoadedRun) -> Mapping[str, Property]:
    """Returns the properties to be read; raises ValueError if there is none of the name given."""
    if _PROPERTY.value is None:
        return OF_AGREEMENT if run.task.name == "agreement" else OF_TEXT
    if _PROPERTY.value not in PROPERTIES:
        raise ValueError(f"--property={_PROPERTY.value!r} is unknown; allowed: {', '.join(PROPERTIES)}.")
    return {_PROPERTY.value: PROPERTIES[_PROPERTY.value]}


def test_sequences(task: tasks.Task) -> list[np.ndarray]:
    """Returns sequences of the test split, as many as are read: of a stream, one piece of it."""
    if isinstance(task.test, StreamSource):
        return [task.test.tokens[:_STREAM_TOKENS]]
    return first_sequences(task, _SENTENCE_TOKENS)


def first_sequences(task: tasks.Task, limit: int) -> list[np.ndarray]:
    """Returns the first sequences of the test split, one at least, of so many tokens together at most."""
    found: list[np.ndarray] = []
    total = 0
    for number in range(len(task.test)):
        tokens = task.test[number]["tokens"]
        total += len(tokens)
        if found and total > limit:
            break
        found.append(tokens[:_MOST_SHOWN])
    return found


def shown_by_default(run: LoadedRun, task: tasks.Task | None) -> list[np.ndarray]:
    assert task is not None  # labels come with a text
    if isinstance(task.test, StreamSource):
        return [task.test.tokens[:_SHOWN_TOKENS]]
    triple = []
    if run.task.name == "agreement" and run.vocabulary is not None:
        triple = [run.vocabulary.encode(text) for text in _TRIPLE]
    return triple + first_sequences(task, _SHOWN_TOKENS)[:20]


def probe_all(
    run: LoadedRun,
    layer: str,
    reading: reading_of.Reading,
    symbols: Sequence[str],
    properties: Mapping[str, Property],
    *,
    must: bool,
) -> list[pathlib.Path]:
    """Prints, and writes to state_probes.csv, how well each property is read from each part of the carry of a layer.

    Args:
      run, layer, reading, symbols, properties: what is looked at.
      must: whether a property that the text does not have is an error, and not only named.

    Raises:
      ValueError: if it is one.
    """
    sequences, rows = reading_of.pieces(reading), []
    print(f"{'property':16}{'label':10}{'state':14}{'probe':9}{'unit':>5}  {'accuracy':>8}{'chance':>8}{'control':>9}")
    for name, wanted in properties.items():
        labels = reading_of.label_tokens(reading, symbols, wanted)
        for (of_layer, part), values in reading.parts.items():
            if of_layer != layer:
                continue
            try:
                found = reading_of.probe(values, labels, sequences, wanted.labels)
            except ValueError as error:
                if must:
                    raise ValueError(f"the property {name!r} cannot be read here: {error}") from error
                print(f"{name:16}(not read: {error})")
                break
            for row in found:
                rows.append({"layer": layer, "part": part, "property": name, **row})
                scores = f"{row['accuracy']:8.3f}{row['chance']:8.3f}{row['control']:9.3f}"
                at = f"{layer} {part}".strip()
                print(f"{name:16}{row['label']!s:10}{at:14}{row['probe']!s:9}{row['unit']!s:>5}  {scores}", flush=True)
    return write_rows(run, "state_probes.csv", rows)


def follow_flags(
    run: LoadedRun,
    layer: str,
    part: str,
    reading: reading_of.Reading,
    symbols: Sequence[str],
    task: tasks.Task,
) -> list[pathlib.Path]:
    """Prints, and writes to state_memory.csv and state_switch.csv, how long a flag lasts and what it does."""
    values = reading.parts[layer, part]
    starts = np.flatnonzero(reading.steps == 0).tolist()
    ends = [*starts[1:], len(symbols)]
    subjects = [find_subject(symbols[start:stop]) for start, stop in zip(starts, ends)]
    behind = np.array([subject[1] if subject else 0 for subject in subjects])
    distances = reading.steps - (behind[reading.sequences] - 1)
    sentences = [reading.tokens[start:stop] for start, stop in zip(starts, ends)]
    answers = np.array([task.test[number]["label"] for number in range(len(sentences))])
    memory, switched = [], []
    for name, wanted in OF_AGREEMENT.items():
        labels = reading_of.label_tokens(reading, symbols, wanted)
        flag = changes.find_flag(values, labels, distances, reading.sequences)
        rows = changes.remember(values, labels, distances, reading, flag, answers)
        memory += [{"layer": layer, "part": part, "property": name, "unit": flag.unit, **row} for row in rows]
        ends_of = np.array([stop - 1 for stop in ends])
        of_sentences = labels[ends_of]
        rows = changes.switch(
            run.model,
            layer,
            differences(reading, layer, labels, distances),
            name,
            sentences,
            behind,
            of_sentences,
            flag,
        )
        switched += [{"layer": layer, "part": part, **row} for row in rows]
    print_memory(run, layer, part, memory)
    state = f"{layer} {part}".strip()
    print(
        f"\nSwitched at the word behind the subject, in {state}; share of held-out sentences that answer accordingly:"
    )
    for row in switched:
        if row["change"] != "unit":
            which = f"{row['change']} {row['unit']}".strip()
            interval = f"{row['share']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"  {row['property']!s:16}{which:22}{interval}  of {row['sentences']}")
    return write_rows(run, "state_memory.csv", memory) + write_rows(run, "state_switch.csv", switched)


def differences(
    reading: reading_of.Reading, layer: str, labels: np.ndarray, distances: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns by how much the mean states of label 1 and 0 differ at the word behind the subject, by part, `[units]`.

    Sentences of odd number are not looked at.
    """
    here = (distances == 1) & (reading.sequences % 2 == 0)
    return {
        part: values[here & (labels == 1)].mean(axis=0) - values[here & (labels == 0)].mean(axis=0)
        for (name, part), values in reading.parts.items()
        if name == layer
    }


def print_memory(run: LoadedRun, layer: str, part: str, rows: Sequence[Mapping[str, object]]) -> None:
    print("\nRead from held-out sentences, by words since the subject, and the answers of those that end there:")
    print(f"  {'property':16}{'distance':>8}{'one unit':>10}{'linear':>8}{'chance':>8}{'answers':>9}")
    for row in rows:
        if int(str(row["distance"])) % 4 in (0, 1):
            answer = f"{row['answer_accuracy']:9.3f}" if row["answer_accuracy"] != "" else ""
            scores = f"{row['unit_accuracy']:10.3f}{row['linear_accuracy']:8.3f}{row['chance']:8.3f}"
            print(f"  {row['property']!s:16}{row['distance']!s:>8}{scores}{answer}")
    for row in read.load_table(run.run_dir):
        if (row["layer"], row["part"], row["stage"]) == (layer, part, "trained"):
            print(f"  horizon of the gradient: {row['horizon_e']} words to 1/e, {row['horizon_1000']} to 1/1000.")


def take_away(run: LoadedRun, task: tasks.Task, layer: str, units: int) -> list[pathlib.Path]:
    """Prints, and writes to state_ablation.csv, what each unit and each gate is worth."""
    batch = changes.ablation_batch(task, units)
    rows = changes.ablate(run.model, task, batch, [layer])
    print(f"\nTaken away, the most damage first ({task.metric}, {len(batch['tokens'])} test sequences):")
    for row in rows[:12]:
        what = f"unit {row['unit']} of {row['part'] or 'the carry'} at 0"
        if row["gate"]:
            what = f"{row['gate']} gate at {row['held_at']}"
        print(f"  {what:24}{row['score']:9.4f}  worse by {row['damage']:.4f}")
    return write_rows(run, "state_ablation.csv", rows)


def save_shown(
    run: LoadedRun,
    shown: reading_of.Reading,
    symbols: list[str],
    sequences: list[np.ndarray],
    properties: Mapping[str, Property],
) -> pathlib.Path:
    """Writes state.npz: what the page and the figure show."""
    none = np.zeros((len(symbols), 0))
    answers, probabilities, connectivity = none.astype(int), none, none
    classes: tuple[str, ...] = ()
    if shown.probabilities is not None:
        answers = np.argsort(-shown.probabilities, axis=-1)[:, :_RANKS]
        probabilities = np.take_along_axis(shown.probabilities, answers, axis=-1)
        numbers = np.arange(shown.probabilities.shape[1])
        classes = tuple(class_names(run, numbers))
        found = reading_of.connectivity(run.model, sequences)
        connectivity = none if found is None else found
    kind = "number" if run.vocabulary is None else run.vocabulary.kind
    state = StateArrays(
        symbols=tuple(symbols),
        sequences=shown.sequences,
        kind=kind,
        parts=shown.parts,
        gates=shown.gates,
        labels={name: reading_of.label_tokens(shown, symbols, wanted) for name, wanted in properties.items()},
        classes=classes,
        answers=answers,
        probabilities=probabilities,
        connectivity=connectivity,
    )
    return save_state(run.run_dir, state)


def class_names(run: LoadedRun, numbers: np.ndarray) -> list[str]:
    """Returns what the answers are called."""
    if run.task.kind is tasks.Kind.STREAM:
        return shown_symbols(run.vocabulary, numbers)
    if run.task.name == "agreement":
        return list(changes.PRONOUNS)
    return [str(number) for number in numbers]


def write_rows(run: LoadedRun, name: str, rows: Sequence[Mapping[str, object]]) -> list[pathlib.Path]:
    """Writes a table into the run directory; none of no rows."""
    if not rows:
        return []
    empty = dict.fromkeys((column for row in rows for column in row), "")
    return [run_directory.save_table(run.run_dir, [{**empty, **row} for row in rows], name)]


if __name__ == "__main__":
    running.run(main)
