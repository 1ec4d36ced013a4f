"""The traffic of a scenario together with where it is written, so that errors point there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sim.documents import Document, KeyPath, load_yaml, validate
from sim.scenario import LoadedScenario
from sim.workloads.builder import load_workload
from sim.workloads.spec import WorkloadSpec


@dataclass(frozen=True)
class WrittenWorkload:
    """The traffic of a run and where it is written: a file of its own, or the scenario's `workload:`."""

    spec: WorkloadSpec
    document: Document
    at: KeyPath

    def blamed(self) -> AbstractContextManager[None]:
        """Errors inside that name no file point at the workload's key, or at the file in which it stands."""
        return self.document.blamed(self.at, under=self.at)


def written_workload(loaded: LoadedScenario) -> WrittenWorkload:
    """The workload of a scenario, read and checked by itself. Raises ConfigError pointing at file and key."""
    given, at = loaded.scenario.workload, ("workload",)
    if not isinstance(given, str):
        return WrittenWorkload(validate(WorkloadSpec, loaded.document, at=at, data=given), loaded.document, at)
    with loaded.document.blamed(at):
        spec, path = load_workload(given, beside=loaded.path)
    is_trace = spec.trace == str(path)
    return WrittenWorkload(spec, Document(path, {}) if is_trace else load_yaml(path), ())


def check_context(written: WrittenWorkload, max_model_len: int) -> None:
    """Raise ConfigError where every request is longer than the server accepts: a mistake, not a result."""
    spec = written.spec
    if spec.input_tokens is None or spec.output_tokens is None:
        return
    prompt, answer = _shortest(spec.input_tokens), _shortest(spec.output_tokens)
    answer = min(answer, spec.max_output_tokens or answer)
    prompt += spec.shared_prefix.tokens if spec.shared_prefix is not None else 0
    if prompt + answer > max_model_len:
        longer = "input_tokens" if prompt >= answer else "output_tokens"
        raise written.document.error(
            (*written.at, longer), f"the shortest request has {prompt + answer} tokens, but max_model_len is "
            f"{max_model_len}: no request could be served",
        )  # fmt: skip


def _shortest(law: Any) -> int:
    """The fewest tokens a length law can draw, as far as its keys say so."""
    return int(law if isinstance(law, int) else getattr(law, "tokens", getattr(law, "min", 1)))
