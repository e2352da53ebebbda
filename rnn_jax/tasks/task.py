"""What a task is: splits of examples, a loss, a score, and the baseline score.

A task is one file beside this one: a function that returns a `Task`, with the functions below as its parts.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnn_jax.tasks.sources import Source
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.vocabulary import PADDING, Vocabulary

# (xs [B, T, *F] or tokens [B, T], lengths [B] if sequences differ) -> ys, [B, out_features] or [B, T, out_features].
# Of a sequence for a sequence: (inputs, lengths or None, answer=[B, U]) -> (logits [B, U, V], penalty [B]). The model
# reads the answer's tokens before each step, and its penalty is added to the loss.
Model = Callable[..., Any]
# The sum over all answers that count, in float32 at least, and how many these are, int32.
Score = tuple[jax.Array, jax.Array]

NOT_ASKED = -1  # in "labels" and "answer": a step whose answer does not count
END = PADDING  # the last token of an answer that is a sequence, and the token before its first


class Kind(enum.StrEnum):
    """What is asked of a sequence. The model and the batches of a task follow from it."""

    ONE_ANSWER = "one answer a sequence"  # "label" or "target"
    ANSWER_A_STEP = "an answer a step"  # "labels" or "targets"
    STREAM = "a stream"  # "labels"; every split is a `StreamSource`, and a model carries its state from batch to batch
    SEQUENCE = "a sequence for a sequence"  # "answer"


class Batch(TypedDict, total=False):
    """B sequences of T steps: numpy arrays, or JAX arrays within a program.

    A batch has one input, one answer, and what its sequences need beside them.

    Attributes:
      xs: input, float32 `[B, T, *F]`, F being the sizes of the feature axes (`Task.in_features`).
      tokens: input, int32 `[B, T]`.
      label: one answer a sequence, the number of a class, int32 `[B]`.
      target: one answer a sequence, numbers, float32 `[B, out_features]`.
      labels: an answer a step, int32 `[B, T]`, `NOT_ASKED` where nothing is asked.
      targets: an answer a step, float32 `[B, T, out_features]`.
      answer: a sequence for a sequence, tokens, int32 `[B, U]`: `END` is the last one, and `NOT_ASKED` stands behind.
      lengths: true steps of each sequence, int32 `[B]`, if they may differ. Padding stands behind the true steps: 0,
        and `NOT_ASKED` in "labels".
      first: of a stream: whether a pass begins, so that there is no state to go on with, bool `[]`.
    """

    xs: Any
    tokens: Any
    label: Any
    target: Any
    labels: Any
    targets: Any
    answer: Any
    lengths: Any
    first: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """What a model must know of its task: enough to build it again without the data.

    Attributes:
      name, kind, reads_tokens, in_features, out_features, answer_length: as in `Task`.
    """

    name: str
    kind: Kind
    reads_tokens: bool
    in_features: int | tuple[int, ...]
    out_features: int
    answer_length: int | None = None


# Compared and hashed as an object: sources hold arrays, and `==` on arrays answers no yes or no.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One thing to learn from sequences.

    Attributes:
      name: what `rnn_jax.tasks.make_task` calls it.
      description: one sentence for a person who reads a plot.
      source: where the data come from, as a citation.
      license: of the data; "" for generated ones.
      train, validation, test: the splits. Training may look at the validation split (to stop, to choose a
        checkpoint), never at the test split; None where none was set apart.
      kind: what is asked of a sequence.
      seq_len: steps in the longest sequence of the training and the validation split. Where the data have sequences
        of different lengths, it is the longest of all splits.
      test_seq_len: steps in the longest sequence of the test split, if that was made longer than the others (or
        shorter); None: as `seq_len`.
      reads_tokens: whether sequences are "tokens", not "xs".
      in_features: F, size of the last axis of "xs", or the sizes of all its feature axes; for tokens, how many there
        are.
      out_features: size of the last axis of what a model returns: classes, tokens, or components of the target.
      loss: `(model, batch) -> scalar`, what training lowers. The model is any callable as `Model` says.
      score: `(model, batch) -> (sum, count)`, the metric summed over all answers of the batch that count, and how many
        these are: a mean over several batches is the sum of their sums over the sum of their counts.
      metric: what the score is called: "accuracy", "mse", "bits per character", ...
      higher_is_better: whether a larger score is a better one.
      baseline_score: the score of the best answer that ignores the input. A curve that does not leave it has
        learned nothing.
      fingerprint: versions of packages and SHA-256 of the content, for the `config.json` of a run.
      class_names: of the classes, in the order of their labels; () if they have none.
      vocabulary: how text becomes tokens; None for other tasks.
      answer_length: U, steps in the longest answer that is a sequence, its `END` among them; None for other tasks.
      answer_vocabulary: how such an answer becomes tokens; None for other tasks.
      references: computes the scores on the test split of simple models that do read the input, by their names. None
        if there are none.
    """

    name: str
    description: str
    source: str
    train: Source
    test: Source
    kind: Kind
    seq_len: int
    in_features: int | tuple[int, ...]
    out_features: int
    loss: Callable[[Model, Batch], jax.Array]
    score: Callable[[Model, Batch], Score]
    metric: str
    higher_is_better: bool
    baseline_score: float
    fingerprint: dict[str, str]
    license: str = ""
    validation: Source | None = None
    test_seq_len: int | None = None
    reads_tokens: bool = False
    class_names: tuple[str, ...] = ()
    vocabulary: Vocabulary | SubwordVocabulary | None = None
    answer_length: int | None = None
    answer_vocabulary: Vocabulary | SubwordVocabulary | None = None
    references: Callable[[], Mapping[str, float]] | None = None

    @property
    def interface(self) -> Interface:
        """What a model must know of it."""
        return Interface(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Interface)})


