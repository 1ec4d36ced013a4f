"""Everything this package raises on purpose.

SimError
├── ConfigError        something the user wrote is wrong: arguments, YAML, trace rows     (exit code 2)
├── GateFailed         the run is fine, but a limit the user asked for was exceeded        (exit code 3)
└── InvariantError     the simulator's own books do not balance: a bug                     (exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_UNSET: Any = object()
_MOST_CHOICES = 12


class SimError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class ConfigError(SimError):
    """Something the user wrote is wrong; the message is one line naming file, key, value and the valid choices.

    `choices` are shown nearest first, so that a typing error is answered by the word that was meant.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        value: Any = _UNSET,
        choices: Iterable[str] = (),
    ) -> None:
        self.problem, self.file, self.line, self.key = problem, file, line, key
        self.value = None if value is _UNSET else value
        self._details = {} if value is _UNSET else {"value": value}
        self.choices = _nearest_first(key if value is _UNSET else str(_shorten(value)), list(choices))
        place = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        subject = "" if key is None else f"{key}: " if value is _UNSET else f"{key}: {_shorten(value)!r}: "
        super().__init__(" ".join(f"{place}{subject}{problem}{_offer(self.choices)}".split()))

    def placed(self, *, file: str | Path | None, line: int | None, key: str | None) -> ConfigError:
        """The same problem, pointed at the place where a person wrote what caused it."""
        return ConfigError(self.problem, file=file, line=line, key=key, choices=self.choices, **self._details)


class GateFailed(SimError):
    """A limit the user set (an SLO, an error bound) was exceeded by a run that is otherwise fine."""

    exit_code = 3


class InvariantError(SimError):
    """The simulator's own books do not balance (lost blocks, lost requests, a clock that ran backwards)."""


def _nearest_first(word: str | None, choices: list[str]) -> list[str]:
    if word is None:
        return choices
    last = word.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(last, choices, n=3, cutoff=0.5)
    return near + [c for c in choices if c not in near]


def _offer(choices: list[str]) -> str:
    if not choices:
        return ""
    shown = ", ".join(choices[:_MOST_CHOICES])
    more = f", ... ({len(choices)} in all)" if len(choices) > _MOST_CHOICES else ""
    return f" (valid, nearest first: {shown}{more})"


def _shorten(value: Any) -> Any:
    try:
        text = str(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a number of thousands of digits"
    return value if len(text) <= 80 else text[:77] + "..."
