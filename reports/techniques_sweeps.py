"""Where each technique pays and where it loses, what a step is made of, and how both scale with the model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any, NamedTuple

from techniques_bench import (
    EAGER,
    decode_s,
    guessing,
    guessing_gain,
    prefill_s,
    seconds_by,
    shared_s,
    target,
    timer,
)
from techniques_claims import outlined

from sim.cost.kernel_options import DEFAULT_KERNELS, KernelOptions
from sim.cost.ops import Choices, OpCost
from sim.cost.sampling import Sampler
from sim.cost.shape import RunShape
from sim.drafting import Target
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario

LLAMA, MHA = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-7b-hf"
MATMULS = ("qkv", "o", "gate_up", "down", "lm_head", "experts")
GUESSES: dict[str, dict[str, Any]] = {
    "n-grams, rate 0.5": {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.5},
    "1B draft, rate 0.7": {"method": "draft", "draft_model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 4,
                           "acceptance": 0.7},
    "EAGLE layer, rate 0.7": {"method": "eagle", "num_speculative_tokens": 4, "acceptance": 0.7},
    "Medusa, 64 nodes, rate 0.7": {"method": "medusa", "num_speculative_tokens": 5, "acceptance": 0.7,
                                   "tree": [10, 20, 15, 10, 8]},
}  # fmt: skip
BATCHES = tuple(2**i for i in range(11))
PREFIXES = tuple(2**i for i in range(6, 15))
LENGTHS = tuple(2**i for i in range(9, 18))
SIZES = (
    (LLAMA, 1), ("meta-llama/Llama-2-13b-hf", 1), ("01-ai/Yi-34B", 1), ("meta-llama/Llama-3.1-70B", 2),
    ("meta-llama/Llama-3.1-405B", 8),
)  # fmt: skip


class Regimes(NamedTuple):
    """A technique's gain where it pays, and where it does not."""

    technique: str
    key: str
    pays: str
    gain: float
    loses: str
    loss: float


def _on(**options: Any) -> Target:
    return target(LLAMA, "h100-sxm", options=KernelOptions(**options))


def regimes() -> list[Regimes]:
    """Times without the technique over times with it, Llama-3.1-8B on an H100 unless said otherwise."""
    best, unfused = _on(), _on(fusion=frozenset())
    eager, naive = _on(cuda_graphs=False), _on(attention="standard")
    serial, deep = _on(pipeline_stages=1), _on(pipeline_stages=3)
    seven, unsplit = (target(MHA, "h100-sxm", options=KernelOptions(split_kv=split)) for split in (True, False))
    latent, expanded = (
        target("deepseek-ai/DeepSeek-V2-Lite", "h100-sxm", options=replace(DEFAULT_KERNELS, latent_attention=form))
        for form in ("absorbed", "expanded")
    )
    return [
        Regimes("FlashAttention", "kernels.attention: flash", "prompt of 16,384",
                prefill_s(naive, 16384) / prefill_s(best, 16384), "prompt of 64",
                prefill_s(naive, 64) / prefill_s(best, 64)),
        Regimes("split KV in decode (7B, MHA)", "kernels.split_kv", "1 sequence of 32,768",
                decode_s(unsplit, 1, 32768) / decode_s(seven, 1, 32768), "128 of 1,024",
                decode_s(unsplit, 128, 1024) / decode_s(seven, 128, 1024)),
        Regimes("operator fusion, all groups", "kernels.fusion", "decode, 1 sequence",
                decode_s(unfused, 1, 500) / decode_s(best, 1, 500), "prompt of 16,384",
                prefill_s(unfused, 16384) / prefill_s(best, 16384)),
        Regimes("CUDA graphs", "kernels.cuda_graphs", "decode, 1 sequence",
                decode_s(eager, 1, 500) / decode_s(best, 1, 500), "prompt of 4,096",
                prefill_s(eager, 4096) / prefill_s(best, 4096)),
        Regimes("software pipelining, 3 stages for 1", "kernels.pipeline_stages", "prompt of 4,096",
                prefill_s(serial, 4096) / prefill_s(deep, 4096), "decode, 1 sequence (memory alone)",
                decode_s(serial, 1, 500) / decode_s(deep, 1, 500)),
        Regimes("MLA absorbed (DeepSeek-V2-Lite)", "kernels.latent_attention", "decode, 16 of 8,192",
                decode_s(expanded, 16, 8192) / decode_s(latent, 16, 8192), "decode, 1 of 16",
                decode_s(expanded, 1, 16) / decode_s(latent, 1, 16)),
        *(
            Regimes(f"{name} for 32 (7B)", "model", "64 sequences of 4,096",
                    decode_s(seven, 64, 4096) / decode_s(_with_kv_heads(seven, heads), 64, 4096), "1 sequence of 128",
                    decode_s(seven, 1, 128) / decode_s(_with_kv_heads(seven, heads), 1, 128))
            for name, heads in (("8 KV heads (GQA)", 8), ("1 KV head (MQA)", 1))
        ),
        Regimes("Hydragen or RelayAttention (7B, MHA)", "shared_prefix_attention", "64 sequences, prefix 4,096",
                _sharing_gain(seven, 64, 4096), "4 sequences, prefix 32", _sharing_gain(seven, 4, 32)),
        *(
            Regimes(f"speculative decoding: {name}", "speculative", "batch 1", _guess(keys, 1), "batch 512",
                    _guess(keys, 512))
            for name, keys in GUESSES.items()
        ),
        Regimes("Skeleton-of-Thought (7B, A100)", "workload.skeleton", "one question alone", outlined(0.5),
                "300 questions at once", _crowded()),
        Regimes("StreamingLLM window of 1,024", "kv_cache.sliding_window", "64 sequences of 16,384",
                decode_s(best, 64, 16384) / decode_s(best, 64, 1024), "64 sequences of 1,024", 1.0),
        Regimes("greedy sampling on the GPU", "sampling_device", "decode, 256 sequences", _sampling(256),
                "decode, 1 sequence", _sampling(1)),
    ]  # fmt: skip


