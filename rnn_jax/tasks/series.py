"""Series of the user: NumPy files in a folder for each class, or the `.ts` text format of the UCR and UEA archives."""

import dataclasses
import os
import pathlib

import numpy as np

from rnn_jax.tasks import task
from rnn_jax.tasks.fingerprint import fingerprint
from rnn_jax.tasks.sources import ArraySource, RaggedSource, Source
from rnn_jax.tasks.splits import class_names, stratified_split

_VALIDATION = {"validation": 0.1}
_VALIDATION_AND_TEST = {"validation": 0.1, "test": 0.1}


@dataclasses.dataclass(frozen=True)
class _Lot:
    """Labelled series: float64 `[T, F]`, the class of each, and where each stands, for messages."""

    series: list[np.ndarray]
    labels: list[str]
    places: list[str]
    classes: tuple[str, ...] = ()  # that a file announces; () if it does not


def series(path: str | os.PathLike[str], *, split_seed: int = 0) -> task.Task:
    """Says the class of a series of the user, read from a folder of NumPy files or from `.ts` files.

    "xs" is [T, F], and T may differ from series to series. "label" is the number of its class. `path` is one of

    - a folder with a folder for each class, and in that one `.npy` file a series, of shape [T] or [T, F];
    - a folder with `xs.npy` of shape [N, T] or [N, T, F], and `labels.npy` of N whole numbers or strings;
    - a folder with the folders `train` and `test`, and `validation` if wanted, each of them one of these two;
    - `NAME_TRAIN.ts`, with `NAME_TEST.ts` beside it, or the folder of both; or any single `.ts` file.

    Where there is no test split, a tenth of every class is drawn for it, and where there is no validation split, a
    tenth of every class of the training split. Where some class of a given training split has a single series, there is
    no validation split.

    A value missing in a `.ts` file ("?" or "NaN") is interpolated linearly between the known values of its dimension,
    and is that of the nearest one at the ends. Each feature is less its mean over all steps of the training split, and
    divided by its standard deviation there (by 1, if it is constant); both are in the fingerprint.

    The baseline answers the commonest class of the training split.

    Args:
      path: of the folder or file.
      split_seed: of the splits that are drawn.

    Raises:
      ValueError: if there is nothing of this kind at `path`, or something in it is wrong, named by file and line.

    References:
      A. Bagnall et al. (2018). The UEA multivariate time series classification archive. arXiv:1811.00075.
    """
    lots, kind = _read(pathlib.Path(path).expanduser())
    _check(lots)
    classes = lots["train"].classes or class_names(lots["train"].labels)
    if len(set(lots["train"].labels)) < 2:
        raise ValueError(f"{path} has series of one class only, {lots['train'].labels[0]!r}; needed: 2 or more.")
    labels = {split: _numbers(lot, classes) for split, lot in lots.items()}

    parts = {split: (split, np.arange(len(lot.series))) for split, lot in lots.items()}
    if "test" not in lots:
        drawn = stratified_split(labels["train"], classes, _VALIDATION_AND_TEST, split_seed)
    elif "validation" not in lots and np.unique_counts(labels["train"]).counts.min() > 1:
        drawn = stratified_split(labels["train"], classes, _VALIDATION, split_seed)
    else:
        drawn = {}
    parts |= {split: ("train", rows) for split, rows in drawn.items()}

    xs = {split: [lots[lot].series[row] for row in rows] for split, (lot, rows) in parts.items()}
    steps = np.concatenate(xs["train"])
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = steps.mean(axis=0), steps.std(axis=0)
    if not np.all(np.isfinite(mean) & np.isfinite(std)):
        raise ValueError(f"{path} has values so large that their mean or standard deviation overflows.")
    if np.any((std == 0) & (np.ptp(steps, axis=0) > 0)):
        raise ValueError(f"{path} has values so close to each other that their standard deviation underflows.")
    std = np.where(np.ptp(steps, axis=0) == 0, 1.0, std)  # rounding may give a constant some deviation
    seq_lens = {len(x) for of_split in xs.values() for x in of_split}
    sources: dict[str, Source] = {}
    for split, (lot, rows) in parts.items():
        normalized = [_normalized(x, mean, std, lots[lot].places[row]) for x, row in zip(xs[split], rows)]
        label = labels[lot][rows]
        if len(seq_lens) > 1:
            sources[split] = RaggedSource({"xs": normalized}, label=label)
        else:
            sources[split] = ArraySource(xs=np.stack(normalized), label=label)
    train_label, test_label = (labels[parts[split][0]][parts[split][1]] for split in ("train", "test"))
    return task.Task(
        name=f"series:{path}",
        description=f"Which of {len(classes)} classes a series of {pathlib.Path(path).name} is of.",
        source=f"{path} ({kind})",
        license="the user's own data",
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources["test"],
        kind=task.Kind.ONE_ANSWER,
        seq_len=max(seq_lens),
        in_features=len(mean),
        out_features=len(classes),
        loss=task.cross_entropy,
        score=task.accuracy,
        metric="accuracy",
        higher_is_better=True,
        baseline_score=float(np.mean(test_label == np.bincount(train_label).argmax())),
        fingerprint=fingerprint(
            sources["train"], sources["test"], ("numpy", "grain"), validation=sources.get("validation")
        )
        | {"feature_mean": " ".join(map(repr, mean.tolist())), "feature_std": " ".join(map(repr, std.tolist()))},
        class_names=classes,
    )


