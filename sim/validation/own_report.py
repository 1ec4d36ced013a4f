"""The page about a GPU of one's own: environment, errors of the fit, every kernel on its roofline, and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Calibration
from sim.validation.figures import save_all_kernels_figure, save_error_figure
from sim.validation.kernel_report import price_tables
from sim.validation.measure.record import Measurement
from sim.validation.report import COLUMNS, entry_rows, markdown_table

_HEAD = """\
<!-- Regenerate: {command} -->
# Kernels on {gpu}

Measured with CUDA events inside captured graphs (swaps and launches: as issued by the host), median of repeats; weights
and KV rotate through copies that outgrow the L2 twice, activations stay where the kernel before would have left them.
Clocks and power were left alone. *Left-out points* and *left-out shapes*: cross-validation, each predicted by a fit
that has not seen it. Errors are per cent.
"""
_SIZES = ["batch", "seq_len", "prefix_len", "num_heads", "num_kv_heads", "head_dim"]


def write_own_report(
    calibration: Calibration,
    tables: Mapping[str, pd.DataFrame],
    measurements: Sequence[Measurement],
    environment: Mapping[str, Any],
    folder: Path,
    *,
    command: str,
) -> Path:
    """Write `report.md`, two figures and the tables as CSV into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        rows.to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
    parts = list(price_tables(tables, calibration))
    save_error_figure(parts, folder / "errors.png")
    save_all_kernels_figure(parts, calibration.chip, folder / "roofline.png")
    page = [
        _HEAD.format(command=command, gpu=environment.get("gpu_name")),
        markdown_table(("fact", "value"), [[name, str(value)] for name, value in environment.items()]),
        "## Errors of the fit\n",
        markdown_table(COLUMNS, entry_rows(calibration, parts)),
        "![predicted over measured](errors.png)\n\n![every kernel under the roof](roofline.png)\n",
        "## Comparisons\n",
        markdown_table(("what", "median ratio", "points"), list(comparisons(tables))),
        "## Conditions\n",
        markdown_table(("quantity", "lowest", "median", "highest"), list(conditions(measurements))),
        *failures(measurements),
    ]
    path = folder / "report.md"
    path.write_text("\n".join(page), encoding="utf-8")
    return path


def comparisons(tables: Mapping[str, pd.DataFrame]) -> Iterator[list[str]]:
    """What paging, fusing and graphs are worth, at equal sizes."""
    blocks = tables.get("decode_blocks")
    if blocks is not None:
        for size, label in ((0, "contiguous KV"), (8, "blocks of 8"), (32, "blocks of 32")):
            chosen = blocks[blocks.block_tokens == size]
            yield from _ratio(f"decode, {label} over blocks of 16", chosen, blocks[blocks.block_tokens == 16], _SIZES)
    prefill = tables.get("attention_prefill")
    if prefill is not None:
        flash = prefill[prefill.kv_dtype == "bf16-flash"]
        for other, label in (("bf16-unfused", "unfused"), ("bf16-cudnn", "cuDNN"), ("bf16", "paged Triton")):
            yield from _ratio(f"prefill, {label} over flash", prefill[prefill.kv_dtype == other], flash, _SIZES)
    gemm = tables.get("gemm")
    if gemm is not None:
        dense = gemm[gemm.scheme == "bf16"]
        for scheme in sorted(set(gemm.scheme) - {"bf16"}):
            for few, label in ((True, "up to 16 rows"), (False, "1024 rows and more")):
                chosen = gemm[(gemm.scheme == scheme) & (gemm.m <= 16 if few else gemm.m >= 1024)]
                yield from _ratio(f"GEMM, {scheme} over bf16, {label}", chosen, dense, ["m", "n", "k"])
    launches = tables.get("launches")
    if launches is not None:
        eager, graph = (launches[launches.op == how] for how in ("eager", "graph"))
        yield from _ratio("empty kernel, eager over captured", eager, graph, ["count"])


def _ratio(what: str, one: pd.DataFrame, other: pd.DataFrame, on: list[str]) -> Iterator[list[str]]:
    both = one.merge(other, on=on, suffixes=("", "_other"))
    if len(both):
        yield [what, f"{np.median(both.latency_us / both.latency_us_other):.3f}", str(len(both))]


def conditions(measurements: Sequence[Measurement]) -> Iterator[list[str]]:
    """The range of clocks, power and temperature, and how far repeats lay apart."""
    good = [one for one in measurements if one.latency_us]
    readings = {
        name: [one.clocks[name] for one in good if name in one.clocks] for name in ("sm_mhz", "power_w", "celsius")
    }
    readings["spread of repeats, %"] = [100 * one.spread for one in good]
    for name, values in readings.items():
        if values:
            yield [name, *(f"{f(values):.1f}" for f in (min, np.median, max))]


def failures(measurements: Sequence[Measurement]) -> Iterator[str]:
    """What could not be measured, by reason."""
    counts: dict[tuple[str, str], int] = {}
    for one in measurements:
        if one.error:
            kind = str(
                one.sizes.get("scheme") or one.sizes.get("kv_dtype") or one.sizes.get("op") or one.sizes.get("how")
            )
            counts[f"{one.table} {kind}", one.error] = counts.get((f"{one.table} {kind}", one.error), 0) + 1
    if counts:
        rows = [[what, error.replace("|", "/"), str(n)] for (what, error), n in counts.items()]
        yield "## Not measured\n"
        yield markdown_table(("kernel", "reason", "sizes"), rows)
