"""What a change or a technique buys, found by simulating it."""

from __future__ import annotations

from typing import Any

import pytest

from sim.errors import ConfigError
from sim.explain.changes import CHANGES, Change, Tried, best_of, change_row, ranked, try_change
from sim.explain.load import DEFAULT_SLO, Case, Served, most_served
from sim.explain.run import explain_run
from sim.explain.waterfall import TECHNIQUES, Technique, waterfall
from sim.policies import SCHEDULERS

SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 200,
        "arrival": {"kind": "poisson", "rate": 25},
        "input_tokens": 600,
        "output_tokens": 30,
    },
    "slo": {"ttft_p99_ms": 400, "tpot_p99_ms": 40},
}


def case(**settings: Any) -> Case:
    return Case(SCENARIO, settings)


def test_the_most_served_meets_the_objectives_and_more_does_not() -> None:
    """The load found is within them, and 4 % more is not."""
    found = most_served(case())
    assert found.factor > 0 and all(line["met"] for line in found.summary["slo"])
    more = case().under(found.factor * 1.04).run()
    assert not all(line["met"] for line in more["slo"])
    assert found.requests_per_s == pytest.approx(found.summary["offered_requests_per_s"])


def test_the_search_finds_the_same_from_either_side() -> None:
    """Starting from far too little or far too much gives the same load, to twice the precision of the search."""
    low, high = (most_served(case(), start) for start in (0.05, 30.0))
    assert low.factor == pytest.approx(high.factor, rel=0.06)


def test_objectives_out_of_reach_are_met_by_no_load() -> None:
    """An objective shorter than a lone step is never met: the system serves nothing within it."""
    found = most_served(case(slo={"tpot_p99_ms": 0.5}))
    assert found.factor == 0 and found.requests_per_s == 0 and found.output_tokens_per_s == 0


def test_a_scenario_without_objectives_gets_those_of_mlperf() -> None:
    """Nothing stated: 2 s to the first token and 200 ms per token, and it is said that they were assumed."""
    bare = {key: value for key, value in SCENARIO.items() if key != "slo"}
    assert dict(Case(bare).loaded.scenario.slo) == DEFAULT_SLO and not Case(bare).given_slo
    assert case().given_slo


@pytest.mark.parametrize(
    ("arrival", "key", "value"),
    [
        ({"kind": "gamma", "rate": 4, "burstiness": 0.5}, "rate", 6.0),
        ({"kind": "closed_loop", "concurrency": 10}, "concurrency", 15),
    ],
)
def test_traffic_is_scaled_where_it_is_written(arrival: dict[str, Any], key: str, value: float) -> None:
    """Half as much again: of a rate, and of the clients of a closed loop."""
    scaled = case(**{"workload.arrival": arrival}).under(1.5).setup.spec.arrival
    assert getattr(scaled, key) == value


def test_stages_are_scaled_one_by_one() -> None:
    """Every stage of a ramp has its rate multiplied and keeps its length."""
    stages = [{"rate": 2, "duration_s": 3}, {"rate": 8, "duration_s": 1}]
    spec = {"arrival": {"kind": "stages", "stages": stages}, "input_tokens": 50, "output_tokens": 5}
    scaled = case(workload=spec).under(2.0).setup.spec.arrival
    assert [(stage.rate, stage.duration_s) for stage in scaled.stages] == [(4, 3), (16, 1)]  # type: ignore[union-attr]


def test_what_is_offered_is_the_rate_of_the_workload() -> None:
    """Conversations of three turns that begin twice a second are six requests per second, however they think."""
    talk = {"workload.sessions": {"turns": 3, "think_time_s": 20}, "workload.arrival.rate": 2}
    assert case(**talk).under(1.5).run()["offered_requests_per_s"] == 9.0


def test_a_probe_runs_as_the_scenario_would() -> None:
    """Under other traffic servers are not built again, and the summary is that of a scenario that says so."""
    assert case().under(1.5).run() == case(**{"workload.arrival.rate": 37.5}).run()


def test_more_conversations_are_more_requests() -> None:
    """Twice as many conversations per second go on for as long; fewer are not cut short."""
    talk = case(**{"workload.sessions": {"turns": 3, "think_time_s": 1}, "workload.arrival.rate": 2})
    assert talk.under(2.0).setup.spec.num_requests == 400
    assert talk.under(0.5).setup.spec.num_requests == 200


def test_an_offline_job_is_measured_by_its_throughput() -> None:
    """What arrives all at once cannot be scaled: the run itself is the answer."""
    job = case(**{"workload.arrival": {"kind": "all_at_once"}})
    found = most_served(job)
    assert not job.scalable and found.factor == 1 and found.requests_per_s == found.summary["request_throughput"]


def test_more_replicas_serve_more_and_the_gain_is_a_ratio() -> None:
    """One more replica about doubles what one serves; money per request stays about the same."""
    base = most_served(case())
    one_more = next(change for change in CHANGES if change.name == "one more replica")
    tried = try_change(case(), base, one_more)
    assert tried.gain is not None and tried.gain_per_cost is not None
    assert tried.gain > 1.5 and tried.gain_per_cost == pytest.approx(tried.gain / 2)
    assert tried.served is not None and tried.gain == tried.served.requests_per_s / base.requests_per_s


def test_every_change_applies_or_says_why_not() -> None:
    """Each change of the list gives settings that the scenario takes, or a reason."""
    for change in CHANGES:
        settings = change.settings(case().setup)
        if isinstance(settings, str):
            assert settings
        else:
            assert case().having(settings).setup != case().setup, change.name


