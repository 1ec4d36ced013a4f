"""From names to objects: engine defaults, memory, notes, and the resolved scenario."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import catalog
from sim.build import build
from sim.documents import canonical_json
from sim.errors import ConfigError
from sim.policies import ALLOCATORS, PREFIX_CACHES, ROUTERS, SCHEDULERS
from sim.predictors import QuantilePredictor
from sim.presets import load_preset
from sim.resolved import resolved, resolved_yaml
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup

TRAFFIC = {"num_requests": 3, "arrival": {"kind": "all_at_once"}, "input_tokens": 50, "output_tokens": 5}
BASE = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": TRAFFIC}


def setup(**changes: Any) -> Setup:
    """What is built from the base scenario with some keys set: `engine__max_num_seqs=64`."""
    return build(load_scenario(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


def test_defaults_come_from_the_preset_and_the_model() -> None:
    """vLLM V1 on one H100: what is left out is filled in."""
    engine = setup().engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len) == (1024, 8192, 131072)
    assert engine.kv_cache == {
        "allocator": {"kind": "paged"},
        "block_size": 16,
        "enable_prefix_caching": True,
        "prefix_cache": {"match": "hash_block", "eviction": "lru"},
    }
    assert (engine.scheduler, engine.dtype, engine.gpu_memory_utilization) == ({"kind": "chunked"}, "bfloat16", 0.9)
    assert engine.async_scheduling


def test_what_is_written_wins_over_the_preset() -> None:
    """Every key of the engine can be said, falsehoods and single times of the host included."""
    engine = setup(
        engine__async_scheduling=False, engine__kv_cache__enable_prefix_caching=False, engine__host__token_s="2 us"
    ).engine
    assert not engine.async_scheduling
    assert not engine.kv_cache["enable_prefix_caching"]
    preset = load_preset("vllm-v1").host
    assert engine.host == preset.model_dump() | {"token_s": 2e-6}


@pytest.mark.parametrize(
    ("given_seqs", "given_budget", "limits"), [(None, 100, (100, 100)), (9000, None, (9000, 9000))]
)
def test_of_two_limits_the_unwritten_one_gives_way(
    given_seqs: int | None, given_budget: int | None, limits: tuple[int, int]
) -> None:
    """A default never contradicts what the user wrote."""
    written = {"engine__max_num_seqs": given_seqs, "engine__max_num_batched_tokens": given_budget}
    engine = setup(**{key: value for key, value in written.items() if value is not None}).engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == limits


def test_more_memory_means_more_blocks() -> None:
    """Tensor parallelism, FP8 and a larger share of the GPU leave more room for KV; an override is taken as it is."""
    base = setup().num_blocks
    assert setup(engine__tensor_parallel_size=2).num_blocks > 2 * base
    assert setup(engine__quantization="fp8").num_blocks > base
    assert setup(engine__kv_cache_dtype="fp8").num_blocks == pytest.approx(2 * base, rel=0.01)
    assert setup(engine__gpu_memory_utilization=0.8).num_blocks < base
    assert setup(engine__num_gpu_blocks_override=77).num_blocks == 77
    assert setup(engine__kv_cache_memory_bytes=2**30).num_blocks == 2**30 // (16 * 131072)


def test_a_chip_without_bfloat16_runs_in_float16_and_says_so() -> None:
    """As vLLM does with dtype auto; asked for bfloat16 outright, it refuses."""
    volta = setup(hardware="v100-sxm-32gb", engine__max_model_len=4096)
    assert volta.engine.dtype == "float16"
    assert any("does not multiply bfloat16" in note for note in volta.notes)
    with pytest.raises(ConfigError, match=r"engine\.dtype: 'bfloat16': v100-sxm-32gb does not multiply bfloat16"):
        setup(hardware="v100-sxm-32gb", engine__dtype="bf16")


def test_weights_the_chip_cannot_multiply_are_a_note() -> None:
    """FP8 weights on an A100 save memory, not time."""
    assert any(
        "has no fp8 tensor cores" in note for note in setup(hardware="a100-sxm-80gb", engine__quantization="fp8").notes
    )
    assert setup(engine__quantization="fp8").notes == ("fp8 weights are multiplied in fp8 as they are stored",)
    assert setup().notes == ()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_every_policy_is_built(name: str, allocator: str) -> None:
    """Each scheduler works on each allocator."""
    parts = setup(engine__scheduler=name, engine__kv_cache__allocator=allocator, engine__max_model_len=4096).parts()
    assert type(parts.scheduler) is SCHEDULERS[name]


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_is_built(name: str) -> None:
    """Each router is callable."""
    assert callable(setup(replicas__router=name).router())


@pytest.mark.parametrize("name", ["RoundRobin", ""])
def test_an_unknown_router_is_refused(name: str) -> None:
    """With the nearest names."""
    with pytest.raises(ConfigError, match=r"replicas\.router: .*unknown policy \(valid, nearest first: "):
        setup(replicas__router=name)


def test_prefixes_are_cached_when_there_are_any() -> None:
    """A prefix cache where prompts say what they share and it is enabled; the plain allocator everywhere else."""
    shared = {"tokens": 64, "groups": 2}
    assert type(setup(workload__shared_prefix=shared).parts().kv) is PREFIX_CACHES["hash_block"]
    for built in (
        setup(),
        setup(workload__shared_prefix={"tokens": 15}),  # less than a block with an identity
        setup(workload__shared_prefix=shared, engine__kv_cache__enable_prefix_caching=False),
        setup(workload__shared_prefix=shared, engine__preset="vllm-v0"),
    ):
        assert type(built.parts().kv) is ALLOCATORS["paged"]


def test_the_way_prefixes_are_matched_and_evicted_is_a_choice() -> None:
    """Radix matches token by token unless a block size is given; a word that is no way to match is refused."""
    shared = {"tokens": 64}
    for match, block_size, expected in (("radix", None, 1), ("radix", 16, 16), ("hash_block", None, 16)):
        kv = {"prefix_cache": {"match": match, "eviction": "lfu"}} | ({"block_size": block_size} if block_size else {})
        built = setup(workload__shared_prefix=shared, engine__kv_cache=kv).parts().kv
        assert type(built) is PREFIX_CACHES[match]
        assert built.block_tokens == expected
    with pytest.raises(ConfigError, match=r"engine\.kv_cache\.prefix_cache\.match: .*radix"):
        setup(engine__kv_cache={"prefix_cache": {"match": "radiks"}})


def test_a_shared_prompt_is_computed_once_per_group() -> None:
    """All but the first request of each application find its 64 tokens, and the result says so."""
    found = run_setup(
        setup(workload__shared_prefix={"tokens": 64, "groups": 2}, workload__num_requests=40)
    ).requests["cached_tokens"]  # fmt: skip
    assert sorted(found.tolist()) == [0, 0] + [64] * 38


def test_a_prompt_and_its_prefix_must_fit_the_context() -> None:
    """A shared prefix counts, and an answer is only as long as clients ask for."""
    with pytest.raises(ConfigError, match=r"workload\.input_tokens: the shortest request has 1055 tokens"):
        setup(engine__max_model_len=1000, workload__shared_prefix={"tokens": 1000})
    assert setup(engine__max_model_len=60, workload__output_tokens=100, workload__max_output_tokens=10).num_blocks > 0
    with pytest.raises(ConfigError, match=r"workload\.output_tokens: the shortest request has 150 tokens"):
        setup(engine__max_model_len=60, workload__output_tokens=100)


APART = ("llama.cpp", "t-mac", "small-engine")  # kernels of their own, for other formats
choices = st.fixed_dictionaries(
    {},
    optional={
        "hardware": st.sampled_from(["h100-sxm", "a100-sxm-80gb", "h200-sxm"]),
        "engine.preset": st.sampled_from([name for name in catalog.names("preset") if name not in APART]),
        "engine.max_model_len": st.integers(100, 8192),
        "engine.quantization": st.sampled_from(["fp8", "awq", {"weights": "int8"}, None]),
        "engine.kv_cache_dtype": st.sampled_from(["fp8", "auto"]),
        "engine.tensor_parallel_size": st.sampled_from([1, 2, 4, 8]),
        "engine.gpu_memory_utilization": st.floats(0.6, 0.8),  # SGLang must leave room for activations beside it
        "engine.host.step_s": st.floats(0, 0.1),
        "engine.num_gpu_blocks_override": st.integers(1, 10**6),
        "replicas.count": st.integers(1, 9),
        "replicas.router": st.sampled_from(sorted(ROUTERS)),
        "slo.ttft_p99_ms": st.floats(0.001, 1e6),
        "seed": st.integers(0, 2**63 - 1),
        "workload.client_timeout_s": st.floats(1e-9, 1e9),
        "workload.arrival": st.sampled_from(
            [{"kind": "poisson", "rate": 0.1 + 0.2}, {"kind": "closed_loop", "concurrency": 3}, {"kind": "all_at_once"},
             {"kind": "stages", "stages": [{"rate": 1, "duration_s": 1e-3}]}]
        ),
        "workload.input_tokens": st.sampled_from(
            [7, {"kind": "lognormal", "mean": 9.7, "std": 3}, {"kind": "empirical", "values": {5: 0.1, 9: 2}}]
        ),
        "name": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    },
)  # fmt: skip


@given(choices)
@settings(max_examples=40, deadline=None)
def test_a_resolved_scenario_resolves_to_itself(changes: dict[str, Any]) -> None:
    """Saved with every default filled in, as JSON or YAML, a scenario means the same and is saved the same again."""
    first = build(load_scenario(BASE, changes))
    saved = resolved(first)
    assert json.loads(canonical_json(saved)) == saved == yaml.safe_load(resolved_yaml(saved, "f.yaml"))
    again = build(load_scenario(saved))
    assert canonical_json(resolved(again)) == canonical_json(saved)
    schemes = [replace(built.scheme, name="") for built in (first, again)]  # fp8, or its three formats written out
    assert schemes[0] == schemes[1]
    assert (again.engine, again.spec, again.memory, again.num_blocks) == (
        first.engine, first.spec, first.memory, first.num_blocks,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b", "nvidia/Llama-3.1-8B-Instruct-FP8"])
def test_a_checkpoint_with_its_own_quantisation_is_saved_whole(name: str) -> None:
    """The formats a checkpoint brings, and the matrices it leaves alone, survive being saved."""
    first = setup(model=name, hardware="h200-sxm", engine__tensor_parallel_size=8, engine__max_model_len=4096)
    again = build(load_scenario(resolved(first)))
    assert again.memory == first.memory
    assert again.scheme.kept == first.scheme.kept


@pytest.mark.parametrize(
    ("key", "kind", "option", "value", "problem"),
    [
        ("length_predictor", "noisy", "sigma", -1, "greater than or equal to 0"),
        ("length_predictor", "quantile", "quantile", 1.1, "less than or equal to 1"),
        ("length_predictor", "quantile", "window", 0, "greater than or equal to 1"),
        ("scheduler", "dynamic", "max_wait_ms", "long", "number"),
        ("scheduler", "continuous", "priority", "prefil", "prefill"),
        ("scheduler", "continuous", "mixed", 3, "boolean|true or false"),
        ("scheduler", "static", "paddin", True, "padding"),
        ("scheduler", "sglang", "max_num_seqs", 4, "unknown option of sglang"),
        ("scheduling_policy", "fair_share", "output_weight", 0.5, "integer|whole number"),
    ],
)
def test_options_of_policies_are_checked(key: str, kind: str, option: str, value: Any, problem: str) -> None:
    """A name, a type or a limit that is wrong is an error of the key that holds it, before anything runs."""
    with pytest.raises(ConfigError, match=problem) as caught:
        setup(**{f"engine__{key}": kind, f"engine__{key}__{option}": value})
    assert caught.value.key == f"engine.{key}.{option}"


def test_what_a_policy_needs_besides_comes_with_it() -> None:
    """Shortest predicted first needs guesses; priorities say who gives way. Both can be overruled."""
    assert setup().engine.length_predictor is None
    assert setup(engine__scheduling_policy="shortest_predicted").engine.length_predictor == {"kind": "oracle"}
    assert setup().engine.preemption_victim == "newest"
    assert setup(engine__scheduling_policy="priority").engine.preemption_victim == "lowest_priority"
    overruled = setup(engine__scheduling_policy="priority", engine__preemption_victim="newest")
    assert overruled.engine.preemption_victim == "newest"


def test_replicas_share_no_predictor() -> None:
    """Each learns from its own answers."""
    built = setup(engine__length_predictor="quantile")
    assert isinstance(built.parts().predictor, QuantilePredictor)
    assert built.parts().predictor is not built.parts().predictor
    assert setup().parts().predictor is None


MOE = "Qwen/Qwen3-30B-A3B"


def test_parallel_layouts_count_gpus_and_memory() -> None:
    """Stages and expert groups leave room for more KV blocks, and every GPU of a copy is counted."""
    one = setup(model=MOE)
    staged = setup(model=MOE, engine__pipeline_parallel_size=2)
    grouped = setup(model=MOE, engine__data_parallel_size=2, engine__enable_expert_parallel=True)
    assert [s.engine.layout.gpus for s in (one, staged, grouped)] == [1, 2, 2]
    assert staged.num_blocks > 2 * one.num_blocks
    assert grouped.num_blocks > 2 * one.num_blocks
    assert grouped.engine.expert_parallel_size == 2


def test_limits_of_a_lane_are_planned_for_all_lanes() -> None:
    """Two stages plan two budgets per round, two data-parallel groups also twice the sequences."""
    given = {"engine__max_num_seqs": 16, "engine__max_num_batched_tokens": 64}
    given |= {"engine__host__request_s": 0, "engine__host__prompt_token_s": 0}  # all prompts arrive at once
    for key in ("pipeline_parallel_size", "data_parallel_size"):
        result = run_setup(setup(model=MOE, **{f"engine__{key}": 2}, **given))
        assert set(result.requests["output_tokens"]) == {5}
        assert result.steps["prefill_tokens"].max() == 2 * 64


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("expert_parallel_size", 3, "expert_parallel_size: 3: 3 must divide the 4 GPUs of a stage and the 128 experts"),
        ("pipeline_parallel_size", 49, "pipeline_parallel_size: 49: exceeds the 48 layers"),
    ],
)
def test_impossible_layouts_are_refused(key: str, value: int, told: str) -> None:
    """Experts and layers are dealt whole."""
    with pytest.raises(ConfigError, match=told):
        setup(model=MOE, engine__tensor_parallel_size=4, **{f"engine__{key}": value})


def test_tensor_parallelism_may_span_whole_nodes_only(tmp_path: Path) -> None:
    """Four GPUs do not stand evenly in nodes of three."""
    profile = yaml.safe_load(catalog.find("hardware", "a40").read_text()) | {"node": {"gpus": 3}}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(ConfigError, match="exceeds the 3 GPUs of a node and is no multiple of them"):
        setup(hardware=str(tmp_path / "odd.yaml"), engine__tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        (
            {"workload__n": 2, "engine__kv_cache__allocator": "max-length"},
            "engine.kv_cache.allocator",
            "shares no blocks",
        ),
        ({"workload__n": 2, "engine__scheduler": "static"}, "engine.scheduler", "keeps no seats"),
        ({"workload__n": 2, "engine__preemption_mode": "swap"}, "engine.preemption_mode", "cannot swap blocks"),
        ({"workload__n": 65, "engine__max_num_seqs": 64}, "workload.n", "exceeds max_num_seqs"),
        ({"workload__beam_width": 2}, "engine.async_scheduling", "which beams live"),
        ({"workload__n": 2, "engine__kv_cache__sliding_window": 64}, "engine.kv_cache.sliding_window", "writes over"),
    ],
)
def test_what_does_not_go_with_several_sequences_is_refused(changes: dict[str, Any], key: str, told: str) -> None:
    """Allocators without reference counts, batches that drain, windows that are written over, plans made ahead."""
    with pytest.raises(ConfigError, match=told) as refused:
        setup(**changes)
    assert refused.value.key == key


def test_requests_with_several_sequences_run_in_every_way_that_is_offered() -> None:
    """Samples and beams, with and without a prefix cache: every sequence is served, and blocks are shared."""
    prefix = {"workload__shared_prefix": {"tokens": 64}, "engine__kv_cache__enable_prefix_caching": True}
    for extra in ({}, prefix, {**prefix, "engine__kv_cache__prefix_cache__match": "radix"}):
        for asked in ({"workload__n": 3}, {"workload__beam_width": 3, "engine__async_scheduling": False}):
            result = run_setup(setup(**extra, **asked))
            assert result.requests["output_tokens"].tolist() == [15, 15, 15]
            assert int(result.steps["kv_shared_blocks"].max()) > 0
