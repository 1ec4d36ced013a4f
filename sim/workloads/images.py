"""Prompts with images: how many a request has, how large they are, and how many tokens they add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.request import Request
from sim.rng import stream
from sim.workloads.base import Workload
from sim.workloads.lengths import Lengths, law

_BLOCK = 1024  # requests whose images are drawn together


class Images(BaseModel):
    """Images in front of the questions of some requests, all of one size."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: Lengths = Field(default=1, description="images of a request that has any: an integer, or a law")
    share: float = Field(default=1.0, gt=0, le=1, description="of the requests that have images")
    width: int = Field(default=1024, ge=1, le=100_000, description="pixels, before the model's preprocessor scales")
    height: int = Field(default=1024, ge=1, le=100_000, description="pixels")


class WithImages:
    """Other traffic, requests of which have images; `image_tokens` each, as the model's vision tower makes of them.

    They stand behind what prompts share (a system prompt, retrieved passages) and before the rest, and are never the
    same in two requests. The draw depends on the seed and the request's id alone.
    """

    def __init__(self, inner: Workload, images: Images, image_tokens: int, *, seed: int = 0) -> None:
        self._inner, self._images, self._size, self._seed = inner, images, image_tokens, seed
        self.num_requests, self.has_prefixes, self.notes = inner.num_requests, inner.has_prefixes, inner.notes
        self._block, self._drawn = -1, np.empty(0, np.int64)
        self._sent = 0

    def __iter__(self) -> Iterator[Request]:
        self._sent = 0
        return map(self._illustrated, self._inner)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """What the client sends next, with images of its own."""
        return map(self._illustrated, self._inner.on_finish(request, now_ps))

    def describe(self) -> dict[str, Any]:
        """The traffic as it is without, and its images: tokens of each, the mean per request, how many were sent."""
        inner, mean = self._inner.describe(), law(self._images.count).mean_tokens * self._images.share
        tokens = inner.get("mean_input_tokens")
        images = {"tokens_per_image": self._size, "mean_per_request": mean, "sent": self._sent}
        return {
            **inner,
            "mean_input_tokens": None if tokens is None else tokens + mean * self._size,
            "images": {**self._images.model_dump(mode="json"), **images},
        }

    def _illustrated(self, request: Request) -> Request:
        images = self._number(request.id)
        if images:
            traits = request.traits
            start = min(len(traits.prefix_hashes) * traits.prefix_block_tokens, request.prompt_tokens)
            request.traits = replace(traits, images=images, image_tokens=self._size, images_start=start)
            request.prompt_tokens += images * self._size
            request.target_tokens = request.prompt_tokens
            self._sent += images
        return request

    def _number(self, key: int) -> int:
        block, place = divmod(key, _BLOCK)
        if block != self._block:
            rng = stream(self._seed, "images", block)
            counts = law(self._images.count).draw(rng, _BLOCK)
            self._block, self._drawn = block, np.where(rng.random(_BLOCK) < self._images.share, counts, 0)
        return int(self._drawn[place])
