"""Vision towers from the `vision_config` of Hugging Face files: LLaVA's CLIP, and those of Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.specs.hf_keys import HfKeys
from sim.specs.vision import VisionTower

QWEN_LEAST_PIXELS, QWEN_MOST_PIXELS = 3136, 12_845_056
"""preprocessor_config.json of the Qwen2-VL and Qwen2.5-VL checkpoints (from memory): 56 x 56, and 16,384 tokens."""


def vision_tower(config: Mapping[str, Any], keys: HfKeys) -> VisionTower | None:
    """The tower of a multimodal config; None for a text model, and for towers that are not understood.

    `keys` are those of the language model, into whose width images are projected. Raises ConfigError for a key that is
    missing.
    """
    given = config.get("vision_config")
    if not isinstance(given, Mapping):
        return None
    kind = str(config.get("model_type") or "")
    vision = HfKeys(given, f"{keys.name} vision_config", keys.file)
    if kind in ("llava", "llava_next"):
        return _clip(vision, config, keys.positive("hidden_size"))
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen(vision, keys.positive("hidden_size"))
    return None


def _clip(vision: HfKeys, config: Mapping[str, Any], width: int) -> VisionTower:
    """LLaVA-1.5 (arXiv 2310.03744): the features of the last layer but one, then two matrices.

    LLaVA-NeXT's tiles are not cut: an image is taken as one. Layers behind the features are not computed (vLLM).
    """
    hidden = vision.positive("hidden_size")
    feature = config.get("vision_feature_layer", -2)
    layers = vision.positive("num_hidden_layers")
    used = layers + feature + 1 if isinstance(feature, int) and feature < 0 else layers
    return VisionTower(
        layers=used, hidden_size=hidden, num_heads=vision.positive("num_attention_heads"),
        intermediate_size=vision.positive("intermediate_size"), patch=vision.positive("patch_size"),
        output_size=width, image_size=vision.positive("image_size"), class_token=True,
        projector=((hidden, width), (width, width)),
    )  # fmt: skip


def _qwen(vision: HfKeys, width: int) -> VisionTower:
    """Qwen2-VL (arXiv 2409.12191): 2 x 2 patches are one token. Qwen2.5-VL (2502.13923): gated, mostly windowed."""
    newer = vision.get("fullatt_block_indexes") is not None
    hidden = vision.positive("hidden_size" if newer else "embed_dim")
    patch, merge = vision.positive("patch_size", 14), vision.positive("spatial_merge_size", 2)
    ratio = vision.get("mlp_ratio") or 4
    window = vision.integer("window_size", 0) // patch
    merged = hidden * merge**2
    return VisionTower(
        layers=vision.positive("depth"), hidden_size=hidden, num_heads=vision.positive("num_heads"),
        intermediate_size=vision.positive("intermediate_size", int(hidden * ratio)), patch=patch, output_size=width,
        gated=newer, merge=merge, least_pixels=QWEN_LEAST_PIXELS, most_pixels=QWEN_MOST_PIXELS,
        channels=vision.positive("in_chans", 3), frames=vision.positive("temporal_patch_size", 2),
        window_patches=window**2, full_layers=len(vision.get("fullatt_block_indexes") or ()),
        projector=((merged, merged), (merged, width)),
    )  # fmt: skip
