"""Standardization: voxels that never vary, chunks, and sessions with few training trials."""

import numpy as np
import pandas as pd
import pytest

from mindllm.fmri import scaling
from mindllm.fmri.scaling import SessionScaler, apply_mean_std, fit_mean_std, standardize_betas
from mindllm.utils.errors import InputError


def test_standardize_is_safe_for_voxels_that_never_vary() -> None:
    betas = np.random.default_rng(0).normal(50, 3, (40, 6)).astype(np.float32)
    betas[:, 2], betas[:, 4] = 0.0, 1e4
    n_trials, mean, std = fit_mean_std([betas[:15], betas[15:]])
    standardized = apply_mean_std(betas, mean, std)
    assert n_trials == 40
    assert np.isfinite(standardized).all()
    assert (standardized[:, [2, 4]] == 0).all()
    np.testing.assert_allclose(standardized[:, [0, 1, 3, 5]].std(0), 1, rtol=1e-4)


def test_sessions_have_their_own_mean_and_short_ones_that_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "CHUNK_SIZE", 20)  # four trials at a time
    rng = np.random.default_rng(0)
    betas = rng.normal(size=(30, 5))
    sessions = ["1"] * 12 + ["2"] * 12 + ["3"] * 6
    trials = pd.DataFrame(
        {"session": sessions, "split": ["train"] * 10 + ["test"] * 2 + ["train"] * 18}
    )
    scaler = SessionScaler.fit(betas, trials)
    is_train = (trials["split"] == "train").to_numpy()
    for number, rows in enumerate((slice(0, 10), slice(12, 24), is_train)):
        _, mean, std = fit_mean_std([betas[rows]])
        np.testing.assert_allclose(scaler.mean[number], mean, rtol=1e-5)
        np.testing.assert_allclose(scaler.std[number], std, rtol=1e-5)
    np.testing.assert_allclose(
        scaler.transform(betas[12:24], sessions[12:24]), standardize_betas(betas[12:24]), atol=1e-5
    )
    assert scaler.fitted_on == "training trials"


def test_a_subject_without_training_trials_is_standardized_with_all() -> None:
    betas = np.random.default_rng(0).normal(size=(10, 5))
    trials = pd.DataFrame({"session": "1", "split": ["test"] * 10})
    scaler = SessionScaler.fit(betas, trials)
    assert scaler.fitted_on.startswith("all own trials")
    np.testing.assert_allclose(
        scaler.transform(betas, trials["session"]), standardize_betas(betas), atol=1e-5
    )


def test_few_trials_are_refused() -> None:
    with pytest.raises(InputError, match="7 trials are too few to standardize voxels with"):
        standardize_betas(np.ones((7, 3)))
