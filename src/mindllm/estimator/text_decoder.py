"""TextDecoder: fit, predict and score on NIfTI images, in scikit-learn's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.estimator.images import Captions, ImageRun, Images, collect_runs, fit_masker
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.fmri.scaling import MIN_TRIALS, apply_mean_std, fit_mean_std, iter_chunks
from mindllm.metrics.identification import top_k_scores
from mindllm.training.configuration import TrainConfig, read_config
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.progress import make_progress


@dataclass(frozen=True, slots=True)
class IdentificationScore:
    """How often the target caption is the likeliest of all captions, beside its controls.

    Parameters
    ----------
    top1 : float
        Fraction of trials, in [0, 1].
    shuffled_top1 : float
        The same with every trial's log-likelihoods exchanged for those of the other trials of the
        same call: what the captions' own likelihood earns.
    chance_level : float
        1 / number of distinct captions.
    n_trials, n_captions : int
        Number of trials and of distinct captions.
    """

    top1: float
    shuffled_top1: float
    chance_level: float
    n_trials: int
    n_captions: int


class TextDecoder(BaseEstimator):
    """Decode text from single-trial fMRI images.

    Wraps the whole pipeline (mask, standardize, align to text, tune through a frozen language
    model) in an estimator that can be cloned and searched. For claims about decoding, evaluate a
    model on a store instead: `mindllm.evaluate` reports all controls with intervals.

    Parameters
    ----------
    mask : image or mapping from subject to image, optional
        Mask of the voxels to read, on the grid of the images. By default each subject's voxels
        are those that are finite and vary in all of the subject's images.
    atlases : mapping from str to image, optional
        Atlas name to label image on the same grid, with its lookup table beside it.
    language_model : str, optional
        Hub id, folder or GGUF file of a causal language model; by default SmolLM2-135M-Instruct.
    training_options : mapping, optional
        Options of `TrainConfig`, such as ``{"alignment": {"max_steps": 50, "batch_size": 480}}``.
    max_new_tokens : int
        Length limit of a predicted text, in tokens.
    batch_size : int
        Trials that the language model reads at once in `predict` and `score`.
    random_state : int
        Seed of the training.
    verbose : int
        0: silent; 1: progress bars on the error stream.

    Attributes
    ----------
    model_ : MindLLM
        The fitted model; `model_.save_pretrained(folder)` keeps it.
    maskers_ : dict of str to VoxelMasker
        Voxels of each training subject.
    captions_ : list of str
        Distinct captions seen in training.
    n_trials_ : int
        Number of trials seen in training.

    References
    ----------
    Qiu et al., MindLLM: A Subject-Agnostic and Versatile Model for fMRI-to-Text Decoding,
    ICML 2025, arXiv 2502.15786.

    Examples
    --------
    >>> from mindllm import TextDecoder
    >>> decoder = TextDecoder(mask="mask.nii.gz", random_state=1)
    >>> decoder.get_params()["max_new_tokens"]
    48
    >>> decoder.fit(["sub-01_betas.nii.gz"], [captions], subjects=["sub-01"])  # doctest: +SKIP
    >>> decoder.predict(["sub-02_betas.nii.gz"])  # doctest: +SKIP
    """

    def __init__(
        self,
        mask: Image | Mapping[str, Image] | None = None,
        atlases: Mapping[str, Image] | None = None,
        language_model: str | None = None,
        *,
        training_options: Mapping[str, Any] | None = None,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        random_state: int = 0,
        verbose: int = 0,
    ) -> None:
        self.mask = mask
        self.atlases = atlases
        self.language_model = language_model
        self.training_options = training_options
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, imgs: Images, captions: Captions, subjects: Sequence[str] | None = None) -> Self:
        """Train on images with a caption (or several) per volume.

        Parameters
        ----------
        imgs : image or sequence of images
            4-D images of single-trial betas, one volume per trial: one image per subject or run.
        captions : sequence of sequences
            For each image one text per volume, or a list of texts that describe the same stimulus.
        subjects : sequence of str, optional
            Subject label of each image; images of one subject are its sessions. By default every
            image is a subject of its own.

        Returns
        -------
        self : TextDecoder

        Raises
        ------
        InputError
            If images, captions and subjects differ in number, a mask does not fit, or fewer
            than 8 volumes of a subject are there to standardize with.
        """
        config = self._train_config()
        runs = collect_runs(imgs, subjects, captions)
        maskers = {
            subject: self._fit_masker(subject, [run for run in runs if run.subject == subject])
            for subject in dict.fromkeys(run.subject for run in runs)
        }
        with TemporaryDirectory(prefix="mindllm-") as folder, self._progress() as progress:
            store = write_runs(Path(folder) / "store", runs, maskers)
            self.model_ = train(store, Path(folder) / "model", config, progress=progress)
            self._mean_std = {subject: fit_subject(store, subject) for subject in maskers}
        self.maskers_ = maskers
        self.captions_ = sorted({texts[0] for run in runs for texts in run.captions})
        self.n_trials_ = sum(len(run.captions) for run in runs)
        return self

    def predict(self, imgs: Images, subjects: Sequence[str] | None = None) -> list[str]:
        """Text for every volume of every image, in their order.

        Parameters
        ----------
        imgs : image or sequence of images
            3-D or 4-D images of single-trial betas. An image of at least 8 volumes is standardized
            with its own volumes; a shorter one with those that its subject was fitted with.
        subjects : sequence of str, optional
            Subject label of each image, where it was seen in `fit` or has a mask of its own.

        Returns
        -------
        list of str
            One text per volume.
        """
        check_is_fitted(self)
        texts: list[str] = []
        for masker, betas in self._standardized(imgs, subjects):
            texts += self.model_.decode(
                betas, masker, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens
            )
        return texts

    def score(
        self, imgs: Images, captions: Captions, subjects: Sequence[str] | None = None
    ) -> float:
        """Top-1 identification of each volume's caption among all captions given, in [0, 1].

        Parameters
        ----------
        imgs, captions, subjects
            As for `fit`.

        Returns
        -------
        float
            Fraction of volumes whose own caption is the likeliest; `identify` gives the same
            number beside its controls.
        """
        return self.identify(imgs, captions, subjects).top1

    def identify(
        self, imgs: Images, captions: Captions, subjects: Sequence[str] | None = None
    ) -> IdentificationScore:
        """Top-1 identification beside chance and shuffled trials.

        Parameters
        ----------
        imgs, captions, subjects
            As for `fit`; the candidates are the distinct captions.

        Returns
        -------
        IdentificationScore
        """
        check_is_fitted(self)
        runs = collect_runs(imgs, subjects, captions)
        targets = [texts[0] for run in runs for texts in run.captions]
        candidates = sorted(set(targets))
        log_likelihoods = np.concatenate(
            [
                self.model_.log_likelihood(
                    betas, masker, candidates, batch_size=self.batch_size
                ).numpy()
                for masker, betas in self._standardized(imgs, subjects)
            ]
        )
        columns = np.searchsorted(candidates, targets)
        scores = top_k_scores(log_likelihoods, 1)
        return IdentificationScore(
            top1=float(scores[np.arange(len(scores)), columns].mean()),
            shuffled_top1=float(scores.mean(0)[columns].mean()),
            chance_level=1 / len(candidates),
            n_trials=len(targets),
            n_captions=len(candidates),
        )

    def _train_config(self) -> TrainConfig:
        """The training's options, checked before any image is read."""
        options = dict(self.training_options or {})
        overlap = sorted({"language_model", "seed"} & set(options))
        if overlap:
            raise InputError(
                f"training_options holds {', '.join(overlap)}; "
                "give them as language_model and random_state of TextDecoder instead."
            )
        options |= {"language_model": self.language_model, "seed": self.random_state}
        return read_config(None, options)

    def _fit_masker(self, subject: str, runs: Sequence[ImageRun]) -> VoxelMasker:
        """The subject's voxels: those of the mask, else those that vary in all of its images."""
        mask = self.mask.get(subject) if isinstance(self.mask, Mapping) else self.mask
        if mask is None and isinstance(self.mask, Mapping):
            raise InputError(
                f"mask has no entry for {subject}; it has {', '.join(sorted(self.mask))}. "
                "Give one mask per subject, or a single one for all."
            )
        return fit_masker(subject, [run.img for run in runs], mask, self.atlases or {})

    def _standardized(
        self, imgs: Images, subjects: Sequence[str] | None
    ) -> Iterator[tuple[VoxelMasker, np.ndarray]]:
        """Yield each image's masker and standardized betas (n_volumes, n_voxels)."""
        for run in collect_runs(imgs, subjects):
            masker = self.maskers_.get(run.subject) or self._fit_masker(run.subject, [run])
            betas = masker.transform(run.img)
            known = self._mean_std.get(run.subject)
            if len(betas) >= MIN_TRIALS or known is None:
                _, mean, std = fit_mean_std([betas])
            else:
                mean, std = known
            yield masker, apply_mean_std(betas, mean, std)

    @contextmanager
    def _progress(self) -> Iterator[Progress | None]:
        """Progress bars, if asked for."""
        bars = make_progress(Console(stderr=True)) if self.verbose else nullcontext(None)
        with bars as progress:
            yield progress


def fit_subject(store: Store, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n_voxels,) over all volumes of a subject, from all runs."""
    betas = store.betas(subject)
    _, mean, std = fit_mean_std(iter_chunks(betas, np.arange(len(betas))))
    return mean, std


def write_runs(path: Path, runs: Sequence[ImageRun], maskers: Mapping[str, VoxelMasker]) -> Store:
    """A store of the images: stimuli are numbered by caption, every image is a session."""
    stimuli: dict[str, str] = {}
    table = []
    parts = []
    for subject, masker in maskers.items():
        trials, betas = [], []
        for session, run in enumerate((r for r in runs if r.subject == subject), 1):
            for texts in run.captions:
                stimulus = stimuli.setdefault(texts[0], f"stimulus-{len(stimuli) + 1:05d}")
                table += [{"stimulus": stimulus, "caption": text} for text in texts]
                trials.append({"stimulus": stimulus, "session": str(session)})
            betas.append(masker.transform(run.img))
        parts.append((masker, np.concatenate(betas), pd.DataFrame(trials)))
    conversations = conversations_from_captions(pd.DataFrame(table))
    return write_store(path, parts, conversations, name="images")
