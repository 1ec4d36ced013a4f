"""Attention to shared prefixes: read once, multiplied by all queries at once."""

from __future__ import annotations

import pytest

from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.shared_prefix import SharedPrefixTimer
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme


def forward(model: str = "meta-llama/Llama-2-7b-hf", hardware: str = "a40") -> ForwardPass:
    gpu, architecture = load_gpu(hardware), load_model(model)
    return ForwardPass(architecture, QuantScheme.from_checkpoint(architecture), gpu, DatasheetKernels(gpu))


def shape(members: int, prefix: int, own: int, *, shared: bool = True) -> RunShape:
    return RunShape(members, members * (prefix + own), shared=(prefix, members * prefix) if shared else (0, 0))


def attention(timer: SharedPrefixTimer, at: RunShape) -> float:
    return sum(op.seconds for op in timer.explain(at) if op.name.startswith("attention"))


def test_the_prefix_is_read_once() -> None:
    """32 members behind 2048 tokens: 2048 + 32 x 129 tokens of 16 KiB instead of 32 x 2177 per layer, equal FLOPs.

    The product has 8 tiles of 128 rows for 84 SMs, so 8 blocks share its keys, and 8 parts and another are merged.
    """
    timer = SharedPrefixTimer(RooflineStepTimer(forward()))
    relay, plain = (
        [op for op in timer.explain(shape(32, 2048, 128, shared=s)) if op.name.startswith("attention")]
        for s in (True, False)
    )
    rows = 32 * 32 * 256 * 2
    assert [op.cost.bytes for op in plain] == [32 * 2177 * 16384 + rows]
    assert [op.cost.bytes for op in relay] == [32 * 129 * 16384 + rows, 2048 * 16384 + 8 * rows, 32 * 32 * 128 * 2 * 10]
    assert sum(op.cost.flops for op in relay) == sum(op.cost.flops for op in plain)


def test_gain_approaches_the_ratio_of_bytes() -> None:
    """(p + c) / (p / B + c) = 11.3 at B = 32, p = 2048, c = 128; launches and the product's compute take the rest."""
    timer = SharedPrefixTimer(RooflineStepTimer(forward()))
    gain = attention(timer, shape(32, 2048, 128, shared=False)) / attention(timer, shape(32, 2048, 128))
    assert 7 < gain < 11.3


@pytest.mark.parametrize(("members", "prefix"), [(1, 4096), (4, 32)])
def test_it_loses_where_little_is_shared(members: int, prefix: int) -> None:
    """One sequence, or few behind a short prefix, pay for two more kernels and save nothing."""
    timer = SharedPrefixTimer(RooflineStepTimer(forward()))
    assert attention(timer, shape(members, prefix, 128)) > attention(timer, shape(members, prefix, 128, shared=False))


def test_grouped_queries_leave_less_to_gain() -> None:
    """With an eighth of the keys and values, attention is less of a step, and so is the gain on all of it."""
    gains = []
    for model in ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B"):
        timer = SharedPrefixTimer(RooflineStepTimer(forward(model)))
        plain, relay = (timer.run(shape(32, 2048, 128, shared=s), 1).total_ps for s in (False, True))
        gains.append(plain / relay)
    assert gains[0] > 2 > gains[1] > 1


def test_a_run_is_its_single_steps() -> None:
    """Contexts grow behind the prefix only; cut anywhere, every step ends at the same picosecond."""
    timer = SharedPrefixTimer(RooflineStepTimer(forward(), HostWork(1e-4)))
    times = timer.run(shape(8, 1024, 60), 700)
    ends = [0]
    for i in range(700):
        ends.append(ends[-1] + timer.run(shape(8, 1024, 60 + i), 1).total_ps)
    assert [times.end_of(i) for i in range(701)] == ends
    at = shape(8, 1024, 60)
    timer.run(at, 5)
    assert at.context_tokens == 8 * 1084
