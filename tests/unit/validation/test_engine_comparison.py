"""Runs of the small engine against the simulator, the GPU being played by the simulator's own prices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.errors import ConfigError
from sim.units import PS_PER_S
from sim.validation.engine.compare import Compared, compare, fit_host, price_steps, read_served, setup_of
from sim.validation.engine.scheduler import Part, Scheduler
from sim.validation.engine.serve import ServedLog, serve
from sim.validation.engine.traffic import Asked, poisson_requests

LIMITS = {"block_tokens": 16, "token_budget": 2048, "max_running": 64, "max_len": 2048, "num_blocks": 4096}
MODELS = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B")
TRUE = HostWork(step_s=4e-4, sequence_s=6e-6, token_s=2e-7)
LENGTHS = ((256, 1024), (32, 200))


@dataclass
class PricedRunner:
    """A step takes what the simulator says the GPU takes, the true host costs, and a share more."""

    timer: RooflineStepTimer
    slower: float = 1.0
    now_s: float = 0.0

    def run(self, parts: Sequence[Part]) -> dict[int, int]:
        decodes = [part for part in parts if part.is_decode]
        chunks = [(part.live.computed, part.new) for part in parts if not part.is_decode]
        shape = RunShape(len(decodes), sum(part.live.computed for part in decodes), chunks)
        seconds = self.timer.run(shape, 1).total_ps / PS_PER_S
        self.now_s += seconds * self.slower + TRUE.seconds(shape.new_tokens, len(parts))
        return {part.live.number: 1 for part in parts if part.emits}

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _serve(model: str, asked: list[Asked], slower: float = 1.0) -> ServedLog:
    runner = PricedRunner(setup_of(model, LIMITS, "h200-sxm").timer, slower)
    scheduler = Scheduler(
        num_blocks=LIMITS["num_blocks"], block_tokens=16, token_budget=2048, max_running=LIMITS["max_running"]
    )
    return serve(asked, scheduler, runner, 100, lambda: runner.now_s, runner.sleep)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a burst and two rates each, two repeats; the second repeat's GPU is 2 % slower."""
    runs = []
    for model, rates in zip(MODELS, ((8.0, 14.0), (20.0, 40.0)), strict=True):
        for share, rate in ((None, None), (0.5, rates[0]), (0.8, rates[1])):
            asked = poisson_requests(rate, 60, 3, *LENGTHS)
            for repeat in range(1 if rate is None else 2):
                log = _serve(model, asked, 1.0 + 0.02 * repeat).as_json()
                runs.append({"model": model, "share": share, "rate": rate, "repeat": repeat, "log": log})
    path = tmp_path_factory.mktemp("served") / "serving.json"
    path.write_text(json.dumps({"environment": {"gpu_name": "NVIDIA H200"}, "limits": LIMITS, "runs": runs}))
    return path


def test_host_costs_are_told_from_the_gpus_time() -> None:
    """What the prices leave of the steps' times is split into costs per step, sequence and token."""
    log = _serve(MODELS[0], poisson_requests(10.0, 80, 1, *LENGTHS))
    host = fit_host(setup_of(MODELS[0], LIMITS, "h200-sxm").timer, log.steps)
    assert (host.step_s, host.sequence_s, host.token_s) == pytest.approx((4e-4, 6e-6, 2e-7), rel=0.02)


def test_the_simulator_plays_the_engine_again(file: Path) -> None:
    """With host costs from one rate of one model, means at other rates and of another model agree within the noise."""
    _, lines = compare(read_served(file), "h200-sxm")
    assert {(line.model, line.share) for line in lines if line.fitted} == {(MODELS[0], 0.5)}
    judged = [line for line in lines if line.judged]
    assert len(judged) == 9
    for line in judged:
        assert abs(line.error_pct) < 4, line
        assert 0.5 < line.noise_pct < 8
        assert line.bound_pct >= 5


def test_engine_and_simulator_schedule_alike(file: Path) -> None:
    """Without noise, what remains is the difference between two schedulers written apart: under one per cent."""
    served = read_served(file)
    _, lines = compare(replace(served, runs=[run for run in served.runs if run.repeat == 0]), "h200-sxm")
    assert max(abs(line.error_pct) for line in lines if line.share is not None) < 1.0


def test_a_wrong_engine_is_noticed(file: Path) -> None:
    """A second model whose steps take a third longer than priced is outside its bounds."""
    served = read_served(file)
    asked = served.runs[-1].log.asked
    slow = [
        replace(run, log=_serve(run.model, asked, 1.35)) if (run.model, run.share) == (MODELS[1], 0.8) else run
        for run in served.runs
    ]
    _, lines = compare(replace(served, runs=slow), "h200-sxm")
    outside = {(line.model, line.metric) for line in lines if line.judged and abs(line.error_pct) > line.bound_pct}
    assert {(MODELS[1], "tpot"), (MODELS[1], "e2e")} <= outside


def test_steps_are_priced_one_by_one(file: Path) -> None:
    """The simulator's price of each step that was taken, less host costs, is what the runner charged."""
    run = read_served(file).runs[1]
    timer = setup_of(run.model, LIMITS, "h200-sxm").timer
    priced = price_steps(timer, run.log.steps)
    host = [TRUE.seconds(s.decodes + sum(n for _, n in s.chunks), s.decodes + len(s.chunks)) for s in run.log.steps]
    assert [step.seconds for step in run.log.steps] == pytest.approx(list(priced + host))


@pytest.mark.parametrize(("noise", "bound"), [(1.0, 5.0), (4.0, 8.0)])
def test_the_bound_is_five_per_cent_or_twice_the_noise(noise: float, bound: float) -> None:
    """Repeats that lie far apart widen the bound; bursts and the rate of the fit are not judged."""
    line = Compared("m", 0.5, "ttft", 0.1, 0.104, noise, 3, False)
    assert (line.bound_pct, round(line.error_pct, 6), line.judged) == (bound, 4.0, True)
    assert not Compared("m", None, "ttft", 0.1, 0.1, 0.0, 3, False).judged
    assert not Compared("m", 0.5, "ttft", 0.1, 0.1, 0.0, 3, True).judged


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that holds no runs is named."""
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json: holds no runs"):
        read_served(path)
