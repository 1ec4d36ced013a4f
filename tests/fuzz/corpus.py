"""What the fuzzer starts from: every kind of file a user may hand to the program, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sim.build import build
from sim.documents import parse_value
from sim.imports.read import read_run
from sim.imports.vllm_log import read_log
from sim.planner.sweep_spec import load_sweep
from sim.scenario import load_scenario, parse_setting
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.workloads.traces import read_trace

ROOT = Path(__file__).resolve().parents[2]

_TRACES: Mapping[str, str] = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2225670,879,55\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n",
    "plain.csv": "arrival_s,input_tokens,output_tokens\n0,100,10\n0.5,200,20\n1.25,7,3\n",
    "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.1,100,10\n0.7,200,20\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 1300, "output_length": 9, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 27482, "input_length": 700, "output_length": 90, "hash_ids": [0, 3]}\n',
    "bailian.jsonl": '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 40, "output_length": 9, '
    '"type": "text", "turn": 1, "hash_ids": [1, 2, 3]}\n',
    "sharegpt.json": '[{"id": "a", "conversations": [{"from": "human", "value": "hello there"}, '
    '{"from": "gpt", "value": "hi, how are you today?"}]}]',
}
_SCENARIO: Mapping[str, Any] = {
    "name": "fuzz",
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 20,
        "arrival": {"kind": "poisson", "rate": 8},
        "input_tokens": {"kind": "lognormal", "mean": 1155, "std": 1100, "max": 14050},
        "output_tokens": {"kind": "uniform", "min": 3, "max": 90},
        "shared_prefix": {"tokens": 256, "groups": 20},
        "client_timeout_s": 30,
    },
    "engine": {
        "preset": "vllm-v1",
        "scheduler": {"kind": "chunked", "long_prefill_token_threshold": 512},
        "scheduling_policy": "fcfs",
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 16384,
        "kv_cache": {"allocator": "paged", "block_size": 16, "enable_prefix_caching": True},
        "quantization": {"weights": "fp8", "activations": "fp8", "kv_cache": "fp8"},
        "tensor_parallel_size": 2,
        "host": {"step_s": "1 ms"},
    },
    "replicas": {"count": 2, "router": "round_robin"},
    "slo": {"ttft_p99_ms": 500, "tpot_p99_ms": 50},
    "seed": 3,
}


@dataclass(frozen=True)
class Target:
    """A reader of files: what is valid for it, and how it is called with a file (and others beside it)."""

    name: str
    seeds: tuple[tuple[str, bytes], ...]
    """File names and contents; the name's ending may decide who reads it."""
    read: Callable[[Path], object]
    weight: int = 1
    beside: Mapping[str, str] = field(default_factory=dict)


def _yaml(data: Any) -> bytes:
    return yaml.safe_dump(data, sort_keys=False).encode()


def _files(pattern: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(ROOT.glob(pattern)):
        if path.is_file() and path.stat().st_size < 200_000:
            yield path.name, path.read_bytes()


def _build(path: Path) -> object:
    return build(load_scenario(path))


def _workload(path: Path) -> object:
    return build(load_scenario({"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": str(path)}))


def _setting(path: Path) -> object:
    text = path.read_bytes().decode(errors="surrogateescape")
    key, value = parse_setting(text)
    parse_value(text)
    return load_scenario("quickstart", {key: value})


def _sweep(path: Path) -> object:
    return load_sweep(path, {})


def _configs() -> Iterator[tuple[str, bytes]]:
    catalogue = json.loads((ROOT / "sim/data/models/catalogue.json").read_text())
    entries = catalogue.values() if isinstance(catalogue, dict) else catalogue
    for i, entry in enumerate(entries):
        config = entry.get("config", entry) if isinstance(entry, dict) else entry
        if isinstance(config, dict):
            yield f"config{i}.json", json.dumps(config).encode()


def targets() -> list[Target]:
    """Everything that reads what somebody else has written."""
    return [
        Target("scenario", (("s.yaml", _yaml(_SCENARIO)), *_files("scenarios/*.yaml")), _build, weight=3),
        Target("sweep", tuple(_files("scenarios/sweeps/*.yaml")), _sweep),
        Target("hardware profile", tuple(_files("hardware_profiles/*.yaml")), load_gpu, weight=2),
        Target("workload", tuple(_files("workloads/*.yaml")), _workload, weight=2),
        Target("model config", tuple(_configs()), load_model, weight=3),
        Target("trace", tuple((name, text.encode()) for name, text in _TRACES.items()), read_trace, weight=5),
        Target(
            "benchmark result",
            tuple(_files("tests/data/imports/*.json*")) + tuple(_files("tests/data/imports/*/*.json")),
            read_run,
            weight=2,
        ),
        Target("server log", tuple(_files("tests/data/imports/*.log")), read_log),
        Target("--set", tuple((f"{i}.txt", text.encode()) for i, text in enumerate((
            "workload.arrival.rate=12.5", "engine.kv_cache={allocator: paged, block_size: 16}", "seed=3",
            "engine.scheduler={kind: dynamic, max_wait_ms: 20}", "hardware=a100-sxm-80gb",
        ))), _setting),
    ]  # fmt: skip
