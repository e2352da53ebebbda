"""What an experiment says to flags it refuses, many in one process: to start Python for each would take a minute."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
    import importlib, json, sys
    from absl import app, flags
    main = importlib.import_module("experiments." + sys.argv[1]).main
    told = []
    for words in json.loads(sys.argv[2]):
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        try:
            main(flags.FLAGS([sys.argv[1], *words]))
        except SystemExit as error:
            told.append(error.code)
        except (flags.Error, app.UsageError) as error:  # which absl prints
            told.append(str(error))
        else:
            told.append("it ran")
    print("\\n" + json.dumps(told))
"""


def refusals(experiment: str, *lists: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """Returns the sentence with which an experiment ends for each list of arguments."""
    arguments = [sys.executable, "-c", textwrap.dedent(_SCRIPT), experiment, json.dumps(lists)]
    environment = environment or {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == len(lists)
    assert all("\n" not in said for said in told), told
    return told
