"""The yardstick: continuous batching as one bare loop that takes every step by itself.

The same bookkeeping as the simulator (requests with progress, paged KV with preemption by recomputation, rows of
results) and as little of anything else as possible: no SimPy, no seams, one formula for the time of a step, no run of
steps in one go. Every step costs the same whatever the batch. The simulator is compared with it in the same process.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Sequence


class _Request:
    __slots__ = ("arrival", "computed", "emitted", "finish", "first", "id", "joined", "output", "preempted", "prompt",
                 "target")  # fmt: skip

    def __init__(self, number: int, arrival: float, prompt: int, output: int) -> None:
        self.id, self.arrival, self.prompt, self.output, self.target = number, arrival, prompt, output, prompt
        self.computed = self.emitted = self.preempted = self.joined = 0
        self.first = self.finish = -1.0


class Loop:
    """One server. `run` serves the requests and fills `rows` (per request) and `steps` (per step)."""

    def __init__(self, *, max_num_seqs: int = 256, max_num_batched_tokens: int = 2048, blocks: int = 6800) -> None:
        self.max_num_seqs, self.budget = max_num_seqs, max_num_batched_tokens
        self.free, self.size = blocks, 16
        self.due = [0] * self.size  # decoding requests that need a block in a step of this phase
        self.waiting: deque[_Request] = deque()
        self.running: dict[int, _Request] = {}
        self.finishes: list[tuple[int, int, int]] = []
        self.step = self.context = self.count = 0
        self.rows, self.steps = array("d"), array("d")

    def run(self, arrivals: Sequence[float], prompts: Sequence[int], outputs: Sequence[int]) -> None:
        """Serve all requests, to the last token."""
        n, arrived, now = len(arrivals), 0, 0.0
        while arrived < n or self.waiting or self.running:
            while arrived < n and arrivals[arrived] <= now:
                self.waiting.append(_Request(arrived, arrivals[arrived], prompts[arrived], outputs[arrived]))
                arrived += 1
            if not self.waiting and not self.running:
                now = arrivals[arrived]
                continue
            self._make_room()
            chunks, prefill = self._admit()
            now += 4.6e-3 + 1.6e-7 * self.context + 1.8e-5 * prefill + 1e-5 * self.count
            self.steps.extend((now, self.count, self.context, prefill, self.free, len(self.waiting)))
            self._apply(chunks, now)

    def _make_room(self) -> None:
        while self.due[self.step % self.size] > self.free:
            _, victim = self.running.popitem()
            self._leave(victim)
            victim.preempted += 1
            victim.computed, victim.target = 0, victim.prompt + victim.emitted
            self.waiting.appendleft(victim)

    def _admit(self) -> tuple[list[_Request], int]:
        chunks, budget = [], self.budget - self.count
        waiting, needed = self.waiting, self.due[self.step % self.size]
        while waiting and len(self.running) < self.max_num_seqs:
            request = waiting[0]
            blocks = -(-request.target // self.size)
            if request.target > budget or blocks > self.free - needed:
                break
            self.free -= blocks
            budget -= request.target
            self.running[request.id] = waiting.popleft()
            chunks.append(request)
        return chunks, self.budget - self.count - budget

    def _apply(self, chunks: list[_Request], now: float) -> None:
        self.free -= self.due[self.step % self.size]
        self.step += 1
        self.context += self.count
        for request in chunks:
            request.computed, request.joined = request.target, self.step
            request.emitted += 1
            if request.first < 0:
                request.first = now
            self.count += 1
            self.context += request.computed
            self.due[(self.step - request.computed) % self.size] += 1
            last = self.step + request.output - request.emitted
            heapq.heappush(self.finishes, (last, request.id, request.preempted))
        while self.finishes and self.finishes[0][0] <= self.step:
            _, number, preempted = heapq.heappop(self.finishes)
            request = self.running.get(number)
            if request is not None and request.preempted == preempted:
                del self.running[number]
                self._leave(request)
                self.rows.extend((number, request.arrival, request.first, now, request.prompt, request.emitted))

    def _leave(self, request: _Request) -> None:
        done = self.step - request.joined
        self.due[(request.joined - request.computed) % self.size] -= 1
        request.computed += done
        request.emitted += done
        self.count -= 1
        self.context -= request.computed
        self.free += -(-request.computed // self.size)
