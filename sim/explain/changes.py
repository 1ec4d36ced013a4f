"""Changes one could make to a scenario, tried one by one: what each buys is found by simulating it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.explain.load import Case, Served, Settings, most_served
from sim.setup import Setup

MATERIAL = 1.03
"""What a search to 3 % can tell from nothing."""
SYNCHRONOUS: Settings = {
    "engine.async_scheduling": False, "engine.host.step_s": 1.27e-3, "engine.host.sequence_s": 42e-6,
}  # fmt: skip
ASYNCHRONOUS: Settings = {
    "engine.async_scheduling": True, "engine.host.step_s": 350e-6, "engine.host.sequence_s": 0.0,
}  # fmt: skip
"""Host work of vLLM 0.12 and 0.15, as the presets vllm-0.9 and vllm-v1 have it: fits, their sources are there."""
SPECULATIVE: Settings = {
    "engine.speculative": {"method": "eagle", "num_speculative_tokens": 3, "acceptance": 0.7}, **SYNCHRONOUS,
}  # fmt: skip
"""Guesses need the step before to have ended. The acceptance is assumed: it is the traffic's own, and decides."""
_LARGER: Mapping[str, str] = {
    "a100-sxm-40gb": "a100-sxm-80gb", "a100-sxm-80gb": "h100-sxm", "a100-pcie-80gb": "h100-pcie",
    "h100-pcie": "h100-sxm", "h100-sxm": "h200-sxm", "l4": "l40s", "a40": "l40s", "l40s": "h100-pcie",
    "v100-sxm-16gb": "v100-sxm-32gb", "v100-sxm-32gb": "a100-sxm-40gb", "rtx-4090": "rtx-pro-6000",
}  # fmt: skip
"""The GPU that people would look at next."""


@dataclass(frozen=True)
class Change:
    """One thing to try: what `--set` would say, or the reason why there is nothing to try."""

    name: str
    settings: Callable[[Setup], Settings | str]


@dataclass(frozen=True)
class Tried:
    """A change that was simulated, or `skipped` for a reason.

    `gain` is the traffic served within the objectives over that of the scenario as it is; `gain_per_cost` the same for
    equal money (for equal GPUs, where a price is not known). Both are None where the scenario serves none.
    """

    name: str
    settings: Settings
    skipped: str = ""
    gpus: int = 0
    served: Served | None = None
    at_this_load: Mapping[str, Any] | None = None
    """The summary under the scenario's own traffic."""
    gain: float | None = None
    gain_per_cost: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """The best first: what the same money serves, then what is served at all."""
        rate = 0.0 if self.served is None else self.served.requests_per_s
        return -(self.gain_per_cost or 0.0), -rate


def _another(pool: str) -> Callable[[Setup], Settings | str]:
    def settings(setup: Setup) -> Settings | str:
        half = setup.decode if pool == "decode" else setup
        if (setup.decode is None) != (pool == "replica") or half is None:
            return "prefill and decode are apart" if pool == "replica" else "prefill and decode are not apart"
        key = "replicas.count" if pool == "replica" else f"pools.{pool}.count"
        return {key: half.scenario.replicas.count + 1}

    return settings


def _tensor_parallel(setup: Setup) -> Settings | str:
    size, node = setup.engine.tensor_parallel_size * 2, setup.gpu.gpus_per_node
    return f"a node has {node} GPUs" if size > node else {"engine.tensor_parallel_size": size}


def _larger_gpu(setup: Setup) -> Settings | str:
    larger = _LARGER.get(setup.gpu.name)
    if setup.decode is not None and setup.decode.gpu != setup.gpu:
        return "the pools differ in hardware"
    return {"hardware": larger} if larger else f"nothing larger than {setup.gpu.name} is shipped"


def _formats(setup: Setup, **axes: str) -> Settings:
    """Number formats as they are, but for some axes."""
    scheme = setup.scheme
    now = {"weights": scheme.weights.name, "activations": scheme.activations.name, "kv_cache": scheme.kv_cache.name}
    return {"engine.quantization": now | axes}


def _fp8_weights(setup: Setup) -> Settings | str:
    if setup.scheme.weights.bits <= 8:
        return f"weights are {setup.scheme.weights.name}"
    both = {"weights": "fp8", "activations": "fp8"}
    return _formats(setup, **(both if setup.gpu.supports("fp8") else {"weights": "fp8"}))


def _int4_weights(setup: Setup) -> Settings | str:
    if setup.scheme.weights.bits <= 4:
        return f"weights are {setup.scheme.weights.name}"
    return _formats(setup, weights="int4-awq", activations=setup.scheme.base.name)


def _fp8_kv(setup: Setup) -> Settings | str:
    kv = setup.scheme.kv_cache
    return f"the KV cache is {kv.name}" if kv.bits <= 8 else _formats(setup, kv_cache="fp8")


def _prefix_caching(setup: Setup) -> Settings | str:
    if not setup.workload.has_prefixes:
        return "prompts share nothing that the workload knows of"
    return "it is on" if setup.shares_prefixes else {"engine.kv_cache.enable_prefix_caching": True}


def _shared_attention(setup: Setup) -> Settings | str:
    if not setup.shares_prefixes:
        return "no prefix cache knows what prompts share"
    if setup.engine.shared_prefix_attention != "none":
        return "it is in use"
    return {"engine.shared_prefix_attention": "hydragen"}


def _speculative(setup: Setup) -> Settings | str:
    if setup.engine.speculative is not None:
        return "it is in use"
    return SPECULATIVE if setup.engine.async_scheduling else {"engine.speculative": SPECULATIVE["engine.speculative"]}


