"""Dates as people write them in eight languages, to be written as ISO 8601 does: an exact answer to every source."""

import datetime

import numpy as np

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.generated import check_range, check_sizes
from rnn_jax.tasks.translation import Pair, translation
from rnn_jax.tasks.vocabulary import build_vocabulary

LANGUAGES = ("de", "en", "es", "et", "fi", "fr", "it", "sv")
# "short" has years of two digits, and the order of day and month depends on the language: it is ambiguous.
FORMATS = ("full", "long", "medium")
_FIRST, _LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)


def dates(train_size: int = 14_000, test_size: int = 4000, seed: int = 0) -> task.Task:
    """Dates from 1950 to 2049 in German, English, Spanish, Estonian, Finnish, French, Italian or Swedish, to ISO 8601.

    "samedi 9 mars 2024" -> "2024-03-09";  "9.3.2024" -> "2024-03-09";  "Mar 9, 2024" -> "2024-03-09"

    "tokens" are the characters of a date, 8 to 35 of them, in the full, long or medium format of the locale; "answer"
    the 10 of the ISO date and `END`. The split is by date: no date of the test split is in the training split, in any
    language. No source has two answers. The validation split has half the size of the test split.

    What to expect: the names of months and the order of day, month and year are to be learned, and the day of the week
    to be ignored. The best answer that ignores the source is right in 5 of 4000 cases.

    Args:
      train_size, test_size: how many pairs; different sources, of which there are about 800,000.
      seed: of the draw.

    Raises:
      ValueError: if Babel is not installed, or an argument is out of range.

    References:
      Unicode Consortium, Common Locale Data Repository, https://cldr.unicode.org, by way of Babel,
      https://babel.pocoo.org.
    """
    prepared.require("babel", "2.19.*", "dates")
    check_sizes(train_size, test_size, seed)
    sizes = {"train": train_size, "validation": max(1, test_size // 2), "test": test_size}
    check_range("train_size", train_size, 1, 200_000, "as there are not many more dates to write")
    check_range("test_size", test_size, 1, 50_000, "as there are not many more dates to write")
    splits = draw_dates(sizes, seed)
    return translation(
        name="dates",
        description="A date in one of eight languages, to be written as ISO 8601 does.",
        source="Unicode CLDR by way of Babel, https://babel.pocoo.org",
        license="Unicode-3.0 (data), BSD-3-Clause (Babel)",
        splits=splits,
        vocabulary=build_vocabulary([source for source, _ in splits["train"]]),
        answer_vocabulary=build_vocabulary([answer for _, answer in splits["train"]]),
        packages=("numpy", "grain", "babel"),
        exact=True,
    )


def draw_dates(sizes: dict[str, int], seed: int) -> dict[str, list[Pair]]:
    """Draws different pairs of a written date and the ISO date until each split has its number.

    The hash of the date decides on the split (`prepared.split_of`).

    Args:
      sizes: of "train", "validation" and "test".
      seed: 0 to 2**64 - 1.
    """
    from babel.dates import format_date  # here: not everybody has it

    splits: dict[str, list[Pair]] = {split: [] for split in sizes}
    seen: set[str] = set()
    days = (_LAST - _FIRST).days + 1
    block = 0
    while any(len(splits[split]) < size for split, size in sizes.items()):
        # Raw bits, as numpy keeps only these the same between versions.
        bits = np.random.Philox(key=np.array((seed, block), np.uint64)).random_raw((4096, 3))
        block += 1
        for day, language, form in (bits % np.array([days, len(LANGUAGES), len(FORMATS)], np.uint64)).tolist():
            date = _FIRST + datetime.timedelta(day)
            split = prepared.split_of(date.isoformat())
            if len(splits[split]) == sizes[split]:
                continue
            text = format_date(date, FORMATS[form], locale=LANGUAGES[language])
            if text not in seen:
                seen.add(text)
                splits[split].append((text, date.isoformat()))
    return splits
