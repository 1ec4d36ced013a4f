"""The least time that one replica spends on a request, whatever the batching: what no fleet can beat.

Used to leave out configurations that cannot win, before anything is simulated. Every term is a lower bound on the
step times that the simulation itself uses, so nothing that is left out could have been the answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.cost.shape import RunShape
from sim.setup import Setup
from sim.slo import per_request_limits_ms
from sim.units import PS_PER_S, ceil_div

_SAFETY = 0.9
"""For what the terms leave out: prices between knots, and prompts of unequal length in one step."""
_MOST_SIZES = 4000
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class LeastWork:
    """Lower bounds of one option under one traffic, in seconds."""

    per_request_s: float
    """Time of one replica that a request takes at least, when all others help to fill the batches."""
    tpot_s: float
    """Time between tokens of a sequence alone on its replica."""
    ttft_s: float
    """Time to the first token of the median prompt on an idle replica."""
    alone_s: float
    """Time of a mean request alone on its replica, nothing of it shared; about, and not a bound."""

    slack_s: float
    """How long after the last arrival the fleet may still be busy; infinite where no objective says so."""

    def replicas(self, requests: float, span_s: float) -> int:
        """Fewest replicas that can serve so many requests, of which the last arrives after `span_s`.

        Where no objective bounds the time after that, twice the span does: who needs longer has a queue that grows
        for as long as requests arrive. A batch without objectives on time can take for ever.
        """
        slack_s = self.slack_s if math.isfinite(self.slack_s) else span_s
        if span_s + slack_s <= 0:
            return 1
        return max(1, math.ceil(requests * self.per_request_s / (span_s + slack_s)))


@dataclass(frozen=True)
class Sizes:
    """Lengths of the first requests of a traffic that a server takes, in tokens."""

    prompts: np.ndarray[tuple[int], np.dtype[np.float64]]
    answers: np.ndarray[tuple[int], np.dtype[np.float64]]
    served_share: float
    """Of all requests; the others exceed the model's context and are refused."""

    @classmethod
    def of(cls, setup: Setup) -> Sizes:
        """As the scenario draws them."""
        requests = list(itertools.islice(setup.workload, _MOST_SIZES))
        most = setup.engine.max_model_len
        served = [r for r in requests if r.prompt_tokens + r.max_output_tokens <= most] or requests
        prompts = np.array([request.prompt_tokens for request in served], dtype=np.float64)
        answers = np.array([request._output_tokens for request in served], dtype=np.float64)
        return cls(prompts, answers, len(served) / len(requests))


def least_work(setup: Setup) -> LeastWork:
    """The largest of three lower bounds of a request's share of a replica's time.

    * every decode step reads the weights once for at most as many sequences as seats, KV memory and the objective on
      TPOT allow;
    * every prompt token is a row of the matrix products in the fullest step there may be, at its best efficiency;
    * all rows, prompt and answer, cost at least that, and attention comes on top.

    Prompts whose beginnings are shared count as if they were free.
    """
    sizes = Sizes.of(setup)
    prompt = 0.0 if setup.shares_prefixes else float(sizes.prompts.mean())
    answer = float(sizes.answers.mean())
    # Of a decode step in which a sequence takes part: answers count by their length.
    context = float((sizes.answers * (sizes.prompts + sizes.answers / 2)).mean()) / answer
    steps = _decode_steps(setup, sizes, answer, context)
    row_s = _row_s(setup)
    decode = _step_s(setup, 1, 1) * steps
    # Beginnings and prompts that several sequences share may be read once for all of them.
    alone = not setup.shares_prefixes and setup.spec.sequences == 1
    attention = answer * _decode_attention_s(setup, context) / _tokens_per_step(setup) if alone else 0.0
    rows = (prompt + answer) * row_s + attention
    per_request = _SAFETY * sizes.served_share * max(decode, rows)
    median = round(float(np.median(sizes.prompts)))
    ttft = 0.0 if setup.shares_prefixes else median * row_s
    token_s = _SAFETY * _step_s(setup, 1, 1) / _tokens_per_step(setup)
    alone_s = float(sizes.prompts.mean()) * row_s + answer * token_s
    return LeastWork(per_request, token_s, _SAFETY * ttft, alone_s, _slack_s(setup.scenario.slo, token_s, sizes))


def _slack_s(slo: Mapping[str, float], alone_s: float, sizes: Sizes) -> float:
    limits = per_request_limits_ms({key: value for key, value in slo.items() if _in_the_tail(key)})
    allowed = []
    if "e2el" in limits:
        allowed.append(limits["e2el"] / 1e3)
    if "ttft" in limits:
        tpot = limits.get("tpot", 1e3) / 1e3
        allowed.append(limits["ttft"] / 1e3 + float(sizes.answers.max()) * max(tpot, alone_s))
    return min(allowed, default=math.inf)


def _in_the_tail(key: str) -> bool:
    """Whether an objective binds nearly all requests: a p50 lets half of them do as they please."""
    return "_p9" in key or not any(f"_{word}" in key for word in ("p", "mean", "median"))


def _decode_steps(setup: Setup, sizes: Sizes, answer: float, context: float) -> float:
    """Decode steps per request, counting each step once for all sequences in it."""
    seats = float(setup.engine.max_num_seqs)
    tokens = setup.num_blocks * setup.engine.kv_cache["block_size"]
    if not setup.shares_prefixes and setup.bound_tokens is None and setup.spec.sequences == 1:
        seats = min(seats, tokens / context)
    limit = per_request_limits_ms({k: v for k, v in setup.scenario.slo.items() if _in_the_tail(k)}).get("tpot")
    if limit is not None:
        # With nearly all requests at or below the limit, so is the mean step that a token sees (a per cent is not).
        fitting = [b for b in _BATCHES if _step_s(setup, b, 1) <= 1.05 * _tokens_per_step(setup) * limit / 1e3]
        most = 2 * max(fitting) if fitting else 1.0
        seats = min(seats, most) if not fitting or max(fitting) < _BATCHES[-1] else seats
    return answer / max(seats, 1.0) / _tokens_per_step(setup)


def _tokens_per_step(setup: Setup) -> int:
    """Most tokens that a sequence gets from one step: with speculative decoding all guesses and one more."""
    guesses = setup.engine.speculative
    return 1 if guesses is None else int(guesses["num_speculative_tokens"]) + 1


def _step_s(setup: Setup, sequences: int, context: int) -> float:
    """Seconds of a step of so many decodes, each with `context` tokens, and nothing else."""
    spans = setup.timer.spans
    seen = [sequences * span.visible(context) for span in spans]
    shape = RunShape(sequences, sequences * context, (), seen, [sequences] * len(spans))
    total_ps: int = setup.timer.run(shape, 1).total_ps
    return total_ps / PS_PER_S


def _row_s(setup: Setup) -> float:
    """Least seconds per new token of everything that works on rows, over all step sizes that the engine may form."""
    forward, lanes = setup.timer.forward, setup.engine.layout.lanes
    most = setup.engine.max_num_batched_tokens
    sizes = {most, *(2**n for n in range(4, most.bit_length()))}
    per_row = [sum(op.seconds for op in forward.rows(ceil_div(size, lanes))) / size for size in sizes]
    return float(min(per_row))


def _decode_attention_s(setup: Setup, context: float) -> float:
    """Least seconds per decoded token in attention over the whole context; layers with a window count as free."""
    forward = setup.timer.forward
    batches = [b for b in _BATCHES if b <= setup.engine.max_num_seqs]
    return float(min(sum(op.seconds for op in forward.decode(b, round(b * context))) / b for b in batches))
