"""Steps whose kernels the host launches one by one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sim.cost.eager import EagerStepTimer, at_least
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.cost.step_times import StepTimes
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme


def forward() -> ForwardPass:
    gpu, architecture = load_gpu("a100-sxm-80gb"), load_model("meta-llama/Llama-2-7b-hf")
    return ForwardPass(architecture, QuantScheme.from_checkpoint(architecture), gpu, DatasheetKernels(gpu))


def test_small_steps_wait_for_their_launches() -> None:
    """291 kernels of 100 us take 29.1 ms to launch, whatever the GPU does; host work comes on top."""
    shape = RunShape(1, 100)
    assert EagerStepTimer(forward(), launch_s=1e-4).run(shape, 1).total_ps == 29_100_000_000
    assert EagerStepTimer(forward(), HostWork(step_s=1e-3), launch_s=1e-4).run(shape, 1).total_ps == 30_100_000_000


def test_large_steps_hide_their_launches() -> None:
    """Where the GPU is busy for longer, eager execution loses nothing."""
    shape = RunShape(0, 0, [(0, 8192)])
    plain = RooflineStepTimer(forward()).run(shape, 1).total_ps
    assert EagerStepTimer(forward(), launch_s=1e-4).run(shape, 1).total_ps == plain


def test_launches_are_explained() -> None:
    """What the GPU waits for is a row of its own, and the rows add up to the step."""
    timer = EagerStepTimer(forward(), launch_s=1e-4)
    ops = timer.explain(RunShape(1, 100))
    assert ops[-1].name == "launches"
    assert abs(sum(op.seconds for op in ops) - 0.0291) < 1e-9


def test_cutting_a_run_changes_nothing() -> None:
    """The closed form of a run through the point where the GPU overtakes the host is that of its single steps."""
    timer = EagerStepTimer(forward(), launch_s=45e-6)
    times = timer.run(RunShape(8, 8), 9000)
    single = [timer.run(RunShape(8, 8 + 8 * i), 1).total_ps for i in range(9000)]
    assert single[0] == single[1] < single[-1]
    assert times.total_ps == sum(single)
    assert times.end_of(4321) == sum(single[:4321])


@given(
    st.lists(st.tuples(st.integers(101, 200), st.integers(-5, 5), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(0, 300),
)
def test_no_step_is_shorter_than_the_floor(rows: list[tuple[int, int, int]], floor: int) -> None:
    """Every step lasts as before, or as long as the floor, whether the steps of a piece grow longer or shorter."""
    pieces, done, total = [], 0, 0
    for first, slope, steps in rows:
        pieces.append((done, total, first, slope, steps))
        done, total = done + steps, total + steps * first + slope * (steps * (steps - 1) // 2)
    found = at_least(StepTimes(done, total, pieces), floor)
    expected = [max(floor, first + slope * i) for first, slope, steps in rows for i in range(steps)]
    ends = [found.end_of(i) for i in range(done + 1)]
    assert [b - a for a, b in pairwise(ends)] == expected


def test_a_fitted_kernel_may_get_faster_with_the_context() -> None:
    """Durations of a piece may fall: 10, 8, 6, 4 with a floor of 7 are 10, 8, 7, 7."""
    found = at_least(StepTimes(4, 28, [(0, 0, 10, -2, 4)]), 7)
    assert [b - a for a, b in pairwise(found.end_of(i) for i in range(5))] == [10, 8, 7, 7]
