"""Single-trial betas: those of nilearn's FirstLevelModel, and what cannot be estimated."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import FirstLevelModel

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.single_trial import (
    HRF_MODELS,
    ScanTimes,
    build_design,
    compute_weights,
    describe_design,
    estimate_betas,
    find_constant_voxels,
    read_time_series,
)
from mindllm.utils.errors import InputError

SHAPE, N_VOLUMES, TR = (4, 3, 2), 90, 2.0
TIMES = ScanTimes(N_VOLUMES, TR, 0.5)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def img() -> nib.Nifti1Image:
    rng = np.random.default_rng(0)
    data = 500 + np.cumsum(rng.normal(size=(*SHAPE, N_VOLUMES)), axis=3)
    image = nib.Nifti1Image(data.astype(np.float32), AFFINE)
    image.header.set_zooms((3, 3, 3, TR))
    return image


@pytest.fixture(scope="module")
def masker() -> VoxelMasker:
    return VoxelMasker.from_mask_img(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE))


def make_events(n_trials: int = 8) -> pd.DataFrame:
    onsets = np.arange(n_trials) * 15.0 + np.array([4, 5, 3, 6] * 2)[:n_trials]
    events = pd.DataFrame({"onset": onsets, "duration": 2.0, "nuisance": None})
    button = pd.DataFrame({"onset": [30.0, 77.0], "duration": 0.0, "nuisance": "button press"})
    return pd.concat([events, button], ignore_index=True).sort_values("onset")


def nilearn_maps(
    img: nib.Nifti1Image, names: list[str], confounds: np.ndarray, kept: np.ndarray, **options: str
) -> FirstLevelModel:
    """Fit nilearn's own model, whose conditions are the names of the events in their order."""
    events = make_events()[["onset", "duration"]].assign(trial_type=names)
    mask = nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE)
    model = FirstLevelModel(
        t_r=TR, slice_time_ref=0.5, high_pass=1 / 128, mask_img=mask, minimize_memory=False,
        **options,
    )  # fmt: skip
    return model.fit(img, events, pd.DataFrame(confounds).add_prefix("c"), sample_masks=[kept])


@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
@pytest.mark.parametrize("hrf_model", ["glover", "spm + derivative"])
@pytest.mark.parametrize("method", ["lsa", "lss"])
@pytest.mark.filterwarnings("ignore")
def test_betas_are_those_of_nilearn(
    img: nib.Nifti1Image, masker: VoxelMasker, method: str, hrf_model: str, noise_model: str
) -> None:
    """LSA: one model; LSS: one model per trial, with the others as one condition."""
    confounds = np.random.default_rng(1).normal(size=(N_VOLUMES, 3))
    kept = np.setdiff1d(np.arange(N_VOLUMES), [0, 40, 41])
    events = make_events()
    design = build_design(events, TIMES, confounds, kept, hrf_model)
    series = masker.transform(img)
    betas = estimate_betas(series, design, method, noise_model)  # type: ignore[arg-type]
    is_trial = events["nuisance"].isna().to_numpy()
    trials = np.flatnonzero(is_trial)
    for trial in [0, 5]:
        others = [f"t{i}" if method == "lsa" else "others" for i in range(len(events))]
        names = [others[i] if is_trial[i] else "button" for i in range(len(events))]
        names[trials[trial]] = "this"
        options = {"hrf_model": hrf_model, "noise_model": noise_model}
        model = nilearn_maps(img, names, confounds, kept, **options)
        expected = masker.transform(model.compute_contrast("this", output_type="effect_size"))
        # nilearn makes the derivative of all others orthogonal to their sum, here each is
        tolerance = 2e-3 if method == "lss" and "derivative" in hrf_model else 1e-4
        np.testing.assert_allclose(betas[trial], expected[0], rtol=1e-3, atol=tolerance)


