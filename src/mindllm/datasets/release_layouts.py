"""The two layouts of the authors' prepared NSD: nsd0/subject_1.h5, and webdataset_avg_split."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import get_dataset
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

    def open(self, subject: str) -> h5py.File:
        """Open a subject's file.

        Raises
        ------
        InputError
            If it is damaged.
        """
        try:
            return h5py.File(self.subjects[subject], "r")
        except OSError as error:
            raise InputError(
                f"{self.subjects[subject]} is damaged or truncated ({error}). Fetch it again."
            ) from error

    def read_trials(self, subject: str) -> pd.DataFrame:
        """Read a subject's trials: `key`, `split`, `coco_id`, `prev_coco_id` (-1: none)."""
        rows = []
        with self.open(subject) as file:
            for split in ("train", "test"):
                if split not in file:
                    raise InputError(
                        f"{file.filename} has the groups {sorted(file)}; expected train and test."
                    )
                for key in sorted(file[split], key=natural_key):
                    trial = file[split][key]
                    if missing := sorted({"visual_voxels", "coco_id"} - set(trial)):
                        raise InputError(
                            f"{file.filename}: the trial {split}/{key} lacks "
                            f"{', '.join(missing)}; it holds {sorted(trial)}."
                        )
                    previous = int(trial["prev_coco_id"][()]) if "prev_coco_id" in trial else -1
                    rows.append((key, split, int(trial["coco_id"][()]), previous))
        return pd.DataFrame(rows, columns=["key", "split", "coco_id", "prev_coco_id"])

    def read_betas(
        self, subject: str, trials: pd.DataFrame, voxel_indices: np.ndarray
    ) -> np.ndarray:
        """Read the betas of these trials; a trial that is a volume is read where the mask is."""
        # Validation trials are drawn from those of training.
        names = trials["split"].replace("val", "train") + "/" + trials["key"] + "/visual_voxels"
        with self.open(subject) as file:
            return np.stack([read_trial_betas(file, name, voxel_indices) for name in names])

    def beta_files(self, subject: str, trials: pd.DataFrame) -> tuple[Path, ...]:
        return (self.subjects[subject],)


def read_trial_betas(file: h5py.File, name: str, voxel_indices: np.ndarray) -> np.ndarray:
    """Read the betas (n_voxels,) of one trial."""
    try:
        betas = get_dataset(file, name)[()]
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py has many errors for a damaged file
        raise InputError(
            f"{file.filename} is damaged at {name} ({error}). Fetch it again."
        ) from error
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
                nsd_id = int(load_array(file.with_name(f"{key}.coco73k.npy")).item())
                n_repetitions = len(load_array(file))
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


def load_array(file: Path) -> np.ndarray:
    """Load an array without running anything in it."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file} is missing, damaged or truncated ({error}). Fetch it again."
        ) from error


LAYOUTS: dict[str, type[HDF5Layout | MindEyeLayout]] = {
    "nsd0": HDF5Layout,
    "mindeye": MindEyeLayout,
}
