"""The keys of a workload file, or of the same mapping inside a scenario.

Field descriptions are the user's documentation: `roofserve schema` prints them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.workloads.agents import Agent
from sim.workloads.arrivals import AllAtOnce, ClosedLoop, Constant, Gamma, Poisson, Stages, Weibull
from sim.workloads.graph_rag import GraphRag
from sim.workloads.images import Images
from sim.workloads.lengths import Lengths, TokenCount
from sim.workloads.rag import Rag
from sim.workloads.sessions import SessionLaw
from sim.workloads.sizes import SharedPrefix
from sim.workloads.skeleton import SkeletonLaw
from sim.workloads.tenants import Tenant

Arrival = Annotated[Poisson | Gamma | Weibull | Constant | AllAtOnce | ClosedLoop | Stages, Field(discriminator="kind")]
Application = Annotated[Rag | GraphRag | Agent, Field(discriminator="kind")]
TooLong = Literal["refuse", "drop", "clip", "fail"]

MOST_SEQUENCES = 1024
"""The most sequences of a request."""
_MOST = 2**31 - 1
_SYNTHETIC_ONLY = (
    "num_requests",
    "duration_s",
    "input_tokens",
    "output_tokens",
    "shared_prefix",
    "sessions",
    "application",
)
_TRACE_ONLY = ("time_scale", "max_requests", "start_s", "end_s", "scale_input", "scale_output", "on_too_long")


class WorkloadSpec(BaseModel):
    """A traffic description: either laws (arrival, input_tokens, output_tokens) or a recorded trace."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: str = Field(default="", description="free text for people")
    source: str = Field(default="", description="where the figures come from")

    num_requests: int | None = Field(default=None, gt=0, le=_MOST, description="stop after this many requests")
    duration_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="no request arrives at or after this time, seconds"
    )
    arrival: Arrival | None = Field(
        default=None,
        description="when requests arrive; the process is chosen by `kind`. With a trace: in place of its own times",
    )
    input_tokens: Lengths | None = Field(
        default=None, description="prompt length: an integer, or a law chosen by `kind`"
    )
    output_tokens: Lengths | None = Field(
        default=None, description="answer length: an integer, or a law chosen by `kind`"
    )
    shared_prefix: SharedPrefix | None = Field(
        default=None, description="a system prompt in front of every prompt, on top of input_tokens"
    )
    sessions: SessionLaw | None = Field(
        default=None,
        description="conversations: `arrival` is that of sessions, input_tokens what each turn adds to all before it",
    )
    application: Application | None = Field(
        default=None,
        description="several requests per question, chosen by `kind`: rag, graph_rag or agent. `arrival` is that of "
        "questions, input_tokens the question, output_tokens the final answer, num_requests counts requests",
    )
    images: Images | None = Field(
        default=None,
        description="images before the questions, for a model that sees; their tokens come on top of input_tokens",
    )
    skeleton: SkeletonLaw | None = Field(
        default=None,
        description="Skeleton-of-Thought: every question is outlined, then its points are answered side by side",
    )
    max_output_tokens: TokenCount | None = Field(
        default=None,
        description="max_tokens every client asks for; answers are cut there. Default: exactly the answer's length",
    )
    n: int = Field(
        default=1, ge=1, le=MOST_SEQUENCES, description="answers to every prompt, sampled side by side (vLLM n)"
    )
    beam_width: int | None = Field(
        default=None, ge=2, le=MOST_SEQUENCES, description="beams of a beam search; all of them are returned"
    )
    beam_switch_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="chance that a beam is dropped after a token, and another one continued twice. Default: "
        "(1 - 1/w)^w for w beams, as if each descended from any of them",
    )
    tenants: list[Tenant] = Field(
        default=[], description="who the requests belong to, drawn by share: for fair_share, priority and results"
    )
    client_timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="a client gives up this long after sending, seconds. Default: never",
    )

    trace: str | None = Field(
        default=None,
        description="path of a recorded trace, from the current directory or beside this file; its format is detected",
    )
    time_scale: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="multiplies the time between arrivals: 0.5 doubles the load"
    )
    max_requests: int | None = Field(default=None, gt=0, le=_MOST, description="replay only the first so many requests")
    start_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="skip what arrives earlier than this after the trace's first request",
    )
    end_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="skip what arrives at or after this time of the trace, seconds",
    )
    scale_input: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="multiplies prompt lengths")
    scale_output: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="multiplies answer lengths")
    on_too_long: TooLong = Field(
        default="refuse",
        description="rows with more tokens than max_model_len: refuse (sent, and refused as a server would), drop, "
        "clip (keep the prompt if it fits, cut the answer) or fail (stop with an error); always counted",
    )

    @property
    def sequences(self) -> int:
        """Continuations of every prompt: samples or beams."""
        return self.beam_width or self.n

    def limited(self, requests: int) -> WorkloadSpec:
        """The same traffic, ending after `requests` requests instead of where it says."""
        if self.trace is not None:
            return self.model_copy(update={"max_requests": requests})
        return self.model_copy(update={"num_requests": requests, "duration_s": None})

    @model_validator(mode="after")
    def _either_laws_or_trace(self) -> WorkloadSpec:
        # Compared with the defaults, not with what was written: a spec that was saved with all its keys loads again.
        written = {key for key, field in WorkloadSpec.model_fields.items() if getattr(self, key) != field.default}
        foreign = _SYNTHETIC_ONLY if self.trace is not None else _TRACE_ONLY
        for key in foreign:
            if key in written:
                raise ValueError(_misplaced(key, is_trace=self.trace is not None))
        if self.trace is None:
            for key in ("arrival", "input_tokens", "output_tokens"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key} is required but missing (or name a `trace` instead)")
            self._check_end()
        elif self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s}) is not after start_s ({self.start_s})")
        return self

    @model_validator(mode="after")
    def _samples_or_beams(self) -> WorkloadSpec:
        if self.beam_width is not None and self.n > 1:
            raise ValueError("n does not go with beam_width: a beam search returns all its beams")
        if self.beam_width is None and self.beam_switch_probability is not None:
            raise ValueError("beam_switch_probability belongs to a beam search, but there is no beam_width")
        if self.skeleton is not None and (self.sequences > 1 or self.sessions is not None):
            raise ValueError("skeleton asks single questions, with one answer to each: no n, beam_width or sessions")
        return self

    @model_validator(mode="after")
    def _sessions_or_application(self) -> WorkloadSpec:
        if self.application is not None and (self.sessions is not None or self.skeleton is not None):
            raise ValueError("application does not go with sessions or skeleton: each says what follows a request")
        if self.images is not None and (self.sessions is not None or isinstance(self.application, Agent)):
            raise ValueError("images do not go with sessions or agents, whose prompts begin with those before them")
        return self

    def _check_end(self) -> None:
        if self.num_requests is not None or isinstance(self.arrival, Stages):
            return
        if isinstance(self.arrival, AllAtOnce):
            raise ValueError("num_requests is required but missing: everything arrives at once")
        if self.duration_s is None:
            raise ValueError("num_requests or duration_s is required but missing")


def _misplaced(key: str, *, is_trace: bool) -> str:
    if not is_trace:
        return f"{key} belongs to a trace, but no `trace` is named"
    instead = {"num_requests": ": say max_requests", "duration_s": ": say end_s"}.get(key, "")
    return f"{key} does not go with a trace{instead}"
