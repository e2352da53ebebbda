"""Any classification of texts or images that tensorflow-datasets knows by name."""

import contextlib
import dataclasses
import difflib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import naming

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.splits import stratified_split
from rnn_jax.tasks.text import text_classification

_PACKAGES = ("numpy", "grain", "tensorflow-datasets", "array-record")
_KEPT_BYTES = 2**30  # of decoded images, for each split
_FINGERPRINTED = 256  # images of each split: to decode all takes longer than many a run

# What to read where a data set says nothing of it, or says too little: texts, joined by a blank, and the label.
_FIELDS = {"ag_news_subset": (("title", "description"), "label"), "trec": (("text",), "label-coarse")}


def tfds_named(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    rows: bool | None = None,
    tokens: str | None = None,
    vocab_size: int | None = None,
    max_length: int | None = None,
    split_seed: int = 0,
) -> task.Task:
    """Says the class of a text or an image of a data set of tensorflow-datasets: "mnist", "glue/sst2", "imdb_reviews".

    A text becomes "tokens", as `text_classification` says; of "ag_news_subset", title and description are read. An
    image of H x W pixels with C channels, all of one size, becomes "xs", divided by 255: [H, W C], a row of pixels a
    step, or [H W, C], a pixel a step. What to read is what the data set calls its supervised keys, or else the only
    image or text and the only class label it has.

    Without a split "test", or one whose labels are kept secret, "validation" is the test split, and without that one a
    tenth of every class of "train". Where nothing is left to validate on, another tenth is that.

    Nothing is downloaded unless asked for. Data that another program has prepared in `data_dir` are read if they are
    array_record or Parquet files, which need no TensorFlow. To prepare them needs it for many data sets, those of
    images above all.

    The baseline answers the commonest class of the training split.

    Args:
      name: of the data set, with a configuration and a version if wanted: "name/configuration:1.0.0".
      data_dir: folder for prepared data; the one of tensorflow-datasets, `~/tensorflow_datasets`, by default.
      download: whether to download and prepare what is not there.
      rows: of images: a row of pixels a step (the default), or a pixel.
      tokens, vocab_size, max_length: of texts, as `text_classification`; tokens are words by default.
      split_seed: of the splits that are drawn.

    Raises:
      ValueError: if there is no such data set, it is no classification of texts or images of one size, it has no
        option of this kind, is not prepared, or cannot be prepared or read here.
    """
    builder = _builder(name, data_dir)
    inputs, label = _fields(name, builder.info)
    is_image = isinstance(builder.info.features[inputs[0]], tfds.features.Image)
    of_texts, of_images = {"tokens": tokens, "vocab_size": vocab_size, "max_length": max_length}, {"rows": rows}
    for option, value in (of_texts if is_image else of_images).items():
        if value is not None:
            kind = "images" if is_image else "texts"
            raise ValueError(f"{option}={value!r} is no option of the task 'tfds:{name}', which reads {kind}.")
    _prepare(name, builder, download)
    common: dict[str, Any] = {
        "name": f"tfds:{name}",
        "source": f"tensorflow-datasets {builder.info.full_name}, {builder.info.homepage}",
        "license": builder.info.redistribution_info.license or "not stated by tensorflow-datasets",
        "class_names": tuple(builder.info.features[label].names),
    }
    if is_image:
        with _quiet():  # the first image decoded logs that there is a faster decoder
            made = _image_task(builder, inputs[0], label, rows is None or rows, split_seed, common)
    else:
        made = _text_task(builder, inputs, label, split_seed, tokens or "word", vocab_size, max_length, common)
    return dataclasses.replace(made, fingerprint={**made.fingerprint, "dataset": builder.info.full_name})


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> tfds.core.DatasetBuilder:
    """Returns the builder of a name, without any use of the network."""
    try:
        with _quiet():
            if naming.parse_builder_name_kwargs(name)[0].namespace:  # a list of these would be downloaded
                raise ValueError("it is a data set of others; allowed: those of tensorflow-datasets itself")
            return tfds.builder(name, data_dir=None if data_dir is None else os.path.expanduser(data_dir))
    except tfds.core.DatasetNotFoundError:
        known = sorted(set(tfds.list_builders(with_community_datasets=False)))
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=5)
        hint = f"near to it: {', '.join(near)}" if near else f"it knows {len(known)}, none of a name near to it"
        raise ValueError(f"tensorflow-datasets knows no data set {name!r}; {hint}.") from None
    except Exception as error:  # each builder runs code of its own
        raise ValueError(f"tfds:{name} cannot be set up here: {_sentence(error)}") from None