def cross_entropy(model: Model, batch: Batch) -> jax.Array:
    """Mean of -log p(label), in nats, where the model returns logits: over the batch, or over the steps asked.

    Raises:
      ValueError: if the model returns another shape: outputs at every step for one answer, or the reverse.
    """
    return _mean(*_nats(model, batch))


def answer_cross_entropy(model: Model, batch: Batch) -> jax.Array:
    """Mean of -log p(token), in nats, over all tokens of the answers, and the mean of the model's penalties.

    The model is called with the answer and reads the true tokens before each (teacher forcing).

    Raises:
      ValueError: as `cross_entropy`.
    """
    logits, label, asked, penalty = _answer_logits(model, batch)
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    return _mean(nats, asked) + jnp.mean(_precise(penalty))


def mean_squared_error(model: Model, batch: Batch) -> jax.Array:
    """Mean over batch, true steps (if there is a target for each) and components of (output - target)^2.

    Raises:
      ValueError: if the model returns another shape than the target's.
    """
    return _mean(*_squared_errors(model, batch))


def nats(model: Model, batch: Batch) -> Score:
    """The score whose mean is `cross_entropy`, or of an answer that is a sequence -log p(token) without a penalty.

    Raises:
      ValueError: as `cross_entropy`.
    """
    return _sum_and_count(*_nats(model, batch))


def accuracy(model: Model, batch: Batch) -> Score:
    """Counts the sequences, or the steps asked, whose largest logit is the label's, and how many there are.

    Raises:
      ValueError: as `cross_entropy`.
    """
    logits, label, asked = _logits(model, batch)
    return _sum_and_count(jnp.argmax(logits, axis=-1).astype(label.dtype) == label, asked)


def exact_match(model: Any, batch: Batch) -> Score:
    """Counts the answers that the model, by its method `greedy`, gives token for token, and all answers.

    Args:
      model: `greedy(inputs, lengths, steps)` returns tokens `[B, steps]`, what stands behind `END` being ignored.
      batch: with "answer".
    """
    answer = jnp.asarray(batch["answer"])
    tokens = greedy_answer(model, batch)
    same = (tokens == answer) | (answer == NOT_ASKED)
    return _sum_and_count(jnp.all(same, axis=-1), None)


def squared_error(model: Model, batch: Batch) -> Score:
    """The score whose mean is `mean_squared_error`: it counts sequences or true steps, not components.

    Raises:
      ValueError: as `mean_squared_error`.
    """
    return _sum_and_count(*_squared_errors(model, batch))


def run_model(model: Model, batch: Batch) -> jax.Array:
    """The model's outputs, at least float32 so that a low-precision model is judged in full precision."""
    inputs = _inputs(batch)
    return _precise(jnp.asarray(model(inputs, batch["lengths"]) if "lengths" in batch else model(inputs)))


