"""Published claims of techniques beside the simulator at the paper's setting: inputs are the paper's, gains ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from techniques_bench import (
    EAGER,
    decode_s,
    gpu,
    guessing,
    guessing_gain,
    prefill_s,
    shared_s,
    target,
    timer,
)

from sim.build import build
from sim.cost.chosen_kernels import ChosenKernels
from sim.cost.kernel_options import DEFAULT_KERNELS, KernelOptions
from sim.cost.roofline import DatasheetKernels, Heads, PrefillWork
from sim.cost.shape import RunShape
from sim.metrics import summarise
from sim.results import RunResult
from sim.run import run_setup, simulate
from sim.scenario import load_scenario

WITHIN = 0.20
NO_GRAPHS = replace(DEFAULT_KERNELS, cuda_graphs=False)


@dataclass(frozen=True)
class Claim:
    """One number of a paper and ours. `mark`: how its value is known; `isolated`: ours with one term changed."""

    technique: str
    source: str
    mark: str
    setting: str
    published: float
    ours: float
    unit: str
    cause: str = ""
    isolated: float | None = None

    @property
    def off(self) -> float:
        """Ours over the published number, less one."""
        return self.ours / self.published - 1

    @property
    def holds(self) -> bool:
        """Whether ours is within 20 %."""
        return abs(self.off) <= WITHIN


class Measured(NamedTuple):
    """A row of a published table: what it was, what was measured, and ours; `gain`: of both."""

    what: str
    published: tuple[float, float]
    ours: tuple[float, float]

    @property
    def gains(self) -> tuple[float, float]:
        """(published, ours): without the technique over with it."""
        return self.published[0] / self.published[1], self.ours[0] / self.ours[1]


RELAY_US = {
    (1, 128, 4096): (182.4, 198.7), (8, 128, 1024): (380.2, 106.7), (32, 128, 512): (820.4, 225.9),
    (32, 128, 2048): (2746.0, 287.3), (32, 256, 2048): (2913.1, 442.0), (64, 128, 4096): (10640.6, 556.1),
    (128, 128, 8192): (42164.3, 1156.9),
}  # fmt: skip
"""(sequences, own context, prefix): microseconds without and with RelayAttention, from its authors' CSV (A40)."""
FLASH_DECODING_US = {
    (256, 256): (390.5, 63.4), (32, 2048): (352.0, 58.5), (8, 8192): (529.2, 56.4), (1, 65536): (2300.6, 64.4),
    (1, 131072): (4592.2, 106.6),
}  # fmt: skip
"""(sequences, context): FlashAttention 2.0.9 and Flash-Decoding, from the latter's blog (A100)."""
HYDRAGEN_KTOK = {1024: (4.9, 15.6), 2048: (2.8, 15.5), 4096: (1.6, 15.3), 8192: (0.8, 14.8), 16384: (0.4, 14.0)}
"""Prefix: thousand tokens/s of vLLM 0.2.7 without detokenisation and of Hydragen, batch 1024 (table 3)."""
STREAMING_MS = {
    "meta-llama/Llama-2-7b-hf": {256: (63, 31), 512: (103, 31), 1024: (223, 35), 2048: (523, 45), 4096: (1411, 65)},
    "meta-llama/Llama-2-13b-hf": {256: (99, 48), 512: (169, 52), 1024: (361, 60), 2048: (860, 75), 4096: (2355, 106)},
}
"""Cache: milliseconds per token of a window that is recomputed, and of StreamingLLM (figure 10)."""
BEAM_SAVING = {2: 37.56, 4: 53.13, 6: 55.16}
"""Beams: per cent of KV blocks saved (PagedAttention, figure 15, Alpaca)."""


