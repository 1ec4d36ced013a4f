"""A scenario with every name resolved, and the fresh objects of a run that it makes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sim.acceptance import Acceptance
from sim.batch import DecodeBatch
from sim.cost.memory import (
    MemoryPlan,
)
from sim.cost.roofline import Kernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import StepPricer
from sim.engine.front_end import FrontEnd
from sim.engine.handoff import HandoffRules
from sim.engine.link import LinkRate
from sim.engine.replica import ReplicaParts
from sim.engine.router import (
    Router,
)
from sim.engine.tiers import TierLinks
from sim.engine_settings import Engine, options_of
from sim.kv.base import KVAllocator
from sim.kv.host_pool import HostPool
from sim.kv.load_policy import LoadRule
from sim.kv.lookahead import LookaheadKV, with_lookahead
from sim.kv.paged import PagedKV
from sim.kv.tier_store import TierStore
from sim.kv.tiered import TieredKV
from sim.policies import (
    ALLOCATORS,
    BOUNDED,
    FORKING,
    FORKING_PREFIX_CACHES,
    PREDICTORS,
    PREFIX_CACHES,
    PREFIX_GROUPS,
    QUEUE_ORDERS,
    ROUTERS,
    SCHEDULERS,
    TIERED,
)
from sim.pools import PoolLink
from sim.predictors import LengthPredictor
from sim.prefix_groups import PrefixGroups
from sim.scenario import Scenario
from sim.schedulers.mover import Mover
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.quantization import QuantScheme
from sim.speculative_batch import SpeculativeBatch
from sim.step import IN, NO_LIMIT, OUT
from sim.techniques import SpeculativeSpec
from sim.units import PS_PER_S, to_ps
from sim.workloads.base import Workload
from sim.workloads.builder import find_trace
from sim.workloads.spec import WorkloadSpec
from sim.written_workload import WrittenWorkload


@dataclass(frozen=True)
class Setup:
    """Everything a run needs, built from a scenario; `parts` makes one replica's share of it."""

    scenario: Scenario
    engine: Engine
    gpu: Gpu
    architecture: ModelArchitecture
    scheme: QuantScheme
    kernels: Kernels
    timer: StepPricer
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
        batch, kv = self._batch(), self._allocator()
        batch.encodes = self.spec.images is not None
        if isinstance(batch, SpeculativeBatch) and isinstance(kv, LookaheadKV):
            kv.progress, kv.query_tokens, max_run = batch.progress_of, batch.query_tokens, 1
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
        if self.engine.speculative is not None:
            make = with_lookahead(cast(type[PagedKV], make))
        return make(self.num_blocks, self.engine.kv_cache["block_size"], self.fixed_blocks, **options)

    def _batch(self) -> DecodeBatch:
        """Who decodes on a fresh replica, each with its own progress where tokens are guessed."""
        spans, groups = self.timer.spans, self._prefix_groups()
        if self.engine.speculative is None:
            return DecodeBatch(spans, groups)
        spec = SpeculativeSpec(**self.engine.speculative)
        acceptance = Acceptance(self.scenario.seed, spec.rates, spec.acceptance_std)
        return SpeculativeBatch(acceptance, spec.query_tokens, spans, groups)

    def _prefix_groups(self) -> PrefixGroups | None:
        """What counts shared beginnings, where attention makes use of them and there may be any."""
        make, several = PREFIX_GROUPS.get(self.engine.shared_prefix_attention), self.spec.sequences > 1
        return None if make is None or not (self.shares_prefixes or several) else make(siblings=several)

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

    def front_ends(self) -> list[FrontEnd]:
        """A fresh API server per replica that takes arrivals; none where they take no time."""
        request_ps, token_ps = (self.engine.host[key] * PS_PER_S for key in ("request_s", "prompt_token_s"))
        if not request_ps and not token_ps:
            return []
        return [FrontEnd(request_ps, token_ps) for _ in range(self.scenario.replicas.count)]

    def router(self) -> Router:
        """The router of the run."""
        return ROUTERS[self.scenario.replicas.router.kind](self.scenario.seed)


def _predictor(engine: Engine, seed: int) -> LengthPredictor | None:
    """What guesses output lengths on one replica, if anything does."""
    if engine.length_predictor is None:
        return None
    return PREDICTORS[engine.length_predictor["kind"]](seed, **options_of(engine.length_predictor))
