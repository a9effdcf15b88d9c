"""Muon: the directions of a matrix, all of about the same length, and Nesterov's momentum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exposure.training.muon import SCALE, Muon, orthogonalised


@settings(deadline=None)  # torch's first product of matrices takes a while
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_all_directions_become_about_as_long(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    lengths = torch.rand(min(rows, columns), generator=generator) * 0.9 + 0.1  # of which the longest is 10 times one
    made = orthogonalised(u @ torch.diag(lengths) @ v)
    along = u.T @ made @ v.T  # what is left of U S V^T is its diagonal
    torch.testing.assert_close(along, torch.diag(along.diagonal()), rtol=0, atol=1e-3)
    assert 0.6 < along.diagonal().min() <= along.diagonal().max() < 1.3  # the paper's own: 0.7 to 1.2


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (40, 2, 2, 2)])
def test_a_step_is_nesterovs_and_as_long_as_one_of_adams(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).requires_grad_()
    start, first, second = weight.detach().clone(), *torch.randn((2, *shape), generator=generator)
    optimizer = Muon([weight], lr=0.01, momentum=0.9)
    for gradient in (first, second):
        before, weight.grad = weight.detach().clone(), gradient
        optimizer.step()
    assert not torch.equal(before, start)
    ahead = second + 0.9 * (0.9 * first + second)  # Nesterov: where the momentum is going to be
    moved = (before - weight.detach()).flatten(1)
    expected = orthogonalised(ahead.flatten(1))
    torch.testing.assert_close(moved / moved.norm(), expected / expected.norm(), rtol=0, atol=1e-5)
    assert moved.square().mean().sqrt() == pytest.approx(0.01 * SCALE, rel=0.2)  # singular values are 0.7 to 1.2
