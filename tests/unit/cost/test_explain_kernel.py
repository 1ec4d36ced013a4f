"""One kernel, explained."""

from __future__ import annotations

import pytest

from sim.cost.calibration import Calibration
from sim.cost.calibration_source import load_calibration
from sim.cost.explain_kernel import KINDS, explain_kernel
from sim.errors import ConfigError
from sim.specs.hardware import load_gpu

SIZES = {
    "gemm": {"m": 64, "n": 8192, "k": 8192},
    "prefill": {"tokens": 2048, "heads": 32, "kv_heads": 8},
    "decode": {"sequences": 32, "context": 2000, "heads": 32, "kv_heads": 8},
    "moe": {"tokens": 64, "hidden": 4096, "inter": 14336, "top_k": 2, "experts": 8},
    "all-reduce": {"bytes": 2**20, "n_gpus": 4},
    "elementwise": {"rows": 64, "bytes_per_row": 24576},
}


@pytest.fixture(scope="module")
def h100() -> Calibration:
    """The shipped constants of an H100."""
    return load_calibration(load_gpu("h100-sxm"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_terms_and_an_interval(h100: Calibration, kind: str) -> None:
    """The time lies in its interval, the bound is one of the parts, and the constants have a source."""
    found = explain_kernel(h100, kind, SIZES[kind])
    assert found.interval_s[0] < found.terms.seconds < found.interval_s[1]
    assert found.terms.bound in found.terms.parts
    assert found.entry.source


def test_fewer_bytes_per_weight_are_faster(h100: Calibration) -> None:
    """A memory-bound product in fp8 takes less time than in bf16, but more than half."""
    fp8, bf16 = (explain_kernel(h100, "gemm", SIZES["gemm"], dtype).terms.seconds for dtype in ("fp8", "bf16"))
    assert bf16 / 2 < fp8 < bf16


@pytest.mark.parametrize(
    ("kind", "sizes", "dtype", "message"),
    [
        ("gem", {}, None, "gemm"),
        ("gemm", {"m": 1, "n": 1}, None, "k: gemm needs it"),
        ("gemm", {**SIZES["gemm"], "q": 1}, None, "q: is not a size of gemm"),
        ("gemm", SIZES["gemm"], "fp9", "fp8"),
    ],
)
def test_mistakes_are_answered(
    h100: Calibration, kind: str, sizes: dict[str, int], dtype: str | None, message: str
) -> None:
    """What is missing, unknown or unmeasured is named, with the nearest valid choice."""
    with pytest.raises(ConfigError, match=message):
        explain_kernel(h100, kind, sizes, dtype)
