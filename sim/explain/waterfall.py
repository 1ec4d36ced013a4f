"""From a naive server to everything on, one technique at a time: what each buys on this traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.explain.changes import ASYNCHRONOUS, SPECULATIVE, SYNCHRONOUS
from sim.explain.load import Case, Served, Settings, most_served
from sim.explain.run import Progress, in_parallel
from sim.run import run_setup
from sim.setup import Setup
from sim.units import ceil_div


def _always(setup: Setup) -> str:
    return ""


def _prefixes(setup: Setup) -> str:
    return "" if setup.workload.has_prefixes else "prompts share nothing that the workload knows of"


def _fp8(setup: Setup) -> str:
    return "" if setup.gpu.supports("fp8") else f"{setup.gpu.name} does not multiply fp8"


@dataclass(frozen=True)
class Technique:
    """One step of the waterfall: settings without it and with it, and why it may not apply ("" if it does).

    Where two techniques set the same key, the earlier one's `off` is the naive server's.
    """

    name: str
    off: Settings
    on: Settings
    lacking: Callable[[Setup], str] = _always


TECHNIQUES: Sequence[Technique] = (
    Technique("continuous batching", {"engine.scheduler": "static"}, {"engine.scheduler": "continuous"}),
    Technique(
        "paged KV",
        {"engine.kv_cache.allocator": {"kind": "max-length", "reserve": "context"}},
        {"engine.kv_cache.allocator": "paged"},
    ),
    Technique(
        "FlashAttention, split-KV decode",
        {"engine.kernels.attention": "standard", "engine.kernels.split_kv": False},
        {"engine.kernels.attention": "flash", "engine.kernels.split_kv": True},
    ),
    Technique("operator fusion", {"engine.kernels.fusion": False}, {"engine.kernels.fusion": True}),
    Technique("CUDA graphs", {"engine.kernels.cuda_graphs": False}, {"engine.kernels.cuda_graphs": True}),
    Technique("chunked prefill", {"engine.scheduler": "continuous"}, {"engine.scheduler": "chunked"}),
    Technique("asynchronous scheduling", SYNCHRONOUS, ASYNCHRONOUS),
    Technique(
        "prefix caching",
        {"engine.kv_cache.enable_prefix_caching": False},
        {"engine.kv_cache.enable_prefix_caching": True},
        _prefixes,
    ),
    Technique(
        "shared-prefix attention",
        {"engine.shared_prefix_attention": "none"},
        {"engine.shared_prefix_attention": "hydragen"},
        _prefixes,
    ),
    Technique(
        "FP8 weights and activations",
        {"engine.quantization": "none"},
        {"engine.quantization": "fp8"},
        _fp8,
    ),
    Technique("FP8 KV cache", {"engine.kv_cache_dtype": "auto"}, {"engine.kv_cache_dtype": "fp8"}),
    Technique("speculative decoding (EAGLE)", {"engine.speculative": None, **ASYNCHRONOUS}, SPECULATIVE),
)
"""In the order in which they are switched on. One line adds one."""


@dataclass(frozen=True)
class Step:
    """The server with some techniques on: the most it serves within the objectives, and this very traffic."""

    name: str
    settings: Settings
    served: Served
    at_this_load: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: percentiles at the most it serves, and under the scenario's own traffic."""
        most = self.served.summary if self.served.factor else {}
        return {
            "name": self.name,
            "settings": dict(self.settings),
            "requests_per_s": self.served.requests_per_s,
            "output_tokens_per_s": self.served.output_tokens_per_s,
            **{key: most.get(key) for key in _PERCENTILES},
            "at_this_load": {key: self.at_this_load[key] for key in (*_PERCENTILES, "slo_attainment", "regime")},
        }


_PERCENTILES = ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")


