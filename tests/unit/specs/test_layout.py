"""How the GPUs of one copy of a model share its work."""

from __future__ import annotations

import pytest

from sim.specs.layout import ONE_GPU, Layout


def test_gpus_and_lanes_multiply() -> None:
    """Two data-parallel groups of four GPUs in three stages are 24 GPUs and six lanes."""
    layout = Layout(tp=4, pp=3, dp=2, ep=8)
    assert (layout.gpus, layout.stage_gpus, layout.lanes, layout.moe_tp) == (24, 8, 6, 1)
    assert (ONE_GPU.gpus, ONE_GPU.lanes, ONE_GPU.moe_tp) == (1, 1, 1)


def test_experts_may_be_cut_and_dealt_at_once() -> None:
    """Eight GPUs in two expert groups cut each expert four ways."""
    assert Layout(tp=8, ep=2).moe_tp == 4


@pytest.mark.parametrize(
    ("tokens", "longest", "fullest"), [(64, 0, 16), (65, 0, 17), (3, 0, 1), (520, 512, 512), (0, 0, 0)]
)
def test_the_fullest_lane(tokens: int, longest: int, fullest: int) -> None:
    """Tokens are dealt evenly over four lanes, but the chunk of one prompt stays in one."""
    assert Layout(pp=4).fullest(tokens, longest) == fullest
