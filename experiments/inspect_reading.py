"""What a trained model held along sequences of tokens, what can be read from it, and how far back it is connected."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_jax import flow
from rnn_jax.flow.calls import layer_names
from rnn_jax.flow.readout import exchanged
from rnn_jax.layers import Bidirectional, as_inputs, layers_of
from rnn_jax.models import LanguageModel
from rnn_jax.tasks.batching import collate
from rnn_jax.tasks.properties import UNLABELED, Property
from rnn_jax.training.load import LoadedRun

Array = jax.Array

WINDOW = 200  # steps that connectivity looks back
_PIECE = 100  # tokens of a stream that count as one sequence in cross-validation
_FOLDS = 5
_STATES = 20_000  # that a probe is fitted to, at most


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a model held at N tokens, those of several sequences one after another.

    Attributes:
      tokens, sequences, steps: of each the token, the number of its sequence and its step there, int `[N]`.
      parts: by (layer, part of its carry), `[N, units]` each.
      gates: by (layer, gate), `[N, ...units]` each.
      probabilities: of what the model would answer there, `[N, classes]`; None if it answers from more than one step.
    """

    tokens: np.ndarray
    sequences: np.ndarray
    steps: np.ndarray
    parts: dict[tuple[str, str], np.ndarray]
    gates: dict[tuple[str, str], np.ndarray]
    probabilities: np.ndarray | None


def recurrent_layers(run: LoadedRun) -> list[str]:
    """Returns the names of the recurrent layers of a run's model, the top one last.

    Raises:
      ValueError: if there is none.
    """
    names = layer_names(run.model)
    if not names:
        raise ValueError(f"--run={str(run.run_dir)!r} has no recurrent layer; allowed: a run without --norecurrent.")
    return names


def read(model: Any, sequences: Sequence[np.ndarray]) -> Reading:
    """Runs a model along sequences of tokens, each int `[T]`, in one padded batch."""
    batch = collate([{"tokens": np.asarray(tokens, np.int32)} for tokens in sequences], ragged=True)
    states, probabilities = _run(model, batch["tokens"], batch["lengths"])
    true = np.arange(batch["tokens"].shape[1])[None] < batch["lengths"][:, None]
    rows, steps = np.nonzero(true)

    def flat(values: Array) -> np.ndarray:
        chosen = np.asarray(values)[true]
        return chosen.reshape(len(chosen), -1)

    return Reading(
        tokens=batch["tokens"][true],
        sequences=rows,
        steps=steps,
        parts={
            (layer, part): flat(values)
            for layer, seen in states.items()
            for part, values in seen.carry.items()
            if jnp.issubdtype(values.dtype, jnp.floating)
        },
        gates={(layer, gate): flat(values) for layer, seen in states.items() for gate, values in seen.gates.items()},
        probabilities=None if probabilities is None else flat(probabilities),
    )


@jax.jit
def _run(model: Any, tokens: Array, lengths: Array) -> tuple[dict[str, flow.States], Array | None]:
    calls = flow.layer_calls(lambda model: model(tokens, lengths), model)
    head = _head(model)
    probabilities = None
    if head is not None:
        ys = calls[layer_names(model)[-1]][0].ys
        probabilities = jax.nn.softmax(head(as_inputs(ys, 1, 2)), axis=-1)
    return {name: flow.states(of_layer[0]) for name, of_layer in calls.items()}, probabilities


