"""How well guessing went, under the names of vLLM's benchmark (`spec_decode_*`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.results import RunResult


def guess_statistics(result: RunResult) -> dict[str, Any]:
    """Drafts (verifications of one sequence), tokens guessed and accepted; nothing without speculative decoding.

    `spec_decode_acceptance_length` is tokens per verification, the model's own included; the rate (per cent) is of the
    depth that was guessed to, as vLLM counts it. Answers that end before the last right guess lower both a little.
    """
    depth = result.facts.get("guess_depth")
    if depth is None:
        return {}
    drafts = accepted = 0
    for batch in result.segments.batches(["first_step", "last_step", "tokens"]):
        steps = (batch["last_step"] - batch["first_step"]).astype(np.int64)
        drafts += int(steps.sum())
        accepted += int((batch["tokens"] - 1 - steps).sum())
    return {
        "spec_decode_num_drafts": drafts,
        "spec_decode_draft_tokens": drafts * depth,
        "spec_decode_accepted_tokens": accepted,
        "spec_decode_acceptance_rate": 100 * accepted / (drafts * depth) if drafts else None,
        "spec_decode_acceptance_length": 1 + accepted / drafts if drafts else None,
    }
