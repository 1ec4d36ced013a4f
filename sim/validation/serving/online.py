"""online_qps_runs.csv: TensorRT-LLM behind Triton at given request rates."""

from __future__ import annotations

import math
from pathlib import Path

from sim.validation.serving.case import Case, Client, Traffic
from sim.validation.serving.table import Row, Server, frame, labels, measured, number, one_part, poisson, same, text

COLUMNS = ("qps", "isl_mean", "osl_mean", "itl_mean_ms", "ttft_mean_ms")
_METRICS = {
    "ttft_mean_ms": "ttft_mean",
    "itl_mean_ms": "itl_mean",
    "req_s": "req_s",
    "out_tok_s": "out_tok_s",
    "total_tok_s": "total_tok_s",
}
_KEPT_UP = 0.9


def read_row(name: str, row: Row, path: Path) -> Case:
    """A request rate; `inf` sends all requests at once. Raises ConfigError for what is not known."""
    isl, osl, rate = number(row, "isl_mean"), number(row, "osl_mean"), number(row, "qps")
    server = Server(
        text(row, "gpu"), text(row, "model"), text(row, "engine"), text(row, "engine_version"), text(row, "dtype"),
        int(number(row, "tp")),
    )  # fmt: skip
    scenario, model = frame(server, round(isl + osl), path)
    scenario["engine"]["kv_cache"] = {"enable_prefix_caching": False}
    count = int(number(row, "n_requests", 500))
    arrival = None if math.isinf(rate) else poisson(rate, count)
    client: Client = "at_once" if arrival is None else "trace"
    values = measured(row, _METRICS)
    # Integers, and a run of 500 requests has a drain of its own: a fifth less than asked for means a queue.
    behind = values.get("req_s", rate) < _KEPT_UP * rate - 1 and values.get("ttft_mean", 0) > 1000
    return Case(
        name, path.stem, labels(server, model), path, scenario,
        Traffic(same(isl, count), same(osl, count), client, arrival), model.config, one_part(values, count),
        overloaded=None if arrival is None else behind,
        remarks=("fixed lengths: only their means are stated",),
    )  # fmt: skip
