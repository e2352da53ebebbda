r"""What does a language model say?

Continues a prompt with a model that `experiments.train` has trained, token by token.

    python -m experiments.train --task=stdlib_text --cell=lstm --hidden=256 --out=runs/text
    python -m experiments.generate --run=runs/text --prompt='Return the '
    python -m experiments.generate --run=runs/text --prompt='Return the ' --temperature=0.5 --samples=4 --seed=1
    python -m experiments.generate --run=runs/text --prompt='Return the ' --top_k=20 --top_p=0.9 --length=2000

One sample is printed as it is drawn; several are drawn side by side in one program and printed at the end.
"""

import codecs
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments import running
from rnn_jax.memory import check_memory
from rnn_jax.models import Sampling, generate, stream
from rnn_jax.tasks import Kind
from rnn_jax.tasks.vocabulary import PADDING, UNKNOWN, Vocabulary, split_text
from rnn_jax.training.compilation_cache import enable_compilation_cache
from rnn_jax.training.estimate import device_memory
from rnn_jax.training.load import load_run

_RUN = flags.DEFINE_string("run", None, "Run directory of experiments.train, on stdlib_text or text:PATH.")
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
_LENGTH = flags.DEFINE_integer("length", 500, "Tokens to draw.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Continuations to draw.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Logits are divided by it; 0 takes the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw of so many tokens, the likeliest; of all by default.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw of the likeliest tokens whose probabilities sum to this.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    if _RUN.value is None or _PROMPT.value is None:
        missing = "run" if _RUN.value is None else "prompt"
        raise ValueError(f"--{missing} is missing; allowed: --run=FOLDER of experiments.train, and --prompt=TEXT.")
    sampling = Sampling(
        temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value, excluded=(PADDING, UNKNOWN)
    )
    run = load_run(_RUN.value, Kind.STREAM)
    assert isinstance(run.vocabulary, Vocabulary)
    prompt = encode_prompt(run.vocabulary, _PROMPT.value)
    if _SAMPLES.value > 1:  # what is drawn, and the distribution that it is drawn from
        needed = 4 * _SAMPLES.value * (_LENGTH.value + len(prompt) + 4 * len(run.vocabulary))
        check_memory(needed, device_memory(), samples=_SAMPLES.value, length=_LENGTH.value)

    key, tokens = jax.random.key(_SEED.value), jnp.asarray(prompt)
    if _SAMPLES.value == 1:
        print(_PROMPT.value, end="", flush=True)
        drawn = itertools.islice(stream(run.model, tokens, key, sampling), _LENGTH.value)
        for text in shown(run.vocabulary, (int(token) for token in drawn)):
            print(text, end="", flush=True)
        print()
        return
    prompts = jnp.broadcast_to(tokens, (_SAMPLES.value, len(prompt)))
    for number, row in enumerate(np.asarray(generate(run.model, prompts, _LENGTH.value, key, sampling))):
        print(f"--- sample {number}\n{_PROMPT.value}{''.join(shown(run.vocabulary, row.tolist()))}")


def encode_prompt(vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    """Returns the tokens of a prompt.

    Raises:
      ValueError: if it has no token, or one that the vocabulary does not have.
    """
    tokens = vocabulary.encode(prompt)
    unknown = [piece for piece, token in zip(split_text(prompt, vocabulary.kind), tokens) if token == UNKNOWN]
    if unknown:
        raise ValueError(
            f"--prompt={prompt!r} has the {vocabulary.kind} {unknown[0]!r}, which is not in the vocabulary of the run;"
            f" allowed: its {len(vocabulary) - 2} {vocabulary.kind}s, in vocabulary.json."
        )
    if not len(tokens):
        raise ValueError(f"--prompt={prompt!r} has no {vocabulary.kind}; allowed: at least one.")
    return tokens


def shown(vocabulary: Vocabulary, tokens: Iterable[int]) -> Iterator[str]:
    """Yields the text of each token; of bytes, that of each character once it is complete."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        symbol = vocabulary.symbols[token]
        if vocabulary.kind == "byte":
            yield utf8.decode(bytes([int(symbol, 16)]))
        else:
            yield " " + symbol if vocabulary.kind == "word" else symbol


if __name__ == "__main__":
    running.run(main)
