"""Which pronoun takes up the subject of a sentence? Gender and number, carried past names that say otherwise."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rnn_jax.tasks import prepared, task
from rnn_jax.tasks.generated import TEST, TRAIN, VALIDATION, check_range, check_sizes
from rnn_jax.tasks.text import text_classification

PRONOUNS = ("she", "he", "they")

_LISTS = {
    "WOMAN": "alice anna beth clara diana emma fiona grace hannah irene julia kate laura mary nina olivia paula rosa"
    " sarah tina vera wendy yvonne zoe",
    "MAN": "adam bill carl david eric frank george henry ivan jack kevin leo mark nick oscar paul ralph sam tom victor"
    " walter xavier yusuf zack",
    "NOUN": "dog dogs horse horses doctor doctors teacher teachers neighbor neighbors driver drivers baker bakers",
    # Past tense throughout: "who meets" would say that the subject is one person.
    "VERB": "met saw called thanked followed helped visited remembered",
    "PLACE": "near behind beside with",
    "ADVERB": "yesterday again quietly there",
}
_WORDS = {slot: tuple(words.split()) for slot, words in _LISTS.items()}
_WORDS["NAME"] = _WORDS["WOMAN"] + _WORDS["MAN"]
_BETWEEN = (
    ("ADVERB",),
    ("PLACE", "NAME"),
    ("PLACE", "the", "NOUN"),
    ("who", "VERB", "NAME"),
    ("who", "VERB", "the", "NOUN"),
    ("who", "VERB", "NAME", "and", "NAME"),
)
_OPENINGS = ((), ("today",), ("last", "week"), ("in", "the", "evening"))
_QUESTION = ("said", "that")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence up to the pronoun.

    Attributes:
      words: of it, "said that" being the last two.
      subject: where the subject begins and ends: words[subject[0] : subject[1]].
      answer: number of the pronoun in `PRONOUNS`.
    """

    words: tuple[str, ...]
    subject: tuple[int, int]
    answer: int

    @property
    def distance(self) -> int:
        """How many words stand between the subject and the pronoun."""
        return len(self.words) - self.subject[1]


