"""What is measured: kernels at the sizes that serving gives them, and fresh random sizes to check a fit against."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

Size = int | str

PROJECTIONS = (
    (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336),                 # Llama-3.1-8B
    (3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192),                  # Llama-3.2-1B
    (5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192),                  # Llama-3.2-3B
    (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),                # Llama-3.1-70B
    (4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944),                 # Qwen2.5-7B
    (2560, 8192), (14336, 8192), (8192, 7168), (8192, 2048),                  # Llama-3.1-70B on four GPUs
)  # fmt: skip
"""(n, k) of the projections of models that are served, from their published configurations."""
HEADS_OF_VOCABULARY = ((128256, 4096), (128256, 2048))
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
SCHEMES = ("bf16", "fp8", "w8a8_int8", "w4a16", "nf4", "fp16", "w4a16_torch")
LAYOUTS = (
    (32, 8, 128),
    (32, 8, 64),
    (24, 8, 128),
    (64, 8, 128),
    (28, 4, 128),
    (16, 2, 128),
    (8, 1, 128),
    (32, 32, 128),
)
"""(query heads, KV heads, elements per head) of the same models, whole and divided over GPUs."""
KV_FORMATS = ("bf16", "fp8", "int8", "int4")
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_MOST_TOKENS = 1 << 20
_NEW_TOKENS, _CACHED = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192), (0, 512, 2048, 8192)
_PREFILL_VARIANTS = ("bf16", "bf16-flash", "bf16-cudnn", "fp8", "int8", "int4", "bf16-unfused")
_PASSES = (
    "rms_norm", "add_rms_norm", "silu_mul", "rope", "quantise_fp8", "quantise_int8", "kv_write", "copy", "argmax",
    "top_k_top_p",
)  # fmt: skip
_WIDTHS, _VOCABULARIES = (2048, 3072, 4096, 8192), (32000, 128256)
_PASS_ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_BLOCKS = (1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Problem:
    """One kernel at one size: a row to be of a measurement table."""

    table: str
    sizes: tuple[tuple[str, Size], ...]

    @classmethod
    def of(cls, table: str, **sizes: Size) -> Problem:
        """A problem from its sizes."""
        return cls(table, tuple(sizes.items()))

    @property
    def columns(self) -> dict[str, Size]:
        """The sizes by name."""
        return dict(self.sizes)

    @property
    def key(self) -> str:
        """A text that two problems share only if they are the same."""
        return json.dumps([self.table, self.columns], sort_keys=True)


def calibration_problems(*, quick: bool = False, gpus: int = 1) -> list[Problem]:
    """What a profile is fitted to, in the order in which it is measured.

    Sizes that share their weights or cache stand together, and such groups in a shuffled order, so that a run that is
    cut short has seen something of every class. Those of a quick run come first.
    """
    first = _in_groups(_everything(gpus, quick=True))
    if quick:
        return first
    known = {problem.key for problem in first}
    return first + [problem for problem in _in_groups(_everything(gpus, quick=False)) if problem.key not in known]


def _in_groups(problems: Iterator[Problem]) -> list[Problem]:
    groups: dict[str, dict[str, Problem]] = {}
    for problem in problems:
        groups.setdefault(_group(problem), {})[problem.key] = problem
    shuffled = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return [problem for name in shuffled for problem in groups[name].values()]


def _group(problem: Problem) -> str:
    names = ("scheme", "n", "k", "kv_dtype", "num_heads", "num_kv_heads", "head_dim", "op", "how")
    return json.dumps([problem.table, {name: value for name, value in problem.sizes if name in names}])


def _everything(gpus: int, *, quick: bool) -> Iterator[Problem]:
    yield from _gemms(quick)
    yield from _decodes(quick)
    yield from _prefills(quick)
    yield from _shared_prefixes(quick)
    yield from _passes(quick)
    yield from _moves()
    for count in (1, 64, 256):
        yield from (Problem.of("launches", op=op, count=count) for op in ("eager", "graph"))
    for size in range(8, 30, 4 if quick else 1) if gpus > 1 else ():
        yield Problem.of("all_reduce", implementation="nccl", n_gpus=gpus, bytes=1 << size)


def _gemms(quick: bool) -> Iterator[Problem]:
    rows = ROWS[::2] if quick else ROWS
    for scheme in SCHEMES[:5] if quick else SCHEMES:
        shapes = PROJECTIONS if scheme == "bf16" else PROJECTIONS[:20]
        for n, k in shapes[::2] if quick else shapes:
            yield from (Problem.of("gemm", scheme=scheme, m=m, n=n, k=k) for m in rows)
    for n, k in HEADS_OF_VOCABULARY:
        yield from (Problem.of("gemm", scheme="bf16", m=m, n=n, k=k) for m in rows if m <= 512)


def attention(table: str, kv_dtype: str, batch: int, new: int, cached: int, layout: tuple[int, int, int]) -> Problem:
    """An attention problem in the columns of the attention tables; decode counts its own token as new."""
    heads, kv_heads, head_dim = layout
    return Problem.of(
        table, kv_dtype=kv_dtype, batch=batch, seq_len=new, prefix_len=cached, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, window=0,
    )  # fmt: skip


def with_sizes(problem: Problem, **more: Size) -> Problem:
    """The same problem with further sizes."""
    return Problem(problem.table, problem.sizes + tuple(more.items()))


def _decodes(quick: bool) -> Iterator[Problem]:
    layouts = LAYOUTS[:6:2] if quick else LAYOUTS
    for kv_dtype in KV_FORMATS:
        for layout in layouts if kv_dtype == "bf16" else layouts[:4]:
            for batch in _BATCHES[:: 2 if quick else 1]:
                for context in _CONTEXTS[:: 2 if quick else 1]:
                    if batch * context <= _MOST_TOKENS:
                        decode = attention("attention_decode", kv_dtype, batch, 1, context - 1, layout)
                        yield with_sizes(decode, longest=context)
                        if batch in (4, 16, 32, 64, 128) and context in (512, 1024, 2048, 4096, 8192):
                            yield with_sizes(decode, longest=2 * context)
    # What paging costs: the same context behind a table of blocks of several sizes, and in one piece (0), which is too
    # large for the L2 since it cannot rotate.
    for block_tokens in (0, 8, 16, 32):
        for batch, context in ((4, 16384), (16, 4096), (64, 1024), (128, 4096)):
            decode = attention("decode_blocks", "bf16", batch, 1, context - 1, LAYOUTS[0])
            yield with_sizes(decode, longest=context, block_tokens=block_tokens)


def _prefills(quick: bool) -> Iterator[Problem]:
    for variant in _PREFILL_VARIANTS[:4:3] if quick else _PREFILL_VARIANTS:
        for layout in LAYOUTS[:6:2] if quick or variant != "bf16" else LAYOUTS:
            for new in _NEW_TOKENS:
                for batch in (1, 4):
                    for cached in _CACHED[::2] if quick else _CACHED:
                        small = batch * new <= 16384 and (variant != "bf16-unfused" or batch * new <= 4096)
                        if small and (batch == 1 or new <= 2048):
                            yield attention("attention_prefill", variant, batch, new, cached, layout)


def _shared_prefixes(quick: bool) -> Iterator[Problem]:
    for kv_dtype in ("bf16",) if quick else ("bf16", "int4"):
        for layout in LAYOUTS[:2] if quick else LAYOUTS[:5]:
            for members in (4, 16, 64, 128):
                for prefix in (512, 2048, 8192, 32768)[:: 2 if quick else 1]:
                    for suffix in (64, 512):
                        shared = attention("attention_shared", kv_dtype, members, 1, suffix - 1, layout)
                        yield with_sizes(shared, shared_len=prefix)


def _passes(quick: bool) -> Iterator[Problem]:
    for op in _PASSES:
        samples = op in ("argmax", "top_k_top_p")
        for width in _VOCABULARIES if samples else _WIDTHS[::2] if quick else _WIDTHS:
            yield from (Problem.of("passes", op=op, m=m, width=width) for m in _PASS_ROWS if not samples or m <= 512)


def _moves() -> Iterator[Problem]:
    for op in ("block_copy", "gather"):
        yield from (
            Problem.of("block_moves", op=op, blocks=b, block_bytes=size)
            for b in _BLOCKS
            for size in (16384, 32768, 65536)
        )
    for op in ("out_blockwise", "out_batched", "in_blockwise", "in_batched"):
        for size in (32768, 131072, 2097152):
            yield from (Problem.of("swap", how=op, blocks=b, block_bytes=size) for b in _BLOCKS if b * size <= 1 << 30)


def fresh_problems(seed: int, each: int) -> list[Problem]:
    """Random sizes of every class that no calibration has seen: `each` per class and format, or a few less."""
    draw = random.Random(seed)
    found: list[Problem] = []
    for _ in range(each):
        found += [_fresh_gemm(draw, scheme) for scheme in SCHEMES[:5]]
        found += [_fresh_decode(draw, kv_dtype) for kv_dtype in KV_FORMATS]
        found += [_fresh_prefill(draw, variant) for variant in ("bf16", "bf16-flash", "fp8")]
        found.append(_fresh_shared(draw))
        found += [Problem.of("passes", op=op, m=_log(draw, 1, 8192), width=_width(draw, op)) for op in _PASSES]
        found += _fresh_moves(draw)
    known = _calibrated_keys()
    return _in_groups(problem for problem in found if problem.key not in known)


@cache
def _calibrated_keys() -> frozenset[str]:
    return frozenset(problem.key for problem in calibration_problems())


def _log(draw: random.Random, low: float, high: float, multiple: int = 1) -> int:
    """A whole number, evenly spread in its logarithm."""
    value = math.exp(draw.uniform(math.log(low), math.log(high)))
    return max(round(value / multiple), 1) * multiple


def _width(draw: random.Random, op: str) -> int:
    return draw.choice(_VOCABULARIES) if op in ("argmax", "top_k_top_p") else _log(draw, 1536, 8192, 256)


def _fresh_gemm(draw: random.Random, scheme: str) -> Problem:
    n, k = _log(draw, 1024, 32768, 128), _log(draw, 1024, 16384, 128)
    return Problem.of("gemm", scheme=scheme, m=_log(draw, 1, 8192), n=n, k=k)


def _fresh_decode(draw: random.Random, kv_dtype: str) -> Problem:
    batch = _log(draw, 1, 256)
    context = _log(draw, 64, min(32768, _MOST_TOKENS // batch))
    decode = attention("attention_decode", kv_dtype, batch, 1, context - 1, draw.choice(LAYOUTS[:4]))
    return with_sizes(decode, longest=draw.choice((context, round(1.5 * context))) if batch > 1 else context)


def _fresh_prefill(draw: random.Random, variant: str) -> Problem:
    batch = draw.choice((1, 1, 2, 4))
    new, cached = _log(draw, 16, 8192 // batch), draw.choice((0, _log(draw, 64, 8192)))
    return attention("attention_prefill", variant, batch, new, cached, draw.choice(LAYOUTS[:4]))


def _fresh_shared(draw: random.Random) -> Problem:
    shared = attention("attention_shared", "bf16", _log(draw, 4, 128), 1, _log(draw, 32, 1024), LAYOUTS[0])
    return with_sizes(shared, shared_len=_log(draw, 256, 32768))


def _fresh_moves(draw: random.Random) -> list[Problem]:
    ops = ("out_blockwise", "out_batched", "in_blockwise", "in_batched")
    swaps = [Problem.of("swap", how=op, blocks=_log(draw, 1, 512), block_bytes=131072) for op in ops]
    return [*swaps, Problem.of("block_moves", op="block_copy", blocks=_log(draw, 1, 4096), block_bytes=65536)]


def describe(sizes: Mapping[str, Size]) -> str:
    """Sizes in one line, for progress and errors."""
    return " ".join(f"{name}={value}" for name, value in sizes.items())
