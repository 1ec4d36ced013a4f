"""Norms, rotary embedding, activation, sampling and library attention against float64."""

from __future__ import annotations

import pytest
import torch

from sim.validation.kernels import elementwise, sdpa
from sim.validation.kernels.reference import attention, relative_error

BF16 = 6e-3


def test_rms_norm_and_its_fused_add() -> None:
    """The norm of a row whose length is no power of two; the fused form also leaves the sum behind."""
    torch.manual_seed(1)
    x, residual, weight = torch.randn(3, 100).bfloat16(), torch.randn(3, 100).bfloat16(), torch.randn(100).bfloat16()
    out = torch.full_like(x, float("nan"))

    def exact(value: torch.Tensor) -> torch.Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    elementwise.rms_norm(x, weight, out)
    assert relative_error(out, exact(x.double())) < BF16
    total = x.double() + residual.double()
    elementwise.add_rms_norm(x, residual, weight, out)
    assert relative_error(residual, total) < BF16
    assert relative_error(out, exact(total)) < BF16


def test_rope_turns_pairs_by_their_position() -> None:
    """Queries and keys are rotated as complex numbers; values behind them are left alone."""
    torch.manual_seed(2)
    head_dim, heads = 16, 3
    qkv, positions = torch.randn(2, 5 * head_dim), torch.tensor([7, 0])
    before = qkv.clone().double().view(2, 5, head_dim)
    elementwise.rope(qkv, heads, elementwise.rope_angles(8, head_dim, 10000.0, "cpu"), positions)
    angle = positions[:, None].double() * 10000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    turned = torch.complex(before[..., :8], before[..., 8:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    exact = torch.cat([turned.real, turned.imag], -1)
    found = qkv.view(2, 5, head_dim)
    assert relative_error(found[:, :heads], exact[:, :heads]) < 1e-6
    assert torch.equal(found[:, heads:], before[:, heads:].float())


def test_gated_activation() -> None:
    """silu(gate) times up, over more columns than one program handles."""
    torch.manual_seed(3)
    gate_up, out = torch.randn(2, 6000).bfloat16(), torch.empty(2, 3000).bfloat16()
    elementwise.silu_mul(gate_up, out)
    gate, up = gate_up.double().chunk(2, -1)
    assert relative_error(out, gate / (1 + (-gate).exp()) * up) < BF16


def test_samplers_keep_to_what_they_may_draw() -> None:
    """Greedy takes the best token; top-k and top-p never leave their set, and draw more than one of it."""
    torch.manual_seed(4)
    logits = torch.tensor([[0.0, 3.0, 2.9, -1.0, 2.8], [9.0, 0.0, 0.0, 0.0, 0.0]])
    out = torch.empty(2, dtype=torch.long)
    elementwise.sample_greedy(logits, out)
    assert out.tolist() == [1, 0]
    drawn = [elementwise.sample_top_k_top_p(logits, 3, 0.99).tolist() for _ in range(60)]
    assert {first for first, _ in drawn} == {1, 2, 4}
    assert {second for _, second in drawn} == {0}
    only_top_p = [elementwise.sample_top_k_top_p(logits, 5, 0.5).tolist()[0] for _ in range(60)]
    assert set(only_top_p) == {1, 2}


def test_empty_kernel_runs() -> None:
    """A launch without work is a launch."""
    elementwise.empty_kernel()


@pytest.mark.parametrize("backend", ["flash", "math", "unfused"])
@pytest.mark.parametrize("cached", [0, 9])
def test_library_attention_is_causal_behind_a_prefix(backend: str, cached: int) -> None:
    """Grouped heads, two prompts, with and without cached tokens before them."""
    torch.manual_seed(5)
    query = torch.randn(2, 4, 12, 16)
    keys, values = (torch.randn(2, 2, cached + 12, 16) for _ in range(2))
    if backend == "unfused":
        found = sdpa.unfused(query, keys, values)
    elif backend == "flash" and cached:
        pytest.skip("torch's flash back end takes no prefix mask on the CPU")
    else:
        found = sdpa.fused(backend, query, keys, values)()
    for i in range(2):
        exact = attention(*(x[i].transpose(0, 1) for x in (query, keys, values)), cached)
        assert relative_error(found[i].transpose(0, 1), exact) < 1e-5
