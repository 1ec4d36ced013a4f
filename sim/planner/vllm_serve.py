"""The command that starts the engine of a plan: a scenario's resolved engine settings as arguments of `vllm serve`.

Names and defaults: vLLM's `EngineArgs`, v0.18 and later.
"""

from __future__ import annotations

import shlex

from sim.setup import Setup

_VLLM_SCHEDULERS = ("chunked", "continuous")
_VLLM_ORDERS = ("fcfs", "priority")
_OTHERS = {
    "sglang": "SGLang",
    "tensorrt": "TensorRT-LLM",
    "orca": "Orca",
    "faster": "FasterTransformer",
    "hf": "static",
}


def vllm_serve(setup: Setup) -> tuple[list[str], list[str]]:
    """The words of the command, and what it cannot say: settings of the simulated engine that vLLM does not have."""
    engine = setup.engine
    kv = engine.kv_cache
    words = ["vllm", "serve", setup.architecture.name]
    sizes = {
        "--tensor-parallel-size": engine.tensor_parallel_size,
        "--pipeline-parallel-size": engine.pipeline_parallel_size,
        "--data-parallel-size": engine.data_parallel_size,
    }
    for flag, value in sizes.items():
        if value > 1:
            words += [flag, str(value)]
    if engine.expert_parallel_size > 1:
        words.append("--enable-expert-parallel")
    words += [
        "--max-num-seqs", str(engine.max_num_seqs), "--max-num-batched-tokens", str(engine.max_num_batched_tokens),
        "--max-model-len", str(engine.max_model_len),
        "--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}", "--block-size", str(kv["block_size"]),
        "--enable-prefix-caching" if kv["enable_prefix_caching"] else "--no-enable-prefix-caching",
    ]  # fmt: skip
    if engine.scheduler["kind"] == "continuous":
        words.append("--no-enable-chunked-prefill")
    if engine.scheduling_policy["kind"] == "priority":
        words += ["--scheduling-policy", "priority"]
    if engine.long_prefill_token_threshold:
        words += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.async_scheduling:
        words.append("--async-scheduling")
    formats, notes = _formats(setup)
    if engine.speculative is not None:
        notes.append("speculative decoding is not in the command: add --speculative-config with your draft model")
    return words + formats, notes + _not_vllm(setup)


def command_line(words: list[str]) -> str:
    """The command as it is typed, an argument a line."""
    lines = [shlex.join(words[:3])]
    for word in words[3:]:
        if word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


def _formats(setup: Setup) -> tuple[list[str], list[str]]:
    """Number formats: fp8 is made when the model is loaded, other schemes need a checkpoint that has them.

    What the scenario does not ask for is the checkpoint's own, which needs no flag.
    """
    scheme, words, notes = setup.scheme, [], []
    if scheme.weights != scheme.base and setup.scenario.engine.quantization is not None:
        if scheme.weights.name == "fp8":
            words += ["--quantization", "fp8"]
        else:
            notes.append(f"serve a checkpoint of the model with {scheme.weights.name} weights: vLLM takes the scheme "
                         "from it")  # fmt: skip
    if scheme.kv_cache != scheme.base:
        words += ["--kv-cache-dtype", scheme.kv_cache.name]
    words += ["--dtype", setup.architecture.dtype]
    return words, notes


def _not_vllm(setup: Setup) -> list[str]:
    engine = setup.engine
    notes = []
    preset = engine.preset.split("-")[0]
    if preset in _OTHERS:
        notes.append(f"the simulated engine is {_OTHERS[preset]} (preset {engine.preset}), not vLLM")
    if engine.scheduler["kind"] not in _VLLM_SCHEDULERS:
        notes.append(f"vLLM has no scheduler {engine.scheduler['kind']}")
    if engine.scheduling_policy["kind"] not in _VLLM_ORDERS:
        notes.append(f"vLLM has no queue order {engine.scheduling_policy['kind']}")
    if engine.kv_cache["allocator"]["kind"] != "paged":
        notes.append(f"vLLM has no allocator {engine.kv_cache['allocator']['kind']}")
    return notes
