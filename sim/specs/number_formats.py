"""Number formats in which weights, activations and the KV cache are stored, with the cost of their scales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Element = Literal["float32", "float16", "fp8", "int8", "int", "fp4", "codebook"]
"""What the stored number is, as far as multiplying is concerned; `int` is any integer below 8 bits."""


@dataclass(frozen=True)
class NumberFormat:
    """How one number is stored: `bits` of its own, and its share of the scale and zero point of its group.

    `group_size` elements share `scale_bits` + `zero_bits`; 0 means that so many share one that it costs nothing.
    A share `outlier_share` of the elements is stored again, at `outlier_bits` each with their places (SpQR).
    """

    name: str
    element: Element
    bits: float
    group_size: int = 0
    scale_bits: int = 0
    zero_bits: int = 0
    outlier_share: float = 0.0
    outlier_bits: int = 0

    @property
    def stored_bits(self) -> float:
        """Bits per element with scales and zero points: 4.15625 for INT4 in groups of 128, FP16 scale, 4-bit zero."""
        overhead = (self.scale_bits + self.zero_bits) / self.group_size if self.group_size else 0.0
        return self.bits + overhead + self.outlier_share * self.outlier_bits

    @property
    def stored_bytes(self) -> float:
        """Bytes per element with scales and zero points."""
        return self.stored_bits / 8

    @property
    def tensor_rate(self) -> str:
        """The name under which datasheets give its tensor-core rate: MXFP4 and NVFP4 both multiply at `fp4`.

        Codebooks (NF4) and integers of odd widths have none and keep their own name, which no GPU lists.
        """
        if self.element in ("fp8", "int8", "fp4"):
            return self.element
        if self.element == "int" and self.bits == 4:
            return "int4"
        return self.name

    @property
    def kind(self) -> str:
        """What a kernel must know to unpack it: `int4`, `fp8`, `codebook`, or a block layout such as `q4_k`, `spqr`."""
        if self.name == "spqr" or re.match(r"q\d_", self.name):
            return self.name
        return f"int{self.bits:g}" if self.element == "int" else self.element

    @property
    def is_quantised(self) -> bool:
        """Whether it is narrower than 16 bits."""
        return self.bits < 16


def integer_format(bits: int, group_size: int = 0, *, zero_point: bool = False, name: str = "") -> NumberFormat:
    """An integer format with an FP16 scale and maybe a zero point per group, or per channel when `group_size` is 0."""
    made_up = f"int{bits}" + (f"-g{group_size}" if group_size else "")
    scale, zero = (16, bits if zero_point else 0) if group_size else (0, 0)
    return NumberFormat(name or made_up, "int8" if bits == 8 else "int", bits, group_size, scale, zero)


def _table(*formats: NumberFormat) -> Mapping[str, NumberFormat]:
    return {form.name: form for form in formats}


FORMATS: Mapping[str, NumberFormat] = _table(
    NumberFormat("fp32", "float32", 32),
    NumberFormat("bf16", "float16", 16),
    NumberFormat("fp16", "float16", 16),
    NumberFormat("fp8", "fp8", 8),  # one scale per tensor or channel
    NumberFormat("fp8_channel", "fp8", 8),  # a scale per output channel
    NumberFormat("fp8_block", "fp8", 8, 128 * 128, 32),  # DeepSeek-V3: an FP32 scale per 128 x 128 block
    NumberFormat("mxfp8", "fp8", 8, 32, 8),  # OCP Microscaling 1.0: an E8M0 scale per 32 elements
    integer_format(8, name="int8"),  # one scale per channel (weights) or token (activations)
    integer_format(8, 128, name="int8-g128"),
    integer_format(8, 128, name="int8-gptq"),
    NumberFormat("int8_per_token_head", "int8", 8, 128, 32),  # KV cache; for heads of 128 elements
    integer_format(4, 128, name="int4"),
    integer_format(4, 128, zero_point=True, name="int4-awq"),  # AWQ, Lin et al. 2023: asymmetric, g128
    integer_format(4, 128, name="int4-gptq"),  # GPTQ, Frantar et al. 2022: symmetric, g128
    integer_format(4, 32, name="int4-g32"),
    NumberFormat("int4_per_token_head", "int", 4, 128, 32),
    integer_format(3, 128, name="int3"),
    integer_format(2, 128, name="int2"),
    # KIVI, Liu et al. 2024: groups of 32, keys along the channel, values along the token; FP16 scale and zero point.
    NumberFormat("int4-kivi", "int", 4, 32, 16, 16),
    NumberFormat("int2-kivi", "int", 2, 32, 16, 16),
    # SpQR, Dettmers et al. 2023, section 4: 3-bit weights, groups of 16 whose 3-bit scales and zeros have 64 bits per
    # 16 groups of their own, and 1 % outliers of 32 bits: 3.94 bits.
    NumberFormat("spqr", "int", 3, 16, 3 + 4, 3, 0.01, 32),
    NumberFormat("mxfp4", "fp4", 4, 32, 8),  # OCP Microscaling 1.0
    NumberFormat("nvfp4", "fp4", 4, 16, 8),  # an E4M3 scale per 16 elements
    NumberFormat("nf4", "codebook", 4, 64, 32),  # QLoRA, Dettmers et al. 2023: an FP32 scale per 64 elements
    NumberFormat("nf4-dq", "codebook", 4.127),  # the same with quantised scales: 0.127 bits, section 3
    # llama.cpp's blocks, ggml-common.h (from memory): of 32, and super-blocks of 256 with 6- or 4-bit scales.
    NumberFormat("q8_0", "int8", 8, 32, 16),
    NumberFormat("q4_0", "int", 4, 32, 16),
    NumberFormat("q5_0", "int", 5, 32, 16),
    NumberFormat("q2_k", "int", 2, 256, 16 * 4 + 16, 16 * 4 + 16),
    NumberFormat("q3_k", "int", 3, 256, 16 * 6 + 16),
    NumberFormat("q4_k", "int", 4, 256, 8 * 6 + 16, 8 * 6 + 16),
    NumberFormat("q5_k", "int", 5, 256, 8 * 6 + 16, 8 * 6 + 16),
    NumberFormat("q6_k", "int", 6, 256, 16 * 8 + 16),
)

_SYNONYMS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8": "fp8",
    "awq": "int4-awq",
    "gptq": "int4-gptq",
    "kivi": "int4-kivi",
    "kivi-4": "int4-kivi",
    "kivi-2": "int2-kivi",
}
_INTEGERS = re.compile(r"int([2-8])(?:-(gptq|awq))?(?:-g(\d+)|-(channel))?$")


def find_format(name: str) -> NumberFormat | None:
    """The format with this name or a synonym of it (`fp8_e4m3`, `bfloat16`), an integer such as `int4-g64`, or None."""
    lower = name.strip().lower()
    return FORMATS.get(_SYNONYMS.get(lower, lower)) or _integer(lower)


def _integer(name: str) -> NumberFormat | None:
    """`int3-g64`, `int4-gptq-g32`, `int8-channel`: bits, tool and group size are in the name."""
    found = _INTEGERS.match(name)
    if found is None or found[3] == "0":
        return None
    group = 0 if found[4] else int(found[3] or 128)
    return integer_format(int(found[1]), group, zero_point=found[2] == "awq", name=name)


def base_format(dtype: str) -> NumberFormat:
    """The unquantised format of an architecture's `dtype`."""
    return FORMATS[_SYNONYMS[dtype]]