def _fields(name: str, info: tfds.core.DatasetInfo) -> tuple[Sequence[str], str]:
    """Returns the names of the features to read: texts or one image, and the label."""
    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    if info.name in _FIELDS:
        return _FIELDS[info.name]
    by_kind = {
        kind: [key for key, feature in features.items() if type(feature) is kind]
        for kind in (tfds.features.Image, tfds.features.Text, tfds.features.ClassLabel)
    }
    images, texts, labels = by_kind.values()
    keys = info.supervised_keys
    if keys is not None and len(keys) == 2 and keys[0] in (*images, *texts) and keys[1] in labels:
        field, label = keys
    elif len(labels) == 1 and len(images or texts) == 1:
        field, label = (images or texts)[0], labels[0]
    else:
        listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise ValueError(
            f"tfds:{name} is no classification of texts or images; needed: one Text or Image and one ClassLabel;"
            f" it has: {listed or 'no features by name'}."
        )
    if field in images and (None in features[field].shape or features[field].np_dtype != np.uint8):
        raise ValueError(
            f"tfds:{name} has images of shape {features[field].shape} and type {np.dtype(features[field].np_dtype)};"
            " allowed: those of one size and type uint8."
        )
    return (field,), label


def _prepare(name: str, builder: tfds.core.DatasetBuilder, download: bool) -> None:
    """Makes sure that prepared data are there, in a format that reads without TensorFlow."""
    with _quiet():
        is_prepared = builder.is_prepared()
    if not is_prepared:
        if not download:
            # tfds.load would try to download for minutes where there is no network.
            raise ValueError(
                f"tfds:{name} is not prepared in {builder.data_dir}; run the same command with --download where there"
                " is a network (and TensorFlow, for many data sets), and copy that folder here if that is elsewhere."
            )
        try:
            with contextlib.redirect_stdout(sys.stderr):  # TFDS announces itself by print; stdout is the caller's
                builder.download_and_prepare(file_format="array_record")
        except ImportError as error:
            raise ValueError(f"to prepare tfds:{name} needs a package that is not installed: {error}") from None
        except Exception as error:  # each builder runs code of its own, and downloads fail in many ways
            raise ValueError(f"tfds:{name} could not be prepared: {_sentence(error)}") from error
    readable = {file_format.value for file_format in tfds.core.FileFormat.with_random_access()}
    found = {file_format.value for file_format in builder.info.available_file_formats()}
    if not readable & found:
        raise ValueError(
            f"tfds:{name} is prepared in {builder.data_dir} as {', '.join(sorted(found))}, which needs TensorFlow;"
            f" where that is installed, run: tfds convert_format --dataset_version_dir={builder.data_dir}"
            " --out_file_format=array_record"
        )


def _text_task(
    builder: tfds.core.DatasetBuilder,
    inputs: Sequence[str],
    label: str,
    split_seed: int,
    tokens: str,
    vocab_size: int | None,
    max_length: int | None,
    common: dict[str, Any],
) -> task.Task:
    def texts_and_labels(split: str) -> tuple[list[str], np.ndarray]:
        examples = _all(builder, split)
        texts = [" ".join(e[key].decode("utf-8", errors="replace") for key in inputs) for e in examples]
        return texts, np.array([e[label] for e in examples], np.int32)

    content = {split: texts_and_labels(split) for split in _split_names(builder)}
    parts = _parts({split: labels for split, (_, labels) in content.items()}, common["class_names"], split_seed)
    splits = {
        part: ([content[split][0][k] for k in numbers], content[split][1][numbers])
        for part, (split, numbers) in parts.items()
    }
    return text_classification(
        description=f"Which of {len(common['class_names'])} classes a text of {builder.info.full_name} is of.",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        packages=_PACKAGES,
        tokens=tokens,
        vocab_size=vocab_size,
        max_length=max_length,
        **common,
    )


