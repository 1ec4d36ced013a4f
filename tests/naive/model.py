"""What goes into the naive simulator and what comes out of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    id: int
    arrival_ps: int
    prompt: int
    output: int
    max_output: int
    hashes: tuple = ()  # what the prompt holds, one hash per `hash_tokens` tokens
    hash_tokens: int = 0
    predicted: int = 0  # output tokens that are expected
    priority: int = 0
    tenant: str = ""
    names_answer: bool = False  # whether the hashes go on beyond the prompt


@dataclass
class Rules:
    """`duration_ps(contexts, chunks)` is the length of a step: cached tokens of each decode, and chunks as (tokens
    computed before, new tokens). `on_finish(id, now)` may return the client's next job."""

    duration_ps: Callable[[list[int], list[tuple[int, int]]], int]
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    policy: str = "chunked"
    max_model_len: int = 10**9
    lead: int = 0
    long_prefill_token_threshold: int = 0
    client_timeout_ps: float = math.inf
    replicas: int = 1
    router: str = "round_robin"  # any other: the fewest outstanding requests
    on_finish: Callable[[int, int], Job | None] = lambda id_, now: None
    prefix_caching: bool = False
    match: str = "hash_block"
    eviction: str = "lru"
    policy_options: dict[str, Any] = field(default_factory=dict)
    queue: str = "fcfs"
    queue_options: dict[str, Any] = field(default_factory=dict)
    victim: str = "newest"
    memory: str = "paged"
    fixed_blocks: int = 0
    swap: dict[str, int] | None = None  # capacity, block_bytes, bytes_per_s, latency_ps
    memory_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    requests: dict[int, tuple]  # state, reason, replica, scheduled_ps, first_token_ps, finish_ps, emitted, preemptions
    boundaries: list[list[int]]  # per replica: the end of every step
    order: list[list[tuple[str, int]]]  # per replica: ("admit" | "preempt" | "finish" | "abort", id)
    token_times: dict[int, list[int]]
    cached: dict[int, int]  # tokens found in the prefix cache at the first admission


@dataclass(eq=False)
class Sequence:
    job: Job
    target: int  # tokens to compute before the next one can be emitted
    deadline: float
    home: Any  # its replica
    state: str = "waiting"
    reason: str = ""
    computed: int = 0  # like `promised`, as it will be once every step planned so far has ended
    promised: int = 0  # tokens emitted, counting those of planned steps
    wasted: int = 0  # decodes after the last token, for nothing
    scheduled: int = -1
    ran: bool = False  # it has been admitted
    finish: int = -1
    preemptions: int = 0
    cached: int = -1
    room: int = 0  # tokens that were reserved at admission
    path: list[Any] = field(default_factory=list)  # nodes of a radix tree that it holds
    table: list[int] = field(default_factory=list)  # the numbers of its blocks
    own: bool = False  # its blocks from here on hold what blocks of another sequence hold, or follow such a block
    tokens: list[int] = field(default_factory=list)  # when the client received each

    @property
    def decodes(self):
        return self.computed >= self.target

    @property
    def idle(self):
        """Waiting, and no step in flight still emits a token for it."""
        return self.state == "waiting" and self.promised == len(self.tokens)

    @property
    def served(self):
        """Its last token has arrived."""
        return len(self.tokens) == self.job.output
