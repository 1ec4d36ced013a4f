"""Number formats of a scenario's model on its GPU: what is asked for, what the checkpoint has, what the chip can do."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.ops import matmul_format
from sim.errors import ConfigError
from sim.scenario import LoadedScenario
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.quantization import QuantScheme, parse_quantization


def with_dtype(
    architecture: ModelArchitecture, loaded: LoadedScenario, gpu: Gpu
) -> tuple[ModelArchitecture, list[str]]:
    """The 16-bit type the model runs in: the checkpoint's, unless the GPU cannot or the user says otherwise."""
    given = loaded.scenario.engine.dtype
    wanted = architecture.dtype if given == "auto" else given
    notes = []
    if wanted == "float32":
        wanted = "float16"
    if wanted == "bfloat16" and not gpu.supports("bf16"):
        if given != "auto":
            raise loaded.document.error(("engine", "dtype"), f"{gpu.name} does not multiply bfloat16", value=given,
                                        choices=["float16", "auto"])  # fmt: skip
        wanted = "float16"
        notes.append(f"{gpu.name} does not multiply bfloat16: the model runs in float16, as vLLM does")
    return replace(architecture, dtype=wanted), notes


def quantization_of(loaded: LoadedScenario, architecture: ModelArchitecture) -> QuantScheme:
    """The formats of weights, activations and KV cache. Raises ConfigError at the key that asks for too much."""
    given = loaded.scenario.engine
    axes = given.quantization if isinstance(given.quantization, dict) else {}
    with loaded.document.blamed(("engine", "quantization")):
        try:
            return parse_quantization(
                given.quantization, architecture, kv_cache_dtype=given.kv_cache_dtype, key="engine.quantization"
            )
        except ConfigError as error:
            if error.key != "engine.quantization.kv_cache" or "kv_cache" in axes:
                raise
            raise error.placed(**loaded.document.place(("engine", "kv_cache_dtype"))) from None


def format_notes(gpu: Gpu, scheme: QuantScheme) -> list[str]:
    """What the user should know about formats that the GPU does not multiply."""
    notes = []
    form = matmul_format(scheme, "gate_up", gpu)
    wanted = scheme.compute_format("gate_up").tensor_rate
    if form.compute != wanted:
        notes.append(f"{gpu.name} has no {wanted} tensor cores: {form.name} weights are expanded and multiplied in "
                     f"{form.compute}")  # fmt: skip
    return notes
