"""What a GPU gives an engine: the prices of its kernels, and the memory that is left for KV blocks."""

from __future__ import annotations

from sim.cost.attention_io import score_bytes
from sim.cost.calibrated_kernels import CalibratedKernels
from sim.cost.calibration_source import find_calibration
from sim.cost.chosen_kernels import ChosenKernels
from sim.cost.kernel_options import DEFAULT_KERNELS, KernelOptions
from sim.cost.memory import (
    ForwardWidths,
    MemoryBudget,
    MemoryDemand,
    MemoryPlan,
    activation_peak_bytes,
    framework_bytes,
    plan_memory,
)
from sim.cost.roofline import DatasheetKernels, Kernels
from sim.cost.scaled_kernels import ScaledKernels
from sim.drafting import NO_DRAFT, Drafting, Target
from sim.engine_settings import Engine
from sim.presets import EnginePreset
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.units import ceil_div


def kernels_of(gpu: Gpu, preset: EnginePreset, options: KernelOptions = DEFAULT_KERNELS) -> Kernels:
    """Fitted constants where the GPU, or one of its generation, was measured; else datasheet and defaults.

    Where an engine does without a technique of those kernels, its cost comes back.
    """
    found = find_calibration(gpu)
    kernels: Kernels = DatasheetKernels(gpu)
    if found is not None:
        kernels = CalibratedKernels(found[0], kernels, preset.stack, found[1])
    if preset.kernel_factors:
        kernels = ScaledKernels(kernels, preset.kernel_factors)
    measured = options.attention == "flash" and options.split_kv and options.pipeline_stages is None
    return kernels if measured else ChosenKernels(kernels, gpu, options)


def memory_of(engine: Engine, target: Target, preset: EnginePreset, drafting: Drafting | None = None) -> MemoryPlan:
    """Where the memory of one GPU goes. Raises ConfigError when not one KV block is left, with what would help.

    A draft's weights are weights, and its cache grows with the model's.
    """
    architecture, scheme, gpu = target.architecture, target.scheme, target.gpu
    draft = drafting or NO_DRAFT
    tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
    widths = ForwardWidths.of(architecture)
    demand = MemoryDemand(
        weight_bytes=architecture.weight_bytes(scheme, engine.layout) + draft.weight_bytes,
        activation_bytes=activation_peak_bytes(widths, engine.max_num_batched_tokens, engine.max_num_seqs, tp)
        + _scores(engine, architecture),
        framework_bytes=framework_bytes(engine.layout.gpus),
    )
    per_token = architecture.kv_bytes_per_token(scheme.kv_bytes_per_element, tp=tp, pp=pp)
    block_bytes = max(1, (per_token + draft.kv_bytes_per_token) * engine.kv_cache["block_size"])
    budget = MemoryBudget(
        preset.memory_budget, engine.gpu_memory_utilization, kv_cache_memory_bytes=engine.kv_cache_memory_bytes
    )
    return plan_memory(int(gpu.memory_visible_bytes), demand, block_bytes, budget, tp)


def _scores(engine: Engine, architecture: ModelArchitecture) -> int:
    """Memory for the scores of standard attention: a full step of the longest prompts, one layer at a time."""
    if engine.kernels.get("attention") != "standard":
        return 0
    heads = max(group.attention.num_heads for group in architecture.layers if group.attention is not None)
    tokens, longest = engine.max_num_batched_tokens, engine.max_model_len
    return score_bytes(ceil_div(heads, engine.tensor_parallel_size), tokens, longest)
