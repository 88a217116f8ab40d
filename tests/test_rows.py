import numpy as np
import pytest
import torch

from relict_lightning.rows import row_norms, row_sums


@pytest.mark.parametrize("length", [1, 7, 512, 32_768, 100_003])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_sum_of_a_row_is_the_same_in_any_company(length, device):
    rows = torch.randn(9, length, generator=torch.Generator().manual_seed(0)).to(device)

    together, alone = (sums.cpu() for sums in (row_sums(rows), torch.cat([row_sums(row[None]) for row in rows])))

    assert torch.equal(together, alone)
    assert torch.equal(row_sums(rows.flip(0)).cpu(), together.flip(0))
    rows = rows.cpu()
    # Pairwise sums keep the precision of single numbers.
    np.testing.assert_allclose(together, rows.double().sum(1), atol=1e-5 * length**0.5)
    np.testing.assert_allclose(row_norms(rows.to(device)).cpu(), rows.double().norm(dim=1), rtol=1e-5)


def test_rows_that_lie_apart_in_memory_are_summed_alike():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).T

    assert torch.equal(row_sums(rows), row_sums(rows.contiguous()))


def test_no_rows_have_no_sums():
    assert row_sums(torch.zeros(0, 4)).shape == (0,)