def _normalized(x: np.ndarray, mean: np.ndarray, std: np.ndarray, place: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        normalized = ((x - mean) / std).astype(np.float32)
    if not np.all(np.isfinite(normalized)):
        raise ValueError(
            f"{place}: {np.abs(x).max():g} is too far from the mean of the training split, in units of its standard"
            " deviation; allowed: what float32 holds."
        )
    return normalized


def _read(path: pathlib.Path) -> tuple[dict[str, _Lot], str]:
    """The splits that stand at a path, "train" at least, and the name of their format."""
    if path.is_file():
        if path.suffix != ".ts":
            raise ValueError(f"{path} is no series; allowed: a folder of NumPy files, or a file that ends in .ts.")
        return _read_ts_pair(path), "UCR/UEA .ts format"
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}.")
    ts_files = sorted(path.glob("*.ts"))
    if ts_files:
        first = [file for file in ts_files if not file.stem.endswith("_TEST")] or ts_files
        if len(first) > 1:
            names = ", ".join(file.name for file in first)
            raise ValueError(f"{path} holds several data sets; give the path of one of its files: {names}.")
        return _read_ts_pair(first[0]), "UCR/UEA .ts format"
    if not (path / "train").is_dir():
        return {"train": _read_numpy(path)}, "NumPy files"
    if not (path / "test").is_dir():
        raise ValueError(f"{path} has a folder 'train' and none called 'test'; needed: both, or neither.")
    splits = [split for split in ("train", "validation", "test") if (path / split).is_dir()]
    return {split: _read_numpy(path / split) for split in splits}, "NumPy files"


def _check(lots: dict[str, _Lot]) -> None:
    """Raises ValueError unless all series of all splits have one number of features and finite values."""
    first_place, first = lots["train"].places[0], lots["train"].series[0]
    for lot in lots.values():
        for x, place in zip(lot.series, lot.places):
            if len(x) == 0:
                raise ValueError(f"{place}: the series is empty.")
            if x.shape[1] != first.shape[1]:
                raise ValueError(
                    f"{place}: the series has {x.shape[1]} features, and that of {first_place} has {first.shape[1]}."
                )
            if not np.all(np.isfinite(x)):
                step, feature = np.argwhere(~np.isfinite(x))[0]
                raise ValueError(f"{place}: the value at step {step}, feature {feature}, is {x[step, feature]}.")


def _numbers(lot: _Lot, classes: tuple[str, ...]) -> np.ndarray:
    number = {name: k for k, name in enumerate(classes)}
    for label, place in zip(lot.labels, lot.places):
        if label not in number:
            raise ValueError(f"{place}: the class {label!r} is not in the training split; it has: {_listed(classes)}.")
    return np.array([number[label] for label in lot.labels], np.int32)


def _listed(names: tuple[str, ...]) -> str:
    """At most ten names, for a message."""
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _read_numpy(folder: pathlib.Path) -> _Lot:
    if (folder / "xs.npy").is_file():
        return _read_arrays(folder / "xs.npy", folder / "labels.npy")
    files = [
        (file, class_folder.name)
        for class_folder in sorted(folder.iterdir())
        if class_folder.is_dir() and not class_folder.name.startswith(".")
        for file in sorted(class_folder.glob("*.npy"))
    ]
    if not files:
        raise ValueError(
            f"{folder} holds no series; needed: a folder of .npy files for each class, or xs.npy and labels.npy."
        )
    lot = _Lot([], [], [])
    for file, label in files:
        x = _load(file)
        if x.ndim not in (1, 2):
            raise ValueError(f"{file}: the array has shape {x.shape}; needed: [T] or [T, F].")
        lot.series.append(_with_features(x, 2))
        lot.labels.append(label)
        lot.places.append(str(file))
    return lot


def _read_arrays(xs_file: pathlib.Path, labels_file: pathlib.Path) -> _Lot:
    if not labels_file.is_file():
        raise ValueError(f"{xs_file} has no labels.npy beside it.")
    xs, labels = _load(xs_file), _load(labels_file, "whole numbers or strings", "iuU")
    if xs.ndim not in (2, 3):
        raise ValueError(f"{xs_file}: the array has shape {xs.shape}; needed: [N, T] or [N, T, F].")
    if len(xs) == 0 or labels.shape != xs.shape[:1]:
        raise ValueError(f"{labels_file}: the array has shape {labels.shape}, for {len(xs)} series.")
    places = [f"{xs_file}, row {row}" for row in range(len(xs))]
    return _Lot(list(_with_features(xs, 3)), [str(label) for label in labels], places)


