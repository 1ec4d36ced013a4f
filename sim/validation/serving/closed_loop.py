"""closed_loop_runs.csv: fixed numbers of clients, InferenceX dumps and the gap analysis of aiconfigurator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.catalog import find
from sim.specs.hardware import load_gpu
from sim.validation.serving.case import Case, Nominal, Traffic
from sim.validation.serving.servers import engine_family, find_model, hardware, version_of
from sim.validation.serving.table import Row, Server, frame, labels, measured, number, one_part, same, text, uniform

COLUMNS = ("isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "e2e_ms_derived")
_METRICS = {
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "e2e_ms_derived": "e2e_derived",
    "out_tok_s_gpu_derived": "out_tok_s_gpu_derived",
}
_MOST_OF_PEAK = 0.6
_ROUNDS = 10
"""Requests per client: `--num-prompts 10*C` of the InferenceX client."""
_INFERENCEX_LOW = 0.8
"""InferenceX draws lengths evenly from [0.8, 1.0] of the nominal ones (`--random-range-ratio 0.8`)."""
_RANDOM_TOKEN_S = 11e-6
"""Of InferenceX's servers per prompt token, one request after the other: their prompts are random tokens turned into
text, which takes longer to tokenise than text that people write. Fitted over vLLM 0.16, 0.18 and TensorRT-LLM rows
(9 to 17 us by engine and version)."""
_INFERENCEX_REQUEST_S = {"vllm-v1": 0.017, "vllm-0.15": 0.017, "vllm-0.9": 0.017, "sglang-0.5": 0.18,
                         "tensorrt-llm-1.0": 0.069, "tensorrt-llm-0.17": 0.069}  # fmt: skip
"""What its servers and client add to every TTFT, at any load and for all models of an engine alike; fitted. Why
SGLang's is so long is not known: the same server elsewhere answers in 40 ms."""
_GAP_REQUEST_S = {"vllm-v1": 0.02, "vllm-0.15": 0.02, "vllm-0.9": 0.02, "sglang-0.5": 0.03, "tensorrt-llm-1.0": 0.02}
"""The same of the gap analysis, whose servers stand behind Dynamo's front end; fitted."""
_STAGGERED = ("sglang", (0, 5, 6))
"""From this engine and version on, the gap analysis's clients do not go round in step: TTFT is a third of what
prompts that all arrive together would have. Its answers are then taken to differ by `_STAGGER` of their length."""
_STAGGER = 0.05
_MOST_WAITING = 0.7
"""Share of a request's time before its first token. InferenceX sets as many seats as clients, so that none waits."""
_OUTLIERS = {(4, 1024, 1024, 32), (8, 1024, 1024, 64), (4, 1024, 8192, 16)}
"""(tp, isl, osl, clients) of three points of gpt-oss with vLLM on H100 that lie apart from all their neighbours."""


def read_row(name: str, row: Row, path: Path) -> Case:
    """A point of a closed loop. Raises ConfigError for what is not known."""
    isl, osl, clients = (int(number(row, key)) for key in ("isl", "osl", "concurrency"))
    if suspect := text(row, "suspect"):
        case = Case(name, path.stem, labels(_server(row)), path)
        return case.without(f"marked as suspect by the table: {suspect}", suspect=True)
    inferencex = text(row, "dataset").startswith("Inference")
    server = _server(row)
    scenario, model = frame(server, isl + osl, path)
    count = _ROUNDS * clients
    family, first = _STAGGERED
    apart = engine_family(server.engine) == family and version_of(server.version) >= first
    low, high = (_INFERENCEX_LOW, 1.0) if inferencex else (1.0 - _STAGGER * apart, 1.0 + _STAGGER * apart)
    traffic = Traffic(
        uniform(low * isl, isl, count, "input") if inferencex else same(isl, count),
        uniform(low * osl, high * osl, count, "output"), "closed_loop", concurrency=clients,
    )  # fmt: skip
    longest = int((traffic.input_tokens + traffic.output_tokens).max())
    scenario["engine"] |= _engine(scenario["engine"]["preset"], isl, longest, clients, inferencex)
    return Case(
        name, path.stem, labels(server, model), path, scenario, traffic, model.config,
        one_part(measured(row, _METRICS), count), Nominal(osl, clients, int(number(row, "n_gpus"))),
        client="InferenceX" if inferencex else "gap analysis", doubt=_doubt(row, server, inferencex),
    )  # fmt: skip


