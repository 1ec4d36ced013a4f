"""Links: how concurrent transfers share them, worked out on paper. One byte per picosecond unless said otherwise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.engine.events import ARRIVAL, COMPLETION, Alarm, Clock
from sim.engine.link import Link, LinkRate
from sim.units import PS_PER_S, ceil_div


def ends(rate: LinkRate, *transfers: tuple[int, int]) -> dict[int, int]:
    """When each transfer (start, bytes) arrives, in the order in which they do."""
    env = Clock()
    link, arrived = Link(env, rate), dict[int, int]()
    for i, (start, size) in enumerate(transfers):
        begin = lambda _, i=i, size=size: link.send(i, size, lambda _: arrived.setdefault(i, env.now))  # noqa: E731
        Alarm(env, ARRIVAL + i, start, begin)
    env.run()
    return arrived


def test_a_transfer_alone_has_the_whole_bandwidth() -> None:
    """Bytes over bandwidth, rounded up, and the latency."""
    assert ends(LinkRate(PS_PER_S), (7, 100)) == {0: 107}
    assert ends(LinkRate(3 * PS_PER_S, latency_ps=5), (7, 100)) == {0: 7 + 34 + 5}
    assert LinkRate(3 * PS_PER_S, latency_ps=5).duration_ps(100) == 39


def test_two_transfers_share() -> None:
    """From 40 on each has half: the first has 60 left and needs 120, the second then has 40 left for itself."""
    assert ends(LinkRate(PS_PER_S), (0, 100), (40, 100)) == {0: 160, 1: 200}


def test_a_late_small_transfer_overtakes() -> None:
    """What is short is done first: 10 bytes at half speed, while the large one loses 10."""
    assert ends(LinkRate(PS_PER_S), (0, 100), (40, 10)) == {1: 60, 0: 110}


def test_equal_ends_come_in_order_of_requests() -> None:
    """Transfers that end together are told by request, whoever began first."""
    assert list(ends(LinkRate(PS_PER_S), (5, 100), (5, 100), (5, 100)).items()) == [(0, 305), (1, 305), (2, 305)]


def test_an_end_comes_after_arrivals_of_its_instant() -> None:
    """Completions rank between arrivals and time-outs."""
    env = Clock()
    seen: list[str] = []
    Link(env, LinkRate(PS_PER_S)).send(0, 10, lambda _: seen.append("end"))
    Alarm(env, ARRIVAL + 99, 10, lambda _: seen.append("arrival"))
    env.run()
    assert seen == ["arrival", "end"]
    assert ARRIVAL + (1 << 40) <= COMPLETION


def walk(rate: LinkRate, transfers: list[tuple[int, int]]) -> dict[int, int]:
    """The same rule, transfer by transfer: between starts and ends everyone gets an equal, rounded share."""
    now, left, arrived = 0, dict[int, int](), dict[int, int]()
    waiting = sorted((start, i, size * PS_PER_S) for i, (start, size) in enumerate(transfers))
    while waiting or left:
        instants = [waiting[0][0]] if waiting else []
        if left:
            instants.append(now + ceil_div(max(0, min(left.values())) * len(left), rate.bytes_per_s))
        then = min(instants)
        share = rate.bytes_per_s * (then - now) // len(left) if left else 0
        now, left = then, {i: size - share for i, size in left.items()}
        for i in [i for i, size in left.items() if size <= 0]:
            del left[i]
            arrived[i] = now + rate.latency_ps
        while waiting and waiting[0][0] == now:
            _, i, size = waiting.pop(0)
            left[i] = size
    return arrived


@given(
    transfers=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=12),
    speed=st.sampled_from([1, 3, 10]),
    latency=st.sampled_from([0, 4]),
)
@examples(300)
def test_the_clock_of_service_equals_a_walk_over_all_transfers(
    transfers: list[tuple[int, int]], speed: int, latency: int
) -> None:
    """One clock for all gives to the picosecond what serving each of them by itself gives."""
    rate = LinkRate(speed * PS_PER_S // 7, latency)
    assert ends(rate, *transfers) == walk(rate, transfers)
