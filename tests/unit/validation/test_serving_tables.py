"""Tables of measured serving runs: how rows become scenarios and traffic, and what happens to odd ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import ConfigError
from sim.specs.hf_config import load_model
from sim.validation.serving.bench import arguments
from sim.validation.serving.case import Case
from sim.validation.serving.predict import predict
from sim.validation.serving.read import read_cases
from sim.validation.serving.servers import engine_keys, hardware, quantization

CLOSED = (
    "id,gpu,n_gpus,tp,attn_dp,moe_tp,moe_ep,model,arch_class,dtype,gemm_quant,engine,engine_version,isl,osl,"
    "concurrency,ttft_ms,tpot_ms,e2e_ms_derived,out_tok_s_gpu_derived,dataset,suspect\n"
)
LLAMA = "meta-llama/Llama-3.1-8B"


def closed_row(name: str = "a", model: str = LLAMA, **changes: object) -> str:
    """A row of closed_loop_runs.csv: four clients of a dense model on one GPU."""
    cells: dict[str, object] = {
        "id": name, "gpu": "H100", "n_gpus": 1, "tp": 1.0, "attn_dp": "", "moe_tp": 1.0, "moe_ep": 1.0, "model": model,
        "arch_class": "dense", "dtype": "bf16", "gemm_quant": "", "engine": "vllm", "engine_version": "0.18.0",
        "isl": 100, "osl": 20, "concurrency": 4.0, "ttft_ms": 30.0, "tpot_ms": 7.0, "e2e_ms_derived": 163.0,
        "out_tok_s_gpu_derived": 490.8, "dataset": "InferenceX/InferenceMAX dump", "suspect": "",
    }  # fmt: skip
    return ",".join(str(value) for value in (cells | changes).values()) + "\n"


def read(folder: Path, name: str, text: str) -> list[Case]:
    """The cases of a table with this text."""
    path = folder / name
    path.write_text(text)
    return read_cases([path])


def test_a_closed_loop_row_is_its_client(tmp_path: Path) -> None:
    """InferenceX sends ten prompts per client, of 0.8 to 1.0 of the nominal lengths, to a server with as many seats."""
    (case,) = read(tmp_path, "closed.csv", CLOSED + closed_row())
    traffic = case.traffic
    assert traffic is not None
    assert (len(traffic), traffic.client, traffic.concurrency) == (40, "closed_loop", 4)
    assert traffic.input_tokens.min() >= 80 and traffic.input_tokens.max() <= 100
    assert case.scenario["engine"]["max_num_seqs"] == 4
    assert case.scenario["hardware"] == "h100-sxm"
    assert case.parts[0].measured == {"ttft": 30.0, "tpot": 7.0, "e2e_derived": 163.0, "out_tok_s_gpu_derived": 490.8}


def test_layouts_come_from_the_table(tmp_path: Path) -> None:
    """Attention groups, expert groups, and the stages that the number of GPUs implies."""
    row = closed_row(model="openai/gpt-oss-120b", n_gpus=16, tp=4, attn_dp=2, moe_ep=8, dtype="fp4")
    (case,) = read(tmp_path, "closed.csv", CLOSED + row)
    keys = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "expert_parallel_size")
    assert [case.scenario["engine"][key] for key in keys] == [4, 2, 2, 8]


def test_a_bad_row_does_not_cost_the_others(tmp_path: Path) -> None:
    """Unknown models, GPUs and engines, and missing numbers are reasons, not errors; suspect rows are apart."""
    rows = (
        closed_row("ok"), closed_row("model", model="nobody/Nothing-7B"), closed_row("gpu", gpu="TPU"),
        closed_row("engine", engine="lmdeploy"), closed_row("number", isl=""),
        closed_row("suspect", suspect="parallel mapping inconsistent"),
    )  # fmt: skip
    cases = {case.id: case for case in read(tmp_path, "closed.csv", CLOSED + "".join(rows))}
    assert not cases["ok"].problem
    for name, word in (("model", "Nothing-7B"), ("gpu", "TPU"), ("engine", "lmdeploy"), ("number", "isl")):
        assert word in cases[name].problem
        assert not cases[name].suspect
        assert predict(cases[name]).problem == cases[name].problem
    assert cases["suspect"].suspect


def test_models_beside_the_table_fill_the_catalogue(tmp_path: Path) -> None:
    """A model that nobody knows is built from models.json beside the table, and simulated."""
    facts = {
        "config_from": "public config.json", "hidden_size": 1024, "intermediate_size": 2048, "model_type": "llama",
        "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 32000, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "models.json").write_text(json.dumps({"new/Tiny": facts}))
    (case,) = read(tmp_path, "closed.csv", CLOSED + closed_row(model="new/Tiny"))
    predicted = predict(case)
    assert not predicted.problem
    assert predicted.parts[0]["tpot"] > 0


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    """A file whose columns are none of the formats is an error that says so; a folder without tables as well."""
    with pytest.raises(ConfigError, match="none of the known tables"):
        read(tmp_path, "x.csv", "a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no table"):
        read_cases([tmp_path])


def open_run(**changes: Any) -> dict[str, Any]:
    """An entry of serving_runs.json: two stages of a small model with published requests."""
    return {
        "id": "run", "gpu": "H100", "tp": 1, "dp": 1, "ep": 1, "model": LLAMA, "dtype": "16-bit", "flags": [],
        "engine": {"name": "vLLM", "version": "0.15.1", "max_num_batched_tokens": 2048, "max_num_seqs": 128,
                   "max_model_len": 4096, "prefix_caching": True, "block_size": 16, "kv_blocks_gpu": 7000},
        "workload": {"kind": "codegen", "distinct_prompts": 100, "output_len_generated": 20,
                     "stages": [{"rate_req_s": 10, "duration_s": 15}, {"rate_req_s": 20, "duration_s": 5}]},
        "measured": {"summary": {"ttft_ms": {"mean": 20.0, "p99": 500.0}, "e2e_ms": {"mean": 200.0, "p99": 900.0}},
                     "stages": [{"stage": 0, "tpot_ms": {"mean": 7.0}}, {"stage": 1, "tpot_ms": {"mean": 8.0}}]},
        **changes,
    }  # fmt: skip


def test_stages_are_drawn_as_the_client_draws_them(tmp_path: Path) -> None:
    """Each stage has exactly rate x duration requests; 100 prompts come again in a cycle, and clients give up."""
    (case,) = read(tmp_path, "serving_runs.json", json.dumps([open_run()]))
    traffic = case.traffic
    assert traffic is not None and traffic.prompt_id is not None and traffic.arrival_s is not None
    assert [(part.stage, part.first, part.last) for part in case.parts] == [(-1, 0, 250), (0, 0, 150), (1, 150, 250)]
    assert traffic.prompt_id[:3].tolist() == traffic.prompt_id[100:103].tolist()
    assert traffic.input_tokens[5] == traffic.input_tokens[105]
    assert traffic.timeout_s == 300
    assert traffic.arrival_s[149] == pytest.approx(15)
    assert case.scenario["engine"]["num_gpu_blocks_override"] == 7000
    assert case.overloaded is False


def test_tails_leave_the_warm_up_out(tmp_path: Path) -> None:
    """With every request's times at hand, the measured p99 is that from request 100 on."""
    folder = tmp_path / "requests"
    folder.mkdir()
    lines = ["i,arrival_s,prompt_id,in_tok,out_tok_retokenised,error,ttft_ms,e2e_ms"]
    lines += [f"{i},{i / 10},{i % 100},{590 if i else ''},19,{0 if i else 1},{20},{900 if i < 100 else 210}"
              for i in range(250)]  # fmt: skip
    (folder / "run.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (case,) = read(tmp_path, "serving_runs.json", json.dumps([open_run()]))
    assert case.parts[0].measured["e2e_p99"] == pytest.approx(210)
    assert case.parts[0].tails_from == 100
    assert case.traffic is not None
    assert case.traffic.input_tokens[0] == 590  # a failed request reports no tokens: its prompt is known from others
    assert np.all(case.traffic.output_tokens == 20)


def test_whole_prompts_are_found_again(tmp_path: Path) -> None:
    """After the first hundred, prompts are in the prefix cache but for their last block: a first token comes sooner."""
    cold, warm = (
        read(
            tmp_path, "serving_runs.json", json.dumps([open_run(engine={**open_run()["engine"], "prefix_caching": on})])
        )
        for on in (False, True)
    )
    ttft = [predict(cases[0]).parts[0]["ttft_mean"] for cases in (cold, warm)]
    assert ttft[1] < ttft[0]


@pytest.mark.parametrize(
    ("failed", "flags", "ttft", "overloaded"),
    [(0, [], 20.0, False), (30, [], 20.0, True), (0, ["overload"], 20.0, True), (0, ["saturated"], 150.0, True)],
)
def test_overload_is_what_was_measured(
    tmp_path: Path, failed: int, flags: list[str], ttft: float, overloaded: bool
) -> None:
    """A flag of the publisher, clients that gave up, or a mean wait of a quarter of the request's time."""
    summary = {"n_ok": 100, "n_fail": failed, "ttft_ms": {"mean": ttft}, "e2e_ms": {"mean": 200.0}}
    run = open_run(flags=flags, measured={"summary": summary, "stages": []})
    (case,) = read(tmp_path, "serving_runs.json", json.dumps([run]))
    assert case.overloaded is overloaded


def test_command_lines_are_read_in_every_engines_spelling() -> None:
    """The options of vLLM, SGLang and TensorRT-LLM that have a key of ours; headings of a study count as well."""
    assert arguments("vllm serve m -tp 4 --max-num-batched-tokens 4096") == {"max_num_batched_tokens": 4096}
    assert arguments("launch_server --max-running-requests=64 --chunked-prefill-size 2048") == {
        "max_num_seqs": 64, "max_num_batched_tokens": 2048,
    }  # fmt: skip
    assert arguments("trtllm-serve m --max_num_tokens=16384") == {"max_num_batched_tokens": 16384}
    assert arguments("vllm serve m", "Batch Token 48k and Seqs 768") == {
        "max_num_batched_tokens": 49152, "max_num_seqs": 768,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("label", "name"),
    [("H100", "h100-sxm"), ("A100-80GB", "a100-sxm-80gb"), ("A100 80GB", "a100-sxm-80gb"), ("RTX4090", "rtx-4090"),
     ("RTX PRO 6000", "rtx-pro-6000"), ("L40S", "l40s"), ("NVIDIA H200 SXM", "h200-sxm")],
)  # fmt: skip
def test_gpus_are_known_by_many_names(label: str, name: str) -> None:
    """The labels of all tables, with and without form factor and memory."""
    assert hardware(label) == name


def test_engines_and_versions_choose_the_preset() -> None:
    """Asynchronous scheduling from vLLM 0.14; the C++ runtime before TensorRT-LLM 1.0; no version means the newest."""
    cases = {("vLLM", "0.11.0"): "vllm-0.9", ("vllm", "0.16.0"): "vllm-v1", ("vLLM", ""): "vllm-v1",
             ("vLLM", "0.15.1"): "vllm-0.15", ("SGLang", "0.5.3"): "sglang-0.5",
             ("TensorRT-LLM (Triton backend)", "0.14.0"): "tensorrt-llm-0.17",
             ("trtllm", "1.0.0rc3"): "tensorrt-llm-1.0", ("trtllm", "gpt-oss-dev"): "tensorrt-llm-1.0"}  # fmt: skip
    assert {given: engine_keys(*given)["preset"] for given in cases} == cases


def test_a_quantised_checkpoint_keeps_its_own_format() -> None:
    """A table's "fp4" or "fp8" says nothing new about a checkpoint that is quantised; others are quantised so."""
    assert quantization("fp4", load_model("openai/gpt-oss-120b")) is None
    assert quantization("fp8 (weights, activations, KV)", load_model(LLAMA)) == "fp8"
    assert quantization("bf16", load_model(LLAMA)) is None
    with pytest.raises(ConfigError, match="unknown number format"):
        quantization("base3", load_model(LLAMA))


BENCH = (
    "id,gpu,tp,dp,pp,speculative,model,engine,engine_version,serve_cmd,variant,section,workload,n_requests,in_tok_mean,"
    "out_tok_mean,arrival,req_s,out_tok_s,total_tok_s,ttft_mean,tpot_mean,itl_mean\n"
)


def bench_row(name: str, **changes: object) -> str:
    """A row of bench_serve_runs.csv: eight clients, each of which gets an answer in 2.1 seconds."""
    cells: dict[str, object] = {
        "id": name, "gpu": "H100", "tp": 1, "dp": 1, "pp": 1, "speculative": "", "model": LLAMA, "engine": "vLLM",
        "engine_version": "0.11.0", "serve_cmd": "vllm serve", "variant": "", "section": "", "workload": "sharegpt",
        "n_requests": 100, "in_tok_mean": 220, "out_tok_mean": 201.5, "arrival": "closed loop, max concurrency 8",
        "req_s": 3.8, "out_tok_s": 760.0, "total_tok_s": 1600.0, "ttft_mean": 60.0, "tpot_mean": 10.2, "itl_mean": 10.2,
    }  # fmt: skip
    return ",".join(f'"{value}"' for value in (cells | changes).values()) + "\n"


def test_figures_that_contradict_themselves_are_doubted(tmp_path: Path) -> None:
    """Eight clients at a third of the rate that their latencies imply; and one measurement under two GPUs."""
    rows = (
        bench_row("good"), bench_row("slow", req_s=1.2), bench_row("one", req_s=3.9),
        bench_row("two", req_s=3.9, gpu="A100"),
        bench_row("draft", speculative="yes"),
    )  # fmt: skip
    cases = {case.id: case for case in read(tmp_path, "bench.csv", BENCH + "".join(rows))}
    assert not cases["good"].doubt
    assert "Little" in cases["slow"].doubt
    assert cases["one"].doubt == cases["two"].doubt == "the same figures stand under another GPU"
    assert cases["draft"].suspect
