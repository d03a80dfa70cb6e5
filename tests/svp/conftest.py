import pytest
import torch
from svp_inputs import join, single


@pytest.fixture
def images():
    return [single(count, seed) for seed, count in enumerate((4, 1, 7, 2))]


@pytest.fixture
def batch(images):
    return join(images)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
