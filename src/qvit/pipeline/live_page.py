"""LivePage: `qvit run --report`, the report of a run that is still training.

    RUN/report.html    written anew while training, complete once RUN has its result.json; an open page reloads itself

A page takes about a second of the process that trains (`report.refresh`), so the pause between two of them is at least
`SHARE` times what the last one took: the view costs one percent, whatever the size of the run. It is a view: a part of
the run that cannot be drawn, or a page that cannot be written, ends the view with one line, and never the training.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

PAGE = "report.html"
SHARE = 100.0
SHORTEST = 10.0  # seconds: a browser looks no more often


class LivePage:
    """Keeps the page of a run directory and the rows inside it up to date.

    out  the run directory

    Raises ImportError saying what to install.
    """

    def __init__(self, out: Path) -> None:
        from ..report import refresh  # needs the extra `report`

        self.out, self.page = out, out / PAGE
        self._refresh = refresh
        self._next = 0.0
        self._ended = False

    def update(self) -> None:
        """Write the page if the pause is over; called after every line of the log."""
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the page now; whatever goes wrong is said once on stderr, and this page is not tried again."""
        if self._ended:
            return
        start = time.monotonic()
        try:
            self._refresh(self.out, self.page)
        except Exception as error:  # a full disk, a damaged file, a fault of a library: the training outweighs all
            self._ended = True
            print(f"{self.page} is no longer updated: {type(error).__name__}: {error}", file=sys.stderr)
            return
        took = time.monotonic() - start
        self._next = start + took + max(SHORTEST, SHARE * took)
