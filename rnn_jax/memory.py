"""How much memory there is, so that what cannot fit is refused before it is computed.

A process that asks for too much is killed or never ends, and says nothing.
"""

import os
import pathlib

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 2 and 1
_SOME = 2**26  # bytes that are granted unseen


def host_memory() -> int:
    """Returns the bytes of memory that this process may have at most: of the machine, or of its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(pathlib.Path, _CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def check_memory(needed: int, available: int, **sizes: object) -> None:
    """Raises ValueError, with the estimate, if more bytes are needed than there are.

    Args:
      needed: estimate in bytes.
      available: such as `host_memory()`.
      **sizes: by name, what the estimate follows from.
    """
    if needed > max(available, _SOME):
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise ValueError(
            f"{told} would need about {_bytes(needed)} of memory, and there are {_bytes(available)};"
            " allowed: sizes that fit."
        )


def _bytes(count: int) -> str:
    """Writes a number of bytes: `1.6 GB`."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
