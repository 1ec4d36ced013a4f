"""The keys of techniques in a scenario: what they mean, and what they do not go with."""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.cost.kernel_options import DEFAULT_KERNELS
from sim.errors import ConfigError
from sim.scenario import load_scenario
from sim.techniques import KernelSpec, SpeculativeSpec

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.7}


def built(**settings: Any) -> Any:
    keys = {f"engine.{key}": value for key, value in settings.items()}
    return build(load_scenario("quickstart", {"workload.num_requests": 2, **keys}))


def test_nothing_said_changes_nothing() -> None:
    """The defaults are those of the cost model, and leave no trace in the resolved engine."""
    assert KernelSpec().options() == DEFAULT_KERNELS
    assert KernelSpec().resolved() == {}
    assert built().engine.kernels == {}


def test_fusion_by_group() -> None:
    """A list names what is fused; true and false are all and nothing."""
    assert KernelSpec(fusion=["rope", "qkv"]).options().fusion == {"rope", "qkv"}
    assert KernelSpec(fusion=False).options().fusion == frozenset()


def test_memory_of_what_is_switched_on() -> None:
    """Scores need room, drafts bring weights and a cache of their own: fewer blocks are left."""
    plain = built(max_model_len=4096).num_blocks
    draft = {**NGRAM, "method": "draft", "draft_model": "meta-llama/Llama-3.2-1B"}
    assert built(max_model_len=4096, kernels={"attention": "standard"}).num_blocks < plain
    assert built(max_model_len=4096, speculative=draft).num_blocks < 0.9 * plain
    assert built(max_model_len=4096, speculative=NGRAM).num_blocks == pytest.approx(plain, rel=0.02)


def test_defaults_follow_the_guesses() -> None:
    """The token budget has room for all guesses, and a step is not planned before the one before has ended."""
    engine = built(speculative={**NGRAM, "num_speculative_tokens": 15}).engine
    assert engine.max_num_batched_tokens == 16 * engine.max_num_seqs
    assert not engine.async_scheduling


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speculative": {**NGRAM, "method": "draft"}}, "draft_model goes with"),
        ({"speculative": {**NGRAM, "draft_model": "x"}}, "draft_model goes with"),
        ({"speculative": {**NGRAM, "acceptance": [0.7, 0.6]}}, "acceptance has 2 entries for 4"),
        ({"speculative": {**NGRAM, "tree": [2]}}, "tree has 1 entries for 4"),
        ({"speculative": {**NGRAM, "acceptance": [0.1] * 4, "acceptance_std": 0.1}}, "one acceptance"),
        ({"speculative": {**NGRAM, "acceptance": 0.95, "acceptance_std": 0.3}}, "can spread"),
        ({"speculative": {**NGRAM, "method": "draft", "draft_model": "meta-llama/Llama-9"}}, "draft_model"),
        ({"speculative": NGRAM, "scheduler": "static"}, "one token per sequence"),
        ({"speculative": NGRAM, "scheduling_policy": "fair_share"}, "one token per sequence"),
        ({"speculative": NGRAM, "async_scheduling": True}, "does not go with"),
        ({"speculative": NGRAM, "preemption_mode": "swap"}, "does not go with"),
        ({"speculative": NGRAM, "kv_cache.allocator": "max-length"}, "no room for guesses"),
        ({"speculative": NGRAM, "kv_cache.sliding_window": 512}, "written over"),
        ({"speculative": NGRAM, "max_num_seqs": 1000, "max_num_batched_tokens": 4999}, "at least 5000"),
        ({"shared_prefix_attention": "relay", "kv_cache.enable_prefix_caching": False}, "enable_prefix_caching"),
        ({"kernels": {"attention": "standard", "split": True}}, "unknown key"),
        ({"kernels": {"fusion": ["norms"]}}, "norm"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], says: str) -> None:
    """Each in one line that names the key."""
    with pytest.raises(ConfigError, match=says):
        built(**settings)


def test_guesses_do_not_go_with_pools() -> None:
    """The draft would need the cache of a prompt that another replica has computed."""
    with pytest.raises(ConfigError, match="pools"):
        build(load_scenario("disaggregated-chat", {"engine.speculative": NGRAM}))


def test_depths_rows_and_rates() -> None:
    """A tree's nodes are verified with the last token; the draft takes the nodes of one depth to guess the next."""
    tree = SpeculativeSpec(method="medusa", num_speculative_tokens=3, acceptance=0.5, tree=[4, 6, 5])
    assert (tree.query_tokens, tree.draft_rows, tree.rates) == (16, [1, 4, 6], (0.5, 0.5, 0.5))
