"""Techniques of attention and decoding: `python reports/techniques.py` writes techniques.md and its figures.

Published numbers are inputs, with how well each is known; every other number of the page is computed here.
"""

# ruff: noqa: E501 - table rows are one line each
from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from techniques_claims import WITHIN, Claim, Measured, ceiling, claims, flash_decoding, hydragen, relay, streaming
from techniques_figures import claims_figure, guesses_figure, prefix_figure, save, step_figure
from techniques_sweeps import (
    Regimes,
    Share,
    Size,
    decode_shares,
    growth,
    guess_gains,
    prefill_shares,
    prefix_gains,
    regimes,
    sizes,
)

from sim.cost.attention_io import flash_accesses, standard_accesses

HERE = Path(__file__).parent


def main() -> None:
    """Compute everything, draw, write."""
    found, prefill, decode = claims(), prefill_shares(), decode_shares()
    save("claims", lambda: claims_figure(found))
    save("speculation", lambda: guesses_figure(guess_gains()))
    save("shared-prefix", lambda: prefix_figure(prefix_gains()))
    save("step", lambda: step_figure(prefill, decode))
    page = [*_head(found), *_tables(), *_regimes(regimes()), *_steps(prefill, decode), *_sizes(sizes())]
    (HERE / "techniques.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def _head(found: Sequence[Claim]) -> Iterable[str]:
    held = [claim for claim in found if claim.holds]
    sure = [claim for claim in held if "memory" not in claim.mark]
    yield "<!-- Regenerate: python reports/techniques.py -->"
    yield "# What techniques of attention and decoding buy"
    yield ""
    yield (
        "Each technique is a switch in the scenario and works through FLOPs, bytes, launches and memory; none multiplies a time. "
        "Below, published claims beside the simulator *at the setting of the paper*: model shape, GPU, batch, lengths, and for guesses "
        "the share that is right, are the paper's; the gain is ours. *Read* numbers stand in the paper's own text or data; *second hand* "
        "ones were read in a quotation."
    )
    yield ""
    yield (
        f"{len(held)} of {len(found)} are within {100 * WITHIN:.0f} % ({len(sure)} of them with no input from memory)."
    )
    yield ""
    yield "| technique | claim of | known | setting | published | ours | off | |"
    yield "|---|---|---|---|---:|---:|---:|---|"
    for c in found:
        verdict = "within 20 %" if c.holds else "off"
        yield f"| {c.technique} | {c.source} | {c.mark} | {c.setting} | {_amount(c.published, c.unit)} | {_amount(c.ours, c.unit)} | {100 * c.off:+.0f} % | {verdict} |"
    yield ""
    yield "![ours over published](techniques-claims.png)"
    yield ""
    yield "One term changed, where a claim is missed or hangs on something the paper does not say:"
    yield ""
    for c in found:
        if c.isolated is not None:
            yield f"* **{c.technique}** ({_amount(c.published, c.unit)} published, {_amount(c.ours, c.unit)} ours): {c.cause}, it is {_amount(c.isolated, c.unit)}."
    yield ""


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g}x" if unit == "x" else f"{value:.1f} {unit}"


def _tables() -> Iterable[str]:
    yield "## The tables behind them"
    yield ""
    yield "Attention alone, microseconds; datasheet rates times the default efficiencies of a profile, nothing fitted to these tables."
    yield ""
    yield from _measured("RelayAttention, one layer of 52 heads on an A40", relay(), "{:,.1f}")
    yield from _measured("Split KV, one layer of 16 query and 2 KV heads on an A100-40G", flash_decoding(), "{:,.1f}")
    yield from _measured(
        "Hydragen, 13B on 8 A100-40G, 1,024 sequences, 128 tokens: seconds per thousand tokens", hydragen(), "{:.3f}"
    )
    yield (
        "Two things differ. The baseline's kernel reached about 43 % of the bandwidth by the paper's own numbers, ours reaches "
        "what today's does. And the rest of a step was slower there: without any attention its engine made 18.5 thousand tokens/s, "
        f"ours {ceiling():.1f}, with no host time. The published 0.4 thousand at the longest prefix has one digit."
    )
    yield ""
    yield from _measured("StreamingLLM on an A6000, milliseconds per token", streaming(), "{:,.0f}")
    longest = streaming()[4]
    ratios = [ours / published for ours, published in zip(longest.ours, longest.published, strict=True)]
    yield (
        "Transformers of 2023 are eager and unfused with standard attention; decode then waits for its launches, at the host time per "
        f"kernel that gpt-fast's eager Llama-7B had. The gain of the 7B model at the longest window comes out of two times that are {ratios[0]:.2f} "
        f"and {ratios[1]:.2f} of the measured ones (probably more passes over the scores, and a decode that copied its whole "
        "cache), so trust the ratio less than it looks; at short windows it is below the paper's."
    )
    yield ""
    yield from _accesses()


