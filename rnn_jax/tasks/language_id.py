"""Which language a message is in: human translations of one piece of software, in 20 languages of one alphabet."""

import collections
import gettext
import os
import pathlib
import re
from collections.abc import Mapping

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.text import text_classification

# All in Latin letters, so that letters alone do not tell; Czech and Slovak, or Danish and Norwegian, are hard to tell.
LANGUAGES = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "es": "Spanish",
    "et": "Estonian",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "nb": "Norwegian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "sk": "Slovak",
    "sv": "Swedish",
    "tr": "Turkish",
}
_SHORTEST = 10  # characters; shorter ones are names and abbreviations
_PLACEHOLDER = re.compile(r"%(\(\w+\))?[-+#0]*\d*(\.\d+)?[a-zA-Z]|\{\w*\}")


class LanguageId(prepared.TextBuilder):
    """Messages of Django in 20 languages, split by the English message that they translate."""

    def texts(self) -> Mapping[str, list[tuple[str, str]]]:
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in prepared.SPLITS}
        for text, (language, message) in read_translations().items():
            splits[prepared.split_of(message)].append((text, language))
        return splits


def language_id(
    tokens: str = "character",
    vocab_size: int | None = None,
    max_length: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> task.Task:
    """The messages of Django in 20 languages; say which language it is.

    "tokens" are the characters of a message, 10 to about 400 of them and 25 in the median, without placeholders;
    "label" is 0 to 19. The split is by the English message: no translation of a test message is in the training
    split. A text is left out if two languages share it, or if it is left in English.

    What to expect: the commonest class has 5.6 % of the messages. Logistic regression on the TF-IDF of characters gets
    73 % of the test split, on that of 1-3-grams of characters 93 % (`rnn_jax.tasks.text.tfidf_baseline`).

    Args:
      tokens, vocab_size, max_length: as `rnn_jax.tasks.text.text_classification`.
      data_dir: folder for prepared data; None is `rnn_jax/tfds` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Raises:
      ValueError: if Django is not installed, or an argument is out of range.

    References:
      Django Software Foundation and individual contributors. Django, https://www.djangoproject.com.
    """
    prepared.require("django", "5.2.*", "language_id")
    texts = prepared.load_texts(LanguageId, "django", data_dir)
    codes = tuple(LANGUAGES)
    train, validation, test = (prepared.labeled(texts[split], codes) for split in prepared.SPLITS)
    return text_classification(
        name="language_id",
        description="Which of 20 languages a message is in.",
        source="Django Software Foundation and contributors, the translations of Django, https://www.djangoproject.com",
        license="BSD-3-Clause",
        train=train,
        validation=validation,
        test=test,
        class_names=tuple(LANGUAGES.values()),
        packages=("numpy", "grain", "django", "tensorflow-datasets", "array-record"),
        tokens=tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    )


def read_translations() -> dict[str, tuple[str, str]]:
    """Returns {text: (language, English message)}, read from the compiled catalogues of the installed Django."""
    import django  # here: not everybody has it

    owners: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
    for path in sorted(pathlib.Path(django.__file__).parent.rglob("locale/*/LC_MESSAGES/*.mo")):
        language = path.parent.parent.name
        if language not in LANGUAGES:
            continue
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # no other way to list it
        for key, translation in catalogue.items():
            # The forms of a plural have the key (message, number); what tells uses apart stands before the \x04.
            message = (key if isinstance(key, str) else key[0]).split("\x04")[-1]
            text = _without_placeholders(translation)
            if message and len(text) >= _SHORTEST and text != _without_placeholders(message):
                owners[text].add((language, message))
    return {text: min(pairs) for text, pairs in sorted(owners.items()) if len({language for language, _ in pairs}) == 1}


def _without_placeholders(message: str) -> str:
    return " ".join(_PLACEHOLDER.sub(" ", message).split())