@cache
def relay() -> list[Measured]:
    """Attention of one layer with 52 heads of 128, LLaMA-30B's, on an A40."""
    kernels = DatasheetKernels(gpu("a40"))
    heads = Heads(52, 52, 128, 128, 2 * 52 * 128 * 2.0, 2.0 * 52 * 256, 2.0 * 52 * 256, "fp16")
    rows = []
    for (members, own, prefix), published in RELAY_US.items():
        plain = kernels.decode_attention(members, members * (prefix + own - 1), heads).seconds
        parts = (
            kernels.decode_attention(members, members * (own - 1), heads).seconds,
            kernels.prefill_attention(PrefillWork(members, members * prefix, prefix, members), heads).seconds,
            kernels.elementwise(members * 52 * 128 * 2 * 3.0).seconds,
        )
        what = f"{members} sequences, prefix {prefix:,}, {own} of their own"
        rows.append(Measured(what, published, (plain * 1e6, sum(parts) * 1e6)))
    return rows


@cache
def flash_decoding() -> list[Measured]:
    """Attention of one layer with 16 query and 2 KV heads of 128 on an A100, without and with split KV."""
    card = gpu("a100-sxm-40gb")
    split = DatasheetKernels(card)
    unsplit = ChosenKernels(split, card, KernelOptions(split_kv=False))
    heads = Heads(16, 2, 128, 128, 2 * 2 * 128 * 2.0, 2.0 * 16 * 256, 2.0 * 16 * 256, "fp16")
    rows = []
    for (members, context), published in FLASH_DECODING_US.items():
        ours = [k.decode_attention(members, members * (context - 1), heads).seconds * 1e6 for k in (unsplit, split)]
        rows.append(Measured(f"{members} sequences of {context:,}", published, (ours[0], ours[1])))
    return rows


@cache
def hydragen() -> list[Measured]:
    """CodeLlama-13B's shape on 8 A100-40G, 1024 sequences, 128 tokens: seconds for a thousand tokens."""
    on, tokens = target("meta-llama/Llama-2-13b-hf", "a100-sxm-40gb", 8), 1024 * 128 / 1e3
    rows = []
    for prefix, (plain, shared) in HYDRAGEN_KTOK.items():
        ours = [shared_s(on, 1024, prefix, 0, steps=128, shared=s) / tokens for s in (False, True)]
        rows.append(Measured(f"prefix {prefix:,}", (1 / plain, 1 / shared), (ours[0], ours[1])))
    return rows


def ceiling() -> float:
    """Thousand tokens/s of a step of 1024 sequences, attention left out."""
    on, tokens = target("meta-llama/Llama-2-13b-hf", "a100-sxm-40gb", 8), 1024 / 1e3
    steps = timer(on).explain(RunShape(1024, 0))
    return tokens / sum(op.seconds for op in steps if not op.name.startswith("attention"))


@cache
def streaming() -> list[Measured]:
    """Transformers on one A6000: a prefill of the window for every token, or one decode step with a full cache."""
    rows = []
    for model, published in STREAMING_MS.items():
        on = target(model, "rtx-a6000", options=EAGER)
        for cache_tokens, measured in published.items():
            ours = prefill_s(on, cache_tokens) * 1e3, decode_s(on, 1, cache_tokens) * 1e3
            rows.append(Measured(f"{model.split('-', 1)[1]}, cache {cache_tokens:,}", measured, ours))
    return rows


