"""The commands of `mindllm prepare`: their options are those of the readers."""

import pytest
import typer.main

from mindllm.cli.prepare import app
from mindllm.datasets.base import DatasetReader
from mindllm.datasets.bids import BIDSReader
from mindllm.datasets.fmriprep import FMRIPrepReader
from mindllm.datasets.glmsingle import GLMsingleReader
from mindllm.datasets.laion_fmri import LAIONReader
from mindllm.datasets.mindllm_release import MindLLMReleaseReader
from mindllm.datasets.mosaic import MOSAICReader
from mindllm.datasets.nsd import NSDReader

READERS = (
    BIDSReader,
    FMRIPrepReader,
    GLMsingleReader,
    LAIONReader,
    MindLLMReleaseReader,
    MOSAICReader,
    NSDReader,
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("reader", READERS)
def test_a_command_has_the_options_and_defaults_of_its_reader(reader: type[DatasetReader]) -> None:
    command = COMMANDS[reader.prepared_by]
    options = {option.name: option for option in command.params}
    assert {"out", "seed", "n_jobs", "dask_scheduler"} <= set(options)
    assert options["dtype"].default == reader.default_dtype
    assert options["val_fraction"].default == reader.default_val_fraction


def test_every_reader_has_a_command() -> None:
    assert set(COMMANDS) == {r.prepared_by for r in READERS} | {"instructions"}
