"""What can be read from a state: a property, by a linear map of all units, and by one unit and a threshold.

A probe that reads a property well has shown something only where the same probe cannot read a property that is not
there. Each is therefore fitted a second time, to labels that were exchanged between the sequences: its control.

Every score is of sequences that the probe was not fitted to: steps of one sequence are never on both sides.

References:
  Alain, Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644.
  Hewitt, Liang 2019, "Designing and interpreting probes with control tasks", arXiv 1909.03368.
  Radford, Jozefowicz, Sutskever 2017, "Learning to generate reviews and discovering sentiment", arXiv 1704.01444.
  Lakretz et al. 2019, "The emergence of number and syntax units in LSTM language models", arXiv 1903.07435.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """How well a linear map of all units reads a property.

    Attributes:
      accuracy: share of held-out states whose label it gives.
      chance: share of the commonest label.
      control: accuracy of the same probe on labels exchanged between sequences.
      labels: of the classes, in the order of the rows of `direction`.
      direction: of states, along which the logit of a class rises, per unit, `[classes, units]`; with two classes one
        row, of the second.
    """

    accuracy: float
    chance: float
    control: float
    labels: np.ndarray
    direction: np.ndarray


@dataclasses.dataclass(frozen=True)
class UnitProbe:
    """How well one unit and a threshold read a property that is there or not.

    Attributes:
      unit: its number, the one that reads best among all states.
      threshold: of its value.
      above: whether the property is there where the value is above the threshold, or else where it is below.
      accuracy: share of held-out states, where unit and threshold were chosen without them.
      chance: share of the commoner label.
      control: accuracy of the unit chosen for labels exchanged between sequences.
    """

    unit: int
    threshold: float
    above: bool
    accuracy: float
    chance: float
    control: float


def linear_probe(
    states: np.ndarray, labels: np.ndarray, sequences: np.ndarray, *, folds: int = 5, seed: int = 0
) -> LinearProbe:
    """Fits logistic regression to the states, and scores it by cross-validation over sequences.

    Args:
      states: `[N, units]`.
      labels: of the property, `[N]`.
      sequences: which sequence a state belongs to, int `[N]`.
      folds: of the cross-validation, 2 or more.
      seed: of the exchange of labels.

    Raises:
      ValueError: if the arrays do not match, a state is not finite, a label is the only one, or there are fewer
        sequences than folds.
    """
    states, labels, sequences = _checked(states, labels, sequences, folds)

    def fit(train_states: np.ndarray, train_labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return _logistic_regression().fit(train_states, train_labels).predict

    found, direction = linear_direction(states, labels)
    return LinearProbe(
        accuracy=_held_out(fit, states, labels, sequences, folds),
        chance=_chance(labels),
        control=_held_out(fit, states, exchanged(labels, sequences, seed), sequences, folds),
        labels=found,
        direction=direction,
    )


def linear_direction(states: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and direction of logistic regression fitted to all states, as in `LinearProbe`.

    Args:
      states: `[N, units]`.
      labels: `[N]`.
    """
    with _one_thread():
        scaler, regression = _logistic_regression().fit(states, labels)
    return regression.classes_, regression.coef_ / scaler.scale_


