"""Where a name in YAML finds its policy: a new one is a file of its own and a line in one of the tables below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.documents import KeyPath
from sim.engine.router import (
    Random,
    RoundRobin,
    Router,
    kv_aware,
    least_kv_usage,
    least_outstanding_requests,
    prefix_affinity,
)
from sim.kv.base import KVAllocator
from sim.kv.bounded import BoundedKV
from sim.kv.forked import ForkedKV, ForkedPrefixCachedKV, ForkedRadixCachedKV
from sim.kv.max_length import MaxLengthKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.radix_cache import RadixCachedKV
from sim.kv.tiered import TieredKV, TieredRadixKV
from sim.predictors import LengthPredictor, NoisyPredictor, OraclePredictor, QuantilePredictor
from sim.prefix_groups import PrefixGroups, SystemPrompt
from sim.schedulers.base import Scheduler
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.continuous import ContinuousScheduler
from sim.schedulers.dynamic import DynamicScheduler
from sim.schedulers.fair_share import FairShareQueue
from sim.schedulers.queue_order import FcfsQueue, Queue, by_prediction, by_priority, by_prompt
from sim.schedulers.sglang import SglangScheduler
from sim.schedulers.static import StaticScheduler

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
PREFIX_GROUPS: Mapping[str, Callable[..., PrefixGroups]] = {
    "relay": SystemPrompt,
    "hydragen": PrefixGroups,
}
"""Which shared beginnings attention reads once for all who decode behind them."""
POLICIES: Mapping[KeyPath, Mapping[str, Callable[..., Any]]] = {
    ("engine", "scheduler"): SCHEDULERS,
    ("engine", "scheduling_policy"): QUEUE_ORDERS,
    ("engine", "kv_cache", "allocator"): ALLOCATORS,
    ("engine", "kv_cache", "prefix_cache", "match"): PREFIX_CACHES,
    ("engine", "length_predictor"): PREDICTORS,
    ("replicas", "router"): ROUTERS,
}
"""Where a scenario names a policy, and what may be named there."""
