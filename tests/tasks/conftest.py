"""One folder of prepared data for all tests of tasks: to read the standard library takes seconds."""

import os

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder that tests prepare and read, and leave as it is; the workers of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tfds"
    path.mkdir(exist_ok=True)
    return path
