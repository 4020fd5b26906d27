"""TextDecoder behaves as a scikit-learn estimator, learns, and refuses what does not fit."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

from mindllm import InputError, TextDecoder, VoxelMasker
from mindllm.estimator import text_decoder
from mindllm.estimator.images import collect_runs, fit_masker
from mindllm.fmri.scaling import fit_mean_std

TEXTS = ["a dog runs", "a cat sleeps", "a man cooks rice", "two women sing"]
QUICK = {
    "encoder": {
        "num_queries": 16, "key_dim": 24, "num_frequencies": 3, "hidden_size": 32,
        "num_fmri_tokens": 3, "token_dim": 8, "embedding_dim": 16, "dropout": 0.0,
    },
    "dtype": "float32",
    "voxel_dropout": [0, 0.3], "query_noise_sd": 0.1, "embedding_noise_scale": 0.5,
    "alignment": {"max_steps": 100, "batch_size": 32, "learning_rate": 5e-3},
    "instruction_tuning": {"max_steps": 80, "batch_size": 8, "learning_rate": 5e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def scans() -> tuple[list[nib.Nifti1Image], list[list[str]], nib.Nifti1Image]:
    """Two subjects: each caption has a pattern of its own, plus noise; one voxel never varies."""
    rng = np.random.default_rng(0)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -20
    patterns = rng.normal(size=(len(TEXTS), 5, 5, 5))
    imgs, captions = [], []
    for _ in range(2):
        order = rng.permutation(np.repeat(np.arange(len(TEXTS)), 5))
        data = patterns[order] + 0.3 * rng.normal(size=(len(order), 5, 5, 5))
        data[:, 0, 0, 0] = 1.0
        imgs.append(nib.Nifti1Image(np.moveaxis(data, 0, -1).astype(np.float32), affine))
        captions.append([TEXTS[i] for i in order])
    mask = np.ones((5, 5, 5), np.uint8)
    mask[0] = 0
    return imgs, captions, nib.Nifti1Image(mask, affine)


@pytest.fixture(scope="module")
def fitted(scans: Any, tiny_llm_folder: Path) -> TextDecoder:
    imgs, captions, mask = scans
    decoder = TextDecoder(mask, language_model=str(tiny_llm_folder), training_options=QUICK)
    return decoder.fit(imgs[:1], captions[:1], subjects=["sub-01"])


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
    ],
    ids=lambda check: check.__name__,
)
def test_the_checks_of_scikit_learn_that_apply(check: Any) -> None:
    check("TextDecoder", TextDecoder())


def test_a_clone_has_the_parameters_and_not_the_model(fitted: TextDecoder) -> None:
    again = clone(fitted)
    assert again.get_params()["training_options"] == QUICK
    assert not hasattr(again, "model_")
    with pytest.raises(NotFittedError):
        again.predict([])


def test_captions_of_the_fitted_images_are_identified(fitted: TextDecoder, scans: Any) -> None:
    imgs, captions, _ = scans
    identified = fitted.identify(imgs[:1], captions[:1], ["sub-01"])
    assert identified.top1 >= 2 * identified.shuffled_top1 > 0
    assert identified.chance_level == 0.25
    assert (identified.n_trials, identified.n_captions) == (20, 4)
    assert fitted.score(imgs[:1], captions[:1], ["sub-01"]) == identified.top1
    assert (fitted.n_trials_, fitted.captions_) == (20, sorted(TEXTS))


def test_one_text_per_volume_also_of_new_subjects(fitted: TextDecoder, scans: Any) -> None:
    imgs, _, _ = scans
    texts = fitted.predict(imgs, ["sub-01", "sub-07"])
    assert len(texts) == 40
    assert all(isinstance(text, str) for text in texts)
    assert fitted.predict(imgs[0], ["sub-01"]) == texts[:20]


def test_fitting_reads_every_image_once(scans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    imgs, captions, mask = scans
    spy = Mock(side_effect=VoxelMasker.iter_transform)
    monkeypatch.setattr(VoxelMasker, "iter_transform", lambda *args, **kwargs: spy(*args, **kwargs))
    monkeypatch.setattr(text_decoder, "train", Mock())
    decoder = TextDecoder(mask).fit(imgs, captions, ["sub-01", "sub-01"])
    assert spy.call_count == len(imgs)
    betas = np.concatenate([decoder.maskers_["sub-01"].transform(img) for img in imgs])
    np.testing.assert_array_equal(decoder._mean_std["sub-01"], fit_mean_std([betas])[1:])


def test_a_short_image_is_standardized_as_its_subject_was(fitted: TextDecoder, scans: Any) -> None:
    imgs, _, _ = scans
    short = imgs[0].slicer[..., :3]
    assert len(fitted.predict(short, ["sub-01"])) == 3
    with pytest.raises(InputError, match="too few"):
        fitted.predict(short, ["sub-09"])


def test_without_a_mask_the_voxels_that_vary_are_read(scans: Any) -> None:
    imgs, _, mask = scans
    masker = fit_masker("sub-01", imgs, None, {})
    assert len(masker) == 124
    assert len(fit_masker("sub-01", imgs, mask, {})) == 100
    flat = nib.Nifti1Image(np.ones((2, 2, 2, 9), np.float32), np.eye(4))
    with pytest.raises(InputError, match="no voxel is finite and varies"):
        fit_masker("sub-01", [flat], None, {})
    other = nib.Nifti1Image(np.ones((2, 2, 2, 9), np.float32), np.eye(4))
    with pytest.raises(InputError, match="grid"):
        fit_masker("sub-01", [imgs[0], other], None, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c, s: ([], c, s), "no image was given"),
        (lambda i, c, s: (i, c[:1], s), "2 images, but 1 captions"),
        (lambda i, c, s: (i, c, ["sub-01"]), "2 images, but 1 subjects"),
        (lambda i, c, s: (i, [c[0][:-1], c[1]], s), "has 20 volumes, but 19 captions"),
        (lambda i, c, s: (i, ["a dog runs", c[1]], s), "is one text; expected one per volume"),
        (lambda i, c, s: (i, [["", *c[0][1:]], c[1]], s), "volume 0: the caption is"),
    ],
)
def test_what_does_not_fit_is_told(scans: Any, change: Any, message: str) -> None:
    imgs, captions, subjects = change(scans[0], scans[1], ["sub-01", "sub-02"])
    with pytest.raises(InputError, match=message):
        collect_runs(imgs, subjects, captions)


def test_options_are_checked_before_an_image_is_read(scans: Any) -> None:
    with pytest.raises(InputError, match="training_options holds seed"):
        TextDecoder(training_options={"seed": 3}).fit(scans[0], scans[1])
    with pytest.raises(InputError, match="steps: Extra inputs"):
        TextDecoder(training_options={"steps": 3}).fit(scans[0], scans[1])
    with pytest.raises(InputError, match="mask has no entry for sub-02; it has sub-01"):
        TextDecoder({"sub-01": scans[2]}).fit(scans[0], scans[1])
