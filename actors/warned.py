"""An actor's warnings, kept until the driver asks for them: what matters is shown where people look."""

from __future__ import annotations

import logging
from collections import deque

KEPT = 50  # a burst is cut, so that a look stays small


class KeptWarnings(logging.Handler):
    """Collects the warnings of this project's loggers, in order; `take` empties it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=KEPT)
        logging.getLogger("actors").addHandler(self)
        logging.getLogger("sandboxes").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def take(self) -> list[str]:
        lines = list(self._lines)
        self._lines.clear()
        return lines
