"""Steps without CUDA graphs: every kernel is launched by the host, which may not keep up with the GPU."""

from __future__ import annotations

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.roofline import Cost
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.cost.step_times import Piece, StepTimes
from sim.units import PS_PER_S


class EagerStepTimer(RooflineStepTimer):
    """A step lasts as long as its kernels, or as launching them one after the other, whichever is longer.

    The launches of a step are as many as its operators run; the time of one is `launch_s`. Work of the engine between
    steps comes on top of either.
    """

    def __init__(
        self, forward: ForwardPass, host: HostWork | None = None, *, launch_s: float, tick_ps: int = 1
    ) -> None:
        super().__init__(forward, host, tick_ps=tick_ps)
        self._launch_s = launch_s
        self._launches: dict[tuple[bool, bool], int] = {}

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """The pieces of the closed form, none of whose steps is shorter than its launches."""
        times = super().run(shape, max_steps)
        return at_least(times, self._launches_ps(shape))

    def explain(self, shape: RunShape) -> list[OpCost]:
        """With the time for which the GPU waits for launches."""
        ops = super().explain(shape)
        total = sum(op.seconds for op in ops)
        exposed = self._launches_ps(shape) / PS_PER_S - total
        return [*ops, OpCost("launches", 1, Cost(exposed, 0.0, 0.0, "host"))] if exposed > 0 else ops

    def _launches_ps(self, shape: RunShape) -> int:
        """Launches and host work of a step with this mixture of prompts and decodes; they do not depend on lengths."""
        key = bool(shape.chunks), bool(shape.decodes)
        if key not in self._launches:
            ops = [op for op in super().explain(shape) if op.name != "host"]
            self._launches[key] = sum(op.calls for op in ops)
        host = self.host_seconds(shape.new_tokens, shape.decodes + len(shape.chunks))
        return self._ps(self._launches[key] * self._launch_s + host)


def passes_of(forward: ForwardPass, host: HostWork | None = None) -> RooflineStepTimer:
    """Steps of a model, launched as its options say."""
    options = forward.choices.kernels
    if options.cuda_graphs:
        return RooflineStepTimer(forward, host)
    return EagerStepTimer(forward, host, launch_s=options.launch_s)


def at_least(times: StepTimes, floor_ps: int) -> StepTimes:
    """The same steps, none shorter than `floor_ps`. A piece rises or falls through the floor once at most."""
    pieces: list[Piece] = []
    done = total = 0
    for _, _, first, slope, steps in times.pieces:
        for duration, growth, count in _parts(first, slope, steps, floor_ps):
            pieces.append((done, total, duration, growth, count))
            done, total = done + count, total + count * duration + growth * (count * (count - 1) >> 1)
    return StepTimes(done, total, pieces)


def _parts(first: int, slope: int, steps: int, floor: int) -> list[tuple[int, int, int]]:
    """A piece as (first duration, slope, steps) below and above the floor, in their order."""
    last = first + slope * (steps - 1)
    if first >= floor and last >= floor:
        return [(first, slope, steps)]
    if first < floor and last < floor:
        return [(floor, 0, steps)]
    if slope > 0:
        short = -((first - floor) // slope)  # steps until the floor is reached
        return [(floor, 0, short), (first + short * slope, slope, steps - short)]
    long = (first - floor) // -slope + 1  # steps that do not fall below it
    return [(first, slope, long), (floor, 0, steps - long)]
