"""English messages of one piece of software and what people made of them in other languages: a demonstration."""

import gettext
import pathlib

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.subwords import build_subwords
from rnn_jax.tasks.translation import Pair, translation

_LONGEST = 100  # characters of a message and of its translation; 7 % of them are longer


def django_translation(languages: str = "de,es,et,fi,fr,it,nl,sv", vocab_size: int = 2000) -> task.Task:
    """Translates a message of Django from English; a token in front of it says into which language.

    "<fi> Password reset confirmation" -> "Salasanan nollauksen vahvistus"

    "tokens" and "labels" are subwords of one vocabulary, byte-pair encoding learned from the training split. The split
    is by the English message: no message of the test split is in the training split, in any language. Messages and
    translations of more than 100 characters are left out, and those left in English.

    What to expect: a demonstration. 800 different messages are far too few to learn to translate; a model learns the
    vocabulary of the domain, names of languages and months, and how a sentence begins in each language. Of one message
    in 60 there are two translations or more, of which the first is taken.

    Args:
      languages: codes of locales of Django, with commas between.
      vocab_size: subwords, single characters and marks of languages among them.

    Raises:
      ValueError: if Django or tokenizers is not installed, or Django has no such language.

    References:
      Django Software Foundation and individual contributors. Django, https://www.djangoproject.com.
    """
    prepared.require("django", "5.2.*", "django_translation")
    chosen = tuple(language.strip() for language in languages.split(","))
    splits: dict[str, list[Pair]] = {split: [] for split in prepared.SPLITS}
    for language in chosen:
        for message, text in read_messages(language).items():
            splits[prepared.split_of(message)].append((f"<{language}> {message}", text))
    plain = [text for source, answer in splits["train"] for text in (source.partition(" ")[2], answer)]
    vocabulary = build_subwords(plain, vocab_size, chosen)
    return translation(
        name="django_translation",
        description=f"Messages of Django, from English into {len(chosen)} languages.",
        source="Django Software Foundation and contributors, the translations of Django, https://www.djangoproject.com",
        license="BSD-3-Clause",
        splits=splits,
        vocabulary=vocabulary,
        answer_vocabulary=vocabulary,
        packages=("numpy", "grain", "django", "tokenizers"),
        exact=False,
    )


def read_messages(language: str) -> dict[str, str]:
    """Returns {English message: translation}, in the order of the messages, from the installed Django.

    Raises:
      ValueError: if there is no such language.
    """
    import django  # here: not everybody has it

    root = pathlib.Path(django.__file__).parent
    paths = sorted(root.rglob(f"locale/{language}/LC_MESSAGES/*.mo")) if language.isidentifier() else []
    if not paths:
        known = sorted(path.parent.name for path in root.glob("conf/locale/*/LC_MESSAGES") if path.parent.name != "en")
        raise ValueError(f"languages has {language!r}, which Django has not; it has: {', '.join(known)}.")
    messages: dict[str, str] = {}
    for path in paths:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # no other way to list it
        for key, translated in catalogue.items():
            if not isinstance(key, str) and key[1] != 0:
                continue  # of the forms of a plural the first
            # What tells uses of a message apart stands before the \x04.
            message = " ".join((key if isinstance(key, str) else key[0]).split("\x04")[-1].split())
            text = " ".join(translated.split())
            if message and text and text != message and max(len(message), len(text)) <= _LONGEST:
                messages.setdefault(message, text)
    return dict(sorted(messages.items()))
