"""Number formats of a scenario's model on its GPU: what is asked for, what the checkpoint has, what the chip can do."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.calibrated_kernels import is_transferred
from sim.cost.formats import matmul_format
from sim.cost.roofline import Kernels
from sim.errors import ConfigError
from sim.format_checks import path_of, with_kernel
from sim.scenario import LoadedScenario
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme
from sim.specs.quantization_keys import parse_quantization
from sim.specs.schemes import SCHEMES


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


def checked_formats(
    loaded: LoadedScenario, scheme: QuantScheme, architecture: ModelArchitecture, gpu: Gpu, stack: str, layout: Layout
) -> QuantScheme:
    """The scheme with the kernel that multiplies it here. Raises ConfigError at what GPU or engine (`stack`) lack."""
    given, place = loaded.scenario.engine, loaded.document.place
    try:
        return with_kernel(scheme, architecture, gpu, stack, layout)
    except ConfigError as error:
        axis = (error.key or "").rsplit(".", 1)[-1]
        if isinstance(given.quantization, dict) and (axis in given.quantization or axis != "kv_cache"):
            raise error.placed(**place(("engine", "quantization", axis))) from None
        if axis == "kv_cache" and given.kv_cache_dtype:
            raise error.placed(**place(("engine", "kv_cache_dtype"))) from None
        if given.quantization is None:  # the checkpoint's own
            raise error.placed(**place(("model",))) from None
        valid = _valid_schemes(scheme, architecture, gpu, stack, layout)
        raise loaded.document.error(("engine", "quantization"), error.problem, value=given.quantization,
                                    choices=valid) from None  # fmt: skip


def _valid_schemes(
    refused: QuantScheme, architecture: ModelArchitecture, gpu: Gpu, stack: str, layout: Layout
) -> list[str]:
    """The named schemes that do work here, those nearest in size first."""
    found = {}
    for name in SCHEMES:
        scheme = parse_quantization(name, architecture)
        try:
            with_kernel(scheme, architecture, gpu, stack, layout)
        except ConfigError:
            continue
        found[name] = abs(scheme.weights.stored_bits - refused.weights.stored_bits)
    return sorted(found, key=lambda name: found[name])


def format_notes(gpu: Gpu, scheme: QuantScheme, kernels: Kernels) -> list[str]:
    """What the user should know about the path of quantised weights on this GPU, and where its times are from."""
    path = path_of(scheme, gpu)
    notes = [path] if path else []
    if is_transferred(kernels, matmul_format(scheme, "gate_up", gpu)):
        notes.append(f"{scheme.kernel} was not measured on {gpu.name}: its times are those of the 16-bit product with "
                     "fewer bytes and the work of expanding them")  # fmt: skip
    return notes
