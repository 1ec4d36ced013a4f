import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.memory import (
    CUDA_RESERVE_BYTES,
    ForwardWidths,
    MemoryBudget,
    MemoryDemand,
    activation_peak_bytes,
    framework_bytes,
    plan_memory,
)
from sim.errors import ConfigError
from sim.specs.hardware import load_gpu
from sim.units import GIB

RUNS = Path(__file__).resolve().parents[4] / "shared" / "measurements" / "serving" / "serving_runs.json"
BLOCK_TOKENS = 16
H100 = load_gpu("h100-sxm").memory_visible_bytes
EIGHT_B = MemoryDemand(weight_bytes=16_060_522_496, activation_bytes=300 * 10**6, cuda_graph_bytes=GIB // 2)
KV_BLOCK = 131_072 * BLOCK_TOKENS  # Llama-3.1-8B in 16 bit

# model -> parameters as published, layers, hidden, intermediate, query heads, KV heads, vocabulary, experts per token
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, 32, 4096, 11008, 32, 32, 32000, 1),
    "meta-llama/Llama-2-70b-hf": (68_976_648_192, 80, 8192, 28672, 64, 8, 32000, 1),
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, 32, 4096, 14336, 32, 8, 32000, 2),
    "codellama/CodeLlama-34b-Instruct-hf": (33_743_970_304, 48, 8192, 22016, 64, 8, 32000, 1),
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 32, 4096, 14336, 32, 8, 128256, 1),
}
GPUS = {"H100": "h100-sxm", "RTX4090": "rtx-4090"}


def blocks_of(run: dict[str, Any]) -> int:
    """The block count this package would give for a measured run."""
    parameters, layers, hidden, intermediate, heads, kv_heads, vocab, experts = PUBLISHED[run["model"]]
    widths = ForwardWidths(hidden, intermediate, (heads + 2 * kv_heads) * 128, vocab, experts)
    engine, tp = run["engine"], run["tp"]
    activations = activation_peak_bytes(widths, engine["max_num_batched_tokens"], engine["max_num_seqs"], tp)
    demand = MemoryDemand(parameters * 2 // tp, activations, framework_bytes=framework_bytes(tp))
    block = layers * 2 * (kv_heads // tp) * 128 * 2 * engine["block_size"]
    budget = MemoryBudget(fraction=engine["gpu_memory_utilization"])
    return plan_memory(load_gpu(GPUS[run["gpu"]]).memory_visible_bytes, demand, block, budget, tp).num_blocks


@pytest.mark.skipif(not RUNS.exists(), reason="measured serving runs are not part of the repository")
def test_stated_block_counts_are_reproduced() -> None:
    """Block counts that vLLM logged on H100 and RTX 4090, five models on 1, 2 and 4 GPUs, come out within 2 %."""
    runs = [run for run in json.loads(RUNS.read_text()) if (run.get("engine") or {}).get("kv_blocks_gpu")]
    assert {run["model"] for run in runs} == set(PUBLISHED)
    errors = {run["id"]: blocks_of(run) / run["engine"]["kv_blocks_gpu"] - 1 for run in runs}
    assert {run: error for run, error in errors.items() if abs(error) > 0.02} == {}


class TestDefinitions:
    def test_vllm(self) -> None:
        """vLLM: fraction of the card minus weights, activation peak and libraries; graphs outside before 0.21."""
        plan = plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget("vllm", 0.9))
        usable = H100 - CUDA_RESERVE_BYTES
        expected = 0.9 * usable - 16_060_522_496 - 300e6 - EIGHT_B.framework_bytes
        assert plan.kv_bytes == pytest.approx(expected, abs=1)
        assert plan.num_blocks == plan.kv_bytes // KV_BLOCK

    def test_vllm_since_0_21_counts_graphs(self) -> None:
        """Newer vLLM pays for CUDA graphs from inside the fraction, so exactly their size is missing."""
        older = plan_memory(H100, EIGHT_B, KV_BLOCK)
        newer = plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget(counts_cuda_graphs=True))
        assert older.kv_bytes - newer.kv_bytes == EIGHT_B.cuda_graph_bytes

    def test_sglang(self) -> None:
        """SGLang: fraction of the card minus weights; activations live in the rest."""
        plan = plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget("sglang", 0.88))
        assert plan.kv_bytes == pytest.approx(0.88 * (H100 - CUDA_RESERVE_BYTES) - 16_060_522_496, abs=1)

    def test_tensorrt_llm(self) -> None:
        """TensorRT-LLM: fraction of what is free after everything else was loaded."""
        plan = plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget("tensorrt-llm", 0.9))
        free = H100 - CUDA_RESERVE_BYTES - EIGHT_B.weight_bytes - EIGHT_B.runtime_bytes
        assert plan.kv_bytes == pytest.approx(0.9 * free, abs=1)

    def test_same_fraction_means_different_capacity(self) -> None:
        """At 0.9 TensorRT-LLM keeps more KV than vLLM, because its fraction does not apply to the weights."""
        kv = {e: plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget(e, 0.9)).kv_bytes for e in ("vllm", "tensorrt-llm")}
        assert kv["tensorrt-llm"] - kv["vllm"] > 1e9

    def test_stated_kv_bytes_win_over_the_fraction(self) -> None:
        """A stated KV size is taken as it is."""
        budget = MemoryBudget(fraction=0.5, kv_cache_memory_bytes=10 * GIB)
        assert plan_memory(H100, EIGHT_B, KV_BLOCK, budget).kv_bytes == 10 * GIB

    def test_stated_kv_bytes_must_fit(self) -> None:
        """A stated KV size beyond the free memory is refused by its own key."""
        with pytest.raises(ConfigError, match=r"kv_cache_memory_bytes: .*only .* GiB are free"):
            plan_memory(H100, EIGHT_B, KV_BLOCK, MemoryBudget(kv_cache_memory_bytes=70 * GIB))


