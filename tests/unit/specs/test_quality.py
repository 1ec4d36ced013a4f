"""Published quality losses: found for the model, for its family, or not at all."""

from __future__ import annotations

import pytest

from sim.specs.quality import published_losses, quality_words
from sim.specs.schemes import SCHEMES

LLAMA_2_7B = "meta-llama/Llama-2-7b-hf"


def test_sources_that_disagree_give_an_interval() -> None:
    """GPTQ on Llama-2-7B: +4.0 % in AWQ's paper, +2.9 % by Marlin's README and with reordering; MMLU apart."""
    losses = {loss.metric: loss for loss in published_losses("gptq", LLAMA_2_7B)}
    perplexity = losses["WikiText-2 perplexity"]
    assert (round(perplexity.low, 1), round(perplexity.high, 1)) == (2.9, 4.0)
    assert len(perplexity.sources) == 2 and perplexity.exact
    assert losses["MMLU"].low == losses["MMLU"].high == pytest.approx(-1.73)


def test_one_source_gives_its_figure() -> None:
    """AWQ on Llama-2-7B: 5.47 to 5.60."""
    (loss,) = published_losses("awq", LLAMA_2_7B)
    assert loss.low == loss.high == pytest.approx(2.377, abs=0.001)
    assert "table 4" in loss.sources[0]


def test_a_family_stands_in_by_name() -> None:
    """Llama-3.1-8B has no GGUF figures of its own; Llama-3-8B's are given as such."""
    (loss,) = published_losses("q4_k_m", "meta-llama/Llama-3.1-8B")
    assert not loss.exact
    assert loss.models == ("llama-3-8b",)
    assert "on llama-3-8b" in quality_words("q4_k_m", "meta-llama/Llama-3.1-8B")


@pytest.mark.parametrize(
    ("scheme", "model"), [("awq", "Qwen/Qwen3-8B"), ("kv_int8", LLAMA_2_7B), ("mxfp4", LLAMA_2_7B), ("spqr", "gpt2")]
)
def test_what_nobody_published_is_unknown(scheme: str, model: str) -> None:
    """Neither another family nor another scheme lends its figures."""
    assert published_losses(scheme, model) == []
    assert quality_words(scheme, model) == "unknown"


def test_kernels_do_not_change_quality() -> None:
    """The same rounding by another kernel loses the same; FP8 variants are filed together."""
    assert published_losses("awq_marlin", LLAMA_2_7B) == published_losses("awq", LLAMA_2_7B)
    assert published_losses("fp8_block", "meta-llama/Llama-3.1-8B-Instruct")[0].low == pytest.approx(-0.35)
    assert quality_words("none", LLAMA_2_7B) == "0"


def test_every_figure_is_of_a_known_scheme() -> None:
    """Nothing is filed under a name that no scheme looks under, and each of the issue's papers is there."""
    filed = {scheme.quality or scheme.name for scheme in SCHEMES.values()}
    models = {"gptq": LLAMA_2_7B, "awq": LLAMA_2_7B, "smoothquant": LLAMA_2_7B, "kivi": LLAMA_2_7B,
              "spqr": "llama-1-7b", "nf4": "llama-1-7b", "w8a8": "meta-llama/Llama-3.1-8B"}  # fmt: skip
    for scheme, model in models.items():
        assert scheme in filed
        assert published_losses(scheme, model), scheme
