"""How labeled data of the user become classes and splits."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels, in numerical order if all of them are numbers, else in alphabetical order."""
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def stratified_split(
    labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float], split_seed: int
) -> dict[str, np.ndarray]:
    """Draws splits in which every class has its share, and at least one example.

    The draw is the same on every machine and under every version of numpy.

    Args:
      labels: int `[N]`.
      names: of the classes, for messages.
      shares: of the smaller parts, as {"validation": 0.1, "test": 0.1}; all that they leave is "train".
      split_seed: of the draw, 0 to 2**64 - 1.

    Returns:
      the numbers of the examples in "train" and in every part of `shares`, ascending.

    Raises:
      ValueError: if the seed is out of range, or a class has fewer examples than there are parts.
    """
    if not 0 <= split_seed < 2**64:
        raise ValueError(f"split_seed={split_seed} is out of range; allowed: 0 to 2**64 - 1.")
    parts: dict[str, list[np.ndarray]] = {part: [] for part in ("train", *shares)}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        total = len(members)
        if total < len(parts):
            raise ValueError(
                f"the class {names[label]!r} has too few examples to give one to each of {', '.join(parts)}:"
                f" {total}; needed: {len(parts)} or more."
            )
        # Raw bits, as numpy keeps only these the same between versions.
        bits = np.random.Philox(key=np.array((split_seed, label), np.uint64)).random_raw(total)
        members = members[np.argsort(bits, kind="stable")]
        for part, share in shares.items():
            size = max(1, round(share * total))
            parts[part].append(members[:size])
            members = members[size:]
        parts["train"].append(members)
    return {part: np.sort(np.concatenate(members)) for part, members in parts.items()}
