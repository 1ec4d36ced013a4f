"""Plans: the same answer as trying everything, bounds that rule out nothing that wins, and the laws of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.planner.executors import LocalExecutor
from sim.planner.options import Option, Search, options_of
from sim.planner.plan import Plan, Request, fleet_capacity, make_plan
from sim.planner.search import search
from sim.planner.sizing import Question, highest_rate, survey
from sim.planner.traffic import traffic_of
from sim.planner.trial import Base, Bench

Bases = Callable[..., Base]
ONE = LocalExecutor(1)
SLOW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def question(base: Base, rate: float, **changes: Any) -> Question:
    """What is asked, with one seed and short traffic."""
    traffic = traffic_of(base.load({}), rate=rate, horizon_s=changes.pop("horizon_s", 10.0))
    return Question(base, traffic, rate, (0,), changes.pop("most_gpus", 40))


def options(base: Base, hardware: Sequence[str], *searched: str) -> list[Option]:
    """All configurations."""
    return options_of(base.load({}), hardware, Search.parse(searched))


def counted_up(asked: Question, option: Option) -> int | None:
    """GPUs of the smallest fleet that holds, found by one replica more at a time: no bound, no bisection."""
    try:
        bench = Bench(asked.base, option.overrides)
        gpus = bench.build(asked.traffic.at(asked.rate)).engine.layout.gpus
    except ConfigError:
        return None
    for replicas in range(1, asked.most_gpus // gpus + 1):
        traffic = asked.traffic.at(asked.rate)
        if all(bench.run(traffic, replicas=replicas, rate=asked.rate, seed=seed).holds for seed in asked.seeds):
            return replicas * gpus
    return None


def test_the_search_agrees_with_trying_everything(base: Bases) -> None:
    """On a small space the best of every GPU is what counting up finds, and no pruned option is better."""
    asked = question(base(), 60.0)
    space = options(base(), ["l4", "a40"], "tp=[1, 2]", "quantization=[fp8]", "max_num_seqs=[8, 32]")
    found = search(asked, space, ONE)
    truth = {option.number: counted_up(asked, option) for option in space}
    for hardware in ("l4", "a40"):
        mine = [(truth[o.number], o.number) for o in space if o.hardware == hardware and truth[o.number] is not None]
        best = found.best[hardware]
        assert (best.gpus, best.option.number) == min(mine)
    assert any(c.pruned for c in found.candidates)
    for candidate in found.candidates:
        real = truth[candidate.option.number]
        assert real is None or candidate.survey.least_replicas * candidate.survey.gpus <= real
        if candidate.pruned:
            assert real is None or real >= (found.best[candidate.option.hardware].gpus or 0)


@SLOW
@given(rate=st.floats(5, 80), more=st.floats(1.1, 3))
def test_more_traffic_needs_no_fewer_gpus(base: Bases, rate: float, more: float) -> None:
    """Monotone in the rate."""
    few, many = (_gpus(base(), rate=r) for r in (rate, rate * more))
    assert few <= many


@SLOW
@given(ttft=st.floats(150, 2000), tpot=st.floats(15, 80), looser=st.floats(1.1, 3))
def test_looser_objectives_need_no_more_gpus(base: Bases, ttft: float, tpot: float, looser: float) -> None:
    """Monotone in the objectives."""
    tight, loose = (_gpus(base(slo={"ttft_p99_ms": ttft * f, "tpot_p99_ms": tpot * f})) for f in (1, looser))
    assert loose <= tight


def test_a_dearer_gpu_is_chosen_no_more_often(base: Bases) -> None:
    """Monotone in the price: the cheapest fleet's bill never falls when prices rise, and the smallest fleet stays."""
    bills, smallest = [], []
    for usd in (0.2, 0.5, 0.8, 3.0):
        asked = base(**{"cost.price_per_gpu_hour_usd": {"l4": usd}})
        found = search(question(asked, 30.0), options(asked, ["l4", "a40"]), ONE)
        assert found.cheapest is not None and found.smallest is not None
        bills.append(found.cheapest.usd_per_hour)
        smallest.append(found.smallest.gpus)
        assert (found.cheapest.option.hardware == "l4") <= (usd < 3.0)
    assert bills == sorted(bills) and len(set(smallest)) == 1


def _gpus(base: Base, rate: float = 30.0) -> float:
    found = search(question(base, rate), options(base, ["l4"]), ONE)
    return math.inf if found.smallest is None else float(found.smallest.gpus or 0)


def test_sizing_and_capacity_agree(base: Bases) -> None:
    """A fleet sized for a rate holds about that rate or more; with one replica fewer it holds less."""
    asked = question(base(), 60.0)
    [option] = options(base(), ["l4"])
    [candidate] = search(asked, [option], ONE).candidates
    replicas = candidate.sizing.replicas if candidate.sizing else None
    assert replicas is not None and replicas > 1
    held = [highest_rate(asked, option.overrides, candidate.survey, n) for n in (replicas, replicas - 1)]
    assert held[0] is not None and held[1] is not None and held[0] >= 0.98 * 60 > 0.98 * held[1]


