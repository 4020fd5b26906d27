"""Running servers that the tests of the server share."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from mindllm.serve import scans
from mindllm.serve.scan_reader import ScanLimits, read_or_refuse
from tests.serve.serving import ALICE, BOB, RunningServer, make_model, running

RUN_READER = scans.run_reader


@pytest.fixture(scope="session")
def served_model(tiny_llm_folder: Path, tiny_store: Store) -> MindLLM:
    return make_model(tiny_llm_folder, tiny_store)


async def read_here(folder: Path, seconds: float) -> None:
    """Read a scan as the process that is made for it does, without one, which takes a second."""
    limits = ScanLimits.read(folder / "limits.json")
    await asyncio.to_thread(read_or_refuse, folder, limits)


@pytest.fixture(scope="session")
def quick_reader() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "run_reader", read_here)
        yield


@pytest.fixture
def real_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans are read in a process of their own."""
    monkeypatch.setattr(scans, "run_reader", RUN_READER)


@pytest.fixture(scope="session")
def server(served_model: MindLLM, tiny_store: Store, quick_reader: None) -> Iterator[RunningServer]:
    """For this machine alone, without tokens."""
    options = {"max_image_bytes": 2**22, "max_upload_bytes": 2**22}
    with running(served_model, tiny_store, options) as started:
        yield started


@pytest.fixture(scope="session")
def token_server(
    served_model: MindLLM, tiny_store: Store, quick_reader: None
) -> Iterator[RunningServer]:
    """With two users."""
    options = {"tokens": (ALICE, BOB), "max_scans": 2}
    with running(served_model, tiny_store, options) as started:
        yield started
