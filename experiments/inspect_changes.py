"""What a unit does: a flag forced in the middle of a sentence, units and gates taken away, and how long a flag lasts.

Unit, threshold, direction and means are chosen on one half of the sentences of `rnn_jax.tasks.agreement`, and what they
do is measured on the other half.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inspect_reading import Reading
from rnn_jax import flow, tasks
from rnn_jax.flow.calls import layer_calls
from rnn_jax.flow.readout import best_unit, linear_direction
from rnn_jax.tasks.agreement import PRONOUNS
from rnn_jax.tasks.batching import collate
from rnn_jax.tasks.properties import UNLABELED

Array = jax.Array
Row = dict[str, object]

# The pronouns that go with each label of a property.
PRONOUNS_OF: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plural_subject": (("she", "he"), ("they",)),
    "woman": (("he",), ("she",)),
}
_SENTENCES = 1000  # that a change is measured on, at most
_UNIT_TOKENS = 1_000_000  # steps of an ablation, all units together
_ABLATION_TOKENS = 20_000  # steps of one run of an ablation, at most
_UNITS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Flag:
    """A property as a part of the carry holds it, found on one half of the sentences.

    Attributes:
      unit: number of the best one.
      threshold, above: as in `rnn_jax.flow.UnitProbe`.
      direction: of the linear probe, of length 1, `[units]`.
      direction_threshold, direction_above: the same for the state along the direction.
      means: of the states at the word behind the subject, for label 0 and 1, `[2, units]`.
      ranking: of the units: the best one, and the others by how far the means are apart at that word, over the spread
        around them, `[units]`.
    """

    unit: int
    threshold: float
    above: bool
    direction: np.ndarray
    direction_threshold: float
    direction_above: bool
    means: np.ndarray
    ranking: np.ndarray

    def read_unit(self, values: np.ndarray) -> np.ndarray:
        """Whether the best unit says that the property is there, bool `[N]`, of states `[N, units]`."""
        return (values[:, self.unit] > self.threshold) == self.above

    def read_direction(self, values: np.ndarray) -> np.ndarray:
        """Whether the state along the direction says so."""
        return (values @ self.direction > self.direction_threshold) == self.direction_above


def find_flag(values: np.ndarray, labels: np.ndarray, distances: np.ndarray, sequences: np.ndarray) -> Flag:
    """Finds the unit and the direction that hold a property.

    Args:
      values: `[N, units]`.
      labels: `[N]`.
      distances: how many words each token stands behind the subject, `[N]`; negative before.
      sequences: the number of its sentence, `[N]`; those of odd number are not looked at.
    """
    chosen = (labels != UNLABELED) & (sequences % 2 == 0)
    values, labels, at_once = values[chosen], labels[chosen].astype(bool), distances[chosen] == 1
    unit, threshold, above = best_unit(values, labels)
    direction = linear_direction(values, labels)[1][0]
    direction = direction / np.linalg.norm(direction)
    _, direction_threshold, direction_above = best_unit((values @ direction)[:, None], labels)
    by_label = [values[at_once & (labels == label)] for label in (False, True)]
    spread = np.sqrt((np.var(by_label[0], axis=0) + np.var(by_label[1], axis=0)) / 2) + 1e-6
    means = np.stack([one.mean(axis=0) for one in by_label])
    ranking = np.argsort(-np.abs(means[1] - means[0]) / spread)
    ranking = np.concatenate([[unit], ranking[ranking != unit]])
    return Flag(unit, threshold, above, direction, direction_threshold, direction_above, means, ranking)


def remember(
    values: np.ndarray, labels: np.ndarray, distances: np.ndarray, reading: Reading, flag: Flag, answers: np.ndarray
) -> list[Row]:
    """Returns, for each distance behind the subject, how often the flag is read right there.

    Args:
      values, labels, distances: as `find_flag`; sentences of even number are not looked at.
      reading: of all sentences, to whose end the words "said that" belong.
      flag: as found.
      answers: the right pronoun of each sentence, its number, `[sentences]`.
    """
    held_out = (labels != UNLABELED) & (reading.sequences % 2 == 1)
    last = np.diff(reading.sequences, append=-1) != 0
    rows: list[Row] = []
    for distance in range(int(distances.max()) + 1):
        here = held_out & (distances == distance)
        if not here.any():
            continue
        row: Row = {"distance": distance, "sentences": int(here.sum())}
        row["unit_accuracy"] = float(np.mean(flag.read_unit(values[here]) == labels[here]))
        row["linear_accuracy"] = float(np.mean(flag.read_direction(values[here]) == labels[here]))
        row["chance"] = float(max(np.mean(labels[here]), 1 - np.mean(labels[here])))
        ends = here & last
        row["answered_there"] = int(ends.sum())
        row["answer_accuracy"] = ""
        if ends.any() and reading.probabilities is not None:
            given = reading.probabilities[ends].argmax(axis=-1)
            row["answer_accuracy"] = float(np.mean(given == answers[reading.sequences[ends]]))
        rows.append(row)
    return rows


def switch(
    model: Any,
    layer: str,
    parts: Mapping[str, np.ndarray],
    name: str,
    sentences: Sequence[np.ndarray],
    behind: np.ndarray,
    labels: np.ndarray,
    flag: Flag,
    seed: int = 0,
) -> list[Row]:
    """Forces a flag at the word behind the subject, in every way, and counts the answers that follow it.

    Counted are sentences whose answer was one of the label's before the change: of singular subjects "she" or "he",
    and whether it is "they" behind the change; and the reverse. Units of the first part of the carry are set to their
    means under the other label: every single one, where the best is what is tested and a random other one the control,
    and the best 2, 4, 8, ... together. The first part is moved along the direction of the linear probe, along a random
    direction as far, and by the difference of its means; and the whole carry by the difference of its own.

    Args:
      model: a `SequenceClassifier`.
      layer: whose carry is changed.
      parts: of the carry, the difference of the means of label 1 and label 0 at the word behind the subject, `[units]`.
      name: of the property, in `PRONOUNS_OF`.
      sentences: tokens of each, int `[T]`.
      behind: the step of the word behind the subject, int `[sentences]`.
      labels: of the property there, `[sentences]`; `UNLABELED` ones, and those of even number, are left out.
      flag: as found, of the first part.
      seed: of the random direction and the random unit.
    """
    chosen = np.flatnonzero((labels != UNLABELED) & (np.arange(len(labels)) % 2 == 1))[:_SENTENCES]
    batch = collate([{"tokens": np.asarray(sentences[number], np.int32)} for number in chosen], ragged=True)
    label, units = labels[chosen].astype(np.int32), flag.means.shape[1]
    difference = flag.means[1] - flag.means[0]
    rng = np.random.default_rng(seed)
    aside = rng.normal(size=units)
    size = flag.direction @ difference
    first, *others = parts
    whole = np.concatenate(list(parts.values()))
    rest = np.zeros(len(whole) - units)
    control = int(rng.choice(np.delete(np.arange(units), flag.unit))) if units > 1 else -1
    kinds = {flag.unit: "best unit", control: "random unit"}
    changes = [(kinds.get(unit, "unit"), [unit], np.zeros(len(whole))) for unit in range(units)]
    count = 2
    while count < 2 * units and units > 1:
        most = min(count, units)
        changes.append((f"best {most} units", flag.ranking[:most].tolist(), np.zeros(len(whole))))
        count *= 2
    changes += [
        ("linear probe", [], np.append(size * flag.direction, rest)),
        ("random direction", [], np.append(abs(size) * aside / np.linalg.norm(aside), rest)),
        (f"means of {first}" if others else "means", [], np.append(difference, rest)),
    ]
    if others:
        changes.append((f"means of {' and '.join(parts)}", [], whole))
    changes.append(("none", [], np.zeros(len(whole))))  # the answers before
    masks = np.zeros((len(changes), len(whole)), bool)
    for number, (_, chosen_units, _) in enumerate(changes):
        masks[number, chosen_units] = True
    shifted = np.stack([shift for _, _, shift in changes])
    targets = np.pad(flag.means, ((0, 0), (0, len(rest))))
    answers = np.asarray(
        _answers(
            model,
            jnp.asarray(batch["tokens"]),
            jnp.asarray(batch["lengths"]),
            jnp.asarray(behind[chosen], jnp.int32),
            jnp.asarray(label),
            jnp.asarray(targets, jnp.float32),
            (jnp.asarray(masks), jnp.asarray(shifted, jnp.float32)),
            layer,
            tuple(parts),
        )
    )
    own, other = (np.array([[word in group for word in PRONOUNS] for group in order]) for order in (
        PRONOUNS_OF[name], PRONOUNS_OF[name][::-1],
    ))  # fmt: skip
    counted = own[label, answers[-1]]
    switched = other[label[None], answers] & counted[None]
    rows: list[Row] = []
    for number, (kind, _, _) in enumerate(changes[:-1]):
        count, total = int(switched[number].sum()), int(counted.sum())
        low, high = wilson_interval(count, total)
        rows.append(
            {
                "property": name,
                "change": kind,
                "unit": number if number < units else "",
                "switched": count,
                "sentences": total,
                "share": count / total if total else math.nan,
                "low": low,
                "high": high,
                **{
                    f"share_from_{value}": float(np.mean(switched[number][counted & (label == value)]))
                    for value in (0, 1)
                    if (counted & (label == value)).any()
                },
            }
        )
    return rows


def wilson_interval(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the ends of the 95 % confidence interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    if total == 0:
        return 0.0, 1.0
    share, spread = count / total, z * z / total
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def _answers(
    model: Any,
    tokens: Array,
    lengths: Array,
    at: Array,
    label: Array,
    means: Array,
    changes: Any,
    layer: str,
    names: tuple[str, ...],
) -> Array:
    """Returns the answers under each change, int `[changes, sentences]`, in one program."""

    @jax.jit
    def run(model: Any, tokens: Array, lengths: Array, at: Array, label: Array, means: Array, changes: Any) -> Array:
        others = means[1 - label]
        sign = jnp.where(label == 0, 1.0, -1.0).astype(jnp.float32)[:, None]

        def under(change: tuple[Array, Array]) -> Array:
            mask, shift = change

            def force(parts: dict[str, Array], t: Array) -> dict[str, Array]:
                flat = [parts[name].reshape(len(at), -1) for name in names]
                joined = jnp.concatenate(flat, axis=-1)
                moved = jnp.where(mask[None], others, joined) + sign * shift[None]
                joined = jnp.where((t == at)[:, None], moved.astype(joined.dtype), joined)
                pieces = jnp.split(joined, np.cumsum([one.shape[-1] for one in flat])[:-1].tolist(), axis=-1)
                return parts | {name: one.reshape(parts[name].shape) for name, one in zip(names, pieces)}

            return jnp.argmax(flow.change_carry(model, layer, force)(tokens, lengths), axis=-1)

        return jax.lax.map(under, changes, batch_size=_UNITS_AT_ONCE)

    return run(model, tokens, lengths, at, label, means, changes)


def ablation_batch(task: tasks.Task, units: int) -> tasks.Batch:
    """Returns the first examples of the test split, as many as an ablation of so many units may read."""
    limit, examples, read = min(_ABLATION_TOKENS, _UNIT_TOKENS // max(units, 1)), [], 0
    for number in range(len(task.test)):
        examples.append(task.test[number])
        read += len(examples[-1]["tokens"])
        if read >= limit:
            break
    return collate(examples, ragged=task.test.lengths is not None)


def ablate(model: Any, task: tasks.Task, batch: tasks.Batch, layers: Sequence[str]) -> list[Row]:
    """Scores a model with each unit of each part of its carry at 0 throughout, and with each gate held at 0 and at 1.

    Returns:
      a row for each, the most damage first: how much worse the score is.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    gates: dict[str, dict[str, tuple[float, float]]] = {}

    def look(model: Any) -> None:
        calls = layer_calls(lambda model: task.score(model, batch)[0], model)
        for name in layers:
            (call,) = calls[name]
            seen = flow.states(call)
            leading = len(call.batch_shape) + 1
            shapes[name] = {
                part: values.shape[leading:]
                for part, values in seen.carry.items()
                if jnp.issubdtype(values.dtype, jnp.floating)
            }
            cell: Any = call.cell
            gates[name] = {gate: cell.gate_ranges[gate] for gate in seen.gates}

    jax.eval_shape(look, model)

    def mean(model: Any) -> Array:
        total, count = task.score(model, batch)
        return total / count

    whole = float(jax.jit(mean)(model))
    rows: list[Row] = []

    def note(layer: str, what: str, name: str, unit: object, scores: Array) -> None:
        for number, score in zip(unit if isinstance(unit, list) else [unit], np.asarray(scores).tolist()):
            damage = whole - score if task.higher_is_better else score - whole
            at = {what: name, "unit" if what == "part" else "held_at": number}
            scores_of = {"metric": task.metric, "score": score, "damage": damage}
            rows.append({"layer": layer, "part": "", "unit": "", "gate": "", "held_at": ""} | at | scores_of)

    for layer in layers:
        for part, shape in shapes[layer].items():
            units = math.prod(shape)

            def without(model: Any, unit: Array, layer: str = layer, part: str = part, shape: Any = shape) -> Array:
                kept = (jnp.arange(math.prod(shape), dtype=unit.dtype) != unit).reshape(shape)

                def clear(parts: dict[str, Array], t: Array) -> dict[str, Array]:
                    values = parts[part]
                    return parts | {
                        part: jnp.where(jnp.broadcast_to(kept, values.shape), values, 0).astype(values.dtype)
                    }

                return mean(flow.change_carry(model, layer, clear))

            run = jax.jit(
                lambda model, units, without=without: jax.lax.map(
                    lambda unit: without(model, unit), units, batch_size=_UNITS_AT_ONCE
                )
            )
            note(layer, "part", part, list(range(units)), run(model, jnp.arange(units, dtype=jnp.int32)))
        for gate, range_ in gates[layer].items():
            if range_ != (0.0, 1.0):
                continue
            run = jax.jit(
                lambda model, values, layer=layer, gate=gate: jax.lax.map(
                    lambda value: mean(flow.hold_gates(model, layer, {gate: value})), values
                )
            )
            note(layer, "gate", gate, [0, 1], run(model, jnp.asarray([0.0, 1.0], jnp.float32)))
    return sorted(rows, key=lambda row: -float(str(row["damage"])))
