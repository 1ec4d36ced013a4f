"""A plan in sentences: the answer, why there is none, what was assumed."""

from __future__ import annotations

from collections.abc import Mapping

from sim.planner.plan import Plan
from sim.planner.study import Study
from sim.report.plan_rows import usd
from sim.report.rows import TRUST

_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "e2el": "E2E", "queue": "queue time"}


def objectives(slo: Mapping[str, float]) -> str:
    """`TTFT p99 <= 500 ms, TPOT p99 <= 50 ms`."""
    parts = []
    for key, value in slo.items():
        metric, _, rest = key.partition("_")
        statistic, unit = rest.rpartition("_")[::2]
        parts.append(f"{_METRICS.get(metric, metric)} {statistic or 'p99'} <= {value:g} {unit}")
    return ", ".join(parts)


def traffic(plan: Plan) -> str:
    """What is to be served."""
    if plan.rate is not None:
        return f"{plan.rate:.4g} {'sessions' if plan.traffic.per_session else 'requests'}/s"
    return f"{plan.winner.observed[0].summary['num_prompts']:,} requests" if plan.winner else "this traffic"


def answer(plan: Plan) -> str:
    """The answer in one sentence."""
    cheapest, smallest = plan.cheapest, plan.smallest
    if cheapest is None and smallest is None:
        return _infeasible(plan)
    first = cheapest or smallest
    if first is None:
        return ""
    told = f"{_fleet(plan, first)} {'holds' if first.gpus == 1 else 'hold'} {traffic(plan)} within "
    told += f"{objectives(plan.slo)}{_reserves(plan)}"
    if cheapest is None:
        return f"{told}: the smallest fleet; no prices are known{_sure(first)}."
    if smallest is None or smallest.gpus == cheapest.gpus:
        return f"{told}, for {_money(plan, cheapest)}: the cheapest fleet, and none is smaller{_sure(first)}."
    return f"{told}, for {_money(plan, cheapest)}: the cheapest fleet{_sure(first)}. The smallest is " \
           f"{_fleet(plan, smallest)}, for {_money(plan, smallest)}{_sure(smallest)}."  # fmt: skip


def capacity_answer(plan: Plan) -> str:
    """What given fleets hold, a sentence each."""
    told = []
    for key, one in plan.studies.items():
        fleet = f"{one.gpus} x {key} ({one.replicas} {'replica' if one.replicas == 1 else 'replicas'})"
        if one.capacity is None:
            told.append(f"{fleet} hold {objectives(plan.slo)} at no rate.")
            continue
        interval = one.capacity_interval()
        sure = "" if interval is None else f" (90 %: {interval[0]:.3g} to {interval[1]:.3g})"
        told.append(f"{fleet} hold up to {one.capacity:.3g} requests/s{sure} within {objectives(plan.slo)}.")
    return " ".join(told) or "Nothing asked for can be built."


def _fleet(plan: Plan, one: Study) -> str:
    replicas = f"{one.replicas} {'replica' if one.replicas == 1 else 'replicas'}"
    return f"{one.gpus} x {one.candidate.option.hardware} ({replicas}: {one.candidate.option.label})"


def _money(plan: Plan, one: Study) -> str:
    price = plan.costs_of(one).usd_per_hour
    if price is None:
        return "an unknown price"
    low, mid, high = price
    return f"{usd(mid)}/h" + (f" ({usd(low)} to {usd(high)})" if high > low else "")


def _reserves(plan: Plan) -> str:
    parts = []
    if plan.request.headroom:
        parts.append(f"{plan.request.headroom:.0%} head-room")
    if plan.request.spare:
        parts.append(f"{plan.request.spare} replica{'s' if plan.request.spare > 1 else ''} to spare")
    return f" with {' and '.join(parts)}" if parts else ""


def _sure(one: Study) -> str:
    interval = one.least_replicas_interval()
    if one.confidence is None or interval is None:
        return ""
    low, high = interval
    if low == high:
        needed = f"{low}"
    else:
        needed = f"{low} to {high}" if high is not None else f"{low} to more than {2 * one.replicas}"
    needed += " replica" if needed == "1" else " replicas"
    return f" (holds in {one.confidence:.0%} of {len(one.draws)} repetitions with operator times and traffic drawn " \
           f"anew; 90 % of them need {needed})"  # fmt: skip


def _infeasible(plan: Plan) -> str:
    told = f"No fleet holds {traffic(plan)} within {objectives(plan.slo)}"
    reasons = [c for c in plan.found.candidates if c.why_not]
    if plan.nearest is None:
        why = reasons[0].why_not if reasons else "nothing was tried"
        return f"{told}: {why}."
    candidate, limits = plan.nearest
    option = candidate.option
    return f"{told}. Closest is {option.hardware} ({option.label}), {candidate.why_not}; it would hold " \
           f"{objectives(limits)}."  # fmt: skip


def nearest_option(plan: Plan) -> str:
    """The nearest feasible objectives as `--slo` takes them; empty where something holds."""
    if plan.nearest is None:
        return ""
    return ",".join(f"{key}={value:g}" for key, value in plan.nearest[1].items())


def assumptions(plan: Plan) -> list[str]:
    """What the numbers rest on."""
    request, tariff = plan.request, plan.scenario.scenario.cost
    labels = sorted({one.observed[0].trust for one in plan.studies.values()})
    told = [f"Trust: {label} ({TRUST.get(label, 'unknown')})." for label in labels]
    told += [f"{note[:1].upper()}{note[1:]}." for note in plan.traffic.notes]
    span = f"{request.horizon_s:g} s of traffic, but at least 1000 requests" if plan.rate else "the whole traffic"
    told.append(
        f"Every fleet was simulated with {request.seeds} seeds and {span}; it must hold with each of them. All "
        "configurations meet the same requests (common random numbers)."
    )
    if request.draws:
        told.append(
            f"Intervals are 90 % over {request.draws} repetitions: other traffic, and operator times drawn from the "
            "errors of their calibration. Systematic errors beyond the kernels are not in them."
        )
    told.append("The highest rate is searched on a grid of 2 %.")
    told.append(
        "Prices are on demand, per GPU-hour, as the profiles state them; all GPUs are paid for, busy or not. The bill "
        "is shared between prompt and answer tokens by the time that one of each costs a replica."
    )
    told.append(
        "Power is an upper bound: the limit of the card (TDP) while it computes, idle with an open context while it "
        f"waits; PUE {tariff.power_usage_effectiveness:g}. CPUs, network and storage are not counted."
    )
    if tariff.carbon_intensity is not None:
        told.append(f"Carbon at {tariff.carbon_intensity:g} gCO2/kWh.")
    priced = {c.option.hardware: c.option.price for c in plan.found.candidates}
    told += [
        f"Price of {name}: none known." if price is None else
        f"Price of {name}: {usd(price.mid)} per GPU-hour, {usd(price.low)} to {usd(price.high)} ({price.source})."
        for name, price in priced.items()
    ]  # fmt: skip
    first = plan.winner.observed[0] if plan.winner else None
    if first is not None and first.too_long:
        part = first.too_long / first.summary["num_prompts"]
        told.append(f"{part:.1%} of the requests exceed the model's context: every fleet refuses them.")
    notes = [note for one in plan.studies.values() for note in one.observed[0].notes]
    return told + [f"{note[:1].upper()}{note[1:]}." for note in dict.fromkeys(notes)]
