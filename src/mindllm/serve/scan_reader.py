"""Reads an uploaded scan in a process of its own, whose time and memory are limited.

    python -m mindllm.serve.scan_reader FOLDER

FOLDER holds the files as they were sent and limits.json; betas.npy, voxels.npz and scan.json are
written there. What cannot be read ends in refused.json: a sentence that names no path.
"""

import contextlib
import gzip
import json
import logging
import math
import re
import resource
import shutil
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np

from mindllm.fmri.masker import VoxelMasker, count_volumes
from mindllm.fmri.nifti import load_img
from mindllm.fmri.scaling import MIN_TRIALS, apply_mean_std, fit_mean_std
from mindllm.utils.errors import InputError, describe_error
from mindllm.utils.files import write_json

GZIP_MAGIC = b"\x1f\x8b"
NIFTI_SIZES = (348, 540)  # of the header of NIfTI-1 and NIfTI-2
STEP = 2**20  # bytes that are decompressed at once
PLAIN = "plain"  # folder of decompressed files


@dataclass(frozen=True)
class ScanLimits:
    """What an uploaded scan may be, and how it is read.

    Parameters
    ----------
    image_bytes : int
        Of a file once it is decompressed.
    grid_length, volumes, voxels : int
        Voxels along a dimension, volumes, voxels inside the mask.
    memory_bytes : int
        Of the process that reads.
    seconds : float
        Of processor time.
    standardized : bool
        Whether the betas came standardized.
    parcel_names : mapping from str to list of str
        Parcels that the model knows by number alone; an atlas of them needs no lookup table.
    """

    image_bytes: int
    grid_length: int
    volumes: int
    voxels: int
    memory_bytes: int
    seconds: float
    standardized: bool
    parcel_names: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        write_json(path, asdict(self))


def main() -> None:
    """Read the scan of a folder, with bounded memory and time."""
    logging.disable()
    folder = Path(sys.argv[1])
    limits = ScanLimits.read(folder / "limits.json")
    limit_process(limits)
    read_or_refuse(folder, limits)


def read_or_refuse(folder: Path, limits: ScanLimits) -> None:
    """Read the scan of a folder, or write why it cannot be read."""
    try:
        read_scan(folder, limits)
    except InputError as error:
        refuse(folder, str(error))
    except MemoryError:
        refuse(folder, "the scan needs more memory than a scan may.")


def refuse(folder: Path, message: str) -> None:
    """Say why the scan was not read, without the names of folders."""
    shown = re.sub(r"\S*/", "", message.replace(f"{folder}/", ""))
    write_json(folder / "refused.json", {"message": shown})


def limit_process(limits: ScanLimits) -> None:
    """Bound memory and processor time of this process, where the system can do so."""
    seconds = math.ceil(limits.seconds)
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def read_scan(folder: Path, limits: ScanLimits) -> None:
    """Write standardized betas and voxels of the scan of a folder.

    Parameters
    ----------
    folder : Path
        With the files `volume`, `mask` or voxels.npz of a known subject, and `atlases/*`.
    limits : ScanLimits

    Raises
    ------
    InputError
        If a file is damaged, too large, or the files do not fit together.
    """
    volume = open_upload(folder / "volume", limits)
    n_volumes = count_volumes(volume)
    if n_volumes > limits.volumes:
        raise InputError(f"volume has {n_volumes} volumes; expected at most {limits.volumes}.")
    masker = make_masker(folder, limits)
    if len(masker) > limits.voxels:
        raise InputError(f"mask has {len(masker)} voxels inside; expected at most {limits.voxels}.")
    betas = read_standardized(masker, volume, limits)
    np.save(folder / "betas.npy", betas)
    save_voxels(folder / "voxels.npz", masker)


def make_masker(folder: Path, limits: ScanLimits) -> VoxelMasker:
    """The voxels of the scan: of the mask that was sent."""
    mask = open_upload(folder / "mask", limits, dimensions=3)
    atlases, names = {}, {}
    for path in sorted((folder / "atlases").glob("*.tsv")):
        shutil.copy(path, folder / PLAIN)
    for path in sorted((folder / "atlases").glob("*.nii")):
        atlas = path.name.removeprefix("atlas-").removesuffix("_dseg.nii")
        open_upload(path, limits, dimensions=3)
        atlases[atlas] = folder / PLAIN / path.name  # its lookup table is beside it
        if numbered := limits.parcel_names.get(atlas):
            names[atlas] = {int(number): name for number, name in numbered.items()}
    return VoxelMasker.from_mask_img(mask, atlases, parcel_names=names)


