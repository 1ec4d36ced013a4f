"""offline_throughput.csv: NVIDIA's tables of maximum throughput, and first-token latencies at batch size 1."""

from __future__ import annotations

from pathlib import Path

from sim.validation.serving.case import Case, Nominal, Traffic
from sim.validation.serving.servers import version_of
from sim.validation.serving.table import Row, Server, frame, labels, measured, number, one_part, same, text

COLUMNS = ("batching", "batch_size", "out_tok_s", "isl", "osl")
_METRICS = {"out_tok_s": "out_tok_s", "out_tok_s_gpu": "out_tok_s_gpu", "ttft_ms": "ttft"}
_KV_FRACTION = 0.95
"""`--kv_cache_free_gpu_mem_fraction 0.95` of the published commands (perf-overview.md)."""
_MAX_BATCH = 4096
_MAX_TOKENS = 8192
_MOST_TOKENS = 8_000_000
"""Output tokens after which a run of equal requests has long been in its steady state."""
_DEFAULT_REQUESTS = 1000


def read_row(name: str, row: Row, path: Path) -> Case:
    """A throughput or a first-token latency. Raises ConfigError for what is not known."""
    isl, osl = int(number(row, "isl")), int(number(row, "osl"))
    dtype, tp = text(row, "dtype"), int(number(row, "tp"))
    whole, spread = "kv" in dtype.lower() or dtype.lower() == "fp8", _spreads_experts(row)
    server = Server(
        text(row, "gpu"), text(row, "model"), text(row, "engine"), text(row, "engine_version"), dtype.split(" ")[0],
        tp, pp=max(int(number(row, "n_gpus")) // tp, 1), ep=tp if spread else 1,
        kv_dtype="fp8" if whole and dtype.lower().startswith("fp8") else "",
    )  # fmt: skip
    scenario, model = frame(server, isl + osl, path)
    remarks = []
    if spread and model.architecture.is_moe and tp > 1:
        scenario["engine"] |= {"tensor_parallel_size": 1, "data_parallel_size": tp}
        remarks.append("attention data parallelism over all GPUs: the split is not stated")
    static = text(row, "batching").startswith("static")
    batch = int(number(row, "batch_size", 0))
    count = int(number(row, "n_requests", batch or _DEFAULT_REQUESTS))
    if not static:
        count = min(count, max(_MOST_TOKENS // (isl + osl), 1000))
    scenario["engine"] |= {
        "kv_cache": {"enable_prefix_caching": False},
        "max_num_seqs": batch if static else _MAX_BATCH,
        "max_num_batched_tokens": max(batch * isl, isl) if static else _MAX_TOKENS,
        "gpu_memory_utilization": _KV_FRACTION,
        "host": {"request_s": 0.0, "sequence_s": 0.0},  # a benchmark in one process: no server streams tokens
    }
    return Case(
        name, path.stem, labels(server, model), path, scenario, Traffic(same(isl, count), same(osl, count)),
        model.config, one_part(measured(row, _METRICS), count), Nominal(num_gpus=int(number(row, "n_gpus"))),
        never_evicts=not static, remarks=tuple(remarks),
    )  # fmt: skip


def _spreads_experts(row: Row) -> bool:
    """The tables of 1.0 spread whole experts over the GPUs, which attend apart; those of 0.17 cut each expert."""
    return version_of(text(row, "engine_version")) >= (1,)
