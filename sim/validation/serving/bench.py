"""bench_serve_runs.csv: outputs of `vllm bench serve` against vLLM, SGLang and TensorRT-LLM servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.validation.serving.case import Case, Ints, Traffic
from sim.validation.serving.table import (
    Row,
    Server,
    frame,
    labels,
    long_tailed,
    measured,
    number,
    one_part,
    poisson,
    same,
    text,
)

COLUMNS = ("serve_cmd", "arrival", "workload", "in_tok_mean", "out_tok_mean")
_METRICS = {
    name: name
    for name in ("req_s", "out_tok_s", "total_tok_s", "ttft_mean", "ttft_p50", "ttft_p99", "tpot_mean", "tpot_p50",
                 "tpot_p99", "itl_mean")
}  # fmt: skip
_INPUT_SIGMA, _OUTPUT_SIGMA = 1.3, 1.4
"""Spread of the logarithm of ShareGPT's prompt and answer lengths; that of the answers by the measured p99 of TPOT,
which belongs to the shortest ones."""
_LONGEST_PROMPT, _LONGEST_ANSWER = 1024, 1000
"""`vllm bench serve` leaves out longer prompts, and pairs of more than 2048 tokens (vllm/benchmarks/datasets.py)."""

_LATENCIES = ("ttft", "tpot", "itl", "e2e")
"""Metrics that mean nothing where half of all tokens reach the client together with the one before."""
_LEAST_SHARE = 0.5
_LONG_PROMPT = 8000
"""From here on a few prompts fill the KV cache: a preempted one finds its own blocks again in the prefix cache."""

# An engine's own spelling of each argument -> key of `engine:`.
_ARGUMENTS = {
    "max-num-batched-tokens": "max_num_batched_tokens",
    "chunked-prefill-size": "max_num_batched_tokens",
    "max-num-tokens": "max_num_batched_tokens",
    "max-num-seqs": "max_num_seqs",
    "max-running-requests": "max_num_seqs",
    "max-batch-size": "max_num_seqs",
}
_APPROXIMATE = {
    r"enable-dp-attention": "attention data parallelism priced as tensor parallelism",
    r"quantization|kv-cache-dtype": "quantisation options of the command are not read",
}
_NOT_MODELLED = {
    r"speculative": "speculative decoding, with an acceptance that is not stated",
    r"cpu-offload": "weights in host memory are not simulated",
}


def read_row(name: str, row: Row, path: Path) -> Case:
    """A benchmark run. Raises ConfigError for what is not known."""
    command, tp = f"{text(row, 'serve_cmd')} {text(row, 'variant')}", int(number(row, "tp"))
    experts = re.search(r"--ep[-_]size[ =](\d+)", command)
    ep = int(experts[1]) if experts else tp if "enable-expert-parallel" in command else 1
    server = Server(
        text(row, "gpu"), text(row, "model"), text(row, "engine"), text(row, "engine_version"), tp=tp,
        pp=int(number(row, "pp", 1)), dp=int(number(row, "dp", 1)), ep=ep, block_scales=True,
    )  # fmt: skip
    traffic = _traffic(row)
    longest = int((traffic.input_tokens + traffic.output_tokens).max())
    scenario, model = frame(server, longest, path)
    scenario["engine"] |= arguments(command, text(row, "section"))
    values = measured(row, _METRICS)
    if {"ttft_mean", "itl_mean"} <= values.keys():  # gaps are pooled, so this is the mean over requests exactly
        values["e2e_mean"] = values["ttft_mean"] + values["itl_mean"] * (number(row, "out_tok_mean") - 1)
    case = Case(
        name, path.stem, labels(server, model), path, scenario, traffic, model.config, one_part(values, len(traffic)),
        remarks=tuple(why for words, why in _APPROXIMATE.items() if re.search(words, command)),
        doubt=_contradiction(traffic, values) or _too_slow(server, traffic),
        doubted_metrics=_LATENCIES if number(row, "itl_p50", 1.0) <= 0.0 else (),
    )  # fmt: skip
    return _unless_modelled(case, row, command)


def _too_slow(server: Server, traffic: Traffic) -> str:
    """The H100 that these documents benchmark with everything at once is good for ratios only.

    It multiplies at half the rate of the same engine and model on the H100s of closed_loop_runs (200 against 440
    TFLOP/s on Qwen3-32B), and hardly faster than their A100; its memory is as fast as it should be.
    """
    if "H100" not in server.gpu or traffic.client != "at_once":
        return ""
    return "this H100 multiplies at half the rate of others: clocks, power or link, nobody knows"


def _contradiction(traffic: Traffic, values: Mapping[str, float]) -> str:
    """Clients that always have a request on the way have as many in flight as there are of them (Little 1961)."""
    if traffic.client != "closed_loop" or not {"req_s", "e2e_mean"} <= values.keys():
        return ""
    in_flight = values["req_s"] * values["e2e_mean"] / 1e3
    most = min(traffic.concurrency, len(traffic) / 2)  # a run that is all ramp and drain has half as many on average
    if in_flight >= _LEAST_SHARE * most:
        return ""
    return "its latencies and rate contradict its concurrency (Little's law)"


def _unless_modelled(case: Case, row: Row, command: str) -> Case:
    if text(row, "speculative") == "yes":
        return case.without("speculative decoding, with an acceptance that is not stated", suspect=True)
    found = next((why for words, why in _NOT_MODELLED.items() if re.search(words, command)), None)
    return case.without(found) if found else case


def arguments(command: str, section: str = "") -> dict[str, Any]:
    """The `engine:` keys that a server's command line sets; headings such as "Seqs 512" count too."""
    found: dict[str, Any] = {}
    for word, key in _ARGUMENTS.items():
        match = re.search(rf"--{word.replace('-', '[-_]')}[ =]+(\d+)", command)
        if match and int(match[1]) > 0:
            found[key] = int(match[1])
    if match := re.search(r"\bseqs? (\d{2,})", section, re.IGNORECASE):
        found["max_num_seqs"] = int(match[1])
    if match := re.search(r"(?:^|batch token )(\d+)k\b", section, re.IGNORECASE):
        found["max_num_batched_tokens"] = int(match[1]) * 1024
    if match := re.search(
        r"--mem[-_]fraction[-_]static[ =]+(0?\.\d+)|--gpu[-_]memory[-_]utilization[ =]+(0?\.\d+)", command
    ):
        found["gpu_memory_utilization"] = float(match[1] or match[2])
    return found


