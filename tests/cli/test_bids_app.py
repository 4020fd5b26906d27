"""The BIDS App: participant and group, with the arguments that every BIDS App has."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from mindllm.cli import run_bids_app
from mindllm.cli.bids_app import run
from mindllm.data.store import Store
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.fmriprep_writer import simulate_fmriprep
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.examples.conftest import SIZES


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw data set with fMRIPrep's derivatives at their usual path."""
    folder = tmp_path_factory.mktemp("app") / "simulated"
    config = SimulateConfig(
        n_subjects=2, resolution_mm=10, train_stimuli=12, val_stimuli=1, test_stimuli=3,
        n_repetitions=1, runs_per_session=1, n_fourier_features=30,
    )  # fmt: skip
    simulate_fmriprep(folder, config)
    (folder / "bids" / "derivatives").mkdir()
    shutil.move(folder / "derivatives", folder / "bids" / "derivatives" / "fmriprep")
    return folder / "bids"


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and have tests of their own."""
    monkeypatch.setattr("mindllm.report.store_report.draw_store_figures", lambda *_: [])


@pytest.mark.usefixtures("no_page")
def test_participants_then_group(bids: Path, tmp_path: Path, tiny_llm_folder: Path) -> None:
    out = tmp_path / "out"
    run([str(bids), str(out), "participant", "--participant_label", "01"])
    assert Store(out / "sub-01" / "store").subjects == ["sub-01"]
    assert (out / "sub-01" / "qc" / "runs.tsv").is_file()
    with pytest.raises(InputError, match="holds no store of sub-02"):
        run([str(bids), str(out), "group", "--participant-label", "sub-01", "02"])
    run([str(bids), str(out), "participant", "--participant-label", "02"])
    run([str(bids), str(out), "group"])
    store = Store(out / "store")
    assert store.subjects == ["sub-01", "sub-02"]
    assert store.runs is not None
    assert set(store.runs["subject"]) == {"sub-01", "sub-02"}
    assert store.conversations.groupby("stimulus").size().nunique() == 1
    assert len(store.conversations) == len(Store(out / "sub-02" / "store").conversations)
    assert store.betas("sub-02").tolist() == Store(out / "sub-02/store").betas("sub-02").tolist()
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "mindllm"

    config = TrainConfig(
        encoder=SIZES,
        language_model=str(tiny_llm_folder),
        dtype="float32",
        alignment={"max_steps": 2, "batch_size": 16},
        instruction_tuning={"max_steps": 1, "batch_size": 4},
    )
    train(store, tmp_path / "model", config, subjects=["sub-01"])
    model = ["--model", str(tmp_path / "model")]
    run([str(bids), str(out), "participant", "--participant-label", "02", *model])
    decoded = pd.read_csv(out / "sub-02" / "sub-02_desc-decoded_trials.tsv", sep="\t")
    assert len(decoded) == 16
    assert "text" in decoded
    with pytest.raises(InputError, match="already exists; remove it"):
        run([str(bids), str(out), "participant", "--participant-label", "02", *model])


@pytest.mark.usefixtures("no_page")
def test_stores_of_other_options_are_not_joined(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([str(bids), str(out), "participant", "--participant-label", "01"])
    options = ["--participant-label", "02", "--confounds", "none"]
    run([str(bids), str(out), "participant", *options])
    with pytest.raises(InputError, match=r"different options \(confounds\)"):
        run([str(bids), str(out), "group"])


def test_faults_end_in_one_sentence(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for arguments, message in (
        ([str(tmp_path / "none"), out, "participant"], "is no folder; expected a BIDS data set"),
        ([str(bids), out, "participant", "--participant-label", "99"], "has no subject sub-99"),
        ([str(bids), out, "participant", "--participant-label", "../x"], "letters and digits"),
        ([str(bids), out, "group"], "holds no store of any participant"),
        ([str(bids), out, "participant", "--model", out], "model"),
        ([str(bids), out, "participant", "--n-jobs", "0"], "expected 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            run(arguments)
    monkeypatch.setattr(sys, "argv", ["mindllm-bids-app", str(bids), out, "group"])
    with pytest.raises(SystemExit) as end:
        run_bids_app()
    assert end.value.code == 1
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run([str(bids), out, "session"])
    assert end.value.code == 2
