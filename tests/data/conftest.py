"""Small REFER folders written by hand, and one synthetic data set for the whole session."""

import os
from pathlib import Path

import pytest
from refer_folder import Folder

from harness.data.options import SyntheticData
from harness.data.synthetic import generate, generate_pool


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("RIS_REAL_DATA")
    if not folder:
        pytest.skip("RIS_REAL_DATA does not name the real-photograph sample")
    return Path(folder)


@pytest.fixture
def real_text() -> Path:
    folder = os.environ.get("RIS_TEXT_DATA")
    if not folder:
        pytest.skip("RIS_TEXT_DATA does not name the folder of RefCOCO expressions")
    return Path(folder)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "refer")


SMALL = SyntheticData(
    train_images=24, val_images=200, testA_images=50, testB_images=50, test_images=30, pool_images=20
)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """The default data with its whole val split and little of the others."""
    out = tmp_path_factory.mktemp("synthetic")
    generate(SMALL, out)
    generate_pool(SMALL, out)
    return out


@pytest.fixture(scope="session")
def tiny_options() -> SyntheticData:
    return SyntheticData(
        train_images=8, val_images=8, testA_images=3, testB_images=3, test_images=3, pool_images=4
    )
