r"""What does a trained model see in an image, and where did it look for each word?

Captions images with a run of `experiments.train` whose task is glyphs or images:FILE, such as

    python -m experiments.train --task=glyphs --steps=2400 --batch=64 --schedule=cosine --learning_rate=3e-3 \
        --dropout=0.1 --doubly_stochastic=0.05 --out=runs/glyphs

    python -m experiments.caption --run=runs/glyphs --glyph=ộ                                          (10 s)
    python -m experiments.caption --run=runs/photos --beam=5 my/photo.jpg
    python -m experiments.caption --run=runs/glyphs --evaluate                                         (30 s)

It prints the caption, and draws the image once for each word, with the weight that each place had. --evaluate captions
the test split: BLEU-4, exact match and word overlap, against the caption of the nearest image of the training split,
and against the same model when it is shown noise of the mean and the variance of each image.
"""

import pathlib
import re
import sys

import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments import running
from rnn_jax import tasks
from rnn_jax.models.decoding import attention_map, beam_search, greedy
from rnn_jax.report.captions import draw_caption
from rnn_jax.report.run_report import write_report
from rnn_jax.tasks.captions import CaptionSource, caption_scores, nearest_answers, pixels
from rnn_jax.tasks.glyphs import FACES, letters, render
from rnn_jax.tasks.images import load_image
from rnn_jax.tasks.task import END
from rnn_jax.training import run_directory
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.load import LoadedRun, load_run

_RUN = flags.DEFINE_string("run", None, "Run directory of experiments.train.")
_GLYPH = flags.DEFINE_string("glyph", None, "A letter to caption, of a run of glyphs: ṣ.")
_FACE = flags.DEFINE_enum("face", FACES[0], list(FACES), "The face of --glyph.")
_BEAM = flags.DEFINE_integer("beam", 1, "Captions to keep at each step; 1 is greedy.", lower_bound=1, upper_bound=1000)
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 0.0, "Of beam search: 1 favors long ones.", lower_bound=0.0)
_EVALUATE = flags.DEFINE_bool("evaluate", False, "Caption the test split.")

_BATCH = 256  # images that are captioned together
_NOISE_SEED = 0


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    run = read_run(argv[1:])
    images = read_images(run, argv[1:])
    task = run.make_task() if _EVALUATE.value else None
    for name, image in images.items():
        show(run, name, image)
    if task is not None:
        evaluate(run, task)
    print(f"The report is {write_report(run.run_dir, draw=False)[-1]}.", file=sys.stderr)


def read_run(files: list[str]) -> LoadedRun:
    """Reads the run of --run.

    Raises:
      ValueError: if there is nothing to do, or nothing to do it with.
    """
    if not files and _GLYPH.value is None and not _EVALUATE.value:
        raise ValueError("there is no image to caption; allowed: one or more files, --glyph, or --evaluate.")
    run = load_run(_RUN.value, tasks.Kind.SEQUENCE)
    if run.task.reads_tokens:
        raise ValueError(f"--run={_RUN.value!r} is a run of the task {run.task.name!r}, which sees no images.")
    return run


def read_images(run: LoadedRun, files: list[str]) -> dict[str, np.ndarray]:
    """Returns the images to caption as the model reads them, `[rows, columns, channels]`, by a name for each.

    Raises:
      ValueError: if a file is missing or no image, or the model cannot read what is asked for.
    """
    of_glyphs = run.task.name == "glyphs"
    if _GLYPH.value is not None and not of_glyphs:
        raise ValueError(f"--glyph={_GLYPH.value} is for a run of glyphs, and not of {run.task.name!r}; allowed: none.")
    features = run.task.in_features
    if isinstance(features, int):
        if not files:
            return {}
        raise ValueError(
            f"--run={_RUN.value!r} reads the features of a larger encoder, which {files[0]!r} has not;"
            " allowed: --evaluate."
        )
    images = {}
    if _GLYPH.value is not None:
        if _GLYPH.value not in letters(_FACE.value):
            raise ValueError(f"--glyph={_GLYPH.value} is not in {_FACE.value}; allowed: one of its letters.")
        images[_GLYPH.value] = render(_GLYPH.value, _FACE.value)[..., None]
    for file in files:
        image = load_image(file, features[0], features[1])
        images[pathlib.Path(file).stem] = 255 - image if of_glyphs else image  # a glyph is dark on light
    return {name: pixels(image) for name, image in images.items()}


