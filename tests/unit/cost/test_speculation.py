"""What guessing costs, what verifying costs, and when both together pay."""

from __future__ import annotations

import pytest

from sim.acceptance import expected_tokens
from sim.cost.ops import PLAIN, ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.speculation import SpeculativeTimer
from sim.cost.step_timer import RooflineStepTimer
from sim.drafting import Drafting, Target, drafting_of
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme
from sim.techniques import SpeculativeSpec

MODEL = "meta-llama/Llama-2-7b-hf"


def target(model: str = MODEL, tp: int = 1) -> Target:
    gpu, architecture = load_gpu("h100-sxm"), load_model(model)
    scheme = QuantScheme.from_checkpoint(architecture)
    return Target(architecture, scheme, gpu, DatasheetKernels(gpu), Layout(tp=tp), PLAIN)


def spec(method: str, depth: int = 4, **options: object) -> SpeculativeSpec:
    if method == "draft":
        options.setdefault("draft_model", "meta-llama/Llama-3.2-1B")
    return SpeculativeSpec(method=method, num_speculative_tokens=depth, acceptance=0.7, **options)  # type: ignore


def timer(given: SpeculativeSpec, model: str = MODEL) -> SpeculativeTimer:
    on = target(model)
    choices = PLAIN._replace(query_tokens=given.query_tokens)
    forward = ForwardPass(on.architecture, on.scheme, on.gpu, on.kernels, on.layout, choices)
    return SpeculativeTimer(RooflineStepTimer(forward), drafting_of(given, on).guesser)


def plain(shape: RunShape, model: str = MODEL) -> int:
    on = target(model)
    forward = ForwardPass(on.architecture, on.scheme, on.gpu, on.kernels)
    return RooflineStepTimer(forward).run(shape, 1).total_ps


def gain(given: SpeculativeSpec, sequences: int, context: int = 500, model: str = MODEL) -> float:
    shape = RunShape(sequences, sequences * context)
    return plain(shape, model) / timer(given, model).run(shape, 1).total_ps * expected_tokens(given.rates)


def test_verification_reads_weights_and_cache_once() -> None:
    """Five tokens of a sequence: five times the FLOPs, the same weights, the same cache."""
    shape = RunShape(1, 999)
    on = target()
    verify = {op.name: op for op in timer(spec("ngram")).explain(shape)}
    one = {
        op.name: op
        for op in RooflineStepTimer(ForwardPass(on.architecture, on.scheme, on.gpu, on.kernels)).explain(shape)
    }
    attention = verify["attention decode"].cost
    assert attention.flops == 5 * one["attention decode"].cost.flops
    assert attention.bytes - one["attention decode"].cost.bytes == 4 * 32 * 256 * 2
    assert verify["down"].cost.flops / one["down"].cost.flops == 8  # 5 rows are padded to the next captured size
    assert verify["down"].cost.bytes < 1.01 * one["down"].cost.bytes


def test_guesses_found_in_the_text_are_free() -> None:
    """At batch 1 an n-gram's gain is its tokens per step but for a little more compute."""
    assert 0.95 * expected_tokens((0.7,) * 4) < gain(spec("ngram"), 1) <= expected_tokens((0.7,) * 4)


@pytest.mark.parametrize("method", ["ngram", "draft", "medusa", "eagle"])
def test_a_large_batch_makes_guessing_a_loss(method: str) -> None:
    """Once the rows fill the tensor cores, every guess costs what a token costs: the gain falls below one."""
    gains = [gain(spec(method), n, 100, "meta-llama/Llama-3.1-8B") for n in (1, 64, 512)]
    assert gains[0] > 1.3
    assert gains[2] < 1 < gains[1]


def test_long_contexts_keep_guessing_a_gain() -> None:
    """Where the cache is most of what is read, verification shares that as well, whatever the batch."""
    assert gain(spec("ngram"), 512, 200, "meta-llama/Llama-3.1-8B") < 1
    assert gain(spec("ngram"), 512, 16_000, "meta-llama/Llama-3.1-8B") > 1.5


