"""closed_loop_runs.csv: fixed numbers of clients, InferenceX dumps and the gap analysis of aiconfigurator."""

from __future__ import annotations

from pathlib import Path

from sim.validation.serving.case import Case, Nominal, Traffic
from sim.validation.serving.table import Row, Server, frame, labels, measured, number, one_part, same, text, uniform

COLUMNS = ("isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "e2e_ms_derived")
_METRICS = {
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "e2e_ms_derived": "e2e_derived",
    "out_tok_s_gpu_derived": "out_tok_s_gpu_derived",
}
_ROUNDS = 10
"""Requests per client: `--num-prompts 10*C` of the InferenceX client."""
_INFERENCEX_LOW = 0.8
"""InferenceX draws lengths evenly from [0.8, 1.0] of the nominal ones (`--random-range-ratio 0.8`)."""
_RANDOM_TOKEN_S = 12e-6
"""Of InferenceX's servers per prompt token, one request after the other: their prompts are random tokens turned into
text, which takes longer to tokenise than text that people write. Fitted over vLLM 0.16, 0.18 and TensorRT-LLM rows
(9 to 17 us by engine and version)."""
_INFERENCEX_REQUEST_S = {"vllm-v1": 0.016, "vllm-0.9": 0.016, "sglang-0.5": 0.18, "tensorrt-llm-1.0": 0.055,
                         "tensorrt-llm-0.17": 0.055}  # fmt: skip
"""What its servers and client add to every TTFT, at any load and for all models of an engine alike; fitted. Why
SGLang's is so long is not known: the same server elsewhere answers in 40 ms."""
_GAP_ANALYSIS_BUDGET = 2048
"""What vLLM's budget must have been in the gap analysis, by its TTFT at 8 clients: 126 ms at 1024 tokens on tp 4."""


def read_row(name: str, row: Row, path: Path) -> Case:
    """A point of a closed loop. Raises ConfigError for what is not known."""
    isl, osl, clients = (int(number(row, key)) for key in ("isl", "osl", "concurrency"))
    if suspect := text(row, "suspect"):
        case = Case(name, path.stem, labels(_server(row)), path)
        return case.without(f"marked as suspect by the table: {suspect}", suspect=True)
    inferencex = text(row, "dataset").startswith("Inference")
    server = _server(row)
    scenario, model = frame(server, isl + osl, path)
    engine = scenario["engine"]
    engine["kv_cache"] = {"enable_prefix_caching": False}  # random prompts share nothing
    if engine["preset"].startswith("vllm"):
        engine["max_num_batched_tokens"] = max(8192 if inferencex else _GAP_ANALYSIS_BUDGET, clients)
        if inferencex:
            engine["max_num_seqs"] = clients
    if engine["preset"] == "sglang-0.5":  # whole prompts, up to so many tokens at a time
        engine["max_model_len"] = isl + osl
        engine["max_num_batched_tokens"] = max(8192, isl + osl, clients)
    if inferencex:
        engine["host"] = {"prompt_token_s": _RANDOM_TOKEN_S, "request_s": _INFERENCEX_REQUEST_S[engine["preset"]]}
    count = _ROUNDS * clients
    low = _INFERENCEX_LOW if inferencex else 1.0
    traffic = Traffic(
        uniform(low * isl, isl, count, "input") if inferencex else same(isl, count),
        uniform(low * osl, osl, count, "output") if inferencex else same(osl, count),
        "closed_loop",
        concurrency=clients,
    )
    return Case(
        name, path.stem, labels(server, model), path, scenario, traffic, model.config,
        one_part(measured(row, _METRICS), count), Nominal(osl, clients, int(number(row, "n_gpus"))),
    )  # fmt: skip


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