def sharegpt(input_mean: float, output_mean: float, count: int) -> tuple[Ints, Ints]:
    """Prompt and answer lengths like those that `vllm bench serve` samples from ShareGPT, with the means given."""
    answers = max(_LONGEST_ANSWER, 2 * output_mean)
    return (
        long_tailed(input_mean, _INPUT_SIGMA, 4, max(_LONGEST_PROMPT, round(2 * input_mean)), count, "prompts"),
        long_tailed(output_mean, _OUTPUT_SIGMA, 2, round(answers), count, "answers"),
    )


def _traffic(row: Row) -> Traffic:
    count = int(number(row, "n_requests"))
    arrival = text(row, "arrival")
    prompt, answer = number(row, "in_tok_mean"), number(row, "out_tok_mean")
    fixed = text(row, "workload").startswith("random") or (answer.is_integer() and answer >= 128)
    lengths = (same(prompt, count), same(answer, count)) if fixed else sharegpt(prompt, answer, count)
    own = np.arange(count) if prompt >= _LONG_PROMPT else None
    if match := re.search(r"rate (\d+(?:\.\d+)?)\s*$", text(row, "section"), re.IGNORECASE):
        return Traffic(*lengths, "trace", poisson(float(match[1]), count))
    if match := re.search(r"closed loop.*?(\d+)\s*$", arrival):
        return Traffic(*lengths, "closed_loop", concurrency=int(match[1]))
    if arrival.startswith("all at once"):
        return Traffic(*lengths, prompt_id=own)
    if match := re.search(r"(\d+(?:\.\d+)?)", arrival):
        return Traffic(*lengths, "trace", poisson(float(match[1]), count))
    raise ConfigError("unknown arrivals", key="arrival", value=arrival)