def test_without_right_guesses_it_is_a_loss() -> None:
    """Passes of the draft are paid for whether or not they help."""
    wrong = spec("draft").model_copy(update={"acceptance": 0.0})
    assert gain(wrong, 1) < 0.8


def test_the_draft_takes_a_pass_per_guess() -> None:
    """Four guesses are four steps of the draft, with contexts that grow, and nothing else."""
    on, given = target(), spec("draft")
    draft = load_model("meta-llama/Llama-3.2-1B")
    forward = ForwardPass(draft, QuantScheme.from_checkpoint(draft), on.gpu, on.kernels)
    own = RooflineStepTimer(forward)
    steps = [own.run(RunShape(3, 3 * 500 + 3 * i), 1).total_ps for i in range(4)]
    assert drafting_of(given, on).guesser.ps(RunShape(3, 1500)) == pytest.approx(sum(steps), rel=1e-9)


def test_the_draft_follows_prompts() -> None:
    """A prompt is computed by both models, once."""
    guesser = drafting_of(spec("draft"), target()).guesser
    alone, beside = guesser.ps(RunShape(0, 0, [(0, 512)])), guesser.ps(RunShape(2, 900, [(0, 512)]))
    assert 0 < alone < beside < alone + guesser.ps(RunShape(2, 900))


def test_a_tree_verifies_all_its_guesses() -> None:
    """Nodes 5, 5, 5 at depths 1 to 3: 16 tokens verified; the draft's later passes take five tokens each."""
    tree = spec("draft", 3, tree=[5, 5, 5])
    assert (tree.query_tokens, tree.draft_rows) == (16, [1, 5, 5])
    chain = spec("draft", 3)
    shape = RunShape(16, 8000)
    assert timer(tree).run(shape, 1).total_ps > timer(chain).run(shape, 1).total_ps


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("ngram", 0),
        ("draft", 2 * 1_235_814_400),
        ("medusa", 2 * 4 * 4096 * (4096 + 32000)),
        ("blockwise", 2 * (4096 * 4 * 11008 + 4 * 11008 * 4 * 4096)),
        ("eagle", 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 + 2 * 4096**2)),
    ],
)
def test_weights_of_who_guesses(method: str, weights: int) -> None:
    """16 bit each: nothing, a 1B model, four heads, a wide layer, one layer and the matrix that joins its inputs."""
    assert drafting_of(spec(method), target()).weight_bytes == pytest.approx(weights, rel=1e-3)


def test_who_attends_has_a_cache() -> None:
    """The 1B draft caches 16 layers of 8 heads of 64, an EAGLE layer one of 32; heads and look-ups cache nothing."""
    found = {m: drafting_of(spec(m), target()).kv_bytes_per_token for m in ("draft", "eagle", "medusa", "ngram")}
    assert found == {"draft": 16 * 8 * 64 * 2 * 2, "eagle": 32 * 128 * 2 * 2, "medusa": 0, "ngram": 0}


def test_experts_make_verification_dear() -> None:
    """More tokens touch more experts: a mixture of experts gains less at batch 1 than a dense model."""
    gains = []
    for model in (MODEL, "mistralai/Mixtral-8x7B-v0.1"):
        shape = RunShape(1, 500)
        gains.append(plain(shape, model) / timer(spec("ngram"), model).run(shape, 1).total_ps)
    assert gains[1] < 0.75 * gains[0]


def test_sharing_a_draft_divides_it() -> None:
    """By default as the model is; a small draft may stay on one GPU."""
    found: list[Drafting] = [
        drafting_of(spec("draft", draft_tensor_parallel_size=tp), target(tp=4)) for tp in (None, 1)
    ]
    assert found[1].weight_bytes > 3 * found[0].weight_bytes
