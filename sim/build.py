"""From a scenario to everything a run needs: names resolved, memory shared out, contradictions refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.cost.roofline import Kernels
from sim.cost.scaled_kernels import ScaledKernels
from sim.cost.vision import VisionEncoder
from sim.cost.vision_timer import VisionTimer
from sim.drafting import Target
from sim.engine_settings import RESTORING, Engine, check_policies, resolve_engine
from sim.errors import ConfigError
from sim.gpu_resources import kernels_of, memory_of
from sim.kv_settings import with_kv_window
from sim.model_formats import checked_formats, format_notes, quantization_of, with_dtype
from sim.policies import (
    FORKING,
    FORKING_SCHEDULERS,
    POLICIES,
)
from sim.pools import PoolLink, pool_scenario
from sim.scenario import LoadedScenario
from sim.setup import Setup
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.speculative_settings import resolve_drafting
from sim.step_pricing import choices_of, timer_of
from sim.units import ceil_div
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload
from sim.written_workload import WrittenWorkload, check_context, written_workload


def build(loaded: LoadedScenario, factors: Mapping[str, float] | None = None) -> Setup:
    """Resolve every name of a scenario and work out its memory.

    `factors` make operator classes slower or faster, for repetitions with error bars. Raises ConfigError for what does
    not exist, contradicts itself or does not fit.
    """
    spec = loaded.scenario.pools
    if spec is None:
        return _build(loaded, factors)
    halves = pool_scenario(loaded, "prefill"), pool_scenario(loaded, "decode")
    prefill, decode = (_build(half, factors) for half in halves)
    for half, pool in zip(halves, (prefill, decode), strict=True):
        _check_pool(half, pool, prefill)
    ends = [(pool.gpu, pool.engine.layout) for pool in (prefill, decode)]
    decode = replace(decode, takes_over=True, workload=prefill.workload)
    return replace(prefill, decode=decode, link=PoolLink.of(spec.link, ends))


def _check_pool(loaded: LoadedScenario, pool: Setup, prefill: Setup) -> None:
    """What a half of disaggregated serving needs."""
    error, scheduler = loaded.document.error, pool.engine.scheduler["kind"]
    if scheduler not in RESTORING:
        raise error(("engine", "scheduler"), "hands no prompts from pool to pool", value=scheduler, choices=RESTORING)
    allocator = pool.engine.kv_cache["allocator"]["kind"]
    if pool is prefill and allocator != "paged":
        raise error(("engine", "kv_cache", "allocator"), "reserves room for answers that another pool gives",
                    value=allocator, choices=["paged"])  # fmt: skip
    if pool.spec.sequences > 1:
        raise error(("pools",), "need one answer per request: sequences that fork share blocks with their prompt")
    if pool.engine.speculative is not None:
        raise error(("engine", "speculative"), "does not go with pools: a draft would need the prompt's cache as well")
    if pool.scheme.kv_cache != prefill.scheme.kv_cache:
        raise error(("engine", "kv_cache_dtype"), f"must be that of the prefill pool ({prefill.scheme.kv_cache.name})",
                    value=pool.scheme.kv_cache.name)  # fmt: skip
    if pool is not prefill and pool.engine.max_queued_requests is not None:
        raise error(("engine", "max_queued_requests"), "is for the prefill pool: arrivals are rejected there",
                    value=pool.engine.max_queued_requests)  # fmt: skip


def _build(loaded: LoadedScenario, factors: Mapping[str, float] | None) -> Setup:
    scenario, path, blamed = loaded.scenario, loaded.path, loaded.document.blamed
    with blamed(("hardware",)):
        gpu = load_gpu(scenario.hardware, beside=path)
    with blamed(("model",)):
        architecture = load_model(scenario.model, beside=path)
    architecture, notes = with_dtype(architecture, loaded, gpu)
    architecture, window_notes = with_kv_window(loaded, architecture)
    written = written_workload(loaded)
    scheme = quantization_of(loaded, architecture)
    check_policies(loaded, POLICIES)
    engine, preset = resolve_engine(loaded, architecture, gpu, scheme)
    scheme = checked_formats(loaded, scheme, architecture, gpu, preset.stack, engine.layout)
    engine = replace(engine, quantization=scheme.as_dict())
    with blamed(("hardware",)):
        kernels = kernels_of(gpu, preset, scenario.engine.kernels.options())
    if factors:
        kernels = ScaledKernels(kernels, factors)
    beams = written.spec.beam_width is not None
    target = Target(architecture, scheme, gpu, kernels, engine.layout, choices_of(engine, preset, beams=beams))
    drafting = resolve_drafting(loaded, engine, target)
    timer = timer_of(engine, target, None if drafting is None else drafting.guesser)
    if (encoder := _encoder(architecture, written, kernels, gpu, engine)) is not None:
        timer = VisionTimer(timer, encoder)
    with blamed(("model",), under=("engine",)):
        memory = memory_of(engine, target, preset, drafting)
    num_blocks = (engine.num_gpu_blocks_override or memory.num_blocks) * engine.data_parallel_size
    fixed = architecture.kv_bytes_per_sequence_fixed(
        scheme.kv_bytes_per_element, tp=engine.tensor_parallel_size, pp=engine.pipeline_parallel_size
    )
    spec = written.spec
    check_context(written, engine.max_model_len)
    if spec.sequences > 1:
        _check_sequences(loaded, written, engine, architecture)
    workload = _traffic(written, scenario.seed, engine.max_model_len, architecture)
    notes += window_notes + format_notes(gpu, scheme, kernels) + list(workload.notes)
    return Setup(
        scenario, engine, gpu, architecture, scheme, kernels, timer, written, workload, memory, num_blocks,
        ceil_div(fixed, memory.block_bytes), tuple(notes), loaded.path,
    )  # fmt: skip


def _encoder(
    architecture: ModelArchitecture, written: WrittenWorkload, kernels: Kernels, gpu: Gpu, engine: Engine
) -> VisionEncoder | None:
    images, tower = written.spec.images, architecture.vision
    if images is None or tower is None:
        return None
    dtype = "bf16" if architecture.dtype == "bfloat16" else "fp16"
    compute = dtype if gpu.supports(dtype) else gpu.default_dtype
    return VisionEncoder(tower, (images.width, images.height), kernels, compute, engine.tensor_parallel_size)


def _traffic(written: WrittenWorkload, seed: int, max_model_len: int, architecture: ModelArchitecture) -> Workload:
    images, tower = written.spec.images, architecture.vision
    if images is not None and tower is None:
        raise written.document.error((*written.at, "images"), f"{architecture.name} has no vision tower, or none that "
                                     "is understood (LLaVA, Qwen2-VL, Qwen2.5-VL)")  # fmt: skip
    tokens = None if images is None or tower is None else tower.tokens(images.width, images.height)
    with written.blamed():
        workload = build_workload(
            written.spec, seed=seed, max_model_len=max_model_len, beside=written.document.path, image_tokens=tokens
        )
        if workload.num_requests == 0:
            raise ConfigError("no request is left to replay", key="trace", value=written.spec.trace)
    return workload


def with_traffic(setup: Setup, loaded: LoadedScenario) -> Setup:
    """The same servers under the traffic of another scenario that differs in nothing else: much quicker than `build`.

    Prices of steps that are known already are kept.
    """
    written = written_workload(loaded)
    workload = _traffic(written, loaded.scenario.seed, setup.engine.max_model_len, setup.architecture)
    decode = setup.decode and replace(setup.decode, written=written, workload=workload)
    return replace(setup, written=written, workload=workload, decode=decode)


def _check_sequences(
    loaded: LoadedScenario, written: WrittenWorkload, engine: Engine, architecture: ModelArchitecture
) -> None:
    """What requests with several sequences do not go with."""
    spec, error = written.spec, loaded.document.error
    asked = "n" if spec.beam_width is None else "beam_width"
    allocator, scheduler = engine.kv_cache["allocator"]["kind"], engine.scheduler["kind"]
    if allocator not in FORKING:
        raise error(("engine", "kv_cache", "allocator"), f"shares no blocks among the sequences of a request ({asked})",
                    value=allocator, choices=sorted(FORKING))  # fmt: skip
    if scheduler not in FORKING_SCHEDULERS:
        raise error(("engine", "scheduler"), f"keeps no seats for the sequences of a request ({asked})",
                    value=scheduler, choices=FORKING_SCHEDULERS)  # fmt: skip
    if engine.preemption_mode == "swap":
        raise error(("engine", "preemption_mode"), f"cannot swap blocks that several sequences share ({asked})",
                    value="swap")  # fmt: skip
    if (architecture.kv_limit_tokens or engine.max_model_len) < engine.max_model_len:
        raise error(("engine", "kv_cache", "sliding_window"), "writes over blocks that the sequences of a request "
                    f"share ({asked})", value=architecture.kv_limit_tokens)  # fmt: skip
    if engine.kv_cache.get("tiers"):
        raise error(("engine", "kv_cache", "tiers"), f"keep no blocks that several sequences share ({asked})")
    if spec.beam_width is not None and engine.async_scheduling:
        raise error(("engine", "async_scheduling"), "must be false with beam_width: which beams live is known only "
                    "when the step before has ended", value=True)  # fmt: skip
    if spec.sequences > engine.max_num_seqs:
        raise written.document.error((*written.at, asked), f"exceeds max_num_seqs ({engine.max_num_seqs}): a sequence "
                                     "takes a seat", value=spec.sequences)  # fmt: skip
