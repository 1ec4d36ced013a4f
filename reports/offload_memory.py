"""Sections 1 and 2 of reports/offload-study.md: memory is short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import offload_figures as figures
from offload_cases import CONTEXTS, LINKS, MODELS, QUEUE, Case, bytes_per_token, one_swap, prefill_s
from offload_page import table

Runs = Mapping[Case, dict[str, Any]]
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
SHOWN = 1024
"""The prompt that is shown in full."""


def gain(runs: Runs, model: str, prompt: int, mode: str, bandwidth: int) -> float:
    """Output throughput of a way to swap over that of recomputing, in per cent."""
    swapped, computed = runs[model, prompt, mode, bandwidth], runs[model, prompt, "recompute", 0]
    return 100 * (float(swapped["output_throughput"]) / float(computed["output_throughput"]) - 1)


def pressure_row(name: str, run: dict[str, Any], bytes_moved: bool) -> list[str]:
    """What happened to one way of being short of memory."""
    swap = run["swap"] or {}
    moved = (swap.get("swapped_out_bytes", 0) + swap.get("swapped_in_bytes", 0)) / 1e9
    return [
        name,
        f"{run['output_throughput']:,.0f}",
        f"{run['p99_e2el_ms'] / 1e3:.1f}",
        f"{run['p99_ttft_ms'] / 1e3:.1f}",
        f"{run['num_preemptions']}",
        f"{run['mean_preempted_time_ms']:.0f}",
        f"{moved:.1f}" if bytes_moved else "0",
        f"{swap['stalled_s']:.2f}" if bytes_moved else "0",
        f"{100 * run['rejected'] / run['num_prompts']:.0f}",
    ]


def pressure_tables(runs: Runs, rates: Mapping[Case, float]) -> str:
    """One context in full."""
    head = [
        "",
        "tokens/s",
        "p99 E2E (s)",
        "p99 TTFT (s)",
        "preemptions",
        "preempted, mean (ms)",
        "moved (GB)",
        "stalled (s)",
        "rejected (%)",
    ]
    text = ""
    for model in MODELS:
        rows = [pressure_row(mode, runs[model, SHOWN, mode, 0], False) for mode in ("recompute", "reject")]
        for link, bandwidth in LINKS.items():
            rows += [
                pressure_row(f"{label}, {link}", runs[model, SHOWN, mode, bandwidth], True)
                for mode, label in (("swap", "swap"), ("overlap", "swap overlapped"))
            ]
        text += f"\n**{model}, prompts of {SHOWN:,}, {rates[model, SHOWN]:.1f} requests/s**\n\n{table(head, rows)}"
    return text


def predictions(setups: Mapping[str, Any]) -> dict[Case, float]:
    """Time of computing a prompt over that of copying it out and in: above 1 swapping should win."""
    return {
        (model, prompt, bandwidth): prefill_s(setups[model], prompt)
        / (2 * bytes_per_token(setups[model]) * prompt)
        * bandwidth
        * 1e9
        for model in MODELS
        for prompt in CONTEXTS[model]
        for bandwidth in LINKS.values()
    }


def pressure_section(runs: Runs, rates: Mapping[Case, float], setups: Mapping[str, Any]) -> str:
    """Swap, recompute or reject."""
    expected = predictions(setups)
    grids = {
        (model, mode): np.array([[gain(runs, model, c, mode, bw) for bw in LINKS.values()] for c in CONTEXTS[model]])
        for model in MODELS
        for mode in ("swap", "overlap")
    }
    gains = {key: gain(runs, key[0], key[1], "swap", key[2]) for key in expected}
    if not any(value > 0 for value in gains.values()) or not any(value < 0 for value in gains.values()):
        raise SystemExit("one side wins everywhere: this study no longer shows both outcomes")
    figures.winners(grids)
    figures.per_link(runs, SHOWN)
    curves = {
        model: (
            [1e6 * prefill_s(setups[model], n) / n for n in LENGTHS],
            {link: 2e-3 * bytes_per_token(setups[model]) / bw for link, bw in LINKS.items()},
        )
        for model in MODELS
    }
    figures.break_even(curves, LENGTHS)
    agree = [key for key in expected if (expected[key] > 1) == (gains[key] > 0)]
    close = [
        f"{m} at {c:,} over {bw} GB/s ({expected[m, c, bw]:.2f}, {gains[m, c, bw]:+.1f} %)"
        for m, c, bw in expected
        if (m, c, bw) not in agree
    ]
    rows = [
        [model, f"{c:,}", *(f"{expected[model, c, bw]:.2f} / {gains[model, c, bw]:+.1f} %" for bw in LINKS.values())]
        for model in MODELS
        for c in CONTEXTS[model]
    ]
    thrash = [
        f"at {c:,} tokens {run['prompts_computed']:.1f} times, {run['num_preemptions']:,} preemptions of "
        f"{run['num_prompts']} requests; with swapping {runs[m, c, 'swap', 50]['prompts_computed']:.1f} times"
        for (m, c, mode, _), run in runs.items()
        if mode == "recompute" and c >= 8192
    ]
    kept = {
        c: [
            runs[m, c, "reject", 0]["output_throughput"] / runs[m, c, "recompute", 0]["output_throughput"]
            for m, n in rates
            if n == c
        ]
        for c in (256, 4096)
    }
    costs = {c: 100 * (1 - min(shares)) for c, shares in kept.items()}
    return f"""
