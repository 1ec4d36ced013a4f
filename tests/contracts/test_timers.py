"""What `sim.cost.step_times` promises, for the roofline timer of every kind of model and for the timers of tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyTimer

from scenarios import SpanTimer, examples
from sim.batch import DecodeBatch
from sim.cost.eager import EagerStepTimer
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape, Span
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.cost.step_times import StepTimer
from sim.request import Request
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization_keys import parse_quantization

MODELS = {
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "h100-sxm", 1, None),
    "llama-2-7b on v100": ("meta-llama/Llama-2-7b-hf", "v100-sxm-32gb", 1, None),
    "llama-2-70b tp4 awq": ("meta-llama/Llama-2-70b-hf", "a100-sxm-80gb", 4, "awq"),
    "mixtral": ("mistralai/Mixtral-8x7B-v0.1", "h100-sxm", 2, None),
    "deepseek": ("deepseek-ai/DeepSeek-V3.2", "h200-sxm", 8, None),
    "gpt-oss": ("openai/gpt-oss-120b", "h100-sxm", 1, None),
    "qwen3.5": ("Qwen/Qwen3.5-35B-A3B", "h100-sxm", 1, None),
    "llama-4": ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "h200-sxm", 4, None),
}


@cache
def roofline_timer(name: str, tick_ps: int = 1) -> RooflineStepTimer:
    """The timer of a model on a GPU."""
    model, hardware, tp, scheme = MODELS[name]
    gpu, architecture = load_gpu(hardware), load_model(model)
    forward = ForwardPass(
        architecture, parse_quantization(scheme, architecture), gpu, DatasheetKernels(gpu), Layout(tp=tp)
    )  # fmt: skip
    return RooflineStepTimer(forward, HostWork(2e-4, 1e-6, 1e-8), tick_ps=tick_ps)


TIMERS: dict[str, Callable[[], StepTimer]] = {
    **{name: lambda name=name: roofline_timer(name) for name in MODELS},  # type: ignore[misc]
    "llama-3.1-8b in ticks": lambda: roofline_timer("llama-3.1-8b", 1000),
    "gpt-oss in ticks": lambda: roofline_timer("gpt-oss", 777),
    "eager": lambda: EagerStepTimer(roofline_timer("llama-3.1-8b").forward, HostWork(2e-4), launch_s=4e-5),
    "toy": lambda: ToyTimer(),
    "toy in ticks": lambda: ToyTimer(50),
    "toy with spans": lambda: SpanTimer(),
}
every_timer = pytest.mark.parametrize("timer_name", sorted(TIMERS))
every_model = pytest.mark.parametrize("model", sorted(MODELS))


def spans_of(timer: StepTimer) -> tuple[Span, ...]:
    """The spans a shape for this timer must carry."""
    if isinstance(timer, SpanTimer):
        return (Span(40), Span(7, chunked=True))
    return getattr(timer, "spans", ())


def batch_of(timer: StepTimer, seed: int) -> DecodeBatch:
    """A random batch: few or many sequences, short or long contexts."""
    rng = random.Random(seed)
    batch = DecodeBatch(spans_of(timer))
    longest = rng.choice([5, 300, 5000, 100_000])
    for i in range(rng.choice([1, 2, 7, 60, 256])):
        request = Request(i, 0, rng.randint(1, longest), 10)
        request.computed_tokens = request.prompt_tokens
        batch.join(request)
    return batch


def shape_of(batch: DecodeBatch, chunks: tuple[tuple[int, int], ...] = ()) -> RunShape:
    """The batch as it is now."""
    local = list(batch.local_tokens), list(batch.local_growth)
    return RunShape(batch.count, batch.context_tokens, chunks, *local)


@every_timer
@given(seed=st.integers(0, 10**6), limit=st.integers(1, 4000), cuts=st.integers(1, 700))
@examples(25)
def test_times_do_not_depend_on_how_a_run_is_cut(timer_name: str, seed: int, limit: int, cuts: int) -> None:
    """Step by step, in pieces or at once: every step ends at the same picosecond."""
    timer = TIMERS[timer_name]()
    whole, pieces = batch_of(timer, seed), batch_of(timer, seed)
    limit = whole.steps_to_crossing(limit)
    times = timer.run(shape_of(whole), limit)
    assert 1 <= times.steps <= limit
    start = done = 0
    while done < times.steps:
        part = timer.run(shape_of(pieces), min(cuts, times.steps - done))
        assert 1 <= part.steps <= times.steps - done
        for k in (1, part.steps // 2, part.steps):
            assert start + part.end_of(k) == times.end_of(done + k)
        start, done = start + part.total_ps, done + part.steps
        pieces.advance(part.steps)
    assert start == times.total_ps


@every_timer
@given(seed=st.integers(0, 10**6))
@examples(15)
def test_every_single_step_ends_where_the_run_says(timer_name: str, seed: int) -> None:
    """Sixty steps timed one at a time end where one run of sixty says, whatever spans fill up in between."""
    timer = TIMERS[timer_name]()
    batch = batch_of(timer, seed)
    limit = batch.steps_to_crossing(60)
    times = timer.run(shape_of(batch), limit)
    now = 0
    for k in range(1, times.steps + 1):
        now += timer.run(shape_of(batch), 1).total_ps
        assert now == times.end_of(k)
        batch.advance(1)


@every_timer
@given(seed=st.integers(0, 10**6), limit=st.integers(1, 5000))
@examples(25)
def test_pieces_are_whole_and_in_order(timer_name: str, seed: int, limit: int) -> None:
    """Pieces follow each other without gaps, in whole picoseconds, and every step takes time."""
    timer = TIMERS[timer_name]()
    batch = batch_of(timer, seed)
    times = timer.run(shape_of(batch), batch.steps_to_crossing(limit))
    steps = end = 0
    for first, start, a, b, k in times.pieces:
        assert (first, start) == (steps, end)
        assert all(isinstance(value, int) for value in (start, a, b, k))
        assert a > 0 <= b and k > 0
        steps, end = steps + k, end + k * a + b * (k * (k - 1) // 2)
    assert (steps, end) == (times.steps, times.total_ps)


@every_timer
@given(seed=st.integers(0, 10**6), chunks=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 3000)), min_size=1,
                                                   max_size=3))  # fmt: skip
@examples(15)
def test_a_shape_with_chunks_is_one_step(timer_name: str, seed: int, chunks: list[tuple[int, int]]) -> None:
    """However many steps are asked for; with decodes beside the chunks it lasts at least as long as without."""
    timer = TIMERS[timer_name]()
    alone = timer.run(RunShape(0, 0, chunks, [0] * len(spans_of(timer)), [0] * len(spans_of(timer))), 1000)
    mixed = timer.run(shape_of(batch_of(timer, seed), tuple(chunks)), 1000)
    assert alone.steps == mixed.steps == 1
    assert mixed.total_ps >= alone.total_ps > 0


@every_timer
def test_asking_again_gives_the_same_answer(timer_name: str) -> None:
    """Prices are remembered, never changed by remembering: a warm timer agrees with itself in any order."""
    timer = TIMERS[timer_name]()
    shapes = [shape_of(batch_of(timer, seed)) for seed in range(30)]
    first = [timer.run(shape, 1).total_ps for shape in shapes]
    assert [timer.run(shape, 1).total_ps for shape in reversed(shapes)] == first[::-1]


@pytest.mark.parametrize("timer_name", ["llama-3.1-8b in ticks", "gpt-oss in ticks", "toy in ticks"])
def test_ticks_divide_every_duration(timer_name: str) -> None:
    """With a coarse tick all durations and slopes are multiples of it, which is how tests provoke ties."""
    timer, tick = TIMERS[timer_name](), {"l": 1000, "g": 777, "t": 50}[timer_name[0]]
    for seed in range(30):
        batch = batch_of(timer, seed)
        times = timer.run(shape_of(batch), batch.steps_to_crossing(500))
        assert all(a % tick == 0 == b % tick for _, _, a, b, _ in times.pieces)
        mixed = timer.run(shape_of(batch, ((seed, 100 + seed), (0, 5))), 1)
        assert mixed.total_ps % tick == 0


@every_model
@given(seed=st.integers(0, 10**6), mixed=st.booleans())
@examples(40)
def test_interpolation_is_within_a_thousandth_of_the_full_formula(model: str, seed: int, mixed: bool) -> None:
    """A step read off the knots differs by less than 0.1 % from the operators priced one by one."""
    timer = roofline_timer(model)
    shape = shape_of(batch_of(timer, seed), ((100, 700), (0, 33)) if mixed else ())
    exact = sum(op.seconds for op in timer.explain(shape)) * 1e12
    assert timer.run(shape, 1).total_ps == pytest.approx(exact, rel=1e-3)


@every_model
def test_interpolation_errors_do_not_add_up_over_a_long_run(model: str) -> None:
    """The total of a run of 3000 steps is within 0.1 % of the sum of its steps priced in full."""
    timer = roofline_timer(model)
    batch = DecodeBatch(timer.spans)
    for i in range(24):
        request = Request(i, 0, 150 + 331 * i, 1)
        request.computed_tokens = request.prompt_tokens
        batch.join(request)
    total, exact, done = 0, 0.0, 0
    while done < 3000:
        limit = batch.steps_to_crossing(min(100, 3000 - done))
        total += timer.run(shape_of(batch), limit).total_ps
        first = sum(op.seconds for op in timer.explain(shape_of(batch)))
        shape = shape_of(batch)
        last = RunShape(shape.decodes, shape.context_tokens + (limit - 1) * batch.count, (),
                        [t + (limit - 1) * g for t, g in zip(shape.local_tokens, shape.local_growth, strict=True)],
                        shape.local_growth)  # fmt: skip
        exact += limit * (first + sum(op.seconds for op in timer.explain(last))) / 2 * 1e12
        batch.advance(limit)
        done += limit
    assert total == pytest.approx(exact, rel=1e-3)


@every_model
def test_a_thousand_sequences_do_not_confuse_the_price_table(model: str) -> None:
    """Prices of different batch sizes and contexts are kept apart: each equals that of a fresh timer."""
    timer = roofline_timer(model)
    shapes = [(n, n * c) for n in (1, 2, 3, 127, 128, 1000, 4097) for c in (1, 31, 1000, 40_000)]
    for count, context in shapes:
        seen = [count * span.visible(context // count) for span in timer.spans]
        shape = RunShape(count, context, (), seen, [0] * len(seen))
        exact = sum(op.seconds for op in timer.explain(shape)) * 1e12
        assert timer.run(shape, 1).total_ps == pytest.approx(exact, rel=1e-3)
