"""How much of the Mooncake traces (FAST 2025) a prefix cache serves, against the ratios known for an infinite one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from sim.build import build
from sim.policies import PREFIX_CACHES
from sim.request import Request, Traits
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.workloads.trace_table import Trace
from sim.workloads.traces import read_trace

TRACES = Path(__file__).parents[2] / ".." / "shared" / "traces"
# Longest-prefix hits in blocks of 512 tokens, the last one of a prompt included, nothing ever forgotten.
INFINITE = {"conversation": 0.366, "synthetic": 0.640}
SIZES = (30_000, 120_000, 500_000, 2_000_000)

pytestmark = [
    pytest.mark.skipif(
        not (TRACES / "mooncake_synthetic_trace.jsonl").exists(),
        reason="the Mooncake traces are not there (mooncake_*_trace.jsonl; kvcache-ai/Mooncake, FAST25-release)",
    ),
    pytest.mark.parametrize("name", INFINITE),
]


@cache
def trace(name: str) -> Trace:
    """A trace as it was published."""
    return read_trace(TRACES / f"mooncake_{name}_trace.jsonl")


def replay(
    name: str,
    num_blocks: int,
    block_size: int,
    whole_blocks: bool = False,
    cache: tuple[str, str] = ("hash_block", "lru"),
) -> float:
    """One prompt after the other through the allocator alone; the share of tokens that were found.

    `whole_blocks` makes the last, partial block of every prompt count as a full one, and adds the token that is
    always computed.
    """
    match, eviction = cache
    kv, rows = PREFIX_CACHES[match](num_blocks, block_size, eviction=eviction), trace(name)
    found = total = 0
    for number, (tokens, hashes) in enumerate(zip(rows.input_tokens.tolist(), rows.prefix_hashes, strict=True)):
        prompt = 512 * len(hashes) + 1 if whole_blocks else tokens
        request = Request(number, 0, prompt, 1, traits=Traits(prefix_hashes=hashes, prefix_block_tokens=512))
        total += prompt - whole_blocks
        grant = kv.reserve(request, prompt)
        if grant is not None:
            found += grant.cached_tokens
            request.computed_tokens = prompt
            kv.release(request)
    kv.check([])
    return found / total


def test_an_infinite_cache_finds_what_is_known_to_be_there(name: str) -> None:
    """Counted as the published figures are, block for block, the ratio is theirs."""
    assert replay(name, 10**9, 512, whole_blocks=True) == pytest.approx(INFINITE[name], abs=0.0005)


def test_more_memory_finds_more(name: str) -> None:
    """Least recently used, in blocks of 16 tokens: more memory finds more, up to what an infinite cache finds."""
    infinite = replay(name, 10**9, 16)
    found = [replay(name, blocks, 16) for blocks in SIZES]
    assert 0 < found[0] < found[1] < found[2] < found[3] <= infinite


@pytest.mark.parametrize("cache", [("hash_block", "lfu"), ("radix", "lru"), ("radix", "lfu")])
def test_every_bounded_cache_finds_less(name: str, cache: tuple[str, str]) -> None:
    """Whichever way prefixes are matched and evicted; and unbounded they all find the same."""
    assert replay(name, 10**9, 512, True, cache) == pytest.approx(INFINITE[name], abs=0.0005)
    found = [replay(name, blocks, 512, True, cache) for blocks in (2_000, 20_000)]
    assert 0 < found[0] < found[1] < INFINITE[name]


def test_a_served_trace_finds_no_more_than_the_infinite_cache(name: str) -> None:
    """In a whole simulation with unlimited memory, every prompt that is served finds what came before it."""
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "hardware": "h100-sxm",
        "workload": {"trace": str((TRACES / f"mooncake_{name}_trace.jsonl").resolve()), "on_too_long": "drop"},
        "engine": {"num_gpu_blocks_override": 10**9},
    }
    setup = build(load_scenario(scenario, {}))
    requests = run_setup(setup).requests
    share = requests["cached_tokens"].sum() / requests["prompt_tokens"].sum()
    assert share <= replay(name, 10**9, 16)
    assert share == pytest.approx(replay(name, 10**9, 16), abs=0.03)
