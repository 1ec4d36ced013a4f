"""From config.json keys to layers: which attention and which MLP each layer has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from sim.specs.architecture import Attention, FullAttention, LatentAttention, LayerGroup, LinearAttention, Mlp
from sim.specs.attention import Indexer, QkNorm
from sim.specs.hf_keys import HfKeys

GATED_ACTIVATIONS = ("silu", "swish", "swiglu", "swigluoai", "geglu")
FULL, SLIDING, CHUNKED, LINEAR, SPARSE_SHARED = "full", "sliding", "chunked", "linear", "shared"
_LAYER_TYPES = {
    "full_attention": FULL,
    "attention": FULL,
    "sliding_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "linear_attention": LINEAR,
    "mamba": LINEAR,
    "deepseek_sparse_attention": FULL,
}
_HYBRID_LETTERS = {"mamba": "M", "attention": "*", "moe": "E", "mlp": "-"}


def layer_groups(keys: HfKeys) -> tuple[LayerGroup, ...]:
    """All layers of the model, identical ones grouped in the order in which they first appear."""
    pattern = _hybrid_pattern(keys)
    layers = _hybrid_layers(keys, pattern) if pattern else _uniform_layers(keys)
    return tuple(replace(layer, count=count) for layer, count in Counter(layers).items())


def _uniform_layers(keys: HfKeys) -> list[LayerGroup]:
    """The usual case: every layer has a mixer and an MLP."""
    count = keys.positive("num_hidden_layers")
    types, moe, norms = attention_types(keys, count), moe_layers(keys, count), _norms(keys)
    attentions = {kind: _attention(keys, kind) for kind in dict.fromkeys(types)}
    mlps = {kind: _moe(keys) if kind else _dense(keys) for kind in dict.fromkeys(moe)}
    return [
        LayerGroup(1, attentions[kind], mlps[sparse], norms + (3 if sparse and keys.flag("enable_moe_block") else 0))
        for kind, sparse in zip(types, moe, strict=True)
    ]


def _hybrid_pattern(keys: HfKeys) -> str:
    """Nemotron-H's string of layer letters, which newer files spell out as `layers_block_type`."""
    key = "layers_block_type" if isinstance(keys.data.get("layers_block_type"), list) else "hybrid_override_pattern"
    value = keys.data.get(key)
    names = [str(name) for name in value] if isinstance(value, (list, str)) else []
    letters = [_HYBRID_LETTERS.get(name, name) for name in names]
    unknown = [letter for letter in letters if letter not in _HYBRID_LETTERS.values()]
    if unknown:
        raise keys.error(key, "is not a known kind of layer", value=unknown[0], choices=_HYBRID_LETTERS)
    return "".join(letters)


def _hybrid_layers(keys: HfKeys, pattern: str) -> list[LayerGroup]:
    """M is Mamba-2, * attention, - a dense MLP, E experts; each of them is a layer of its own."""
    build: dict[str, Callable[[], LayerGroup]] = {
        "M": lambda: LayerGroup(1, _linear(keys), None, 1),
        "*": lambda: LayerGroup(1, _full(keys, FULL), None, 1),
        "-": lambda: LayerGroup(1, None, _dense(keys), 1),
        "E": lambda: LayerGroup(1, None, _moe(keys), 1),
    }
    made = {letter: build[letter]() for letter in dict.fromkeys(pattern)}
    return [made[letter] for letter in pattern]


# which layer is what