def caption(run: LoadedRun, images: np.ndarray) -> np.ndarray:
    """Returns the captions of `images [B, ...]` in tokens, int32 `[B, steps]`."""
    steps = run.task.answer_length
    assert steps is not None
    if _BEAM.value == 1:
        return np.asarray(greedy(run.model, jnp.asarray(images), None, steps))
    found, _ = beam_search(
        run.model, jnp.asarray(images), None, beam=_BEAM.value, steps=steps, length_penalty=_LENGTH_PENALTY.value
    )
    return np.asarray(found)[:, 0]


def show(run: LoadedRun, name: str, image: np.ndarray) -> None:
    """Prints the caption of one image, and draws where the model looked."""
    assert run.answer_vocabulary is not None
    tokens = caption(run, image[None])
    text = run.answer_vocabulary.decode(tokens[0])
    print(text)
    words = [run.answer_vocabulary.symbols[token] for token in tokens[0] if token != END]
    weights = np.asarray(attention_map(run.model, jnp.asarray(image[None]), None, jnp.asarray(tokens)))[0]
    slug = re.sub(r"[^\w-]+", "-", name)
    path = run.run_dir / "figures" / f"caption-{slug}.png"
    draw_caption(path, image, words, weights[: len(words)])
    print(f"Where it looked is drawn in {path}.", file=sys.stderr)


def evaluate(run: LoadedRun, task: tasks.Task) -> None:
    """Captions the test split; writes captions.csv, a row an image, and caption_scores.csv, and prints the scores."""
    train, test, vocabulary = task.train, task.test, task.answer_vocabulary
    assert isinstance(train, CaptionSource)
    assert isinstance(test, CaptionSource)
    assert vocabulary is not None
    right: list[list[str]] = [[] for _ in test.images]
    for image, answer in zip(test.image_of, test.answers):
        right[image].append(vocabulary.decode(answer[answer > END]))
    first = np.unique(test.image_of, return_index=True)[1]
    nearest = nearest_answers(train, test)[first]
    random = np.random.default_rng(_NOISE_SEED)
    columns: dict[str, list[str]] = {"model": [], "model shown noise": []}
    for start in range(0, len(right), _BATCH):
        chosen = np.resize(np.arange(start, min(start + _BATCH, len(right))), _BATCH)
        images = pixels(test.images[chosen])
        axes = tuple(range(1, images.ndim))
        mean, deviation = np.mean(images, axis=axes, keepdims=True), np.std(images, axis=axes, keepdims=True)
        noise = (mean + deviation * random.standard_normal(images.shape)).astype(np.float32)
        for name, shown in (("model", images), ("model shown noise", noise)):
            columns[name] += [vocabulary.decode(tokens) for tokens in caption(run, shown)][: len(right) - start]
    columns["nearest neighbor"] = [vocabulary.decode(answer[answer > END]) for answer in nearest]
    scores = [{"captions": name, **caption_scores(given, right)} for name, given in columns.items()]
    rows = [
        {"answers": " | ".join(texts), **{name: columns[name][k] for name in columns}} for k, texts in enumerate(right)
    ]
    decoder = "greedy" if _BEAM.value == 1 else f"beam {_BEAM.value}, length penalty {_LENGTH_PENALTY.value:g}"
    print(f"{task.name}, {len(right)} images of the test split, {decoder}:")
    print(f"  {'':20}{'BLEU-4':>8}{'exact match':>14}{'word overlap':>14}")
    for row in scores:
        print(f"  {row['captions']:20}{row['BLEU-4']:8.1f}{row['exact match']:14.3f}{row['word overlap']:14.3f}")
    print(f"  {'the same words':20}{'':8}{'':14}{task.baseline_score:14.3f}")
    for name, table in (("captions.csv", rows), ("caption_scores.csv", scores)):
        run_directory.save_table(run.run_dir, table, name)
    print(f"The captions are {run.run_dir / 'captions.csv'}.")


if __name__ == "__main__":
    running.run(main, takes_words=True)
