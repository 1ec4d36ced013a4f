"""Everything a plan leaves for people and programs: one self-contained page, figures, and every table as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.planner.plan import Plan
from sim.planner.tables import write_table
from sim.planner.vllm_serve import command_line
from sim.report.html import inlined, rendered
from sim.report.plan_plots import FIGURES, PlanFigure
from sim.report.plan_rows import (
    CANDIDATE_COLUMNS,
    COST_COLUMNS,
    EQUAL_COLUMNS,
    LIMIT_COLUMNS,
    PLAN_COLUMNS,
    Column,
    Row,
    candidate_rows,
    cells,
    curve_rows,
    day_rows,
    equal_rows,
    plan_rows,
    told,
)
from sim.report.plan_words import answer, assumptions, capacity_answer, nearest_option, objectives, traffic
from sim.report.style import house_style, png_bytes, settle, svg_text
from sim.results import replace_text

PAGE = "plan.html"


def write_plan(plan: Plan, directory: Path, *, command: str = "", inverse: bool = False, figures: bool = True) -> Path:
    """Write `plan.html`, `plan.json`, tables as .parquet and .csv, and `figures/`; returns the path of the page.

    `command` is what was typed, for the page's first line; `inverse`: the plan asks what given fleets hold, rather
    than which fleet holds a rate.
    """
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    tables = {"plan": plan_rows(plan), "candidates": candidate_rows(plan), "curves": curve_rows(plan),
              "day": day_rows(plan), "equal_load": equal_rows(plan)}  # fmt: skip
    for name, rows in tables.items():
        if rows:
            write_table(rows, directory / f"{name}.parquet")
    replace_text(directory / "plan.json", plan_json(plan, inverse=inverse))
    drawings = list(_drawings(plan, directory / "figures")) if figures else []
    replace_text(directory / PAGE, render_plan(plan, drawings, command, inverse=inverse))
    return directory / PAGE


def plan_json(plan: Plan, *, inverse: bool = False) -> str:
    """The answer for programs; the same plan gives the same bytes."""
    winner = plan.winner
    told = {
        "answer": capacity_answer(plan) if inverse else answer(plan),
        "feasible": bool(plan.studies),
        "rate": plan.rate,
        "slo": dict(plan.slo),
        "nearest_slo": plan.nearest[1] if plan.nearest else None,
        "cheapest": plan.cheapest.candidate.option.hardware if plan.cheapest and not inverse else None,
        "smallest": plan.smallest.candidate.option.hardware if plan.smallest and not inverse else None,
        "command": list(winner.anatomy.command) if winner else None,
        "fleets": plan_rows(plan),
        "candidates": len(plan.found.candidates),
        "simulations": plan.found.simulations,
        "assumptions": assumptions(plan),
    }
    return json.dumps(told, indent=2, allow_nan=False) + "\n"


def _drawings(plan: Plan, directory: Path) -> Iterable[tuple[PlanFigure, str]]:
    for kind in FIGURES:
        with house_style():
            figure = kind.draw(plan)
            if figure is not None:
                settle(figure)
        for suffix in ("svg", "png"):
            (directory / f"{kind.name}.{suffix}").unlink(missing_ok=True)
        if figure is None:
            continue
        svg = svg_text(figure)
        replace_text(directory / f"{kind.name}.svg", svg)
        (directory / f"{kind.name}.png").write_bytes(png_bytes(figure))
        yield kind, svg


def render_plan(
    plan: Plan, drawings: Sequence[tuple[PlanFigure, str]], command: str = "", *, inverse: bool = False
) -> str:
    """The page as text: no file, script or font is loaded, and what came from the user is escaped."""
    rows = plan_rows(plan)
    scenario = plan.scenario.scenario
    winner = plan.winner
    return rendered(
        "plan.html.j2",
        title=scenario.name or "plan",
        subtitle=f"{scenario.model} · {traffic(plan)} · {objectives(plan.slo)}",
        answer=capacity_answer(plan) if inverse else answer(plan),
        feasible=bool(plan.studies),
        nearest=nearest_option(plan),
        tables={
            "plan": _table(PLAN_COLUMNS, rows),
            "cost": _table(COST_COLUMNS, rows),
            "limits": _table(LIMIT_COLUMNS, rows),
            "equal": _table(EQUAL_COLUMNS, equal_rows(plan)),
            "candidates": _table(CANDIDATE_COLUMNS, candidate_rows(plan)),
        },
        figures={kind.name: inlined(kind.name, kind.title, kind.caption, svg) for kind, svg in drawings},
        typed=command,
        command=command_line(list(winner.anatomy.command)) if winner else "",
        command_notes=winner.anatomy.command_notes if winner else (),
        winner=f"{winner.replicas} x {plan.name_of(winner)}" if winner else "",
        assumptions=assumptions(plan),
        counted=_counted(plan),
    )  # fmt: skip


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    columns = told(columns, rows)
    return {
        "heads": [{"title": column.title, "number": bool(column.sort)} for column in columns],
        "rows": cells(columns, rows),
    }


def _counted(plan: Plan) -> str:
    """How the search went."""
    outcomes: Mapping[str, int] = {}
    for row in candidate_rows(plan):
        outcomes = {**outcomes, row["outcome"]: outcomes.get(row["outcome"], 0) + 1}
    parts = ", ".join(f"{count} {what}" for what, count in outcomes.items())
    return f"{len(plan.found.candidates)} configurations: {parts}; {plan.found.simulations} fleets simulated."
