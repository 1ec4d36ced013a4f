"""A GPU of one's own as a profile: which shipped one it is, or what a measurement says of it, and the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sim.catalog import find
from sim.cost.calibration import Entry, Key
from sim.errors import ConfigError
from sim.specs.hardware import Gpu, load_gpu
from sim.validation.calibration_file import calibration_block, write_block
from sim.validation.measure.record import STACK

_SHIPPED: Mapping[str, str] = {
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "NVIDIA A40": "a40",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
    "Tesla V100-SXM2-16GB": "v100-sxm-16gb",
    "Tesla V100-SXM2-32GB": "v100-sxm-32gb",
}
"""Profiles by the names that drivers report (the H200's as seen, the others from memory)."""
_HEAD = "as measured by `roofserve calibrate --gpu`."
_REWRITTEN = rf"^((name|calibration):.*|# .* {re.escape(_HEAD)})\n"
"""Lines of a profile that are written anew, so that one may be calibrated again and again."""
_US = 1e-6
_COPY_BYTES = 4
_MEASURED = "measured: the fastest of this calibration"


def profile_name(environment: Mapping[str, Any]) -> str | None:
    """The shipped profile of the GPU that was measured; None when there is none."""
    return _SHIPPED.get(str(environment.get("gpu_name")))


def facts_of(environment: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], name: str) -> dict[str, Any]:
    """A profile of a GPU that none ships of: what the driver says, and roofs that are the best rates measured.

    Raises ConfigError when too little was measured for a roof.
    """
    products, passes = tables.get("gemm"), tables.get("passes")
    copies = None if passes is None else passes[passes.op == "copy"]
    if products is None or copies is None or copies.empty:
        raise ConfigError("needs measured GEMMs and copies to describe a GPU without a profile", key="hardware",
                          value=environment.get("gpu_name"))  # fmt: skip
    rates = 2.0 * products.m * products.n * products.k / (products.latency_us * _US)
    best = {scheme: float(rates[products.scheme == scheme].max()) for scheme in ("bf16", "fp16", "fp8")}
    bandwidth = copies.m * copies.width * _COPY_BYTES / (copies.latency_us * _US)
    large = copies.m * copies.width * _COPY_BYTES > 2 * environment["l2_bytes"]
    return {
        "name": name,
        "vendor_name": environment["gpu_name"],
        "generation": "hopper" if environment.get("compute_capability") == "9.0" else "other",
        "compute_capability": str(environment["compute_capability"]),
        "tensor_flops": {s: _fact(f"{rate:.4g} FLOP/s") for s, rate in best.items() if rate == rate},
        "memory_bytes": int(environment["memory_bytes"]),
        "memory_bandwidth_bytes_per_s": _fact(
            f"{float((bandwidth[large] if large.any() else bandwidth).max()):.4g} B/s"
        ),
        "l2_bytes": int(environment["l2_bytes"]),
        "sm_count": int(environment["sm_count"]),
        "links": {"pcie_bytes_per_s": _fact(f"{_pcie(tables):.4g} B/s")},
    }


def _fact(value: str) -> dict[str, str]:
    return {"value": value, "source": _MEASURED}


def _pcie(tables: Mapping[str, pd.DataFrame]) -> float:
    swaps = tables.get("swap")
    if swaps is None:
        raise ConfigError("needs measured swaps to describe a GPU without a profile", key="hardware")
    return float((swaps.blocks * swaps.block_bytes / (swaps.latency_us * _US)).max())


def base_gpu(
    environment: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], name: str, hardware: str | None, folder: Path
) -> tuple[Gpu, str]:
    """The GPU to fit for, and the text of its profile less its name and calibration."""
    known = hardware or profile_name(environment)
    if known is None:
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(facts_of(environment, tables, name), sort_keys=False), encoding="utf-8")
    else:
        path = find("hardware", known)
    text = re.sub(_REWRITTEN, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return load_gpu(path), text


def write_profile(path: Path, text: str, entries: Mapping[Key, Entry], environment: Mapping[str, Any]) -> Path:
    """Write the profile, and beside it its calibration, whose path is returned."""
    block = path.parent / "calibrations" / f"{path.stem}.yaml"
    facts = ", ".join(f"{key} {value}" for key, value in environment.items())
    write_block(
        calibration_block(entries.items()), path.stem, block, f"stack {STACK}: this GPU ({facts}); others: shipped"
    )
    head = f"# {environment.get('gpu_name')} {_HEAD}\nname: {path.stem}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{text.rstrip()}\ncalibration: calibrations/{path.stem}.yaml\n", encoding="utf-8")
    return block
