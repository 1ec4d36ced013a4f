"""How KV allocators spend memory: `python reports/allocator_study.py` writes allocator-study.md, with figures.

The setting is that of the PagedAttention paper (Kwon et al., SOSP 2023, arXiv 2309.06180), whose figures stand beside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import allocator_figures as figures
import numpy as np
from allocator_runs import (
    ALLOCATORS,
    ALPACA,
    SHAREGPT,
    Numbers,
    at_rate,
    backlog,
    by_block_size,
    by_length,
    over_time,
    seats,
    shared,
)
from jinja2 import Environment, StrictUndefined
from joblib import Parallel, delayed

HERE = Path(__file__).parent
RATE, SECONDS = 2.0, 1200.0
RATES = (0.4, 0.7, 1.0, 1.3, 1.6, 1.9, 2.2, 2.6, 3.0, 3.5)
BOUNDS_S = (0.1, 0.25, 1.0)
TOTAL_TOKENS = (32, 64, 128, 256, 512, 1024)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
SEATS = (64, 128, 256, 512, 1024, 2048, 4096)
MODELS = ("Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B")
WIDTHS = (2, 4, 6)
MAX, ORACLE, PAGED = (next(name for name in ALLOCATORS if word in name) for word in ("Max", "Oracle", "paged, block"))
PAPER_STATES = {MAX: "20.4 / 13.3 / 57.3 / 8.9", ORACLE: "38.2 filled", PAGED: "96.3 filled"}  # figure 2
PAPER_BATCH = {MAX: 7.00, ORACLE: 13.62, PAGED: 30.42}  # figure 13 a
PAPER_SHARED: Mapping[str, tuple[float | None, ...]] = {  # figure 15, and for ShareGPT the ends of section 6.3's ranges
    "Alpaca-like, parallel samples": (6.09, 8.53, 9.79),
    "Alpaca-like, beams": (37.56, 53.13, 55.16),
    "ShareGPT-like, parallel samples": (16.2, None, 30.5),
    "ShareGPT-like, beams": (44.3, None, 66.3),
}


def every(what: str, function: Callable[..., Any], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The function of each case, two at a time."""
    cases = list(cases)
    print(f"{what}: {len(cases)} runs", file=sys.stderr, flush=True)
    return list(Parallel(n_jobs=2)(delayed(function)(*case) for case in cases))


def split(run: Numbers) -> dict[str, float]:
    """Shares of all KV memory."""
    names = {"filled": "filled", "reserved": "reserved", "internal": "internal_fragmentation", "stranded": "stranded"}
    return {key: run[f"mean_{name}_share"] for key, name in names.items()} | {"free": run["mean_free_share"]}


def wasted_percent(run: Numbers) -> float:
    """Of the allocated memory, what no token will ever fill."""
    return 100 * float(run["mean_internal_fragmentation_share_of_used"])


def rate_at(points: Sequence[tuple[float, float]], bound_s: float) -> float:
    """Where the curve crosses the bound, between its points along the logarithm of the latency."""
    rates, latency = (np.array(column) for column in zip(*points, strict=True))
    above = int(np.argmax(latency > bound_s))
    if above == 0:
        return float("nan")
    part = np.log(bound_s / latency[above - 1]) / np.log(latency[above] / latency[above - 1])
    return float(rates[above - 1] + part * (rates[above] - rates[above - 1]))


def sharing() -> dict[str, list[tuple[int, float, float, float | None]]]:
    """Panel -> (sequences, saved when lengths differ, saved when they are equal, measured), percent."""
    laws = {"Alpaca-like": (ALPACA, 6.0), "ShareGPT-like": (SHAREGPT, 0.6)}
    keys = {"parallel samples": "n", "beams": "beam_width"}
    plan = [(f"{law}, {kind}", means, spread, rate, {key: n})
            for law, (means, rate) in laws.items() for kind, key in keys.items()
            for n in WIDTHS for spread in (1.0, 1e-4)]  # fmt: skip
    saved = every("sharing", shared, [case[1:] for case in plan])
    panels: dict[str, list[tuple[int, float, float, float | None]]] = {case[0]: [] for case in plan}
    for at in range(0, len(plan), 2):
        title, n = plan[at][0], next(iter(plan[at][4].values()))
        panels[title].append((n, saved[at], saved[at + 1], PAPER_SHARED[title][WIDTHS.index(n)]))
    return panels


def study() -> dict[str, Any]:
    """All runs; what the page and the figures are made of."""
    labels = list(ALLOCATORS)
    curves = every("rates", at_rate, [(label, rate, SECONDS) for label in labels for rate in RATES])
    laws = {"ShareGPT-like": SHAREGPT, "Alpaca-like": ALPACA}
    blocks = every("block sizes", by_block_size, [(law, size, 1500) for law in laws.values() for size in BLOCK_SIZES])
    large = every("large batches", seats, [(model, n) for model in MODELS for n in SEATS])
    return {
        "main": dict(zip(labels, every("allocators", at_rate, [(x, RATE, SECONDS) for x in labels]), strict=True)),
        "backlog": dict(zip(labels, every("backlog", backlog, [(x, 1000) for x in labels]), strict=True)),
        "curves": {x: [(r, run["normalised_s"]) for r, run in zip(RATES, part, strict=True)]
                   for x, part in zip(labels, rows(curves, len(RATES)), strict=True)},
        "lengths": [(n, wasted_percent(run)) for n, run in
                    zip(TOTAL_TOKENS, every("lengths", by_length, [(n, 600) for n in TOTAL_TOKENS]), strict=True)],
        "blocks": {law: [(b, wasted_percent(run), run["tokens_per_s"], run["running"])
                         for b, run in zip(BLOCK_SIZES, part, strict=True)]
                   for law, part in zip(laws, rows(blocks, len(BLOCK_SIZES)), strict=True)},
        "sharing": sharing(),
        "large": {model: list(zip(SEATS, part, strict=True))
                  for model, part in zip(MODELS, rows(large, len(SEATS)), strict=True)},
    }  # fmt: skip


def rows(runs: list[Any], width: int) -> list[list[Any]]:
    """Runs of a grid, one list per row."""
    return [runs[at : at + width] for at in range(0, len(runs), width)]


def draw(found: dict[str, Any]) -> None:
    """Write all figures."""
    figures.save("waste", lambda: figures.waste({label: split(run) for label, run in found["main"].items()}))
    figures.save("blocks", lambda: figures.block_waste(found["lengths"], found["blocks"]))
    figures.save("rates", lambda: figures.rates(found["curves"], BOUNDS_S[1]))
    figures.save("sharing", lambda: figures.sharing(found["sharing"]))
    figures.save("plateau", lambda: figures.plateau(found["large"]))
    films = {label: over_time(label, RATE, 400) for label in (ORACLE, PAGED)}
    figures.save("over-time", lambda: figures.over_time(films))


def main() -> int:
    """Run everything and write the page."""
    found = study()
    draw(found)
    template = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # Markdown, not HTML
    names = {"split": split, "rate_at": rate_at, "bounds": BOUNDS_S, "wasted": wasted_percent, "MAX": MAX,
             "ORACLE": ORACLE, "PAGED": PAGED, "paper_states": PAPER_STATES, "paper_batch": PAPER_BATCH,
             "rate": RATE, "seconds": SECONDS}  # fmt: skip
    page = template.from_string((HERE / "allocator-study.md.j2").read_text(encoding="utf-8")).render(**found, **names)
    (HERE / "allocator-study.md").write_text(page.rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
