"""The simulator: what is simulated is written, and the ceilings are what a decoder could reach."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from mindllm.fmri.templates import merge_hemispheres
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.ideal_observer import SubjectPrior, ideal_observer_accuracy
from mindllm.simulate.scenes import ATTRIBUTES, TUNINGS, draw_stimuli
from mindllm.simulate.simulator import simulate, summary
from mindllm.simulate.subject import SimulatedSubject, simulate_subject
from mindllm.simulate.world import SimulatedExperiment, build_experiment
from mindllm.utils.errors import InputError

TINY = SimulateConfig(
    n_subjects=2,
    resolution_mm=8,
    train_stimuli=24,
    val_stimuli=4,
    test_stimuli=8,
    runs_per_session=2,
    n_fourier_features=80,
)


@pytest.fixture(scope="module")
def experiment() -> SimulatedExperiment:
    return build_experiment(TINY)


@pytest.fixture(scope="module")
def subject(experiment: SimulatedExperiment) -> SimulatedSubject:
    return simulate_subject(experiment, 0)


def changed(experiment: SimulatedExperiment, **settings: float) -> SimulatedExperiment:
    """The same experiment under other settings for subjects."""
    return replace(experiment, config=experiment.config.model_copy(update=settings))


@pytest.fixture(scope="module")
def repeated(experiment: SimulatedExperiment) -> tuple[SimulatedExperiment, SimulatedSubject]:
    """A subject with sixty repetitions, without run offsets."""
    config = changed(experiment, n_repetitions=60, run_offset=0.0)
    return config, simulate_subject(config, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "data", TINY)


def image(folder: Path, name: str, ending: str) -> nib.Nifti1Image:
    (path,) = (folder / name / "func").glob(f"*{ending}.nii.gz")
    return nib.load(path)


def test_layout_and_values_read_back(
    folder: Path, experiment: SimulatedExperiment, subject: SimulatedSubject
) -> None:
    betas = image(folder, "sub-01", "space-MNI152_res-8_stat-effect_desc-SingletrialBetas_statmap")
    mask = image(folder, "sub-01", "space-MNI152_res-8_desc-brain_mask")
    trials = pd.read_csv(
        folder / "sub-01" / "func" / "sub-01_task-scenes_desc-SingletrialBetas_trials.tsv", sep="\t"
    )
    slope = float(betas.dataobj.slope)
    assert betas.get_data_dtype() == np.int16
    assert slope not in (0, 1)
    assert betas.dataobj.inter != 0
    inside = np.asarray(mask.dataobj) > 0
    np.testing.assert_array_equal(np.argwhere(inside), subject.voxel_indices)
    np.testing.assert_allclose(betas.get_fdata()[inside].T, subject.betas, atol=slope * 0.51)
    np.testing.assert_allclose(
        nib.affines.apply_affine(betas.affine, subject.voxel_indices), subject.coords_mm, atol=1e-4
    )
    pd.testing.assert_frame_equal(trials, subject.trials, check_dtype=False)
    assert list(trials.columns[:7]) == [
        "volume",
        "stimulus",
        "session",
        "run",
        "repetition",
        "split",
        "caption",
    ]
    assert list(trials["volume"]) == list(range(betas.shape[3]))
    described = json.loads((folder / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    participants = pd.read_csv(folder / "participants.tsv", sep="\t")
    assert participants["n_voxels"][0] == inside.sum()


def test_grid_is_oblique_flipped_and_shared_by_the_atlases(folder: Path) -> None:
    affine = image(folder, "sub-02", "_mask").affine
    assert (np.abs(affine[:3, :3] / 8) > 0.02).sum() > 3  # oblique
    assert nib.aff2axcodes(affine) == ("P", "I", "R")
    for name in ("HCPEx", "AAL3"):
        atlas = nib.load(folder / f"atlas-{name}_space-MNI152_res-8_dseg.nii.gz")
        table = pd.read_csv(folder / f"atlas-{name}_dseg.tsv", sep="\t")
        np.testing.assert_array_equal(atlas.affine, affine)
        assert set(np.unique(np.asarray(atlas.dataobj))) - {0} <= set(table["index"])


def test_parcels_lie_where_anatomy_puts_them(experiment: SimulatedExperiment) -> None:
    mm = nib.affines.apply_affine(experiment.affine, experiment.voxel_indices)
    number = {name: index for index, name in experiment.names["HCPEx"].items()}
    observed = experiment.labels["HCPEx"][tuple(experiment.voxel_indices.T)]
    for parcel, expected in {
        "Primary_Visual_Cortex_L": (-10, -84, 2),
        "Fusiform_Face_Complex_R": (41, -55, -20),
    }.items():
        assert np.linalg.norm(mm[observed == number[parcel]].mean(0) - expected) < 8


def test_subjects_differ(experiment: SimulatedExperiment, subject: SimulatedSubject) -> None:
    other = simulate_subject(experiment, 1)
    a, b = ({tuple(row) for row in p.voxel_indices} for p in (subject, other))
    assert len(a) != len(b)
    assert 0.3 < len(a & b) / len(a | b) < 0.95
    assert not subject.betas[:, ~subject.varies].any()
    assert (~subject.varies).sum() == TINY.constant_voxels
    assert (subject.betas[:, subject.varies].std(0) > 0).all()


def test_same_seed_same_subject_however_many_subjects(
    experiment: SimulatedExperiment, subject: SimulatedSubject
) -> None:
    again = simulate_subject(changed(experiment, n_subjects=7), 0)
    np.testing.assert_array_equal(again.betas, subject.betas)
    np.testing.assert_array_equal(again.voxel_indices, subject.voxel_indices)
    other = simulate_subject(changed(experiment, seed=1), 0)
    assert other.betas.shape != subject.betas.shape or not np.allclose(other.betas, subject.betas)


def test_places_live_in_place_parcels(
    experiment: SimulatedExperiment, subject: SimulatedSubject
) -> None:
    columns = [value for values in ATTRIBUTES.values() for value in values]
    rows = [columns.index(value) for value in ATTRIBUTES["place"]]
    by_place = (experiment.design[:, rows] @ subject.patterns[rows]).var(0)
    numbers = {name: index for index, name in experiment.names["HCPEx"].items()}
    parcels = tuple(r for t in TUNINGS if t.attribute == "place" for r in t.parcels)
    inside = np.isin(
        experiment.labels["HCPEx"][tuple(subject.voxel_indices.T)],
        merge_hemispheres(parcels, numbers),
    )
    assert by_place[inside & subject.varies].mean() > 5 * by_place[~inside].mean()


def test_no_signal_no_effect_and_ceilings_at_chance(experiment: SimulatedExperiment) -> None:
    null = changed(experiment, signal=0.0)
    null_subject = simulate_subject(null, 0)
    assert not null_subject.patterns.any()
    assert not null_subject.noise_ceiling.any()
    assert null_subject.betas.std() > 1
    best = ideal_observer_accuracy(null, null_subject, SubjectPrior.draw(null, n_subjects=3))
    assert all(value == pytest.approx(1 / TINY.test_stimuli) for value in best.values())


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_by_stimulus_and_hold_no_new_value(seed: int) -> None:
    config = SimulateConfig(seed=seed, val_stimuli=1)
    stimuli = draw_stimuli(
        np.random.default_rng(seed),
        {"train": config.train_stimuli, "val": config.val_stimuli, "test": config.test_stimuli},
    )
    assert stimuli["stimulus"].is_unique
    assert not stimuli.duplicated(list(ATTRIBUTES)).any()
    assert stimuli["split"].value_counts().to_dict() == {"train": 200, "val": 1, "test": 60}
    for attribute, values in ATTRIBUTES.items():
        assert set(stimuli.loc[stimuli["split"] == "train", attribute]) == set(values)


def test_no_stimulus_crosses_splits_of_any_subject(folder: Path) -> None:
    trials = pd.concat(
        pd.read_csv(path, sep="\t") for path in folder.glob("sub-*/func/*_trials.tsv")
    )
    assert (trials.groupby("stimulus")["split"].nunique() == 1).all()
    assert (trials.groupby("stimulus").size() == TINY.n_subjects * TINY.n_repetitions).all()
    assert (trials.groupby(["stimulus", "repetition"])["session"].nunique() == 1).all()


def test_captions_are_unique_and_the_first_is_the_trials_one(
    folder: Path, subject: SimulatedSubject
) -> None:
    captions = pd.read_csv(folder / "stimuli" / "captions.tsv", sep="\t")
    assert captions["caption"].is_unique
    assert (captions.groupby("stimulus").size() > 1).all()
    first = captions.groupby("stimulus")["caption"].first()
    assert (subject.trials["stimulus"].map(first) == subject.trials["caption"]).all()
    assert captions["caption"].str.split().str.len().between(5, 14).all()
    for trial in subject.trials.to_dict("records"):
        assert f"{trial['action']} " in trial["caption"]
        assert trial["place"] in trial["caption"]


def test_noise_ceiling_agrees_with_many_repeats(
    repeated: tuple[SimulatedExperiment, SimulatedSubject],
) -> None:
    config, subject = repeated[0].config, repeated[1]
    order = subject.trials.sort_values(["stimulus", "repetition"])["volume"].to_numpy()
    shown = subject.betas[order].reshape(
        -1, config.n_repetitions, len(subject.voxel_indices)
    )  # (S, n, V)
    noise = shown.var(1, ddof=1).mean(0)
    signal = (shown.mean(1).var(0, ddof=0) - noise / config.n_repetitions).clip(0)
    with np.errstate(invalid="ignore"):
        observed = 100 * signal / (signal + noise / config.n_repetitions)
    strong = subject.noise_ceiling > 50
    assert strong.sum() > 20
    assert np.abs(observed - subject.noise_ceiling)[strong].mean() < 5


def test_ceilings_are_ordered_and_summarised(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    best = truth["identification"]
    assert (
        truth["chance_level"]
        < best["unseen_subject_single_trial"]
        < best["known_subject_single_trial"]
        <= 1
    )
    assert best["known_subject_single_trial"] < best["known_subject_mean_over_repetitions"]
    assert SimulateConfig(**truth["config"]) == TINY
    assert summary(folder).startswith("2 simulated subjects, ")
    ceiling = image(folder, "sub-01", "desc-Noiseceiling_statmap").get_fdata()
    assert 0 <= ceiling.min() < ceiling.max() <= 100


def test_an_ideal_observer_of_the_trials_scores_what_the_ceiling_says(
    repeated: tuple[SimulatedExperiment, SimulatedSubject],
) -> None:
    experiment, subject = repeated
    shown = np.flatnonzero(experiment.stimuli["split"] == "test")
    trials = subject.trials[subject.trials["split"] == "test"]
    values, patterns = (
        x[:, subject.varies]
        for x in (subject.betas[trials.index], experiment.design[shown] @ subject.patterns)
    )
    noise = subject.noise[:, subject.varies]
    precision = np.linalg.inv(noise.T @ noise + TINY.voxel_noise**2 * np.eye(noise.shape[1]))
    apart = values[:, None] - patterns
    distance = np.einsum("tcv,vw,tcw->tc", apart, precision, apart, optimize=True)
    hits = (
        experiment.stimuli["stimulus"].to_numpy()[shown[distance.argmin(1)]] == trials["stimulus"]
    )
    ceiling = ideal_observer_accuracy(
        experiment, subject, SubjectPrior.draw(experiment, n_subjects=3)
    )
    assert len(hits) == 480
    assert hits.mean() == pytest.approx(ceiling["known_subject_single_trial"], abs=0.06)
    assert hits.mean() < 0.99  # else this shows nothing


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="already exists"):
        simulate(tmp_path, TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_settings_parcels_and_too_many_scenes_are_errors() -> None:
    with pytest.raises(ValidationError, match="extra"):
        SimulateConfig(persons=3)
    with pytest.raises(ValidationError, match="at most"):
        SimulateConfig(train_stimuli=100_000)
    with pytest.raises(InputError, match="Face_Area_L"):
        merge_hemispheres(("Face_Area",), {"Primary_Visual_Cortex_L": 1})


def test_folders_may_be_text(tmp_path: Path) -> None:
    config = SimulateConfig(
        n_subjects=1, resolution_mm=8, train_stimuli=8, val_stimuli=1, test_stimuli=2
    )
    folder = simulate(str(tmp_path / "bids"), config)
    assert folder == tmp_path / "bids"
    assert summary(str(folder)).startswith("1 simulated subjects")
