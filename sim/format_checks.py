"""Which kernels multiply a scenario's formats on its GPU; what chip, engine or shapes rule out is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sim.cost.formats import kernel_of
from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.layout import Layout
from sim.specs.number_formats import FORMATS, NumberFormat
from sim.specs.quantization import QuantScheme
from sim.specs.schemes import KV_BACK_ENDS
from sim.specs.weight_kernels import AUTO, KERNELS, NONE, WeightKernel, candidates

_KEY = "engine.quantization"
_GROUPS = (256, 128, 64, 32, 16)
_STAND_INS = ("fp8", "fp4")
"""Formats that engines multiply in 16 bit where tensor cores lack them; INT8 activations are refused instead."""


def with_kernel(
    scheme: QuantScheme, architecture: ModelArchitecture, gpu: Gpu, stack: str, layout: Layout
) -> QuantScheme:
    """The scheme with its kernel chosen among those of the engine (`stack`).

    Raises ConfigError at the key that asks for what cannot be, with the nearest valid choices: activations that the
    tensor cores do not multiply, weights for which there is no kernel, groups that do not divide a matrix, a cache
    format that the engine's attention does not read.
    """
    _check_cache(scheme, stack)
    roles = _quantised_roles(scheme, architecture)
    if not roles:
        return replace(scheme, kernel=NONE)
    formats = {scheme.weight_format(role) for role in roles}
    _check_groups(scheme, architecture, layout)
    activations = _activations(scheme, gpu)
    if activations != "16-bit" and all(form.tensor_rate == activations for form in formats):
        return replace(scheme, kernel=NONE)
    form = max(formats, key=lambda one: (one.kind not in ("q6_k",), one.name))
    if scheme.kernel != AUTO:
        return _with_named(scheme, form, activations, gpu, stack)
    found = next(candidates(form, activations, gpu, stack), None)
    if found is None:
        raise _no_kernel(scheme, form, activations, gpu, stack)
    return replace(scheme, kernel=found.name)


def path_of(scheme: QuantScheme, gpu: Gpu) -> str:
    """One line that names the path of the weights: stored as, unpacked by, multiplied in; "" for plain 16 bit."""
    form, wanted = scheme.weights, scheme.compute_format("gate_up").tensor_rate
    if not form.is_quantised:
        return ""
    stored = scheme.mixed.get("", form)
    kernel = kernel_of(scheme, stored, _activations(scheme, gpu), gpu)
    compute = wanted if gpu.supports(wanted) else gpu.default_dtype
    lacks = f"{gpu.name} has no {wanted} tensor cores: " if compute != wanted else ""
    if kernel is None:
        return f"{lacks}{form.name} weights are multiplied in {compute} as they are stored"
    if not kernel.multiplies:
        return f"{form.name} weights are multiplied by {kernel.name} as they are stored"
    return f"{lacks}{form.name} weights are expanded by {kernel.name} and multiplied in {compute}"


def _quantised_roles(scheme: QuantScheme, architecture: ModelArchitecture) -> list[str]:
    matrices = (m for m in architecture.matrices() if m.is_gemm)
    return sorted({m.role for m in matrices if scheme.weight_format(m.role).is_quantised})


def _activations(scheme: QuantScheme, gpu: Gpu) -> str:
    """What the weights are multiplied with: a narrow format the chip has, else `16-bit`."""
    form = scheme.activations
    if not form.is_quantised or scheme.compute == "16-bit":
        return "16-bit"
    if gpu.supports(form.tensor_rate):
        return form.tensor_rate
    if form.element not in _STAND_INS or form.element != scheme.weights.element:
        valid = ["auto", *(f for f in ("fp8", "int8") if gpu.supports(f))]
        raise ConfigError(f"{gpu.name} has no {form.tensor_rate} tensor cores", key=f"{_KEY}.activations",
                          value=form.name, choices=valid)  # fmt: skip
    return "16-bit"


def _with_named(scheme: QuantScheme, form: NumberFormat, activations: str, gpu: Gpu, stack: str) -> QuantScheme:
    kernel = KERNELS[scheme.kernel]
    valid = [one.name for one in KERNELS.values() if _fits(one, form, activations, gpu, stack)]
    if kernel.name not in valid:
        why = "is not there" if not kernel.runs_on(gpu) else "has no such product"
        problem = f"{why}: {form.name} weights, {activations} activations, {gpu.name}, {stack}"
        raise ConfigError(problem, key=f"{_KEY}.kernel", value=kernel.name, choices=[*valid, AUTO])
    return scheme


def _fits(kernel: WeightKernel, form: NumberFormat, activations: str, gpu: Gpu, stack: str) -> bool:
    return stack in kernel.stacks and kernel.takes(form, activations) and kernel.runs_on(gpu)


def _no_kernel(scheme: QuantScheme, form: NumberFormat, activations: str, gpu: Gpu, stack: str) -> ConfigError:
    if activations != "16-bit" and next(candidates(form, "16-bit", gpu, stack), None):
        problem = f"no kernel of {stack} on {gpu.name} multiplies {form.name} weights with {activations} activations"
        return ConfigError(problem, key=f"{_KEY}.activations", value=scheme.activations.name, choices=["auto"])
    weights = [f for name, f in FORMATS.items() if f.is_quantised and not name.endswith(("_per_token_head", "-kivi"))]
    valid = [f.name for f in weights if any(candidates(f, "16-bit", gpu, stack))]
    problem = f"no kernel of {stack} multiplies these weights on {gpu.name}"
    return ConfigError(problem, key=f"{_KEY}.weights", value=scheme.weights.name, choices=_nearest(form, valid))


def _nearest(form: NumberFormat, names: list[str]) -> list[str]:
    """Formats by how close their size is to the one that is refused; 16 bit last."""
    return [*sorted(names, key=lambda name: abs(FORMATS[name].stored_bits - form.stored_bits)), "auto"]


def _check_groups(scheme: QuantScheme, architecture: ModelArchitecture, layout: Layout) -> None:
    for matrix in architecture.matrices():
        form = scheme.weight_format(matrix.role)
        if not matrix.is_gemm or form.element not in ("int", "int8") or form.group_size < 2:
            continue
        k, _ = matrix.per_gpu(layout.moe_tp if matrix.is_expert else layout.tp)
        if k % form.group_size:
            valid = [f"int{form.bits:g}-g{size}" for size in _dividing(scheme, architecture, layout)]
            problem = f"groups of {form.group_size} do not divide the {k} rows of {matrix.role} on one GPU"
            raise ConfigError(problem, key=f"{_KEY}.weights", value=scheme.weights.name, choices=valid)


def _dividing(scheme: QuantScheme, architecture: ModelArchitecture, layout: Layout) -> Iterator[int]:
    rows = [
        m.per_gpu(layout.moe_tp if m.is_expert else layout.tp)[0]
        for m in architecture.matrices()
        if m.is_gemm and scheme.weight_format(m.role).is_quantised
    ]
    return (size for size in _GROUPS if all(k % size == 0 for k in rows))


def _check_cache(scheme: QuantScheme, stack: str) -> None:
    back_end = stack if scheme.kv_back_end == AUTO else scheme.kv_back_end
    known = KV_BACK_ENDS.get(back_end, KV_BACK_ENDS["vllm"])
    form = scheme.kv_cache
    if not form.is_quantised or form.name in known:
        return
    others = [name for name, formats in KV_BACK_ENDS.items() if form.name in formats]
    hint = f"; kv_back_end: {others[-1]} does" if others else ""
    near = sorted(known, key=lambda name: abs(FORMATS[name].stored_bits - form.stored_bits))
    raise ConfigError(f"the attention of {back_end} does not read it{hint}", key=f"{_KEY}.kv_cache", value=form.name,
                      choices=[*near, "auto"])  # fmt: skip
