"""Probes: what is there is found, what is not is not, and the control says which is which."""

import numpy as np
import pytest

from rnn_jax.flow import readout

SEQUENCES, STEPS, UNITS = 60, 10, 8


@pytest.fixture
def case():
    """States of which unit 5 is high where a property holds; the property is of a sequence from a step on."""
    rng = np.random.default_rng(0)
    sequences = np.repeat(np.arange(SEQUENCES), STEPS)
    begins = rng.integers(2, 8, SEQUENCES)
    steps = np.tile(np.arange(STEPS), SEQUENCES)
    present = (steps >= begins[sequences]) & (sequences % 2 == 0)
    states = rng.normal(size=(len(steps), UNITS))
    states[:, 5] = np.where(present, 1.0, -1.0) + 0.2 * rng.normal(size=len(steps))
    return states, present, sequences


def test_the_unit_that_holds_the_property_is_found_with_its_threshold_and_side(case):
    states, present, sequences = case
    found = readout.unit_probe(states, present, sequences)
    assert (found.unit, found.above) == (5, True)
    assert -0.7 < found.threshold < 0.7
    assert found.accuracy > 0.99
    assert found.chance == pytest.approx(1 - present.mean())
    assert abs(found.control - found.chance) < 0.06
    turned = readout.unit_probe(-states, present, sequences)
    assert (turned.unit, turned.above) == (5, False)
    assert turned.threshold == pytest.approx(-found.threshold)


def test_the_best_unit_is_that_of_all_thresholds_tried_one_by_one():
    rng = np.random.default_rng(1)
    states = np.round(rng.normal(size=(30, 4)), 1)  # with equal values, between which no threshold goes
    present = rng.random(30) < 0.4
    unit, threshold, above = readout.best_unit(states, present)

    def right(unit, threshold, above):
        return np.sum(((states[:, unit] > threshold) == above) == present)

    most = max(
        right(k, value + shift, side) for k in range(4) for value in states[:, k] for shift in (-0.01, 0.01)
        for side in (False, True)
    )  # fmt: skip
    assert right(unit, threshold, above) == most


def test_a_linear_probe_reads_what_no_unit_holds_alone(case):
    states, present, sequences = case
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(UNITS, UNITS)))[0]
    mixed = states @ rotation
    probe = readout.linear_probe(mixed, present, sequences)
    assert probe.accuracy > 0.99 > 0.9 > readout.unit_probe(mixed, present, sequences).accuracy
    direction = probe.direction[0] / np.linalg.norm(probe.direction)
    assert direction @ rotation[5] > 0.95
    assert abs(probe.control - probe.chance) < 0.06


def test_what_is_not_in_the_states_is_read_by_chance(case):
    _, present, sequences = case
    noise = np.random.default_rng(3).normal(size=(len(present), UNITS))
    for probe in (readout.linear_probe, readout.unit_probe):
        found = probe(noise, present, sequences)
        assert abs(found.accuracy - found.chance) < 0.05


def test_exchanged_labels_are_whole_sequences_of_labels():
    labels, sequences = np.array([1, 2, 3, 4, 5, 6]), np.array([0, 0, 0, 1, 1, 2])
    seen = {tuple(readout.exchanged(labels, sequences, seed)) for seed in range(20)}
    assert (4, 5, 4, 1, 2, 6) in seen  # the first two exchanged
    assert all(set(one[:3]) in ({1, 2, 3}, {4, 5}, {6}) for one in seen)


def test_arrays_that_do_not_match_and_one_label_alone_are_refused(case):
    states, present, sequences = case
    for arguments, sentence in (
        ((states[:-1], present, sequences), r"states of shape \(599, 8\), labels of \(600,\)"),
        ((np.where(states > 2, np.nan, states), present, sequences), "states are not finite, first in row"),
        ((states, np.ones_like(present), sequences), "all 600 labels are the same; allowed: two or more"),
        ((states, present, np.zeros_like(sequences)), "folds=5 is out of range; allowed: 2 to the number of seq"),
    ):
        with pytest.raises(ValueError, match=sentence):
            readout.unit_probe(*arguments)