def read_standardized(
    masker: VoxelMasker, volume: nib.spatialimages.SpatialImage, limits: ScanLimits
) -> np.ndarray:
    """Standardized betas (n_volumes, n_voxels) of a scan."""
    betas = masker.transform(volume)
    if limits.standardized:
        return betas
    if len(betas) < MIN_TRIALS:
        raise InputError(
            f"the scan has {len(betas)} volumes; expected {MIN_TRIALS} or more to standardize "
            "the betas with. Send more volumes of the same person, or betas that are standardized "
            "(standardized=true)."
        )
    _, mean, std = fit_mean_std([betas])
    return apply_mean_std(betas, mean, std)


def open_upload(
    path: Path, limits: ScanLimits, dimensions: int | None = None
) -> nib.spatialimages.SpatialImage:
    """Open an uploaded image; a compressed one is decompressed first, up to a size.

    Parameters
    ----------
    path : Path
        The file as it was sent.
    limits : ScanLimits
    dimensions : int, optional
        That the image must have.

    Returns
    -------
    nibabel image

    Raises
    ------
    InputError
        If it is no NIfTI image, damaged, or larger than the limits.
    """
    what = path.name.partition(".")[0]
    plain = plain_path(path)
    decompress_bounded(path, plain, limits.image_bytes, what)
    check_header(plain, limits, what)
    return load_img(plain, what, dimensions)


def plain_path(path: Path) -> Path:
    """Where an uploaded file is decompressed to."""
    folder = path.parent.parent if path.parent.name == "atlases" else path.parent
    (folder / PLAIN).mkdir(exist_ok=True)
    return folder / PLAIN / f"{path.name.partition('.')[0]}.nii"


def decompress_bounded(path: Path, plain: Path, limit: int, what: str) -> None:
    """Write the content of a file that may be compressed with gzip, step by step, up to a size."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == GZIP_MAGIC
    size = 0
    try:
        with (
            gzip.open(path) if is_compressed else path.open("rb") as source,
            plain.open("wb") as target,
        ):
            while chunk := source.read(STEP):
                size += len(chunk)
                if size > limit:
                    raise InputError(f"{what} holds more than {limit:,} bytes, which is too large.")
                target.write(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{what} is damaged or truncated ({describe_error(error)}). Make the file again."
        ) from error


def check_header(plain: Path, limits: ScanLimits, what: str) -> None:
    """Check the size that a NIfTI header announces, before a library makes room for it."""
    with plain.open("rb") as file:
        start = file.read(NIFTI_SIZES[-1])
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    magics = (start[344:347], start[4:7])
    if not sizes & set(NIFTI_SIZES) or not {b"n+1", b"n+2"} & set(magics):
        raise InputError(f"{what} is no NIfTI image in a single file (.nii or .nii.gz).")
    shape = load_img(plain, what).shape
    if max(shape[:3]) > limits.grid_length:
        raise InputError(
            f"{what} has shape {shape}; expected at most {limits.grid_length} voxels along each "
            "dimension."
        )


def save_voxels(path: Path, masker: VoxelMasker) -> None:
    """Write a masker as arrays of numbers and text."""
    atlases = sorted(masker.parcel_labels)
    parcels = [
        (atlas, str(number), name)
        for atlas in atlases
        for number, name in sorted(masker.parcel_names[atlas].items())
    ]
    np.savez(
        path,
        shape=np.array(masker.shape),
        affine=masker.affine,
        voxel_indices=masker.voxel_indices,
        coords_mm=masker.coords_mm,
        atlases=np.array(atlases, dtype="U64"),
        labels=np.array([masker.parcel_labels[atlas] for atlas in atlases], np.int64).reshape(
            len(atlases), len(masker)
        ),
        parcels=np.array(parcels, dtype=np.str_).reshape(len(parcels), 3),
    )


def load_voxels(path: Path) -> VoxelMasker:
    """Read a masker that `save_voxels` wrote."""
    from mindllm.utils.arrays import load_arrays

    arrays = load_arrays(path)
    atlases = arrays["atlases"].tolist()
    names: dict[str, dict[int, str]] = {atlas: {} for atlas in atlases}
    for atlas, number, name in arrays["parcels"].tolist():
        names[atlas][int(number)] = name
    labels = dict(zip(atlases, arrays["labels"], strict=True))
    i, j, k = arrays["shape"].tolist()
    return VoxelMasker(
        subject="scan",
        shape=(i, j, k),
        affine=arrays["affine"],
        voxel_indices=arrays["voxel_indices"],
        coords_mm=arrays["coords_mm"],
        parcel_labels=labels,
        parcel_names=names,
    )


if __name__ == "__main__":
    main()