def _accesses() -> Iterable[str]:
    yield "**Accesses to memory of one attention head of 64, by the formulas of FlashAttention (M: 164 KiB of shared memory in 16 bit)**"
    yield ""
    yield "| length | standard, million elements | tiled | ratio |"
    yield "|---:|---:|---:|---:|"
    for length in (512, 1024, 4096, 16384, 65536):
        standard, tiled = standard_accesses(length, 64), flash_accesses(length, 64, 164 * 1024 // 2)
        yield f"| {length:,} | {standard / 1e6:,.1f} | {tiled / 1e6:,.1f} | {standard / tiled:.1f}x |"
    yield ""


def _measured(title: str, rows: Sequence[Measured], form: str) -> Iterable[str]:
    yield f"**{title}**"
    yield ""
    yield "| | published without | with | gain | ours without | with | gain |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        published, ours = row.gains
        cells = [form.format(v) for v in row.published] + [f"{published:.2f}x"]
        cells += [form.format(v) for v in row.ours] + [f"{ours:.2f}x"]
        yield f"| {row.what} | {' | '.join(cells)} |"
    yield ""


def _regimes(found: Sequence[Regimes]) -> Iterable[str]:
    yield "## Where each pays, and where it does not"
    yield ""
    yield "Time of the step (or of the questions) without it over time with it. Llama-3.1-8B on one H100 unless said otherwise; below 1 it loses."
    yield ""
    yield "| technique | key | where it pays | gain | where it does not | gain |"
    yield "|---|---|---|---:|---|---:|"
    for r in found:
        yield f"| {r.technique} | `{r.key}` | {r.pays} | {r.gain:.2f}x | {r.loses} | {r.loss:.2f}x |"
    yield ""
    yield "![speculative decoding by batch](techniques-speculation.png)"
    yield ""
    yield (
        "Guesses are free while reading the weights takes longer than multiplying all rows; past that every guess costs what a token "
        "costs, right or wrong. Contexts are short here (200 tokens): long ones move the limit up, because verification shares the read "
        "of the cache as well."
    )
    yield ""
    yield "![shared prefixes](techniques-shared-prefix.png)"
    yield ""


def _steps(prefill: dict[int, Share], decode: dict[tuple[int, int], Share]) -> Iterable[str]:
    lone, longest = decode[1, 512], prefill[max(prefill)]
    yield "## What a step is made of"
    yield ""
    yield (
        f"Llama-3.1-8B on one H100. Matrix products are {_share(lone)} of a lone decode at 512 tokens and {_share(prefill[1024])} of a "
        f"prompt of 1,024; at {max(prefill):,} tokens they are {_share(longest)}. Between the two longest prompts attention grows with the "
        f"length to the power {growth(prefill):.2f}. Operators bound by compute are {100 * prefill[4096].compute_bound:.0f} % of a prompt of "
        f"4,096, and {100 * max(s.compute_bound for s in decode.values()):.0f} % of any of the decodes. Nothing of this is put in."
    )
    yield ""
    yield "![shares of a step](techniques-step.png)"
    yield ""


def _share(share: Share) -> str:
    return f"{100 * share.matmul_s / share.total_s:.0f} %"


def _sizes(found: Sequence[Size]) -> Iterable[str]:
    yield "## From 8B to 405B"
    yield ""
    yield (
        "On H200s, 16 bit. *Everything naive*: eager, unfused, standard attention, one sequence of 1,024. *Shared prefix*: 64 sequences "
        "behind 4,096 tokens. *EAGLE*: four guesses at rate 0.7, short contexts."
    )
    yield ""
    yield "| model | GPUs | prompt of 4,096, ms | decode of 1, ms | of 64, ms | products, 64 | over everything naive | shared prefix | EAGLE, batch 1 | pays up to batch |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for s in found:
        alone, many = (1e3 * seconds for seconds in s.decode_s)
        yield f"| {s.model} | {s.gpus} | {1e3 * s.prefill_s:,.0f} | {alone:.1f} | {many:.1f} | {100 * s.matmul:.0f} % | {s.eager:.1f}x | {s.sharing:.2f}x | {s.guessing:.2f}x | {s.break_even} |"
    yield ""
    yield (
        "Launches weigh least on the largest model per GPU; the share of attention, and so what a shared prefix saves, follows the "
        "cache per token over the weights rather than the size: the 13B model, without grouped queries, gains most."
    )


if __name__ == "__main__":
    main()