def _engine(preset: str, isl: int, longest: int, clients: int, inferencex: bool) -> dict[str, Any]:
    """What the clients' documents say about the server's options, and what its times say where they are silent."""
    engine: dict[str, Any] = {"kv_cache": {"enable_prefix_caching": False}}  # random prompts share nothing
    if preset == "sglang-0.5":  # whole prompts, up to so many tokens at a time
        engine |= {"max_model_len": longest, "max_num_batched_tokens": max(8192, longest, clients)}
    elif not inferencex:
        # The gap analysis: one prompt and a token for every client. With more, TTFT would grow with the clients, whose
        # prompts would come in groups for ever; with less, 128 clients with prompts of 4096 tokens would queue.
        engine["max_num_batched_tokens"] = isl + clients
    elif preset.startswith("vllm"):
        engine |= {"max_num_batched_tokens": max(8192, clients), "max_num_seqs": clients}
    token_s, request_s = (_RANDOM_TOKEN_S, _INFERENCEX_REQUEST_S) if inferencex else (0.0, _GAP_REQUEST_S)
    engine["host"] = {"prompt_token_s": token_s, "request_s": request_s.get(preset, 0.0)}
    return engine


def _doubt(row: Row, server: Server, inferencex: bool) -> str:
    """Why a point cannot be what the table says it is, if so."""
    if text(row, "conc_provenance") not in ("", "stated"):
        return "its concurrency was read from a column of batch sizes"
    if inferencex and number(row, "ttft_ms") > _MOST_WAITING * number(row, "e2e_ms_derived"):
        return "most clients wait: the server had fewer seats than its configuration says"
    if server.dp == server.tp > 1:
        return "as fast as the same server with a quarter of the GPUs: tensor and data parallelism are one and the same"
    if server.version == "1.1.0rc2.post2" and "DeepSeek" in server.model:
        return "up to twice as fast as the same server elsewhere in the table: multi-token prediction is likely"
    point = (server.tp, *(int(number(row, key)) for key in ("isl", "osl", "concurrency")))
    if server.gpu == "H100" and "gpt-oss" in server.model and server.engine == "vllm" and point in _OUTLIERS:
        return "lies apart from all its neighbours"
    return ""


def beyond_silicon(cases: Sequence[Case]) -> list[Case]:
    """Series in which some point multiplies faster than any GEMM that was ever measured are doubted as a whole."""
    impossible = {_series(case) for case in cases if _peak_share(case) > _MOST_OF_PEAK}
    why = "some points of its series multiply faster than any measured GEMM"
    return [replace(case, doubt=case.doubt or why) if _series(case) in impossible else case for case in cases]


def _series(case: Case) -> tuple[str, ...]:
    return tuple(case.labels[key] for key in ("gpu", "model", "class", "engine"))


def _peak_share(case: Case) -> float:
    """Share of the tensor cores' FP8 peak that a dense model's matrices take, from the measured throughput alone."""
    if case.labels["class"] != "dense" or not case.parts:
        return 0.0
    model = find_model(case.labels["model"], 0, case.path.parent).architecture
    osl, per_gpu = case.nominal.osl, case.parts[0].measured.get("out_tok_s_gpu_derived", 0.0)
    tokens = per_gpu * (1 + case.traffic.input_tokens.max() / osl) if case.traffic is not None else 0.0
    peak = max(map(float, load_gpu(find("hardware", hardware(case.labels["gpu"]))).tensor_flops.values()))
    return 2.0 * model.num_parameters * tokens / peak


def _server(row: Row) -> Server:
    dtype = text(row, "dtype").removesuffix(" (inferred)")
    engine = text(row, "engine")
    quantised = dtype.startswith("fp8")
    dense = text(row, "arch_class") != "moe"
    tp, dp = int(number(row, "tp")), int(number(row, "attn_dp", 1))
    return Server(
        text(row, "gpu"), text(row, "model"), engine, text(row, "engine_version"), dtype, tp,
        pp=max(int(number(row, "n_gpus")) // (tp * dp), 1), dp=dp, ep=max(int(number(row, "moe_ep", 1)), 1),
        block_scales=not dense or text(row, "gemm_quant") == "fp8_block",
        # TensorRT-LLM's FP8 recipe for dense models includes the cache (modelopt's default).
        kv_dtype="fp8" if quantised and dense and engine.startswith("trt") else "",
    )  # fmt: skip
