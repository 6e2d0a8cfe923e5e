"""TensorBoard next to the JSON lines: the same numbers, for people who keep a TensorBoard open.

`metrics.jsonl` is the record; this is a view of it, written into RUN/tensorboard when `fit.tensorboard` is on. On a resume,
events after the checkpoint are purged, as the JSON lines are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes records of metrics as scalars.

    folder      of the event files
    first_step  step that the run continues from

    Raises ImportError saying what to install.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "fit.tensorboard needs tensorboard: pip install 'qvit[track]', or set it to false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Numbers of one line of metrics.jsonl, at its step."""
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush to disk."""
        self._writer.close()
