"""The small engine computes what its model says: a tiny one on the CPU against plain dense attention."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from sim.validation.engine import session
from sim.validation.engine.dims import ModelDims
from sim.validation.engine.model import Decoder
from sim.validation.engine.runner import TorchRunner, capture_sizes
from sim.validation.engine.scheduler import Scheduler
from sim.validation.engine.serve import ServedLog, serve
from sim.validation.engine.traffic import Asked
from sim.validation.kernels import reference

TINY = ModelDims("tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=32, intermediate=48, vocabulary=40)
BLOCK = 4


def _decoder(blocks: int) -> Decoder:
    return Decoder(TINY, num_blocks=blocks, block_tokens=BLOCK, max_positions=64, device="cpu", dtype=torch.float32)


def _next_token(decoder: Decoder, tokens: list[int]) -> int:
    """The likeliest next token, all tokens computed at once in float64."""
    x = decoder.embedding[tokens].double()
    cosines, sines = (angle[: len(tokens), None].double() for angle in decoder.angles)

    def norm(value: torch.Tensor) -> torch.Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def turned(value: torch.Tensor) -> torch.Tensor:
        low, high = value.chunk(2, -1)
        return torch.cat([low * cosines - high * sines, high * cosines + low * sines], -1)

    for layer in decoder.layers:
        heads = (norm(x) @ layer.qkv.double().t()).view(len(tokens), -1, TINY.head_dim)
        query, keys, values = heads.split([TINY.heads, TINY.kv_heads, TINY.kv_heads], dim=1)
        mixed = reference.attention(turned(query), turned(keys), values, 0)
        x = x + mixed.flatten(1) @ layer.out.double().t()
        gate, up = (norm(x) @ layer.gate_up.double().t()).chunk(2, -1)
        x = x + (gate / (1 + (-gate).exp()) * up) @ layer.down.double().t()
    return int((norm(x[-1]) @ decoder.head.double().t()).argmax())


def test_batched_chunked_and_preempted_requests_get_the_models_tokens() -> None:
    """Chunks, shared steps and a recomputation after preemption do not change a single token."""
    decoder = _decoder(blocks=5)
    runner = TorchRunner(decoder, block_tokens=BLOCK, max_len=32, max_running=4)
    runner.capture()
    scheduler = Scheduler(num_blocks=5, block_tokens=BLOCK, token_budget=8, max_running=4)
    served: dict[int, list[int]] = {}

    class Watching:
        """Keeps the tokens of every request."""

        def run(self, parts: list) -> dict[int, int]:  # type: ignore[type-arg]
            sampled = runner.run(parts)
            for part in parts:
                served[part.live.number] = part.live.tokens
            return sampled

    asked = [Asked(0.0, 11, 4), Asked(0.0, 6, 6)]
    log = serve(asked, scheduler, Watching(), TINY.vocabulary, time.perf_counter, time.sleep)
    assert log.preemptions >= 1
    for i, one in enumerate(asked):
        tokens = served[i]
        assert len(tokens) == one.prompt_tokens + one.output_tokens
        for end in range(one.prompt_tokens, len(tokens)):
            assert tokens[end] == _next_token(decoder, tokens[:end])


def test_graphs_are_captured_for_the_sizes_that_the_simulator_pads_to() -> None:
    """Powers of two up to 4, then every eighth, up to the most that may run."""
    assert capture_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert capture_sizes(1) == [1]


def test_a_session_writes_every_run(tmp_path: Path) -> None:
    """Bursts and rates of each model are in the file, with the settings and the environment."""
    plan = session.Plan(
        models=("meta-llama/Llama-3.1-8B",), shares=(0.5,), repeats=1, seconds_per_run=0.0, burst=4,
        prompt_tokens=(3, 6), output_tokens=(1, 2),
    )  # fmt: skip
    limits = session.EngineLimits(block_tokens=BLOCK, token_budget=16, max_running=4, max_len=16, num_blocks=32)
    said: list[str] = []

    def tiny(_: ModelDims, chosen: session.EngineLimits) -> session.Engine:
        return session.Engine(TINY, chosen, device="cpu", dtype=torch.float32)

    out = tmp_path / "serving.json"
    session.serve_all(out, 600.0, 1, report=said.append, plan=plan, limits=limits, make=tiny)
    written = json.loads(out.read_text())
    assert [(run["rate"] is None, run["repeat"]) for run in written["runs"]] == [(True, 0), (False, 0)]
    assert written["limits"]["token_budget"] == 16
    log = ServedLog.from_json(written["runs"][1]["log"])
    assert len(log.asked) == 8
    assert all(finish >= first > 0 for finish, first in zip(log.finish_s, log.first_token_s, strict=True))
    assert "requests/s saturated" in said[0]
