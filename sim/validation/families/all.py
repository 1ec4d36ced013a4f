"""The operator classes that are fitted and scored."""

from __future__ import annotations

from sim.validation.families.attention import DecodeFamily, PrefillFamily, SharedPrefixFamily
from sim.validation.families.base import Family
from sim.validation.families.collectives import CollectiveFamily
from sim.validation.families.elementwise import ElementwiseFamily
from sim.validation.families.gemm import GemmFamily
from sim.validation.families.moe import MoeFamily
from sim.validation.families.swap import SwapFamily


def families() -> list[Family]:
    """One of each, in the order of reports."""
    return [
        GemmFamily(), PrefillFamily(), DecodeFamily(), SharedPrefixFamily(), MoeFamily(), CollectiveFamily(),
        ElementwiseFamily(), SwapFamily(),
    ]  # fmt: skip