def greedy_answer(model: Any, batch: Batch) -> jax.Array:
    """Returns what the model's method `greedy` answers to a batch with "answer", int32 of that shape."""
    return model.greedy(_inputs(batch), batch.get("lengths"), jnp.shape(batch["answer"])[-1])


def _inputs(batch: Batch) -> Any:
    return batch["tokens"] if "tokens" in batch else batch["xs"]


def _logits(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns logits `[..., classes]`, labels `[...]`, and which of them count (None: all)."""
    if "answer" in batch:
        return _answer_logits(model, batch)[:3]
    per_step = "labels" in batch
    label = jnp.asarray(batch["labels"] if per_step else batch["label"])
    logits = run_model(model, batch)
    _check_shape(logits, (*label.shape, *logits.shape[-1:]))
    _check_labels("labels" if per_step else "label", label, logits.shape[-1], least=NOT_ASKED if per_step else 0)
    if not per_step:
        return logits, label, None
    asked = label != NOT_ASKED
    return logits, jnp.where(asked, label, jnp.zeros_like(label)), asked


def _answer_logits(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns logits `[B, U, V]`, labels `[B, U]`, which of them count, and penalties `[B]`."""
    answer = jnp.asarray(batch["answer"])
    logits, penalty = model(_inputs(batch), batch.get("lengths"), answer=answer)
    logits = _precise(logits)
    _check_shape(logits, (*answer.shape, *logits.shape[-1:]))
    _check_labels("answer", answer, logits.shape[-1], least=NOT_ASKED)
    asked = answer != NOT_ASKED
    return logits, jnp.where(asked, answer, jnp.zeros_like(answer)), asked, penalty


def _nats(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """Returns -log p(label) `[...]`, and which of them count (None: all)."""
    logits, label, asked = _logits(model, batch)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label), asked


def _squared_errors(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """Returns the mean over components of (output - target)^2, `[...]`, and which of them count (None: all)."""
    per_step = "targets" in batch
    ys = run_model(model, batch)
    target = jnp.asarray(batch["targets"] if per_step else batch["target"], ys.dtype)
    _check_shape(ys, target.shape)
    true_steps = None
    if per_step and "lengths" in batch:
        steps = jnp.arange(ys.shape[1], dtype=jnp.int32)
        true_steps = steps[None, :] < jnp.asarray(batch["lengths"], jnp.int32)[:, None]
    return jnp.mean(optax.losses.squared_error(ys, target), axis=-1), true_steps


def _mean(values: jax.Array, counted: jax.Array | None) -> jax.Array:
    """Mean of values, in float32 at least, over those that count."""
    if counted is None:
        return jnp.mean(_precise(values))
    total, count = _sum_and_count(values, counted)
    return total / jnp.maximum(count.astype(total.dtype), 1)


def _sum_and_count(values: jax.Array, counted: jax.Array | None) -> Score:
    values = _precise(values)
    if counted is None:
        return jnp.sum(values), jnp.asarray(values.size, jnp.int32)
    return jnp.sum(jnp.where(counted, values, jnp.zeros_like(values))), jnp.sum(counted, dtype=jnp.int32)


def _precise(values: jax.Array) -> jax.Array:
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def _check_labels(name: str, label: jax.Array, classes: int, least: int) -> None:
    """Raises ValueError unless all are numbers of classes (where it can be known: not inside `jax.jit`)."""
    if isinstance(label, jax.core.Tracer):
        return
    known = np.asarray(label)
    if known.size and not least <= known.min() <= known.max() < classes:
        wrong = known.min() if known.min() < least else known.max()
        raise ValueError(f"{name} holds {wrong}; allowed: {least} to {classes - 1}, the classes there are.")


def _check_shape(ys: jax.Array, wanted: tuple[int, ...]) -> None:
    if 0 in wanted[:-1]:
        raise ValueError(f"the batch has answers of shape {wanted[:-1]}; allowed: one sequence or more, of some steps.")
    # Outputs of [B, T, 1] against targets of [B, 1] would broadcast, and train.
    if ys.shape != wanted:
        rows = "one row for each sequence, read at the last step" if len(wanted) == 2 else "one row for each step"
        raise ValueError(f"the model returned an array of shape {ys.shape}; the task needs {wanted}, {rows}.")
