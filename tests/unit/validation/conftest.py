"""A measured GPU that exists on paper only: tables made from known constants."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from sim.cost.kernels.attention_decode import DecodeFormat, DecodeKernel, DecodeParams, Heads, decode_s
from sim.cost.kernels.chip import Chip

TRUTH = DecodeParams(
    launch_s=9e-6, hbm_efficiency=0.8, l2_speedup=2.0, overlap_power=4.0, block_s=2e-6, stream_bytes_per_s=4e10
)
LAYOUTS = ((8, 8, 128), (32, 8, 128), (16, 2, 64), (64, 8, 64), (16, 8, 256))


@pytest.fixture(scope="session")
def paper_chip() -> Chip:
    """Round figures."""
    return Chip("paper", {"bf16": 1e15}, 3e12, 132, 50e6, 3e11, 64)


@pytest.fixture(scope="session")
def decode_rows(paper_chip: Chip) -> pd.DataFrame:
    """An `attention_decode` table of the paper GPU with two per cent of noise."""
    kernel = DecodeKernel(paper_chip, DecodeFormat(), TRUTH)
    points = list(product((1, 8, 64, 256), (15, 255, 1023, 8191, 32767), LAYOUTS))
    noise = np.exp(0.02 * np.random.default_rng(1).standard_normal(len(points)))
    rows = [(n, cached, *heads) for n, cached, heads in points]
    times = [1e6 * decode_s(n, n * (cached + 1), Heads(*heads), kernel, cold=False) for n, cached, heads in points]
    table = pd.DataFrame(rows, columns=["batch", "prefix_len", "num_heads", "num_kv_heads", "head_dim"])
    same = {"gpu": "paper", "source": "vllm-9.9", "kv_dtype": "bf16", "seq_len": 1, "window": 0}
    return table.assign(**same, latency_us=np.array(times) * noise)
