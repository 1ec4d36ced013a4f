"""Prefill and decode attention of whole layers, by format of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.attention_decode import (
    DecodeFormat,
    DecodeKernel,
    DecodeWork,
    Heads,
    decode_formula,
    decode_sizes,
    decode_work,
)
from sim.cost.kernels.attention_prefill import (
    PrefillFormat,
    PrefillKernel,
    PrefillWork,
    chunk_work,
    prefill_formula,
    prefill_sizes,
)
from sim.cost.kernels.chip import Chip
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats, integers
from sim.validation.fit import Range
from sim.validation.measure.record import STACK
from sim.validation.residual_fit import Axes
from sim.validation.tables import rotates_operands, stack_of

_HEADS = ("num_heads", "num_kv_heads", "head_dim")
_POINT = ("batch", "seq_len", "prefix_len", *_HEADS, "window")
_KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1 + 4 / 128, "int4": 0.5 + 4 / 128}
"""Bytes per element; integers carry a 16-bit scale per half of a head, here of 128 elements."""
_OWN_PREFILL = {"": PrefillFormat(rows_small_head=128), "flash": PrefillFormat(packs_groups=False, rows_small_head=128)}
"""How this package's paged kernel and torch's flash-attention 2 tile; cuDNN's kernel is taken to tile as the latter."""
_HEAD_DIMS = (64, 128, 256)

_PREFILL: Mapping[str, Range] = {
    "launch_s": Range(10 * US, 0.5 * US, 40 * US),
    "mma_efficiency": Range(0.7, 0.2, 1.0),
    "half_head_dim": Range(20.0, 0.5, 300.0, 0.0),
    "hbm_efficiency": Range(0.7, 0.05, 1.0),
    "overlap_power": Range(3.0, 1.0, 12.0, if_high=8.0),
    "longest_power": Range(2.0, 1.0, 12.0, if_high=8.0),
    "block_s": Range(1 * US, 0.02 * US, 20 * US, 0.0),
    "key_tile_s": Range(0.5 * US, 0.02 * US, 6 * US, 0.0),
    "write_s_per_byte": Range(0.5e-12, 0.01e-12, 5e-12, 0.0),
    "throttle": Range(0.1, 0.001, 0.6, 0.0),
    "window_tile_s": Range(0.5 * US, 0.01 * US, 10 * US, 0.0),
}
_PREFILL_PLAN: Sequence[Axes] = (
    (("tiles", (1, 16, 64, 132, 264, 528, 2112, 65536)), ("new_tokens", (16, 64, 128, 256, 512, 1024, 2048, 8192))),
    (("visits", (1, 2, 4, 8, 16, 64)), ("head_dim", _HEAD_DIMS)),
    (("group", (1, 4, 16)), ("new_tokens", (16, 256, 2048))),
)
_DECODE: Mapping[str, Range] = {
    "launch_s": Range(9 * US, 0.5 * US, 40 * US),
    "hbm_efficiency": Range(0.85, 0.3, 1.0),
    "l2_speedup": Range(1.8, 1.0, 6.0),
    "l2_share": Range(0.6, 0.2, 4.0, 0.5, 0.5),
    "overlap_power": Range(3.0, 1.0, 12.0, if_high=8.0),
    "block_s": Range(1.5 * US, 0.05 * US, 20 * US, 0.0),
    "stream_bytes_per_s": Range(60e9, 5e9, 400e9),
    "merge_s": Range(1.5 * US, 0.01 * US, 20 * US, 0.0),
    "io_s_per_byte": Range(0.5e-12, 1e-15, 1e-11, 0.0),
    "mma_efficiency": Range(0.4, 0.02, 1.0),
    "wave_hardness": Range(0.5, 0.02, 1.0, 0.0),
    "most_splits": Range(32.0, 4.0, 140.0),
}
_WINDOW_RANGE: dict[str, Range] = {"window_s": Range(2 * US, 0.01 * US, 20 * US, 0.0)}
_REGROUP_RANGE: dict[str, Range] = {"regroup_s": Range(2 * US, 0.02 * US, 20 * US, 0.0)}
_DECODE_PLAN: Sequence[Axes] = (
    (("sequences", (1, 4, 16, 64, 256, 2048)), ("context", (1, 64, 256, 1024, 4096, 16384, 131072))),
    (("blocks", (1, 16, 64, 132, 264, 1056, 16384)), ("context", (1, 128, 1024, 8192))),
    (("kv_bytes", (1e5, 1e7, 3e7, 5e7, 1e8, 1e9)), ("head_dim", _HEAD_DIMS)),
    (("group", (1, 4, 8, 16)),),
)

_SHARED_PLAN: Sequence[Axes] = (
    (("sequences", (1, 4, 16, 64, 256)), ("blocks", (256, 1024, 4096, 16384, 65536))),
    (("context", (32, 128, 512, 2048)),),
    (("group", (1, 4, 8)),),
)


def _heads(rows: pd.DataFrame) -> Heads:
    return Heads(*integers(rows, *_HEADS, "window"))


def _keys(op_class: str, rows: pd.DataFrame) -> list[Key | None]:
    return [Key(op_class, kv, stack_of(src)) for kv, src in zip(rows.kv_dtype, rows.source, strict=True)]


