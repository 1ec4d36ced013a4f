"""One seed becomes independent named streams, so that one more draw in one place never shifts another."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """The generator for one fact (`arrivals`, `input_tokens`, ...) of one run.

    The same (seed, name, index) gives the same numbers in any process and in any order of calls; `index` makes a
    stream per request or per chunk of requests. The name enters by its CRC-32, because Python's own hash of a string
    differs between processes, and everything but the seed enters as a spawn key, in which zeros count.
    """
    key = (zlib.crc32(name.encode()), *index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
