"""Ctrl-C and SIGTERM: one sentence, the exit code of the signal, and no process left behind."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
GRACE_SECONDS = 8  # until a command that does not end by itself is ended
RERUN = "run the same command again: it goes on where it stopped"
KEPT = {
    "prepare": f"sessions that were read are kept; {RERUN}",
    "export-webdataset": f"shards that were written are kept; {RERUN}",
    "demo": f"steps that were finished are kept; {RERUN}",
    "train": "the last checkpoint, if there is one, is kept; add --resume to go on from it",
    "cross-validate": f"what was computed is kept; {RERUN}",
    "explain": f"lesions and words of trials that were finished are kept; {RERUN}",
    "evaluate": "predictions that were made are kept; add --resume to go on with them",
    "serve": "running requests were finished; scans that were sent to it are removed",
}
NOTHING_KEPT = "nothing was written; run the same command again"


class Interruption(BaseException):
    """A signal that asks a command to end; no handler of errors takes it for one.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code of a process that a signal ended."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interruption` in this block at a signal; end the process if it does not end itself."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, raise_interruption) for number in SIGNALS}
    # The interpreter writes the signal's number at once, even while the main thread computes.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=end_after_grace, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()


def raise_interruption(number: int, frame: FrameType | None) -> None:
    """Signal handler; further signals are ignored while the command ends."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Interruption(number)


def end_after_grace(reader: socket.socket) -> None:
    """Wait for a signal, and for the process to end by itself; then end it."""
    with suppress(OSError):
        for number in iter(lambda: reader.recv(1), b""):
            if number[0] in SIGNALS:
                time.sleep(GRACE_SECONDS)
                print(describe(number[0]), file=sys.stderr, flush=True)
                end_children()
                os._exit(128 + number[0])
    reader.close()


def describe(number: int) -> str:
    """Say what ended the command, what is kept and how to go on."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return f"ended by {SIGNALS[signal.Signals(number)]}: {KEPT.get(command, NOTHING_KEPT)}."


def end_children() -> None:
    """End the processes that this one has started.

    Python's tracker of shared resources ends by itself; killed, it would be started again.
    """
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()
