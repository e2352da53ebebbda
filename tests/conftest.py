"""What holds for every test: strict numerics, cheap compilation, and which tests run only when asked for.

* Float64 is at hand; types and ranks are never promoted silently; float32 is float32, also where a GPU would round the
  factors of products to TF32.
* On a CPU, two devices are made of its cores, to spread a batch over.
* Python looks for garbage rarely: what is imported stays, and JAX leaves little behind.
* Nearly all time of the tests is compilation, and most programs run once: XLA compiles them without optimizing, in a
  fifth of the time. `--all` and `--run-slow` compile as users do.
* Programs that take long to compile are kept on disk until the end of the session: runs that are resumed, processes and
  workers share them.
* A GPU adds in one order, as a run that is resumed must end in the same bytes.
"""

import gc
import os
import pathlib
import shutil
import subprocess
import tempfile

import jax
import pytest

import rnn_jax

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "float32")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


gc.disable()  # until all tests are collected: a quarter of the time of the imports

# XLA ends the process at a flag that it does not know; two of these are of its back end in JAX 0.9 and 0.10.
QUICK_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):
    QUICK_FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--all", action="store_true", help="run the conformance kit on all cells, and compile as users do")


def pytest_configure(config):
    os.environ["XLA_FLAGS"] = f"--xla_gpu_deterministic_ops=true {os.environ.get('XLA_FLAGS', '')}"
    if not (config.getoption("--all") or config.getoption("--run-slow")):
        # In the environment, for the experiments that tests start; before the first program is compiled.
        os.environ["XLA_FLAGS"] = " ".join([*QUICK_FLAGS, os.environ.get("XLA_FLAGS", "")])
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # In the environment, too, or an experiment would take the user's folder.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_collection_modifyitems(config, items):
    if not (config.getoption("--run-slow") or os.environ.get("RUN_SLOW") == "1"):
        skip = pytest.mark.skip(reason="slow: `pytest --run-slow` or RUN_SLOW=1 runs it")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    if not config.getoption("--all"):
        changed = changed_files()
        skip = pytest.mark.skip(
            reason="the kit runs unasked where a cell has changed since the last release: else `bash tests/run --all`"
        )
        for item in items:
            if "kit" in item.keywords and not kit_is_due(item.callspec.params["name"], changed):
                item.add_marker(skip)


def pytest_collection_finish():
    gc.freeze()  # what is imported stays
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def changed_files():
    """Returns the paths of the files that are not as at the last release tag; None if there is no tag, or no git."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.split()

    try:
        (tag,) = git("describe", "--tags", "--abbrev=0")
        return {*git("diff", "--name-only", tag), *git("ls-files", "--others", "--exclude-standard")}
    except (OSError, subprocess.CalledProcessError):
        return None


def kit_is_due(name, changed):
    """Whether the conformance kit runs on a cell unasked: where its file has changed since the last release.

    It always runs on the README's pointwise cell (tests/test_readme.py), on a general one, and what it says of a cell
    of Flax, with a context or with a key is told (tests/flow/test_check.py).
    """
    ours = ":" not in name
    if changed is None:
        return False
    module = rnn_jax.cell_info(name).cls.__module__ if ours else name.partition(":")[0]
    return module.replace(".", "/") + ".py" in changed


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of data that tests prepare and read, and leave as it is: to read the standard library takes seconds.

    The workers of pytest-xdist share it.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tfds"
    path.mkdir(exist_ok=True)
    return path
