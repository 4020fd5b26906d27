"""A running server that the tests of the server share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from tests.serve.serving import ALICE, BOB, RunningServer, make_model, running


@pytest.fixture(scope="session")
def served_model(tiny_llm_folder: Path, tiny_store: Store) -> MindLLM:
    return make_model(tiny_llm_folder, tiny_store)


@pytest.fixture(scope="session")
def server(served_model: MindLLM, tiny_store: Store) -> Iterator[RunningServer]:
    """For this machine alone, without tokens."""
    with running(
        served_model, tiny_store, {"max_image_bytes": 2**22, "max_upload_bytes": 2**22}
    ) as s:
        yield s


@pytest.fixture(scope="session")
def token_server(served_model: MindLLM, tiny_store: Store) -> Iterator[RunningServer]:
    """With two users."""
    with running(served_model, tiny_store, {"tokens": (ALICE, BOB), "max_scans": 2}) as s:
        yield s
