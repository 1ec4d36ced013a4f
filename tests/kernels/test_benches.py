"""Every kind of problem can be built and run; here at tiny sizes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.validation.measure.benches import Lab, unequal
from sim.validation.measure.campaign import Campaign
from sim.validation.measure.problems import SCHEMES, Problem, attention, calibration_problems, with_sizes
from sim.validation.measure.record import Record
from sim.validation.measure.timing import Pace

TINY = (2, 1, 32)
QUICK = Pace(warm_up_s=0.0, measure_s=0.0, fewest=2, most=2)


def _tiny() -> list[Problem]:
    decode = attention("attention_decode", "bf16", 2, 1, 20, TINY)
    passes = ("rms_norm", "add_rms_norm", "silu_mul", "rope", "quantise_fp8", "quantise_int8", "kv_write", "copy",
              "argmax", "top_k_top_p")  # fmt: skip
    return [
        *(Problem.of("gemm", scheme=scheme, m=4, n=64, k=128) for scheme in SCHEMES),
        with_sizes(decode, longest=40),
        with_sizes(attention("attention_decode", "int4", 1, 1, 20, TINY), longest=20),
        with_sizes(attention("decode_blocks", "bf16", 2, 1, 20, TINY), longest=20, block_tokens=0),
        with_sizes(attention("attention_shared", "bf16", 3, 1, 9, TINY), shared_len=32),
        attention("attention_prefill", "bf16", 2, 9, 7, TINY),
        attention("attention_prefill", "bf16-flash", 2, 9, 0, TINY),
        attention("attention_prefill", "bf16-unfused", 2, 9, 7, TINY),
        *(Problem.of("passes", op=op, m=2, width=256) for op in passes),
        Problem.of("block_moves", op="block_copy", blocks=2, block_bytes=8192),
        Problem.of("block_moves", op="gather", blocks=2, block_bytes=8192),
        *(
            Problem.of("swap", how=f"{way}_{how}", blocks=3, block_bytes=64)
            for way in ("in", "out")
            for how in ("blockwise", "batched")
        ),
        Problem.of("launches", op="eager", count=2),
    ]


def test_every_table_is_measured(tmp_path: Path) -> None:
    """A campaign over one tiny problem of every kind leaves a time for each; what cannot run says why."""
    lab = Lab("cpu")
    record = Record(tmp_path / "record.jsonl")
    problems = [*_tiny(), Problem.of("all_reduce", implementation="nccl", n_gpus=2, bytes=256)]
    found = Campaign(lab, record, lambda: 0.0, QUICK).run(problems, {"gpu_name": "cpu"}, 1.0)
    assert [one.error for one in found[:-1]] == [""] * len(_tiny())
    assert all(one.latency_us and one.latency_us > 0 for one in found[:-1])
    assert found[-1].error == "RuntimeError: needs 2 GPUs"
    assert {one.table for one in found} == {problem.table for problem in calibration_problems(gpus=2)}
    assert len([json.loads(line) for line in record.path.read_text().splitlines()]) == 1 + len(found)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_unequal_contexts_keep_their_mean(batch: int) -> None:
    """Contexts spread to the longest one have the stated mean."""
    contexts = unequal(batch, 100, 180)
    assert sum(contexts) == 100 * batch
    assert max(contexts) == (180 if batch > 1 else 100)
    assert unequal(batch, 100, 100) == [100] * batch


def test_weights_rotate_in_memory_of_their_own() -> None:
    """Copies of a weight outgrow the cache twice over and do not share memory; asking again makes none."""
    lab = Lab("cpu")
    made = []

    def make() -> object:
        made.append(lab.normal(8, 16))
        return made[-1]

    copies = lab.weights(("w",), make, lab.l2_bytes // 2)
    assert len(copies) == 4
    assert len({copy.data_ptr() for copy in copies}) == 4
    assert lab.weights(("w",), make, lab.l2_bytes // 2) is copies
    assert len(made) == 1