def _paged(setup: Setup) -> Settings | str:
    if setup.engine.kv_cache["allocator"]["kind"] == "paged":
        return "it is paged"
    return {"engine.kv_cache.allocator": "paged"}


def _budget(factor: float) -> Callable[[Setup], Settings | str]:
    def settings(setup: Setup) -> Settings | str:
        budget = round(setup.engine.max_num_batched_tokens * factor)
        if budget < setup.engine.max_num_seqs:
            return f"it must hold {setup.engine.max_num_seqs} sequences"
        return {"engine.max_num_batched_tokens": budget}

    return settings


def _seats(setup: Setup) -> Settings | str:
    seats = 2 * setup.engine.max_num_seqs
    budget = setup.engine.max_num_batched_tokens
    return {"engine.max_num_seqs": seats, "engine.max_num_batched_tokens": max(seats, budget)}


def _scheduler(kind: str) -> Callable[[Setup], Settings | str]:
    def settings(setup: Setup) -> Settings | str:
        return "it is in use" if setup.engine.scheduler["kind"] == kind else {"engine.scheduler": kind}

    return settings


def _shortest_prompt(setup: Setup) -> Settings | str:
    if setup.engine.scheduling_policy["kind"] == "shortest_prompt":
        return "it is in use"
    return {"engine.scheduling_policy": "shortest_prompt"}


def _router(setup: Setup) -> Settings | str:
    kind = "kv_aware" if setup.shares_prefixes else "least_outstanding_requests"
    if setup.decode is not None or setup.scenario.replicas.count == 1:
        return "there is one replica" if setup.decode is None else "the pools route"
    return "it is in use" if setup.scenario.replicas.router.kind == kind else {"replicas.router": kind}


def _more_memory(setup: Setup) -> Settings | str:
    share = setup.engine.gpu_memory_utilization
    return f"it is {share:g}" if share >= 0.95 else {"engine.gpu_memory_utilization": 0.95}


CHANGES: Sequence[Change] = (
    Change("one more replica", _another("replica")),
    Change("one more prefill replica", _another("prefill")),
    Change("one more decode replica", _another("decode")),
    Change("tensor parallelism x 2", _tensor_parallel),
    Change("the next larger GPU", _larger_gpu),
    Change("FP8 weights", _fp8_weights),
    Change("INT4 weights (AWQ)", _int4_weights),
    Change("FP8 KV cache", _fp8_kv),
    Change("paged KV", _paged),
    Change("prefix caching", _prefix_caching),
    Change("shared-prefix attention (Hydragen)", _shared_attention),
    Change("speculative decoding (EAGLE, 0.7 accepted)", _speculative),
    Change("chunked prefill", _scheduler("chunked")),
    Change("continuous batching, whole prompts", _scheduler("continuous")),
    Change("token budget x 2", _budget(2.0)),
    Change("token budget / 2", _budget(0.5)),
    Change("max_num_seqs x 2", _seats),
    Change("gpu_memory_utilization 0.95", _more_memory),
    Change("shortest prompt first", _shortest_prompt),
    Change("a router that looks", _router),
)
"""What is tried, in this order. A change is a line here."""


def try_change(case: Case, base: Served, change: Change) -> Tried:
    """Simulate one change: the most it serves within the objectives, and the scenario's own traffic under it."""
    settings = change.settings(case.setup)
    if isinstance(settings, str):
        return Tried(change.name, {}, skipped=settings)
    changed = case.having(settings)
    try:
        served = most_served(changed, base.factor or 1.0)
        now = changed.run()
    except ConfigError as error:
        return Tried(change.name, settings, skipped=error.problem)
    gain = served.requests_per_s / base.requests_per_s if base.requests_per_s else None
    per_cost = None if gain is None else gain / _cost(case, changed)
    return Tried(change.name, settings, "", changed.gpus, served, now, gain, per_cost)


def _cost(before: Case, after: Case) -> float:
    """Money per hour after over before; GPUs, where a price is not known."""
    prices = [_price(case) for case in (before, after)]
    return prices[1] / prices[0] if all(prices) else after.gpus / before.gpus


def _price(case: Case) -> float:
    """US dollars per hour of all GPUs; 0 where one has no price."""
    total = 0.0
    for pool in case.setup.pools:
        price = pool.gpu.price_per_hour_usd
        if price is None:
            return 0.0
        total += pool.scenario.replicas.count * pool.engine.layout.gpus * price.mid
    return total


def ranked(tried: Iterable[Tried]) -> list[Tried]:
    """What was simulated, the best first, and what was not behind it."""
    return sorted(tried, key=lambda change: (bool(change.skipped), *change.rank))


def best_of(tried: Iterable[Tried]) -> Tried | None:
    """The next best change: the one that serves most for the same money, or, if none helps there, most at all."""
    done = [change for change in ranked(tried) if change.served is not None and change.served.requests_per_s > 0]
    cheap = next((change for change in done if change.gain_per_cost is None or change.gain_per_cost > MATERIAL), None)
    if cheap is not None:
        return cheap
    most = max(done, key=lambda change: change.gain or 0.0, default=None)
    return most if most is not None and (most.gain or 0.0) > MATERIAL else None


def change_row(tried: Tried) -> dict[str, Any]:
    """For JSON: milliseconds are those of the scenario's own traffic with this change."""
    row: dict[str, Any] = {"change": tried.name, "settings": dict(tried.settings)}
    if tried.served is None or tried.at_this_load is None:
        return {**row, "skipped": tried.skipped}
    now = tried.at_this_load
    return {
        **row, "gpus": tried.gpus, "requests_per_s": tried.served.requests_per_s, "gain": tried.gain,
        "gain_per_cost": tried.gain_per_cost,
        **{key: now[key] for key in ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms", "slo_attainment")},
    }  # fmt: skip
