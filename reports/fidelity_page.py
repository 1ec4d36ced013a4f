"""The page, the figures and the envelope of the fidelity study."""

# ruff: noqa: E501 - table rows are one line each
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_causes import cause
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sim.report.style import COLOURS, axes_of, house_style, new_figure, png_bytes, settle, three_digits
from sim.trust import METRICS
from sim.validation.serving.case import WHOLE_RUN
from sim.validation.serving.envelope import coverage, envelope_of, points, save
from sim.validation.serving.score import Line, Scored, comparable, failed, score, summarise
from sim.validation.serving.score import coverage as counted

HERE = Path(__file__).parent
COMMAND = "python reports/fidelity.py MEASUREMENTS"
HELD_TO = {
    ("serving_runs", "tpot_mean"): "2.5 / 6", ("serving_runs", "e2e_mean"): "2.5 / 6", ("serving_runs", "ttft_mean"): "5 / 15",
    ("serving_runs", "e2e_p99"): "5 / 12", ("bench_serve_runs", "tpot_mean"): "8 / 20", ("bench_serve_runs", "e2e_mean"): "8 / 20",
    ("bench_serve_runs", "out_tok_s"): "6 / 20", ("closed_loop_runs", "tpot"): "5 / 15", ("closed_loop_runs", "e2e_derived"): "5 / 15",
    ("closed_loop_runs", "ttft"): "15 / 40", ("closed_loop_runs", "out_tok_s_gpu_derived"): "5 / 15",
    ("offline_throughput", "out_tok_s"): "5 / 15",
}  # fmt: skip
PEERS = {
    ("serving_runs", "tpot_mean"): "8 / 25", ("serving_runs", "e2e_mean"): "8 / 17", ("serving_runs", "ttft_mean"): "18 / 34",
    ("serving_runs", "e2e_p99"): "10 / 24", ("closed_loop_runs", "tpot"): "13.5 / 50", ("closed_loop_runs", "ttft"): "41 / 85",
    ("closed_loop_runs", "out_tok_s_gpu_derived"): "14 / 42",
}  # fmt: skip
SHOWN = (*HELD_TO, ("closed_loop_runs", "tpot"), ("bench_serve_runs", "ttft_mean"), ("bench_serve_runs", "itl_mean"),
         ("online_qps_runs", "itl_mean"), ("online_qps_runs", "ttft_mean"), ("online_qps_runs", "out_tok_s"),
         ("offline_throughput", "ttft"), ("quantisation_bench", "tpot_mean"), ("quantisation_bench", "total_tok_s"))  # fmt: skip
_WORST = 20
_COLOURS = ("ttft", "tpot", "itl", "e2el", "output", "prefill", "waiting")


def write(study: Any, folder: Path) -> None:
    """fidelity.md, a figure per table, and the package's envelope."""
    inside, outside = score(study.in_sample), score(study.left_out)
    known = points(outside)
    table = envelope_of(known)
    save(table, folder.parent / "sim" / "data" / "envelope.yaml", COMMAND)
    tables = sorted({line.case.table for line in outside})
    for name in tables:
        (folder / f"fidelity-{name.replace('_', '-')}.png").write_bytes(_figure(name, outside))
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    page = environment.from_string((HERE / "fidelity.md.j2").read_text(encoding="utf-8")).render(
        command=COMMAND, rows=_rows(inside, outside), groups=_groups(inside, outside), worst=_worst(outside),
        tables=[(name, name.replace("_", "-")) for name in tables], predicted=counted(study.in_sample),
        missing=failed(study.in_sample, suspect=False), suspect=failed(study.in_sample, suspect=True),
        doubted=_doubted(study), regimes=_regimes(study), coverage=coverage(known), cells=table.cells, metrics=METRICS,
        folds=study.folds, blocks=study.blocks, cpu_s=study.cpu_s,
    )  # fmt: skip
    (folder / "fidelity.md").write_text(page.rstrip() + "\n", encoding="utf-8")


def _of(lines: Sequence[Scored], by: str) -> dict[tuple[str, str, str], Line]:
    steady = [line for line in lines if comparable(line) and not (line.case.overloaded and line.stage == WHOLE_RUN)]
    return {(line.table, line.name, line.metric): line for line in summarise(steady, by)}


def _figures(line: Line | None) -> str:
    return "-" if line is None else f"{line.median:.1f} / {line.p90:.1f}"


def _rows(inside: Sequence[Scored], outside: Sequence[Scored]) -> list[dict[str, Any]]:
    """One row per table and metric: left out and in sample side by side, what was asked, and the peers."""
    left, known = _of(outside, "all"), _of(inside, "all")
    found = []
    for table, metric in dict.fromkeys(sorted(SHOWN)):
        line = left.get((table, "all", metric))
        if line is not None:
            found.append({
                "table": table, "metric": metric, "n": line.n, "left": _figures(line), "in": _figures(known.get((table, "all", metric))),
                "bias": f"{line.bias:+.1f}", "held": HELD_TO.get((table, metric), ""), "peers": PEERS.get((table, metric), ""),
            })  # fmt: skip
    return found


