"""The one place where a name in YAML becomes an object. A new policy is a line in one of the tables below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.batch import DecodeBatch
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
from sim.cost.ops import ForwardPass, matmul_format
from sim.cost.roofline import DatasheetKernels, Kernels
from sim.cost.scaled_kernels import ScaledKernels
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.documents import Document, KeyPath, load_yaml, validate
from sim.engine.link import LinkRate
from sim.engine.replica import ReplicaParts
from sim.engine.router import (
    Random,
    RoundRobin,
    Router,
    kv_aware,
    least_kv_usage,
    least_outstanding_requests,
    prefix_affinity,
)
from sim.engine_settings import Engine, check_policies, resolve_engine
from sim.errors import ConfigError
from sim.kv.base import KVAllocator
from sim.kv.host_pool import HostPool
from sim.kv.paged import PagedKV
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.radix_cache import RadixCachedKV
from sim.presets import EnginePreset
from sim.scenario import LoadedScenario, Scenario
from sim.schedulers.base import Scheduler
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.continuous import ContinuousScheduler
from sim.schedulers.swap import Swap
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme, parse_quantization
from sim.step import IN, NO_LIMIT, OUT
from sim.units import ceil_div, to_ps
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload, find_trace, load_workload
from sim.workloads.spec import WorkloadSpec

SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "chunked": ChunkedScheduler,
    "continuous": ContinuousScheduler,
}
ALLOCATORS: Mapping[str, Callable[..., KVAllocator]] = {
    "paged": PagedKV,
}
PREFIX_CACHES: Mapping[str, Callable[..., KVAllocator]] = {
    "hash_block": PrefixCachedKV,
    "radix": RadixCachedKV,
}
"""By way of matching: what takes the place of `paged` when prefix caching is enabled and prompts have something known
about them."""
ROUTERS: Mapping[str, Callable[[int], Router]] = {
    "round_robin": lambda seed: RoundRobin(),
    "random": Random,
    "least_outstanding_requests": lambda seed: least_outstanding_requests,
    "least_kv_usage": lambda seed: least_kv_usage,
    "prefix_affinity": lambda seed: prefix_affinity,
    "kv_aware": lambda seed: kv_aware,
}
POLICIES: Mapping[KeyPath, Mapping[str, Callable[..., Any]]] = {
    ("engine", "scheduler"): SCHEDULERS,
    ("engine", "kv_cache", "allocator"): ALLOCATORS,
    ("engine", "kv_cache", "prefix_cache", "match"): PREFIX_CACHES,
    ("replicas", "router"): ROUTERS,
}
"""Where a scenario names a policy, and what may be named there."""


@dataclass(frozen=True)
class WrittenWorkload:
    """The traffic of a run and where it is written: a file of its own, or the scenario's `workload:`."""

    spec: WorkloadSpec
    document: Document
    at: KeyPath

    def blamed(self) -> AbstractContextManager[None]:
        """Errors inside that name no file point at the workload's key, or at the file in which it stands."""
        return self.document.blamed(self.at, under=self.at)