@dataclass(frozen=True)
class Waterfall:
    """`steps`: the naive server, then one technique more each. `without`: everything on but one."""

    scenario: str
    objectives: Settings
    given_slo: bool
    max_model_len: int
    steps: Sequence[Step]
    without: Sequence[Step]
    skipped: Mapping[str, str]
    """Techniques that do not apply, and why."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `gain` is over the step before; `share_of_best` what is left of everything on without it."""
        best = self.steps[-1].served.requests_per_s
        rows = [step.as_dict() for step in self.steps]
        for before, row in zip([None, *self.steps[:-1]], rows, strict=True):
            rate = before.served.requests_per_s if before is not None else 0.0
            row["gain"] = row["requests_per_s"] / rate if rate else None
        alone = [step.as_dict() | {"share_of_best": step.served.requests_per_s / best if best else None}
                 for step in self.without]  # fmt: skip
        return {
            "scenario": self.scenario,
            "objectives": dict(self.objectives),
            "objectives_assumed": not self.given_slo,
            "max_model_len": self.max_model_len,
            "steady_state": self.steps[-1].served.steady_state,
            "steps": rows,
            "without": alone,
            "skipped": dict(self.skipped),
        }


def waterfall(
    case: Case,
    *,
    techniques: Sequence[Technique] = TECHNIQUES,
    jobs: int | None = None,
    on_progress: Progress | None = None,
) -> Waterfall:
    """Switch `techniques` on one after the other, from a server that has none; then each off, from one that has all.

    Each step is searched for the most traffic that meets the scenario's objectives (those of MLPerf where it states
    none), and run once under the scenario's own. Settings that no technique names stay as the scenario has them, but
    `max_model_len`, for which a naive server reserves memory: where the scenario leaves it to the model, it becomes as
    long as the longest request, rounded up to whole Ki tokens. Raises ConfigError when the naive server cannot run the
    scenario at all, as with pools.
    """
    case = case.having({"engine.max_model_len": _context(case)})
    naive: Settings = {}
    for technique in reversed(techniques):
        naive = {**naive, **technique.off}
    chosen, skipped = _applicable(case, naive, techniques)
    ladder = [("naive", naive)]
    for technique in chosen:
        ladder.append((technique.name, {**ladder[-1][1], **technique.on}))
    best = ladder[-1][1]
    alone = [_without(case, technique, chosen, best) for technique in chosen]
    start = most_served(case.having(best)).factor or 1.0
    tasks = [(case, name, settings, start) for name, settings in (*ladder, *alone)]
    found = in_parallel(_step, tasks, jobs, on_progress)
    scenario = case.loaded.scenario
    return Waterfall(
        scenario.name, scenario.slo, case.given_slo, case.setup.engine.max_model_len, found[: len(ladder)],
        found[len(ladder) :], skipped,
    )  # fmt: skip


def _context(case: Case) -> int:
    """A `max_model_len` that this very traffic needs."""
    given, most = case.setup.scenario.engine.max_model_len, case.setup.engine.max_model_len
    if given is not None:
        return given
    requests = run_setup(case.fresh_setup()).requests
    longest = int(np.max(requests["prompt_tokens"] + requests["output_tokens"], initial=1))
    return min(most, ceil_div(longest, 1024) * 1024)


def _applicable(case: Case, naive: Settings, techniques: Sequence[Technique]) -> tuple[list[Technique], dict[str, str]]:
    """Techniques that this model, hardware and traffic can have, on top of those before them, and why not the rest."""
    chosen: list[Technique] = []
    skipped: dict[str, str] = {}
    settings = naive
    setup = case.having(naive).setup
    for technique in techniques:
        reason = technique.lacking(setup)
        if not reason:
            try:
                case.having({**settings, **technique.on}).setup  # noqa: B018 (it refuses what cannot run)
            except ConfigError as error:
                reason = error.problem
        if reason:
            skipped[technique.name] = reason
        else:
            settings = {**settings, **technique.on}
            chosen.append(technique)
    return chosen, skipped


def _without(case: Case, off: Technique, chosen: Sequence[Technique], best: Settings) -> tuple[str, Settings]:
    """Everything on but one technique, and but one more where that cannot be without it."""
    least = {**best, **off.off}
    options = [(off.name, least)]
    others = [other for other in reversed(chosen) if other is not off]
    options += [(f"{off.name}, {other.name}", {**least, **other.off, **off.off}) for other in others]
    for name, settings in options:
        try:
            case.having(settings).setup  # noqa: B018 (it refuses what cannot run)
        except ConfigError:
            continue
        return name, settings
    return options[0]


def _step(case: Case, name: str, settings: Settings, start: float) -> Step:
    changed = case.having(settings)
    return Step(name, settings, most_served(changed, start), changed.run())
