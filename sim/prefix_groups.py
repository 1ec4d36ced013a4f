"""Which decoding sequences begin alike: what attention to shared prefixes reads once instead of once per sequence."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from sim.request import REQUEST_MASK, Request

Path = tuple[tuple[Hashable, int], ...]
"""Blocks from the beginning of a prompt on: identity, and tokens."""


class PrefixGroups:
    """The tree of the beginnings of all decoding prompts, kept as sums.

    A block whose content several members share is stored once and seen by all of them. With `siblings`, what is left
    of a prompt is shared by the sequences of its request (parallel sampling). The sums change when a member joins or
    leaves and cost a walk over the blocks of its prompt; a step costs nothing.

    Hydragen (Juravsky et al. 2024) treats every level of the tree in this way.
    """

    def __init__(self, *, siblings: bool = False) -> None:
        self._siblings = siblings
        self.sums = [0, 0]
        """(tokens stored in shared blocks, the same counted once for every member that sees them)."""
        self._members: dict[Hashable, int] = {}

    def join(self, request: Request) -> None:
        """The request decodes from the next step on."""
        for key, tokens in self._path(request):
            members = self._members[key] = self._members.get(key, 0) + 1
            self._count(members, tokens, 1)

    def leave(self, request: Request) -> None:
        """It does not any more."""
        for key, tokens in self._path(request):
            members = self._members[key]
            self._count(members, tokens, -1)
            self._members[key] = members - 1
            if members == 1:
                del self._members[key]

    def _count(self, members: int, tokens: int, sign: int) -> None:
        """A block is seen by `members` with the one that comes or goes; alone, nothing is shared."""
        if members == 2:
            self.sums[0] += sign * tokens
            self.sums[1] += sign * 2 * tokens
        elif members > 2:
            self.sums[1] += sign * tokens

    def _path(self, request: Request) -> Iterator[tuple[Hashable, int]]:
        traits, prompt = request.traits, request.prompt_tokens
        size, known = traits.prefix_block_tokens, 0
        if size:
            for key in traits.prefix_hashes[: prompt // size]:
                yield (size, key), size
            known = min(len(traits.prefix_hashes), prompt // size) * size
        if self._siblings and prompt > known:
            yield request.id & REQUEST_MASK, prompt - known


class SystemPrompt(PrefixGroups):
    """Only the beginning that all decoding sequences have in common: RelayAttention (Zhu et al. 2024)."""

    def __init__(self, *, siblings: bool = False) -> None:
        super().__init__(siblings=False)
        self._paths: dict[Request, Path] = {}

    def join(self, request: Request) -> None:
        """What is common to all can only become less, and is part of the newcomer's prompt."""
        self._paths[request] = tuple(self._path(request))
        super().join(request)
        self._sum()

    def leave(self, request: Request) -> None:
        """What is common to those who are left is part of the prompt of any of them."""
        super().leave(request)
        del self._paths[request]
        self._sum()

    def _count(self, members: int, tokens: int, sign: int) -> None:
        pass  # all sums follow from the paths

    def _sum(self) -> None:
        everybody = len(self._paths)
        common = 0
        if everybody > 1:
            for key, tokens in next(iter(self._paths.values())):
                if self._members.get(key) != everybody:
                    break
                common += tokens
        self.sums[:] = common, common * everybody