def test_capacity_is_monotone_in_the_objectives(base: Bases) -> None:
    """A looser objective never lowers the highest rate: the bisection's ends are fixed."""
    rates = []
    for limit in (150, 300, 600, 1200):
        asked = question(base(slo={"ttft_p99_ms": limit}), 20.0)
        [option] = options(base(), ["l4"])
        rates.append(highest_rate(asked, option.overrides, survey((asked, option.overrides)), 1) or 0.0)
    assert rates == sorted(rates) and rates[0] < rates[-1]


def plan(base: Base, **changes: Any) -> Plan:
    """A plan with as little work as possible."""
    changes = {"seeds": 1, "horizon_s": 10.0, "draws": 0, "curves": False, **changes}
    return make_plan(Request(base, **changes), ONE)


def test_an_infeasible_plan_names_objectives_that_hold(base: Bases) -> None:
    """What no fleet can hold is said with the reason, and the nearest objectives do hold when they are asked for."""
    failed = plan(base(slo={"ttft_p99_ms": 5, "tpot_p99_ms": 500}), rate=20.0)
    assert failed.winner is None and failed.nearest is not None
    candidate, limits = failed.nearest
    assert "even idle" in candidate.why_not and limits["tpot_p99_ms"] == 500 and limits["ttft_p99_ms"] > 5
    assert plan(base(slo=limits), rate=2.0).winner is not None


def test_what_counts_as_idle_knows_whole_prompts(base: Bases) -> None:
    """Short beginnings that are shared do not make long prompts free: the replica that is called idle is idle."""
    shared = {"workload__shared_prefix": {"tokens": 64}, "workload__input_tokens": 3000, "workload__output_tokens": 4}
    found = plan(base(**shared, slo={"ttft_p99_ms": 1500}), rate=40.0)
    assert found.winner is not None and found.winner.replicas > 1


def test_a_plan_keeps_to_the_most_gpus(base: Bases) -> None:
    """More GPUs than allowed is no answer, and the reason says so."""
    failed = plan(base(), rate=5000.0, most_gpus=2)
    assert failed.winner is None and all("2" in c.why_not for c in failed.found.candidates)


def test_headroom_and_spare_replicas(base: Bases) -> None:
    """Head-room is sized as a higher rate; a spare replica is one more, and is paid for."""
    plain, roomy = plan(base(), rate=20.0), plan(base(), rate=20.0, headroom=0.5)
    assert _replicas(roomy) == _replicas(plan(base(), rate=30.0)) >= _replicas(plain)
    spared = plan(base(), rate=20.0, spare=1)
    assert _replicas(spared) == _replicas(plain) + 1
    assert spared.costs["l4"].usd_per_hour[1] > plain.costs["l4"].usd_per_hour[1]  # type: ignore[index]


def _replicas(made: Plan) -> int:
    assert made.winner is not None
    return made.winner.replicas


def test_draws_give_intervals_around_the_prediction(base: Bases) -> None:
    """Repetitions with drawn operator times give an interval for the fleet and the latencies, with the fleet inside."""
    made = plan(base(), rate=20.0, draws=3)
    assert made.winner is not None and made.winner.confidence is not None
    low, high = made.winner.least_replicas_interval() or (0, 0)
    assert low <= made.winner.replicas <= (high or 10**9)
    ttft = made.winner.interval("p99_ttft_ms")
    assert ttft is not None and ttft[0] < ttft[1]
    assert 0 <= made.winner.confidence <= 1


def test_what_a_fleet_holds(base: Bases) -> None:
    """The other way round: two replicas hold more than one, and about twice as much."""
    request = Request(base(), seeds=1, horizon_s=10.0, draws=0, curves=False)
    one, two = (fleet_capacity(request, n, ONE).winner for n in (1, 2))
    assert one is not None and two is not None and one.capacity is not None and two.capacity is not None
    assert 1.7 < two.capacity / one.capacity < 2.6


def test_the_executor_changes_no_number(base: Bases) -> None:
    """Two processes give the same plan as one."""
    request = Request(base(), ("l4",), Search.parse(["tp=[1, 2]"]), 20.0, seeds=1, horizon_s=5.0, draws=2, curves=False)
    one, two = (make_plan(request, LocalExecutor(jobs)) for jobs in (1, 2))
    assert one.studies.keys() == two.studies.keys() and one.studies
    for key, study in one.studies.items():
        assert study.observed == two.studies[key].observed and study.curve == two.studies[key].curve
        assert study.draws == two.studies[key].draws
    assert [c.why_not for c in one.found.candidates] == [c.why_not for c in two.found.candidates]


def test_an_open_question_is_refused(base: Bases) -> None:
    """Objectives are needed, a rate must mean something, pools cannot be planned, and search keys must exist."""
    with pytest.raises(ConfigError, match="needs objectives"):
        plan(base(slo={}), rate=1.0)
    with pytest.raises(ConfigError, match="set the pace"):
        plan(base(workload__arrival={"kind": "all_at_once"}), rate=1.0)
    with pytest.raises(ConfigError, match="pools"):
        plan(base(pools={}), rate=1.0)
    with pytest.raises(ConfigError, match="unknown key"):
        plan(base(), search=Search.parse(["engine.nothing=[1]"]))
    with pytest.raises(ConfigError, match="nothing to search"):
        Search.parse(["tq"])