def _with_kv_heads(on: Target, heads: int) -> Target:
    """The same model with fewer keys and values."""
    (group,) = on.architecture.layers
    attention = replace(group.attention, num_kv_heads=heads)
    return replace(on, architecture=replace(on.architecture, layers=(replace(group, attention=attention),)))


def _sharing_gain(on: Target, members: int, prefix: int) -> float:
    return shared_s(on, members, prefix, 128, shared=False) / shared_s(on, members, prefix, 128)


def _guess(keys: dict[str, Any], sequences: int, context: int = 200) -> float:
    return guessing_gain(target(LLAMA, "h100-sxm"), guessing(**keys), sequences, context)


def _crowded() -> float:
    ends = []
    for skeleton in (None, {"points": 7, "tokens": 50, "template_tokens": 150, "point_template_tokens": 120}):
        traffic: dict[str, Any] = {"num_requests": 300, "arrival": {"kind": "all_at_once"}, "input_tokens": 60,
                                   "output_tokens": 400}  # fmt: skip
        if skeleton is not None:
            traffic["skeleton"] = skeleton
        scenario = {"model": MHA, "hardware": "a100-sxm-80gb", "workload": traffic}
        found: RunResult = simulate(load_scenario(scenario))
        ends.append(float(found.requests["finish_ps"].max()))
    return ends[0] / ends[1]


def _sampling(sequences: int) -> float:
    on = target(LLAMA, "h100-sxm")
    host = replace(on, choices=Choices(Sampler(on_cpu=True)))
    return decode_s(host, sequences, 500) / decode_s(on, sequences, 500)


def guess_gains() -> dict[str, list[float]]:
    """Gain by batch size, for each way of guessing."""
    return {name: [_guess(keys, batch) for batch in BATCHES] for name, keys in GUESSES.items()}


def prefix_gains() -> dict[str, list[float]]:
    """Gain of a whole decode step by prefix, for batch sizes and for two kinds of attention."""
    found = {}
    for model, name in ((MHA, "7B, MHA"), (LLAMA, "8B, 4 queries per KV head")):
        on = target(model, "h100-sxm")
        for members in (8, 64, 256):
            found[f"{name}, {members} sequences"] = [_sharing_gain(on, members, prefix) for prefix in PREFIXES]
    return found


class Share(NamedTuple):
    """A step: seconds of its matrix products, of attention and of all, and what share of it is bound by compute."""

    matmul_s: float
    attention_s: float
    total_s: float
    compute_bound: float


def share_of(ops: list[OpCost]) -> Share:
    """What the GPU's time of a step goes to."""
    total = sum(op.seconds for op in ops)
    compute = sum(op.seconds for op in ops if op.cost.bound == "compute")
    return Share(seconds_by(ops, *MATMULS), seconds_by(ops, "attention"), total, compute / total)


def prefill_shares() -> dict[int, Share]:
    """Prompts of growing length, one per step."""
    steps = timer(target(LLAMA, "h100-sxm"))
    return {n: share_of(steps.explain(RunShape(chunks=[(0, n)]))) for n in LENGTHS}


def decode_shares() -> dict[tuple[int, int], Share]:
    """Decode steps by (sequences, context)."""
    steps = timer(target(LLAMA, "h100-sxm"))
    sizes = ((1, 512), (32, 512), (32, 4096), (256, 512), (256, 4096))
    return {(n, c): share_of(steps.explain(RunShape(n, n * c))) for n, c in sizes}


def growth(shares: dict[int, Share]) -> float:
    """By which power of the length attention grows between the two longest prompts."""
    (short, a), (long, b) = list(pairwise(shares.items()))[-1]
    return log(b.attention_s / a.attention_s) / log(long / short)


class Size(NamedTuple):
    """One model: what its steps take and what the techniques buy it."""

    model: str
    gpus: int
    prefill_s: float
    decode_s: tuple[float, float]
    matmul: float
    eager: float
    sharing: float
    guessing: float
    break_even: str


def sizes() -> list[Size]:
    """From 8B to 405B on H200s: 4,096 prompt tokens; decode of 1 and 64 sequences of 1,024; gains as named."""
    found = []
    keys = GUESSES["EAGLE layer, rate 0.7"]
    for model, tp in SIZES:
        on, slow = target(model, "h200-sxm", tp), target(model, "h200-sxm", tp, EAGER)
        alone, many = decode_s(on, 1, 1024), decode_s(on, 64, 1024)
        share = share_of(timer(on).explain(RunShape(64, 64 * 1024)))
        gains = {batch: guessing_gain(on, guessing(**keys), batch, 200) for batch in BATCHES}
        paying = [batch for batch, gain in gains.items() if gain > 1]
        last = f"{max(paying):,}" if max(paying) < BATCHES[-1] else f"over {BATCHES[-1]:,}"
        found.append(Size(
            model.split("/")[1], tp, prefill_s(on, 4096), (alone, many), share.matmul_s / share.total_s,
            decode_s(slow, 1, 1024) / alone, _sharing_gain(on, 64, 4096), gains[1], last,
        ))  # fmt: skip
    return found
