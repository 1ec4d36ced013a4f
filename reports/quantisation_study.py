"""Regenerates reports/quantisation.md and its figures.

`python reports/quantisation_study.py --measurements serving/*.csv`, about a minute; without measured tables the last
section is left out. Every number of the page is computed here or has its source beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import quantisation_figures as figures
from offload_page import reflow, table
from quantisation_cases import (
    BATCHES,
    CACHE_BATCH,
    CACHES,
    CONTEXT,
    CONTEXTS,
    GPUS,
    MATRIX,
    MODEL,
    SCHEMES,
    cache_study,
    cpu_rates,
    keeping_o,
    low_bit_products,
    measured_pairs,
    o_bytes,
    recipe,
    served,
    speed_ups,
)

from sim.planner.schemes import SchemeRow, crossover
from sim.report.scheme_plot import scheme_figure
from sim.validation.serving.pairs import verdict

HERE = Path(__file__).resolve().parent
HEADER = """<!-- Regenerate: python reports/quantisation_study.py --measurements serving/*.csv -->
# Quantisation: what each scheme gives, where it loses, and what it costs

Weights, activations and KV cache are three choices. No scheme has a factor on its time here: it has bytes, vector
operations that widen them, operators it inserts, and blocks it leaves for the cache. Everything is simulated for
{model} unless said otherwise; `roofserve compare schemes` answers the same for your model, GPU and traffic.
"""
PROMPT, DECODES = 2048, 64


def crossover_section() -> str:
    """INT8, INT4, FP8 and NF4 by batch size."""
    gains = {gpu: speed_ups(gpu) for gpu in GPUS}
    figures.crossover(gains)
    rows = []
    for label in SCHEMES:
        cells = [label]
        for gpu in GPUS:
            line = gains[gpu][label]
            batch = crossover(BATCHES, [1 / gain for gain in line], [1.0] * len(BATCHES))
            word = "never" if min(line) > 1 else "from the start" if batch is None else f"{batch}"
            cells += [f"{line[0]:.2f}", f"{line[-1]:.2f}", word]
        rows.append(cells)
    head = ["scheme", *(f"{gpu}: {what}" for gpu in GPUS for what in ("1 seq.", f"{BATCHES[-1]}", "loses at"))]
    a100 = gains[GPUS[0]]
    swap = crossover(BATCHES, [1 / g for g in a100["INT4 (GPTQ)"]], [1 / g for g in a100["INT8 W8A8"]])
    return f"""
## Which format, by batch size

![Speed of a decode step over 16 bit, by batch](quantisation-crossover.png)

One decode step, {CONTEXT} tokens of context each. Speed-ups over 16 bit, and the batch from which a scheme no longer
pays:

{table(head, rows)}

INT4 reads a quarter of the bytes and multiplies in 16 bit: it wins while memory binds. On the A100, Marlin widens the
weights in registers, again for every 64 rows, on the same SM that multiplies; from a batch of {swap} on INT8 weights
and activations are faster than INT4 weights. On Hopper, Machete widens beside the tensor cores, and what is lost is
little. AWQ's own kernels widen for every 16 rows and, from 256 on, write the weights out first: bad between, fine
beyond. NF4 looks every weight up in a pass before each product, whatever the batch. On the A100 FP8 has no tensor
cores and becomes weight-only.
"""


def cache_section() -> str:
    """KV quantisation by context length."""
    gpu = GPUS[1]
    study = cache_study(gpu)
    figures.caches(study)
    chosen = [i for i, context in enumerate(CONTEXTS) if context in (1024, 8192, 32768, 131072)]
    rows = [
        [label, *(f"{found['tpot_ms'][i]:.1f} / {found['fit'][i]:.0f} / {found['tok_s'][i]:,.0f}" for i in chosen)]
        for label, found in study.items()
    ]
    head = ["cache", *(f"{CONTEXTS[i] // 1024}k tokens" for i in chosen)]
    plain, small = study["16 bit"], study["INT4"]
    gains = [small["tok_s"][i] / plain["tok_s"][i] for i in (chosen[0], chosen[-1])]
    bits = {name: {"16 bit": 16, "KIVI, 4 bit": 5, "KIVI, 2 bit": 3}.get(name) for name in CACHES}
    return f"""
## The KV cache, by context length

![TPOT and throughput by context for each cache format](quantisation-kv-cache.png)

On {gpu}: TPOT of {CACHE_BATCH} sequences (ms) / sequences that fit (at most 256) / tokens per second of all that fit.

{table(head, rows)}

At 1k tokens the weights are most of what a step reads, and 256 seats are full anyway: INT4 gives {gains[0]:.2f} times
the tokens of 16 bit. At 128k the cache is nearly all of it, and INT4 gives {gains[1]:.2f} times: less than its bytes,
since vector units widen keys and values. Scales count: KIVI's groups of 32 with scale and zero point store
{bits["KIVI, 4 bit"]} bits for 4. FP8 needs no widening where attention multiplies it. KIVI's window of recent tokens
in 16 bit is not simulated.
"""


def recipe_section() -> str:
    """The INT8 recipe, step by step, and the O projection."""
    steps = {f"a prompt of {PROMPT}": recipe(GPUS[0], PROMPT, 0), f"{DECODES} decodes": recipe(GPUS[0], 0, DECODES)}
    figures.waterfall(steps)
    names = list(next(iter(steps.values())))
    rows = [[title, *(f"{times[name]:.2f}" for name in names)] for title, times in steps.items()]
    kept = [[f"{int(line['rows'])}", f"{line['epilogue']:+.1f}", f"{line['all']:+.1f}"] for line in keeping_o(GPUS[0])]
    with_o, without_o = o_bytes()
    prompt = next(iter(steps.values()))
    return f"""
## The INT8 recipe as a waterfall

![Time of a step after each part of the recipe](quantisation-recipe.png)

On {GPUS[0]}, milliseconds of a step.

{table(["step", *names], rows)}

* *insert*: weights stored in INT8 and widened in a pass before each product, activations rounded and widened again,
  products in 16 bit. Alone it is a loss: {prompt["insert"] / prompt["16 bit"]:.2f} times the prompt's time.
* *fuse*: weights are widened inside the product up to 256 rows (beyond, a pass is cheaper than doing it again for
  every tile), activations in the operator before; only O's input, which attention writes, keeps a pass of its own.
* *replace*: INT8 products, scaled in their epilogue: {prompt["16 bit"] / prompt["replace"]:.2f} times as fast as 16
  bit.
* *keep O*: O in 16 bit.

### Not quantising O

Per cent more time in the layers' work on so many rows when O stays in 16 bit, with activations quantised in passes of
their own and fused into the operators before:

{table(["rows", "passes (%)", "fused (%)"], kept)}

Weights grow from {with_o:.2f} to {without_o:.2f} GB. Keeping O buys quality (its inputs have the outliers) and one pass
per layer; what it costs is O's share of the weights.
"""


def served_section() -> str:
    """End to end."""
    parts = []
    for gpu in GPUS:
        rows = served(gpu)
        found = [row.as_json() for row in rows]
        (HERE / f"quantisation-served-{gpu}.png").write_bytes(scheme_figure(found, f"{MODEL} on {gpu}, batch"))
        cells = [_cells(row) for row in rows]
        head = ["scheme", "tokens/s", "TTFT (s)", "TPOT (ms)", "fit", "weights (GB)", "KV (GB)", "$/Mtoken", "quality"]
        parts.append(f"![{gpu} under every scheme](quantisation-served-{gpu}.png)\n\n{table(head, cells)}")
    body = "\n".join(parts)
    return f"""
## A full GPU under every scheme

1000 prompts at once, 1184 tokens in and 216 out on average (`workloads/batch.yaml`), vLLM V1. *fit*: requests of the
mean length that seats and cache hold. *quality* is what has been published for the model or, by name, its family; what
nobody measured is unknown.

{body}

SpQR's kernel is made for single sequences (it unpacks for every eight rows), and stands here for what a batch does to
it.
"""


def _cells(row: SchemeRow) -> list[str]:
    if row.problem:
        return [row.scheme, f"refused: {row.problem}", *[""] * 6, row.quality]
    price = "" if row.usd_per_mtoken is None else f"{row.usd_per_mtoken:.3f}"
    assert row.output_tok_s and row.ttft_ms and row.tpot_ms and row.weights_gb and row.kv_gb
    return [row.scheme, f"{row.output_tok_s:,.0f}", f"{row.ttft_ms / 1e3:.1f}", f"{row.tpot_ms:.0f}",
            f"{row.concurrency}", f"{row.weights_gb:.2f}", f"{row.kv_gb:.1f}", price, row.quality]  # fmt: skip


def cpu_section() -> str:
    """llama.cpp and T-MAC."""
    rows = [
        [stack, machine, threads, name, f"{published:g}", f"{rate:.1f}", f"{100 * (rate / published - 1):+.0f}"]
        for stack, machine, threads, name, published, rate in cpu_rates()
    ]
    head = ["back end", "machine", "threads", "scheme", "published", "simulated", "error (%)"]
    return f"""
## CPUs and look-up tables

Tokens per second of one sequence of Llama-2-7B; published in T-MAC's README. A CPU's time is memory plus vector
operations (cores are taken to wait for memory) plus a barrier per operator.

{table(head, rows)}

T-MAC costs by the bit; llama.cpp unpacks two-bit weights slower than four-bit ones. What is too fast here runs on many
threads of machines whose cores do not reach the memory's rate (the Orin's), or ends in serial work that is not
simulated. Prompts on CPUs come out 1.5 to 2.5 times too fast against the few published rates.

Ladder/BitBLAS keeps low-bit weights in tensor-core order. No token rate of it was at hand that could be checked; these
are its kernels over cuBLAS's 16 bit, A100 PCIe, {MATRIX[0]} x {MATRIX[1]}, beside the ranges of BitBLAS's charts:

{table(["kernel", "1 row", "published", "8192 rows", "published"], _low_bit())}
"""


def _low_bit() -> list[list[str]]:
    one, many = low_bit_products(1), low_bit_products(8192)
    published = {
        "BitBLAS INT4": ("3.9 to 4.3", "0.87 to 0.97"), "Marlin INT4": ("3.7 to 4.3", "0.73 to 0.93"),
        "AWQ's kernels": ("1.8 to 2.5", "0.07 to 0.25 (vLLM's of the time)"), "BitBLAS FP4": ("2.2 to 2.5", "0.8"),
        "BitBLAS INT2, INT8 activations": ("7.0 to 8.2", "1.7 to 2.4"),
    }  # fmt: skip
    return [
        [name, f"{one[name]:.2f}", published[name][0], f"{many[name]:.2f}", published[name][1]] for name in published
    ]


def measured_section(tables: Sequence[Path]) -> str:
    """Quantised over plain throughput against real servers."""
    pairs = measured_pairs(tables)
    figures.ratios(pairs)
    found = verdict(pairs)
    rows = [
        [
            p.gpu,
            p.model,
            p.format,
            p.engine,
            p.traffic,
            f"{p.measured:.2f}",
            f"{p.predicted:.2f}",
            f"{p.error_pct:+.0f}",
        ]
        for p in pairs
    ]
    head = ["GPU", "model", "format", "engine", "prompt/answer", "measured", "simulated", "error (%)"]
    return f"""
## Held against real servers

![Simulated against measured ratios](quantisation-measured.png)

Throughput over that of 16 bit on the same GPU, engine and traffic (measured by GPUStack, Apache-2.0). Median error of
the ratio {found.median_pct:.1f} %; the faster of the two is right in {found.right} of the {found.decided} pairs that
differ by more than 5 %. Marlin's share of the tensor rate was set with the A100's pairs and a kernel chart in view; the
other GPUs' pairs set nothing. The A100's 16-bit run of Qwen3-8B reports a mean TTFT for which 217 tokens a prompt would
need more than the chip's peak rate, so its ratios carry a doubt of their own.

{table(head, rows)}
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measurements", nargs="*", type=Path, default=[])
    tables = parser.parse_args().measurements
    sections = [crossover_section(), cache_section(), recipe_section(), served_section(), cpu_section()]
    if tables:
        sections.append(measured_section(tables))
    page = "\n".join([HEADER.format(model=MODEL), *sections])
    (HERE / "quantisation.md").write_text(reflow(page), encoding="utf-8")


if __name__ == "__main__":
    main()