def unit_probe(
    states: np.ndarray, present: np.ndarray, sequences: np.ndarray, *, folds: int = 5, seed: int = 0
) -> UnitProbe:
    """Finds the unit and the threshold that read best whether a property is there.

    Args:
      states: `[N, units]`.
      present: whether the property is there, bool `[N]`.
      sequences, folds, seed: as `linear_probe`.

    Raises:
      ValueError: as `linear_probe`.
    """
    states, present, sequences = _checked(states, np.asarray(present, bool), sequences, folds)

    def fit(train_states: np.ndarray, train_present: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        unit, threshold, above = best_unit(train_states, train_present)
        return lambda held_out: (held_out[:, unit] > threshold) == above

    unit, threshold, above = best_unit(states, present)
    return UnitProbe(
        unit=unit,
        threshold=threshold,
        above=above,
        accuracy=_held_out(fit, states, present, sequences, folds),
        chance=_chance(present),
        control=_held_out(fit, states, exchanged(present, sequences, seed), sequences, folds),
    )


def exchanged(labels: np.ndarray, sequences: np.ndarray, seed: int) -> np.ndarray:
    """Returns the labels with those of each sequence given to another one.

    A sequence takes the labels of its donor from the beginning on, and again from the beginning where it is longer: how
    labels follow each other within a sequence stays as it is.

    Args:
      labels: `[N]`.
      sequences: `[N]`.
      seed: of the exchange.
    """
    rows = [np.flatnonzero(sequences == number) for number in np.unique(sequences)]
    donors = np.random.default_rng(seed).permutation(len(rows))
    result = labels.copy()
    for mine, donor in zip(rows, donors):
        result[mine] = np.resize(labels[rows[donor]], len(mine))
    return result


def _logistic_regression() -> Any:
    # A second of import, which only probes need.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=1000))


def _held_out(
    fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]],
    states: np.ndarray,
    labels: np.ndarray,
    sequences: np.ndarray,
    folds: int,
) -> float:
    from sklearn.model_selection import GroupKFold

    right = 0
    with _one_thread():
        for train, test in GroupKFold(folds).split(states, labels, sequences):
            if len(np.unique(labels[train])) == 1:  # nothing to learn from: the answer is the only one seen
                right += int(np.sum(labels[test] == labels[train][0]))
            else:
                right += int(np.sum(fit(states[train], labels[train])(states[test]) == labels[test]))
    return right / len(labels)


def _one_thread() -> Any:
    """Returns a context without threads in products of matrices: these are so small that threads only wait."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def best_unit(states: np.ndarray, present: np.ndarray) -> tuple[int, float, bool]:
    """Returns unit, threshold and side with the most right answers, as in `UnitProbe`.

    Args:
      states: `[N, units]`.
      present: bool `[N]`.
    """
    order = np.argsort(states, axis=0, kind="stable")
    values = np.take_along_axis(states, order, axis=0)
    there = present[order]
    # With the threshold behind the k-th value, those below it answer no: right are the absent below, the present above.
    right = np.cumsum(~there, axis=0) + (present.sum() - np.cumsum(there, axis=0))
    right = np.concatenate([np.full((1, states.shape[1]), present.sum()), right])
    cut = np.concatenate([np.full((1, states.shape[1]), -np.inf), values])  # below all values; at each
    between = np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    possible = np.concatenate([cut[1:] > cut[:-1], np.ones((1, states.shape[1]), bool)])  # not between equal values
    right = np.where(possible, right, present.sum())
    best_above, best_below = right.max(axis=0), len(present) - right.min(axis=0)
    unit = int(np.argmax(np.maximum(best_above, best_below)))
    above = bool(best_above[unit] >= best_below[unit])
    row = int(right[:, unit].argmax() if above else right[:, unit].argmin())
    return unit, float(between[row, unit]), above


def _chance(labels: np.ndarray) -> float:
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _checked(
    states: np.ndarray, labels: np.ndarray, sequences: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states, labels, sequences = np.asarray(states, np.float64), np.asarray(labels), np.asarray(sequences)
    if states.ndim != 2 or labels.shape != states.shape[:1] or sequences.shape != labels.shape:
        raise ValueError(
            f"states of shape {states.shape}, labels of {labels.shape} and sequences of {sequences.shape} do not match;"
            " allowed: [N, units], [N] and [N]."
        )
    if not np.isfinite(states).all():
        row, unit = np.argwhere(~np.isfinite(states))[0]
        raise ValueError(f"states are not finite, first in row {row}, unit {unit}; allowed: finite numbers.")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are the same; allowed: two or more different ones.")
    count = len(np.unique(sequences))
    if not 2 <= folds <= count:
        raise ValueError(f"folds={folds} is out of range; allowed: 2 to the number of sequences, {count}.")
    return states, labels, sequences
