"""What a process keeps open while it trains: the metrics, the progress bar, and the signals that ask it to stop."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

import tqdm

from rnn_jax.training import lock, run_directory


class Interrupted(Exception):
    """A signal asked the run to stop; its checkpoint holds all it had done.

    Attributes:
      signal: its number.
      step: steps done.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name} at step {step}")
        self.signal = signum
        self.step = step


@dataclasses.dataclass(frozen=True)
class Session:
    """Open as long as one process trains, one model or one ensemble after another.

    Attributes:
      writer: of metrics.csv.
      bar: in steps.
      signals: numbers of SIGINT or SIGTERM, as they came in.
    """

    writer: run_directory.MetricWriter
    bar: tqdm.tqdm
    signals: list[int]


@contextlib.contextmanager
def open_session(run_dir: run_directory.StrPath, position: int, bar: tqdm.tqdm) -> Iterator[Session]:
    """Opens a session, and closes all of it at the end.

    The run directory is held for this process. From here on SIGINT and SIGTERM are noted, for training to stop where it
    has saved; a second one acts as before.

    Args:
      run_dir: the run directory.
      position: in metrics.csv, where the run goes on; 0 begins.
      bar: in steps.

    Raises:
      ValueError: another process writes there.
    """
    lock.hold(run_dir)
    with run_directory.MetricWriter(run_dir, position) as writer, bar, _deferred_signals() as signals:
        yield Session(writer, bar, signals)


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM add their number; a second one acts as it did before."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        del frame
        received.append(number)
        restore()

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
    if received:  # after the last step, where nobody stops for it any more
        signal.raise_signal(received[0])