def _image_task(
    builder: tfds.core.DatasetBuilder, image: str, label: str, rows: bool, split_seed: int, common: dict[str, Any]
) -> task.Task:
    skip = {image: tfds.decode.SkipDecoding()}
    labels = {
        split: np.array([e[label] for e in _all(builder, split, decoders=skip)], np.int32)
        for split in _split_names(builder)
    }
    parts = _parts(labels, common["class_names"], split_seed)
    height, width, channels = builder.info.features[image].shape
    shape = (height, width * channels) if rows else (height * width, channels)
    of_part = {part: labels[split][numbers] for part, (split, numbers) in parts.items()}
    sources = {
        part: _ImageSource(builder.as_data_source(split=split), numbers, of_part[part], image, shape)
        for part, (split, numbers) in parts.items()
    }
    return task.Task(
        description=f"Which of {len(common['class_names'])} classes an image of {builder.info.full_name} is of, read"
        f" {'row by row' if rows else 'pixel by pixel'}.",
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        kind=task.Kind.ONE_ANSWER,
        seq_len=shape[0],
        in_features=shape[1],
        out_features=len(common["class_names"]),
        loss=task.cross_entropy,
        score=task.accuracy,
        metric="accuracy",
        higher_is_better=True,
        baseline_score=float(np.mean(of_part["test"] == np.bincount(of_part["train"]).argmax())),
        fingerprint=fingerprint(
            sources["train"], sources["test"], _PACKAGES, _FINGERPRINTED, validation=sources["validation"]
        ),
        **common,
    )


class _ImageSource:
    """Some images of a split, decoded when they are first asked for, and kept unless they would take too much memory.

    To decode one takes some 0.2 ms, more than a training step takes for each of its sequences.
    """

    lengths: np.ndarray | None = None

    def __init__(
        self, examples: Sequence[Any], numbers: np.ndarray, labels: np.ndarray, image: str, shape: tuple[int, int]
    ):
        self.examples = examples
        self.numbers = numbers
        self.image = image
        self.shape = shape
        keeps = len(numbers) * np.prod(shape) <= _KEPT_BYTES
        self.kept = np.empty((len(numbers) if keeps else 0, *shape), np.uint8)
        self.is_kept = np.zeros(len(self.kept), bool)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = range(len(self))[index]
        if len(self.kept) and self.is_kept[index]:
            pixels = self.kept[index]
        else:
            pixels = self.examples[int(self.numbers[index])][self.image].reshape(self.shape)
            if len(self.kept):
                self.kept[index] = pixels
                self.is_kept[index] = True
        return {"xs": pixels.astype(np.float32) / np.float32(255), "label": self.labels[index, ...]}


def _split_names(builder: tfds.core.DatasetBuilder) -> list[str]:
    names = [split for split in ("train", "validation", "test") if split in builder.info.splits]
    if "train" not in names:
        raise ValueError(
            f"tfds:{builder.info.full_name} has no split 'train'; it has: {', '.join(sorted(builder.info.splits))}."
        )
    return names


def _parts(
    labels: dict[str, np.ndarray], class_names: Sequence[str], split_seed: int
) -> dict[str, tuple[str, np.ndarray]]:
    """Says which examples of which split to train, validate and test on, as the head of `tfds_named` has it."""
    # A label that is not told is -1.
    labeled = {split: np.flatnonzero(of_split >= 0) for split, of_split in labels.items() if np.any(of_split >= 0)}
    if "train" not in labeled:
        raise ValueError("the split 'train' has no labels; needed: a label for each example to learn from.")
    parts = {"train": ("train", labeled["train"])}
    if "test" in labeled:
        parts |= {split: (split, labeled[split]) for split in ("validation", "test") if split in labeled}
    elif "validation" in labeled:
        parts["test"] = ("validation", labeled["validation"])
    shares = {part: 0.1 for part in ("validation", "test") if part not in parts}
    if shares:
        drawn = stratified_split(labels["train"][labeled["train"]], class_names, shares, split_seed)
        parts |= {part: ("train", labeled["train"][members]) for part, members in drawn.items()}
    return parts


def _all(builder: tfds.core.DatasetBuilder, split: str, **options: Any) -> Sequence[dict[str, Any]]:
    try:
        source = builder.as_data_source(split=split, **options)
        return source.__getitems__(range(len(source)))
    except Exception as error:  # readers of damaged files raise what they like
        raise ValueError(f"the data in {builder.data_dir} cannot be read: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """What an error says, in one line, without the call that TFDS puts in front of it."""
    lines = str(error).split('}": ')[-1].strip().split("\n")
    return f"{lines[0].rstrip('.: ')} ({type(error).__name__})."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what TFDS prints and logs of what is not there; what matters is said in a sentence later."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
