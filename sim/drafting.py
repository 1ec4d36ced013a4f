"""Who guesses the next tokens of an engine with speculative decoding: its passes, its weights and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sim.cost.eager import passes_of
from sim.cost.formats import matmul_format
from sim.cost.ops import Choices, ForwardPass, OpCost
from sim.cost.roofline import Kernels
from sim.cost.sampling import GREEDY
from sim.cost.speculation import DraftPasses, Guesser, Heads, Lookup, Rows
from sim.cost.step_timer import StepPricer
from sim.specs.architecture import LayerGroup, ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.matrices import stored_bytes
from sim.specs.quantization import QuantScheme
from sim.techniques import SpeculativeSpec
from sim.units import ceil_div


@dataclass(frozen=True)
class Target:
    """The model whose tokens are guessed, and what it runs on."""

    architecture: ModelArchitecture
    scheme: QuantScheme
    gpu: Gpu
    kernels: Kernels
    layout: Layout
    choices: Choices


@dataclass(frozen=True)
class Drafting:
    """Prices of the guesses, and what they take of a GPU's memory."""

    guesser: Guesser
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0


NO_DRAFT = Drafting(Lookup())


def drafting_of(spec: SpeculativeSpec, target: Target, beside: Path | None = None) -> Drafting:
    """What a method adds to the model. Raises ConfigError for a draft model that does not exist."""
    if spec.method == "ngram":
        return Drafting(Lookup())
    if spec.method == "draft":
        return _draft_model(spec, target, beside)
    if spec.method in ("eagle", "mtp"):
        return _own_layer(spec, target)
    return _heads(spec, target)


def _draft_model(spec: SpeculativeSpec, target: Target, beside: Path | None) -> Drafting:
    """A model of its own (Leviathan et al. 2023; Chen et al. 2023; with a tree SpecInfer, Miao et al. 2024)."""
    draft = replace(load_model(str(spec.draft_model), beside=beside), dtype=target.architecture.dtype)
    scheme = QuantScheme.from_checkpoint(draft)
    layout = Layout(tp=spec.draft_tensor_parallel_size or target.layout.tp)
    weights = draft.weight_bytes(scheme, layout)
    kv = draft.kv_bytes_per_token(scheme.kv_bytes_per_element, tp=layout.tp)
    return Drafting(_passes(spec, target, draft, scheme, layout), weights, kv)


def _own_layer(spec: SpeculativeSpec, target: Target) -> Drafting:
    """One layer that sees the model's hidden state beside the last token, and the model's own head.

    EAGLE (Li et al. 2024); multi-token prediction (DeepSeek-V3 report), where the layer is
    one like the model's last ones and is run again for every further token.
    """
    model, scheme = target.architecture, target.scheme
    attending = [group for group in model.layers if group.attention is not None and group.mlp is not None]
    layer: LayerGroup = replace(attending[-1 if spec.method == "mtp" else 0], count=1)
    draft = replace(model, layers=(layer,), extra=())
    layout = Layout(tp=target.layout.tp, dp=target.layout.dp, ep=target.layout.ep)
    hidden, form = model.hidden_size, matmul_format(scheme, "o", target.gpu)

    def join(rows: int) -> list[OpCost]:
        """Hidden state and embedding, side by side, become one hidden state."""
        return [OpCost("fc", 1, target.kernels.gemm(rows, 2 * hidden, hidden, form))]

    weights = stored_bytes(layer.matrices(hidden), scheme, layout) + round(2 * hidden * hidden * form.weight_bytes)
    kv = draft.kv_bytes_per_token(scheme.kv_bytes_per_element, tp=layout.tp)
    return Drafting(_passes(spec, target, draft, scheme, layout, join), weights, kv)


def _passes(
    spec: SpeculativeSpec, target: Target, draft: ModelArchitecture, scheme: QuantScheme, layout: Layout,
    more: Rows | None = None,
) -> DraftPasses:  # fmt: skip
    rows = spec.draft_rows
    timers: dict[int, StepPricer] = {}
    for count in set(rows):
        choices = target.choices._replace(query_tokens=count, sampler=GREEDY)  # vLLM's drafts take the likeliest
        forward = ForwardPass(draft, scheme, target.gpu, target.kernels, layout, choices)
        timers[count] = passes_of(forward)
    return DraftPasses([timers[count] for count in rows], rows, more)


def _heads(spec: SpeculativeSpec, target: Target) -> Drafting:
    """Heads that all guess at once from the last hidden state.

    Medusa (Cai et al. 2024): each is a residual block and a vocabulary projection of its own. Blockwise
    parallel decoding (Stern et al. 2018): one wide layer for all of them, then the model's own projection;
    it guesses behind every position that is verified, so that the next step has its guesses at once.
    """
    model, tp, heads = target.architecture, target.layout.tp, spec.num_speculative_tokens
    hidden, vocab = model.hidden_size, ceil_div(model.vocab_size, tp)
    form = matmul_format(QuantScheme.unquantised(model), "o", target.gpu)
    if spec.method == "medusa":
        products: Sequence[tuple[str, int, int, int]] = (
            ("medusa block", heads, hidden, ceil_div(hidden, tp)), ("medusa head", heads, hidden, vocab),
        )  # fmt: skip
        weights, every = heads * hidden * (ceil_div(hidden, tp) + vocab), 1
    else:
        wide = ceil_div(heads * max(g.mlp.intermediate_size for g in model.layers if g.mlp is not None), tp)
        products = (
            ("blockwise layer", 1, hidden, wide), ("blockwise layer", 1, wide, heads * hidden),
            ("blockwise head", heads, hidden, vocab),
        )  # fmt: skip
        weights, every = wide * hidden * (1 + heads), spec.query_tokens

    def price(rows: int) -> list[OpCost]:
        return [OpCost(name, calls, target.kernels.gemm(rows, k, n, form)) for name, calls, k, n in products]

    return Drafting(Heads(price, every), round(weights * form.weight_bytes))
