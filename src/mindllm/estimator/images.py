"""What an estimator is given: images, their subjects and captions, checked and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image, check_same_grid, img_filename, load_img
from mindllm.utils.errors import InputError

Images = Image | Sequence[Image]  # one image, or one per subject or run
Captions = Sequence[Sequence[str | Sequence[str]]]  # of each image, of each volume: texts


@dataclass(frozen=True, slots=True)
class ImageRun:
    """One image of one subject, with the captions of its volumes (empty where none were given)."""

    subject: str
    img: nib.Nifti1Image
    captions: tuple[tuple[str, ...], ...] = ()


def collect_runs(
    imgs: Images, subjects: Sequence[str] | None = None, captions: Captions | None = None
) -> list[ImageRun]:
    """Pair images with subjects and captions.

    Parameters
    ----------
    imgs : image or sequence of images
        3-D or 4-D images; files are opened, not read.
    subjects : sequence of str, optional
        Label per image; by default sub-01, sub-02, ...
    captions : sequence of sequences, optional
        Per image one text, or several, per volume.

    Returns
    -------
    list of ImageRun

    Raises
    ------
    InputError
        If numbers differ, a text is empty, or an image cannot be opened.
    """
    images = [imgs] if isinstance(imgs, str | Path | nib.spatialimages.SpatialImage) else list(imgs)
    if not images:
        raise InputError("no image was given; expected at least one NIfTI image of betas.")
    labels = list(subjects) if subjects else [f"sub-{n:02d}" for n in range(1, len(images) + 1)]
    for name, values in (("subjects", labels), ("captions", captions)):
        if values is not None and len(values) != len(images):
            raise InputError(
                f"{len(images)} images, but {len(values)} {name}; expected one entry per image."
            )
    runs = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        opened = load_img(image, f"image {number + 1}")
        texts = check_captions(captions[number], opened) if captions is not None else ()
        runs.append(ImageRun(str(label), opened, texts))
    return runs


def check_captions(
    captions: Sequence[str | Sequence[str]], img: nib.Nifti1Image
) -> tuple[tuple[str, ...], ...]:
    """The texts of each volume of an image, as tuples."""
    if isinstance(captions, str):
        raise InputError(f"captions of {img_filename(img)} is one text; expected one per volume.")
    volumes = img.shape[3] if img.ndim == 4 else 1
    if len(captions) != volumes:
        raise InputError(
            f"{img_filename(img)} has {volumes} volumes, but {len(captions)} captions; "
            "expected one caption, or list of captions, per volume."
        )
    texts = tuple((text,) if isinstance(text, str) else tuple(text) for text in captions)
    for volume, alternatives in enumerate(texts):
        if not alternatives or not all(isinstance(t, str) and t.strip() for t in alternatives):
            raise InputError(
                f"{img_filename(img)}, volume {volume}: the caption is {alternatives!r}; "
                "expected a text that is not empty."
            )
    return texts


def fit_masker(
    subject: str,
    images: Sequence[nib.Nifti1Image],
    mask: Image | None,
    atlases: Mapping[str, Image],
) -> VoxelMasker:
    """The voxels of a subject.

    Parameters
    ----------
    subject : str
        Label of the subject.
    images : sequence of images
        The subject's images, on one grid.
    mask : image, optional
        By default the voxels that are finite in every volume and vary over volumes.
    atlases : mapping from str to image
        Atlas name to label image on the same grid.

    Returns
    -------
    VoxelMasker

    Raises
    ------
    InputError
        If images lie on different grids, or no voxel varies.
    """
    if mask is not None:
        return VoxelMasker.from_mask_img(mask, atlases, subject=subject)
    first = images[0]
    varies = np.ones(first.shape[:3], bool)
    for image in images:
        check_same_grid(
            image, first.shape[:3], first.affine, img_filename(image), "the first image"
        )
        data = np.asarray(image.dataobj, np.float32).reshape((*first.shape[:3], -1))
        varies &= np.isfinite(data).all(-1) & (np.ptp(data, axis=-1) > 0)
    if not varies.any():
        raise InputError(
            f"{subject}: no voxel is finite and varies over volumes in all {len(images)} images. "
            "Give a mask, and images of several volumes."
        )
    mask_img = nib.Nifti1Image(varies.astype(np.uint8), first.affine)
    return VoxelMasker.from_mask_img(mask_img, atlases, subject=subject)
