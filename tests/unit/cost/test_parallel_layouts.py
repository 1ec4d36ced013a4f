"""What pipeline, data and expert parallelism do to the time of a step."""

from __future__ import annotations

import pytest

from sim.cost.collectives import collective_seconds, ring_seconds
from sim.cost.ops import ForwardPass, OpCost
from sim.cost.roofline import DatasheetKernels, Experts, MatmulFormat
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme

DENSE, MOE = "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-235B-A22B"


def forward(layout: Layout, model: str = DENSE) -> ForwardPass:
    """A model on H200s."""
    architecture, gpu = load_model(model), load_gpu("h200-sxm")
    return ForwardPass(architecture, QuantScheme.from_checkpoint(architecture), gpu, DatasheetKernels(gpu), layout)


def seconds(ops: list[OpCost], *names: str) -> float:
    """Time of the operators with these names, or of all."""
    return sum(op.seconds for op in ops if not names or op.name in names)


def step_ps(layout: Layout, shape: RunShape, model: str = DENSE) -> int:
    """A step without host work."""
    return RooflineStepTimer(forward(layout, model)).run(shape, 1).total_ps


def test_a_pipeline_step_is_one_micro_batch_through_all_stages() -> None:
    """Four stages with 64 sequences take as long as one GPU with 16, but for the hand-overs between stages."""
    whole = step_ps(Layout(), RunShape(16, 16_000))
    staged = step_ps(Layout(pp=4), RunShape(64, 64_000))
    hand_over = seconds(forward(Layout(pp=4)).rows(16), "stage hand-over")
    assert hand_over > 0
    assert staged / 1e12 == pytest.approx(whole / 1e12 + hand_over, rel=1e-6)


def test_one_prompt_alone_gains_nothing_from_a_pipeline() -> None:
    """A single chunk passes through the stages one after the other: the pipeline is a bubble but for one stage."""
    prompt = RunShape(chunks=[(0, 2048)])
    assert step_ps(Layout(pp=4), prompt) >= step_ps(Layout(), prompt)


def test_four_prompts_fill_a_pipeline() -> None:
    """Four equal prompts through four stages take as long as one of them through the whole model."""
    one, four = RunShape(chunks=[(0, 2048)]), RunShape(chunks=[(0, 2048)] * 4)
    assert step_ps(Layout(pp=4), four) == pytest.approx(step_ps(Layout(pp=4), one), rel=0.01)
    assert step_ps(Layout(), four) > 3 * step_ps(Layout(), one)


def test_every_micro_batch_is_scheduled_on_its_own() -> None:
    """The exposed host time of a step is paid once per stage's micro-batch."""
    shape, work = RunShape(8, 8_000), HostWork(step_s=1e-3)
    for pp in (1, 4):
        with_host = RooflineStepTimer(forward(Layout(pp=pp)), work).run(shape, 1).total_ps
        assert with_host - step_ps(Layout(pp=pp), shape) == pp * 10**9


def test_data_parallel_attention_divides_sequences_and_shares_experts() -> None:
    """Eight groups see an eighth of the contexts each, while the experts see every token."""
    layout = Layout(dp=8, ep=8)
    assert seconds(forward(layout, MOE).decode(64, 64_000)) == pytest.approx(
        seconds(forward(Layout(), MOE).decode(8, 8_000))
    )
    one, eight = forward(Layout(tp=1), MOE), forward(layout, MOE)
    experts = next(op.cost for op in eight.rows(8) if op.name == "experts")
    alone = next(op.cost for op in one.rows(64) if op.name == "experts")
    assert alone.flops / 8 < experts.flops < alone.flops / 3


def test_shared_experts_need_the_tokens_of_all_groups() -> None:
    """Data-parallel attention gathers hidden states before the experts and scatters them afterwards."""
    names = {op.name for op in forward(Layout(dp=8, ep=8), MOE).rows(8)}
    assert {"experts all-gather", "experts reduce-scatter"} <= names
    assert "experts all-gather" not in {op.name for op in forward(Layout(tp=8, ep=8), MOE).rows(8)}


def test_the_busiest_expert_group_has_more_than_its_share() -> None:
    """Independent routing is uneven: by 1 + sqrt(2 ln n / mean) for many tokens, never above what tokens can send."""
    form = MatmulFormat("bf16", 2.0, 2.0, "bf16")
    experts = Experts(4096, 1536, 128, 8, True, form, expert_parallel=8)
    assert experts.rows(8192) == pytest.approx(8192 * (1 + (2 * 2.0794 / 8192) ** 0.5), rel=1e-3)
    assert experts.rows(1) <= 8
    assert experts._replace(expert_parallel=1).rows(8192) == 8192 * 8


def test_experts_of_a_group_are_read_once() -> None:
    """With many tokens each GPU reads its share of the experts and no more."""
    form = MatmulFormat("bf16", 2.0, 2.0, "bf16")
    experts = Experts(4096, 1536, 128, 8, True, form, expert_parallel=8)
    assert experts.touched(10_000) == pytest.approx(16)


def test_groups_beyond_a_node_cross_the_network() -> None:
    """Sixteen GPUs in two nodes pay the collective of a node and a ring of two over the network ports."""
    gpu = load_gpu("h200-sxm")
    eff = gpu.efficiency.collective
    inside = collective_seconds("all_reduce", 8e8, 8, gpu, eff)[0]
    both = collective_seconds("all_reduce", 8e8, 16, gpu, eff)[0]
    assert both - inside == pytest.approx(ring_seconds("all_reduce", 1e8, 2, gpu.network_bytes_per_s, eff)[0])


def test_an_exchange_between_nodes_sends_half_over_the_network() -> None:
    """Of an all-to-all over two nodes half of what a GPU sends leaves the node."""
    gpu = load_gpu("h200-sxm")
    eff = gpu.efficiency.collective
    inside, outside = (collective_seconds("alltoall", 8e8, n, gpu, eff)[0] for n in (8, 16))
    expected = eff.launch_floor_s + 4e8 / (gpu.network_bytes_per_s * eff.link_fraction)
    assert outside - inside == pytest.approx(expected)
