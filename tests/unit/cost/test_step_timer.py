"""How operators become the times of steps."""

from __future__ import annotations

import pytest

from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme


def forward(model: str = "meta-llama/Llama-3.1-8B") -> ForwardPass:
    gpu, architecture = load_gpu("h100-sxm"), load_model(model)
    return ForwardPass(architecture, QuantScheme.from_checkpoint(architecture), gpu, DatasheetKernels(gpu))


def full_ps(timer: RooflineStepTimer, shape: RunShape) -> float:
    return sum(op.seconds for op in timer.explain(shape)) * 1e12


def test_host_work_counts_steps_sequences_and_tokens() -> None:
    """Exposed host time is so much per step, per sampled sequence and per new token."""
    host = HostWork(step_s=1e-3, sequence_s=1e-5, token_s=1e-7)
    assert host.seconds(tokens=300, sampled=20) == pytest.approx(1e-3 + 20e-5 + 300e-7)
    shape = RunShape(10, 5000, [(0, 100), (50, 40)])
    plain = RooflineStepTimer(forward()).run(shape, 1).total_ps
    hosted = RooflineStepTimer(forward(), host).run(shape, 1).total_ps
    assert hosted - plain == pytest.approx((1e-3 + 12e-5 + 150e-7) * 1e12, abs=2)


def test_explain_names_host_work_when_there_is_some() -> None:
    """The breakdown adds up to the step, host work included, and leaves it out when there is none."""
    shape = RunShape(10, 5000, [(0, 100)])
    with_host = RooflineStepTimer(forward(), HostWork(step_s=1e-3))
    assert [op.seconds for op in with_host.explain(shape) if op.name == "host"] == [1e-3]
    assert [op for op in RooflineStepTimer(forward()).explain(shape) if op.name == "host"] == []
    assert full_ps(with_host, shape) == pytest.approx(with_host.run(shape, 1).total_ps, rel=1e-3)


def test_decodes_beside_a_chunk_cost_less_than_a_step_of_their_own() -> None:
    """A mixed step reads the weights once: that is the point of chunked prefill (Sarathi-Serve)."""
    timer = RooflineStepTimer(forward())
    chunk, decodes = [(0, 256)], (64, 64_000)
    mixed = timer.run(RunShape(*decodes, chunk), 1).total_ps
    assert mixed < timer.run(RunShape(0, 0, chunk), 1).total_ps + timer.run(RunShape(*decodes), 1).total_ps


def test_unfinished_prompts_are_sampled_like_the_others() -> None:
    """Every chunk counts as one sampled sequence, as vLLM computes logits for the last token of each."""
    timer = RooflineStepTimer(forward())
    heads = [op for op in timer.explain(RunShape(3, 300, [(0, 10), (0, 20)])) if op.name == "lm_head"]
    alone = [op for op in timer.explain(RunShape(5, 300)) if op.name == "lm_head"]
    assert heads == alone


def test_runs_stop_at_the_limit() -> None:
    """The timer gives as many steps as asked for, over as many knots as that takes."""
    timer = RooflineStepTimer(forward())
    times = timer.run(RunShape(100, 100 * 50), 5000)
    assert times.steps == 5000
    assert len(times.pieces) > 20  # from 5 thousand to half a million tokens of context
    assert sum(piece[4] for piece in times.pieces) == 5000


def test_slope_is_what_more_context_costs() -> None:
    """Within a piece each step is longer by the bytes of one token per sequence at the bandwidth attention reaches."""
    timer = RooflineStepTimer(forward())
    count = 256
    _, _, _, slope, _ = timer.run(RunShape(count, count * 2000), 10).pieces[0]
    assert slope == pytest.approx(count * 131_072 / (0.75 * 3.35e12) * 1e12, rel=1e-3)


def test_spans_price_what_is_seen_through_them() -> None:
    """gpt-oss: tokens behind the window cost its windowed layers nothing, tokens within it cost them too."""
    timer = RooflineStepTimer(forward("openai/gpt-oss-120b"))
    short = timer.run(RunShape(64, 64 * 100, (), [64 * 100], [64]), 1).total_ps
    full = timer.run(RunShape(64, 64 * 128, (), [64 * 128], [0]), 1).total_ps
    long = timer.run(RunShape(64, 64 * 1000, (), [64 * 128], [0]), 1).total_ps
    blind = timer.run(RunShape(64, 64 * 1000, (), [64 * 1000], [0]), 1).total_ps
    assert short < full < long < blind


def test_explain_of_a_mixed_shape_with_spans() -> None:
    """Decode attention appears once for the whole context and once per span, prefill for every kind of layer."""
    timer = RooflineStepTimer(forward("openai/gpt-oss-120b"))
    shape = RunShape(8, 8000, [(0, 500)], [8 * 128], [0])
    names = [op.name for op in timer.explain(shape)]
    assert names.count("attention decode") == 2
    assert names.count("attention prefill") == 2
    assert timer.run(shape, 1).total_ps == pytest.approx(full_ps(timer, shape), rel=1e-3)
