"""A datasheet fact: a number in SI units that remembers where it was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from sim.units import BYTES, BYTES_PER_S, FLOPS, HERTZ, WATTS, quantity

UNSOURCED = "not stated"
DEFAULT = "default of the profile schema"


class Fact(float):
    """A positive number in SI units; computes like any float, and `.source` says who stated it."""

    source: str

    def __new__(cls, value: float, source: str = UNSOURCED) -> Fact:
        self = super().__new__(cls, value)
        self.source = source
        return self

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]  # so that copies and pickles keep the source
        return float(self), self.source


class CountFact(int):
    """A whole number of things (bytes, multiprocessors); computes like any int, and `.source` says who stated it."""

    source: str

    def __new__(cls, value: int, source: str = UNSOURCED) -> CountFact:
        self = super().__new__(cls, value)
        self.source = source
        return self

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.source


def _split(raw: Any) -> tuple[Any, str]:
    """What is written (`{value, source}` or a bare quantity), as value and source."""
    if isinstance(raw, (Fact, CountFact)):
        return raw + 0, raw.source
    if not isinstance(raw, Mapping):
        return raw, UNSOURCED
    unknown = sorted(map(str, set(raw) - {"value", "source"}))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}: a fact is written {{value: ..., source: ...}}")
    if "value" not in raw:
        raise ValueError("a fact needs a value: {value: ..., source: ...}")
    source = raw.get("source", UNSOURCED)
    if not isinstance(source, str) or not source.strip():
        raise ValueError("the source of a fact must say who stated it")
    return raw["value"], source


def _number(raw: Any, kind: str | None) -> float:
    if kind is not None and isinstance(raw, (str, int, float)):
        number = quantity(raw, kind)
    elif isinstance(raw, (int, float)) and not isinstance(raw, bool):
        number = float(raw) if abs(raw) < 1e300 else float("inf")
    else:
        raise ValueError(f"expected {kind or 'a whole number'}, got {raw!r}")
    if not 0 < number < float("inf"):
        raise ValueError(f"must be positive and finite, got {raw!r}")
    return number


def _rate_reader(kind: str) -> Callable[[Any], Fact]:
    def read(raw: Any) -> Fact:
        value, source = _split(raw)
        return Fact(_number(value, kind), source)

    return read


def _count_reader(kind: str | None) -> Callable[[Any], CountFact]:
    def read(raw: Any) -> CountFact:
        value, source = _split(raw)
        number = _number(value, kind)
        if kind is None and number != int(number):
            raise ValueError(f"expected a whole number, got {value!r}")
        return CountFact(round(number), source)

    return read


def _write(fact: Fact | CountFact) -> dict[str, Any]:
    return {"value": fact + 0, "source": fact.source}


def _schema(example: str) -> WithJsonSchema:
    value = {"type": ["string", "number"], "description": f"with its unit, such as '{example}'; a bare number is SI"}
    fact = {
        "type": "object",
        "properties": {"value": value, "source": {"type": "string"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return WithJsonSchema({"anyOf": [fact, value]})


BytesPerSecond = Annotated[
    Fact, PlainValidator(_rate_reader(BYTES_PER_S)), PlainSerializer(_write), _schema("3350 GB/s")
]
FlopsPerSecond = Annotated[Fact, PlainValidator(_rate_reader(FLOPS)), PlainSerializer(_write), _schema("989.4 TFLOP/s")]
Hertz = Annotated[Fact, PlainValidator(_rate_reader(HERTZ)), PlainSerializer(_write), _schema("1830 MHz")]
Watts = Annotated[Fact, PlainValidator(_rate_reader(WATTS)), PlainSerializer(_write), _schema("700 W")]
Bytes = Annotated[CountFact, PlainValidator(_count_reader(BYTES)), PlainSerializer(_write), _schema("80 GiB")]
Count = Annotated[CountFact, PlainValidator(_count_reader(None)), PlainSerializer(_write), _schema("132")]
