"""What a scheme costs in quality, as published: looked up, never interpolated, and unknown where nobody measured.

The figures and their sources are in data/quality.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sim.catalog import folder
from sim.specs.schemes import SCHEMES

_NONE = "none"
_FAMILY = re.compile(r"(llama-\d|mistral|mixtral|falcon|opt|qwen\d|gemma-?\d|phi)")


@dataclass(frozen=True)
class Loss:
    """What one metric loses in one or more publications: a change in per cent of a perplexity, or in points of a score.

    `low` and `high` are the best and the worst that were published, negative changes being losses of scores and gains
    of perplexities. `exact` is False when the figures are of other models of the family, which `models` names.
    """

    metric: str
    low: float
    high: float
    unit: str
    models: tuple[str, ...]
    sources: tuple[str, ...]
    exact: bool

    def __str__(self) -> str:
        """`perplexity +2.4..2.9 % (GPTQ ...)`, the family's models in front when they are not this one."""
        span = f"{self.low:+.2g}" if round(self.low, 2) == round(self.high, 2) else f"{self.low:+.2g}..{self.high:+.2g}"
        where = "" if self.exact else f" on {', '.join(self.models)}"
        return f"{self.metric} {span} {self.unit}{where}"


def published_losses(scheme: str, model: str) -> list[Loss]:
    """Published losses of a named scheme on a model, one entry per metric; empty: unknown.

    `model` is a Hugging Face id. Figures for exactly this model are preferred, the family's stand in for it and say
    so; nothing is averaged or carried over between sizes.
    """
    known = SCHEMES.get(scheme)
    filed = known.quality or known.name if known is not None else scheme
    if filed == _NONE:
        return []
    name = _plain(model)
    found = [figure for figure in _figures() if figure.scheme == filed]
    exact = [figure for figure in found if figure.model == name]
    family = [figure for figure in found if _family(figure.model) == _family(name) is not None]
    by_metric: dict[str, list[_Figure]] = {}
    for figure in exact or family:
        by_metric.setdefault(figure.metric.split(",")[0], []).append(figure)
    return [_loss(metric, figures, bool(exact)) for metric, figures in by_metric.items()]


def quality_words(scheme: str, model: str) -> str:
    """The same as one cell of a table: `unknown` where there is nothing, `0` for what is not quantised."""
    if scheme == _NONE:
        return "0"
    return "; ".join(map(str, published_losses(scheme, model))) or "unknown"


@dataclass(frozen=True)
class _Figure:
    scheme: str
    model: str
    metric: str
    change: float
    unit: str
    source: str


def _loss(metric: str, figures: list[_Figure], exact: bool) -> Loss:
    changes = [figure.change for figure in figures]
    sources, models = (_once(getattr(f, key) for f in figures) for key in ("source", "model"))
    return Loss(metric, min(changes), max(changes), figures[0].unit, models, sources, exact)


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


@cache
def _figures() -> tuple[_Figure, ...]:
    data: Mapping[str, Any] = yaml.safe_load((Path(folder("preset")).parent / "quality.yaml").read_text("utf-8"))
    return tuple(figure for table in data["tables"] for figure in _of_table(table))


def _of_table(table: Mapping[str, Any]) -> Iterable[_Figure]:
    relative = bool(table.get("lower_is_better"))
    base = table["values"][_NONE]
    for scheme, values in table["values"].items():
        for model, plain, value in zip(table["models"], base, values, strict=True):
            change = 100.0 * (value / plain - 1.0) if relative else value - plain
            if scheme != _NONE:
                yield _Figure(scheme, model, table["metric"], change, "%" if relative else "points", table["source"])


def _plain(model: str) -> str:
    """`meta-llama/Llama-2-7b-hf` is llama-2-7b."""
    name = Path(model).name.lower().removeprefix("meta-").removesuffix("-hf")
    return re.sub(r"-v0\.1$", "", name)


def _family(name: str) -> str | None:
    found = _FAMILY.match(name)
    return found[1] if found else None
