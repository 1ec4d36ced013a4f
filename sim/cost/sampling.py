"""From logits to the next token: on the GPU, or copied to the host and chosen there."""

from __future__ import annotations

import math
from typing import NamedTuple

from sim.cost.roofline import Cost, Kernels

_CPU_BYTES_PER_S = 10e9
"""What one thread reads while it looks for a maximum (from memory)."""
_CPU_COMPARISON_S = 4e-9
"""A comparison of a sort, branch misses included: 128k floats take about 9 ms (std::sort; from memory)."""
_CPU_EXPONENTIAL_S = 2e-9
"""Per logit of a softmax (from memory)."""
_BEAM_BYTES_PER_LOGIT = 12.0
"""32-bit scores: in and out of the log-softmax, and in again to find the best continuations of all beams."""


class Sampler(NamedTuple):
    """How the next token is chosen; the defaults are greedy sampling on the GPU."""

    filter_s: float = 0.0
    """Of a step that draws from the likeliest tokens only (top-k, top-p): the launches of many small kernels."""
    filter_bytes_per_logit: float = 0.0
    beams: bool = False
    """Whether scores of all continuations are compared (beam search)."""
    filters: bool = False
    """Whether logits are sorted, where no constants of a GPU's sorting say so."""
    on_cpu: bool = False
    """Whether one host thread chooses, sequence after sequence, before the next step can begin."""


GREEDY = Sampler()


def gpu_sampling(kernels: Kernels, sampler: Sampler, sampled: int, vocab: int, tp: int) -> list[tuple[str, Cost]]:
    """Kernels for `sampled` rows of logits, `vocab` of them on each of `tp` GPUs."""
    # 16-bit logits in, 32-bit copy out and in again: greedy sampling; the gather over GPUs is of the same size.
    ops = [("sampling", kernels.elementwise(sampled * vocab * 10.0))]
    if sampler.filter_s or sampler.filter_bytes_per_logit:  # after the gather: of the whole vocabulary
        cost = kernels.elementwise(sampled * vocab * tp * sampler.filter_bytes_per_logit)
        ops.append(("top-k/top-p filter", cost._replace(seconds=cost.seconds + sampler.filter_s)))
    if sampler.beams:
        ops.append(("beam selection", kernels.elementwise(sampled * vocab * tp * _BEAM_BYTES_PER_LOGIT)))
    return ops


def cpu_sampling(sampler: Sampler, sampled: int, vocab: int, pcie_bytes_per_s: float) -> list[tuple[str, Cost]]:
    """The copy of `sampled` rows of 16-bit logits to the host, and what a thread does with them there."""
    logits = float(sampled * vocab)
    per_logit = 4.0 / _CPU_BYTES_PER_S
    if sampler.filters:
        per_logit += _CPU_EXPONENTIAL_S + _CPU_COMPARISON_S * math.log2(vocab)
    if sampler.beams:
        per_logit += _CPU_EXPONENTIAL_S + 4.0 / _CPU_BYTES_PER_S
    return [
        ("logits to host", Cost(2.0 * logits / pcie_bytes_per_s, 0.0, 2.0 * logits, "link")),
        ("sampling on host", Cost(logits * per_logit, 0.0, 4.0 * logits, "host")),
    ]
