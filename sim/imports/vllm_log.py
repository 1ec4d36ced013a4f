"""The start-up log of a vLLM server: the facts a simulation of that very server needs, KV blocks above all.

Wordings of vLLM 0.6 to 0.15 (V0 and V1 engines), from memory of its sources; the patterns are liberal, and a fact whose
wording has changed is simply absent. Colours, logger prefixes (`INFO 11-20 12:00:00 [kv_cache_utils.py:1087]`) and
process prefixes (`(EngineCore_0 pid=123)`) do not matter. Ranks of one server print the same line each: where their
sizes differ the smallest counts, since the engine allocates what every rank can hold.

The number of KV blocks decides almost everything under load, and the server's own number includes what no formula
knows (activation peak, CUDA graphs, NCCL buffers); so it is worth pasting.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sim.errors import ConfigError
from sim.specs.schemes import SCHEMES

_SMALLEST_BLOCK = 8  # with groups of layers (hybrid models) tokens / blocks is less than a block
_DEFAULT_BLOCK_SIZE = 16  # vLLM on CUDA, unless an attention backend or --block-size says otherwise

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"

# What the server's own messages state, most trusted wording first: the first one found anywhere in the log wins.
_STATED: Mapping[str, tuple[str, ...]] = {
    "num_gpu_blocks": (
        rf"num_gpu_blocks=\d+ with num_gpu_blocks_override={_NUMBER}",
        rf"num_gpu_blocks is:?\s*{_NUMBER}",
        rf"#\s*(?:GPU|cuda) blocks:\s*{_NUMBER}",
        rf"\bnum_gpu_blocks['\"]?\s*[=:]\s*{_NUMBER}",
    ),
    "kv_cache_tokens": (rf"KV cache size:\s*{_NUMBER} tokens",),
    "block_size": (rf"(?:attention|kv cache) block size to\s*{_NUMBER}",),
    "max_num_batched_tokens": (rf"Chunked prefill is enabled with max_num_batched_tokens={_NUMBER}",),
    "max_model_len": (rf"Using max model len\s*{_NUMBER}", rf"Maximum concurrency for\s*{_NUMBER} tokens per request"),
    "max_concurrency": (rf"Maximum concurrency for [\d,]+ tokens per request:\s*{_NUMBER}x",),
    "gpu_memory_utilization": (rf"x gpu_memory_utilization \({_NUMBER}\)",),
    "weights_gib": (
        rf"Model loading took\s*{_NUMBER}\s*Gi?B",
        rf"Loading model weights took\s*{_NUMBER}\s*Gi?B",
        rf"model weights take\s*{_NUMBER}\s*Gi?B",
    ),
    "kv_cache_gib": (
        rf"Available KV cache memory:\s*{_NUMBER}\s*Gi?B",
        rf"reserved for KV Cache is\s*{_NUMBER}\s*Gi?B",
    ),
    "activation_peak_gib": (rf"PyTorch activation peak memory takes\s*{_NUMBER}\s*Gi?B",),
    "non_torch_gib": (rf"non_torch_memory takes\s*{_NUMBER}\s*Gi?B",),
    "cuda_graphs_gib": (rf"Graph capturing finished in .*?took\s*{_NUMBER}\s*Gi?B",),
}
_ENGINE_LINE = re.compile(
    r"Initializing an? (?P<v1>V1 )?LLM engine \(v?(?P<version>[^)\s]+)\) with config:?(?P<config>.*)"
)
_API_VERSION = re.compile(r"vLLM API server version\s+v?([\w.+-]+)")
_ARGUMENTS = re.compile(r"non-default args:\s*(\{.*\})|\bargs: Namespace\((.*)\)")
_PAIR = re.compile(r"""(?<![\w.])['"]?(\w+)['"]?\s*[=:]\s*('[^']*'|"[^"]*"|[^\s,(){}\[\]]+)""")

# our field, and its name in the engine's configuration line and among the server's arguments; the last one found counts
_NAMED = (
    ("model", "model_tag"),
    ("model", "model"),
    ("tensor_parallel_size", "tensor_parallel_size"),
    ("pipeline_parallel_size", "pipeline_parallel_size"),
    ("data_parallel_size", "data_parallel_size"),
    ("max_num_seqs", "max_num_seqs"),
    ("max_num_batched_tokens", "max_num_batched_tokens"),
    ("gpu_memory_utilization", "gpu_memory_utilization"),
    ("max_model_len", "max_model_len"),
    ("max_model_len", "max_seq_len"),
    ("block_size", "block_size"),
    ("dtype", "dtype"),
    ("kv_cache_dtype", "kv_cache_dtype"),
    ("quantization", "quantization"),
    ("enable_prefix_caching", "enable_prefix_caching"),
    ("enable_chunked_prefill", "enable_chunked_prefill"),
    ("enable_chunked_prefill", "chunked_prefill_enabled"),
    ("enforce_eager", "enforce_eager"),
)


@dataclass(frozen=True)
class ServerFacts:
    """What a server said about itself when it started; None where it did not. Names are vLLM's.

    `num_gpu_blocks` is per replica (what its scheduler hands out), memory sizes are GiB per GPU. `engine` is "v0" or
    "v1". `notes` say what was derived or assumed here.
    """

    engine_version: str | None = None
    engine: str | None = None
    model: str | None = None
    num_gpu_blocks: int | None = None
    kv_cache_tokens: int | None = None
    block_size: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_concurrency: float | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool | None = None
    weights_gib: float | None = None
    kv_cache_gib: float | None = None
    activation_peak_gib: float | None = None
    non_torch_gib: float | None = None
    cuda_graphs_gib: float | None = None
    notes: tuple[str, ...] = ()

    def to_overrides(self) -> dict[str, Any]:
        """The facts a scenario has a key for, as `a.b.c` -> value, as for `--set`; what is unknown is absent.

        Memory sizes are left out (the blocks already contain them), and so is a quantisation method whose formats only
        the checkpoint tells (`compressed-tensors`).
        """
        overrides = {
            "model": self.model,
            "engine.num_gpu_blocks_override": self.num_gpu_blocks,
            "engine.kv_cache.block_size": self.block_size,
            "engine.kv_cache.enable_prefix_caching": self.enable_prefix_caching,
            "engine.tensor_parallel_size": self.tensor_parallel_size,
            "engine.pipeline_parallel_size": self.pipeline_parallel_size,
            "engine.max_num_seqs": self.max_num_seqs,
            "engine.max_num_batched_tokens": self.max_num_batched_tokens,
            "engine.gpu_memory_utilization": self.gpu_memory_utilization,
            "engine.max_model_len": self.max_model_len,
            "engine.kv_cache_dtype": None if self.kv_cache_dtype == "auto" else self.kv_cache_dtype,
            "engine.quantization": self.quantization if self.quantization in SCHEMES else None,
        }
        return {key: value for key, value in overrides.items() if value is not None}


_TYPES = {field.name: str(field.type).split(" ")[0] for field in fields(ServerFacts)}


def read_log(path: str | Path) -> ServerFacts:
    """The facts in a log file. Raises ConfigError when it cannot be read or nothing in it is recognised."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    return parse_log(text, path)


def parse_log(text: str, path: str | Path | None = None) -> ServerFacts:
    """The same from a string. Raises ConfigError as well when the log tells of servers with different models."""
    text = _ANSI.sub("", text)
    configs, arguments = _engine_configs(text), _arguments(text)
    stated, notes = _stated(text)
    found = _version(text) | _named(arguments, path) | _named(configs, path) | stated
    # An override among the arguments is what the scheduler gets, whatever the memory would have allowed.
    override = _common("num_gpu_blocks", "num_gpu_blocks_override", arguments, path)
    found |= {} if override is None else {"num_gpu_blocks": override}
    if not found:
        raise ConfigError("is not the start-up log of a vLLM server: no line was recognised", file=path)
    notes += _derive_blocks(found)
    return ServerFacts(**found, notes=tuple(notes))


def _version(text: str) -> dict[str, Any]:
    engine, server = _ENGINE_LINE.search(text), _API_VERSION.search(text)
    if engine:
        return {"engine_version": engine["version"], "engine": "v1" if engine["v1"] else "v0"}
    return {"engine_version": server[1]} if server else {}


def _engine_configs(text: str) -> list[dict[str, Any]]:
    return [_pairs(match["config"]) for match in _ENGINE_LINE.finditer(text)]


def _arguments(text: str) -> list[dict[str, Any]]:
    found = []
    for literal, namespace in _ARGUMENTS.findall(text):
        try:
            value = ast.literal_eval(literal) if literal else None
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # the repr of an object in it
            value = None
        found.append(value if isinstance(value, dict) else _pairs(literal or namespace))
    return found


def _pairs(text: str) -> dict[str, Any]:
    """`name=value` and `'name': value`, as text; the first of a name counts, nested configurations come later."""
    found: dict[str, Any] = {}
    for name, value in _PAIR.findall(text):
        found.setdefault(name, value.strip("'\""))
    return found


def _named(sources: Sequence[Mapping[str, Any]], path: str | Path | None) -> dict[str, Any]:
    found = {}
    for name, theirs in _NAMED:
        value = _common(name, theirs, sources, path)
        if value is not None:
            found[name] = value
    return found


def _common(name: str, theirs: str, sources: Sequence[Mapping[str, Any]], path: str | Path | None) -> Any:
    """What the sources say of `name`, None when nothing. Where they differ, the smallest size or the first word."""
    values = [value for source in sources if (value := _typed(name, source.get(theirs))) is not None]
    if len(set(values)) > 1 and name in ("model", "tensor_parallel_size"):
        shown = ", ".join(map(str, dict.fromkeys(values)))
        raise ConfigError(f"tells of several servers ({shown}); keep the lines of one", file=path, key=name)
    if not values:
        return None
    return min(values) if isinstance(values[0], (int, float)) and not isinstance(values[0], bool) else values[0]


def _typed(name: str, value: Any) -> Any:
    """`value` as the type of the field `name`, or None when it is not one."""
    text = str(value).strip().removeprefix("torch.")
    if value is None or text in ("None", ""):
        return None
    kind = _TYPES[name]
    if kind == "bool":
        return {"True": True, "False": False}.get(text)
    if kind == "str":
        return text
    try:
        size = int(text) if kind == "int" else float(text)
    except ValueError:
        return None
    return size if 0 < size < math.inf else None  # no size of a working server is 0


def _stated(text: str) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    notes = []
    for name, patterns in _STATED.items():
        wordings = (re.findall(pattern, text) for pattern in patterns)
        values = {_typed(name, word.replace(",", "")) for word in next((w for w in wordings if w), [])} - {None}
        if values:
            found[name] = min(values)
        if len(values) > 1 and _TYPES[name] == "int":
            shown = ", ".join(map(str, sorted(values)))
            notes.append(f"the ranks state different {name} ({shown}); the smallest counts")
    if "Chunked prefill is enabled" in text:
        found["enable_chunked_prefill"] = True
    return found, notes


def _derive_blocks(found: dict[str, Any]) -> list[str]:
    """Complete blocks, tokens and block size from each other, in place; the notes say what was assumed."""
    notes = []
    blocks, tokens = found.get("num_gpu_blocks"), found.get("kv_cache_tokens")
    concurrency, length = found.get("max_concurrency"), found.get("max_model_len")
    if blocks is None and tokens is None and concurrency is not None and length is not None:
        tokens = found["kv_cache_tokens"] = int(concurrency * length)
        notes.append(f"KV cache of about {tokens} tokens, from {concurrency:g} requests of {length} tokens")
    if blocks and tokens and "block_size" not in found and tokens % blocks == 0 and tokens // blocks >= _SMALLEST_BLOCK:
        found["block_size"] = tokens // blocks
    if blocks is None and tokens is not None:
        if "block_size" not in found:
            found["block_size"] = _DEFAULT_BLOCK_SIZE
            notes.append(f"the log does not state the block size; {_DEFAULT_BLOCK_SIZE} tokens are assumed")
        found["num_gpu_blocks"] = tokens // found["block_size"]
    return notes
