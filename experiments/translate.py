r"""What does a trained model make of a text, and where did it look?

Translates with a run of `experiments.train` whose task is dates, django_translation or pairs:FILE.

    python -m experiments.translate --run=runs/dates "samedi 9 mars 2024"                              (15 s)
    python -m experiments.translate --run=runs/django --language=fi --beam=5 --length_penalty=1 "Change password"
    python -m experiments.translate --run=runs/dates --evaluate                                        (a minute)

It prints the translation, and draws how much weight each of its tokens gave to each token of the source. --evaluate
translates the test split: exact match, chrF and BLEU, and the score against the length of the source.
"""

import re
import sys
import unicodedata

import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments import running
from rnn_jax import tasks
from rnn_jax.models.decoding import attention_map, beam_search, greedy
from rnn_jax.report import translation as report
from rnn_jax.report.run_report import write_report
from rnn_jax.tasks.subwords import SubwordVocabulary
from rnn_jax.tasks.task import END
from rnn_jax.tasks.translation import corpus_scores
from rnn_jax.tasks.vocabulary import UNKNOWN, Vocabulary
from rnn_jax.training import run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.load import LoadedRun, load_run

_RUN = flags.DEFINE_string("run", None, "Run directory of experiments.train.")
_BEAM = flags.DEFINE_integer("beam", 1, "Translations kept at each step; 1 is greedy.", lower_bound=1, upper_bound=1000)
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 0.0, "Of beam search: 1 favors long ones.", lower_bound=0.0)
_LANGUAGE = flags.DEFINE_string("language", None, "To translate into, for a model of several languages: fi.")
_EVALUATE = flags.DEFINE_bool("evaluate", False, "Translate the test split.")

_BATCH = 64  # sources that are translated together


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    texts = argv[1:]
    run = read_run(texts)
    sources = [encode(run, text) for text in texts]
    task = run.make_task() if _EVALUATE.value else None
    for text, tokens in zip(texts, sources):
        show(run, text, tokens)
    if task is not None:
        evaluate(run, task)
    print(f"The report is {write_report(run.run_dir, draw=False)[-1]}.", file=sys.stderr)


def read_run(texts: list[str]) -> LoadedRun:
    """Reads the run of --run.

    Raises:
      ValueError: if there is nothing to do, or nothing to do it with.
    """
    if not texts and not _EVALUATE.value:
        raise ValueError("there is no text to translate; allowed: one or more texts in quotes, or --evaluate.")
    run = load_run(_RUN.value, tasks.Kind.SEQUENCE)
    if not run.task.reads_tokens:
        raise ValueError(f"--run={_RUN.value!r} is a run of the task {run.task.name!r}, which reads no text.")
    return run


def encode(run: LoadedRun, text: str) -> np.ndarray:
    """Returns the tokens of a source, int32 `[T]`.

    Raises:
      ValueError: if the text is empty, has characters that the model has not seen, or --language is not as the model
        needs it.
    """
    vocabulary = vocabulary_of(run)
    if not text.strip():
        raise ValueError(f"the text {text!r} is empty; allowed: one or more characters.")
    languages = vocabulary.languages if isinstance(vocabulary, SubwordVocabulary) else ()
    if (_LANGUAGE.value is not None or languages) and _LANGUAGE.value not in languages:
        given = " is missing" if _LANGUAGE.value is None else f"={_LANGUAGE.value!r} is not what the model writes"
        raise ValueError(f"--language{given}; allowed: {', '.join(languages) or 'none'}.")
    tokens = vocabulary.encode(text)
    if UNKNOWN in tokens:
        pieces = re.findall(r"\w+|[^\w\s]", text) if vocabulary.kind == "word" else unicodedata.normalize("NFC", text)
        unknown = [piece for piece in dict.fromkeys(pieces) if UNKNOWN in vocabulary.encode(piece)]
        what = "words" if vocabulary.kind == "word" else "characters"
        raise ValueError(
            f"the text {text!r} has {what} that no source of the training split has:"
            f" {' '.join(map(repr, unknown))}; allowed: those it has."
        )
    return tokens if _LANGUAGE.value is None else np.append(vocabulary.encode(f"<{_LANGUAGE.value}>"), tokens)


def vocabulary_of(run: LoadedRun) -> Vocabulary | SubwordVocabulary:
    assert run.vocabulary is not None  # the task reads tokens
    return run.vocabulary


