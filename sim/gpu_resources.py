"""What a GPU gives an engine: the prices of its kernels, and the memory that is left for KV blocks."""

from __future__ import annotations

from sim.cost.calibrated_kernels import CalibratedKernels
from sim.cost.calibration_source import find_calibration
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
from sim.engine_settings import Engine
from sim.presets import EnginePreset
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.quantization import QuantScheme


def kernels_of(gpu: Gpu, preset: EnginePreset) -> Kernels:
    """Fitted constants where the GPU, or one of its generation, was measured; else datasheet and defaults."""
    found = find_calibration(gpu)
    kernels: Kernels = DatasheetKernels(gpu)
    if found is not None:
        kernels = CalibratedKernels(found[0], kernels, preset.stack, found[1])
    return ScaledKernels(kernels, preset.kernel_factors) if preset.kernel_factors else kernels


def memory_of(
    engine: Engine, architecture: ModelArchitecture, scheme: QuantScheme, gpu: Gpu, preset: EnginePreset
) -> MemoryPlan:
    """Where the memory of one GPU goes. Raises ConfigError when not one KV block is left, with what would help."""
    tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
    widths = ForwardWidths.of(architecture)
    demand = MemoryDemand(
        weight_bytes=architecture.weight_bytes(scheme, engine.layout),
        activation_bytes=activation_peak_bytes(widths, engine.max_num_batched_tokens, engine.max_num_seqs, tp),
        framework_bytes=framework_bytes(engine.layout.gpus),
    )
    per_token = architecture.kv_bytes_per_token(scheme.kv_bytes_per_element, tp=tp, pp=pp)
    block_bytes = max(1, per_token * engine.kv_cache["block_size"])
    budget = MemoryBudget(
        preset.memory_budget, engine.gpu_memory_utilization, kv_cache_memory_bytes=engine.kv_cache_memory_bytes
    )
    return plan_memory(int(gpu.memory_visible_bytes), demand, block_bytes, budget, tp)