class PrefillFamily(Family):
    """`attention_prefill`: equal prompts, with or without a cached prefix."""

    op_class = "attention_prefill"
    tables = ("attention_prefill",)
    point_columns = _POINT
    shape_columns = _HEADS

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """KV format and stack."""
        return _keys(self.op_class, rows)

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """Hopper runs flash-attention 3 (packed heads, tall tiles), Ampere version 2."""
        kv_format, _, how = key.format.partition("-")
        kv_bytes = _KV_BYTES.get(kv_format)
        if kv_bytes is None or how == "unfused":  # which writes the score matrix to memory: another mechanism
            return ()
        if key.stack == STACK:
            return (replace(_OWN_PREFILL["flash" if how else ""], kv_bytes_per_element=kv_bytes),)
        if chip.mma_rows >= 64:
            return (PrefillFormat(kv_bytes),)
        return (PrefillFormat(kv_bytes, packs_groups=False, rows_small_head=64, rows=64),)

    def formula(self, kernel: PrefillKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of the layer call."""
        return np.asarray(prefill_formula(self._work(kernel, rows), _heads(rows), kernel, ARRAY)[0], float)

    def sizes(self, kernel: PrefillKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Tiles, lengths and layout."""
        return floats(prefill_sizes(self._work(kernel, rows), _heads(rows)))

    def traffic(self, kernel: PrefillKernel, rows: pd.DataFrame) -> Traffic:
        """4 FLOPs per visible query-key pair and element; queries, keys, values and outputs once."""
        work = self._work(kernel, rows)
        return Traffic(np.asarray(work.flops, float), np.asarray(work.read_bytes, float), "bf16")

    def ranges(self, kernel: PrefillKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """The window term only where windows were measured."""
        return {n: r for n, r in _PREFILL.items() if n != "window_tile_s" or (rows.window > 0).any()}

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """91 values."""
        return _PREFILL_PLAN

    def _work(self, kernel: PrefillKernel, rows: pd.DataFrame) -> PrefillWork:
        batch, new, cached = integers(rows, "batch", "seq_len", "prefix_len")
        return chunk_work(batch, new, cached, _heads(rows), kernel, ARRAY)


class DecodeFamily(Family):
    """`attention_decode`: sequences of equal context, one new token each."""

    op_class = "attention_decode"
    tables = ("attention_decode",)
    point_columns: Sequence[str] = _POINT
    shape_columns = _HEADS

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """KV format and stack."""
        return _keys(self.op_class, rows)

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """Flash-attention 2 (Ampere) leaves contexts whole when query heads are not grouped."""
        kv_bytes = _KV_BYTES.get(key.format)
        return () if kv_bytes is None else (DecodeFormat(kv_bytes, splits_ungrouped=chip.mma_rows >= 64),)

    def formula(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of the layer call, in the benchmark's own L2 state."""
        return np.asarray(
            decode_formula(self._work(kernel, rows), _heads(rows), kernel, cold=rotates_operands(rows), ops=ARRAY)[0],
            float,
        )

    def sizes(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """KV bytes, contexts and layout."""
        return floats(decode_sizes(self._work(kernel, rows), _heads(rows)))

    def traffic(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Traffic:
        """4 FLOPs per context token, query head and element; the KV cache once."""
        work, heads = self._work(kernel, rows), _heads(rows)
        flops = 4.0 * work.sequences * heads.num_heads * heads.head_dim * work.context_tokens
        return Traffic(flops, np.asarray(work.kv_bytes, float), "bf16")

    def ranges(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """Twelve, with the window term where windows were measured, and flash-attention 2's copies where it runs."""
        chosen = dict(_DECODE)
        if (rows.window > 0).any():
            chosen = {n: r for n, r in chosen.items() if n != "mma_efficiency"} | _WINDOW_RANGE
        if not kernel.format.splits_ungrouped:
            chosen = {n: r for n, r in chosen.items() if n != "most_splits"} | _REGROUP_RANGE
        return chosen

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """92 values."""
        return _DECODE_PLAN

    def _work(self, kernel: DecodeKernel, rows: pd.DataFrame) -> DecodeWork:
        batch, cached = integers(rows, "batch", "prefix_len")
        work = decode_work(batch, cached + 1, _heads(rows), kernel, ARRAY)
        if "longest" not in rows.columns:
            return work
        return work._replace(longest_tokens=rows.longest.fillna(rows.prefix_len + 1).to_numpy(float))


class SharedPrefixFamily(DecodeFamily):
    """`attention_shared`: a group of sequences, a prefix read once for all of them and a suffix each.

    The prefix is priced as the decode of one sequence with as many query heads per KV head as the members have
    together, the suffixes as an ordinary decode; their merge is that of a split context.
    """

    tables = ("attention_shared",)
    point_columns = (*_POINT, "shared_len")

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """KV format, marked as shared, and stack."""
        return [key and key._replace(format=f"{key.format}-shared") for key in super().keys(table, rows)]

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """As without a shared prefix."""
        return super().formats(key._replace(format=key.format.removesuffix("-shared")), chip)

    def formula(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of both passes."""
        return np.asarray(super().formula(kernel, _prefixes(rows)) + super().formula(kernel, rows))

    def traffic(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Traffic:
        """The FLOPs and bytes of both passes."""
        before, after = super().traffic(kernel, _prefixes(rows)), super().traffic(kernel, rows)
        return Traffic(before.flops + after.flops, before.bytes_moved + after.bytes_moved, "bf16")

    def sizes(self, kernel: DecodeKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Those of the suffixes, and the prefix in place of their blocks."""
        return {**super().sizes(kernel, rows), "blocks": rows.shared_len.to_numpy(float)}

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """32 values."""
        return _SHARED_PLAN


def _prefixes(rows: pd.DataFrame) -> pd.DataFrame:
    """The prefix pass as rows of the decode table."""
    return rows.assign(batch=1, prefix_len=rows.shared_len - 1, num_heads=rows.num_heads * rows.batch)