def connectivity(model: Any, sequences: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns log10 |d log p / dx| of the likeliest answer at each token, with regard to the top layer's inputs.

    Returns:
      `[N, lags]` over the tokens of all sequences, as in `Reading`; None if the model answers from more than one step.
    """
    if _head(model) is None:
        return None
    batch = collate([{"tokens": np.asarray(tokens, np.int32)} for tokens in sequences], ragged=True)
    log10_norm = np.asarray(_connect(model, batch["tokens"], batch["lengths"]))
    return log10_norm[np.arange(log10_norm.shape[1])[None] < batch["lengths"][:, None]]


@jax.jit
def _connect(model: Any, tokens: Array, lengths: Array) -> Array:
    head = _head(model)
    assert head is not None
    calls = flow.layer_calls(lambda model: model(tokens, lengths), model)
    call = calls[layer_names(model)[-1]][0]

    def log_p(ys: Any) -> Array:
        return jnp.sum(jnp.max(jax.nn.log_softmax(head(as_inputs(ys, 1, 2)), axis=-1), axis=-1))

    return flow.connectivity(call, jax.grad(log_p)(call.ys), WINDOW)


def _head(model: Any) -> Callable[[Array], Array] | None:
    """Returns what makes scores of the outputs of the top layer at one step; None where an answer needs other steps."""
    if isinstance(model, LanguageModel):
        return model.read_out
    if model.pool in (None, "last") and not any(isinstance(layer, Bidirectional) for layer in layers_of(model.rnn)):
        return model.head
    return None


def pieces(reading: Reading) -> np.ndarray:
    """Returns which sequence each token belongs to in cross-validation: a long one is cut in pieces."""
    lengths = np.bincount(reading.sequences)
    if len(lengths) >= 2 * _FOLDS:
        return reading.sequences
    size = max(1, min(_PIECE, int(lengths.min()) // (2 * _FOLDS)))
    return reading.sequences * (int(lengths.max()) // size + 1) + reading.steps // size


def label_tokens(reading: Reading, symbols: Sequence[str], wanted: Property) -> np.ndarray:
    """Returns the label of a property at each token, int `[N]`."""
    labels = np.full(len(symbols), UNLABELED)
    ends = (np.flatnonzero(np.diff(reading.sequences, append=-1)) + 1).tolist()
    for start, stop in zip([0, *ends[:-1]], ends):
        labels[start:stop] = wanted.read(symbols[start:stop])
    return labels


def _balanced(labels: np.ndarray) -> np.ndarray:
    """Returns which tokens to probe: of a label that more than three quarters have, as many as of all others.

    Else a probe that never answers yes would read a rare property almost always rightly.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    if len(numbers) < 2 or counts.max() <= 0.75 * len(labels):
        return np.arange(min(len(labels), _STATES))
    common = labels == numbers[counts.argmax()]
    kept = np.random.default_rng(0).choice(np.flatnonzero(common), int((~common).sum()), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(~common), kept]))[:_STATES]


def probe(
    values: np.ndarray, labels: np.ndarray, sequences: np.ndarray, names: Sequence[str]
) -> list[dict[str, object]]:
    """Returns rows for a table: the best unit for each label against the others, and the linear probe of all labels.

    Args:
      values: of a part of the carry, `[N, units]`.
      labels: of a property, int `[N]`; of one that more than three quarters have, some tokens are left out.
      sequences: `[N]`, as `rnn_jax.flow.linear_probe`.
      names: of the labels.

    Raises:
      ValueError: if there are not two labels among those known, or too few sequences.
    """
    known = labels != UNLABELED
    values, labels, sequences = values[known], labels[known], sequences[known]
    control = exchanged(labels, sequences, seed=0)
    chosen, of_control = _balanced(labels), _balanced(control)
    rare = len(chosen) < len(labels)  # then the exchanged labels are to be balanced by themselves
    controls = (values[of_control], control[of_control], sequences[of_control])
    values, labels, sequences = values[chosen], labels[chosen], sequences[chosen]
    shared = {"states": len(labels), "sequences": len(np.unique(sequences))}
    linear = flow.linear_probe(values, labels, sequences, folds=_FOLDS)
    rows: list[dict[str, object]] = []
    found = [int(label) for label in linear.labels]
    for label in found[1:] if len(found) == 2 else found:
        unit = flow.unit_probe(values, labels == label, sequences, folds=_FOLDS)
        unit_control = unit.control
        if rare:
            there = controls[1] == label
            unit_control = flow.unit_probe(controls[0], there, controls[2], folds=_FOLDS).accuracy
        rows.append(
            {
                "label": names[label],
                "probe": "unit",
                "unit": unit.unit,
                "side": "above" if unit.above else "below",
                "threshold": unit.threshold,
                "accuracy": unit.accuracy,
                "chance": unit.chance,
                "control": unit_control,
                **shared,
            }
        )
    linear_control = flow.linear_probe(*controls, folds=_FOLDS).accuracy if rare else linear.control
    scores = {"accuracy": linear.accuracy, "chance": linear.chance, "control": linear_control}
    rows.append({"label": "all", "probe": "linear", "unit": "", "side": "", "threshold": "", **scores, **shared})
    return rows