def beams_saved(width: int, *, switching: bool = True) -> float:
    """Per cent of KV blocks saved by `width` beams of Alpaca lengths; without drops they share their prompt only."""
    lengths = ({"kind": "lognormal", "mean": mean, "std": mean / 2, "max": 1024} for mean in (19.31, 58.45))
    prompt, answer = lengths
    traffic = {"num_requests": 150, "arrival": {"kind": "poisson", "rate": 6 / width}, "input_tokens": prompt,
               "output_tokens": answer, "beam_width": width}  # fmt: skip
    if not switching:
        traffic["beam_switch_probability"] = 0.0
    engine = {"preset": "vllm-v0", "num_gpu_blocks_override": 15_700 // 16}
    scenario = {"model": "facebook/opt-13b", "hardware": "a100-sxm-40gb", "engine": engine, "workload": traffic}
    return 100 * float(summarise(run_setup(build(load_scenario(scenario))))["kv"]["shared_fraction"])


SKELETON = {"points": 7, "tokens": 50, "template_tokens": 150, "point_template_tokens": 120}
"""Seven points behind an outline of some words each (from memory; the paper's table of lengths was not at hand)."""


def outlined(spread: float) -> float:
    """Time of questions answered in 400 tokens one by one, over that of their skeletons and points."""
    ends = []
    for skeleton in (None, SKELETON | {"spread": spread}):
        traffic = {"num_requests": 40, "arrival": {"kind": "closed_loop", "concurrency": 1}, "input_tokens": 60,
                   "output_tokens": 400}  # fmt: skip
        if skeleton is not None:
            traffic["skeleton"] = skeleton
        scenario = {"model": "meta-llama/Llama-2-7b-hf", "hardware": "a100-sxm-80gb", "workload": traffic}
        ends.append(_makespan(simulate(load_scenario(scenario))))
    return ends[0] / ends[1]


def _makespan(result: RunResult) -> float:
    return float(result.requests["finish_ps"].max())


def claims() -> Sequence[Claim]:
    """One headline per technique, in the issue's order."""
    relay_row, flash_row, hydragen_row = relay()[3], flash_decoding()[3], hydragen()[-1]
    shared = hydragen_row.ours[1]
    bandwidth = 1024 * 16384 * 819_200 / (8 * 1555e9) * 128 / 0.43 / (1024 * 128 / 1e3)
    bigram = guessing(method="ngram", num_speculative_tokens=3, acceptance=0.2)
    medusa = guessing(method="medusa", num_speculative_tokens=5, acceptance=0.75, tree=[10, 20, 15, 10, 8])
    tree = guessing(method="draft", draft_model="facebook/opt-125m", num_speculative_tokens=8, acceptance=0.7,
                    tree=[5] * 8)  # fmt: skip
    llama7 = "meta-llama/Llama-2-7b-hf"
    stream = streaming()[4]
    return (
        Claim("RelayAttention", "the authors' CSV", "read", "attention, 52 heads, A40, 32 sequences, prefix 2,048",
              *relay_row.gains, "x"),
        Claim("Hydragen", "table 3", "read", "13B, 8 A100-40G, 1,024 sequences, prefix 16,384",
              *hydragen_row.gains, "x",
              "with the 43 % of the bandwidth that the baseline's kernel (vLLM 0.2.7) reached, in place of ours",
              bandwidth / shared),
        Claim("FlashAttention (split KV)", "Flash-Decoding blog", "read", "attention, 16/2 heads, A100, 1 x 65,536",
              *flash_row.gains, "x"),
        Claim("Speculative decoding", "Leviathan 2023, section 4", "read", "bigram guesses, rate 0.2, depth 3, batch 1",
              1.25, guessing_gain(target("meta-llama/Llama-2-13b-hf", "a100-sxm-80gb"), bigram), "x"),
        Claim("Medusa", "Cai 2024", "second hand", "Vicuna-7B's shape, A100, batch 1, 3.23 tokens per step, 64 nodes",
              106.76 / 37.07, guessing_gain(target(llama7, "a100-sxm-80gb"), medusa, tokens=3.23), "x"),
        Claim("SpecInfer", "Miao 2024 (best on one node)", "second hand",
              "LLaMA-7B's shape, A10, batch 1, 3.91 tokens per step, width 5, depth 8", 2.5,
              guessing_gain(target(llama7, "a10"), tree, tokens=3.91), "x",
              "without CUDA graphs, as PyTorch launches the kernels of the draft's eight short passes",
              guessing_gain(target(llama7, "a10", options=NO_GRAPHS), tree, tokens=3.91)),
        Claim("Skeleton-of-Thought", "Ning 2024 (best model)", "second hand; lengths from memory",
              "7B, A100, one question, 400 tokens in 7 points of unequal length (spread 0.5)", 2.39, outlined(0.5), "x",
              "with points of equal length", outlined(0.0)),
        Claim("StreamingLLM", "figure 10", "read", "Llama-2-7B, A6000, cache 4,096", *stream.gains, "x"),
        Claim("KV sharing", "PagedAttention, figure 15", "read", "OPT-13B, A100-40G, Alpaca, 4 beams", BEAM_SAVING[4],
              beams_saved(4), "% saved", "with beams that are never dropped and share their prompt only",
              beams_saved(4, switching=False)),
    )  # fmt: skip