def attention_types(keys: HfKeys, count: int) -> list[str]:
    """Per layer: full, sliding, chunked or linear attention, or sparse attention that shares its indexer."""
    listed = keys.listed("layer_types", count)
    if listed is not None:
        unknown = [name for name in listed if name not in _LAYER_TYPES]
        if unknown:
            raise keys.error("layer_types", "is not a known layer type", value=unknown[0], choices=_LAYER_TYPES)
        return [_LAYER_TYPES[name] for name in listed]
    if keys.get("index_topk"):
        return _indexed_types(keys, count)
    if (hybrid := keys.listed("hybrid_layer_pattern", count)) is not None:
        return [SLIDING if windowed else FULL for windowed in hybrid]
    if interval := keys.optional("full_attention_interval"):
        return [FULL if (i + 1) % interval == 0 else LINEAR for i in range(count)]
    if keys.optional("attention_chunk_size"):
        return _chunked_types(keys, count)
    return _sliding_types(keys, count)


def _indexed_types(keys: HfKeys, count: int) -> list[str]:
    """Sparse attention: some layers reuse the tokens an earlier layer chose (transformers, GlmMoeDsaConfig)."""
    listed = keys.listed("indexer_types", count)
    if listed is not None:
        return [SPARSE_SHARED if kind == "shared" else FULL for kind in listed]
    every, offset = keys.positive("index_topk_freq", 1), keys.integer("index_skip_topk_offset", 2)
    return [SPARSE_SHARED if max(i - offset + 1, 0) % every else FULL for i in range(count)]


def _chunked_types(keys: HfKeys, count: int) -> list[str]:
    """Llama-4: layers without rotary position (every 4th) see everything, the others their chunk."""
    interval = keys.positive("no_rope_layer_interval", 4)
    rope = keys.listed("no_rope_layers", count) or [(i + 1) % interval for i in range(count)]
    return [CHUNKED if has_rope else FULL for has_rope in rope]


def _sliding_types(keys: HfKeys, count: int) -> list[str]:
    family = keys.family
    switched_on = keys.flag("use_sliding_window", default=not family.window_needs_switch)
    if not keys.optional("sliding_window") or not switched_on:
        return [FULL] * count
    if family.window_needs_switch:  # Qwen: the first layers up to max_window_layers stay full
        first = keys.integer("max_window_layers", 0)
        return [SLIDING if i >= first else FULL for i in range(count)]
    pattern = keys.get("sliding_window_pattern")  # a number, or letters such as LLLG
    every = len(pattern) if isinstance(pattern, str) else keys.positive("sliding_window_pattern", family.window_pattern)
    return [FULL if every > 1 and (i + 1) % every == 0 else SLIDING for i in range(count)]


def moe_layers(keys: HfKeys, count: int) -> list[bool]:
    """Per layer: whether its MLP is a mixture of experts."""
    if not keys.optional("num_experts") or not keys.flag("enable_moe_block", default=True):
        return [False] * count
    if (listed := keys.listed("mlp_layer_types", count)) is not None:
        return [kind == "sparse" for kind in listed]
    if (listed := keys.listed("moe_layer_freq", count)) is not None:
        return [bool(sparse) for sparse in listed]
    listed_dense = keys.data.get("mlp_only_layers")
    dense = listed_dense if isinstance(listed_dense, list) else []
    first = keys.integer("first_k_dense_replace", 0)
    step = _moe_step(keys)
    return [i >= first and i not in dense and (i + 1) % step == 0 for i in range(count)]


def _moe_step(keys: HfKeys) -> int:
    return max(
        keys.positive("interleave_moe_layer_step", 1),
        keys.positive("decoder_sparse_step", 1),
        keys.positive("moe_layer_freq", 1),
    )


# attention


def _attention(keys: HfKeys, kind: str) -> Attention:
    if kind == LINEAR:
        return _linear(keys)
    if keys.get("kv_lora_rank") is not None:
        return _latent(keys, shared_indexer=kind == SPARSE_SHARED)
    return _full(keys, kind)