class TestActivations:
    WIDTHS = ForwardWidths(hidden=4096, intermediate=14336, qkv=6144, vocab=128_256)

    def test_large_steps_are_bound_by_the_mlp(self) -> None:
        """At 8192 tokens Llama-3.1-8B holds residual, input, gate, up and product: 51200 values of 2 bytes a token."""
        assert activation_peak_bytes(self.WIDTHS, 8192, 16) == 8192 * (2 * 4096 + 3 * 14336) * 2

    def test_many_sequences_are_bound_by_the_sampler(self) -> None:
        """With 1024 sequences and a 128k vocabulary the sampler's copies of the logits exceed the layer."""
        peak = activation_peak_bytes(self.WIDTHS, 2048, 1024)
        assert peak == 2048 * 4096 * 2 + 1024 * 128_256 * 30

    def test_no_more_rows_than_tokens_are_sampled(self) -> None:
        """A step of 64 tokens samples at most 64 sequences."""
        assert activation_peak_bytes(self.WIDTHS, 64, 1024) == activation_peak_bytes(self.WIDTHS, 64, 64)

    @given(st.sampled_from([1, 2, 4]), st.integers(1, 16384), st.integers(1, 1024))
    def test_tensor_parallelism_never_costs_activations(self, tp: int, tokens: int, seqs: int) -> None:
        """Splitting a layer over twice the GPUs never enlarges its activations on one of them."""
        assert activation_peak_bytes(self.WIDTHS, tokens, seqs, 2 * tp) <= activation_peak_bytes(
            self.WIDTHS, tokens, seqs, tp
        )

    def test_groups_pay_for_nccl(self) -> None:
        """Communication buffers are paid from two GPUs on, and a little more from three on."""
        assert framework_bytes(2) - framework_bytes(1) == 342 * 2**20
        assert framework_bytes(8) - framework_bytes(1) == 392 * 2**20


