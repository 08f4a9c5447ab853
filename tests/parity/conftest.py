"""The made-up clicks on which torch, ORT, offline and online are compared."""

import pytest

from compress.data.encode import Dataset, prepare
from compress.data.synthetic import Synthetic, SyntheticConfig
from compress.progress import Silent


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Features of every kind on both sides, a catalogue, empty cells, unseen tokens."""
    source = Synthetic(SyntheticConfig(rows=3000, seed=5, catalogue=80, min_count=3))
    return prepare(source, tmp_path_factory.mktemp("data"), Silent())
