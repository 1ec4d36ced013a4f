"""quantisation_bench.csv: one model under many quantisation methods, ShareGPT prompts sent at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sim.errors import ConfigError
from sim.validation.serving.bench import sharegpt
from sim.validation.serving.case import Case, Traffic
from sim.validation.serving.table import Row, Server, frame, labels, measured, number, one_part, text

COLUMNS = ("quantisation", "total_tok_s", "ttft_mean_ms", "tpot_mean_ms")
_METRICS = {"total_tok_s": "total_tok_s", "ttft_mean_ms": "ttft_mean", "tpot_mean_ms": "tpot_mean"}
_UNSTATED = "w8a16"
_SCHEMES: Mapping[str, str] = {
    "gptq marlin (": "gptq", "gptq marlin": _UNSTATED, "gptq": "gptq", "awq marlin": "awq_marlin", "awq": "awq_gemm",
    "bitsandbytes": "bitsandbytes", "fp8": "fp8", "w8a8": "w8a8", "int8": "w8a8", "int4": "w4a16",
}  # fmt: skip
"""What a method's name begins with -> scheme; vLLM serves GPTQ with Marlin's kernels where it can, asked or not."""
_REQUESTS = 1000
_SEATS, _ALL_AT_ONCE = 1024, 0.9
"""Where TPOT times the mean answer is nearly the whole run, every request was in the batch from the start; elsewhere
the server had vLLM's default seats for its GPU."""
_INPUT_MEAN, _OUTPUT_MEAN = 217.0, 200.0
"""Of 1,000 prompts sampled from ShareGPT by `vllm bench serve`; this table does not state them."""


def read_row(name: str, row: Row, path: Path) -> Case:
    """A quantisation method. Raises ConfigError for one that is not understood."""
    server = Server(text(row, "gpu"), text(row, "model"), text(row, "engine"), text(row, "engine_version"))
    scenario, model = frame(server, 0, path)
    scheme = _scheme(text(row, "quantisation"))
    if scheme is not None:
        scenario["engine"]["quantization"] = scheme
    found = re.search(r"(\d[\d,]*) prompts", text(row, "workload"))
    count = int(found[1].replace(",", "")) if found else int(number(row, "n_requests", _REQUESTS))
    traffic = Traffic(*sharegpt(_INPUT_MEAN, _OUTPUT_MEAN, count))
    if _fits_whole(row, count):
        scenario["engine"] |= {"max_num_seqs": _SEATS, "max_num_batched_tokens": max(_SEATS, 2048)}
    return Case(
        name, path.stem, labels(server, model) | {"format": text(row, "quantisation")}, path, scenario, traffic,
        model.config, one_part(measured(row, _METRICS), count),
        remarks=("its bits are not stated: its figures are those of the INT8 row beside it",) * (scheme == _UNSTATED),
    )  # fmt: skip


def _fits_whole(row: Row, count: int) -> bool:
    run_s = count * (_INPUT_MEAN + _OUTPUT_MEAN) / number(row, "total_tok_s")
    return number(row, "tpot_mean_ms", 0.0) / 1e3 * _OUTPUT_MEAN >= _ALL_AT_ONCE * run_s


def _scheme(label: str) -> str | None:
    word = label.lower()
    if word in ("bf16", "fp16", "none"):
        return None
    found = next((scheme for start, scheme in _SCHEMES.items() if word.startswith(start)), None)
    if found is None:
        raise ConfigError("unknown quantisation", key="quantisation", value=label)
    return "gptq_int8" if found == "gptq" and "int8" in word else found
