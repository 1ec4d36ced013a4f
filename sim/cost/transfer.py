"""Carrying fitted constants over to a GPU of the same generation that nobody measured.

Efficiencies are shares of roofs, so they carry over as they are and the other chip's roofs do the rest; rates of one
SM follow its compute rate, costs per byte follow the memory bandwidth, and launch costs stay. The H200 predicted from
the H100 this way is 4 to 12 % off by class (its own fit: 2 to 11 %); the H100 predicted from the A100 20 to 80 %, for
across generations instructions and kernels change.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

from sim.cost.calibration import Calibration, Entry
from sim.cost.kernels.chip import Chip

TRANSFER_SIGMA = 0.08
"""Spread (log) that carrying over adds to the error distribution."""

_PER_SM_RATES = ("feed_bytes_per_s", "stream_bytes_per_s")
_PER_BYTE_COSTS = ("io_s_per_byte", "write_s_per_byte", "pair_s_per_byte")


def transferred(calibration: Calibration, chip: Chip) -> Calibration:
    """The calibration as it would be on `chip`, with wider error distributions and no claim to statistics."""
    entries = {key: _carry(entry, calibration.chip, chip) for key, entry in calibration.entries.items()}
    return Calibration(chip, entries)


def _carry(entry: Entry, measured: Chip, chip: Chip) -> Entry:
    params: Any = entry.kernel.params
    sm_rate = (chip.peak("bf16") / chip.sms) / (measured.peak("bf16") / measured.sms)
    byte_cost = measured.hbm_bytes_per_s / chip.hbm_bytes_per_s
    values = asdict(params)
    scaled = {name: values[name] * sm_rate for name in _PER_SM_RATES if name in values}
    scaled |= {name: values[name] * byte_cost for name in _PER_BYTE_COSTS if name in values}
    kernel: Any = replace(entry.kernel, chip=chip, params=replace(params, **scaled))
    return Entry(kernel, f"extrapolated from {measured.name}: {entry.source}", {}, _widened(entry))


def _widened(entry: Entry) -> dict[float, float]:
    normal = NormalDist()
    spread = {q: TRANSFER_SIGMA * normal.inv_cdf(q) for q in entry.log_error_quantiles}
    return {q: _combine(value, spread[q]) for q, value in entry.log_error_quantiles.items()}


def _combine(own: float, extra: float) -> float:
    """Deviations of independent causes add in squares, on the side of the extra one."""
    return round(math.copysign(math.hypot(own, extra), extra or own), 4)
