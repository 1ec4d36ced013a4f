"""One traffic on one GPU under many quantisation schemes: what each gives, needs, costs and loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.build import build
from sim.cost.ops import ForwardPass
from sim.errors import ConfigError
from sim.metrics import summarise
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.specs.hardware import Gpu
from sim.specs.quality import quality_words
from sim.specs.schemes import SCHEMES

ON_GPUS = ("none", "fp8", "smoothquant", "gptq_int8", "gptq", "awq", "nf4", "spqr", "mxfp4", "kv_fp8", "kv_int4",
           "awq+kv_fp8", "fp8+kv_fp8")  # fmt: skip
ON_CPUS = ("q8_0", "q6_k", "q5_0", "q4_k_m", "q4_0", "q2_k")
"""What is compared when nothing is named."""
_PRESET_ON_CPUS = "llama.cpp"
_HOUR_S, _MILLION = 3600.0, 1e6


@dataclass(frozen=True)
class SchemeRow:
    """What one scheme came to; `problem` says why there is nothing where there is not.

    `concurrency` is how many requests of the mean length fit the KV cache and the seats together. `usd_per_mtoken` is
    the GPUs' price over the output tokens. Times are means in ms, sizes of one GPU in GB.
    """

    scheme: str
    problem: str = ""
    path: str = ""
    output_tok_s: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    concurrency: int | None = None
    weights_gb: float | None = None
    kv_gb: float | None = None
    kv_tokens: int | None = None
    usd_per_mtoken: float | None = None
    preemptions: int | None = None
    quality: str = "unknown"
    trust: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as a file holds it."""
        return asdict(self)


def default_schemes(gpu: Gpu) -> tuple[str, ...]:
    """What to compare on this machine when nobody says."""
    return ON_CPUS if gpu.generation == "cpu" else ON_GPUS


def quantization_of(name: str) -> dict[str, Any]:
    """The `quantization:` mapping of a scheme, or of one scheme with the KV cache of another (`awq+kv_fp8`).

    Raises ConfigError for a name that is not known.
    """
    parts = [part.strip().lower() for part in name.split("+")]
    unknown = [part for part in parts if part not in SCHEMES]
    if unknown or len(parts) > 2:
        raise ConfigError("is not a known scheme", key="--schemes", value=unknown[0] if unknown else name,
                          choices=SCHEMES)  # fmt: skip
    if len(parts) == 1:
        return {"scheme": parts[0]}
    cache = SCHEMES[parts[1]]
    if cache.kv_cache is None:
        choices = [one.name for one in SCHEMES.values() if one.kv_cache]
        raise ConfigError("says nothing about the KV cache", key="--schemes", value=parts[1], choices=choices)
    return {"scheme": parts[0], "kv_cache": cache.kv_cache, "kv_back_end": cache.kv_back_end}


def compare_schemes(
    scenario: Mapping[str, Any],
    schemes: Sequence[str],
    overrides: Mapping[str, Any] | None = None,
    on_row: Callable[[SchemeRow], None] = lambda row: None,
) -> list[SchemeRow]:
    """One row per scheme, in their order; a scheme that the machine refuses says so. `on_row` hears each at once.

    Raises ConfigError for an unknown scheme, or when the scenario is wrong whatever the scheme.
    """
    asked = [(name, quantization_of(name)) for name in schemes]
    rows = []
    for name, quantization in asked:
        rows.append(_row(name, quantization, scenario, overrides or {}))
        on_row(rows[-1])
    if all(row.problem for row in rows):
        raise ConfigError(rows[0].problem)
    return rows


def preset_for(gpu: Gpu) -> str:
    """The engine that serves on this machine when nobody says."""
    return _PRESET_ON_CPUS if gpu.generation == "cpu" else "vllm-v1"


def _row(
    name: str, quantization: Mapping[str, Any], scenario: Mapping[str, Any], overrides: Mapping[str, Any]
) -> SchemeRow:
    quality = _quality(name, str(scenario["model"]))
    try:
        loaded = load_scenario(scenario, {**overrides, "engine.quantization": dict(quantization)})
        setup = build(loaded)
    except ConfigError as error:
        return SchemeRow(name, f"{error.problem}", quality=quality)
    result = run_setup(setup)
    summary, requests = summarise(result), result.requests
    tokens = float((requests["prompt_tokens"] + requests["output_tokens"]).mean())
    rate = float(summary["output_throughput"])
    engine, kv_tokens = setup.engine, setup.num_blocks * setup.engine.kv_cache["block_size"]
    price = setup.gpu.price_per_hour_usd
    gpus = engine.layout.gpus * setup.scenario.replicas.count
    return SchemeRow(
        name, path=_path(setup), output_tok_s=rate, ttft_ms=summary["mean_ttft_ms"], tpot_ms=summary["mean_tpot_ms"],
        concurrency=min(engine.max_num_seqs * engine.data_parallel_size, int(kv_tokens / tokens)),
        weights_gb=setup.memory.weight_bytes / 1e9, kv_gb=setup.memory.kv_bytes / 1e9, kv_tokens=kv_tokens,
        usd_per_mtoken=None if price is None or not rate else price.mid * gpus / _HOUR_S / rate * _MILLION,
        preemptions=summary["num_preemptions"], quality=quality, trust=setup.kernels.trust,
    )  # fmt: skip


def _path(setup: Setup) -> str:
    return next((note for note in setup.notes if "multiplied" in note), "")


def _quality(name: str, model: str) -> str:
    """Losses of weights and of the cache are told side by side: nobody measured their sum."""
    words = {part: quality_words(part.strip().lower(), model) for part in name.split("+")}
    if len(words) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{part}: {text}" for part, text in words.items())


def decode_s(forward: ForwardPass, sequences: int, context: int) -> float:
    """Seconds of a step in which so many sequences of this context decode."""
    seen = [sequences * span.visible(context) for span in forward.spans]
    ops = [*forward.rows(sequences), *forward.head(sequences), *forward.decode(sequences, sequences * context)]
    ops += [op for i, tokens in enumerate(seen) for op in forward.decode(sequences, tokens, i)]
    return sum(op.seconds for op in ops)


def crossover(batches: Sequence[int], one: Sequence[float], other: Sequence[float]) -> int | None:
    """The first batch from which on `one` is no longer the faster of two; None when it stays so, or never was."""
    if one[0] >= other[0]:
        return None
    return next((batch for batch, a, b in zip(batches, one, other, strict=True) if a >= b), None)
