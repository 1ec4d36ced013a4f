"""The yardstick: continuous batching as a bare single-step loop, without any of the simulator.

No SimPy, no seams, no KV cache, two times per request as records, one formula for a step; every step costs
a handful of additions, whatever the batch. It says how fast this machine's Python is at the least that a simulator of
this kind must do. The simulator is compared with it in the same process.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def serve(
    arrivals_s: Sequence[float], prompt_tokens: Sequence[int], output_tokens: Sequence[int], *,
    max_num_seqs: int = 256, max_num_batched_tokens: int = 2048,
) -> list[tuple[float, float]]:  # fmt: skip
    """(first token, last token) of every request, in seconds."""
    n, arrived, step, count, context, now = len(arrivals_s), 0, 0, 0, 0, 0.0
    waiting: list[int] = []
    head = 0
    finishes: list[tuple[int, int]] = []
    first, last = [0.0] * n, [0.0] * n
    done = 0
    while done < n:
        while arrived < n and arrivals_s[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        if not count and head == len(waiting):
            now = arrivals_s[arrived]
            continue
        budget, prefill = max_num_batched_tokens - count, 0
        joining = []
        while head < len(waiting) and count + len(joining) < max_num_seqs:
            request = waiting[head]
            if prompt_tokens[request] > budget - prefill:
                break
            prefill += prompt_tokens[request]
            joining.append(request)
            head += 1
        now += 4.6e-3 + 1.6e-7 * context + 1.8e-5 * prefill + 1e-5 * count
        step += 1
        context += count
        for request in joining:
            first[request] = now
            context += prompt_tokens[request]
            heapq.heappush(finishes, (step + output_tokens[request] - 1, request))
        count += len(joining)
        while finishes and finishes[0][0] <= step:
            _, request = heapq.heappop(finishes)
            context -= prompt_tokens[request] + output_tokens[request] - 1
            count -= 1
            last[request] = now
            done += 1
    return list(zip(first, last, strict=True))
