"""The published page on calibration: errors on rows of the fit beside errors on rows left out, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from sim.cost.calibration import Calibration, Entry, Key
from sim.cost.transfer import transferred
from sim.validation.figures import save_error_figure, save_roofline_figure
from sim.validation.kernel_report import Line, Priced, price_tables, report_line

_HEAD = """\
<!-- Regenerate: {command} -->
# Kernel cost functions against measurements

Every kernel is priced by a formula of physical constants (launch cost, shares of the tensor and memory peaks, tile and
wave granularity, overlap) times a small residual table in log space; both are fitted per operator class, number format
and software stack. Errors are per cent. *Left-out points*: five folds over points, each predicted by a fit that has not
seen it. *Left-out shapes*: ten folds over whole weight shapes, head layouts or models. *In 90 %*: how many of the rows
left out fall into the interval that is stated for the class, as derived from the other half of them. *Datasheet*: the
larger of FLOPs over the dense peak and bytes over the HBM peak, nothing calibrated. Benchmarks re-read their data, so
they are priced with L2-hot weights and KV where these fit; serving is priced cold. Measurements are public
({provenance}).
"""
COLUMNS: Sequence[str] = (
    "class", "format", "stack", "rows", "constants + table", "fit",
    "left-out points", "median", "p90", "bias", "in 90 %", "left-out shapes", "bias", "in 90 %", "datasheet",
)  # fmt: skip


def write_report(
    calibrations: Sequence[Calibration],
    tables: Mapping[str, pd.DataFrame],
    path: Path,
    *,
    command: str,
    provenance: str,
) -> None:
    """Write the page and, beside it, two figures per GPU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = [_HEAD.format(command=command, provenance=provenance)]
    for calibration in calibrations:
        page.append(_gpu_section(calibration, tables, path.parent))
    page.append(_transfer_section(calibrations, tables))
    path.write_text("\n".join(page), encoding="utf-8")


def _gpu_section(calibration: Calibration, tables: Mapping[str, pd.DataFrame], folder: Path) -> str:
    name = calibration.chip.name
    parts = list(price_tables(tables, calibration))
    errors, roof = f"calibration-{name}-errors.png", f"calibration-{name}-roofline.png"
    save_error_figure([part for part in parts if part.table in _FIGURE_TABLES], folder / errors)
    save_roofline_figure(parts, calibration.chip, folder / roof)
    rows = entry_rows(calibration, parts)
    pictures = f"![predicted over measured]({errors})\n\n![GEMM roofline]({roof})\n"
    return f"## {name}\n\n{markdown_table(COLUMNS, rows)}\n{pictures}"


def entry_rows(calibration: Calibration, parts: Sequence[Priced]) -> list[list[str]]:
    """One row of `COLUMNS` for each set of constants, the datasheet's error on the priced parts beside it."""
    datasheet = {(line.table, line.number_format): line for line in map(report_line, parts)}
    return [_row(key, entry, datasheet) for key, entry in calibration.entries.items()]


def _row(key: Key, entry: Entry, lines: Mapping[tuple[str, str], Line]) -> list[str]:
    residual = sum(len(sheet.values) for sheet in entry.kernel.residual.sheets)
    params: Any = entry.kernel.params
    fitted = sum(asdict(params)[f.name] != f.default for f in fields(params))
    fit, points, shapes = (entry.errors.get(how, {}) for how in ("train", "left_out_points", "left_out_shapes"))
    shown = [_number(points, k) for k in ("mape_pct", "median_pct", "p90_pct", "bias_pct", "in_90_pct")]
    whole = [_number(shapes, k) for k in ("mape_pct", "bias_pct", "in_90_pct")]
    line = next((found for (table, name), found in lines.items() if name == key.format and _same(table, key)), None)
    roof = f"{line.datasheet.mape_pct:.0f}" if line else ""
    return [*key, f"{fit.get('n', 0):.0f}", f"{fitted} + {residual}", _number(fit, "mape_pct"), *shown, *whole, roof]


def _same(table: str, key: Key) -> bool:
    return table == key.op_class or (key.op_class == "collective" and table in ("all_reduce", "collectives_other"))


def _number(stats: Mapping[str, float], name: str) -> str:
    if name not in stats:
        return ""
    return (
        f"{stats[name]:+.1f}" if name == "bias_pct" else f"{stats[name]:.0f}" if "90" in name else f"{stats[name]:.1f}"
    )


def _transfer_section(calibrations: Sequence[Calibration], tables: Mapping[str, pd.DataFrame]) -> str:
    """Each GPU predicted with every other one's constants and its own roofs."""
    rows = []
    for source in calibrations:
        for target in calibrations:
            if source is not target:
                parts = price_tables(tables, transferred(source, target.chip))
                rows += [_transfer_row(source, target, part) for part in parts if part.table in _TRANSFER_TABLES]
    intro = (
        "## Constants carried over\n\nMAPE of a GPU priced with another one's constants under its own roofs. Within a "
        "generation (H100, H200) this is usable and labelled `extrapolated`; across generations it is not.\n"
    )
    kept = [row for row in rows if row]
    return f"{intro}\n{markdown_table(('from', 'to', 'table', 'format', 'MAPE', 'bias'), kept)}"


_TRANSFER_TABLES = ("gemm", "attention_prefill", "attention_decode", "moe")
_FIGURE_TABLES = (*_TRANSFER_TABLES, "all_reduce")


def _transfer_row(source: Calibration, target: Calibration, part: Priced) -> list[str]:
    line = report_line(part)
    if not line.priced:
        return []
    errors = [f"{line.score.mape_pct:.1f}", f"{line.score.bias_pct:+.1f}"]
    return [source.chip.name, target.chip.name, line.table, line.number_format, *errors]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
