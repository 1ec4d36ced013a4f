"""KV cache settings: which policy holds keys and values, in which unit, and what cannot go together."""

from __future__ import annotations

from typing import Any

from sim.documents import KeyPath
from sim.presets import EnginePreset
from sim.scenario import LoadedScenario
from sim.specs.architecture import LatentAttention, ModelArchitecture

_AT: KeyPath = ("engine", "kv_cache")
PADDED = ("static", "dynamic")
"""Schedulers that make the prompts of a batch equally long. The padding goes before the prompt, where decoding starts
from one position, so equal beginnings are not at equal places."""


def resolve_kv_cache(loaded: LoadedScenario, preset: EnginePreset) -> dict[str, Any]:
    """`engine.kv_cache` with every default filled in. Raises ConfigError for settings that exclude each other."""
    given = loaded.scenario.engine.kv_cache
    allocator = given.allocator or preset.allocator
    kind, options = allocator.kind, allocator.options
    if kind == "paged" and preset.watermark:
        options = {"watermark": preset.watermark, **options}
    obstacle = _prefix_obstacle(loaded, preset)
    if obstacle and given.enable_prefix_caching:
        raise loaded.document.error((*_AT, "enable_prefix_caching"), obstacle, value=True)
    wanted = preset.enable_prefix_caching if given.enable_prefix_caching is None else given.enable_prefix_caching
    prefix_cache = preset.prefix_cache.model_copy(update=given.prefix_cache.model_dump(exclude_none=True))
    # Contiguous memory has no blocks: it is handed out by the token. A radix tree matches token by token.
    by_token = _is_contiguous(kind, options) or given.prefix_cache.match == "radix"
    settings = {
        "allocator": {"kind": kind, **options},
        "block_size": given.block_size or (1 if by_token else preset.block_size),
        "enable_prefix_caching": wanted and not obstacle,
        "prefix_cache": prefix_cache.model_dump(),
    }
    if given.sliding_window is not None:
        settings |= {"sliding_window": given.sliding_window, "attention_sinks": given.attention_sinks or 0}
    elif given.attention_sinks:
        raise loaded.document.error((*_AT, "attention_sinks"), "needs a sliding_window beside it",
                                    value=given.attention_sinks)  # fmt: skip
    return settings


def with_kv_window(loaded: LoadedScenario, architecture: ModelArchitecture) -> tuple[ModelArchitecture, list[str]]:
    """The model as it is served with `sliding_window` and `attention_sinks`, and what the reader must know of that."""
    given = loaded.scenario.engine.kv_cache
    if given.sliding_window is None:
        return architecture, []
    if any(isinstance(g.attention, LatentAttention) and g.attention.indexer for g in architecture.layers):
        raise loaded.document.error((*_AT, "sliding_window"), "is for models without sparse attention: an indexer "
                                    "chooses among all cached tokens", value=given.sliding_window)  # fmt: skip
    sinks, window = given.attention_sinks or 0, given.sliding_window
    note = (
        f"The KV cache keeps the first {sinks} and the last {window} tokens of every sequence. What the model forgets "
        "is not simulated: the quality of its answers needs a test of its own"
    )
    return architecture.bounded(sinks + window), [note]


def _is_contiguous(kind: str, options: dict[str, Any]) -> bool:
    return kind == "max-length" and options.get("placement") != "paged"


def _prefix_obstacle(loaded: LoadedScenario, preset: EnginePreset) -> str:
    """Why prompts cannot share what they have in common; empty when they can."""
    given = loaded.scenario.engine.kv_cache
    allocator = given.allocator or preset.allocator
    kind = allocator.kind
    if _is_contiguous(kind, allocator.options):
        return "needs blocks that sequences can share, and contiguous memory has none; use the paged allocator"
    if kind != "paged":
        return f"shares blocks of the paged allocator only; {kind} reserves them for one request each"
    if given.sliding_window is not None:
        return "needs blocks whose content stays; sliding_window writes over them"
    scheduler = loaded.scenario.engine.scheduler or preset.scheduler
    if scheduler.kind in PADDED and scheduler.options.get("padding", True):
        return f"needs prompts that begin at their first token; {scheduler.kind} pads them, unless padding is false"
    return ""
