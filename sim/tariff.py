"""What a fleet costs in money, energy and carbon. Prices and powers are data of the hardware profile, with their
sources; `cost:` in a scenario overrides them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sim.documents import load_yaml
from sim.errors import ConfigError
from sim.specs.hardware import Gpu

_GRIDS = Path(__file__).resolve().parent / "data" / "carbon.yaml"
_J_PER_KWH = 3.6e6

Usd = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known_grid(value: float | str) -> float | str:
    if isinstance(value, str) and value not in (known := carbon_intensities()):
        raise ValueError(str(ConfigError("is no grid we have a figure of", value=value, choices=known)))
    if not isinstance(value, str) and value < 0:
        raise ValueError("must not be negative")
    return value


class CostSpec(BaseModel):
    """Prices of one's own instead of the profiles', and where the electricity comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    price_per_gpu_hour_usd: Usd | dict[str, Usd] | None = Field(
        default=None, description="one GPU for one hour, US dollars: of all GPUs, or by profile name"
    )
    power_usage_effectiveness: float = Field(
        default=1.0, ge=1, allow_inf_nan=False, description="energy of the data centre over that of its computers (PUE)"
    )
    carbon_g_per_kwh: Annotated[float | str, AfterValidator(_known_grid)] | None = Field(
        default=None, description="of the electricity: a number, or a country such as DEU (average of 2023)"
    )

    def price_of(self, gpu: Gpu) -> Price | None:
        """What one GPU costs per hour; None where neither the scenario nor the profile says."""
        given = self.price_per_gpu_hour_usd
        own = given.get(gpu.name) if isinstance(given, dict) else given
        if own is not None:
            return Price(own, own, own, "the scenario's cost key")
        stated = gpu.price_per_hour_usd
        return None if stated is None else Price(stated.low, stated.mid, stated.high, stated.source)

    @property
    def carbon_intensity(self) -> float | None:
        """Grams of CO2 per kilowatt-hour."""
        given = self.carbon_g_per_kwh
        return carbon_intensities()[given] if isinstance(given, str) else given

    def carbon_g(self, energy_j: float) -> float | None:
        """Grams of CO2 for the energy that computers drew, that of their data centre included."""
        intensity = self.carbon_intensity
        return None if intensity is None else energy_j * self.power_usage_effectiveness / _J_PER_KWH * intensity


@dataclass(frozen=True)
class Price:
    """Of one GPU for one hour, US dollars: cheap, usual and dear end of the market, and who says so."""

    low: float
    mid: float
    high: float
    source: str


def carbon_intensities() -> dict[str, float]:
    """Grams of CO2 per kilowatt-hour by country; the file names its source."""
    data: dict[str, Any] = load_yaml(_GRIDS).data
    return {str(name): float(value) for name, value in data["g_per_kwh"].items()}


def fleet_watts(gpu: Gpu, gpus: int, busy_share: float) -> float:
    """Most power that a fleet draws: at its limit (TDP) while it computes, idle with a CUDA context while it waits.

    An upper bound: steps that wait for memory draw less than the limit, by how much nobody has published per kernel.
    """
    idle = float(gpu.loaded_idle_watts)
    return gpus * (idle + (float(gpu.tdp_watts) - idle) * min(1.0, max(0.0, busy_share)))
