"""What speculative decoding does not go with."""

from __future__ import annotations

from sim.drafting import Drafting, Target, drafting_of
from sim.engine_settings import Engine
from sim.errors import ConfigError
from sim.scenario import LoadedScenario
from sim.specs.architecture import ModelArchitecture

SCHEDULERS = ("chunked", "continuous")
"""Those that count the guesses of a step."""


def resolve_drafting(loaded: LoadedScenario, engine: Engine, target: Target) -> Drafting | None:
    """Who guesses, if the scenario says so. Raises ConfigError for what it does not go with."""
    spec = loaded.scenario.engine.speculative
    if spec is None:
        return None
    check_speculative(loaded, engine, target.architecture)
    try:
        return drafting_of(spec, target, loaded.path)
    except ConfigError as error:
        raise error.placed(**loaded.document.place(("engine", "speculative", "draft_model"))) from None


def check_speculative(loaded: LoadedScenario, engine: Engine, architecture: ModelArchitecture) -> None:
    """Raise ConfigError at the setting that needs every sequence to advance by one token per step."""
    error, spec = loaded.document.error, loaded.scenario.engine.speculative
    if spec is None:
        return
    scheduler, policy = engine.scheduler["kind"], engine.scheduling_policy["kind"]
    if scheduler not in SCHEDULERS:
        raise error(("engine", "scheduler"), "counts one token per sequence and step, but engine.speculative guesses "
                    "more", value=scheduler, choices=SCHEDULERS)  # fmt: skip
    if policy == "fair_share":
        raise error(("engine", "scheduling_policy"), "charges one token per sequence and step, but engine.speculative "
                    "guesses more", value=policy, choices=["fcfs", "priority"])  # fmt: skip
    if engine.kv_cache["allocator"]["kind"] != "paged":
        raise error(("engine", "kv_cache", "allocator"), "has no room for guesses",
                    value=engine.kv_cache["allocator"]["kind"], choices=["paged"])  # fmt: skip
    if (architecture.kv_limit_tokens or engine.max_model_len) < engine.max_model_len:
        raise error(("engine", "max_model_len"), "exceeds what the cache keeps of a sequence, where guesses would be "
                    f"written over ({architecture.kv_limit_tokens} tokens)", value=engine.max_model_len)  # fmt: skip
    if engine.async_scheduling:
        raise error(("engine", "async_scheduling"), "does not go with engine.speculative", value=True)
    if engine.preemption_mode == "swap":
        raise error(("engine", "preemption_mode"), "does not go with engine.speculative", value="swap")
    if engine.kv_cache.get("tiers"):
        raise error(("engine", "kv_cache", "tiers"), "do not go with engine.speculative")
    rows = spec.query_tokens
    if engine.max_num_batched_tokens < engine.max_num_seqs * rows:
        raise error(("engine", "max_num_batched_tokens"), f"must be at least {engine.max_num_seqs * rows}: "
                    f"max_num_seqs times the {rows} tokens verified", value=engine.max_num_batched_tokens)  # fmt: skip
