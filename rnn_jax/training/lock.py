"""One writer at a time in a run directory: a lock that ends with the process that holds it, also where that is killed.

It is a lock of the operating system on the file `.lock`. What the file holds is only told to those who come too late.
"""

import datetime
import json
import os
import pathlib
import socket

import filelock

NAME = ".lock"
_held: dict[pathlib.Path, tuple[filelock.BaseFileLock, int]] = {}  # folder -> its lock, and the number of the file


def hold(run_dir: str | os.PathLike[str]) -> None:
    """Holds a folder until this process ends. To hold it once more changes nothing.

    Raises:
      ValueError: another process holds it, or nothing can be written there.
    """
    folder = pathlib.Path(run_dir).resolve()
    path = folder / NAME
    if folder in _held and path.exists() and path.stat().st_ino == _held[folder][1]:
        return
    # `fallback_to_soft` would be a file that outlives a killed process.
    lock = filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    shown = os.fspath(run_dir)
    try:
        lock.acquire()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        path.write_text(json.dumps(holder) + "\n", encoding="utf-8")
    except filelock.Timeout:
        if not path.exists():
            raise ValueError(f"--out={shown!r} cannot be locked; allowed: a writable folder.") from None
        raise ValueError(
            f"--out={shown!r} is being written by {_holder(path)}; allowed: one process at a time, so wait for its end"
            " or name another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        lock.release()
        raise ValueError(
            f"--out={shown!r} cannot be locked ({getattr(error, 'strerror', None) or error}); allowed: one to write to."
        ) from error
    _held[folder] = lock, path.stat().st_ino


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _holder(path: pathlib.Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:64]!r}, since {str(holder['since'])[:32]}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and not yet said who it is
        return "another process"
