"""The two layouts of the authors' prepared NSD: nsd0/subject_1.h5, and webdataset_avg_split."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pandas as pd

from mindllm.utils.arrays import load_array
from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import (
    get_dataset,
    list_names,
    open_hdf5,
    read_values,
    read_whole_number,
)
from mindllm.utils.sorting import natural_key


class ReleaseLayout(ABC):
    """One layout of the authors' prepared NSD.

    Attributes
    ----------
    has_val_split : bool
        Whether the data have validation trials of their own.
    subjects : dict of str to Path
        Label of each subject, such as subj01, and where the subject's trials are.
    """

    has_val_split: ClassVar[bool]
    subjects: dict[str, Path]

    @abstractmethod
    def read_trials(self, subject: str) -> pd.DataFrame:
        """Read a subject's trials, one row each, with `key` and `split`."""

    @abstractmethod
    def read_betas(
        self, subject: str, trials: pd.DataFrame, voxel_indices: np.ndarray
    ) -> np.ndarray:
        """Read the betas (n_trials, n_voxels), float32, of all trials of some keys."""

    @abstractmethod
    def beta_files(self, subject: str, trials: pd.DataFrame) -> tuple[Path, ...]:
        """List the files that `read_betas` reads for these trials."""


class HDF5Layout(ReleaseLayout):
    """Layout nsd0: a file per subject, with the groups train and test, with a group per trial.

    A trial has visual_voxels, coco_id and prev_coco_id.

    Parameters
    ----------
    root : Path
        Folder that holds nsd0.
    """

    has_val_split = False

    def __init__(self, root: Path) -> None:
        matches = {
            file: re.fullmatch(r"subject_(\d+)\.h5", file.name)
            for file in (root / "nsd0").glob("subject_*.h5")
        }
        self.subjects = dict(
            sorted((f"subj{int(match[1]):02d}", file) for file, match in matches.items() if match)
        )

    def read_trials(self, subject: str) -> pd.DataFrame:
        """Read a subject's trials: `key`, `split`, `coco_id`, `prev_coco_id` (-1: none)."""
        rows = []
        with open_hdf5(self.subjects[subject]) as file:
            groups = list_names(file)
            for split in ("train", "test"):
                if split not in groups:
                    raise InputError(
                        f"{file.filename} has the groups {sorted(groups)}; expected train and test."
                    )
                for key in sorted(list_names(file, split), key=natural_key):
                    trial = f"{split}/{key}"
                    names = list_names(file, trial)
                    if missing := sorted({"visual_voxels", "coco_id"} - set(names)):
                        raise InputError(
                            f"{file.filename}: the trial {trial} lacks "
                            f"{', '.join(missing)}; it holds {sorted(names)}."
                        )
                    previous = -1
                    if "prev_coco_id" in names:
                        previous = read_whole_number(file, f"{trial}/prev_coco_id")
                    coco_id = read_whole_number(file, f"{trial}/coco_id")
                    rows.append((key, split, coco_id, previous))
        return pd.DataFrame(rows, columns=["key", "split", "coco_id", "prev_coco_id"])

    def read_betas(
        self, subject: str, trials: pd.DataFrame, voxel_indices: np.ndarray
    ) -> np.ndarray:
        """Read the betas of these trials; a trial that is a volume is read where the mask is."""
        # Validation trials are drawn from those of training.
        names = trials["split"].replace("val", "train") + "/" + trials["key"] + "/visual_voxels"
        with open_hdf5(self.subjects[subject]) as file:
            return np.stack([read_trial_betas(file, name, voxel_indices) for name in names])

    def beta_files(self, subject: str, trials: pd.DataFrame) -> tuple[Path, ...]:
        return (self.subjects[subject],)


def read_trial_betas(file: h5py.File, name: str, voxel_indices: np.ndarray) -> np.ndarray:
    """Read the betas (n_voxels,) of one trial."""
    betas = read_values(get_dataset(file, name))
    if betas.ndim == 3 and (np.array(betas.shape) > voxel_indices.max(0)).all():
        betas = betas[tuple(voxel_indices.T)]
    if betas.shape != (len(voxel_indices),):
        raise InputError(
            f"{file.filename}: {name} has shape {betas.shape}; "
            f"the mask has {len(voxel_indices)} voxels."
        )
    return betas.astype(np.float32)


class MindEyeLayout(ReleaseLayout):
    """Layout mindeye: folders of each split and subject, with two files per stimulus.

    KEY.nsdgeneral.npy has the betas (n_repetitions, n_voxels), KEY.coco73k.npy the 0-based nsdId.

    Parameters
    ----------
    root : Path
        Folder that holds webdataset_avg_split.
    """

    has_val_split = True

    def __init__(self, root: Path) -> None:
        self.folder = root / "webdataset_avg_split"
        folders = {
            folder
            for split in ("train", "val", "test")
            for folder in (self.folder / split).glob("subj*")
        }
        self.subjects = dict(sorted((folder.name, self.folder) for folder in folders))

    def read_trials(self, subject: str) -> pd.DataFrame:
        """Read a subject's trials: `key`, `split`, `nsd_id`, `repetition`."""
        rows = []
        for split in ("train", "val", "test"):
            files = sorted((self.folder / split / subject).glob("*.nsdgeneral.npy"))
            if not files:
                raise InputError(
                    f"{self.folder / split / subject} has no *.nsdgeneral.npy; "
                    "expected train, val and test."
                )
            for file in files:
                key = file.name.removesuffix(".nsdgeneral.npy")
                nsd_id = read_nsd_id(file.with_name(f"{key}.coco73k.npy"))
                n_repetitions = len(np.atleast_1d(load_array(file)))
                rows += [(key, split, nsd_id, number) for number in range(n_repetitions)]
        return pd.DataFrame(rows, columns=["key", "split", "nsd_id", "repetition"])

    def read_betas(
        self, subject: str, trials: pd.DataFrame, voxel_indices: np.ndarray
    ) -> np.ndarray:
        """Read the betas of these trials, which are all repetitions of their stimuli."""
        arrays = []
        for (split, key), rows in trials.groupby(["split", "key"], sort=False):
            file = self.beta_file(subject, split, key)
            betas, expected = load_array(file), (len(rows), len(voxel_indices))
            if betas.shape != expected:
                raise InputError(
                    f"{file} has shape {betas.shape}; "
                    f"expected {expected}: repetitions, voxels of the mask."
                )
            arrays.append(betas.astype(np.float32))
        return np.concatenate(arrays)

    def beta_file(self, subject: str, split: object, key: object) -> Path:
        """Path of the betas of all repetitions of a stimulus."""
        return self.folder / str(split) / subject / f"{key}.nsdgeneral.npy"

    def beta_files(self, subject: str, trials: pd.DataFrame) -> tuple[Path, ...]:
        pairs = trials[["split", "key"]].drop_duplicates().itertuples(index=False)
        return tuple(self.beta_file(subject, split, key) for split, key in pairs)


def read_nsd_id(file: Path) -> int:
    """Read the 0-based nsdId that a file holds."""
    number = load_array(file)
    if number.size != 1 or number.dtype.kind not in "iu":
        raise InputError(
            f"{file} holds {number.size} values of type {number.dtype}; expected one whole number, "
            "the 0-based nsdId. Fetch it again."
        )
    return int(number.item())


LAYOUTS: dict[str, type[HDF5Layout | MindEyeLayout]] = {
    "nsd0": HDF5Layout,
    "mindeye": MindEyeLayout,
}
