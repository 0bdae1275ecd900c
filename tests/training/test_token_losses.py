"""Cross-entropy and divergence in chunks are those of torch over whole logits, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankwright.training.token_losses import chunk_rows, token_loss

TOKENS, HIDDEN, VOCABULARY = 7, 5, 11


def drawn(seed: int) -> tuple[Tensor, ...]:
    """states, head, targets, weights of the cross-entropies, the base's states, weights of the divergences; fp64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    states, head, base = normal(TOKENS, HIDDEN), normal(VOCABULARY, HIDDEN), normal(TOKENS, HIDDEN)
    return states.requires_grad_(), head, targets, normal(TOKENS).abs(), base, normal(TOKENS).abs()


def whole(
    states: Tensor, head: Tensor, targets: Tensor, cross: Tensor, base: Tensor, divergence: Tensor
) -> tuple[Tensor, Tensor]:
    """Both sums by torch's own functions over all logits."""
    ours, theirs = F.log_softmax(states @ head.T, dim=1), F.log_softmax(base @ head.T, dim=1)
    kl = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return (cross * F.nll_loss(ours, targets, reduction="none")).sum(), (divergence * kl).sum()


@given(seed=st.integers(0, 1000), rows=st.integers(1, TOKENS + 2), with_base=st.booleans())
def test_any_chunk_gives_the_loss_and_the_gradient_of_whole_logits(seed: int, rows: int, with_base: bool) -> None:
    states, head, targets, cross, base, divergence = drawn(seed)
    expected = whole(states, head, targets, cross, base, divergence)
    wanted = sum(expected) if with_base else expected[0]
    (gradient,) = torch.autograd.grad(3 * wanted, states)
    options = {"base_TH": base, "divergence_T": divergence} if with_base else {}
    loss, parts = token_loss(states, head, targets, cross, rows=rows, **options)
    (found,) = torch.autograd.grad(3 * loss, states)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert parts.tolist() == pytest.approx([expected[0].item(), expected[1].item() if with_base else 0.0], rel=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    states, head, targets, cross, base, divergence = drawn(0)

    def loss(states: Tensor) -> Tensor:
        return token_loss(states, head, targets, cross, rows=3, base_TH=base, divergence_T=divergence)[0]

    assert torch.autograd.gradcheck(loss, (states,))


def test_the_same_states_have_no_divergence_and_no_gradient() -> None:
    states, head, targets, cross, _, divergence = drawn(1)
    loss, _ = token_loss(
        states, head, targets, 0 * cross, rows=2, base_TH=states.detach().clone(), divergence_T=divergence
    )
    (gradient,) = torch.autograd.grad(loss, states)
    assert abs(loss.item()) < 1e-14
    assert float(gradient.abs().max()) < 1e-14


def test_logits_never_stand_whole_in_memory() -> None:
    """The largest tensor that is made has the rows of a chunk, for a vocabulary that dwarfs everything else."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(x))
            return result

    tokens, vocabulary, rows = 64, 5000, 4
    states, head = torch.randn(tokens, 8), torch.randn(vocabulary, 8)
    with Watch():
        # The transposed head, which is a view, has vocabulary * 8 numbers.
        token_loss(states, head, torch.zeros(tokens, dtype=torch.long), torch.ones(tokens), rows=rows)
    assert max(sizes) <= max(rows * vocabulary, 8 * vocabulary) < tokens * vocabulary / 4
    assert rows * vocabulary in sizes


def test_rows_follow_the_budget_and_are_never_none() -> None:
    assert chunk_rows(16384, 151_936) == 220
    assert chunk_rows(1, 10**9) == 1
    assert chunk_rows(4096, 8192) == 1024
