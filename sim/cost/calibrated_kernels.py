"""Prices of a forward pass's operators from fitted constants: the `Kernels` of a GPU that has been measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.cost.calibration import Calibration, Entry, Key
from sim.cost.chosen_kernels import ChosenKernels
from sim.cost.collectives import Operation
from sim.cost.kernels.arithmetic import Terms
from sim.cost.kernels.attention_decode import Heads as KernelHeads
from sim.cost.kernels.attention_decode import decode_terms
from sim.cost.kernels.attention_prefill import prefill_sums_terms
from sim.cost.kernels.collectives import FULL_NODE, collective_terms
from sim.cost.kernels.elementwise import elementwise_terms
from sim.cost.kernels.gemm import gemm_terms
from sim.cost.kernels.moe import Experts as KernelExperts
from sim.cost.kernels.moe import moe_terms
from sim.cost.ops import ForwardPass
from sim.cost.roofline import Cost, Experts, Heads, Kernels, MatmulFormat, PrefillWork, unpacked_cache, unpacked_experts
from sim.cost.scaled_kernels import CLASSES as SCALED_CLASSES
from sim.cost.scaled_kernels import ScaledKernels
from sim.cost.schemes import gemm_scheme, kv_scheme
from sim.cost.uncertainty import DATASHEET_ERRORS, Quantiles
from sim.cost.unpacking import unpacked_terms, with_cache, with_weights, without_quantising

_STACKS: Mapping[str, str] = {"tensorrt-llm": "trtllm"}
"""Engines whose measurements go under another name."""
_COLLECTIVE = "custom-graph"
_ELEMENTWISE = "static_fp8_quant"
_ROW_BYTES = 16384
"""A token's row in a typical element-wise kernel: 4096 16-bit elements in and out."""
_NEAREST: Mapping[str, Sequence[str]] = {
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "w4a16": ("w4a16_mxfp4",),
    "w4a16_mxfp4": ("w4a16",),
    "w8a8_int8": ("w8a8_int8_sgl",),
    "nf4": ("w4a16",),
    _ELEMENTWISE: ("add",),
    _COLLECTIVE: ("custom-default", "nccl-tests"),
}
"""What to take when a scheme was not measured: the one that stores and multiplies the same way."""


