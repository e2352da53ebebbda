"""Keeps compiled programs on disk, so that an experiment compiles a program once and not once a run."""

import os
import pathlib

import jax


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent cache in `$XDG_CACHE_HOME/rnn_jax/xla`, or else `~/.cache/rnn_jax/xla`.

    Safe for several processes at once. Does nothing if the user has chosen a folder (`JAX_COMPILATION_CACHE_DIR`).
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", os.fspath(pathlib.Path(cache, "rnn_jax", "xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
