"""Prompts with images: tokens, where they stand, and the step in which they are encoded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.build import build
from sim.errors import ConfigError
from sim.explain.load import Case
from sim.explain.operators import operators_of
from sim.metrics import summarise
from sim.request import Request, Traits, images_begun
from sim.results import RunResult
from sim.run import run_setup, simulate
from sim.scenario import load_scenario
from sim.workloads.builder import build_workload
from sim.workloads.spec import WorkloadSpec

SCENARIO: dict[str, Any] = {
    "model": "llava-hf/llava-1.5-7b-hf",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 60,
        "arrival": {"kind": "poisson", "rate": 20},
        "input_tokens": {"kind": "uniform", "min": 10, "max": 90},
        "output_tokens": 20,
        "images": {},
    },
}


def run(**settings: Any) -> RunResult:
    return simulate(load_scenario(SCENARIO, settings))


def spec(**keys: Any) -> WorkloadSpec:
    return WorkloadSpec(**{**SCENARIO["workload"], **keys})


def test_an_image_adds_its_tokens_to_the_prompt() -> None:
    """One image per request: 576 tokens of LLaVA on top of the question, in memory as in the books."""
    without = run(**{"workload.images": None}).requests
    result = run()
    prompts = {int(i): int(n) for i, n in zip(without["request_id"], without["prompt_tokens"], strict=True)}
    for id_, tokens in zip(result.requests["request_id"].tolist(), result.requests["prompt_tokens"], strict=True):
        assert tokens == prompts[id_] + 576
    assert result.facts["workload"]["images"]["sent"] == 60


def test_some_requests_have_images_and_some_have_several() -> None:
    """`share` and `count` are those of the draw; it depends on the seed and the request's number alone."""
    traffic = build_workload(
        spec(images={"share": 0.5, "count": {"kind": "uniform", "min": 1, "max": 3}}, num_requests=4000),
        image_tokens=100,
    )
    counts = [r.traits.images for r in traffic]
    assert sum(n > 0 for n in counts) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(counts) / 4000 == pytest.approx(1.0, abs=0.06)
    assert counts == [r.traits.images for r in traffic]


def test_images_stand_behind_what_is_shared() -> None:
    """System prompt first: its blocks keep their identity; the images begin behind them."""
    for request in build_workload(spec(shared_prefix={"tokens": 64}), image_tokens=100):
        assert request.traits.images_start == 64 and len(request.traits.prefix_hashes) == 4


@given(
    start=st.integers(0, 50), size=st.integers(1, 40), images=st.integers(1, 5),
    cuts=st.lists(st.integers(1, 300), max_size=6),
)  # fmt: skip
def test_every_image_is_encoded_once_however_a_prompt_is_cut(
    start: int, size: int, images: int, cuts: list[int]
) -> None:
    """Chunks share out the images: each is encoded with the chunk that holds its first token, and all of them are."""
    request = Request(0, 0, start + images * size + 10, 5)
    request.traits = Traits(images=images, image_tokens=size, images_start=start)
    encoded = 0
    for cut in [*sorted(min(c, request.prompt_tokens) for c in cuts), request.prompt_tokens]:
        tokens = cut - request.computed_tokens
        held = sum(request.computed_tokens <= start + i * size < cut for i in range(images))
        assert images_begun([(request, tokens)]) == held
        encoded += held
        request.computed_tokens = cut
    assert encoded == images


def test_the_encoder_shows_in_the_first_token_and_in_the_breakdown() -> None:
    """TTFT grows by more than the image's tokens cost as text; the operators name the vision tower."""
    image, text = run(), run(**{"workload.images": None, "workload.input_tokens": {"kind": "uniform", "min": 586,
                                                                                  "max": 666}})  # fmt: skip
    assert summarise(image)["mean_ttft_ms"] > summarise(text)["mean_ttft_ms"] + 1.0
    case = Case(SCENARIO)
    setup = case.setup
    result = run_setup(case.fresh_setup())
    vision = {name: work for (_, name), work in operators_of(setup, result).items() if name.startswith("vision")}
    per_image = 23 * 2 * 577 * 12 * 1024**2
    layers = ("vision qkv", "vision o", "vision up", "vision down")
    assert sum(vision[name].flops for name in layers) == pytest.approx(60 * per_image, rel=0.12)


def test_leaping_is_single_stepping_with_images() -> None:
    """Runs of steps give the tables of single steps."""
    fast, slow = (simulate(load_scenario(SCENARIO), step_by_step=slow) for slow in (False, True))
    for name in fast.requests.columns:
        assert (fast.requests[name] == slow.requests[name]).all(), name


def test_a_model_that_sees_nothing_is_said() -> None:
    """Images for a text model are refused at their key; so are images in conversations."""
    with pytest.raises(ConfigError, match=r"workload\.images: meta-llama/Llama-3.1-8B has no vision tower"):
        build(load_scenario(SCENARIO, {"model": "meta-llama/Llama-3.1-8B"}))
    with pytest.raises(ConfigError, match="images: need a model"):
        build_workload(spec())
    with pytest.raises(ValueError, match="do not go with sessions"):
        spec(sessions={"turns": 2})


def test_a_vision_run_is_resolved_to_itself(tmp_path: Any) -> None:
    """The saved scenario runs again to the same requests."""
    first = run()
    again = simulate(load_scenario(first.manifest["scenario"]))
    assert (first.requests["finish_ps"] == again.requests["finish_ps"]).all()
