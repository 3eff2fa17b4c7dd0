"""What tests of crashes share."""

import pytest

from chaos.crash import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Collections, and undisturbed runs over them."""
    return Stage(tmp_path_factory.mktemp("stage"))
