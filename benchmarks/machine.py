"""What a figure was measured on, for its JSON."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

from klong_rl.monitor.metrics import installed_parts


def about() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": installed_parts(),
    }
