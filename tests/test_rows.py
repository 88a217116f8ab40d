import numpy as np
import pytest
import torch

from relict_lightning.rows import row_norms, row_sums


@pytest.mark.parametrize("length", [1, 7, 512, 32_768, 100_003])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_sum_of_a_row_is_the_same_in_any_company(length, threads):
    rows = torch.randn(9, length, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    together, alone = row_sums(rows), torch.cat([row_sums(rows[[number]]) for number in range(9)])
    torch.set_num_threads(before)

    assert torch.equal(together, alone)
    assert torch.equal(row_sums(rows.flip(0)), together.flip(0))
    # Pairwise sums keep the precision of single numbers.
    np.testing.assert_allclose(together, rows.double().sum(1), atol=1e-5 * length**0.5)
    np.testing.assert_allclose(row_norms(rows), rows.double().norm(dim=1), rtol=1e-5)


def test_rows_that_lie_apart_in_memory_are_summed_alike():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).T

    assert torch.equal(row_sums(rows), row_sums(rows.contiguous()))


def test_no_rows_have_no_sums():
    assert row_sums(torch.zeros(0, 4)).shape == (0,)
