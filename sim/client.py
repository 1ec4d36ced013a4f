"""What a client sees of what a server measured: how answers travel, and what a protocol adds to them.

Worked out afterwards from the request table, by column; the simulation itself knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.latencies import Sample
from sim.presets import Seconds
from sim.results import RunResult, Table
from sim.units import PS_PER_S

Floats = npt.NDArray[np.float64]
Response = Literal["sse", "websocket", "stream", "unary", "polling", "long_polling"]

TEXT_BYTES_PER_TOKEN = 4.0
"""Of English in today's vocabularies (from memory)."""
_TCP_IP_BYTES = 40
"""Headers of one segment without options (RFC 791 and RFC 9293: 20 bytes each)."""
_TLS_BYTES = 22
"""Of one record: 5 of header, 1 of content type, 16 of tag (RFC 8446, section 5.2)."""


@dataclass(frozen=True)
class Protocol:
    """Bytes that a protocol puts around a request or answer, and around every message of a stream."""

    headers: int
    """Of a request and of its answer each."""
    envelope: int
    """What a message holds beside its text: ids, model name, indices."""
    frame: int
    """Around one message of a stream, without TCP, IP and TLS."""


PROTOCOLS: Mapping[str, Protocol] = {
    # Headers and the JSON of an OpenAI chunk: about so many (from memory). Server-sent events: "data: " and two line
    # ends (HTML standard, section 9.2), in a chunk with size and line ends (RFC 9112, section 7.1).
    "http": Protocol(500, 230, 8 + 6),
    # Headers after HPACK and a protobuf envelope (from memory); HTTP/2 frame of 9 bytes (RFC 9113, section 4.1) and
    # gRPC's prefix of 5 (gRPC over HTTP/2).
    "grpc": Protocol(100, 10, 9 + 5),
    # A length before each message, and binary fields: an RPC of one's own over TCP (sizes are a choice of ours).
    "rpc": Protocol(8, 8, 4),
}
_WEBSOCKET_FRAME = 4
"""Of a message of 126 to 65,535 bytes from a server (RFC 6455, section 5.2)."""


class ClientSpec(BaseModel):
    """The way between the clients and the server."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    response: Response = Field(
        default="sse",
        description="sse or websocket: tokens as they come, over HTTP; stream: the same over grpc or rpc; unary: the "
        "whole answer at once; polling: what there is by then, every poll_interval_s; long_polling: each request is "
        "answered as soon as there is something new",
    )
    protocol: Literal["http", "grpc", "rpc"] = Field(
        default="http", description="what messages are wrapped in; rpc: a length before each, over plain TCP"
    )
    network_rtt_s: Seconds = Field(default=0.0, description="to the server and back, such as 30 ms")
    poll_interval_s: Seconds = Field(default=1.0, gt=0, description="polling: from one request for news to the next")
    long_poll_timeout_s: Seconds = Field(
        default=30.0, gt=0, description="long_polling: the server answers after this long even without news"
    )
    new_connection: bool = Field(
        default=False, description="every request opens a connection: one round trip for TCP, one for TLS 1.3 and one "
        "for the upgrade to WebSocket",
    )  # fmt: skip
    tls: bool = Field(default=True, description="connections are encrypted")

    @model_validator(mode="after")
    def _streams_fit_their_protocol(self) -> ClientSpec:
        if self.response in ("sse", "websocket") and self.protocol != "http":
            raise ValueError(f"{self.response} is HTTP's; over {self.protocol} the response is called stream")
        if self.response == "stream" and self.protocol == "http":
            raise ValueError("over http a stream is sse or websocket")
        return self

    @property
    def connect_s(self) -> float:
        """Before a request can be sent: round trips of TCP (RFC 9293), TLS 1.3 (RFC 8446) and WebSocket's upgrade."""
        trips = 1 + self.tls + (self.response == "websocket") if self.new_connection else 0
        return trips * self.network_rtt_s


@dataclass(frozen=True)
class Seen:
    """What clients saw of completed requests: seconds from sending to the first and to the last token, and messages."""

    ttft_s: Floats
    e2e_s: Floats
    tokens: Floats
    messages: Floats
    """Answers that carried text or were empty: tokens of a stream, polls, or one."""
    requests: Floats
    """What the client sent: one, or one more for every poll."""


def seen_by_clients(spec: ClientSpec, completed: Table) -> Seen:
    """What the clients of completed requests saw, given when their tokens were ready at the server."""
    arrival = completed["arrival_ps"]
    first, last = ((completed[name] - arrival) / PS_PER_S for name in ("first_token_ps", "finish_ps"))
    tokens = completed["output_tokens"].astype(np.float64)
    ready = _Ready(first, last, tokens)
    ttft, e2e, messages, requests = _MODES[spec.response](spec, ready)
    lead = spec.connect_s + spec.network_rtt_s / 2  # from sending to the arrival of the request
    return Seen(ttft + lead, e2e + lead, tokens, messages, requests)


