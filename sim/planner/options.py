"""The configurations among which a plan chooses: GPUs times the settings that are searched."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.documents import parse_value
from sim.errors import ConfigError
from sim.scenario import LoadedScenario
from sim.specs.hardware import Gpu, load_gpu
from sim.tariff import Price

SEARCHABLE: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "tp": ("engine.tensor_parallel_size", (1, 2, 4, 8)),
    "pp": ("engine.pipeline_parallel_size", (1, 2, 4)),
    "quantization": ("engine.quantization", ("fp8", "awq")),
    "kv_cache_dtype": ("engine.kv_cache_dtype", ("fp8",)),
    "max_num_seqs": ("engine.max_num_seqs", (64, 128, 256, 512, 1024)),
    "max_num_batched_tokens": ("engine.max_num_batched_tokens", (512, 1024, 2048, 4096, 8192, 16384)),
    "scheduler": ("engine.scheduler", ("chunked", "continuous", "sglang")),
    "prefix_caching": ("engine.kv_cache.enable_prefix_caching", (True, False)),
    "preset": ("engine.preset", ("vllm-v1", "sglang-0.5", "tensorrt-llm-1.0")),
}
"""Word of `--search` -> key of the scenario, and the values tried beside the one that is written."""


@dataclass(frozen=True)
class Search:
    """What is tried: keys of the scenario and their values, in order of preference."""

    dimensions: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Search:
        """`tp,quantization` and `engine.max_num_seqs=[64, 128]`, as on the command line. Raises ConfigError."""
        found: dict[str, tuple[Any, ...]] = {}
        for word in (word for text in texts for word in _words(text)):
            if "=" in word:
                key, values = _written(word)
            elif word in SEARCHABLE:
                key, values = SEARCHABLE[word]
            else:
                raise ConfigError("is nothing to search; also KEY=[value, ...] of any key", key="--search",
                                  value=word, choices=SEARCHABLE)  # fmt: skip
            found[key] = values
        return cls(found)

    def combinations(self, written: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every combination; of each key first the value that the scenario has (None: left to preset and model)."""
        choices = [
            list(dict.fromkeys([written.get(key), *values])) if _hashable(values) else list(values)
            for key, values in self.dimensions.items()
        ]
        for key, values in zip(self.dimensions, choices, strict=True):
            if key == "engine.tensor_parallel_size" and None in values:
                values.remove(None)
        return [dict(zip(self.dimensions, values, strict=True)) for values in itertools.product(*choices)]


def _words(text: str) -> list[str]:
    """The parts between commas, but for those within brackets."""
    return [word for part in re.split(r",(?![^\[\]]*\])", text) if (word := part.strip())]


def _hashable(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (str, int, float, bool)) for value in values)


def _written(text: str) -> tuple[str, tuple[Any, ...]]:
    key, _, raw = (part.strip() for part in text.partition("="))
    key = SEARCHABLE[key][0] if key in SEARCHABLE else key
    try:
        values = parse_value(raw)
    except ConfigError as error:
        raise ConfigError(error.problem, key="--search", value=text) from error
    if not isinstance(values, list) or not values:
        raise ConfigError("expected KEY=[value, ...], such as max_num_seqs=[64, 128]", key="--search", value=text)
    return key, tuple(values)


@dataclass(frozen=True)
class Option:
    """One configuration of one replica, and what its GPUs cost."""

    number: int
    """Its place in the order of preference: among equals the first is taken."""
    hardware: str
    gpu: Gpu
    settings: Mapping[str, Any]
    price: Price | None

    @property
    def overrides(self) -> dict[str, Any]:
        """Keys of the scenario that make it this option; a value of None leaves a key as it is written."""
        said = {key: value for key, value in self.settings.items() if value is not None}
        return {"hardware": self.hardware, **said}

    @property
    def label(self) -> str:
        """Its settings in a few words, without the GPU: `TP 2, fp8, 256 seqs`."""
        return ", ".join(_word(key, value) for key, value in self.settings.items() if value is not None) or "as written"


_WORDS: Mapping[str, str] = {
    "engine.tensor_parallel_size": "TP {}",
    "engine.pipeline_parallel_size": "PP {}",
    "engine.quantization": "{}",
    "engine.kv_cache_dtype": "KV {}",
    "engine.max_num_seqs": "{} seqs",
    "engine.max_num_batched_tokens": "budget {}",
    "engine.scheduler": "{}",
}


def _word(key: str, value: Any) -> str:
    return _WORDS.get(key, key.rpartition(".")[2] + " {}").format(value)


def options_of(loaded: LoadedScenario, hardware: Sequence[str], search: Search) -> list[Option]:
    """Every GPU with every combination of settings, those that cannot be built included; GPU by GPU."""
    written = _values_written(loaded, search)
    options: list[Option] = []
    for name in hardware:
        try:
            gpu = load_gpu(name, beside=loaded.path)
        except ConfigError as error:
            raise error.placed(file=None, line=None, key="--hardware") from None
        price = loaded.scenario.cost.price_of(gpu)
        for settings in search.combinations(written):
            tp = settings.get("engine.tensor_parallel_size")
            if not isinstance(tp, int) or tp <= gpu.gpus_per_node:
                options.append(Option(len(options), name, gpu, settings, price))
    return options


def _values_written(loaded: LoadedScenario, search: Search) -> dict[str, Any]:
    found = {}
    for key in search.dimensions:
        here: Any = loaded.document.data
        for part in key.split("."):
            here = here.get(part) if isinstance(here, Mapping) else None
        found[key] = here
    return found
