"""What serving costs: per hour, per million tokens (prompt and answer apart), per token in energy and carbon."""

from __future__ import annotations

from dataclasses import dataclass

from sim.planner.study import Study
from sim.tariff import CostSpec, fleet_watts

_MILLION, _HOUR_S = 1e6, 3600.0


@dataclass(frozen=True)
class Costs:
    """Of one fleet at its planned load. Money is None where nobody stated a price."""

    usd_per_hour: tuple[float, float, float] | None
    """At the cheap, the usual and the dear end of the market."""
    usd_per_million_input_tokens: float | None
    usd_per_million_output_tokens: float | None
    usd_per_million_tokens: float | None
    """Input and output together."""
    watts: float
    """At most: GPUs at their power limit while they compute."""
    joules_per_output_token: float
    carbon_g_per_hour: float | None
    output_tokens_per_s_per_gpu: float


def costs_of(study: Study, tariff: CostSpec, rate: float | None) -> Costs:
    """The costs of a fleet; every replica, spare or idle, is paid for.

    The bill is shared between prompt and answer tokens in the ratio of what one of each costs a replica in time: an
    answer token its share of a decode step, a prompt token what it adds to a step (`Anatomy`).
    """
    told = study.observed[0].summary
    received, generated = _tokens_per_s(study, rate)
    option = study.candidate.option
    price = option.price
    weight_in, weight_out = study.anatomy.prompt_token_s, study.anatomy.answer_token_s
    watts = fleet_watts(option.gpu, study.gpus, float(told["busy_share"]))
    usd = None if price is None else (study.gpus * price.low, study.gpus * price.mid, study.gpus * price.high)
    per_second = None if usd is None else usd[1] / _HOUR_S
    share = None if per_second is None else per_second / (weight_in * received + weight_out * generated)
    return Costs(
        usd,
        None if share is None else share * weight_in * _MILLION,
        None if share is None else share * weight_out * _MILLION,
        None if per_second is None else per_second / (received + generated) * _MILLION,
        watts,
        watts * tariff.power_usage_effectiveness / generated,
        tariff.carbon_g(watts * _HOUR_S),
        generated / study.gpus,
    )


def _tokens_per_s(study: Study, rate: float | None) -> tuple[float, float]:
    """Prompt and answer tokens per second: of the traffic where it has a rate, else of the whole run."""
    told = study.observed[0].summary
    received, generated = float(told["total_input_tokens"]), max(1.0, float(told["total_output_tokens"]))
    seconds = float(told["duration"]) if rate is None else float(told["completed"]) / rate
    return received / seconds, generated / seconds
