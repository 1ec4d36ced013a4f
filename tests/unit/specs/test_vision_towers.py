"""Vision towers from Hugging Face configs: parameters, patches and tokens."""

from __future__ import annotations

import pytest

from sim.specs.hf_config import architecture_from_hf, load_model
from sim.specs.vision import VisionTower

LLAVA, QWEN2, QWEN25 = (
    "llava-hf/llava-1.5-7b-hf",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
)


def tower(name: str) -> VisionTower:
    found = load_model(name).vision
    assert found is not None
    return found


def test_llava_sees_576_tokens_whatever_the_image() -> None:
    """336 / 14 = 24 patches a side; a class token passes through the tower and is not handed on (arXiv 2310.03744)."""
    for size in ((336, 336), (1024, 768), (10, 3000)):
        assert tower(LLAVA).tokens(*size) == 576 and tower(LLAVA).patches(*size) == 577
    assert tower(LLAVA).layers == 23  # features of the last layer but one


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((224, 224), 64),  # 224 / 28 squared, as section 2.1 of arXiv 2409.12191 counts (66 with its two markers)
        ((1024, 768), 37 * 27),
        ((28, 28), 4),  # enlarged to 3136 pixels
        ((20000, 20000), 127 * 127),  # shrunk to at most 12,845,056 pixels: floor(3584 / 28) = 128 less rounding
    ],
)
def test_qwen_keeps_the_shape_of_an_image(size: tuple[int, int], tokens: int) -> None:
    """Sides become multiples of 28 pixels, a token is 28 x 28 of them, within the preprocessor's limits."""
    found = tower(QWEN25).tokens(*size)
    assert found == tokens or (size == (20000, 20000) and found in (127**2, 128**2))
    assert tower(QWEN25).patches(*size) == 4 * found


def test_parameters_are_the_published_ones() -> None:
    """Qwen2-VL's tower has 675 million (arXiv 2409.12191, table 1); with the language model 8.29 billion."""
    assert tower(QWEN2).parameters == pytest.approx(675e6, rel=0.002)
    assert load_model(QWEN2).num_parameters == pytest.approx(8.291e9, rel=0.001)
    assert load_model(LLAVA).num_parameters == pytest.approx(7.06e9, rel=0.005)


def test_a_tower_takes_memory_in_16_bit() -> None:
    """Weights on a GPU are those of the language model and two bytes per parameter of the tower, divided by TP."""
    model = load_model(QWEN25)
    without = architecture_from_hf({"model_type": "qwen2", **_language_keys()}, "text")
    assert without.vision is None
    assert model.weight_bytes() - without.weight_bytes() == 2 * tower(QWEN25).parameters


def _language_keys() -> dict[str, object]:
    return {
        "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "hidden_act": "silu", "vocab_size": 152064, "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
    }  # fmt: skip


def test_towers_that_are_not_understood_are_none() -> None:
    """A text model has none, and an unknown kind is not guessed at."""
    assert load_model("meta-llama/Llama-3.1-8B").vision is None
    config = {"model_type": "gemma3", "text_config": _language_keys(), "vision_config": {"hidden_size": 1152}}
    assert architecture_from_hf(config, "other").vision is None