@dataclass(frozen=True)
class _Ready:
    """Seconds from a request's arrival at the server until its first and last token are there, and its tokens."""

    first: Floats
    last: Floats
    tokens: Floats


_Outcome = tuple[Floats, Floats, Floats, Floats]
"""First and last token at the client, counted from the arrival at the server; messages; requests."""


def _streamed(spec: ClientSpec, ready: _Ready) -> _Outcome:
    back = spec.network_rtt_s / 2
    return ready.first + back, ready.last + back, ready.tokens, np.ones_like(ready.first)


def _unary(spec: ClientSpec, ready: _Ready) -> _Outcome:
    whole, one = ready.last + spec.network_rtt_s / 2, np.ones_like(ready.first)
    return whole, whole, one, one


def _polled(spec: ClientSpec, ready: _Ready) -> _Outcome:
    """The first poll leaves one interval after the request was acknowledged; its answer is all there is by then."""
    rtt, interval = spec.network_rtt_s, spec.poll_interval_s
    number = [np.maximum(1.0, np.ceil((at - rtt) / interval)) for at in (ready.first, ready.last)]
    ttft, e2e = (rtt + n * interval + rtt / 2 for n in number)
    return ttft, e2e, number[1] + 1, number[1] + 1


_TIE_S = 1e-12
"""A token that is ready as a poll runs out goes with it, whatever the rounding."""


def _long_polled(spec: ClientSpec, ready: _Ready) -> _Outcome:
    """An answer leaves with the first token there is; the next request is back one round trip later.

    From then on answers leave one round trip apart while tokens come faster than that, and with every token if they
    come slower (taken as evenly spaced).
    """
    rtt, timeout = spec.network_rtt_s, spec.long_poll_timeout_s
    empty, into = np.divmod(ready.first, timeout + rtt)
    away = into > timeout + _TIE_S
    first = np.where(away, (empty + 1) * (timeout + rtt), ready.first)
    rest = np.maximum(ready.last - first, 0.0)
    apart = np.maximum(rest / np.maximum(ready.tokens - 1, 1), rtt)
    answers = np.ceil(rest / np.where(apart > 0, apart, 1.0) - 1e-9)
    last = np.maximum(first + answers * apart, ready.last)
    polls = 1 + answers + empty + away
    return first + rtt / 2, np.where(rest > 0, last, first) + rtt / 2, polls, polls


_MODES = {
    "sse": _streamed, "websocket": _streamed, "stream": _streamed, "unary": _unary, "polling": _polled,
    "long_polling": _long_polled,
}  # fmt: skip


def wire_bytes(spec: ClientSpec, seen: Seen) -> Floats:
    """Bytes on the way back to the client, per request: text, what is wrapped around it, and packet headers."""
    protocol = PROTOCOLS[spec.protocol]
    packet = _TCP_IP_BYTES + (_TLS_BYTES if spec.tls else 0)
    text = seen.tokens * TEXT_BYTES_PER_TOKEN
    if spec.response in ("sse", "websocket", "stream"):
        frame = _WEBSOCKET_FRAME if spec.response == "websocket" else protocol.frame
        return text + seen.messages * (protocol.envelope + frame + packet) + protocol.headers + packet
    return text + seen.messages * (protocol.envelope + protocol.headers + packet)


def client_samples(spec: ClientSpec, seen: Seen) -> dict[str, Sample]:
    """`client_ttft`, `client_tpot` and `client_e2el` in seconds: as vLLM defines them, but where the client stands.

    Requests with one token have no TPOT and are left out of that sample only.
    """
    several = seen.tokens > 1
    tpot = (seen.e2e_s - seen.ttft_s)[several] / (seen.tokens[several] - 1)
    return {"client_ttft": Sample.of(seen.ttft_s), "client_tpot": Sample.of(tpot), "client_e2el": Sample.of(seen.e2e_s)}


def client_figures(spec: ClientSpec, seen: Seen) -> dict[str, Any]:
    """Means per request for the summary: answers, requests, bytes; None of no requests."""
    count = len(seen.tokens)
    tokens = float(seen.tokens.sum())
    return {
        "response": spec.response,
        "protocol": spec.protocol,
        "messages_per_request": float(seen.messages.sum()) / count if count else None,
        "round_trips_per_request": float(seen.requests.sum()) / count if count else None,
        "wire_bytes_per_output_token": float(wire_bytes(spec, seen).sum()) / tokens if tokens else None,
    }


def client_of(result: RunResult) -> ClientSpec | None:
    """How the clients of a run are connected, where its scenario says so."""
    said = (result.manifest.get("scenario") or {}).get("client")
    return None if said is None else ClientSpec.model_validate(said)
