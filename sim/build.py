"""The one place where a name in YAML becomes an object. A new policy is a line in one of the tables below."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.batch import DecodeBatch
from sim.cost.memory import (
    MemoryPlan,
)
from sim.cost.ops import GREEDY, ForwardPass, Sampler
from sim.cost.roofline import Kernels
from sim.cost.scaled_kernels import ScaledKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.documents import KeyPath
from sim.engine.front_end import FrontEnd
from sim.engine.handoff import HandoffRules
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
from sim.engine.tiers import TierLinks
from sim.engine_settings import RESTORING, Engine, check_policies, options_of, resolve_engine
from sim.errors import ConfigError
from sim.gpu_resources import kernels_of, memory_of
from sim.kv.base import KVAllocator
from sim.kv.bounded import BoundedKV
from sim.kv.forked import ForkedKV, ForkedPrefixCachedKV, ForkedRadixCachedKV
from sim.kv.host_pool import HostPool
from sim.kv.load_policy import LoadRule
from sim.kv.max_length import MaxLengthKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.radix_cache import RadixCachedKV
from sim.kv.tier_store import TierStore
from sim.kv.tiered import TieredKV, TieredRadixKV
from sim.kv_settings import with_kv_window
from sim.model_formats import format_notes, quantization_of, with_dtype
from sim.pools import PoolLink, pool_scenario
from sim.predictors import LengthPredictor, NoisyPredictor, OraclePredictor, QuantilePredictor
from sim.scenario import LoadedScenario, Scenario
from sim.schedulers.base import Scheduler
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.continuous import ContinuousScheduler
from sim.schedulers.dynamic import DynamicScheduler
from sim.schedulers.fair_share import FairShareQueue
from sim.schedulers.mover import Mover
from sim.schedulers.queue_order import FcfsQueue, Queue, by_prediction, by_priority, by_prompt
from sim.schedulers.sglang import SglangScheduler
from sim.schedulers.static import StaticScheduler
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme
from sim.step import IN, NO_LIMIT, OUT
from sim.units import PS_PER_S, ceil_div, to_ps
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload, find_trace
from sim.workloads.spec import WorkloadSpec
from sim.written_workload import WrittenWorkload, check_context, written_workload

SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "chunked": ChunkedScheduler,
    "continuous": ContinuousScheduler,
    "dynamic": DynamicScheduler,
    "sglang": SglangScheduler,
    "static": StaticScheduler,
}
QUEUE_ORDERS: Mapping[str, Callable[..., Queue]] = {
    "fcfs": FcfsQueue,
    "priority": by_priority,
    "shortest_prompt": by_prompt,
    "shortest_predicted": by_prediction,
    "fair_share": FairShareQueue,
}
ALLOCATORS: Mapping[str, Callable[..., KVAllocator]] = {
    "paged": PagedKV,
    "max-length": MaxLengthKV,
    "predicted": PredictedKV,
}
PREFIX_CACHES: Mapping[str, Callable[..., KVAllocator]] = {
    "hash_block": PrefixCachedKV,
    "radix": RadixCachedKV,
}
"""By way of matching: what takes the place of `paged` when prompts have something in common and may share it."""
FORKING: Mapping[str, Callable[..., KVAllocator]] = {
    "paged": ForkedKV,
}
FORKING_PREFIX_CACHES: Mapping[str, Callable[..., KVAllocator]] = {
    "hash_block": ForkedPrefixCachedKV,
    "radix": ForkedRadixCachedKV,
}
"""What takes the place of either when requests have several sequences."""
TIERED: Mapping[str, Callable[..., KVAllocator]] = {
    "hash_block": TieredKV,
    "radix": TieredRadixKV,
}
"""What takes the place of a prefix cache when there is memory below it."""
FORKING_SCHEDULERS = ("chunked", "continuous")
"""Those that keep seats for the sequences to come."""
PREDICTORS: Mapping[str, Callable[..., LengthPredictor]] = {
    "oracle": OraclePredictor,
    "noisy": NoisyPredictor,
    "quantile": QuantilePredictor,
}
BOUNDED: Mapping[str, Callable[..., KVAllocator]] = {"paged": BoundedKV}
"""What takes an allocator's place, if it needs to, when sequences outgrow what the cache keeps of them."""
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
    ("engine", "scheduling_policy"): QUEUE_ORDERS,
    ("engine", "kv_cache", "allocator"): ALLOCATORS,
    ("engine", "kv_cache", "prefix_cache", "match"): PREFIX_CACHES,
    ("engine", "length_predictor"): PREDICTORS,
    ("replicas", "router"): ROUTERS,
}
"""Where a scenario names a policy, and what may be named there."""


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
    takes_over: bool = False
    """Whether other replicas compute the prompts of this one."""
    decode: Setup | None = None
    """The pool that decodes, where this one only prefills."""
    link: PoolLink | None = None

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
        options = options_of(engine.scheduler)
        # Limits are those of one lane; a scheduler plans for all of them, but the chunk of one prompt stays in one.
        budget, lanes = engine.max_num_batched_tokens, engine.layout.lanes
        if engine.scheduler["kind"] == "chunked":
            cap = engine.long_prefill_token_threshold or (budget if lanes > 1 else 0)
            options["long_prefill_token_threshold"] = min(cap, budget)
        offload = engine.kv_cache.get("offload")
        host = None if offload is None else HostPool(offload["capacity"])
        if host is not None or self.takes_over:
            options["mover"] = Mover(
                kv, host, block_bytes=self.block_bytes, fixed_blocks=self.fixed_blocks, bound_tokens=self.bound_tokens,
                overlap=bool(offload and offload["overlap"]),
            )  # fmt: skip
        scheduler = SCHEDULERS[engine.scheduler["kind"]](
            kv, batch, max_num_seqs=engine.max_num_seqs * engine.data_parallel_size,
            max_num_batched_tokens=budget * lanes, preemption_victim=engine.preemption_victim,
            queue=QUEUE_ORDERS[engine.scheduling_policy["kind"]](**options_of(engine.scheduling_policy)), **options,
        )  # fmt: skip
        predictor = _predictor(engine, self.scenario.seed)
        parts = ReplicaParts(
            scheduler, kv, batch, self.timer, int(engine.async_scheduling), max_run, predictor,
            engine.max_queued_requests,
        )  # fmt: skip
        if isinstance(kv, TieredKV):
            parts = replace(parts, tiers=self._tier_links(kv))
        if offload is None:
            return parts
        rate = LinkRate(offload["bandwidth"], to_ps(offload["latency_s"]))
        return replace(parts, links={OUT: rate, IN: rate}, overlap=offload["overlap"], host=host)

    @property
    def block_bytes(self) -> int:
        """Of a KV block on all GPUs that hold a part of it."""
        return self.memory.block_bytes * self.engine.layout.tp * self.engine.layout.pp

    @property
    def pools(self) -> list[Setup]:
        """This one, and the one that decodes if that is another."""
        return [self] if self.decode is None else [self, self.decode]

    def handoff(self) -> HandoffRules | None:
        """How prompts get from this pool to the one that decodes."""
        if self.decode is None or self.link is None:
            return None
        decode, link = self.decode, self.link
        return HandoffRules(
            decode.router(), LinkRate(link.bandwidth, to_ps(link.latency_s)), self.scenario.replicas.count,
            self.architecture.num_layers if link.layerwise else None,
            decode.block_bytes // decode.engine.kv_cache["block_size"],
        )  # fmt: skip

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts find what others have computed."""
        return bool(self.engine.kv_cache["enable_prefix_caching"]) and self.workload.has_prefixes

    @property
    def bound_tokens(self) -> int | None:
        """The most tokens of a sequence that the cache keeps, where that is fewer than it may have."""
        limit = self.architecture.kv_limit_tokens
        return None if limit is None or limit >= self.engine.max_model_len or self.shares_prefixes else limit

    def _allocator(self) -> KVAllocator:
        options = dict(self.engine.kv_cache["allocator"])
        kind = options.pop("kind")
        forks = self.spec.sequences > 1
        make = (FORKING if forks else ALLOCATORS)[kind]
        if self.shares_prefixes:
            prefix_cache = self.engine.kv_cache["prefix_cache"]
            make = (FORKING_PREFIX_CACHES if forks else PREFIX_CACHES)[prefix_cache["match"]]
            options["eviction"] = prefix_cache["eviction"]
            if self.engine.kv_cache.get("tiers"):
                make, options = TIERED[prefix_cache["match"]], options | self._tiers()
        if self.bound_tokens is not None:
            make = BOUNDED.get(kind, make)
        known = {"max_model_len": self.engine.max_model_len, "bound_tokens": self.bound_tokens}
        options |= {name: known[name] for name in inspect.signature(make).parameters if name in known}
        return make(self.num_blocks, self.engine.kv_cache["block_size"], self.fixed_blocks, **options)

    def _tiers(self) -> dict[str, Any]:
        """Memory below the prefix cache, and when it is worth a copy."""
        kv, block_bytes, spans = self.engine.kv_cache, self.block_bytes, len(self.timer.spans)

        def prefill_ps(cached: int, new: int) -> int:
            return self.timer.run(RunShape(0, 0, [(cached, new)], [0] * spans, [0] * spans), 1).total_ps

        rates = [(tier["bandwidth"], to_ps(tier["latency_s"])) for tier in kv["tiers"]]
        rule = LoadRule(kv["load_policy"], rates, block_bytes, kv["block_size"], prefill_ps)
        store = TierStore([tier["capacity"] // block_bytes for tier in kv["tiers"]])
        return {"store": store, "worth": rule, "prefetch": kv["prefetch"]}

    def _tier_links(self, kv: TieredKV) -> TierLinks:
        tiers, delay = self.engine.kv_cache["tiers"], "latency_s"
        reads = [LinkRate(tier["bandwidth"], to_ps(tier[delay])) for tier in tiers]
        writes = [LinkRate(tier["write_bandwidth"], to_ps(tier[delay])) for tier in tiers]
        return TierLinks(kv, reads, writes, self.block_bytes)

    def front_end(self) -> FrontEnd | None:
        """A fresh API server; None where it takes no time."""
        request_ps, token_ps = (self.engine.host[key] * PS_PER_S for key in ("request_s", "prompt_token_s"))
        return FrontEnd(request_ps, token_ps) if request_ps or token_ps else None

    def router(self) -> Router:
        """The router of the run."""
        return ROUTERS[self.scenario.replicas.router.kind](self.scenario.seed)


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
    with blamed(("hardware",)):
        kernels = kernels_of(gpu, preset)
    if factors:
        kernels = ScaledKernels(kernels, factors)
    sampler = Sampler(**preset.sampler.model_dump()) if engine.sampling == "filtered" else GREEDY
    forward = ForwardPass(architecture, scheme, gpu, kernels, engine.layout, sampler)
    host = engine.host
    timer = RooflineStepTimer(forward, HostWork(host["step_s"], host["sequence_s"], host["token_s"]))
    with blamed(("model",), under=("engine",)):
        memory = memory_of(engine, architecture, scheme, gpu, preset)
    num_blocks = (engine.num_gpu_blocks_override or memory.num_blocks) * engine.data_parallel_size
    fixed = architecture.kv_bytes_per_sequence_fixed(
        scheme.kv_bytes_per_element, tp=engine.tensor_parallel_size, pp=engine.pipeline_parallel_size
    )
    spec = written.spec
    check_context(written, engine.max_model_len)
    if spec.sequences > 1:
        _check_sequences(loaded, written, engine, architecture)
    with written.blamed():
        workload = build_workload(
            spec, seed=scenario.seed, max_model_len=engine.max_model_len, beside=written.document.path
        )
        if workload.num_requests == 0:
            raise ConfigError("no request is left to replay", key="trace", value=spec.trace)
    notes += window_notes + format_notes(gpu, scheme) + list(workload.notes)
    return Setup(
        scenario, engine, gpu, architecture, scheme, kernels, timer, written, workload, memory, num_blocks,
        ceil_div(fixed, memory.block_bytes), tuple(notes), loaded.path,
    )  # fmt: skip


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


def _predictor(engine: Engine, seed: int) -> LengthPredictor | None:
    """What guesses output lengths on one replica, if anything does."""
    if engine.length_predictor is None:
        return None
    return PREDICTORS[engine.length_predictor["kind"]](seed, **options_of(engine.length_predictor))
