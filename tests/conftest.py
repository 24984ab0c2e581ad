"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_intra_op_thread():
    """Sums are then added in one order, whoever runs them: the plain loop and a rank alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
