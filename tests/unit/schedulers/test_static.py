"""Batches that are formed once and drain together."""

from __future__ import annotations

from hand import Server, request

from sim.schedulers.dynamic import DynamicScheduler
from sim.schedulers.static import StaticScheduler
from sim.units import PS_PER_S

MS = PS_PER_S // 1000


def test_prompts_are_padded_to_the_longest() -> None:
    """In one step whatever the budget; the padding is computed and takes memory."""
    server = Server(StaticScheduler, budget=10)
    server.submit(request(0, 5), request(1, 9), request(2, 2))
    assert server.step() == ({0: 9, 1: 9, 2: 9}, 0, [])
    assert server.kv.total_blocks - server.kv.free_blocks == 3 * 3
    assert server.step() == ({}, 3, [])


def test_packed_prompts_keep_their_length() -> None:
    """Without padding only what was sent is computed."""
    server = Server(StaticScheduler, padding=False)
    server.submit(request(0, 5), request(1, 9))
    assert server.step() == ({0: 5, 1: 9}, 0, [])


def test_nobody_joins_a_batch_under_way() -> None:
    """Seats that are free stay free, and arrivals leave the plan in force alone."""
    server = Server(StaticScheduler)
    first = request(0, 5)
    assert server.submit(first) == [True]
    assert server.step() == ({0: 5}, 0, [])
    assert server.submit(request(1, 5)) == [False]
    assert server.step() == ({}, 1, [])
    server.end(first)
    assert server.step() == ({1: 5}, 0, [])


def test_a_batch_ends_where_memory_does() -> None:
    """A long prompt makes everybody longer: if they do not fit then, it is left for the next batch."""
    server = Server(StaticScheduler, blocks=10, size=4)
    short, shorter, long = request(0, 8), request(1, 4), request(2, 16)
    server.submit(short, shorter, long)
    assert server.step() == ({0: 8, 1: 8}, 0, [])  # with the third: 3 x 4 blocks
    assert (shorter.target_tokens, long.target_tokens) == (8, 16)
    assert server.kv.free_blocks == 6
    server.end(short, shorter)
    assert server.step() == ({2: 16}, 0, [])


def test_a_member_that_does_not_fit_gets_its_length_back() -> None:
    """What it was to be padded to is forgotten."""
    server = Server(StaticScheduler, blocks=5, size=4)
    last = request(2, 3)
    server.submit(request(0, 8), request(1, 8), last)
    assert server.step() == ({0: 8, 1: 8}, 0, [])
    assert last.target_tokens == 3


def test_the_unfinished_give_way_and_the_finished_do_not_go_on_alone() -> None:
    """A plan without decodes tells the replica that the batch is over."""
    server = Server(StaticScheduler, blocks=4, size=4)
    done, other = request(0, 8), request(1, 8)
    server.submit(done, other)
    server.step()
    done._finish_step = 0  # its only token has come
    assert server.step() == ({}, 0, [1])
    assert server.waiting() == [1]


def test_when_all_give_way_the_next_batch_is_formed_at_once() -> None:
    """Padding had made the last member too long for all the memory there is; without it, the request fits."""
    server = Server(StaticScheduler, blocks=6, size=4)
    server.submit(request(0, 4, most=20), request(1, 9))
    assert server.step() == ({0: 9, 1: 9}, 0, [])
    assert server.steps(3) == [({}, 2, [])] * 3
    assert server.step() == ({}, 1, [1])
    assert server.steps(11) == [({}, 1, [])] * 11
    assert server.step() == ({0: 20}, 0, [0])  # 4 + 16 emitted; padded to as much, the other does not fit beside it
    assert server.waiting() == [1]


def test_a_batch_starts_when_it_is_full() -> None:
    """Before its deadline, and no larger than asked for."""
    server = Server(DynamicScheduler, max_batch_size=2, max_wait_ms=5.0)
    assert server.step() == ("idle", server.scheduler.plan(0).until_ps)  # type: ignore[union-attr]
    server.submit(request(0, 5, arrival_ps=3 * MS))
    assert server.step(3 * MS) == ("idle", 8 * MS)
    server.submit(request(1, 6, arrival_ps=4 * MS), request(2, 7, arrival_ps=4 * MS))
    assert server.step(4 * MS) == ({0: 6, 1: 6}, 0, [])


def test_a_batch_starts_when_the_oldest_has_waited_long_enough() -> None:
    """The deadline is that of whoever arrived first among those who still wait."""
    server = Server(DynamicScheduler, max_batch_size=3, max_wait_ms=5.0)
    gone, other = request(0, 5, arrival_ps=3 * MS), request(1, 6, arrival_ps=4 * MS)
    server.submit(gone, other)
    assert server.step(4 * MS) == ("idle", 8 * MS)
    gone.state = gone.state.ABORTED
    server.scheduler.abort(gone)
    assert server.step(7 * MS) == ("idle", 9 * MS)
    assert server.step(9 * MS) == ({1: 6}, 0, [])


def test_seats_bound_a_dynamic_batch_as_well() -> None:
    """`max_num_seqs` is the default of `max_batch_size`, and its limit."""
    for more in ({}, {"max_batch_size": 9}):
        server = Server(DynamicScheduler, seqs=2, **more)
        server.submit(request(0, 5), request(1, 5), request(2, 5))
        assert server.step() == ({0: 5, 1: 5}, 0, [])