def agreement(
    distance: int = 15,
    test_distance: int = 20,
    train_size: int = 20_000,
    test_size: int = 3_000,
    seed: int = 0,
) -> task.Task:
    """Agreement of a pronoun with a subject of one or two persons, far before it.

    "tokens" are the words of a sentence that stops before its pronoun, "label" is 0 for "she", 1 for "he", 2 for
    "they":

        alice near the dogs said that                               she
        today tom who met mary and paula yesterday said that        he
        in the evening anna and carl with tom said that             they

    Names, nouns, relative clauses and the words between subject and pronoun are drawn without regard to the subject, so
    that they do not tell the answer: a name behind the subject is a woman's, a man's or part of a pair as often as not.
    The number of words between is uniform on 2 to `distance` (2 to `test_distance` in the test split). The three
    answers are equally frequent, and the two persons of a pair are any two.

    The split is by names. Two names that are a subject in the test split are together the subject of no training
    sentence. A single subject of the test split is not followed, in a training sentence, by the same nearest name. The
    gender of a single name has to be seen: no name is unknown in the test split.

    The lesson's question to a recurrent network: "Alice" raises a flag for a woman, "and Tom" one for the plural.
    Sentences of this form, with the number of the subject far from what agrees with it, are those of Linzen et al.

    Args:
      distance: of the training and the validation split, words at most, 2 or more.
      test_distance: of the test split.
      train_size, test_size: sentences; the validation split has half the size of the test split.
      seed: of the draw, 0 to 2**64 - 1.

    Raises:
      ValueError: if an argument is out of range.

    References:
      T. Linzen, E. Dupoux, Y. Goldberg (2016). Assessing the ability of LSTMs to learn syntax-sensitive dependencies.
        arXiv:1611.01368.
      Y. Lakretz et al. (2019). The emergence of number and syntax units in LSTM language models. arXiv:1903.07435.
    """
    check_sizes(train_size, test_size, seed)
    reason = "the words 'said that' among them"
    check_range("distance", distance, 2, 1000, reason)
    check_range("test_distance", test_distance, 2, 1000, reason)
    check_range("train_size", train_size, 3, 1_000_000)
    check_range("test_size", test_size, 3, 1_000_000)
    plan = {
        "train": (TRAIN, train_size, distance),
        "validation": (VALIDATION, max(3, test_size // 2), distance),
        "test": (TEST, test_size, test_distance),
    }
    splits: dict[str, Any] = {}
    for split, (number, size, longest) in plan.items():
        sentences = draw_sentences(split, size, longest, (seed, number))
        labels = np.array([sentence.answer for sentence in sentences], np.int32)
        splits[split] = ([" ".join(sentence.words) for sentence in sentences], labels)
    return text_classification(
        name="agreement",
        description="The pronoun that takes up a subject of one or two persons, she, he or they.",
        source="Generated; after Linzen et al. 2016, arXiv:1611.01368",
        license="",
        class_names=PRONOUNS,
        packages=("numpy", "grain"),
        tokens="word",
        **splits,
    )


def draw_sentences(split: str, size: int, distance: int, key: tuple[int, int]) -> list[Sentence]:
    """Draws sentences whose names belong to a split.

    Args:
      split: "train", "validation" or "test".
      size: how many; answers follow each other in turn.
      distance: the largest number of words between subject and pronoun, 2 or more.
      key: of the random numbers.
    """
    bits = _random_integers(key)
    sentences: list[Sentence] = []
    while len(sentences) < size:
        sentence = _draw_sentence(bits, len(sentences) % len(PRONOUNS), distance)
        if _split_of(_names_of(sentence)) == split:
            sentences.append(sentence)
    return sentences


def find_subject(words: Sequence[str]) -> tuple[int, int] | None:
    """Returns where the subject begins and ends, words[start:stop]: the first name, or two with "and" between them.

    None where there is no name.
    """
    for start, word in enumerate(words):
        if word in _WORDS["NAME"]:
            is_pair = len(words) > start + 2 and words[start + 1] == "and"
            return start, start + (3 if is_pair else 1)
    return None


def is_woman(name: str) -> bool:
    """Whether a name of this task is a woman's."""
    return name in _WORDS["WOMAN"]


def _draw_sentence(bits: Iterator[int], answer: int, distance: int) -> Sentence:
    def choose(options: Sequence[Any]) -> Any:
        return options[next(bits) % len(options)]

    def fill(phrase: tuple[str, ...]) -> list[str]:
        while True:
            words = [choose(_WORDS[slot]) if slot in _WORDS else slot for slot in phrase]
            if phrase.count("NAME") < 2 or words[-1] != words[-3]:  # two persons
                return words

    if PRONOUNS[answer] == "they":
        subject = fill(("NAME", "and", "NAME"))
    else:
        subject = fill((("WOMAN",), ("MAN",))[answer])
    opening = choose(_OPENINGS)
    between: list[str] = []
    missing = next(bits) % (distance - len(_QUESTION) + 1)
    while len(between) < missing:
        room = missing - len(between)
        between += fill(choose([phrase for phrase in _BETWEEN if len(phrase) <= room]))
    begin = len(opening)
    return Sentence((*opening, *subject, *between, *_QUESTION), (begin, begin + len(subject)), answer)


_split_of = functools.cache(prepared.split_of)  # a few thousand pairs of names decide on all sentences


def _names_of(sentence: Sentence) -> str:
    """What decides on the split: the two names of a pair, or a single name and the nearest name behind it."""
    start, stop = sentence.subject
    people = [word for word in sentence.words[start:] if word in _WORDS["NAME"]]
    return " ".join(sorted(people[:2]) if stop - start > 1 else people[:2])


def _random_integers(key: tuple[int, int]) -> Iterator[int]:
    """Yields raw integers of Philox, which no version of numpy changes."""
    block = 0
    while True:
        generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array((0, 0, 0, block), np.uint64))
        yield from generator.random_raw(4096).tolist()
        block += 1
