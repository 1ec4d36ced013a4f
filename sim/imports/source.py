"""The JSON behind a path a person wrote: `results.json`, a report directory, or `benchmarks.json#2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sim.documents import parse_json
from sim.errors import ConfigError

Run = TypeVar("Run")


@dataclass(frozen=True)
class Source:
    """A JSON file that has been read, and which of its runs is meant (None: it must hold only one)."""

    path: Path
    data: Any
    index: int | None = None

    def choose(self, runs: Sequence[Run], names: Sequence[str]) -> Run:
        """The run that `FILE#index` means. Raises ConfigError listing the runs when that is open or out of range."""
        if self.index is None and len(runs) == 1:
            return runs[0]
        if self.index is not None and 0 <= self.index < len(runs):
            return runs[self.index]
        listing = "; ".join(f"#{i} {name}" for i, name in enumerate(names)) or "none"
        if self.index is None:
            raise ConfigError(
                f"holds {len(runs)} runs, choose one as {self.path.name}#INDEX: {listing}", file=self.path
            )
        raise ConfigError(f"has no run #{self.index}; it holds {listing}", file=self.path)

    def refuse_index(self) -> None:
        """Raises ConfigError when `#index` was written for a file that holds a single run."""
        if self.index not in (None, 0):
            raise ConfigError(f"has no run #{self.index}: it holds a single run", file=self.path)


def split_index(where: str) -> tuple[Path, int | None]:
    """`benchmarks.json#2` as (benchmarks.json, 2); a file whose own name has a `#` is taken as it stands."""
    whole = Path(where).expanduser()
    stem, mark, index = where.rpartition("#")
    if not mark or whole.exists():
        return whole, None
    if not index.isdigit():
        raise ConfigError("the run after # must be a number, as in benchmarks.json#0", key=where)
    return Path(stem).expanduser(), int(index)


def read_json(path: Path) -> Any:
    """The JSON document in a file, or a list of them when it holds one per line.

    Raises ConfigError naming the file when it is missing, unreadable or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such file", file=path) from None
    except UnicodeDecodeError:
        raise ConfigError("is not a JSON result (not UTF-8 text)", file=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    if not text.strip():
        raise ConfigError("is empty; expected a JSON result", file=path)
    try:
        return parse_json(text, path)
    except ConfigError as whole:
        try:
            return [parse_json(line) for line in text.splitlines() if line.strip()]
        except ConfigError:
            raise whole from None
