"""The public kernel database that ships as `aiconfigurator-core` (Apache-2.0), read as measurement tables.

Its files are `systems/data/<gpu>/<group>/<framework>/<version>/<name>_perf.parquet`; columns follow release 0.12.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from sim.errors import ConfigError

PACKAGE = "aiconfigurator_core"
_US_PER_MS = 1000.0
_BYTES_PER_ELEMENT = 2
_GPUS: Mapping[str, str] = {"a100-sxm-80gb": "a100_sxm", "h100-sxm": "h100_sxm", "h200-sxm": "h200_sxm"}

_GEMM_SCHEMES: Mapping[tuple[str, str], str] = {
    ("vllm", "bfloat16"): "bf16",
    ("vllm", "fp8"): "fp8",
    ("trtllm", "fp8_block"): "fp8_block",
    ("trtllm", "int8_wo"): "w8a16",
    ("trtllm", "int4_wo"): "w4a16",
    ("trtllm", "sq"): "w8a8_int8",
    ("sglang", "int8_wo"): "w8a8_int8_sgl",
}
"""The framework whose table of a format is usable: vLLM's block-fp8 table sits on a host-launch floor, for one."""
_MOE_SCHEMES: Mapping[tuple[str, str], str] = {
    ("vllm", "bfloat16"): "bf16",
    ("vllm", "fp8_block"): "fp8_block",
    ("vllm", "w4a16_mxfp4"): "w4a16_mxfp4",
    ("sglang", "int4_wo"): "w4a16",
}
_KV = {"bfloat16": "bf16", "float16": "bf16", "fp8": "fp8"}
_ALIGNED_ROWS = {1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 768, 1024, 2048, 4096, 8192}
_ROWS = _ALIGNED_ROWS | {2, 48, 129, 160, 257, 384, 513, 1025, 1536, 2049, 3072, 16384, 32768}
_ALL_ROWS_SCHEMES = {"bf16", "fp8"}
_QUERY_LENGTHS = {16, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 6144, 8192, 12288, 16384}
_CACHED_LENGTHS = {0, 1, 15, *(2**i - 1 for i in range(7, 18))}
_LAYOUTS = {
    (64, window, *heads) for window in (0, 128) for heads in ((1, 8), (2, 16), (8, 32), (8, 64))
} | {
    *((128, 0, 1, heads) for heads in (1, 4, 8, 16)),
    *((128, 0, 2, heads) for heads in (8, 12)),
    *((128, 0, 4, heads) for heads in (16, 32, 64)),
    *((128, 0, 8, heads) for heads in (8, 24, 32, 48, 64)),
    *((128, 0, heads, heads) for heads in (16, 40)),
    *((128, 128, 8, heads) for heads in (32, 64)),
    (128, 8192, 2, 10),
    (256, 1024, 8, 16),
}  # fmt: skip
"""(head size, window, KV heads, query heads) that the shipped constants are fitted on: those of served models."""
_BF16_ONLY = {
    (64, 128, 1, 8), (64, 128, 8, 64), (128, 0, 1, 1), (128, 0, 1, 8), (128, 0, 1, 16), (128, 0, 4, 16),
    (128, 0, 4, 32), (128, 0, 4, 64), (128, 0, 8, 32), (128, 0, 8, 48), (128, 0, 40, 40), (128, 128, 8, 32),
}  # fmt: skip
_MOE_MODELS = {
    (2048, 768, 8, 128),
    (4096, 1536, 8, 128),
    (4096, 14336, 2, 8),
    (6144, 16384, 2, 8),
    (7168, 2048, 8, 256),
    (5120, 8192, 1, 16),
    (2880, 2880, 4, 32),
    (2880, 2880, 4, 128),
}


class _File(NamedTuple):
    group: str
    framework: str
    version: str
    path: Path

    @property
    def source(self) -> str:
        return f"{self.framework}-{self.version}"