## 1. Memory is short: swap, recompute or reject

`scenarios/kv-pressure.yaml`: KV memory for a few requests (24; 12 at prompts of 8,192 and 6 at 16,384), arrivals at 1.2
times what it can complete, 300 requests, answers of 512 tokens on average. `reject` reserves the longest answer
ahead and
refuses whoever finds {QUEUE} waiting, so nobody is ever preempted. Latencies are those of served requests.

![who wins](offload-map.png)

Throughput of swapping against recomputing, in per cent. The model matters more than the context: Llama-2-7B keeps
{bytes_per_token(setups["Llama-2-7B"]) / 1024:.0f} KiB per token, Llama-3.1-8B (grouped queries)
{bytes_per_token(setups["Llama-3.1-8B"]) / 1024:.0f} KiB, and both compute a token in about the same time.

![break-even](offload-break-even.png)

**From first principles.** Swapping moves a context twice, 2 x bytes / bandwidth; recomputing costs the prefill of the
context (step timer, alone on the GPU). Their quotient (above 1: swap) beside the gain that was simulated with waiting
steps:

{table(["model", "prompt", *(f"{name}, {bw} GB/s" for name, bw in LINKS.items())], rows)}

The quotient says who wins in {len(agree)} of {len(expected)} cells. It does not in: {"; ".join(close) or "none"}. A
prompt that
is recomputed shares its steps with decodes that are bound by memory, so part of its time is free; the emitted tokens
travel, too; a request that is swapped waits for all its room at once, one that is recomputed only for its first chunk.
Prompts that take more than one step break down here when memory is short: the first chunk is admitted, the second finds
no room, and the work is thrown away again. Prompts were computed several times over: {"; ".join(thrash)}. Those rows
say nothing of the link. Swapping suffers less because a request that is to come back keeps others out until all its
room is there.

![by link](offload-links.png)

{pressure_tables(runs, rates)}

Rejecting has the shortest tail, for those who are served. It costs up to {costs[256]:.0f} % of the throughput at
prompts of
256 tokens, where the longest answer is four times the prompt and memory is held empty for it, and
{costs[4096]:.1f} % at 4,096.
"""


def stall_section() -> str:
    """A gigabyte over PCIe, while seven requests wait."""
    rows = [(link, bw, one_swap(bw, False), one_swap(bw, True)) for link, bw in LINKS.items()]
    figures.stall([row[2] for row in rows])
    cells = [
        [
            f"{link}, {bw} GB/s",
            f"{r['bytes'] / 1e9:.3f}",
            f"{r['bytes'] / bw / 1e6:.2f}",
            f"{1e3 * r['longest_gap_s']:.2f}",
            f"{r['longest_gap_s'] / r['step_s']:.1f}",
            f"{1e3 * r['stalled_s']:.2f}",
            f"{1e3 * beside['stalled_s']:.2f}",
        ]
        for link, bw, r, beside in rows
    ]
    head = [
        "link",
        "out (GB)",
        "bytes / bandwidth (ms)",
        "longest pause (ms)",
        "in decode steps",
        "stalled, out and in (ms)",
        "stalled, overlapped (ms)",
    ]
    return f"""
## 2. One gigabyte

Eight requests of 8,000 tokens of Llama-3.1-8B run out of memory together; the newest one leaves and comes back.
While it is
copied, nobody gets a token.

![the stall](offload-stall.png)

{table(head, cells)}

Overlapping does not hide the way out here: all eight need their next block in the same step, and it is the one that is
still being copied. The way in is hidden as far as the others still have steps to take.
"""
