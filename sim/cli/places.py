"""Where a command writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sim.errors import ConfigError


def output_directory(out: Path | None, name: str) -> Path:
    """`out`, or out/NAME. Looked at before anything is simulated, and made only when there is something to write.

    Raises ConfigError where nothing can be written.
    """
    directory = Path("out") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run") if out is None else out
    try:
        there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
        problem = "" if there.is_dir() else f"{there} is not a directory"
        if not problem and not os.access(there, os.W_OK | os.X_OK):
            problem = f"{there} may not be written to"
    except OSError as error:
        problem = f"cannot be looked for ({error.strerror})"
    if problem:
        raise ConfigError(problem, file="--out", key=str(directory))
    return directory
