"""SIGTERM and SIGINT while training: finish the step, write a checkpoint, say how to go on.

    schedulers and service managers   send SIGTERM, wait some seconds (30 to 90), then send SIGKILL
    a person                          types Ctrl-C, which is SIGINT, and a second time when it takes too long

So the handlers only leave a note, which `fit` reads once a step; several processes agree on the step there, for a signal
reaches them at different moments. A repeated SIGTERM is the same wish. A second SIGINT ends a single process at once; of
several it does not, because launchers pass on what the terminal has sent to every process already.

Workers of a data loader get the same signals when a whole group of processes does, and must live until the step is made:
`shield_worker`.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)


class InterruptionError(RuntimeError):
    """Training stopped on a signal, after a step whose checkpoint is written.

    number       of the signal; None: another process got it, and it was SIGTERM
    step, steps  where the run is
    folder       its directory
    """

    def __init__(self, number: int | None, step: int, steps: int, folder: Path) -> None:
        self.signal = signal.Signals(number or signal.SIGTERM)
        super().__init__(
            f"stopped by {self.signal.name} after step {step} of {steps}; {folder} has what a resume needs"
        )


class Interruption:
    """A context in which signals are noted. It changes nothing outside the main thread, where Python allows no handlers.

    alone  this is the only process of the run

    received  the first signal so far, or None
    """

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.alone and self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number


def shield_worker(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: only the training process ends this worker.

    PyTorch ends workers that do not stop by themselves with SIGTERM, so its sender decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS: there a SIGTERM to the whole group ends workers, too
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
