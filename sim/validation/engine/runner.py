"""From a plan to device tensors and a forward pass; decode-only steps replay a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sim.validation.engine.model import Batch, Decoder
from sim.validation.engine.scheduler import Part
from sim.validation.kernels import attention


def capture_sizes(most: int) -> list[int]:
    """Batch sizes that get a graph: 1, 2, 4, and every 8 (vLLM's defaults)."""
    return [size for size in (1, 2, 4) if size < most] + [*range(8, most, 8), most]


@dataclass
class _Graph:
    """A captured decode step: the tensors it reads, and the tokens it leaves."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    sampled: torch.Tensor


class TorchRunner:
    """Runs steps of a scheduler on a decoder."""

    def __init__(self, decoder: Decoder, *, block_tokens: int, max_len: int, max_running: int) -> None:
        self._decoder, self._block_tokens, self._max_len = decoder, block_tokens, max_len
        self._width = -(-max_len // block_tokens)
        self._sizes = capture_sizes(max_running)
        self._graphs: dict[int, _Graph] = {}
        self._on_gpu = decoder.device.type == "cuda"

    def capture(self) -> None:
        """Capture a graph for every size, largest first so that they share memory; nothing on a CPU."""
        if not self._on_gpu:
            return
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            # Padding: slot -1 writes nothing, a context of one token reads block 0.
            rows = np.zeros((size, 4 + self._width), np.int32)
            rows[:, 2:4] = -1, 1
            inputs = torch.from_numpy(rows).to(self._decoder.device)
            self._decoder.forward(self._decode_batch(inputs))
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                sampled = self._decoder.forward(self._decode_batch(inputs))
            self._graphs[size] = _Graph(graph, inputs, sampled)

    def run(self, parts: Sequence[Part]) -> dict[int, int]:
        """The next token of every part that emits."""
        if all(part.is_decode for part in parts):
            tokens = self._decode(parts)
        else:
            tokens = _listed(self._decoder.forward(self._mixed_batch(parts)))
        emitting = [part.live.number for part in parts if part.emits]
        return dict(zip(emitting, tokens, strict=False))

    def _decode(self, parts: Sequence[Part]) -> list[int]:
        size = next((s for s in self._sizes if s >= len(parts)), len(parts))
        rows = np.zeros((size, 4 + self._width), np.int32)
        rows[:, 2:4] = -1, 1
        self._fill(rows, parts)
        captured = self._graphs.get(size)
        if captured is None:
            inputs = torch.from_numpy(rows).to(self._decoder.device)
            return _listed(self._decoder.forward(self._decode_batch(inputs))[: len(parts)])
        captured.inputs.copy_(torch.from_numpy(rows))
        captured.graph.replay()
        return _listed(captured.sampled[: len(parts)])

    def _fill(self, rows: np.ndarray, parts: Sequence[Part]) -> None:
        """One row per decode: token, position, slot, context, and its block table."""
        for row, part in zip(rows, parts, strict=False):
            live, at = part.live, part.live.computed
            slot = live.blocks[at // self._block_tokens] * self._block_tokens + at % self._block_tokens
            row[:4] = live.tokens[at], at, slot, at + 1
            row[4 : 4 + len(live.blocks)] = live.blocks

    def _decode_batch(self, inputs: torch.Tensor) -> Batch:
        """Views of the rows that `_fill` writes, so that a captured graph reads them anew."""
        size = inputs.shape[0]
        every = torch.arange(size + 1, dtype=torch.int32, device=inputs.device)
        contexts, tables = inputs[:, 3].contiguous(), inputs[:, 4:].contiguous()
        units = attention.Units(every, tables, contexts, 1, self._max_len)
        tokens, positions, slots = (inputs[:, i].long() for i in range(3))
        return Batch(tokens, positions, slots, every[:size].long(), size, units, None)

    def _mixed_batch(self, parts: Sequence[Part]) -> Batch:
        columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        last, total = [], 0
        for part in parts:
            live, first = part.live, part.live.computed
            positions = range(first, first + part.new)
            columns[0].extend(live.tokens[first : first + part.new])
            columns[1].extend(positions)
            size = self._block_tokens
            columns[2].extend(live.blocks[at // size] * size + at % size for at in positions)
            total += part.new
            if part.emits:
                last.append(total - 1)
        decodes = [part for part in parts if part.is_decode]
        tokens, positions_, slots, lasts = (torch.tensor(x, device=self._decoder.device) for x in (*columns, last))
        return Batch(
            tokens,
            positions_,
            slots,
            lasts.long(),
            len(decodes),
            self._units(decodes),
            self._units(parts[len(decodes) :]),
        )

    def _units(self, parts: Sequence[Part]) -> attention.Units | None:
        if not parts:
            return None
        tables = np.zeros((len(parts), self._width), np.int32)
        for row, part in zip(tables, parts, strict=True):
            row[: len(part.live.blocks)] = part.live.blocks
        contexts = [part.live.computed + part.new for part in parts]
        lengths = [0, *(part.new for part in parts)]
        numbers = (np.cumsum(lengths, dtype=np.int32), tables, np.array(contexts, np.int32))
        starts, rows, sizes = (torch.from_numpy(one).to(self._decoder.device) for one in numbers)
        return attention.Units(starts, rows, sizes, max(lengths), max(contexts))


def _listed(tokens: torch.Tensor) -> list[int]:
    """Tokens on the host; waits for the GPU."""
    found: list[int] = tokens.tolist()
    return found
