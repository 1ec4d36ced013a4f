"""The order of events inside one instant."""

from __future__ import annotations

import itertools

import simpy

from sim.engine.events import ARRIVAL, BOUNDARY, PLAN, STOP, TIMEOUT, Alarm

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
        env, heard = simpy.Environment(initial_time=0), list[str]()
        for name in order:
            Alarm(env, RANKS[name], 50, lambda _, name=name, heard=heard: heard.append(name))
        env.run()
        assert heard == list(RANKS)
        assert env.now == 50


def test_time_comes_before_rank() -> None:
    """An earlier plan precedes a later end of a step."""
    env, heard = simpy.Environment(initial_time=0), list[str]()
    Alarm(env, BOUNDARY, 2, lambda _: heard.append("end"))
    Alarm(env, PLAN, 1, lambda _: heard.append("plan"))
    env.run()
    assert heard == ["plan", "end"]


def test_events_made_during_an_instant_take_their_place_in_it() -> None:
    """A follow-up request that arrives now still precedes the plans of now, but not what has already happened."""
    env, heard = simpy.Environment(initial_time=0), list[str]()

    def end(_: Alarm) -> None:
        heard.append("end")
        Alarm(env, ARRIVAL + 5, 0, lambda _: heard.append("arrival"))

    Alarm(env, PLAN, 10, lambda _: heard.append("plan"))
    Alarm(env, BOUNDARY, 10, end)
    env.run()
    assert heard == ["end", "arrival", "plan"]


def test_the_clock_stays_an_integer() -> None:
    """Picoseconds of many days add up exactly."""
    env = simpy.Environment(initial_time=0)
    Alarm(env, ARRIVAL, 10**18 + 1, lambda _: Alarm(env, ARRIVAL, 1, lambda _: None))
    env.run()
    assert env.now == 10**18 + 2
    assert isinstance(env.now, int)
