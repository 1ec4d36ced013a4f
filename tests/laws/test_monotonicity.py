"""More hardware never makes a step slower, more work never makes it faster, more memory never preempts more."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import Scenario, examples, play
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme

MODELS = {
    "dense": ("meta-llama/Llama-3.1-8B", 1),
    "experts": ("mistralai/Mixtral-8x7B-v0.1", 2),
    "latent": ("deepseek-ai/DeepSeek-V3.2", 8),
    "windows": ("openai/gpt-oss-120b", 1),
    "states": ("Qwen/Qwen3.5-35B-A3B", 1),
}


@cache
def timer(model: str, bandwidth: float = 1.0, compute: float = 1.0) -> RooflineStepTimer:
    """The timer of a model on an H100 with scaled roofs."""
    name, tp = MODELS[model]
    h100 = load_gpu("h100-sxm")
    gpu: Gpu = h100.replace(
        memory_bandwidth_bytes_per_s=float(h100.memory_bandwidth_bytes_per_s) * bandwidth,
        tensor_flops={fmt: float(rate) * compute for fmt, rate in h100.tensor_flops.items()},
    )
    architecture = load_model(name)
    forward = ForwardPass(
        architecture, QuantScheme.from_checkpoint(architecture), gpu, DatasheetKernels(gpu), Layout(tp=tp)
    )
    return RooflineStepTimer(forward, HostWork(1e-4, 1e-6, 1e-8))


def step_ps(of: RooflineStepTimer, contexts: list[int], chunks: list[tuple[int, int]]) -> int:
    """One step of decodes with these contexts and these chunks."""
    seen = [sum(span.visible(c) for c in contexts) for span in of.spans]
    shape = RunShape(len(contexts), sum(contexts), chunks, seen, [0] * len(seen))
    return of.run(shape, 1).total_ps


contexts = st.lists(st.integers(1, 30_000), max_size=60)
chunks = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 4096)), max_size=4)
models = st.sampled_from(sorted(MODELS))


@given(model=models, contexts=contexts, chunks=chunks, faster=st.sampled_from([1.1, 2.0, 10.0]))
@examples(80)
def test_more_bandwidth_or_compute_never_slows_a_step(
    model: str, contexts: list[int], chunks: list[tuple[int, int]], faster: float
) -> None:
    """Raising a roof of the GPU never lengthens a step; raising both shortens it."""
    if not contexts and not chunks:
        return
    base = step_ps(timer(model), contexts, chunks)
    wide, quick = timer(model, bandwidth=faster), timer(model, compute=faster)
    assert step_ps(wide, contexts, chunks) <= base + len(contexts)  # slopes are rounded down to whole picoseconds
    assert step_ps(quick, contexts, chunks) <= base + len(contexts)
    assert step_ps(timer(model, faster, faster), contexts, chunks) < base


@given(model=models, contexts=contexts, chunks=chunks, more=st.integers(1, 5000))
@examples(80)
def test_more_work_never_shortens_a_step(
    model: str, contexts: list[int], chunks: list[tuple[int, int]], more: int
) -> None:
    """A longer context, chunk or cached prefix, one more sequence or chunk: none of them saves time.

    Chunked attention is left out: its cost does fall when a context enters a new chunk.
    """
    if not contexts and not chunks:
        return
    of = timer(model)
    base = step_ps(of, contexts, chunks)
    if contexts:
        assert step_ps(of, [contexts[0] + more, *contexts[1:]], chunks) >= base
    if chunks:
        (cached, new), rest = chunks[0], chunks[1:]
        assert step_ps(of, contexts, [(cached + more, new), *rest]) >= base
        assert step_ps(of, contexts, [(cached, new + more), *rest]) > base
    assert step_ps(of, [*contexts, more], chunks) >= base
    assert step_ps(of, contexts, [*chunks, (0, more)]) > base


@given(model=models, count=st.integers(1, 300), context=st.integers(1, 10_000), steps=st.integers(2, 3000))
@examples(60)
def test_decode_steps_never_get_shorter_within_a_run(model: str, count: int, context: int, steps: int) -> None:
    """As contexts grow, each step of a run lasts at least as long as the one before."""
    of = timer(model)
    seen = [count * span.visible(context) for span in of.spans]
    growth = [count if context < span.tokens else 0 for span in of.spans]
    room = min([span.tokens - context for span in of.spans if context < span.tokens], default=steps)
    times = of.run(RunShape(count, count * context, (), seen, growth), min(steps, room))
    lengths = [times.end_of(k + 1) - times.end_of(k) for k in range(times.steps)]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_more_memory_never_preempts_more(scheduler: str, lead: int) -> None:
    """Equal requests that arrive together are preempted less often the more blocks there are, and at last not at all.

    Only for such a family, and from where all prompts and half of the output fit: with less memory fewer requests are
    admitted at a time, which can preempt less; in general there are anomalies like those of list scheduling (Graham
    1969).
    """
    for count, prompt, output, size in ((24, 30, 60, 4), (10, 7, 33, 3), (16, 64, 40, 16), (12, 5, 100, 1)):
        rows = tuple((i, 0, prompt, output, output) for i in range(count))
        lowest, enough = count * -(-(prompt + 1) // size), count * -(-(prompt + output) // size)
        preemptions = []
        for blocks in range((lowest + enough) // 2, enough + 1, 7):
            tight = Scenario(rows, scheduler, lead, 64, 2000, num_blocks=blocks, block_size=size)
            preemptions.append(int(play(tight).requests["preemptions"].sum()))
        assert preemptions == sorted(preemptions, reverse=True)
        assert preemptions[0] > 0
        roomy = Scenario(rows, scheduler, lead, 64, 2000, num_blocks=enough + count, block_size=size)
        assert int(play(roomy).requests["preemptions"].sum()) == 0
