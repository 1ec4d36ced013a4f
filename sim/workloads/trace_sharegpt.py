"""ShareGPT conversations (one JSON array, no arrival times): lengths estimated from the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sim.documents import parse_json
from sim.errors import ConfigError
from sim.workloads.trace_jsonl import read_text
from sim.workloads.trace_table import Trace, normalise

_CHARACTERS_PER_TOKEN = 4
_LEAST, _LONGEST_PROMPT, _LONGEST_TOTAL = 4, 1024, 2048


def read_sharegpt(path: Path) -> Trace:
    """The first exchange of every conversation, filtered as `vllm bench serve --dataset-name sharegpt` does.

    That filter drops prompts or answers under 4 tokens, prompts over 1024 and totals over 2048 (vllm,
    `benchmarks/datasets.py`, is_valid_sequence). vLLM counts with the model's tokenizer and shuffles; here a token is
    taken as 4 characters and the order is the file's.
    """
    conversations = _array(path)
    pairs = [pair for number, item in enumerate(conversations) if (pair := _first_exchange(path, number, item))]
    lengths = np.array(pairs, np.int64).reshape(-1, 2)
    prompts, answers = lengths[:, 0], lengths[:, 1]
    trace = Trace(
        format="sharegpt",
        path=path,
        arrival_ps=np.zeros(len(lengths), np.int64),
        input_tokens=prompts,
        output_tokens=answers,
        rows_read=len(conversations),
        counts={"dropped: fewer than two turns": short} if (short := len(conversations) - len(pairs)) else {},
        notes=(f"lengths are estimated as {_CHARACTERS_PER_TOKEN} characters per token, not counted by a tokenizer",),
        timed=False,
    )
    odd = (np.minimum(prompts, answers) < _LEAST) | (prompts > _LONGEST_PROMPT) | (prompts + answers > _LONGEST_TOTAL)
    return normalise(trace.without(odd, "dropped: outside the length limits of vLLM's ShareGPT filter"))


def _array(path: Path) -> list[Any]:
    data = parse_json(read_text(path), path)
    if not isinstance(data, list):
        raise ConfigError("is not a JSON array of conversations", file=path)
    return data


def _first_exchange(path: Path, number: int, item: Any) -> tuple[int, int] | None:
    turns = item.get("conversations", item.get("conversation")) if isinstance(item, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns[:2]):
        raise ConfigError("is not a list of turns", file=path, key=f"[{number}].conversations")
    if len(turns) < 2:
        return None
    prompt, answer = (_estimate(turn.get("value", turn.get("content", ""))) for turn in turns[:2])
    return prompt, answer


def _estimate(text: Any) -> int:
    return -(-len(str(text)) // _CHARACTERS_PER_TOKEN)
