"""What a run does when, and the batches it reads."""

import re

import numpy as np
import pytest

from rnn_jax import tasks
from rnn_jax.training.config import batches_of, evenly, every, widths_of
from tests.training.small_runs import config, make_task, regression


def test_steps_are_chosen_at_an_interval_or_evenly_with_the_first_and_the_last():
    assert every(4, 12) == {4, 8, 12}
    assert every(5, 12) == {5, 10}
    assert every(13, 12) == frozenset()
    assert evenly(4, 10) == {0, 2, 5, 8, 10}
    assert evenly(20, 3) == {0, 1, 2, 3}


def test_a_short_run_reads_batches_of_fewer_widths_also_after_a_resume():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    texts = tasks.RaggedSource({"tokens": [np.full(length, k) for k, length in enumerate(lengths)]})
    task = make_task(texts, in_features=500)
    for steps, count in ((12, 2), (300, 3), (800, 8)):
        batches = batches_of(task, config(steps=steps))
        read = [next(batches) for _ in range(60)]
        assert sorted({batch["tokens"].shape[1] for batch in read}) == list(widths_of(task, config(steps=steps)))
        assert len(widths_of(task, config(steps=steps))) == count
        resumed, state = batches_of(task, config(steps=steps)), batches.get_state()
        resumed.set_state(state)
        np.testing.assert_array_equal(next(resumed)["tokens"], next(batches)["tokens"])
    for batch, by_default in zip(read, tasks.batches(texts, 8, 0)):  # a long run's are what they are without a config
        np.testing.assert_array_equal(batch["tokens"], by_default["tokens"])
    assert widths_of(regression(), config()) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps=0 is out of range; allowed: 1 or more."),
        ({"patience": 0}, "patience=0 is out of range; allowed: 1 or more evaluations, or None."),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore' is unknown; allowed: stop, skip, take."),
        ({"look": "all"}, "look='all' is unknown; allowed: probe, update."),
        ({"eval_at": {4, 13}}, "eval_at has step 13, out of range; allowed: 0 to 12."),
        (
            {"patience": 1, "keep_best": False},
            "patience=1 with keep_best=False would end with a model that is not the best; allowed: keep_best=True.",
        ),
        ({"devices": 0}, "devices=0 is out of range; allowed: 1 or more."),
        (
            {"batch_size": 9, "devices": 2},
            "batch_size=9 cannot be shared out evenly over devices=2; allowed: a multiple of them.",
        ),
    ],
)
def test_an_impossible_plan_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        config(**changes)


def test_texts_that_are_not_there_are_not_augmented():
    with pytest.raises(ValueError, match=r"^crop=0\.5 and token_dropout=0\.0 change texts to be classified, which the"):
        batches_of(regression(), config(crop=0.5))
