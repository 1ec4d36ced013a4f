"""From a problem to what runs it: operands on the device, and the kernel's call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from sim.validation.kernels import attention, elementwise, gemm, paging, quantise, sdpa, weight_only
from sim.validation.kernels.kv_cache import FORMATS, KvCache
from sim.validation.measure.gpu import Clocks, GpuWatch, HostWatch, captured, in_turn
from sim.validation.measure.pools import Pools, blocks_of
from sim.validation.measure.problems import Problem
from sim.validation.measure.timing import Run, copies_to_outgrow

Sizes = Mapping[str, Any]
_EAGER = ("swap", "launches", "all_reduce")
"""What engines issue outside of captured graphs, so that the host's work counts."""
_HEAD_DIM, _BLOCK_TOKENS = 128, 16
_TOP_K, _TOP_P = 50, 0.9


class Lab:
    """Builds problems on one device. Operands that serving finds in HBM (weights, KV) rotate; activations stay put."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.watch: Any = GpuWatch() if self.on_gpu else HostWatch()
        self.l2_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size if self.on_gpu else 1 << 16
        self.pools = Pools(self.device)
        self._clocks = Clocks() if self.on_gpu else None
        self._weights: tuple[Any, list[Any]] = (None, [])
        self._current: Run | None = None

    def close(self) -> None:
        """End the reading of clocks."""
        if self._clocks:
            self._clocks.close()

    def clocks(self) -> dict[str, float]:
        """Clocks and power now."""
        return self._clocks.latest() if self._clocks else {}

    def prepare(self, problem: Problem) -> tuple[Run, int]:
        """What runs a problem, and how many launches that is; the previous one's memory is given back."""
        self._current = None
        sets = _BUILDERS[problem.table](self, problem.columns)
        if problem.table == "launches":
            return self._launches(problem.columns, sets[0])
        run, launches = in_turn(sets) if problem.table in _EAGER or not self.on_gpu else captured(sets, self.watch)
        self._current = run
        return run, launches

    def _launches(self, sizes: Sizes, one: Run) -> tuple[Run, int]:
        run, launches = in_turn([one] * sizes["count"])
        if sizes["op"] == "eager" or not self.on_gpu:
            return run, launches
        replay, rounds = captured([run], self.watch)
        return replay, rounds * launches

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Normal random numbers."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    def weights(self, key: tuple[Any, ...], make: Callable[[], Any], set_bytes: float) -> list[Any]:
        """Copies of one set of weights that together outgrow the L2, kept until others are asked for."""
        if self._weights[0] != key:
            self._weights = (None, [])
            self.clear()
            first = make()
            copies = copies_to_outgrow(self.l2_bytes, set_bytes)
            self._weights = (key, [first, *(_copied(first) for _ in range(copies - 1))])
        return self._weights[1]

    def clear(self) -> None:
        """Give memory back before something large is made."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def _copied(weights: Any) -> Any:
    if isinstance(weights, torch.Tensor):
        return weights.clone()
    if isinstance(weights, weight_only.PackedWeight):
        return weight_only.PackedWeight(weights.codes.clone(), weights.scales.clone(), weights.table)
    return tuple(map(_copied, weights)) if isinstance(weights, tuple) else weights.clone()


def _gemm(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    scheme, m, n, k = (sizes[name] for name in ("scheme", "m", "n", "k"))
    dtype = torch.float16 if scheme == "fp16" else torch.bfloat16
    x = lab.normal(m, k, dtype=dtype)
    bytes_per_weight = {"bf16": 2, "fp16": 2, "fp8": 1, "w8a8_int8": 1}.get(scheme, 0.52)

    def make() -> Any:
        weight = lab.normal(n, k, dtype=dtype) * k**-0.5
        if scheme in ("w4a16", "nf4"):
            return weight_only.pack(weight, "nf4" if scheme == "nf4" else "int4")
        if scheme == "w4a16_torch":
            return weight_only.pack_for_torch(weight)
        codes = {"fp8": torch.float8_e4m3fn, "w8a8_int8": torch.int8}.get(scheme)
        return weight if codes is None else gemm.quantise_weight(weight, codes)

    sets = lab.weights((scheme, n, k), make, n * k * bytes_per_weight)
    out = torch.empty((m, n), device=lab.device, dtype=dtype)
    calls: dict[str, Callable[[Any], Any]] = {
        "bf16": lambda weight: gemm.dense(x, weight, out),
        "fp16": lambda weight: gemm.dense(x, weight, out),
        "fp8": lambda weight: gemm.fp8(x, *weight),
        "w8a8_int8": lambda weight: gemm.int8(x, *weight),
        "w4a16_torch": lambda weight: weight.product(x),
    }
    call = calls.get(scheme, lambda weight: weight_only.product(x, weight))
    return [partial(call, weight) for weight in sets]


def _context_sets(lab: Lab, cache: KvCache, contexts: list[int]) -> list[torch.Tensor]:
    """Block tables of as many batches as outgrow the L2, each with blocks of its own, scattered over the pool."""
    token_bytes = cache.block_bytes / cache.block_tokens
    blocks = sum(blocks_of(contexts, cache.block_tokens))
    wanted = copies_to_outgrow(lab.l2_bytes, sum(contexts) * token_bytes)
    return lab.pools.tables(cache, contexts, min(wanted, cache.num_blocks // blocks))


def unequal(batch: int, mean: int, longest: int) -> list[int]:
    """Contexts spread evenly around their mean, up to the longest; all the same where that is the mean."""
    if longest <= mean or batch == 1:
        return [mean] * batch
    step = 2 * (longest - mean) / (batch - 1)
    return [max(1, round(longest - i * step)) for i in range(batch)]


def _cache(lab: Lab, sizes: Sizes, kv_dtype: str, contexts: list[int]) -> KvCache:
    block_tokens = sizes.get("block_tokens", _BLOCK_TOKENS) or _BLOCK_TOKENS
    blocks = sum(blocks_of(contexts, block_tokens))
    return lab.pools.cache(FORMATS[kv_dtype], block_tokens, sizes["num_kv_heads"], sizes["head_dim"], blocks)


def _query(lab: Lab, sizes: Sizes, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    query = lab.normal(tokens, sizes["num_heads"], sizes["head_dim"])
    return query, torch.empty_like(query)


def _decode(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    batch, context = sizes["batch"], sizes["prefix_len"] + 1
    contexts = unequal(batch, context, sizes.get("longest", context))
    cache = _cache(lab, sizes, sizes["kv_dtype"], contexts)
    query, out = _query(lab, sizes, batch)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=lab.device)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=lab.device)
    paged = sizes.get("block_tokens") != 0
    units = [attention.Units(starts, t, lengths, 1, max(contexts)) for t in _context_sets(lab, cache, contexts)]
    return [partial(attention.decode, query, cache, one, out, paged=paged) for one in units]


def _shared(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    members, suffix, prefix = sizes["batch"], sizes["prefix_len"] + 1, sizes["shared_len"]
    contexts = [prefix, *[suffix] * members]
    cache = _cache(lab, sizes, sizes["kv_dtype"], contexts)
    query, out = _query(lab, sizes, members)
    starts = torch.arange(members + 1, dtype=torch.int32, device=lab.device)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=lab.device)
    runs = []
    for tables in _context_sets(lab, cache, contexts):
        before = attention.Units(starts[::members].contiguous(), tables[:1], lengths[:1], members, prefix)
        narrow = tables[1:, : -(-suffix // cache.block_tokens)].contiguous()
        after = attention.Units(starts, narrow, lengths[1:], 1, suffix)
        runs.append(partial(attention.shared_prefix_decode, query, cache, before, after, out))
    return runs


def _prefill(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    kv_dtype, _, how = sizes["kv_dtype"].partition("-")
    batch, new, cached = sizes["batch"], sizes["seq_len"], sizes["prefix_len"]
    if how:
        return _library_prefill(lab, sizes, how)
    contexts = [cached + new] * batch
    cache = _cache(lab, sizes, kv_dtype, contexts)
    query, out = _query(lab, sizes, batch * new)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=lab.device) * new
    lengths = torch.tensor(contexts, dtype=torch.int32, device=lab.device)
    tables = _context_sets(lab, cache, contexts) if cached else lab.pools.tables(cache, contexts, 1)
    units = [attention.Units(starts, table, lengths, new, cached + new) for table in tables]
    return [partial(attention.prefill, query, cache, one, out) for one in units]


def _library_prefill(lab: Lab, sizes: Sizes, how: str) -> Sequence[Run]:
    batch, new, total = sizes["batch"], sizes["seq_len"], sizes["prefix_len"] + sizes["seq_len"]
    heads, kv_heads, head_dim = (sizes[name] for name in ("num_heads", "num_kv_heads", "head_dim"))
    query = lab.normal(batch, heads, new, head_dim)
    set_bytes = 4 * batch * kv_heads * total * head_dim
    copies = copies_to_outgrow(lab.l2_bytes, set_bytes, 8) if total > new else 1
    pairs = [[lab.normal(batch, kv_heads, total, head_dim) for _ in range(2)] for _ in range(copies)]
    if how == "unfused":
        return [partial(sdpa.unfused, query, *pair) for pair in pairs]
    return [sdpa.fused(how, query, *pair) for pair in pairs]


def _pass(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    op, m, width = sizes["op"], sizes["m"], sizes["width"]
    x = lab.normal(m, width)
    other, out = lab.normal(m, width), torch.empty_like(x)
    make: Mapping[str, Callable[[], Callable[[], Any]]] = {
        "rms_norm": lambda: partial(elementwise.rms_norm, x, other[0], out),
        "add_rms_norm": lambda: partial(elementwise.add_rms_norm, x, other, x[0], out),
        "silu_mul": lambda: partial(elementwise.silu_mul, lab.normal(m, 2 * width), out),
        "rope": lambda: _rope(lab, x),
        "quantise_fp8": lambda: partial(quantise.quantise_rows, x, torch.float8_e4m3fn),
        "quantise_int8": lambda: partial(quantise.quantise_rows, x, torch.int8),
        "kv_write": lambda: _kv_write(lab, x),
        "copy": lambda: partial(out.copy_, x),
        "argmax": lambda: partial(elementwise.sample_greedy, x, torch.empty(m, dtype=torch.long, device=lab.device)),
        "top_k_top_p": lambda: partial(elementwise.sample_top_k_top_p, x, _TOP_K, _TOP_P),
    }
    return [make[op]()]


def _rope(lab: Lab, x: torch.Tensor) -> Run:
    angles = elementwise.rope_angles(8192, _HEAD_DIM, 500000.0, lab.device)
    positions = torch.arange(x.shape[0], device=lab.device) % 8192
    return partial(elementwise.rope, x, x.shape[1] // _HEAD_DIM, angles, positions)


def _kv_write(lab: Lab, x: torch.Tensor) -> Run:
    """`width` elements per token: half of them keys, half values."""
    tokens, kv_heads = x.shape[0], x.shape[1] // 2 // _HEAD_DIM
    cache = lab.pools.cache(FORMATS["bf16"], _BLOCK_TOKENS, kv_heads, _HEAD_DIM, -(-tokens // _BLOCK_TOKENS))
    keys, values = x.view(tokens, 2, kv_heads, _HEAD_DIM).unbind(1)
    slots = torch.randperm(cache.num_blocks * _BLOCK_TOKENS, device=lab.device)[:tokens]
    return partial(paging.write, keys, values, cache, slots)


def _block_move(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    count = sizes["blocks"]
    kv_heads = sizes["block_bytes"] // (2 * 2 * _BLOCK_TOKENS * _HEAD_DIM)
    cache = lab.pools.cache(FORMATS["bf16"], _BLOCK_TOKENS, kv_heads, _HEAD_DIM, 2 * count)
    copies = min(copies_to_outgrow(lab.l2_bytes, 2 * count * sizes["block_bytes"]), cache.num_blocks // (2 * count))
    order = torch.randperm(cache.num_blocks, device=lab.device)[: 2 * count * copies].view(copies, 2, count)
    if sizes["op"] == "gather":
        order[:, 1] = torch.arange(count, device=lab.device) + cache.num_blocks - count
    return [partial(paging.copy_blocks, cache, cache, pair[0], pair[1]) for pair in order]


def _swap(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    count, size = sizes["blocks"], sizes["block_bytes"]
    pool = torch.empty((2 * count, size), dtype=torch.uint8, device=lab.device)
    host = torch.empty((count, size), dtype=torch.uint8, pin_memory=lab.on_gpu)
    blocks = torch.randperm(2 * count, device=lab.device)[:count]
    direction, _, how = sizes["how"].partition("_")
    if how == "blockwise":
        pairs = [(origin, place) for place, origin in enumerate(blocks.tolist())]
        if direction == "out":
            return [partial(paging.swap_blockwise, pool, host, pairs)]
        return [partial(paging.swap_blockwise, host, pool, [(place, origin) for origin, place in pairs])]
    staging = torch.empty((count, size), dtype=torch.uint8, device=lab.device)
    if direction == "out":
        return [partial(paging.swap_out_batched, pool, host, blocks, staging)]
    return [partial(paging.swap_in_batched, host, pool, blocks, staging)]


def _all_reduce(lab: Lab, sizes: Sizes) -> Sequence[Run]:
    gpus = sizes["n_gpus"]
    if torch.cuda.device_count() < gpus:
        raise RuntimeError(f"needs {gpus} GPUs")
    tensors = [torch.randn(sizes["bytes"] // 2, device=f"cuda:{i}").bfloat16() for i in range(gpus)]
    return [partial(torch.cuda.nccl.all_reduce, tensors)]


_BUILDERS: Mapping[str, Callable[[Lab, Sizes], Sequence[Run]]] = {
    "gemm": _gemm,
    "attention_decode": _decode,
    "decode_blocks": _decode,
    "attention_shared": _shared,
    "attention_prefill": _prefill,
    "passes": _pass,
    "block_moves": _block_move,
    "swap": _swap,
    "launches": lambda lab, sizes: [elementwise.empty_kernel],
    "all_reduce": _all_reduce,
}