@dataclass
class CalibratedKernels:
    """Operators priced by the calibration of one GPU and stack; what was not measured falls back to `rest`."""

    calibration: Calibration
    rest: Kernels
    stack: str = "vllm"
    trust: str = "calibrated"
    _found: dict[tuple[str, str], Entry | None] = field(default_factory=dict, repr=False)

    def gemm(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """Y[m,n] = X[m,k] W[k,n], weights from HBM."""
        if form.unpacking is not None and not self.measured(form):
            return self._unpacked(m, k, n, form)
        entry = self._find("gemm", gemm_scheme(form))
        if entry is None:
            return self.rest.gemm(m, k, n, form)
        moved = n * k * form.weight_bytes + m * k * form.activation_bytes + m * n * 2.0
        kernel = _kernel(entry)
        if form.quantising == "fused" and kernel.format.quantises_activations:
            kernel = without_quantising(kernel)
        cost = _cost(gemm_terms(m, n, k, kernel), 2.0 * m * n * k, moved)
        if form.quantising == "apart" and form.activation_bytes < 2.0 and not kernel.format.quantises_activations:
            cost = cost._replace(seconds=cost.seconds + self.elementwise(m * k * form.quantising_bytes).seconds)
        return cost

    def measured(self, form: MatmulFormat) -> bool:
        """Whether this engine's own kernel for the format was measured, unpacking included."""
        scheme = gemm_scheme(form)
        return any(key.format == scheme and key.stack == _STACKS.get(self.stack, self.stack)
                   for key in self.calibration.entries if key.op_class == "gemm")  # fmt: skip

    def _unpacked(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """The plain product with fewer bytes and the work of unpacking: transferred, where no kernel was measured."""
        entry = self._find("gemm", "bf16" if form.compute in ("bf16", "fp16") else gemm_scheme(form))
        if entry is None or form.unpacking is None:
            return self.rest.gemm(m, k, n, form)
        stored, rest = float(n * k * form.weight_bytes), m * k * form.activation_bytes + m * n * 2.0
        vector, flops = self.calibration.chip.vector_ops_per_s, 2.0 * m * n * k
        if m < form.unpacking.separate_from:
            found = unpacked_terms(m, n, k, _kernel(entry), form.weight_bytes, form.unpacking)
            return _cost(found, flops, stored + rest)
        widen = max(self.elementwise(stored + n * k * 2.0).seconds, n * k * form.unpacking.pass_operations / vector)
        cost = _cost(gemm_terms(m, n, k, _kernel(entry)), flops, stored + 2.0 * n * k + rest)
        return cost._replace(seconds=cost.seconds + widen)

    def experts(self, tokens: int, experts: Experts) -> Cost:
        """All experts of one layer; the distinct experts that tokens reach follow `Experts.touched`."""
        entry, form = self._find("moe", gemm_scheme(experts.format)), experts.format
        narrow = entry is None and form.unpacking is not None
        entry = self._find("moe", "bf16") if narrow else entry
        if entry is None or not experts.gated:
            return self.rest.experts(tokens, experts)
        kernel = with_weights(_kernel(entry), form.weight_bytes) if narrow else _kernel(entry)
        layer = KernelExperts(
            experts.hidden, experts.intermediate, experts.experts_per_token, experts.num_experts,
            expert_parallel=experts.expert_parallel,
        )  # fmt: skip
        found = moe_terms(tokens, layer, kernel, experts.touched(tokens))
        cost = _cost(found, experts.flops(tokens), experts.bytes_moved(tokens))
        return unpacked_experts(cost, tokens, experts, self.calibration.chip.vector_ops_per_s) if narrow else cost

    def decode_attention(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        """One new token of each sequence against its cache, from HBM.

        A cache in a format that was not measured is read as the 16-bit one, with its own bytes and its unpacking.
        """
        own = self._own_integer_cache(heads)
        entry = own or self._find("attention_decode", "bf16" if heads.unpack_operations else kv_scheme(heads))
        if entry is None or heads.query_dim != heads.value_dim:
            return self.rest.decode_attention(sequences, context_tokens, heads)
        kernel = with_cache(_kernel(entry), heads) if heads.unpack_operations and not own else _kernel(entry)
        seen = context_tokens + sequences
        # The sum is over what is seen, so windows have been applied: one that is full on average has been outgrown.
        outgrown = 0 < heads.window * sequences <= context_tokens
        layout = KernelHeads(heads.query_heads, heads.kv_heads, heads.query_dim, heads.window if outgrown else 0)
        # A knot may lie at no context at all: a kernel reads at least one token.
        context_tokens = max(context_tokens + (sequences if outgrown else 0), 1)
        found = decode_terms(sequences, context_tokens, layout, kernel)
        cost = _cost(found, seen * heads.flops_per_pair, heads.bytes_moved(seen, sequences))
        return cost if own else unpacked_cache(cost, seen, heads, self.calibration.chip.vector_ops_per_s)

    def _own_integer_cache(self, heads: Heads) -> Entry | None:
        """This stack's own kernel for an integer cache, unpacking included, where it was measured."""
        if not heads.unpack_operations:
            return None
        name = "int4" if kv_scheme(heads) == "int4" else "int8"
        return self.calibration.entries.get(Key("attention_decode", name, self.stack))

    def prefill_attention(self, work: PrefillWork, heads: Heads) -> Cost:
        """Prompt chunks against themselves and what is cached before them."""
        entry = self._find("attention_prefill", kv_scheme(heads))
        if entry is None and heads.unpack_operations:
            entry = self._find("attention_prefill", "bf16")
        if entry is None or heads.query_dim != heads.value_dim:
            return self.rest.prefill_attention(work, heads)
        layout = KernelHeads(heads.query_heads, heads.kv_heads, heads.query_dim, heads.window)
        found = prefill_sums_terms(work.new_tokens, work.pairs, work.longest, layout, _kernel(entry))
        moved = heads.bytes_moved(work.context_tokens, work.new_tokens)
        return _cost(found, work.pairs * heads.prefill_flops_per_pair, moved)

    def elementwise(self, bytes_moved: float) -> Cost:
        """A fused element-wise operator."""
        entry = self.calibration.entries.get(_own_pass(self.stack)) or self._find("elementwise", _ELEMENTWISE)
        if entry is None:
            return self.rest.elementwise(bytes_moved)
        rows = max(round(bytes_moved / _ROW_BYTES), 1)
        return _cost(elementwise_terms(rows, bytes_moved / rows, _kernel(entry)), 0.0, bytes_moved)

    def collective(self, operation: Operation, tensor_bytes: float, num_gpus: int) -> Cost:
        """Between the GPUs of one node (all-reduces inside a CUDA graph), where the constants were measured."""
        entry = self._find("collective", _COLLECTIVE if operation == "all_reduce" else operation)
        if entry is None or num_gpus > FULL_NODE:
            return self.rest.collective(operation, tensor_bytes, num_gpus)
        return _cost(collective_terms(tensor_bytes, num_gpus, _kernel(entry)), 0.0, 0.0)

    def log_error_quantiles(self, op_class: str, number_format: str) -> Mapping[float, float]:
        """How far the constants that price a class and format were off; empty where the fall-back prices it."""
        entry = self._find(op_class, number_format)
        return entry.log_error_quantiles if entry is not None else {}

    def _find(self, op_class: str, number_format: str) -> Entry | None:
        key = op_class, number_format
        if key not in self._found:
            names = (number_format, *_NEAREST.get(number_format, ()))
            entries = (self.calibration.find(op_class, name, self.stack) for name in names)
            self._found[key] = next((entry for entry in entries if entry is not None), None)
        return self._found[key]


def formats_of(forward: ForwardPass) -> dict[str, str]:
    """Per operator class the measured format that a forward pass mostly uses."""
    gemm, experts, heads = forward.main_formats()
    kv = "bf16" if heads is None else kv_scheme(heads)
    return {
        "gemm": "bf16" if gemm is None else gemm_scheme(gemm),
        "moe": "bf16" if experts is None else gemm_scheme(experts),
        "attention_decode": kv,
        "attention_prefill": kv,
        "elementwise": _ELEMENTWISE,
        "collective": _COLLECTIVE,
    }


def is_transferred(kernels: Kernels, form: MatmulFormat) -> bool:
    """Whether a matrix format is priced from the 16-bit kernel because its own was not measured."""
    while isinstance(kernels, (ScaledKernels, ChosenKernels)):  # an engine's factors and techniques
        kernels = kernels.kernels
    return isinstance(kernels, CalibratedKernels) and form.unpacking is not None and not kernels.measured(form)


def class_errors(kernels: Kernels, forward: ForwardPass) -> dict[str, Quantiles]:
    """How far the prices of each operator class may be off, in the formats that this forward pass mostly uses."""
    while isinstance(kernels, (ScaledKernels, ChosenKernels)):  # an engine's factors and techniques
        kernels = kernels.kernels
    if not isinstance(kernels, CalibratedKernels):
        return dict.fromkeys(SCALED_CLASSES, DATASHEET_ERRORS)
    formats = formats_of(forward)
    return {name: kernels.log_error_quantiles(name, form) or DATASHEET_ERRORS for name, form in formats.items()}


def op_class(operator: str) -> str | None:
    """The operator class of one of a forward pass's operators by name, for error bars; None for host work."""
    return None if operator in _NOT_KERNELS else _OP_CLASSES.get(operator, "gemm")


def _own_pass(stack: str) -> Key:
    """The fused pass that is typical of a decoder layer, where the stack itself was measured with one."""
    return Key("elementwise", "add_rms_norm", stack)


def _kernel(entry: Entry) -> Any:
    return entry.kernel


def _cost(found: Terms, flops: float, moved: float) -> Cost:
    return Cost(found.seconds, flops, moved, _BOUNDS.get(found.bound, found.bound))


_NOT_KERNELS = ("host", "launches", "logits to host", "sampling on host")
_OP_CLASSES: Mapping[str, str] = {
    "experts": "moe",
    "attention decode": "attention_decode",
    "attention prefill": "attention_prefill",
    "vision attention": "attention_prefill",
    "attention shared prefix": "attention_prefill",
    **dict.fromkeys(
        (
            "all-reduce",
            "vision all-reduce",
            "logits gather",
            "query-key norm all-reduce",
            "experts all-gather",
            "experts reduce-scatter",
            "stage hand-over",
        ),
        "collective",
    ),
    **dict.fromkeys(
        (
            "norm + residual",
            "quantise",
            "dequantise",
            "vision norm + residual",
            "vision activation",
            "rotary + cache write",
            "attention merge",
            "residual",
            "norm",
            "rotary",
            "cache write",
            "activation",
            "routing",
            "embed",
            "sampling",
            "state update",
            "top-k/top-p filter",
            "beam selection",
        ),
        "elementwise",
    ),
}
_BOUNDS: Mapping[str, str] = {
    "quantise": "memory",
    "blocks": "memory",
    "io": "memory",
    "write": "memory",
    "longest": "compute",
}
