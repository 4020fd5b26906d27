"""fMRIPrep's derivatives: planted responses come back, and every fault is named in one sentence."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.datasets.events import EventOptions
from mindllm.datasets.fmriprep import FMRIPrepReader, ModelOptions
from mindllm.datasets.fmriprep_files import PreprocessedRun, find_events
from mindllm.report.store_report import inspect_store, write_store_report
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.fmriprep_writer import TimeSeriesConfig, simulate_fmriprep
from mindllm.utils.errors import InputError

CONFIG = SimulateConfig(
    n_subjects=2,
    resolution_mm=10,
    train_stimuli=12,
    val_stimuli=1,
    test_stimuli=3,
    n_repetitions=2,
    runs_per_session=2,
    n_fourier_features=30,
)
TIMING = TimeSeriesConfig(noise_percent=0.2, interval_seconds=14)
BASIC = {"motion": "basic"}
SPACE = "space-MNI152NLin2009cAsym"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, two sessions, two runs, as fMRIPrep lays them out."""
    folder = tmp_path_factory.mktemp("fmriprep") / "simulated"
    return simulate_fmriprep(folder, CONFIG, TIMING)


@pytest.fixture
def root(simulated: Path, tmp_path: Path) -> Path:
    """A copy with one subject, to be damaged."""
    for name in ("bids", "derivatives"):
        ignored = shutil.ignore_patterns("sub-02")
        shutil.copytree(simulated / name, tmp_path / name, ignore=ignored)
    return tmp_path


