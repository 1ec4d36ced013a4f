"""Quantised against unquantised: the ratio of two throughputs, as measured and as simulated.

A ratio says what a scheme gains, whatever both servers have in common: their host, their traffic, their client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.validation.serving.case import Case
from sim.validation.serving.predict import Predicted

_SUFFIX = re.compile(r"-(fp8|awq|gptq|int8|int4|w8a8|w4a16)\b.*$")
_METRICS = ("total_tok_s", "out_tok_s", "out_tok_s_gpu_derived")
_NOT_COMPARED = ("quantization", "kv_cache_dtype", "max_num_seqs", "max_num_batched_tokens")
DIFFERS = 0.05
"""Ratios this far from 1 have a sign worth getting right."""


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in their number formats; `same_gpu` is False where no 16-bit run on that GPU was measured.

    Ratios are quantised over unquantised throughput.
    """

    gpu: str
    model: str
    format: str
    engine: str
    traffic: str
    measured: float
    predicted: float
    same_gpu: bool = True

    @property
    def error_pct(self) -> float:
        """How far the predicted ratio is off, in per cent of the measured one."""
        return 100.0 * (self.predicted / self.measured - 1.0)

    @property
    def decided(self) -> bool:
        """Whether the two measurements differ enough for their order to mean something."""
        return abs(self.measured - 1.0) > DIFFERS

    @property
    def right_sign(self) -> bool:
        """Whether the faster one is predicted to be faster."""
        return (self.predicted > 1.0) == (self.measured > 1.0)


@dataclass(frozen=True)
class Verdict:
    """What the pairs amount to: the median of the absolute errors in per cent, and signs right among the decided."""

    pairs: int
    median_pct: float
    decided: int
    right: int


def verdict(pairs: Sequence[Pair]) -> Verdict:
    """The summary of some pairs; zeros when there are none."""
    decided = [pair for pair in pairs if pair.decided]
    median = float(np.median([abs(pair.error_pct) for pair in pairs])) if pairs else 0.0
    return Verdict(len(pairs), median, len(decided), sum(pair.right_sign for pair in decided))


def needed(cases: Sequence[Case]) -> list[Case]:
    """The runs that have a partner in other formats, and the partners: what must be simulated."""
    partners = _partners(cases)
    ids = {id(case) for pair in partners for case in pair[:2]}
    return [case for case in cases if id(case) in ids]


def pairs_of(found: Sequence[tuple[Case, Predicted]]) -> list[Pair]:
    """Every quantised run with its unquantised partner, where both were predicted."""
    rates = {id(case): _rates(case, predicted) for case, predicted in found}
    pairs = []
    for case, base, same_gpu in _partners([case for case, _ in found]):
        one, other = rates[id(case)], rates[id(base)]
        if one is None or other is None:
            continue
        pairs.append(
            Pair(case.labels["gpu"], _stem(case), _format(case), case.labels["engine"], _traffic(case),
                 one[0] / other[0], one[1] / other[1], same_gpu)
        )  # fmt: skip
    return pairs


def _partners(cases: Sequence[Case]) -> list[tuple[Case, Case, bool]]:
    usable = [case for case in cases if not case.problem and case.traffic is not None and _measured(case)]
    plain = [case for case in usable if not _is_quantised(case)]
    found = []
    for case in usable:
        if not _is_quantised(case):
            continue
        alike = [base for base in plain if _key(base) == _key(case)]
        here = [base for base in alike if base.scenario["hardware"] == case.scenario["hardware"]]
        chosen = max(here or alike, key=lambda base: _likeness(base, case), default=None)
        if chosen is not None:
            found.append((case, chosen, bool(here)))
    return found


def _key(case: Case) -> tuple[Any, ...]:
    """What two runs must have in common: model, layout, engine, and the traffic within its rounding."""
    traffic, engine = case.traffic, case.scenario["engine"]
    assert traffic is not None
    layout = tuple(engine.get(key, 1) for key in ("tensor_parallel_size", "pipeline_parallel_size"))
    lengths = [round(float(tokens.mean()) / 10) for tokens in (traffic.input_tokens, traffic.output_tokens)]
    return (_stem(case), layout, engine["preset"], case.table, traffic.client, traffic.concurrency, *lengths)


def _likeness(base: Case, case: Case) -> int:
    """How many engine settings agree, for the choice among several 16-bit runs."""
    ours, theirs = (_settings(one.scenario["engine"]) for one in (case, base))
    return sum(bool(ours.get(key) == theirs.get(key)) for key in {*ours, *theirs}) - len({*ours, *theirs})


def _settings(engine: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) for key, value in engine.items() if key not in _NOT_COMPARED}


def _stem(case: Case) -> str:
    return _SUFFIX.sub("", case.labels["model"].lower().rpartition("/")[2])


def _is_quantised(case: Case) -> bool:
    engine, name = case.scenario["engine"], case.labels["model"].lower()
    return bool(engine.get("quantization") or engine.get("kv_cache_dtype") or _SUFFIX.search(name))


def _format(case: Case) -> str:
    asked = case.labels.get("format") or case.scenario["engine"].get("quantization")
    found = _SUFFIX.search(case.labels["model"].lower())
    return str(asked or (found[1] if found else "checkpoint"))


def _traffic(case: Case) -> str:
    traffic = case.traffic
    assert traffic is not None
    lengths = f"{traffic.input_tokens.mean():.0f}/{traffic.output_tokens.mean():.0f}"
    return f"{lengths} {traffic.client.replace('_', ' ')}{f' {traffic.concurrency}' if traffic.concurrency else ''}"


def _measured(case: Case) -> str | None:
    if not case.parts:
        return None
    return next((name for name in _METRICS if name in case.parts[0].measured), None)


def _rates(case: Case, predicted: Predicted) -> tuple[float, float] | None:
    name = _measured(case)
    if predicted.problem or name is None or not predicted.parts or name not in predicted.parts[0]:
        return None
    return case.parts[0].measured[name], predicted.parts[0][name]
