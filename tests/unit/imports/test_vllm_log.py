"""A pasted server log becomes scenario keys, whatever its prefixes, colours and number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.imports.vllm_log import ServerFacts, parse_log, read_log

DATA = Path(__file__).parents[2] / "data" / "imports"


def test_v0_log() -> None:
    """A V0 server states its blocks, its memory profile and, among its arguments, the block size."""
    facts = read_log(DATA / "vllm_v0.log")
    assert facts == ServerFacts(
        engine_version="0.6.4.post1",
        engine="v0",
        model="meta-llama/Llama-3.1-8B",
        num_gpu_blocks=2588,
        block_size=16,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        max_num_seqs=256,
        gpu_memory_utilization=0.9,
        max_model_len=4096,
        max_concurrency=10.11,
        dtype="bfloat16",
        kv_cache_dtype="auto",
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        enforce_eager=False,
        weights_gib=14.9888,
        kv_cache_gib=5.05,
        activation_peak_gib=0.6,
        non_torch_gib=0.09,
        cuda_graphs_gib=0.25,
    )


def test_v1_log_with_two_ranks_and_colours() -> None:
    """A V1 server states tokens per rank: the smallest counts, and the assumed block size is said."""
    facts = read_log(DATA / "vllm_v1.log")
    assert (facts.engine_version, facts.engine) == ("0.15.1", "v1")
    assert (facts.kv_cache_tokens, facts.block_size, facts.num_gpu_blocks) == (414_080, 16, 25_880)
    assert (facts.max_num_batched_tokens, facts.enable_chunked_prefill) == (8192, True)
    assert any("414080, 414096" in note for note in facts.notes)
    assert any("16 tokens are assumed" in note for note in facts.notes)


def test_overrides_name_scenario_keys_and_only_what_is_known() -> None:
    """Facts become `--set` keys; what the log did not state, and memory sizes, are absent."""
    assert read_log(DATA / "vllm_v1.log").to_overrides() == {
        "model": "meta-llama/Llama-3.1-70B",
        "engine.num_gpu_blocks_override": 25_880,
        "engine.kv_cache.block_size": 16,
        "engine.kv_cache.enable_prefix_caching": True,
        "engine.tensor_parallel_size": 2,
        "engine.pipeline_parallel_size": 1,
        "engine.max_num_seqs": 128,
        "engine.max_num_batched_tokens": 8192,
        "engine.gpu_memory_utilization": 0.85,
        "engine.max_model_len": 8192,
        "engine.kv_cache_dtype": "fp8",
    }
    assert ServerFacts().to_overrides() == {}


def test_quantisation_becomes_a_key_when_its_name_says_the_formats() -> None:
    """AWQ is a scheme of ours; what only the checkpoint knows, and `auto`, stay out."""
    assert ServerFacts(quantization="awq", kv_cache_dtype="auto").to_overrides() == {"engine.quantization": "awq"}
    assert ServerFacts(quantization="compressed-tensors").to_overrides() == {}


@pytest.mark.parametrize(
    ("line", "blocks"),
    [
        ("# GPU blocks: 2588, # CPU blocks: 2048", 2588),
        ("INFO executor_base.py:110] # cuda blocks: 27,904, # CPU blocks: 0", 27_904),
        ("Engine 000: vllm cache_config_info with initialization after num_gpu_blocks is: 1234", 1234),
        ("cache config: num_gpu_blocks=77", 77),
        ("Overriding num_gpu_blocks=5000 with num_gpu_blocks_override=512", 512),
        ("GPU KV cache size: 1,600 tokens", 100),
        ("GPU KV cache size: 1,600 tokens\nusing kv cache block size to 64", 25),
        ("Maximum concurrency for 8,192 tokens per request: 2.00x", 1024),
        ("# GPU blocks: 30, # CPU blocks: 0\n# GPU blocks: 20, # CPU blocks: 0", 20),
        ("non-default args: {'num_gpu_blocks_override': 40}\nGPU KV cache size: 99,999 tokens", 40),
    ],
)
def test_wordings_of_the_block_count(line: str, blocks: int) -> None:
    """Every wording gives the blocks the scheduler hands out; an override beats what the memory allows."""
    assert parse_log(line).num_gpu_blocks == blocks


def test_block_size_follows_from_blocks_and_tokens() -> None:
    """When both counts are stated their quotient is the block size, unless groups of layers make it too small."""
    assert parse_log("num_gpu_blocks is: 100\nGPU KV cache size: 6,400 tokens").block_size == 64
    assert parse_log("num_gpu_blocks is: 100\nGPU KV cache size: 400 tokens").block_size is None


def test_sizes_of_zero_are_not_believed() -> None:
    """A block of no tokens is no block: the default stands in, instead of a division by zero."""
    facts = parse_log("non-default args: {'block_size': 0}\nGPU KV cache size: 1,600 tokens")
    assert (facts.block_size, facts.num_gpu_blocks) == (16, 100)


def test_arguments_with_objects_in_them_are_still_read() -> None:
    """A repr that is no Python literal does not hide the scalars beside it."""
    log = "non-default args: {'model': 'x/y', 'compilation_config': CompilationConfig(level=3), 'max_num_seqs': 64}"
    facts = parse_log(log)
    assert (facts.model, facts.max_num_seqs) == ("x/y", 64)


def test_the_resolved_configuration_beats_the_arguments() -> None:
    """What the engine resolved counts, not what was asked for: 'auto' lengths, tags and the token budget."""
    log = (
        "non-default args: {'model_tag': 'short', 'max_num_batched_tokens': 100, 'max_model_len': 10}\n"
        "Chunked prefill is enabled with max_num_batched_tokens=2048.\n"
        "Initializing a V1 LLM engine (v0.11.0) with config: model='org/name', "
        "speculative_config=SpeculativeConfig(method='eagle', model='org/draft'), max_seq_len=4096, quantization=awq"
    )
    facts = parse_log(log)
    assert (facts.model, facts.max_num_batched_tokens, facts.max_model_len) == ("org/name", 2048, 4096)
    assert facts.quantization == "awq"


def test_logs_of_two_servers_are_refused() -> None:
    """Two models in one log cannot be one server; the error names both."""
    line = "Initializing a V1 LLM engine (v0.11.0) with config: model='{}', seed=0\n"
    with pytest.raises(ConfigError, match=r"both\.log: model: tells of several servers \(a/a, b/b\)"):
        parse_log(line.format("a/a") + line.format("b/b"), "both.log")
    assert parse_log(line.format("a/a") * 2).model == "a/a"


def test_other_logs_are_refused(tmp_path: Path) -> None:
    """A file without a line of vLLM's, and one that is not there, name themselves."""
    path = tmp_path / "nginx.log"
    path.write_text("GET / HTTP/1.1 200\n")
    with pytest.raises(ConfigError, match=r"nginx\.log: is not the start-up log of a vLLM server"):
        read_log(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_log(tmp_path / "none.log")


_PIECES = st.sampled_from(
    ["# GPU blocks: ", "KV cache size: ", " tokens", "0", "7", ",", "non-default args: {", "}", "'model': ", "9" * 400,
     "num_gpu_blocks is: ", "Initializing an LLM engine (v0) with config: ", "\n", "None", "Maximum concurrency for ",
     " tokens per request: ", "x", "kv cache block size to ", "{'block_size': 0}"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(_PIECES | st.text(max_size=4), max_size=14).map("".join))
def test_damaged_logs_never_break_the_reader(text: str) -> None:
    """Any mixture of the wordings gives facts or a ConfigError."""
    try:
        facts = parse_log(text)
    except ConfigError:
        return
    assert all(value is not None for value in facts.to_overrides().values())