def database() -> Path:
    """The installed database. Raises ConfigError when the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "is not installed; run: pip install 'roofserve[silicon]'", key="--from silicon", value="aiconfigurator-core"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def silicon_tables(hardware: str, root: Path) -> dict[str, pd.DataFrame]:
    """The tables of one GPU, newest version of each framework, on the grid that the shipped constants are fitted on.

    Raises ConfigError when the database does not know the GPU.
    """
    if hardware not in _GPUS:
        raise ConfigError("the database has no such GPU", key="hardware", value=hardware, choices=_GPUS)
    folder = root / _GPUS[hardware]
    if not folder.is_dir():
        raise ConfigError("has no tables of this GPU", file=root, key="hardware", value=hardware)
    found: dict[str, list[pd.DataFrame]] = {}
    for file in _newest(folder):
        raw = pd.read_parquet(file.path)
        for name, convert in _CONVERTERS[file.group, file.path.name].items():
            rows = convert(raw, file)
            if len(rows):
                rows = rows.assign(gpu=_GPUS[hardware].split("_")[0], source=file.source)
                found.setdefault(name, []).append(_merged(rows))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _newest(folder: Path) -> Iterator[_File]:
    """The newest version of every table that is read, by group, framework and file name."""
    best: dict[tuple[str, str, str], _File] = {}
    for path in sorted(folder.glob("*/*/*/*_perf.parquet")):
        group, framework, version = path.parts[-4:-1]
        if (group, path.name) not in _CONVERTERS or framework not in _FRAMEWORKS[group]:
            continue
        # Int8 weight-only of SGLang was measured in one old release only, as an int8 GEMM with its quantise pass.
        key = (group, framework if version != "0.5.6.post2" else f"{framework} {version}", path.name)
        if key not in best or _version(version) > _version(best[key].version):
            best[key] = _File(group, framework, version, path)
    return iter(best.values())


def _version(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(n or -1), word) for n, word in re.findall(r"(\d+)|([a-z]+)", text))


def _merged(rows: pd.DataFrame) -> pd.DataFrame:
    """Exact duplicates as their median."""
    keys = [column for column in rows.columns if column != "latency_us"]
    return rows.groupby(keys, sort=False).latency_us.median().reset_index()


def _gemm(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    schemes = pd.Series([_GEMM_SCHEMES.get((file.framework, t)) for t in raw.gemm_dtype], index=raw.index)
    rows = _renamed(raw, ["m", "n", "k"]).assign(scheme=schemes)
    sizes = rows.m.isin(_ALIGNED_ROWS) | (rows.scheme.isin(_ALL_ROWS_SCHEMES) & rows.m.isin(_ROWS))
    inside = rows.n.between(512, 65536) & rows.k.between(512, 16384) & sizes
    return rows[inside & rows.scheme.notna()]


def _attention(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    names = {
        "batch_size": "batch", "isl": "seq_len", "step": "prefix_len", "num_key_value_heads": "num_kv_heads",
        "window_size": "window",
    }  # fmt: skip
    columns = ["batch", "seq_len", "prefix_len", "num_heads", "num_kv_heads", "head_dim", "window"]
    if "window_size" not in raw.columns:
        raw = raw.assign(window_size=0)
    rows = _renamed(raw.rename(columns=names), columns).assign(kv_dtype=raw.kv_cache_dtype.map(_KV))
    lengths = rows.seq_len.isin(_QUERY_LENGTHS | {1}) & rows.prefix_len.isin(_CACHED_LENGTHS)
    layouts = list(zip(rows.head_dim, rows.window, rows.num_kv_heads, rows.num_heads, strict=True))
    layout = pd.Series(layouts, index=rows.index)
    known = layout.isin(_LAYOUTS) & ~((rows.kv_dtype == "fp8") & layout.isin(_BF16_ONLY))
    return rows[rows.kv_dtype.notna() & lengths & known]


def _moe(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    names = {"hidden_size": "hidden", "inter_size": "inter", "moe_tp_size": "tp", "moe_ep_size": "ep"}
    columns = ["num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep", "distribution"]
    schemes = pd.Series([_MOE_SCHEMES.get((file.framework, t)) for t in raw.moe_dtype], index=raw.index)
    rows = _renamed(raw.rename(columns=names), columns).assign(scheme=schemes)
    model = pd.Series(list(zip(rows.hidden, rows.inter, rows.topk, rows.num_experts, strict=True)), index=rows.index)
    sharding = (rows.tp * rows.ep <= 8) & ((rows.tp == 1) | (rows.ep == 1))
    routing = rows.distribution.isin(["balanced", "power_law_1.2"])
    return rows[rows.scheme.notna() & model.isin(_MOE_MODELS) & sharding & routing]


def _all_reduce(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    # Messages are counted in 16-bit elements.
    how = raw.kernel_source.str.extract(r"_(graph|eager)$")[0].fillna("default")
    rows = pd.DataFrame({"n_gpus": raw.num_gpus, "bytes": raw.message_size * _BYTES_PER_ELEMENT})
    return rows.assign(implementation="custom-" + how, latency_us=raw.latency * _US_PER_MS)


def _nccl(raw: pd.DataFrame, operation: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    raw = raw[(raw.nccl_dtype == "half") & operation(raw.op_name)]
    rows = pd.DataFrame({"n_gpus": raw.num_gpus, "bytes": raw.message_size * _BYTES_PER_ELEMENT, "op": raw.op_name})
    return rows.assign(implementation="nccl-tests", latency_us=raw.latency * _US_PER_MS)


def _quantise(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    rows = _renamed(raw, ["m", "k"]).assign(op="static_fp8_quant")
    return rows[rows.m.isin(_ROWS) & rows.k.between(512, 16384)]


def _renamed(raw: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return raw[columns].assign(latency_us=raw.latency * _US_PER_MS)


def _nccl_all_reduce(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    return _nccl(raw, lambda operation: operation == "all_reduce").drop(columns="op")


def _nccl_others(raw: pd.DataFrame, file: _File) -> pd.DataFrame:
    return _nccl(raw, lambda operation: operation != "all_reduce")


_FRAMEWORKS: Mapping[str, set[str]] = {
    "gemm": {"vllm", "trtllm", "sglang"},
    "attention": {"vllm"},
    "moe": {"vllm", "sglang"},
    "comm": {"vllm", "trtllm", "sglang", "nccl"},
    "quantize": {"vllm"},
}
_Converter = Callable[[pd.DataFrame, _File], pd.DataFrame]
_CONVERTERS: Mapping[tuple[str, str], Mapping[str, _Converter]] = {
    ("gemm", "gemm_perf.parquet"): {"gemm": _gemm},
    ("attention", "context_attention_perf.parquet"): {"attention_prefill": _attention},
    ("attention", "generation_attention_perf.parquet"): {"attention_decode": _attention},
    ("moe", "moe_perf.parquet"): {"moe": _moe},
    ("comm", "custom_allreduce_perf.parquet"): {"all_reduce": _all_reduce},
    ("comm", "nccl_perf.parquet"): {"all_reduce": _nccl_all_reduce, "collectives_other": _nccl_others},
    ("quantize", "scale_matrix_perf.parquet"): {"quantize": _quantise},
}