@dataclass(frozen=True)
class Setup:
    """Everything a run needs, built from a scenario; `parts` makes one replica's share of it."""

    scenario: Scenario
    engine: Engine
    gpu: Gpu
    architecture: ModelArchitecture
    scheme: QuantScheme
    kernels: Kernels
    timer: RooflineStepTimer
    written: WrittenWorkload
    workload: Workload
    memory: MemoryPlan
    num_blocks: int
    fixed_blocks: int
    notes: tuple[str, ...]
    path: Path | None = None

    @property
    def spec(self) -> WorkloadSpec:
        """The traffic as its file describes it."""
        return self.written.spec

    @property
    def trace_path(self) -> Path | None:
        """The absolute path of the trace that is replayed, if there is one."""
        trace = self.spec.trace
        return None if trace is None else find_trace(trace, beside=self.written.document.path).resolve()

    def parts(self, *, max_run: int = NO_LIMIT) -> ReplicaParts:
        """Scheduler, allocator and batch of a fresh replica; the timer's price tables are shared by all."""
        engine = self.engine
        batch = DecodeBatch(self.timer.spans)
        kv = self._allocator()
        options = {key: value for key, value in engine.scheduler.items() if key != "kind"}
        # Limits are those of one lane; a scheduler plans for all of them, but the chunk of one prompt stays in one.
        budget, lanes = engine.max_num_batched_tokens, engine.layout.lanes
        if engine.scheduler["kind"] == "chunked":
            cap = engine.long_prefill_token_threshold or (budget if lanes > 1 else 0)
            options["long_prefill_token_threshold"] = min(cap, budget)
        swap = self._swap(kv)
        if swap is not None:
            options["swap"] = swap
        scheduler = SCHEDULERS[engine.scheduler["kind"]](
            kv, batch, max_num_seqs=engine.max_num_seqs * engine.data_parallel_size,
            max_num_batched_tokens=budget * lanes, **options,
        )  # fmt: skip
        parts = ReplicaParts(
            scheduler, kv, batch, self.timer, int(engine.async_scheduling), max_run, engine.max_queued_requests
        )
        return parts if swap is None else replace(parts, **self._host(swap))

    def _swap(self, kv: KVAllocator) -> Swap | None:
        """A replica's way out to the host; None: preempted requests are recomputed."""
        offload, layout = self.engine.kv_cache.get("offload"), self.engine.layout
        if offload is None:
            return None
        return Swap(
            kv, HostPool(offload["capacity"]), block_bytes=self.memory.block_bytes * layout.tp * layout.pp,
            fixed_blocks=self.fixed_blocks, overlap=offload["overlap"],
        )  # fmt: skip

    def _host(self, swap: Swap) -> dict[str, Any]:
        offload = self.engine.kv_cache["offload"]
        rate = LinkRate(offload["bandwidth"], to_ps(offload["latency_s"]))
        return {"links": {OUT: rate, IN: rate}, "overlap": swap.overlap, "host": swap.pool}

    def _allocator(self) -> KVAllocator:
        kv = self.engine.kv_cache
        make, options = ALLOCATORS[kv["allocator"]], {}
        if kv["enable_prefix_caching"] and self.workload.has_prefixes:
            make, options = PREFIX_CACHES[kv["prefix_cache"]["match"]], {"eviction": kv["prefix_cache"]["eviction"]}
        return make(self.num_blocks, kv["block_size"], self.fixed_blocks, **options)

    def router(self) -> Router:
        """The router of the run."""
        return ROUTERS[self.scenario.replicas.router.kind](self.scenario.seed)


def build(loaded: LoadedScenario, factors: Mapping[str, float] | None = None) -> Setup:
    """Resolve every name of a scenario and work out its memory.

    `factors` make operator classes slower or faster, for repetitions with error bars. Raises ConfigError for what does
    not exist, contradicts itself or does not fit.
    """
    scenario, path, blamed = loaded.scenario, loaded.path, loaded.document.blamed
    with blamed(("hardware",)):
        gpu = load_gpu(scenario.hardware, beside=path)
    with blamed(("model",)):
        architecture = load_model(scenario.model, beside=path)
    architecture, notes = _with_dtype(architecture, loaded, gpu)
    written = _workload(loaded)
    scheme = _scheme(loaded, architecture)
    check_policies(loaded, POLICIES)
    engine, preset = resolve_engine(loaded, architecture, gpu, scheme)
    with blamed(("hardware",)):
        kernels = _kernels(gpu, preset)
    if factors:
        kernels = ScaledKernels(kernels, factors)
    forward = ForwardPass(architecture, scheme, gpu, kernels, engine.layout)
    timer = RooflineStepTimer(forward, HostWork(**engine.host))
    with blamed(("model",), under=("engine",)):
        memory = _memory(engine, architecture, scheme, gpu, preset)
    num_blocks = (engine.num_gpu_blocks_override or memory.num_blocks) * engine.data_parallel_size
    fixed = architecture.kv_bytes_per_sequence_fixed(
        scheme.kv_bytes_per_element, tp=engine.tensor_parallel_size, pp=engine.pipeline_parallel_size
    )
    spec = written.spec
    _check_context(written, engine)
    with written.blamed():
        workload = build_workload(
            spec, seed=scenario.seed, max_model_len=engine.max_model_len, beside=written.document.path
        )
        if workload.num_requests == 0:
            raise ConfigError("no request is left to replay", key="trace", value=spec.trace)
    notes += _notes(gpu, scheme) + list(workload.notes)
    return Setup(
        scenario, engine, gpu, architecture, scheme, kernels, timer, written, workload, memory, num_blocks,
        ceil_div(fixed, memory.block_bytes), tuple(notes), loaded.path,
    )  # fmt: skip


def _kernels(gpu: Gpu, preset: EnginePreset) -> Kernels:
    """Fitted constants where the GPU, or one of its generation, was measured; else datasheet and defaults."""
    found = find_calibration(gpu)
    if found is None:
        return DatasheetKernels(gpu)
    calibration, trust = found
    return CalibratedKernels(calibration, DatasheetKernels(gpu), preset.stack, trust)


