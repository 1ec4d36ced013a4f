"""Steps of one model on one GPU with techniques on and off: what the pages on techniques are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sim.acceptance import expected_tokens
from sim.cost.eager import passes_of
from sim.cost.kernel_options import DEFAULT_KERNELS, KernelOptions
from sim.cost.ops import Choices, ForwardPass, OpCost
from sim.cost.shape import RunShape
from sim.cost.shared_prefix import SharedPrefixTimer
from sim.cost.speculation import SpeculativeTimer
from sim.cost.step_timer import StepPricer
from sim.drafting import Target, drafting_of
from sim.gpu_resources import kernels_of
from sim.presets import load_preset
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization_keys import parse_quantization
from sim.techniques import SpeculativeSpec

EAGER = KernelOptions(attention="standard", fusion=frozenset(), cuda_graphs=False)
"""What Hugging Face Transformers did in 2023: nothing fused, scores in memory, kernels launched one by one."""
_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "rtx-a6000": {"tensor_flops": {"fp16": "154.8 TFLOP/s", "bf16": "154.8 TFLOP/s"},
                  "memory_bandwidth_bytes_per_s": "768 GB/s"},
    "a10": {"tensor_flops": {"fp16": "125 TFLOP/s", "bf16": "125 TFLOP/s"}, "sm_count": 72,
            "memory_bandwidth_bytes_per_s": "600 GB/s", "memory_bytes": "24 GiB", "memory_visible_bytes": "23028 MiB"},
}  # fmt: skip
"""Cards of the A40's generation without a profile of their own (LLM-Viewer's table; the A10 from memory)."""


@cache
def gpu(name: str) -> Gpu:
    """A profile, or a card that differs from the A40 in a few figures."""
    if name in _OTHERS:
        return load_gpu("a40").replace(name=name, **_OTHERS[name])
    return load_gpu(name)


@cache
def target(
    model: str, hardware: str, tp: int = 1, options: KernelOptions = DEFAULT_KERNELS, weights: str | None = None
) -> Target:
    """A model on `tp` GPUs, whose kernels are as `options` say."""
    architecture, card = load_model(model), gpu(hardware)
    kernels = kernels_of(card, load_preset("vllm-v1"), options)
    scheme = parse_quantization(weights, architecture)
    return Target(architecture, scheme, card, kernels, Layout(tp=tp), Choices(kernels=options))


def timer(on: Target, query_tokens: int = 1) -> StepPricer:
    """Its steps; with `query_tokens` of every sequence verified at once."""
    choices = on.choices._replace(query_tokens=query_tokens)
    return passes_of(ForwardPass(on.architecture, on.scheme, on.gpu, on.kernels, on.layout, choices))


def decode_s(on: Target, sequences: int, context: int) -> float:
    """One step of `sequences` sequences of equal context."""
    return timer(on).run(RunShape(sequences, sequences * context), 1).total_ps / 1e12


def prefill_s(on: Target, tokens: int, prompts: int = 1) -> float:
    """Prompts of so many tokens, whole, in one step."""
    return timer(on).run(RunShape(chunks=[(0, tokens)] * prompts), 1).total_ps / 1e12


def shared_s(on: Target, sequences: int, prefix: int, own: int, *, steps: int = 1, shared: bool = True) -> float:
    """Steps of sequences with `prefix` tokens in common and `own` besides, which grow; read once, or by each."""
    sums = (prefix, prefix * sequences) if shared else (0, 0)
    at = RunShape(sequences, sequences * (prefix + own), shared=sums)
    return SharedPrefixTimer(timer(on)).run(at, steps).total_ps / 1e12


def guessing(**keys: Any) -> SpeculativeSpec:
    """Speculative decoding as a scenario writes it."""
    return SpeculativeSpec(**keys)


def guessing_gain(
    on: Target, spec: SpeculativeSpec, sequences: int = 1, context: int = 500, tokens: float | None = None
) -> float:
    """Tokens per second with guesses over those without; `tokens` per verification instead of what the rates say."""
    shape = RunShape(sequences, sequences * context)
    step = SpeculativeTimer(timer(on, spec.query_tokens), drafting_of(spec, on).guesser).run(shape, 1).total_ps
    plain = timer(on).run(shape, 1).total_ps
    return (tokens or expected_tokens(spec.rates)) * plain / step


def seconds_by(ops: list[OpCost], *names: str) -> float:
    """Time of the operators whose names begin so."""
    return sum(op.seconds for op in ops if op.name.startswith(names))