def answers_of(run: LoadedRun) -> Vocabulary | SubwordVocabulary:
    assert run.answer_vocabulary is not None
    return run.answer_vocabulary


def translate(run: LoadedRun, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the answers `[B, K, steps]`, the best first, and of beam search their scores `[B, K]`.

    Args:
      run: with the model.
      tokens: sources, int32 `[B, T]`.
      lengths: of them, int32 `[B]`.
    """
    inputs, steps = (jnp.asarray(tokens), jnp.asarray(lengths)), run.task.answer_length
    assert steps is not None
    if _BEAM.value == 1:
        return np.asarray(greedy(run.model, *inputs, steps))[:, None], None
    found, scores = beam_search(run.model, *inputs, beam=_BEAM.value, steps=steps, length_penalty=_LENGTH_PENALTY.value)
    return np.asarray(found), np.asarray(scores)


def show(run: LoadedRun, text: str, tokens: np.ndarray) -> None:
    """Prints the translation of one text, all of the beam if there is one, and draws the attention map."""
    vocabulary, answers = vocabulary_of(run), answers_of(run)
    lengths = np.array([len(tokens)], np.int32)
    found, scores = translate(run, tokens[None], lengths)
    if scores is None:
        print(answers.decode(found[0, 0]))
    else:
        for answer, score in zip(found[0], scores[0]):
            if np.isfinite(score):
                print(f"{score:8.3f}  {answers.decode(answer)}")
    if run.model.attention == "none":
        print("(no attention map: the model has no attention)", file=sys.stderr)
        return
    best = found[0, 0]
    weights = np.asarray(attention_map(run.model, jnp.asarray(tokens[None]), jnp.asarray(lengths), found[:, 0]))[0]
    count = min(len(best), int(np.argmax(best == END)) + 1 if END in best else len(best))
    path = run.run_dir / "figures" / f"attention-{slug(text)}.png"
    report.draw_attention(
        path,
        weights[:count],
        [vocabulary.symbols[token] for token in tokens],
        ["end" if token == END else answers.symbols[token] for token in best[:count]],
    )
    print(f"The attention map is {path}.", file=sys.stderr)


def slug(text: str) -> str:
    """Returns a text as a part of a file's name."""
    return re.sub(r"\W+", "-", text).strip("-")[:40] or "text"


def evaluate(run: LoadedRun, task: tasks.Task) -> None:
    """Translates the test split; writes translations.csv, a row a source, and prints the scores."""
    vocabulary, answers = vocabulary_of(run), answers_of(run)
    rows: list[dict[str, object]] = []
    # By length, so that little is padding, and in one width, so that one program does for all.
    order = np.argsort(np.asarray(task.test.lengths), kind="stable")
    for start in range(0, len(order), _BATCH):
        chosen = np.resize(order[start : start + _BATCH], _BATCH)
        batch = tasks.collate([task.test[int(number)] for number in chosen], ragged=True, width=task.seq_len)
        found, _ = translate(run, batch["tokens"], batch["lengths"])
        for k in range(min(_BATCH, len(order) - start)):
            answer, given = batch["answer"][k], found[k, 0]
            source = vocabulary.decode(batch["tokens"][k])
            texts = {"source": source, "answer": answers.decode(answer[answer > END]), "given": answers.decode(given)}
            same = bool(np.all((given == answer) | (answer < 0)))
            rows.append({"length": int(batch["lengths"][k]), "exact": int(same), **texts})
    path = run_directory.save_table(run.run_dir, rows, "translations.csv")
    by_length = report.by_length(rows)
    print(f"{task.name}, {len(rows)} sources of the test split, {decoder_name()}:")
    print(f"  exact match   {np.mean([row['exact'] for row in rows]):.4f}")
    for name, value in corpus_scores([str(row["given"]) for row in rows], [str(row["answer"]) for row in rows]).items():
        print(f"  {name:14}{value}")
    print("  by length of the source, in tokens:")
    for part in by_length:
        scores = f"exact match {part.exact:.3f}, chrF {part.chrf:5.1f}, {part.count} sources"
        print(f"    {part.shortest:3} to {part.longest:3}: {scores}")
    print(f"The translations are {path}.")


def decoder_name() -> str:
    if _BEAM.value == 1:
        return "greedy"
    return f"beam {_BEAM.value}, length penalty {_LENGTH_PENALTY.value:g}"


if __name__ == "__main__":
    running.run(main, takes_words=True)