class TestPlan:
    @given(
        st.sampled_from(["vllm", "sglang", "tensorrt-llm"]),
        st.floats(0.5, 0.98),
        st.integers(10**9, 40 * 10**9),
        st.integers(10**5, 10**8),
    )
    def test_nothing_is_lost_and_nothing_overcommitted(
        self, engine: str, fraction: float, weights: int, block: int
    ) -> None:
        """Whatever the engine, all parts add up to the card, and the driver's reserve stays untouched."""
        try:
            plan = plan_memory(H100, MemoryDemand(weights, 10**9), block, MemoryBudget(engine, fraction))  # type: ignore[arg-type]
        except ConfigError:
            return
        held = plan.weight_bytes + plan.activation_bytes + plan.cuda_graph_bytes + plan.framework_bytes
        assert held + plan.num_blocks * block + plan.unused_bytes == plan.total_bytes
        assert plan.unused_bytes >= CUDA_RESERVE_BYTES
        assert 0 <= plan.kv_bytes - plan.num_blocks * block < block

    def test_table(self) -> None:
        """The plan as a row of plain integers carries every part by name."""
        row = plan_memory(H100, EIGHT_B, KV_BLOCK).as_dict()
        assert row["total_bytes"] == H100
        assert row["num_blocks"] * row["block_bytes"] <= row["kv_bytes"]
        assert all(type(value) is int for value in row.values())

    @given(st.integers(10**9, 30 * 10**9), st.integers(1, 10**9))
    def test_more_weights_never_leave_more_kv(self, weights: int, extra: int) -> None:
        """Each further byte of weights is a byte less for KV."""
        small, large = (plan_memory(H100, MemoryDemand(w, 10**8), KV_BLOCK) for w in (weights, weights + extra))
        assert small.kv_bytes - large.kv_bytes == pytest.approx(extra, abs=1)


class TestRefusals:
    SEVENTY_B = MemoryDemand(weight_bytes=141_107_412_992, activation_bytes=500 * 10**6)

    def test_too_large_a_model_is_told_what_would_help(self) -> None:
        """70B in 16 bit on one H100: needed and available GiB, and that four GPUs or quantised weights would do."""
        with pytest.raises(ConfigError) as caught:
            plan_memory(H100, self.SEVENTY_B, KV_BLOCK)
        message = str(caught.value)
        assert "needs 132.1 GiB (weights 131.4" in message
        assert "available are 71.2 GiB (gpu_memory_utilization 0.9 of 79.1)" in message
        assert "tensor_parallel_size 2 or quantised weights of less than 70.5 GiB" in message
        assert "\n" not in message

    def test_the_advice_works(self) -> None:
        """Following the advised tensor_parallel_size, the model fits; with half of it, it does not."""
        card = load_gpu("rtx-4090").memory_visible_bytes
        with pytest.raises(ConfigError, match="tensor_parallel_size 8"):
            plan_memory(card, self.SEVENTY_B, KV_BLOCK)

        def split(n: int) -> MemoryDemand:
            return MemoryDemand(self.SEVENTY_B.weight_bytes // n, self.SEVENTY_B.activation_bytes)

        assert plan_memory(card, split(8), KV_BLOCK, None, 8).num_blocks > 0
        with pytest.raises(ConfigError, match="tensor_parallel_size 8"):
            plan_memory(card, split(4), KV_BLOCK, None, 4)

    def test_activations_alone_can_be_too_much(self) -> None:
        """When even a model without weights would not fit, more GPUs are not advised."""
        with pytest.raises(ConfigError, match="lower max_num_batched_tokens") as caught:
            plan_memory(H100, MemoryDemand(10**9, 90 * 10**9), KV_BLOCK)
        assert "tensor_parallel_size" not in str(caught.value)

    def test_sglang_needs_room_outside_its_fraction(self) -> None:
        """A static fraction that leaves too little for activations is refused with the largest that works."""
        with pytest.raises(ConfigError, match=r"mem_fraction_static: 0\.99: .*at most 0\.9"):
            plan_memory(H100, MemoryDemand(16 * 10**9, 4 * 10**9), KV_BLOCK, MemoryBudget("sglang", 0.99))

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
    def test_fractions_are_between_0_and_1(self, fraction: float) -> None:
        """A memory fraction outside (0, 1] is refused by the engine's own name for it."""
        with pytest.raises(ConfigError, match="gpu_memory_utilization"):
            MemoryBudget(fraction=fraction)

    def test_unknown_engine(self) -> None:
        """A misspelt engine is answered with the nearest."""
        with pytest.raises(ConfigError) as caught:
            MemoryBudget("vlm")  # type: ignore[arg-type]
        assert caught.value.choices[0] == "vllm"

    def test_block_bytes_must_be_positive(self) -> None:
        """A block without bytes would be infinitely many."""
        with pytest.raises(ConfigError, match="block_bytes"):
            plan_memory(H100, EIGHT_B, 0)
