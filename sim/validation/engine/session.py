"""What a GPU session serves: two models, bursts and several rates with repeats, written down after every run."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sim.validation.engine.dims import ModelDims, dims_of
from sim.validation.engine.model import Decoder
from sim.validation.engine.runner import TorchRunner
from sim.validation.engine.scheduler import Scheduler
from sim.validation.engine.serve import ServedLog, serve
from sim.validation.engine.traffic import Asked, poisson_requests
from sim.validation.measure.gpu import environment


@dataclass(frozen=True)
class EngineLimits:
    """The small engine's settings, which the simulated one repeats."""

    block_tokens: int = 16
    token_budget: int = 2048
    max_running: int = 128
    max_len: int = 2048
    num_blocks: int = 16384


@dataclass(frozen=True)
class Plan:
    """What is served: models, shares of the saturated rate, repeats, and lengths (lowest, highest)."""

    models: tuple[str, ...] = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-3B")
    shares: tuple[float, ...] = (0.5, 0.25, 0.7, 0.85)
    repeats: int = 3
    seconds_per_run: float = 12.0
    burst: int = 192
    prompt_tokens: tuple[int, int] = (512, 1536)
    output_tokens: tuple[int, int] = (32, 224)


class Engine:
    """A decoder, its runner, and a fresh scheduler for each run."""

    def __init__(self, dims: ModelDims, limits: EngineLimits, **options: Any) -> None:
        self.dims, self._limits = dims, limits
        decoder = Decoder(
            dims,
            num_blocks=limits.num_blocks,
            block_tokens=limits.block_tokens,
            max_positions=limits.max_len,
            **options,
        )
        self._runner = TorchRunner(
            decoder, block_tokens=limits.block_tokens, max_len=limits.max_len, max_running=limits.max_running
        )
        self._runner.capture()

    def serve(self, asked: list[Asked]) -> ServedLog:
        """Serve in real time."""
        scheduler = Scheduler(
            num_blocks=self._limits.num_blocks, block_tokens=self._limits.block_tokens,
            token_budget=self._limits.token_budget, max_running=self._limits.max_running,
        )  # fmt: skip
        return serve(asked, scheduler, self._runner, self.dims.vocabulary, time.perf_counter, time.sleep)


def serve_all(
    path: Path, budget_s: float, seed: int, *, quick: bool = False, report: Callable[[str], None],
    plan: Plan | None = None, limits: EngineLimits | None = None,
    make: Callable[[ModelDims, EngineLimits], Engine] = Engine,
) -> None:  # fmt: skip
    """Serve the plan until the budget runs out; the file is whole after every run."""
    chosen, settings = plan or (Plan(repeats=2, shares=(0.5, 0.25, 0.7)) if quick else Plan()), limits or EngineLimits()
    until = time.monotonic() + budget_s
    written: dict[str, Any] = {"environment": environment(), "limits": asdict(settings), "runs": []}
    for i, model in enumerate(chosen.models):
        model_until = time.monotonic() + (until - time.monotonic()) / (len(chosen.models) - i)
        engine = make(dims_of(model), settings)
        for run in _runs(engine, chosen, seed, model_until, report):
            written["runs"].append(run)
            path.write_text(json.dumps(written) + "\n", encoding="utf-8")
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _runs(engine: Engine, plan: Plan, seed: int, until: float, report: Callable[[str], None]) -> Any:
    """A burst to warm up and one to find the saturated rate, then the rates, all of them once before any again."""
    lengths = (plan.prompt_tokens, plan.output_tokens)
    engine.serve(poisson_requests(None, plan.burst // 4, seed, *lengths))
    burst = engine.serve(poisson_requests(None, plan.burst, seed, *lengths))
    saturated = plan.burst / max(burst.finish_s)
    report(f"serving {engine.dims.name}: {saturated:.2f} requests/s saturated")
    yield {"model": engine.dims.name, "rate": None, "share": None, "repeat": 0, "log": burst.as_json()}
    for repeat in range(plan.repeats):
        for share in plan.shares:
            rate = share * saturated
            asked = poisson_requests(rate, max(round(rate * plan.seconds_per_run), 8), seed, *lengths)
            if time.monotonic() + asked[-1].arrival_s + 5 > until:
                report(f"serving {engine.dims.name}: no time left for {share:g} of saturation, repeat {repeat + 1}")
                continue
            log = engine.serve(asked)
            yield {"model": engine.dims.name, "rate": rate, "share": share, "repeat": repeat, "log": log.as_json()}