def _with_dtype(
    architecture: ModelArchitecture, loaded: LoadedScenario, gpu: Gpu
) -> tuple[ModelArchitecture, list[str]]:
    """The 16-bit type the model runs in: the checkpoint's, unless the GPU cannot or the user says otherwise."""
    given = loaded.scenario.engine.dtype
    wanted = architecture.dtype if given == "auto" else given
    notes = []
    if wanted == "float32":
        wanted = "float16"
    if wanted == "bfloat16" and not gpu.supports("bf16"):
        if given != "auto":
            raise loaded.document.error(("engine", "dtype"), f"{gpu.name} does not multiply bfloat16", value=given,
                                        choices=["float16", "auto"])  # fmt: skip
        wanted = "float16"
        notes.append(f"{gpu.name} does not multiply bfloat16: the model runs in float16, as vLLM does")
    return replace(architecture, dtype=wanted), notes


def _workload(loaded: LoadedScenario) -> WrittenWorkload:
    given, at = loaded.scenario.workload, ("workload",)
    if not isinstance(given, str):
        return WrittenWorkload(validate(WorkloadSpec, loaded.document, at=at, data=given), loaded.document, at)
    with loaded.document.blamed(at):
        spec, path = load_workload(given, beside=loaded.path)
    is_trace = spec.trace == str(path)
    return WrittenWorkload(spec, Document(path, {}) if is_trace else load_yaml(path), ())


def _scheme(loaded: LoadedScenario, architecture: ModelArchitecture) -> QuantScheme:
    given = loaded.scenario.engine
    axes = given.quantization if isinstance(given.quantization, dict) else {}
    with loaded.document.blamed(("engine", "quantization")):
        try:
            return parse_quantization(
                given.quantization, architecture, kv_cache_dtype=given.kv_cache_dtype, key="engine.quantization"
            )
        except ConfigError as error:
            if error.key != "engine.quantization.kv_cache" or "kv_cache" in axes:
                raise
            raise error.placed(**loaded.document.place(("engine", "kv_cache_dtype"))) from None


def _memory(
    engine: Engine, architecture: ModelArchitecture, scheme: QuantScheme, gpu: Gpu, preset: EnginePreset
) -> MemoryPlan:
    tp, pp = engine.tensor_parallel_size, engine.pipeline_parallel_size
    widths = _widths(architecture)
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


def _widths(architecture: ModelArchitecture) -> ForwardWidths:
    qkv = max((m.n for m in architecture.matrices() if m.role in ("qkv", "q_b", "q", "linear_in")), default=0)
    mlps = [group.mlp for group in architecture.layers if group.mlp is not None]
    widest = max(mlps, key=lambda mlp: mlp.intermediate_size)
    moe = next((mlp for mlp in mlps if mlp.kind == "moe"), None)
    return ForwardWidths(
        architecture.hidden_size, (moe or widest).intermediate_size, qkv, architecture.vocab_size,
        moe.experts_per_token if moe is not None else 1,
    )  # fmt: skip


def _notes(gpu: Gpu, scheme: QuantScheme) -> list[str]:
    notes = []
    form = matmul_format(scheme, "gate_up", gpu)
    wanted = scheme.compute_format("gate_up").tensor_rate
    if form.compute != wanted:
        notes.append(f"{gpu.name} has no {wanted} tensor cores: {form.name} weights are expanded and multiplied in "
                     f"{form.compute}")  # fmt: skip
    return notes


def _check_context(written: WrittenWorkload, engine: Engine) -> None:
    """A workload in which every request is too long is a mistake, not a result."""
    spec = written.spec
    if spec.input_tokens is None or spec.output_tokens is None:
        return
    prompt, answer = _shortest(spec.input_tokens), _shortest(spec.output_tokens)
    answer = min(answer, spec.max_output_tokens or answer)
    prompt += spec.shared_prefix.tokens if spec.shared_prefix is not None else 0
    if prompt + answer > engine.max_model_len:
        longer = "input_tokens" if prompt >= answer else "output_tokens"
        raise written.document.error(
            (*written.at, longer), f"the shortest request has {prompt + answer} tokens, but max_model_len is "
            f"{engine.max_model_len}: no request could be served",
        )  # fmt: skip


def _shortest(law: Any) -> int:
    """The fewest tokens a length law can draw, as far as its keys say so."""
    return int(law if isinstance(law, int) else getattr(law, "tokens", getattr(law, "min", 1)))