def one(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def edit(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_csv(file, sep="\t", dtype=object, keep_default_na=False)
    change(table).to_csv(file, sep="\t", index=False)


def set_cell(row: int, column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def make_reader(root: Path, **options: object) -> FMRIPrepReader:
    return FMRIPrepReader(root / "derivatives", events=root / "bids", **options)  # type: ignore[arg-type]


def read(root: Path, **options: object) -> pd.DataFrame:
    """Read the trials of the only subject: all that is done before time series are read."""
    reader = make_reader(root, **options)
    (subject,) = reader.select_subjects()
    trials = reader.read_trials(subject)
    reader.load_masker(subject, trials)
    return trials


@pytest.mark.parametrize("method", ["lsa", "lss"])
def test_planted_responses_come_back(simulated: Path, tmp_path: Path, method: str) -> None:
    model = ModelOptions(single_trial=method, confounds_options=BASIC)  # type: ignore[arg-type]
    store = make_reader(simulated, model=model).prepare(tmp_path / "store")
    assert store.subjects == ["sub-01", "sub-02"]
    for subject in store.subjects:
        planted = np.load(simulated / "truth" / f"{subject}_betas.npy")
        betas, trials = store.betas(subject), store.trials(subject)
        assert betas.shape == planted.shape
        varies = planted.std(0) > 0
        by_trial = [np.corrcoef(a, b)[0, 1] for a, b in zip(planted[:, varies], betas[:, varies])]
        by_voxel = [
            np.corrcoef(a, b)[0, 1] for a, b in zip(planted[:, varies].T, betas[:, varies].T)
        ]
        assert np.mean(by_trial) >= 0.9
        assert np.mean(by_voxel) >= 0.9
        slope = np.polyfit(planted.ravel(), betas.ravel(), 1)[0]
        assert slope == pytest.approx(1, abs=0.1), "in percent of the mean"
        assert trials["session"].tolist() == ["01"] * 16 + ["02"] * 16
        assert trials["run"].tolist() == (["1"] * 8 + ["2"] * 8) * 2
        assert trials["repetition"].tolist() == [0] * 16 + [1] * 16
        assert trials["onset"].is_monotonic_increasing is False
        assert set(trials["split"]) == {"train", "val", "test"}
        assert "file" not in trials
    assert set(store.parcel_names) == {"HCPEx", "AAL3"}
    assert store.meta["options"]["template"] == "MNI152NLin2009cAsym"
    assert store.meta["source"] == "single-trial betas of derivatives of fMRIPrep simulated"
    assert set(store.conversations["stimulus"]) == set(trials["stimulus"])
    assert store.runs is not None
    assert store.runs["excluded_fraction"].gt(0).all(), "the volume before the steady state"
    assert store.runs["n_trials"].tolist() == [8] * 8


def test_the_page_has_the_numbers_of_the_models(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # figures take seconds, and have a test of their own
    monkeypatch.setattr("mindllm.report.store_report.draw_store_figures", lambda *_: [])
    store = make_reader(root).prepare(tmp_path / "store")
    report = inspect_store(store)
    write_store_report(report, store, tmp_path / "page")
    runs = pd.read_csv(tmp_path / "page" / "runs.tsv", sep="\t")
    assert len(runs) == 4
    assert (runs[["condition_number", "mean_efficiency", "max_variance_inflation"]] > 0).all(None)
    (check,) = [c for c in report.checks if c.name == "single-trial models"]
    assert check.passed
    assert "4 runs, 0 trials left out" in check.message
    reliability = pd.read_csv(tmp_path / "page" / "reliability.tsv", sep="\t")
    assert reliability["n_trials"].tolist() == [32]
    assert "Runs of the single-trial models" in (tmp_path / "page" / "index.html").read_text()


def test_an_interrupted_preparation_reads_only_what_is_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindllm.datasets import fmriprep

    opened: list[str] = []
    original = fmriprep.read_time_series

    def counting(masker: object, file: Path, fwhm: float | None) -> np.ndarray:
        opened.append(file.name)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return original(masker, file, fwhm)  # type: ignore[arg-type]

    monkeypatch.setattr(fmriprep, "read_time_series", counting)
    with pytest.raises(KeyboardInterrupt):
        make_reader(root).prepare(tmp_path / "store")
    store = make_reader(root).prepare(tmp_path / "store")
    assert len(opened) == 5, "three before the interruption, two after it"
    monkeypatch.undo()
    whole = make_reader(root).prepare(tmp_path / "other")
    np.testing.assert_array_equal(store.betas("sub-01"), whole.betas("sub-01"))


def test_smoothing_and_readers_for_other_processes(root: Path, tmp_path: Path) -> None:
    model = ModelOptions(smoothing_fwhm_mm=12.0, noise_model="ar1", single_trial="lsa")
    smooth = make_reader(root, model=model, nan="drop").prepare(tmp_path / "smooth")
    sharp = make_reader(root).prepare(tmp_path / "sharp")
    n_voxels = {len(store.masker("sub-01")) for store in (smooth, sharp)}
    assert len(n_voxels) == 1
    assert smooth.betas("sub-01").std() < sharp.betas("sub-01").std()
    reader = make_reader(root)
    reader.select_subjects()
    trials = reader.read_trials("sub-01")
    masker = reader.load_masker("sub-01", trials)
    sessions = reader.session_readers(masker, trials, "float32")
    read_again = pickle.loads(pickle.dumps(sessions[1].read))
    np.testing.assert_array_equal(read_again(), sharp.betas("sub-01", sessions[1].rows))


# Trials and regressors of no interest


def test_other_events_become_regressors_of_no_interest(root: Path) -> None:
    events = one(root / "bids", "*_events.tsv")

    def add_fixation(table: pd.DataFrame) -> pd.DataFrame:
        row = {"onset": "2", "duration": "1", "trial_type": "fixation", "stim_file": "n/a"}
        return pd.concat([table, pd.DataFrame([{**row, "split": "n/a"}])])

    edit(events, add_fixation)
    with pytest.raises(InputError, match=r"line 10 has no stimulus: `stim_file` is empty or n/a"):
        read(root)
    by_type = read(root, event_options=EventOptions(trial_types=("scene",)))
    by_gap = read(root, event_options=EventOptions(missing="nuisance"))
    pd.testing.assert_frame_equal(by_type, by_gap)
    assert len(by_type) == 32
    assert by_type["trial_type"].eq("scene").all()
    with pytest.raises(InputError, match=r"has no trial: none of its 9 events"):
        read(root, event_options=EventOptions(trial_types=("word",)))


def test_the_column_of_stimuli(root: Path) -> None:
    for file in sorted((root / "bids").rglob("*_events.tsv")):
        edit(file, lambda table: table.assign(item=[f"{i:03d}" for i in range(len(table))]))
    chosen = read(root, event_options=EventOptions(stimulus_column="item"))
    assert chosen["stimulus"].tolist() == [f"{i:03d}" for i in range(8)] * 4
    assert read(root)["stimulus"].str.startswith("scene0").all()
    for file in sorted((root / "bids").rglob("*_events.tsv")):
        edit(file, lambda table: table.assign(stim_file="n/a"))
    assert set(read(root)["stimulus"]) == {"scene"}, "trial_type, since stim_file has no value"
    with pytest.raises(InputError, match=r"names no stimulus: .* expected image"):
        read(root, event_options=EventOptions(stimulus_column="image"))
    edit(file, lambda table: table.assign(stim_file="a"))
    with pytest.raises(InputError, match=r"stimuli are named by `trial_type` in .* `stim_file` in"):
        read(root)


def test_trials_that_are_not_shown_are_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = one(root / "derivatives", "*_timeseries.tsv")
    events = pd.read_csv(one(root / "bids", "*_events.tsv"), sep="\t")
    onset = events["onset"][3]
    first = int(onset // 2)

    def move(table: pd.DataFrame) -> pd.DataFrame:
        table["framewise_displacement"] = "0"
        table.loc[first : first + 8, "framewise_displacement"] = "9"
        return table

    edit(file, move)
    with caplog.at_level(logging.WARNING):
        reader = make_reader(root, model=ModelOptions(confounds="scrubbing"))
        reader.select_subjects()
        trials = reader.read_trials("sub-01")
    assert "1 of 8 trials are left out" in caplog.text
    assert len(trials) == 31
    assert not np.isclose(trials["onset"][:7], onset).any()
    runs = reader.describe_runs(["sub-01"])
    assert runs["n_dropped_trials"].tolist() == [1, 0, 0, 0]
    assert runs["excluded_fraction"][0] > 0.08


def test_atlases_are_brought_to_the_grid(root: Path) -> None:
    folder = root / "derivatives"
    file = folder / f"atlas-AAL3_{SPACE}_dseg.nii.gz"
    img = nib.load(file)
    fine = nib.Nifti1Image(
        np.repeat(np.repeat(np.repeat(np.asarray(img.dataobj), 2, 0), 2, 1), 2, 2),
        img.affine @ np.array(
            [[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]]
        ),
    )  # fmt: skip
    plain = make_reader(root)
    plain.select_subjects()
    expected = plain.load_masker("sub-01", plain.read_trials("sub-01")).parcel_labels["AAL3"]
    fine.to_filename(file)
    resampled = plain.load_masker("sub-01", pd.DataFrame()).parcel_labels["AAL3"]
    np.testing.assert_array_equal(resampled, expected)
    for suffix in (".nii.gz", ".tsv"):
        other = folder / f"atlas-AAL3_space-MNI152NLin6Asym_dseg{suffix}"
        file.with_name(f"atlas-AAL3_{SPACE}_dseg{suffix}").rename(other)
    with pytest.raises(InputError, match=r"AAL3 is there in MNI152NLin6Asym .* the runs are in"):
        read(root)


def test_a_mask_restricts_the_voxels(root: Path) -> None:
    mask = nib.load(one(root / "derivatives", "*_mask.nii.gz"))
    half = np.zeros(mask.shape, np.uint8)
    half[:, :, : mask.shape[2] // 2] = 1
    nib.Nifti1Image(half, mask.affine).to_filename(root / "half.nii.gz")
    reader = make_reader(root, mask=root / "half.nii.gz")
    reader.select_subjects()
    masker = reader.load_masker("sub-01", reader.read_trials("sub-01"))
    all_voxels = make_reader(root)
    all_voxels.select_subjects()
    n_all = len(all_voxels.load_masker("sub-01", all_voxels.read_trials("sub-01")))
    assert 0 < len(masker) < n_all
    assert masker.voxel_indices[:, 2].max() < mask.shape[2] // 2


def test_confound_strategies(root: Path) -> None:
    n_confounds = {}
    for name, options in {
        "none": {}, "simple": {}, "compcor": {}, "scrubbing": {"fd_threshold": "5"},
    }.items():  # fmt: skip
        model = ModelOptions(confounds=name, confounds_options=options)
        reader = make_reader(root, model=model)
        reader.select_subjects()
        reader.read_trials("sub-01")
        runs = reader.describe_runs(["sub-01"])
        n_confounds[name] = int(runs["n_confounds"][0])
        assert runs["excluded_fraction"].gt(0).all(), "the volume before the steady state"
    assert n_confounds == {"none": 0, "simple": 26, "compcor": 30, "scrubbing": 32}


def test_events_are_inherited(tmp_path: Path) -> None:
    (tmp_path / "sub-01" / "func").mkdir(parents=True)
    run = PreprocessedRun(Path("sub-01_task-x_run-01_space-T1w_desc-preproc_bold.nii.gz"))
    with pytest.raises(InputError, match=r"there is no .*sub-01_task-x_run-01_events.tsv"):
        find_events(tmp_path, run)
    (tmp_path / "task-y_events.tsv").touch()
    (tmp_path / "task-x_events.tsv").touch()
    assert find_events(tmp_path, run) == tmp_path / "task-x_events.tsv"
    deeper = tmp_path / "sub-01" / "func" / "sub-01_task-x_run-1_events.tsv"
    deeper.touch()
    assert find_events(tmp_path, run) == deeper
    (tmp_path / "sub-01" / "func" / "sub-01_task-x_events.tsv").touch()
    with pytest.raises(InputError, match="has several tables of events"):
        find_events(tmp_path, run)


# What ends in one sentence


def damage_events(**cell: str) -> Callable[[Path], None]:
    ((column, value),) = cell.items()
    return lambda root: edit(one(root / "bids", "*_events.tsv"), set_cell(2, column, value))


def change_json(key: str, value: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = sorted((root / "derivatives").rglob("*_bold.json"))[-1]
        content = {**json.loads(file.read_text()), key: value}
        file.write_text(json.dumps(content))

    return change


def change_tr_of_a_run(root: Path) -> None:
    change_json("RepetitionTime", 1.5)(root)
    change_json("StartTime", 0.75)(root)
    file = sorted((root / "derivatives").rglob("*_bold.nii.gz"))[-1]
    img = nib.load(file)
    img.header.set_zooms((*img.header.get_zooms()[:3], 1.5))
    nib.Nifti1Image(np.asarray(img.dataobj), img.affine, img.header).to_filename(file)


def remove(pattern: str) -> Callable[[Path], None]:
    return lambda root: one(root, pattern).unlink()


def drop_column(prefix: str) -> Callable[[Path], None]:
    return lambda root: edit(
        one(root, "*_timeseries.tsv"),
        lambda table: table[[name for name in table if not name.startswith(prefix)]],
    )


def shorten_confounds(root: Path) -> None:
    edit(one(root, "*_timeseries.tsv"), lambda table: table[:-3])


def add_space(root: Path) -> None:
    for file in sorted((root / "derivatives").rglob(f"*{SPACE}_desc*")):
        shutil.copy(file, file.with_name(file.name.replace(SPACE, f"{SPACE}_res-2")))


def add_task(root: Path) -> None:
    for file in sorted((root / "derivatives").rglob("*task-scenes*")):
        shutil.copy(file, file.with_name(file.name.replace("task-scenes", "task-rest")))


def leave_surfaces(root: Path) -> None:
    for file in sorted((root / "derivatives").rglob("*preproc_bold.nii.gz")):
        file.rename(file.with_name(file.name.replace("_desc-preproc_bold.nii.gz", "_bold.mgz")))


def overlap(root: Path) -> None:
    edit(
        one(root / "bids", "*_events.tsv"),
        lambda table: table.assign(onset=[table["onset"][0], *table["onset"][:-1]]),
    )


FAULTS = {
    "n/a onset": (damage_events(onset="n/a"), r"line 4 has no onset: it is empty or n/a"),
    "n/a duration": (damage_events(duration="n/a"), r"line 4 has no duration"),
    "n/a stimulus": (damage_events(stim_file="n/a"), r"line 4 has no stimulus"),
    "onset in words": (damage_events(onset="soon"), r"line 4: the onset is 'soon'; expected sec"),
    "negative": (damage_events(duration="-1"), r"line 4: the duration is .*expected .*0 or more"),
    "milliseconds": (damage_events(onset="4000"), r"the onset is 4000 s, but the run ends at"),
    "overlap": (overlap, r"the trial begins at .* before that of line \d ends"),
    "no events": (remove("*_events.tsv"), r"has no events: there is no"),
    "no confounds": (remove("*_timeseries.tsv"), r"has no confounds: there is no"),
    "no motion": (drop_column("trans_"), r"cannot be used with --confounds simple"),
    "short confounds": (shorten_confounds, r"has \d+ rows, but the run has \d+ volumes"),
    "no mask": (remove("*brain_mask.nii.gz"), r"has no brain mask: there is no"),
    "no json": (remove("*_bold.json"), r"has no repetition time: there is no"),
    "another TR in the header": (
        change_json("RepetitionTime", 1.5),
        r"repetition time of 2 s in its header, and of 1.5 s",
    ),
    "another TR in a run": (change_tr_of_a_run, r"repetition time of 1.5 s, .* of 2 s"),
    "start": (change_json("StartTime", 9.0), r"StartTime 9.0 is not within a repetition time"),
    "TR in words": (change_json("RepetitionTime", "2"), r"RepetitionTime: Input should be"),
    "two spaces": (add_space, r"hold the spaces .*; expected one. Choose it with --space"),
    "two tasks": (add_task, r"hold the tasks rest, scenes; expected one. Choose it with --task"),
    "surfaces": (leave_surfaces, r"holds surfaces or CIFTI files alone"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_one_sentence(root: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(root)
    with pytest.raises(InputError, match=message) as error:
        read(root)
    assert len(str(error.value)) < 700


def test_a_space_and_a_task_are_chosen(root: Path) -> None:
    add_space(root)
    add_task(root)
    chosen = f"{SPACE.removeprefix('space-')}:res-2"
    reader = make_reader(root, space=chosen, task="scenes")
    assert reader.select_subjects() == ["sub-01"]
    assert reader.options()["space"] == chosen
    assert {run.space for run in reader.select_runs("sub-01")} == {chosen}
    with pytest.raises(InputError, match="have no space T1w, but"):
        make_reader(root, space="T1w", task="scenes").select_subjects()


def test_voxels_without_a_signal(root: Path, tmp_path: Path) -> None:
    file = one(root / "derivatives", "*preproc_bold.nii.gz")
    img = nib.load(file)
    data = np.asarray(img.dataobj).copy()
    empty = tuple(np.argwhere(data[..., 0] > 0)[0])
    data[empty] = 0
    nib.Nifti1Image(data, img.affine, img.header).to_filename(file)
    with pytest.raises(InputError, match=r"1 of .* voxels of the masks are constant"):
        make_reader(root).prepare(tmp_path / "store")
    store = make_reader(root, nan="drop").prepare(tmp_path / "store")
    assert list(empty) not in store.masker("sub-01").voxel_indices.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"single_trial": "glmsingle"}, "is not run here; expected lsa or lss"),
        ({"hrf_model": "fir"}, "hrf_model='fir' is unknown"),
        ({"noise_model": "ar"}, "expected ols, ar1"),
        ({"high_pass_hz": float("nan")}, "high_pass_hz=nan is out of range"),
        ({"confounds": "all"}, "confounds='all' is unknown"),
        ({"confounds_options": {"scrub": "1"}}, "strategy simple has no option scrub"),
        ({"confounds": "scrubbing", "confounds_options": {"scrub": "x"}}, "scrub='x' is no number"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelOptions(**options)  # type: ignore[arg-type]


def test_a_store_without_models_has_no_runs(tiny_store: Store) -> None:
    assert tiny_store.runs is None