def _full(keys: HfKeys, kind: str) -> FullAttention:
    family, where = keys.family, {SLIDING: "swa", FULL: "global"}.get(kind, "")
    heads = keys.positive(f"{where}_num_attention_heads", keys.positive("num_attention_heads"))
    head_dim = keys.positive(f"{where}_head_dim", _head_dim(keys))
    default_bias = keys.flag("attention_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias", "use_bias", "bias")
    qkv_bias = default_bias if family.qkv_bias is None else family.qkv_bias
    o_bias = keys.flag("attention_bias", "use_bias", "bias") if family.o_bias is None else family.o_bias
    return FullAttention(
        num_heads=heads,
        num_kv_heads=_kv_heads(keys, kind, heads),
        head_dim=head_dim,
        v_head_dim=keys.positive(f"{where}_v_head_dim", keys.positive("v_head_dim", head_dim)),
        window=keys.positive("sliding_window") if kind == SLIDING else None,
        chunk=keys.positive("attention_chunk_size") if kind == CHUNKED else None,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=_qk_norm(keys),
        output_gate=keys.flag("attn_output_gate", default=family.output_gate),
        sinks=keys.flag(f"add_{where}_attention_sink_bias", default=family.sinks),
        shared_kv=kind == FULL and keys.flag("attention_k_eq_v"),
    )


