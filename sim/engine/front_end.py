"""What stands between clients and schedulers: an API server that parses, tokenises and streams back."""

from __future__ import annotations

from sim.request import Request


class FrontEnd:
    """How long a request is under way before a scheduler sees it.

    `request_ps` is the way there and back: HTTP, hand-over between processes, and the first token's way to the client,
    which no client can tell from the way there. It delays each request on its own. Tokenising takes
    `prompt_token_ps` per prompt token in one thread (vLLM's AsyncMicrobatchTokenizer; from memory), so requests that
    come together wait for each other there.
    """

    def __init__(self, request_ps: float, prompt_token_ps: float) -> None:
        self._request_ps, self._prompt_token_ps = request_ps, prompt_token_ps
        self._free_ps = 0

    def delay_ps(self, request: Request, now_ps: int) -> int:
        """The time until the request, which arrives now, reaches a scheduler."""
        start = max(now_ps, self._free_ps)
        self._free_ps = start + round(self._prompt_token_ps * request.prompt_tokens)
        return self._free_ps - now_ps + round(self._request_ps)