def test_smoothing_is_that_of_nilearn(
    tmp_path, img: nib.Nifti1Image, masker: VoxelMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nilearn.image import smooth_img

    img.to_filename(tmp_path / "bold.nii.gz")
    monkeypatch.setattr("mindllm.fmri.single_trial.CHUNK_BYTES", 4 * 24 * 7)  # seven volumes
    smooth = masker.transform(smooth_img(img, 5.0))
    series = read_time_series(masker, tmp_path / "bold.nii.gz", 5.0)
    np.testing.assert_allclose(series, smooth, rtol=1e-5)
    plain = read_time_series(masker, tmp_path / "bold.nii.gz")
    np.testing.assert_array_equal(plain, masker.transform(img))
    assert series.std() < plain.std()


def test_a_design_is_described() -> None:
    events = make_events()
    design = build_design(events, TIMES, np.zeros((N_VOLUMES, 0)), np.arange(N_VOLUMES))
    quality = describe_design(design, compute_weights(design, "lsa"))
    _, matrix = next(design.matrices("lsa"))
    variance = np.diag(np.linalg.inv(matrix.T @ matrix))[:8]
    np.testing.assert_allclose(quality.efficiency, 1 / variance)
    others = np.delete(matrix, 3, axis=1)
    residual = matrix[:, 3] - others @ np.linalg.lstsq(others, matrix[:, 3])[0]
    spread = ((matrix[:, 3] - matrix[:, 3].mean()) ** 2).sum()
    assert quality.variance_inflation[3] == pytest.approx(spread / (residual**2).sum())
    correlations = np.corrcoef(design.responses[0].T) - np.eye(8)
    assert quality.max_correlation == pytest.approx(np.abs(correlations).max())
    copy = design.responses[0][:, [2]] + 0.01 * np.random.default_rng(0).normal(size=(90, 1))
    confounded = build_design(events, TIMES, copy, np.arange(N_VOLUMES))
    worse = describe_design(confounded, compute_weights(confounded, "lsa"))
    assert worse.max_nuisance_r2 > 0.9 > quality.max_nuisance_r2
    assert worse.variance_inflation.argmax() == 2


def test_a_response_that_the_volumes_hardly_show_is_measured() -> None:
    events = pd.DataFrame({"onset": [10.0, 60.0, 175.0], "duration": 1.0, "nuisance": None})
    kept = np.setdiff1d(np.arange(N_VOLUMES), np.arange(30, 38))
    sampled = build_design(events, TIMES, np.zeros((N_VOLUMES, 0)), kept).sampled_fraction
    assert sampled[0] > 0.99
    assert sampled[1] < 0.2, "scrubbed"
    assert sampled[2] < 0.5, "the run ends"


def test_events_that_cannot_be_told_apart_are_refused() -> None:
    same = pd.DataFrame({"onset": [10.0, 10.0, 60.0], "duration": 2.0, "nuisance": None})
    none, volumes = np.zeros((N_VOLUMES, 0)), np.arange(N_VOLUMES)
    with pytest.raises(InputError, match="trial 1 and 1 more cannot be told apart"):
        compute_weights(build_design(same, TIMES, none, volumes), "lsa")
    many = np.random.default_rng(0).normal(size=(N_VOLUMES, 89))
    with pytest.raises(InputError, match="90 volumes are kept and the LSS design has"):
        compute_weights(build_design(make_events(), TIMES, many, volumes), "lss")


@pytest.mark.parametrize("hrf_model", HRF_MODELS)
def test_every_hrf_model_gives_one_beta_per_trial(hrf_model: str) -> None:
    none, volumes = np.zeros((N_VOLUMES, 0)), np.arange(N_VOLUMES)
    design = build_design(make_events(), TIMES, none, volumes, hrf_model, high_pass_hz=0.0)
    series = 100 + design.responses[0] @ np.arange(1.0, 9.0)[:, None]
    percent = estimate_betas(series, design, "lsa")[:, 0] * series.mean() / 100
    np.testing.assert_allclose(percent, np.arange(1, 9), rtol=1e-3)


def test_voxels_without_a_signal() -> None:
    series = np.array([[0, 1, -3, 5], [0, 1, -4, 6]], np.float32)
    assert find_constant_voxels(series).tolist() == [True, True, True, False]