def _head_dim(keys: HfKeys) -> int:
    """`head_dim` when written, which need not be hidden_size / heads (Qwen3, Mistral-Nemo, Gemma, gpt-oss)."""
    if keys.get("head_dim") is not None:
        return keys.positive("head_dim")
    hidden, heads = keys.positive("hidden_size"), keys.positive("num_attention_heads")
    if hidden % heads:
        raise keys.error("head_dim", f"is missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    return hidden // heads


def _kv_heads(keys: HfKeys, kind: str, heads: int) -> int:
    if kind == FULL and keys.optional("num_global_key_value_heads"):
        return keys.positive("num_global_key_value_heads")
    if kind == SLIDING and keys.optional("swa_num_key_value_heads"):
        return keys.positive("swa_num_key_value_heads")
    # Falcon writes num_kv_heads = heads beside multi_query: the switch wins, except in the new decoder (40B, 180B).
    # StarCoder (gpt_bigcode) is multi-query unless it says otherwise.
    if keys.flag("multi_query", default=keys.model_type == "gpt_bigcode") and not keys.flag("new_decoder_architecture"):
        return 1
    kv_heads = keys.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise keys.error("num_key_value_heads", f"does not divide the {heads} query heads", value=kv_heads)
    return kv_heads


def _qk_norm(keys: HfKeys) -> QkNorm:
    if keys.family.qk_norm != "none" or not keys.flag("use_qk_norm"):
        return keys.family.qk_norm
    if keys.model_type.startswith("llama4"):  # normalises without weights
        return "none"
    return "per_layer" if keys.get("qk_norm_type") == "per_layer" else "per_head"


def _latent(keys: HfKeys, *, shared_indexer: bool) -> LatentAttention:
    topk = keys.optional("index_topk")
    indexer = None
    if topk:
        heads, head_dim = keys.positive("index_n_heads"), keys.positive("index_head_dim")
        indexer = Indexer(topk, heads, head_dim, shared_indexer)
    return LatentAttention(
        num_heads=keys.positive("num_attention_heads"),
        kv_lora_rank=keys.positive("kv_lora_rank"),
        q_lora_rank=keys.optional("q_lora_rank"),
        qk_nope_head_dim=keys.positive("qk_nope_head_dim"),
        qk_rope_head_dim=keys.positive("qk_rope_head_dim"),
        v_head_dim=keys.positive("v_head_dim"),
        indexer=indexer,
    )


def _linear(keys: HfKeys) -> LinearAttention:
    state_dtype = keys.get("mamba_ssm_dtype") or keys.get("mamba_ssm_cache_dtype") or "bfloat16"
    state_bytes = 4 if state_dtype == "float32" else 2
    if keys.get("linear_num_value_heads") is not None:
        return LinearAttention(
            "gated_delta",
            num_key_heads=keys.positive("linear_num_key_heads"),
            num_value_heads=keys.positive("linear_num_value_heads"),
            key_dim=keys.positive("linear_key_head_dim"),
            value_dim=keys.positive("linear_value_head_dim"),
            conv_kernel=keys.positive("conv_kernel", 4),
            state_bytes_per_element=state_bytes,
        )
    return LinearAttention(
        "mamba2",
        num_key_heads=keys.positive("n_groups", 1),
        num_value_heads=keys.positive("mamba_num_heads"),
        key_dim=keys.positive("ssm_state_size"),
        value_dim=keys.positive("mamba_head_dim"),
        conv_kernel=keys.positive("conv_kernel", 4),
        conv_bias=keys.flag("use_conv_bias", "mamba_conv_bias", default=True),
        state_bytes_per_element=state_bytes,
    )


# MLP


def _norms(keys: HfKeys) -> int:
    if keys.model_type == "falcon":  # parallel attention shares one norm with the MLP, unless it has two
        parallel = keys.flag("parallel_attn", default=True)
        two = keys.flag("new_decoder_architecture") and keys.integer("num_ln_in_parallel_attn", 2) == 2
        return 1 if parallel and not two else 2
    return keys.family.norms


def _gated(keys: HfKeys) -> bool:
    if keys.family.gated is not None:
        return keys.family.gated
    names = ("mlp_hidden_act", "hidden_act", "hidden_activation", "activation_function", "activation")
    activation = next((str(keys.get(name)) for name in names if keys.get(name)), "silu")
    return activation.lower() in GATED_ACTIVATIONS


def _mlp_bias(keys: HfKeys) -> bool:
    bias = keys.family.mlp_bias
    return keys.flag("mlp_bias", "use_bias", "bias") and keys.model_type != "internlm" if bias is None else bias


def _dense(keys: HfKeys) -> Mlp:
    width = keys.get("dense_intermediate_size") or keys.get("intermediate_size")
    if width is None and not _gated(keys):  # GPT-2, GPT-J, Falcon, BLOOM: a fixed factor in the code
        return Mlp("dense", 4 * keys.positive("hidden_size"), False, _mlp_bias(keys))
    key = "dense_intermediate_size" if keys.get("dense_intermediate_size") else "intermediate_size"
    return Mlp("dense", keys.positive(key), _gated(keys), _mlp_bias(keys))


def _moe(keys: HfKeys) -> Mlp:
    experts, per_token = keys.positive("num_experts"), keys.positive("num_experts_per_tok")
    if per_token > experts:
        raise keys.error("num_experts_per_tok", f"is more than the {experts} experts", value=per_token)
    width = keys.get("moe_intermediate_size")
    shared = _shared_width(keys)
    return Mlp(
        "moe",
        keys.positive("intermediate_size" if width is None else "moe_intermediate_size"),
        _gated(keys),
        _mlp_bias(keys),
        num_experts=experts,
        experts_per_token=per_token,
        shared_intermediate_size=shared,
        shared_gate=bool(shared) and keys.family.shared_gate,
        router_bias=keys.family.router_bias or _has_correction_bias(keys),
        latent_size=keys.optional("moe_latent_size"),
    )


def _has_correction_bias(keys: HfKeys) -> bool:
    return keys.get("topk_method") == "noaux_tc" or keys.flag("use_routing_bias", "use_moe_router_bias")


def _shared_width(keys: HfKeys) -> int:
    """Total width of the experts that every token passes through."""
    if keys.model_type.startswith("llama4"):
        return keys.positive("intermediate_size")
    if keys.flag("enable_moe_block"):  # Gemma-4: a dense MLP beside the experts
        return keys.positive("intermediate_size")
    width, number = keys.integer("shared_intermediate_size", 0), keys.integer("num_shared_experts", 0)
    if width:
        return width
    return number * keys.positive("moe_intermediate_size", keys.integer("intermediate_size", 0) or None)