def test_what_cannot_run_is_skipped_with_the_reason() -> None:
    """A change that the scenario refuses does not end the explanation."""
    wrong = Change("seven GPUs", lambda setup: {"engine.tensor_parallel_size": 7})
    tried = try_change(case(), most_served(case()), wrong)
    assert "attention heads" in tried.skipped and change_row(tried)["skipped"] == tried.skipped


def _tried(name: str, gain: float, cost: float) -> Tried:
    return Tried(name, {}, "", 1, Served(1.0, {"request_throughput": gain}, False), {}, gain, gain / cost)


def test_the_best_change_is_the_one_for_the_same_money() -> None:
    """Free gains go before bought ones; if none is material, what serves most at all is named."""
    free, replica, nothing = _tried("free", 1.2, 1.0), _tried("replica", 2.0, 2.0), _tried("nothing", 1.0, 1.0)
    assert best_of([nothing, replica, free]) is free
    assert best_of([nothing, replica]) is replica
    assert best_of([nothing, Tried("skipped", {}, skipped="why")]) is None
    assert [t.name for t in ranked([nothing, replica, free])] == ["free", "replica", "nothing"]


def test_an_explanation_in_processes_is_the_same_as_in_one() -> None:
    """Two jobs find what one finds."""
    job = case(**{"workload.arrival": {"kind": "all_at_once"}, "workload.num_requests": 20})
    one, two = (explain_run(job, changes=CHANGES[:2], jobs=jobs).as_dict() for jobs in (1, 2))
    assert one == two


def test_the_waterfall_begins_naive_and_ends_with_everything() -> None:
    """Each step adds the settings of one technique; without it the best has that one's settings again."""
    techniques = [t for t in TECHNIQUES if t.name in ("continuous batching", "paged KV", "FP8 KV cache")]
    job = {"workload.arrival": {"kind": "all_at_once"}, "workload.num_requests": 20}
    found = waterfall(case(**job), techniques=techniques, jobs=1)
    assert [step.name for step in found.steps] == ["naive", *(t.name for t in techniques)]
    naive, best = found.steps[0].settings, found.steps[-1].settings
    assert all(naive[key] == value for t in techniques for key, value in t.off.items())
    assert all(best[key] == value for t in techniques for key, value in t.on.items())
    for technique, step in zip(techniques, found.without, strict=True):
        assert step.settings == {**best, **technique.off}
    assert found.max_model_len == 1024  # 630 tokens, rounded up


def test_continuous_batching_is_worth_its_place() -> None:
    """Static batches miss the objective on TTFT at a load that continuous ones serve."""
    found = waterfall(case(), techniques=TECHNIQUES[:1], jobs=1).as_dict()
    naive, continuous = found["steps"]
    assert continuous["requests_per_s"] > 2 * naive["requests_per_s"]
    assert found["without"][0]["share_of_best"] == naive["requests_per_s"] / continuous["requests_per_s"]


def test_what_cannot_be_without_another_goes_with_it() -> None:
    """Static batches do not verify guesses: without continuous batching there is no speculative decoding either."""
    techniques = [t for t in TECHNIQUES if t.name in ("continuous batching", "speculative decoding (EAGLE)")]
    job = {"workload.arrival": {"kind": "all_at_once"}, "workload.num_requests": 10}
    found = waterfall(case(**job), techniques=techniques, jobs=1)
    assert [step.name for step in found.without] == [", ".join(t.name for t in techniques), techniques[1].name]
    assert found.without[0].settings["engine.speculative"] is None


def test_a_technique_may_lose() -> None:
    """Past the batch size at which verifying stops being free, guessing costs: less is served with it than without."""
    settings = {"workload.arrival": {"kind": "all_at_once"}, "workload.output_tokens": 200,
                "engine.scheduler": "chunked", "engine.async_scheduling": False}  # fmt: skip
    technique = Technique("guesses", {"engine.speculative": None}, {
        "engine.speculative": {"method": "ngram", "num_speculative_tokens": 5, "acceptance": 0.1}})  # fmt: skip
    before, after = waterfall(case(**settings), techniques=[technique], jobs=1).steps
    assert after.served.requests_per_s < before.served.requests_per_s


def test_techniques_that_do_not_apply_say_why() -> None:
    """No prefixes, no FP8 tensor cores, or settings that are refused: skipped, with the reason."""
    techniques = [
        *(t for t in TECHNIQUES if t.name in ("prefix caching", "FP8 weights and activations")),
        Technique("nine GPUs", {}, {"engine.tensor_parallel_size": 9}),
    ]
    skipped = waterfall(case(hardware="a100-sxm-80gb"), techniques=techniques, jobs=1).skipped
    assert set(skipped) == {"prefix caching", "FP8 weights and activations", "nine GPUs"}
    assert "fp8" in skipped["FP8 weights and activations"] and "heads" in skipped["nine GPUs"]


def test_pools_have_no_naive_server() -> None:
    """Disaggregated serving needs schedulers that hand prompts over: the waterfall says so."""
    with pytest.raises(ConfigError, match="hands no prompts"):
        waterfall(case(pools={}), jobs=1)


def test_the_ladder_names_schedulers_that_exist() -> None:
    """The techniques' settings stay in step with the tables of policies."""
    named = {t.on["engine.scheduler"] for t in TECHNIQUES if "engine.scheduler" in t.on}
    assert named <= set(SCHEDULERS)
