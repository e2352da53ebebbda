"""Which list a surname comes from: short words, of which the end says most."""

import collections
import importlib
import os
import unicodedata
from collections.abc import Iterator, Mapping

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.text import text_classification

# Each class is a list of names, or several of one language, as Faker's contributors have chosen them.
LOCALE_LISTS = {
    "az_AZ": ("az_AZ",),
    "cs_CZ": ("cs_CZ",),
    "de": ("de_DE", "de_AT", "de_CH"),
    "en": ("en_US", "en_GB"),
    "en_IN": ("en_IN",),
    "en_KE": ("en_KE",),
    "es": ("es_ES", "es_AR", "es_CL", "es_CO", "es_MX"),
    "et_EE": ("et_EE",),
    "fi_FI": ("fi_FI",),
    "fr": ("fr_FR", "fr_CA"),
    "ga_IE": ("ga_IE",),
    "hr_HR": ("hr_HR",),
    "id_ID": ("id_ID",),
    "is_IS": ("is_IS",),
    "it_IT": ("it_IT",),
    "lv_LV": ("lv_LV",),
    "nl": ("nl_NL", "nl_BE"),
    "sk_SK": ("sk_SK",),
    "sl_SI": ("sl_SI",),
    "sv_SE": ("sv_SE",),
    "tw_GH": ("tw_GH",),
    "uz_UZ": ("uz_UZ",),
    "zu_ZA": ("zu_ZA",),
}


class Surnames(prepared.TextBuilder):
    """Surnames that stand in one only of Faker's lists."""

    def texts(self) -> Mapping[str, list[tuple[str, str]]]:
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in prepared.SPLITS}
        for name, locale_list in read_surnames().items():
            splits[prepared.split_of(name)].append((name, locale_list))
        return splits


def surnames(
    tokens: str = "character",
    vocab_size: int | None = None,
    max_length: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> task.Task:
    """Surnames from 23 lists of one or several locales; say which list it is.

    "tokens" are the letters of a name, 2 to 40 of them and 7 in the median; "label" is 0 to 22. Names in two lists are
    left out. The label is a list that somebody has put together, and says nothing of any bearer of the name. Forms of
    one name (-ov and -ova, Mac and Ni) may stand on both sides of the split, which is by the name.

    What to expect: the commonest class has 13 % of the names. Logistic regression on the TF-IDF of characters gets
    65 % of the test split, on that of 1-3-grams of characters 78 % (`rnn_jax.tasks.text.tfidf_baseline`). The last
    three letters say most of it, so that the task shows variable lengths, and no memory.

    Args:
      tokens, vocab_size, max_length: as `rnn_jax.tasks.text.text_classification`.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
      ValueError: if Faker is not installed, or an argument is out of range.

    References:
      Faker, https://github.com/joke2k/faker, its providers of names of persons.
    """
    prepared.require("faker", "40.54.*", "surnames")
    texts = prepared.load_texts(Surnames, "faker", data_dir)
    class_names = tuple(LOCALE_LISTS)
    train, validation, test = (prepared.labeled(texts[split], class_names) for split in prepared.SPLITS)
    return text_classification(
        name="surnames",
        description=f"Which of {len(class_names)} lists of locales a surname comes from.",
        source="Faker and contributors, https://github.com/joke2k/faker",
        license="MIT",
        train=train,
        validation=validation,
        test=test,
        class_names=class_names,
        packages=("numpy", "grain", "faker", "tensorflow-datasets", "array-record"),
        tokens=tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    )


def read_surnames() -> dict[str, str]:
    """Returns {name: list}, read from the attributes of Faker's providers, as sampling would weight them."""
    owners: dict[str, set[str]] = collections.defaultdict(set)
    for locale_list, locales in LOCALE_LISTS.items():
        for locale in locales:
            provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
            for attribute, pool in vars(provider).items():
                if attribute.startswith("last_name"):
                    for name in _names(pool):
                        owners[unicodedata.normalize("NFC", name.strip())].add(locale_list)
    return {name: next(iter(lists)) for name, lists in sorted(owners.items()) if len(lists) == 1}


def _names(pool: object) -> Iterator[str]:
    """The names in a tuple, a list or a dict from names to weights; a method holds none."""
    if isinstance(pool, tuple | list | dict):
        yield from (name for name in pool if isinstance(name, str))