def _groups(inside: Sequence[Scored], outside: Sequence[Scored]) -> list[dict[str, Any]]:
    """The same by engine, class and GPU, for the metric of each table that matters most."""
    main = {"serving_runs": "tpot_mean", "closed_loop_runs": "tpot", "bench_serve_runs": "out_tok_s", "offline_throughput": "out_tok_s",
            "online_qps_runs": "itl_mean", "quantisation_bench": "total_tok_s"}  # fmt: skip
    found = []
    for by in ("engine", "class", "gpu"):
        left, known = _of(outside, by), _of(inside, by)
        for (table, name, metric), line in sorted(left.items()):
            if main.get(table) == metric:
                found.append({"by": by, "table": table, "name": name, "metric": metric, "n": line.n, "left": _figures(line),
                              "in": _figures(known.get((table, name, metric))), "bias": f"{line.bias:+.1f}"})  # fmt: skip
    return found


def _worst(outside: Sequence[Scored]) -> list[dict[str, Any]]:
    """The largest errors of headline metrics, one line per run and at most three per model and engine."""
    headline = {*HELD_TO}
    lines = [line for line in outside if comparable(line) and (line.case.table, line.metric) in headline]
    seen: dict[Any, int] = {}
    found: list[dict[str, Any]] = []
    for line in sorted(lines, key=lambda line: -abs(np.log(line.predicted / line.actual))):
        labels = line.case.labels
        kind = line.case.table, labels["model"], labels["engine"]
        if ("run", line.case.table, line.case.id) in seen or seen.get(kind, 0) >= 3 or len(found) == _WORST:
            continue
        seen["run", line.case.table, line.case.id] = 1
        seen[kind] = seen.get(kind, 0) + 1
        found.append({"line": line, "labels": labels, "cause": cause(line)})
    return found


def _doubted(study: Any) -> list[tuple[str, str, int]]:
    counts: dict[tuple[str, str], int] = {}
    for case, predicted in study.in_sample:
        if case.doubt and not predicted.problem:
            counts[case.table, case.doubt] = counts.get((case.table, case.doubt), 0) + 1
    return [(*key, number) for key, number in sorted(counts.items())]


def _regimes(study: Any) -> dict[str, Any]:
    known = [
        (case, found) for case, found in study.left_out if case.overloaded is not None and found.overloaded is not None
    ]
    wrong = [case.id for case, found in known if case.overloaded != found.overloaded]
    return {"runs": len(known), "wrong": wrong}


def _figure(table: str, lines: Sequence[Scored]) -> bytes:
    chosen = [line for line in lines if line.case.table == table and comparable(line)]
    panels = [
        (title, found) for title, names in _PANELS for found in [[x for x in chosen if x.metric in names]] if found
    ]
    series = sorted({_series(line) for line in chosen})
    with house_style():
        figure = new_figure(3.3 if len(panels) > 1 else 4.6)
        for i, (axes, (title, found)) in enumerate(zip(axes_of(figure, 1, len(panels)), panels, strict=True)):
            _scatter(axes, title, found, series)
            axes.set_ylabel("" if i else "predicted, model left out")
        handles = [_marker(i, name) for i, name in enumerate(series)]
        figure.legend(handles=handles, loc="outside lower center", ncol=4, fontsize=7.5, markerscale=1.8)
        settle(figure)
        return png_bytes(figure)


def _series(line: Scored) -> str:
    return f"{line.case.labels['engine'].split(' ')[0].lower()} {line.case.labels['class']}"


def _marker(i: int, name: str) -> Line2D:
    colour = COLOURS[_COLOURS[i % len(_COLOURS)]]
    return Line2D(
        [], [], ls="", marker=_MARKERS[i % len(_MARKERS)], ms=2.6, alpha=0.6, mew=0.4, color=colour, label=name
    )


def _scatter(axes: Axes, title: str, found: Sequence[Scored], series: Sequence[str]) -> None:
    for i, name in enumerate(series):
        own = [x for x in found if _series(x) == name]
        line = _marker(i, name)
        line.set_data([x.actual for x in own], [x.predicted for x in own])
        axes.add_line(line)
    values = [v for x in found for v in (x.actual, x.predicted)]
    low, high = min(values) / 1.3, max(values) * 1.3
    axes.plot([low, high], [low, high], "k-", lw=0.8)
    axes.fill_between([low, high], [low / 1.2, high / 1.2], [low * 1.2, high * 1.2], color="k", alpha=0.08, lw=0)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured", title=title)
    axes.set_aspect("equal")
    steps = (1.0, 2.0, 5.0) if high / low < 30 else (1.0,)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: three_digits(value) if value < 1e4 else f"{value:.0e}"))


_PANELS = (
    ("TTFT (ms)", ("ttft_mean", "ttft")),
    ("TPOT (ms)", ("tpot_mean", "tpot", "itl_mean")),
    ("output tokens/s", ("out_tok_s", "out_tok_s_gpu_derived")),
)
_MARKERS = "osD^vPX*"