def _load(file: pathlib.Path, allowed: str = "real numbers", kinds: str = "biuf") -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no .npy file of plain numbers or strings: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        raise ValueError(f"{file} holds {getattr(array, 'dtype', 'several arrays')}; allowed: {allowed}.")
    return array


def _with_features(array: np.ndarray, ndim: int) -> np.ndarray:
    array = array.astype(np.float64)
    return array if array.ndim == ndim else array[..., None]


def _read_ts_pair(file: pathlib.Path) -> dict[str, _Lot]:
    """A file and, if its name says that it is one of two, the other."""
    for suffix in ("_TRAIN", "_TEST"):
        if file.stem.endswith(suffix):
            problem = file.stem.removesuffix(suffix)
            pair = {split: file.with_name(f"{problem}_{split.upper()}.ts") for split in ("train", "test")}
            for member in pair.values():
                if not member.is_file():
                    raise ValueError(f"{file} has no {member.name} beside it.")
            return {split: _read_ts(member) for split, member in pair.items()}
    return {"train": _read_ts(file)}


def _read_ts(file: pathlib.Path) -> _Lot:
    # Bytes that are not UTF-8 may stand in comments; elsewhere they make a bad number or an unknown class.
    if not file.is_file():
        raise ValueError(f"{file} is no file; allowed: a .ts file.")
    lines = iter(enumerate(file.read_text(encoding="utf-8-sig", errors="replace").split("\n"), start=1))
    header = _read_ts_header(file, lines)
    classes = tuple(header["classlabel"][1:])
    lot = _Lot([], [], [], classes)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        place = f"{file}, line {number}"
        *dimensions, label = (part.strip() for part in line.split(":"))
        if not dimensions:
            raise ValueError(f"{place}: there is no ':' between values and class.")
        if label not in classes:
            raise ValueError(f"{place}: the class {label!r} is not in @classLabel; it has: {_listed(classes)}.")
        columns = [_ts_values(place, k, text) for k, text in enumerate(dimensions, start=1)]
        for k, column in enumerate(columns, start=1):
            if len(column) != len(columns[0]):
                raise ValueError(
                    f"{place}: dimension {k} has {len(column)} values, and dimension 1 has {len(columns[0])}."
                )
        if header.get("dimensions", [str(len(columns))]) != [str(len(columns))]:
            raise ValueError(
                f"{place}: the series has {len(columns)} dimensions; @dimensions says {' '.join(header['dimensions'])}."
            )
        if header.get("univariate") == ["true"] and len(columns) > 1:
            raise ValueError(f"{place}: the series has {len(columns)} dimensions; @univariate says 1.")
        if header.get("equallength") == ["true"] and lot.series and len(columns[0]) != len(lot.series[0]):
            raise ValueError(
                f"{place}: the series has {len(columns[0])} steps, and that of {lot.places[0]} has"
                f" {len(lot.series[0])}; @equalLength says that all have the same."
            )
        lot.series.append(np.stack(columns, axis=1))
        lot.labels.append(label)
        lot.places.append(place)
    if not lot.series:
        raise ValueError(f"{file} has no series behind @data.")
    return lot


def _read_ts_header(file: pathlib.Path, lines) -> dict[str, list[str]]:
    """Reads up to and with the line "@data"; returns the words behind every @keyword, by its lower-case name."""
    header: dict[str, list[str]] = {}
    for number, line in lines:
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if not words[0].startswith("@"):
            raise ValueError(f"{file}, line {number}: there is neither @keyword nor #comment, and no @data above.")
        keyword, values = words[0][1:].lower(), words[1:]
        if values and values[0].lower() in ("true", "false"):
            values[0] = values[0].lower()
        if keyword == "timestamps" and values[:1] != ["false"]:
            raise ValueError(
                f"{file}, line {number}: series with time stamps are not read; allowed: @timeStamps false."
            )
        if keyword == "data":
            break
        header[keyword] = values
    else:
        raise ValueError(f"{file} has no line @data.")
    values = header.get("classlabel", [])
    if values[:1] != ["true"] or len(values) < 2:
        raise ValueError(f"{file} has no classes; needed: a line @classLabel true, with their names behind it.")
    return header


def _ts_values(place: str, dimension: int, text: str) -> np.ndarray:
    """The values of one dimension, float64 `[T]`, missing ones interpolated."""
    if not text:
        raise ValueError(f"{place}: dimension {dimension} is empty.")
    column = np.empty(text.count(",") + 1)
    for step, word in enumerate(text.split(",")):
        try:
            column[step] = np.nan if word.strip() == "?" else float(word)
        except ValueError:
            column[step] = np.inf
        if np.isinf(column[step]):
            raise ValueError(f"{place}: {word!r}, value {step + 1} of dimension {dimension}, is no finite number.")
    missing = np.isnan(column)
    if missing.all():
        raise ValueError(f"{place}: all values of dimension {dimension} are missing.")
    steps = np.arange(len(column))
    column[missing] = np.interp(steps[missing], steps[~missing], column[~missing])
    return column
