"""Fit an engine's parameters to measured runs: least squares on what simulated latencies consist of (`shares`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from sim.presets import EnginePreset
from sim.validation.serving.case import Case, Floats
from sim.validation.serving.predict import Predicted
from sim.validation.serving.shares import FILTER, KERNELS, NAMES

TERMS = {
    "ttft_mean": "ttft", "ttft": "ttft", "tpot_mean": "tpot", "tpot": "tpot", "itl_mean": "itl", "e2e_mean": "e2e",
    "out_tok_s": "duration", "out_tok_s_gpu": "duration", "total_tok_s": "duration", "req_s": "duration",
}  # fmt: skip
"""Metric of a table -> the shares that it follows from; those of `duration` are rates."""
WEIGHTS = {"tpot": 1.0, "itl": 1.0, "duration": 1.0, "ttft": 0.3, "e2e": 0.5}
"""TTFT counts less: it varies by 5 to 10 % from run to run, TPOT by 1 to 2 %."""
_DRAWN_LENGTHS = 0.4
HOST_LIMITS = {
    "step_s": 8e-3,
    "sequence_s": 2e-4,
    "token_s": 3e-5,
    "prompt_s": 3e-2,
    "request_s": 0.3,
    "prompt_token_s": 6e-5,
}
KERNEL_SPREAD = 0.12
"""How far the kernels of another version or library are believed to be from the measured ones, as a logarithm."""
_TYPICAL = {"step_s": 5e-4, "sequence_s": 1e-5, "token_s": 3e-6, "request_s": 1e-2, "prompt_token_s": 8e-6}
"""What a host takes for all that is known before any run: orders of magnitude, for what the runs say nothing of."""
HOST_SPREAD = 1.0
"""How far from these a host is believed to be, as a share."""
OWN_SERVER = 3.0
"""How much farther one's own server may be from its preset than an engine's kernels from the measured ones."""
_OUTLIER = 0.07
"""Errors beyond this count by their size, not by their square."""
_EFFECTIVE = 12.0
"""A model counts as so many rows at most: the errors of its rows share their causes."""
_FACTORS = (0.3, 3.0)


class Target(NamedTuple):
    """One measured latency or duration, and the shares of its simulation."""

    row: str
    model: str
    term: str
    seconds: float
    shares: Floats
    weight: float
    columns: tuple[str | None, ...]
    """The parameter by which each share scales; None where nothing does."""
    fixed: Floats
    """What each share counts where nothing scales it."""


def targets(pairs: Sequence[tuple[Case, Predicted]], preset: EnginePreset) -> list[Target]:
    """What is measured of the rows that were simulated with a preset, doubted and overloaded ones left out."""
    found = []
    for case, predicted in pairs:
        if predicted.problem or case.doubt or case.overloaded:
            continue
        paced = case.traffic is not None and case.traffic.client == "trace"  # then clients set the duration
        for part, values, shares in zip(case.parts, predicted.parts, predicted.shares, strict=True):
            for metric, value in values.items():
                term = TERMS.get(metric, "")
                if (
                    term in shares
                    and not (paced and term == "duration")
                    and not (case.doubted_metrics and metric.startswith(case.doubted_metrics))
                ):
                    found.append(_target(case, predicted, preset, term, shares[term], value / part.measured[metric]))
    return found


def _target(case: Case, predicted: Predicted, preset: EnginePreset, term: str, shares: Floats, ratio: float) -> Target:
    given = case.scenario["engine"].get("host", {})
    host = preset.host.model_dump() | dict(given)
    columns: list[str | None] = []
    for name in NAMES:
        if name in KERNELS:
            columns.append(_kernel_column(name, predicted.formats))
        elif name in given:
            columns.append(f"{case.client}.{name}" if case.client else None)
        else:
            columns.append(f"host.{name}" if name in host else None)
    fixed = np.array([host.get(name, 1.0) for name in NAMES])
    seconds = float(shares @ fixed) * (ratio if term == "duration" else 1.0 / ratio)
    return Target(
        f"{case.table} {case.id}", case.labels["model"], term, seconds, shares, WEIGHTS[term] * _certainty(case),
        tuple(columns), fixed,
    )  # fmt: skip


def _certainty(case: Case) -> float:
    """Runs that send everything at once, with lengths of which only the means are stated, count less."""
    traffic = case.traffic
    drawn = traffic is not None and traffic.client == "at_once" and len(set(traffic.output_tokens.tolist())) > 1
    return _DRAWN_LENGTHS if drawn else 1.0


def _kernel_column(name: str, formats: Mapping[str, str]) -> str:
    return "sampler" if name == FILTER else f"{name}/{formats[name]}"


@dataclass(frozen=True)
class Problem:
    """Targets as a linear system in some free parameters: `matrix` x values + `constant` = predicted seconds.

    Host times are in seconds. Kernel factors are relative to those with which the targets were simulated (`known`); a
    parameter `moe` stands for all formats that have none of their own.
    """

    names: tuple[str, ...]
    matrix: Floats
    constant: Floats
    seconds: Floats
    weights: Floats
    start: Floats
    known: Floats
    """The kernel factors with which the targets were simulated; 1 for host times."""

    def predict(self, values: Floats) -> Floats:
        """Seconds of every target."""
        return np.asarray(self.matrix @ values + self.constant)

    def errors(self, values: Floats) -> Floats:
        """Logarithms of predicted over measured."""
        return np.log(np.maximum(self.predict(values), 1e-9) / self.seconds)

    def solve(self, keep: Floats | None = None, *, near_start: bool = False, centre: Floats | float = 1.0) -> Floats:
        """The values that fit the targets best (those of a mask), with kernels near the measured ones.

        Host times stay near typical ones, or with `near_start` near where they start, as far as the targets allow.
        """
        mask = np.ones(len(self.seconds), bool) if keep is None else np.asarray(keep, bool)
        host = np.array([_limit(name) is not None for name in self.names])
        low = np.where(host, 0.0, _FACTORS[0])
        high = np.array([_limit(name) or _FACTORS[1] for name in self.names])
        matrix, constant, seconds = self.matrix[mask], self.constant[mask], self.seconds[mask]
        weights = self.weights[mask] * np.sqrt(self.weights.sum() / self.weights[mask].sum())

        def residuals(values: Floats) -> Floats:
            data = weights * np.log(np.maximum(matrix @ values + constant, 1e-9) / seconds)
            prior = np.log(np.where(host, 1.0, values * known / centre)) * (_OUTLIER / spread)
            moved = (values - expected)[host] / expected[host]
            return np.concatenate([_robust(data), prior, moved * (_OUTLIER / host_spread)])

        start = np.clip(self.start, low + 1e-9, high)
        typical = np.array([_TYPICAL.get(name.rpartition(".")[2], 1.0) for name in self.names])
        expected = np.maximum(start, 0.1 * typical) if near_start else typical
        known = np.ones_like(start) if near_start else self.known
        spread, host_spread = (one * (OWN_SERVER if near_start else 1.0) for one in (KERNEL_SPREAD, HOST_SPREAD))
        found = least_squares(residuals, start, bounds=(low, high), x_scale=(high - low) / 10)
        return np.asarray(found.x)


def problem(found: Sequence[Target], values: Mapping[str, float]) -> Problem:
    """The linear system of targets in the parameters of `values`, with every model weighing alike.

    `values` are those with which the targets were simulated.
    """
    names = tuple(values)
    matrix, constant = np.zeros((len(found), len(names))), np.zeros(len(found))
    counts: dict[tuple[str, str], int] = {}
    for target in found:
        counts[target.model, target.term] = counts.get((target.model, target.term), 0) + 1
    for i, target in enumerate(found):
        for share, column, fixed in zip(target.shares, target.columns, target.fixed, strict=True):
            name = column if column in values else (column or "").split("/")[0]
            if name in values:
                matrix[i, names.index(name)] += share
            else:
                constant[i] += share * fixed
    rows = np.array([counts[target.model, target.term] for target in found], float)
    weights = np.array([target.weight for target in found]) * np.sqrt(np.minimum(rows, _EFFECTIVE) / rows)
    kernel = np.array([_limit(name) is None for name in names], bool)
    given = np.array(list(values.values()), float)
    return Problem(
        names, matrix, constant, np.array([target.seconds for target in found]), weights,
        np.where(kernel, 1.0, given), np.where(kernel, given, 1.0),
    )  # fmt: skip


def _robust(errors: Floats) -> Floats:
    """Errors whose squares grow like their size beyond `_OUTLIER`: SciPy's `soft_l1`, for the data alone."""
    return np.asarray(_OUTLIER * np.sqrt(2.0 * (np.sqrt(1.0 + (errors / _OUTLIER) ** 2) - 1.0)))


def _limit(name: str) -> float | None:
    return HOST_LIMITS.get(name.rpartition(".")[2])
