"""Under which name the number formats of an operator were measured."""

from __future__ import annotations

from sim.cost.roofline import Heads, MatmulFormat


def gemm_scheme(form: MatmulFormat) -> str:
    """The measured scheme that a matrix format is priced as."""
    if form.compute == "fp8":
        return "fp8_block" if "block" in form.name else "fp8"
    if form.compute == "int8":
        return "w8a8_int8"
    if form.compute == "fp4":
        return "w4a4"  # measured nowhere yet
    if form.weight_bytes >= 2.0:
        return "bf16"
    if form.name.startswith("mxfp4"):
        return "w4a16_mxfp4"
    if form.name.startswith("nf4"):
        return "nf4"
    return "w8a16" if form.weight_bytes > 0.75 else "w4a16"


def kv_scheme(heads: Heads) -> str:
    """`bf16`, `fp8` or `int4`, by the cache; one that is widened on the vector units is read as the 16-bit one."""
    stored_bytes = heads.kv_bytes_per_token / (heads.kv_heads * (heads.query_dim + heads.value_dim))
    if stored_bytes <= 0.75:
        return "int4"
    return "bf16" if stored_bytes >= 1.5 or heads.unpack_operations else "fp8"
