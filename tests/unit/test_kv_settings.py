"""Keys of `engine.kv_cache`: what is filled in, what is built from it, and what is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.cost.shape import Span
from sim.errors import ConfigError
from sim.kv.bounded import BoundedKV
from sim.kv.max_length import MaxLengthKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.metrics import summarise
from sim.policies import ALLOCATORS, BOUNDED
from sim.resolved import resolved
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup

BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {"num_requests": 30, "arrival": {"kind": "all_at_once"}, "input_tokens": 300, "output_tokens": 100},
    "engine": {"max_model_len": 4096},
}


def setup(**kv_cache: Any) -> Setup:
    """The base scenario with some keys of `engine.kv_cache`."""
    return build(load_scenario(BASE, {f"engine.kv_cache.{key}": value for key, value in kv_cache.items()}))


@pytest.mark.parametrize("placement", ["first-fit", "best-fit", "buddy"])
def test_contiguous_memory_is_handed_out_by_the_token(placement: str) -> None:
    """One slot per token unless a block size is written: 16 times as many units; and prefixes are not shared."""
    allocator = {"kind": "max-length", "placement": placement}
    built = setup(allocator=allocator)
    assert built.engine.kv_cache["allocator"] == allocator
    assert built.engine.kv_cache["block_size"] == 1
    assert not built.engine.kv_cache["enable_prefix_caching"]
    assert built.num_blocks == pytest.approx(16 * setup().num_blocks, rel=1e-3)
    assert setup(allocator=allocator, block_size=8).engine.kv_cache["block_size"] == 8
    assert setup(allocator={"kind": "max-length", "placement": "paged"}).engine.kv_cache["block_size"] == 16


def test_an_option_makes_a_mapping_of_a_name() -> None:
    """`allocator: max-length` and one option of it set apart, as `--set` does."""
    loaded = load_scenario(
        BASE, {"engine.kv_cache.allocator": "max-length", "engine.kv_cache.allocator.reserve": "context"}
    )
    kv = build(loaded).parts().kv
    assert isinstance(kv, MaxLengthKV)
    request = next(iter(build(loaded).workload))
    assert kv.blocks_for(request) == 4096


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("kind", ALLOCATORS)
def test_any_block_size_serves_the_same_traffic(kind: str, block_size: int) -> None:
    """Blocks of 8 and 16 tokens, every allocator: all requests complete, in runs and step by step alike."""
    built = {"allocator": {"kind": kind}, "block_size": block_size}
    summaries = [summarise(run_setup(setup(**built), step_by_step=single)) for single in (False, True)]
    assert summaries[0]["completed"] == 30
    assert all(summaries[0][key] == summaries[1][key] for key in ("duration", "mean_ttft_ms", "mean_tpot_ms"))


@pytest.mark.parametrize("kind", ALLOCATORS)
def test_a_window_bounds_memory_and_attention(kind: str) -> None:
    """4 sinks and 60 tokens: nobody is ever given room for more than 64, and a decode sees 63 cached ones."""
    built = setup(allocator={"kind": kind}, sliding_window=60, attention_sinks=4)
    parts = built.parts()
    assert isinstance(parts.kv, BOUNDED.get(kind, ALLOCATORS[kind]))
    request = next(iter(built.workload))
    assert parts.kv.blocks_for(request) * parts.kv.block_tokens == 64
    assert built.timer.spans == (Span(64),)
    assert "first 4 and the last 60 tokens" in " ".join(built.notes)
    bounded, full = (run_setup(x) for x in (built, setup(allocator={"kind": kind})))
    assert summarise(bounded)["kv"]["peak_used_share"] < 0.3 * summarise(full)["kv"]["peak_used_share"]
    assert summarise(bounded)["mean_tpot_ms"] < summarise(full)["mean_tpot_ms"]


def test_a_window_beyond_the_context_changes_nothing() -> None:
    """Nobody outgrows it, so blocks are plain ones and the times are those without it."""
    wide = setup(sliding_window=5000)
    assert type(wide.parts().kv) is PagedKV
    assert wide.bound_tokens is None
    results = [summarise(run_setup(x))["duration"] for x in (wide, setup(enable_prefix_caching=False))]
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_a_model_of_windows_only_is_bounded_by_itself() -> None:
    """Mistral-7B-v0.1 keeps 4096 tokens of each sequence, so a context of 32,768 never needs more blocks."""
    built = build(load_scenario(BASE, {"model": "mistralai/Mistral-7B-v0.1", "engine.max_model_len": 32768}))
    assert isinstance(built.parts().kv, BoundedKV)
    assert built.bound_tokens == 4096


def test_the_watermark_of_vllm_v0_is_a_default() -> None:
    """The preset keeps 1 % free for growth, unless another share is written."""
    v0 = {"engine.preset": "vllm-v0"}
    assert build(load_scenario(BASE, v0)).engine.kv_cache["allocator"] == {"kind": "paged", "watermark": 0.01}
    more = v0 | {"engine.kv_cache.allocator": {"kind": "paged", "watermark": 0.1}}
    assert build(load_scenario(BASE, more)).engine.kv_cache["allocator"]["watermark"] == 0.1
    other = build(load_scenario(BASE, v0 | {"engine.kv_cache.allocator": "predicted"}))
    assert type(other.parts().kv) is PredictedKV


@pytest.mark.parametrize(
    ("kv_cache", "key", "told"),
    [
        ({"allocator": "maxlength"}, "allocator", "unknown policy (valid, nearest first: max-length"),
        (
            {"allocator": {"kind": "max-length", "placement": "budy"}},
            "allocator.placement",
            "'budy': is not a valid choice (valid, nearest first: buddy",
        ),
        ({"allocator": {"kind": "max-length", "plcement": 1}}, "allocator.plcement", "unknown option of max-length"),
        ({"allocator": {"kind": "paged", "watermark": 1.5}}, "allocator.watermark", "should be less than 1"),
        ({"allocator": {"kind": "paged", "bound_tokens": 5}}, "allocator.bound_tokens", "unknown option of paged"),
        ({"allocator": {"kind": "predicted", "growth_blocks": 0}}, "allocator.growth_blocks", "greater than 0"),
        (
            {"allocator": "max-length", "enable_prefix_caching": True},
            "enable_prefix_caching",
            "contiguous memory has none",
        ),
        ({"allocator": "predicted", "enable_prefix_caching": True}, "enable_prefix_caching", "for one request each"),
        ({"sliding_window": 64, "enable_prefix_caching": True}, "enable_prefix_caching", "writes over them"),
        ({"attention_sinks": 4}, "attention_sinks", "needs a sliding_window"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(kv_cache: dict[str, Any], key: str, told: str) -> None:
    """The error names the key, the reason, and what would be valid."""
    with pytest.raises(ConfigError) as caught:
        setup(**kv_cache)
    assert caught.value.key == f"engine.kv_cache.{key}"
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_indexer_cannot_choose_among_forgotten_tokens() -> None:
    """Sparse attention with a lightning indexer and a bounded cache exclude each other."""
    changes = {"model": "deepseek-ai/DeepSeek-V3.2", "hardware": "h200-sxm", "engine.tensor_parallel_size": 8}
    with pytest.raises(ConfigError, match="an indexer chooses among all cached tokens"):
        build(load_scenario(BASE, changes | {"engine.kv_cache.sliding_window": 500}))


@pytest.mark.parametrize(
    "kv_cache",
    [
        {"allocator": {"kind": "max-length", "placement": "buddy", "reserve": "context"}},
        {"allocator": {"kind": "predicted", "growth_blocks": 4}},
        {"allocator": {"kind": "paged", "watermark": 0.05}, "sliding_window": 508, "attention_sinks": 4},
    ],
)
def test_settings_are_saved_as_they_can_be_read(kv_cache: dict[str, Any]) -> None:
    """The resolved scenario builds the same engine again."""
    built = setup(**kv_cache)
    again = build(load_scenario(resolved(built)))
    assert again.engine == built.engine
    assert type(again.parts().kv) is type(built.parts().kv)


def test_where_memory_goes() -> None:
    """A reservation of the whole context in powers of two: what is filled, still to come, never used, out of reach.

    Requests of 400 tokens in pieces of 4096: a tenth is used at the end of each, and while others wait, what is left
    beside the last whole piece is of no use to them.
    """
    small = {"engine.num_gpu_blocks_override": 5 * 4096 + 500}
    policies = [{"kind": "max-length", "placement": "buddy", "reserve": "context"}, {"kind": "paged"}]
    worst, best = (
        summarise(run_setup(build(load_scenario(BASE, small | {"engine.kv_cache.allocator": allocator}))))["kv"]
        for allocator in policies
    )
    assert worst["mean_internal_fragmentation_share_of_used"] == pytest.approx(1 - 399 / 4096, abs=0.01)
    assert worst["mean_filled_share_of_used"] + worst["mean_reserved_share_of_used"] == pytest.approx(
        399 / 4096, abs=0.01
    )
    assert 0 < worst["mean_stranded_share"] < 500 / (5 * 4096 + 500)
    assert best["mean_filled_share_of_used"] > 0.95
    assert best["mean_stranded_share"] == 0


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_padded_batches_do_not_share_prefixes(kind: str) -> None:
    """Padding moves prompts, so a prefix cache beside it is refused, and off where nobody asked for it."""
    wanted = {"engine.kv_cache.enable_prefix_caching": True}
    with pytest.raises(ConfigError, match=f"{kind} pads them"):
        build(load_scenario(BASE, {"engine.scheduler": kind, **wanted}))
    packed = {"engine.scheduler": {"kind": kind, "padding": False}, **wanted}
    assert build(load_scenario(BASE, packed)).engine.kv_cache["enable_prefix_caching"]
    assert not build(load_scenario(BASE, {"engine.scheduler": kind})).engine.kv_cache["enable_prefix_caching"]
