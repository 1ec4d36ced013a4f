"""How long prompts and answers are. A class here is one `input_tokens:` or `output_tokens:` mapping; keys are fields.

Every law is rounded to whole tokens and clipped to [1, max]; `mean_tokens` is the mean after clipping (rounding moves
it by less than half a token), so that a wide law with a low `max` does not quietly have another mean than one thinks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Tokens = npt.NDArray[np.int64]
MOST_TOKENS = 2**31 - 1
"""The most a request may have: what a column of the result tables holds."""

TokenCount = Annotated[int, Field(ge=1, le=MOST_TOKENS, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LengthLaw(BaseModel, ABC):
    """A distribution of token counts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    @abstractmethod
    def mean_tokens(self) -> float:
        """Exact mean of what is drawn, but for the rounding to whole tokens."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        """`size` independent lengths, each at least 1."""


class Fixed(LengthLaw):
    """Every request the same. A bare integer in YAML means this."""

    kind: Literal["fixed"] = "fixed"
    tokens: TokenCount

    @property
    def mean_tokens(self) -> float:
        return float(self.tokens)

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return np.full(size, self.tokens, np.int64)


class Uniform(LengthLaw):
    """Every length from `min` to `max`, both included, equally likely."""

    kind: Literal["uniform"] = "uniform"
    min: TokenCount
    max: TokenCount

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self

    @property
    def mean_tokens(self) -> float:
        return (self.min + self.max) / 2

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return rng.integers(self.min, self.max, size, np.int64, endpoint=True)


class Normal(LengthLaw):
    """A bell around `mean`, clipped to [min, max]."""

    kind: Literal["normal"] = "normal"
    mean: Positive
    std: Positive
    min: TokenCount = 1
    max: TokenCount = MOST_TOKENS

    @property
    def mean_tokens(self) -> float:
        low, high = (self.min - self.mean) / self.std, (self.max - self.mean) / self.std
        inside = self.mean * (_below(high) - _below(low)) + self.std * (_density(low) - _density(high))
        return float(self.min * _below(low) + inside + self.max * _below(-high))

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return _whole(rng.normal(self.mean, self.std, size), self.max, self.min)


class Lognormal(LengthLaw):
    """A long right tail, as prompts and answers have. `mean` and `std` are those of the lengths, not of their log."""

    kind: Literal["lognormal"] = "lognormal"
    mean: Positive
    std: Positive
    max: TokenCount = MOST_TOKENS

    @property
    def _log_mean_std(self) -> tuple[float, float]:
        variance = math.log1p((self.std / self.mean) ** 2)
        return math.log(self.mean) - variance / 2, math.sqrt(variance)

    @property
    def mean_tokens(self) -> float:
        mu, sigma = self._log_mean_std
        low, high = -mu / sigma, (math.log(self.max) - mu) / sigma
        inside = self.mean * (_below(high - sigma) - _below(low - sigma))
        return float(_below(low) + inside + self.max * _below(-high))

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return _whole(rng.lognormal(*self._log_mean_std, size), self.max)


class Exponential(LengthLaw):
    """Memoryless: however long an answer already is, the rest has the same mean."""

    kind: Literal["exponential"] = "exponential"
    mean: Positive
    max: TokenCount = MOST_TOKENS

    @property
    def mean_tokens(self) -> float:
        return 1 + self.mean * (math.exp(-1 / self.mean) - math.exp(-self.max / self.mean))

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return _whole(rng.exponential(self.mean, size), self.max)


class _Table(LengthLaw):
    """A finite list of lengths with probabilities; drawn by inverting the cumulative sum."""

    @abstractmethod
    def _pmf(self) -> tuple[Tokens, npt.NDArray[np.float64]]:
        """Lengths and their weights, of any sum."""

    @cached_property
    def _inverse(self) -> tuple[Tokens, npt.NDArray[np.float64]]:
        lengths, weights = self._pmf()
        return lengths, np.cumsum(weights) / np.sum(weights)

    @property
    def mean_tokens(self) -> float:
        lengths, weights = self._pmf()
        return float(np.average(lengths, weights=weights))

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        lengths, cumulative = self._inverse
        at = np.searchsorted(cumulative, rng.random(size), side="right")
        return lengths[np.minimum(at, len(lengths) - 1)]


class Empirical(_Table):
    """Measured lengths: `values` alone (equally likely), with `weights`, or as a mapping {length: weight}."""

    kind: Literal["empirical"] = "empirical"
    values: tuple[TokenCount, ...] = Field(min_length=1, strict=False)
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(default=None, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("values"), Mapping) and "weights" not in data:
            return {**data, "values": list(data["values"].keys()), "weights": list(data["values"].values())}
        return data

    @model_validator(mode="after")
    def _one_weight_each(self) -> Empirical:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.values)} values but {len(self.weights)} weights")
        if self.weights is not None and not sum(self.weights) > 0:
            raise ValueError("the weights sum to 0")
        return self

    def _pmf(self) -> tuple[Tokens, npt.NDArray[np.float64]]:
        weights = np.ones(len(self.values)) if self.weights is None else np.array(self.weights, np.float64)
        return np.array(self.values, np.int64), weights


class Zipf(_Table):
    """Length k from `min` to `max` has probability proportional to k**-theta (Vidur's Zipf generator)."""

    kind: Literal["zipf"] = "zipf"
    min: TokenCount = 1
    max: Annotated[int, Field(ge=1, le=10_000_000)]
    theta: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Zipf:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self

    def _pmf(self) -> tuple[Tokens, npt.NDArray[np.float64]]:
        lengths = np.arange(self.min, self.max + 1, dtype=np.int64)
        return lengths, (lengths / self.min) ** -self.theta


def _which(value: Any) -> str | None:
    if isinstance(value, LengthLaw):
        return str(getattr(value, "kind", ""))
    if isinstance(value, Mapping):
        return None if "kind" not in value else str(value["kind"])
    return "int"


Lengths = Annotated[
    Annotated[TokenCount, Tag("int")]
    | Annotated[Fixed, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Lognormal, Tag("lognormal")]
    | Annotated[Exponential, Tag("exponential")]
    | Annotated[Empirical, Tag("empirical")]
    | Annotated[Zipf, Tag("zipf")],
    Discriminator(_which),
]
"""What may stand after `input_tokens:`: an integer or one of the laws, told apart by `kind`."""


def law(lengths: int | LengthLaw) -> LengthLaw:
    """The law meant by what stands in YAML: a bare integer is `Fixed`."""
    return Fixed(tokens=lengths) if isinstance(lengths, int) else lengths


def _whole(draws: npt.NDArray[np.float64], most: int, least: int = 1) -> Tokens:
    clipped: Tokens = np.clip(np.rint(draws), least, most).astype(np.int64)
    return clipped


def _below(z: float) -> float:
    """The normal distribution function."""
    from scipy.special import ndtr  # here: it takes a third of a second, and few commands need it

    return float(ndtr(z))


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
