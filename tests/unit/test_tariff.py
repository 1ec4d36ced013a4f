"""Prices, power and carbon: data of the profiles, overridden by a scenario."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sim import load_scenario
from sim.metrics import summarise
from sim.run import simulate
from sim.specs.hardware import load_gpu
from sim.tariff import CostSpec, carbon_intensities, fleet_watts

SMALL = {"workload.num_requests": 20}


def test_a_profile_states_its_price() -> None:
    """Low, usual and high end of the market, and who says so."""
    gpu = load_gpu("h100-sxm")
    price = CostSpec().price_of(gpu)
    assert price is not None and gpu.price_per_hour_usd is not None
    assert (price.low, price.mid, price.high) == (1.99, 4.5, 6.74) and "2026" in price.source


@pytest.mark.parametrize("given", [2.0, {"h100-sxm": 2.0}])
def test_a_scenario_overrides_prices(given: float | dict[str, float]) -> None:
    """One price for all GPUs, or by name; others keep their profile's."""
    spec = CostSpec(price_per_gpu_hour_usd=given)
    price, other = spec.price_of(load_gpu("h100-sxm")), spec.price_of(load_gpu("l4"))
    assert price is not None and price.low == price.mid == price.high == 2.0
    assert other is not None and (other.mid == 2.0) == isinstance(given, float)


def test_a_run_uses_the_price_of_its_scenario() -> None:
    """Half the price, half the dollars per token; the resolved scenario keeps it."""
    dollars = []
    for usd in (4.0, 2.0):
        result = simulate(load_scenario("quickstart", {**SMALL, "cost.price_per_gpu_hour_usd": usd}))
        dollars.append(summarise(result)["usd_per_million_output_tokens"])
        assert result.manifest["scenario"]["cost"] == {"price_per_gpu_hour_usd": usd}
    assert dollars[0] == pytest.approx(2 * dollars[1])
    assert "cost" not in simulate(load_scenario("quickstart", SMALL)).manifest["scenario"]


def test_power_lies_between_idle_and_limit() -> None:
    """An idle fleet draws idle power with a context, a busy one its limit."""
    gpu = load_gpu("h100-sxm")
    assert fleet_watts(gpu, 2, 0.0) == 2 * (71 + 38) and fleet_watts(gpu, 2, 1.0) == 2 * 700
    assert fleet_watts(gpu, 1, 0.0) < fleet_watts(gpu, 1, 0.5) < fleet_watts(gpu, 1, 1.0)


def test_carbon_of_a_country_and_of_a_number() -> None:
    """A kilowatt-hour in Germany is 381 g; the data centre's overhead comes on top."""
    assert carbon_intensities()["DEU"] == 381
    assert CostSpec(carbon_g_per_kwh="DEU").carbon_g(3.6e6) == pytest.approx(381)
    assert CostSpec(carbon_g_per_kwh=100.0, power_usage_effectiveness=1.5).carbon_g(3.6e6) == pytest.approx(150)
    assert CostSpec().carbon_g(1.0) is None
    with pytest.raises(ValidationError, match="no grid"):
        CostSpec(carbon_g_per_kwh="DEX")
