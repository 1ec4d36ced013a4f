"""What is known of prompts in memory below the GPU's: the host's, a disk, a remote store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.kv.prefix_tree import Prompt, Run


class TierStore:
    """Blocks of prompts in tiers of so many blocks each, fastest first; a block is in one of them.

    A tree as on the GPU, whose runs carry the number of their tier. What is put in goes to the first tier; a tier that
    is full moves the run that was put in the longest ago, the end of a prompt before its beginning, to the next one,
    as a whole, and the last tier forgets it (AttentionStore, Gao et al., USENIX ATC 2024; HiCache of SGLang).
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self.used = [0] * len(capacities)
        self.written = [0] * len(capacities)
        """Blocks that each tier has received over the run."""
        self._queues: list[OrderedDict[Run, None]] = [OrderedDict() for _ in capacities]
        self._roots: dict[int, Run] = {}

    def prompt(self, prompt: Prompt, hash_tokens: int) -> Prompt:
        """The same content, to be looked for here. Hashes of different lengths never match."""
        root = self._roots.get(hash_tokens)
        if root is None:
            root = self._roots[hash_tokens] = Run(None, None, (), 0, 0)
        return Prompt(root, prompt.keys, prompt.ratio, prompt.blocks)

    def parts(self, prompt: Prompt, begin: int, limit: int) -> list[int]:
        """Blocks in each tier of the longest known beginning up to `limit`, without its first `begin` blocks."""
        path, found, _ = prompt.find(limit)
        parts = [0] * len(self.used)
        for run in path:
            blocks = min(run.end, found) - max(run.begin, begin)
            if blocks > 0:
                parts[run.tier] += blocks
        return parts

    def missing(self, prompt: Prompt, end: int) -> int:
        """Blocks up to `end` that are not in the first tier."""
        return end - self.parts(prompt, 0, end)[0]

    def put(self, prompt: Prompt, end: int) -> list[int]:
        """The blocks up to `end` are in the first tier now, newest of all; how many each tier has received for it."""
        path, found, _ = prompt.find(end)
        if path and path[-1].end > found:
            path[-1] = path[-1].split(found, prompt.ratio)  # what goes on behind keeps its place
        if end > found:
            above = path[-1] if path else prompt.run
            key = prompt.keys[found // prompt.ratio]
            path.append(Run(above, key, prompt.keys, found, end))
            above.children[key] = path[-1]
            self.used[0] += end - found
        received = [end - found, *[0] * (len(self.used) - 1)]
        for run in reversed(path):
            self._queues[run.tier].pop(run, None)
            if run.tier:
                self._move(run, 0, received)
            self._queues[0][run] = None
        self._make_room(received)
        self.written = [a + b for a, b in zip(self.written, received, strict=True)]
        return received

    def _move(self, run: Run, tier: int, received: list[int]) -> None:
        self.used[run.tier] -= run.blocks
        self.used[tier] += run.blocks
        received[tier] += run.blocks
        run.tier = tier

    def _make_room(self, received: list[int]) -> None:
        for tier, capacity in enumerate(self.capacities):
            while self.used[tier] > capacity:
                run, _ = self._queues[tier].popitem(last=False)
                if tier + 1 < len(self.used):
                    self._move(run, tier + 1, received)
                    self._queues[tier + 1][run] = None
                else:
                    self.used[tier] -= run.blocks
                    run.forget()
