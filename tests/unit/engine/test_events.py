"""The order of events inside one instant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from simpy.events import Event

from sim.engine.events import ARRIVAL, BOUNDARY, PLAN, STOP, TIMEOUT, Alarm, Clock

RANKS = {
    "stop": STOP,
    "end of a step on replica 0": BOUNDARY,
    "end of a step on replica 9": BOUNDARY + 9,
    "arrival of request 3": ARRIVAL + 3,
    "arrival of the last request": ARRIVAL + (1 << 40) - 1,
    "time-out of request 0": TIMEOUT,
    "time-out of request 7": TIMEOUT + 7,
    "plan of replica 0": PLAN,
    "plan of replica 1": PLAN + 1,
}


def test_rank_decides_not_insertion() -> None:
    """Ends of steps, arrivals, time-outs, plans: by replica and request, in whatever order they were made."""
    for order in itertools.islice(itertools.permutations(RANKS), 0, 362_880, 4001):
        env, heard = Clock(), list[str]()
        for name in order:
            Alarm(env, RANKS[name], 50, lambda _, name=name, heard=heard: heard.append(name))
        env.run()
        assert heard == list(RANKS)
        assert env.now == 50


def test_time_comes_before_rank() -> None:
    """An earlier plan precedes a later end of a step."""
    env, heard = Clock(), list[str]()
    Alarm(env, BOUNDARY, 2, lambda _: heard.append("end"))
    Alarm(env, PLAN, 1, lambda _: heard.append("plan"))
    env.run()
    assert heard == ["plan", "end"]


def test_events_made_during_an_instant_take_their_place_in_it() -> None:
    """A follow-up request that arrives now still precedes the plans of now, but not what has already happened."""
    env, heard = Clock(), list[str]()

    def end(_: Alarm) -> None:
        heard.append("end")
        Alarm(env, ARRIVAL + 5, 0, lambda _: heard.append("arrival"))

    Alarm(env, PLAN, 10, lambda _: heard.append("plan"))
    Alarm(env, BOUNDARY, 10, end)
    env.run()
    assert heard == ["end", "arrival", "plan"]


def test_the_clock_stays_an_integer() -> None:
    """Picoseconds of many days add up exactly."""
    env = Clock()
    Alarm(env, ARRIVAL, 10**18 + 1, lambda _: Alarm(env, ARRIVAL, 1, lambda _: None))
    env.run()
    assert env.now == 10**18 + 2
    assert isinstance(env.now, int)


def test_a_clock_moves_on_only_if_nothing_else_happens_first() -> None:
    """Whatever is due by then, at that very time included, keeps the clock where it is."""
    env, heard = Clock(), list[bool]()

    def try_to(time_ps: int) -> None:
        heard.append(env.reach(time_ps))
        heard.append(env.now == time_ps)

    Alarm(env, PLAN, 20, lambda _: None)
    Alarm(env, PLAN, 10, lambda _: [try_to(20), try_to(19)])
    env.run()
    assert heard == [False, False, True, True]


def test_an_alarm_can_be_set_again() -> None:
    """It comes at each of the times it was set to."""
    env, heard = Clock(), list[int]()
    alarm = Alarm(env, BOUNDARY, None, lambda _: heard.append(int(env.now)))
    for time_ps in (30, 10, 30):
        alarm.set(time_ps)
    env.run()
    assert heard == [10, 30, 30]


def test_processes_of_simpy_run_on_the_clock() -> None:
    """Alarms and SimPy's own events share one queue."""
    env, heard = Clock(), list[str]()

    def process() -> Iterator[Event]:
        yield env.timeout(5)
        heard.append("process")

    env.process(process())  # type: ignore[arg-type]
    Alarm(env, PLAN, 4, lambda _: heard.append("before"))
    Alarm(env, PLAN, 6, lambda _: heard.append("after"))
    env.run()
    assert heard == ["before", "process", "after"]
