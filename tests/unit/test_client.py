"""What a client sees of what a server measured, by response mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.client import PROTOCOLS, ClientSpec, client_samples, seen_by_clients, wire_bytes
from sim.metrics import summarise
from sim.results import Table
from sim.run import simulate
from sim.scenario import load_scenario

MS = 10**9  # picoseconds
SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 40,
        "arrival": {"kind": "poisson", "rate": 20},
        "input_tokens": 300,
        "output_tokens": {"kind": "uniform", "min": 1, "max": 40},
    },
}


def table(first_ms: float, last_ms: float, tokens: int, arrival_ms: float = 100.0) -> Table:
    """One completed request, times counted from its arrival."""
    columns = {"arrival_ps": 0.0, "first_token_ps": first_ms, "finish_ps": last_ms}
    times = {name: np.array([round((arrival_ms + ms) * MS)], dtype=np.int64) for name, ms in columns.items()}
    return Table({**times, "output_tokens": np.array([tokens])})


def seen_ms(spec: ClientSpec, *row: Any) -> tuple[float, float, float]:
    """(first token, last token, messages) of one request, milliseconds from sending."""
    seen = seen_by_clients(spec, table(*row))
    return seen.ttft_s[0] * 1e3, seen.e2e_s[0] * 1e3, seen.messages[0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"response": "sse"}, (80 + 20, 500 + 20, 43)),
        ({"response": "websocket"}, (100, 520, 43)),
        ({"response": "stream", "protocol": "grpc"}, (100, 520, 43)),
        ({"response": "unary"}, (520, 520, 1)),
        # Polls reach the server 20 + 100 n ms after the request, and their answers the client 20 ms after that.
        ({"response": "polling", "poll_interval_s": 0.1}, (120 + 20, 520 + 20, 6)),
        ({"response": "sse", "new_connection": True}, (100 + 40, 520 + 40, 43)),
        ({"response": "sse", "new_connection": True, "tls": False}, (100 + 20, 520 + 20, 43)),
        ({"response": "websocket", "new_connection": True}, (100 + 60, 520 + 60, 43)),
    ],
)
def test_each_mode_by_hand(spec: dict[str, Any], expected: tuple[float, ...]) -> None:
    """First token after 80 ms, last of 43 after 500 ms, 20 ms there and back: half of it each way."""
    assert seen_ms(ClientSpec(network_rtt_s=0.02, **spec), 80, 500, 43) == pytest.approx(expected)


def test_no_network_and_a_stream_are_what_the_server_measured() -> None:
    """Without a round trip nothing is added."""
    assert seen_ms(ClientSpec(), 80, 500, 43)[:2] == pytest.approx((80, 500))


def long_polled(spec: ClientSpec, times_s: list[float]) -> tuple[float, float, int]:
    """Long polling, request by request: (first seen, last seen, polls), seconds from the request's arrival."""
    rtt, poll, polls, seen, given_out = spec.network_rtt_s, 0.0, 0, [], 0
    while given_out < len(times_s):
        polls += 1
        answered = max(poll, min(times_s[given_out], poll + spec.long_poll_timeout_s))
        there = sum(time <= answered + 1e-12 for time in times_s)
        if there > given_out:
            seen.append(answered + rtt / 2)
            given_out = there
        poll = answered + rtt
    return seen[0], seen[-1], polls


@example(first=200, gap=1, tokens=1, rtt=40, timeout=40)
@given(
    first=st.integers(1, 400), gap=st.integers(1, 60), tokens=st.integers(1, 60), rtt=st.integers(1, 200),
    timeout=st.integers(40, 300),
)  # fmt: skip
def test_long_polling_is_that_of_single_polls(first: int, gap: int, tokens: int, rtt: int, timeout: int) -> None:
    """By column: the same first token, and the last one within a round trip, as polls played one after the other."""
    spec = ClientSpec(response="long_polling", network_rtt_s=rtt / 1e3, long_poll_timeout_s=timeout / 1e3)
    times = [(first + i * gap) / 1e3 for i in range(tokens)]
    ttft, e2e, _ = long_polled(spec, times)
    seen = seen_by_clients(spec, table(first, first + (tokens - 1) * gap, tokens))
    assert seen.ttft_s[0] - rtt / 2e3 == pytest.approx(ttft)
    assert abs(seen.e2e_s[0] - rtt / 2e3 - e2e) <= rtt / 1e3 + 1e-9
    assert seen.e2e_s[0] >= (first + (tokens - 1) * gap + rtt) / 1e3 - 1e-9


@given(
    first=st.floats(1, 5000), more=st.floats(0, 5000), tokens=st.integers(1, 500), rtt=st.floats(0, 300),
    interval=st.floats(10, 2000), mode=st.sampled_from(["sse", "unary", "polling", "long_polling"]),
)  # fmt: skip
def test_nothing_is_seen_before_it_is_there(
    first: float, more: float, tokens: int, rtt: float, interval: float, mode: str
) -> None:
    """Whatever the mode, a token is seen after it was computed plus a round trip, and the last not before the first."""
    spec = ClientSpec(response=mode, network_rtt_s=rtt / 1e3, poll_interval_s=interval / 1e3)  # type: ignore[arg-type]
    ttft, e2e, messages = seen_ms(spec, first, first + (more if tokens > 1 else 0), tokens)
    assert ttft >= first + rtt - 1e-6 and e2e >= first + (more if tokens > 1 else 0) + rtt - 1e-6
    assert e2e >= ttft - 1e-6 and messages >= 1


def test_bytes_of_a_message_by_protocol() -> None:
    """A gRPC stream of 10 tokens: text, per message 10 + 14 of gRPC and 62 of TCP, IP and TLS, headers once."""
    spec = ClientSpec(response="stream", protocol="grpc")
    expected = 10 * 4 + 10 * (10 + 14 + 62) + PROTOCOLS["grpc"].headers + 62
    assert wire_bytes(spec, seen_by_clients(spec, table(80, 500, 10)))[0] == expected


def test_protocols_are_lighter_in_their_order() -> None:
    """Per token of a stream HTTP's JSON events are heaviest, a length before each message is lightest."""
    specs = [
        ClientSpec(),
        ClientSpec(response="stream", protocol="grpc"),
        ClientSpec(response="stream", protocol="rpc"),
    ]
    sizes = [wire_bytes(spec, seen_by_clients(spec, table(80, 500, 100)))[0] for spec in specs]
    assert sizes == sorted(sizes, reverse=True)
    unary = ClientSpec(response="unary")
    assert wire_bytes(unary, seen_by_clients(unary, table(80, 500, 100)))[0] < sizes[2]


def test_one_token_has_no_pace() -> None:
    """A request with one token is left out of the client's TPOT only."""
    spec = ClientSpec()
    samples = client_samples(spec, seen_by_clients(spec, table(80, 80, 1)))
    assert [len(samples[name]) for name in ("client_ttft", "client_tpot", "client_e2el")] == [1, 0, 1]


@pytest.mark.parametrize(
    "spec",
    [{"response": "sse", "protocol": "grpc"}, {"response": "stream"}, {"poll_interval_s": 0}, {"network_rtt_s": -1}],
)
def test_combinations_that_do_not_exist_are_refused(spec: dict[str, Any]) -> None:
    """Server-sent events are HTTP's, gRPC streams are not; intervals are positive."""
    with pytest.raises(ValidationError):
        ClientSpec.model_validate(spec)


def test_the_summary_says_what_clients_saw_and_changes_nothing_else() -> None:
    """`client_ttft` is the server's TTFT and a round trip; without a client the summary is as it was."""
    plain = summarise(simulate(load_scenario(SCENARIO)))
    client = {"client": {"response": "sse", "network_rtt_s": "40 ms"}}
    seen = summarise(simulate(load_scenario({**SCENARIO, **client})))
    assert seen["p99_client_ttft_ms"] == pytest.approx(plain["p99_ttft_ms"] + 40)
    assert seen["mean_client_tpot_ms"] == pytest.approx(plain["mean_tpot_ms"])
    assert {key: value for key, value in seen.items() if "client" not in key} == plain
    assert seen["client"]["messages_per_request"] == plain["total_output_tokens"] / plain["completed"]
