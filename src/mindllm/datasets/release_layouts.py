"""The two layouts of NSD that the authors' code reads: nsd0/subject_1.h5, and MindEye's webdataset_avg_split."""

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError

CHUNK_SIZE = 64  # trials read at once
Chunks = Iterator[tuple[np.ndarray, np.ndarray]]


class HDF5Layout:
    """A file per person, in it the groups train and test, in them a group per trial: visual_voxels, coco_id, prev_coco_id."""

    own_val = False

    def __init__(self, root: Path) -> None:
        names = {
            file: re.fullmatch(r"subject_(\d+)\.h5", file.name)
            for file in (root / "nsd0").glob("subject_*.h5")
        }
        self.subjects = dict(
            sorted((f"subj{int(number[1]):02d}", file) for file, number in names.items() if number)
        )

    def open(self, subject: str) -> h5py.File:
        """The person's file, or an InputError that says what is wrong with it."""
        try:
            return h5py.File(self.subjects[subject], "r")
        except OSError as error:
            raise InputError(
                f"{self.subjects[subject]} is damaged or truncated ({error}). Fetch it again."
            ) from error

    def trials(self, subject: str) -> pd.DataFrame:
        """One row per trial: `key`, `split`, `coco_id`, `prev_coco_id` (-1: none)."""
        rows = []
        with self.open(subject) as file:
            for split in ("train", "test"):
                if split not in file:
                    raise InputError(
                        f"{file.filename} has the groups {sorted(file)}; expected train and test."
                    )
                for key in sorted(
                    file[split],
                    key=lambda k: (not k.isdecimal(), int(k) if k.isdecimal() else 0, k),
                ):
                    trial = file[split][key]
                    if missing := sorted({"visual_voxels", "coco_id"} - set(trial)):
                        raise InputError(
                            f"{file.filename}: the trial {split}/{key} lacks {', '.join(missing)}; it holds {sorted(trial)}."
                        )
                    previous = int(trial["prev_coco_id"][()]) if "prev_coco_id" in trial else -1
                    rows.append((key, split, int(trial["coco_id"][()]), previous))
        return pd.DataFrame(rows, columns=["key", "split", "coco_id", "prev_coco_id"])

    def iter_chunks(self, subject: str, trials: pd.DataFrame, ijk: np.ndarray) -> Chunks:
        """(rows, values (b, V)) of these trials; a trial kept as a volume is read where the mask is."""
        group = trials["split"].replace(
            "val", "train"
        )  # validation trials are drawn from those of training
        places = (group + "/" + trials["key"] + "/visual_voxels").tolist()
        with self.open(subject) as file:
            for start in range(0, len(trials), CHUNK_SIZE):
                rows = np.arange(start, min(start + CHUNK_SIZE, len(trials)))
                yield rows, np.stack([self.value(file, places[row], ijk) for row in rows])

    def value(self, file: h5py.File, place: str, ijk: np.ndarray) -> np.ndarray:
        """(V,) values of one trial."""
        try:
            value = file[place][()]
        except OSError as error:
            raise InputError(
                f"{file.filename} is damaged at {place} ({error}). Fetch it again."
            ) from error
        if value.ndim == 3 and (np.array(value.shape) > ijk.max(0)).all():
            value = value[tuple(ijk.T)]
        if value.shape != (len(ijk),):
            raise InputError(
                f"{file.filename}: {place} has shape {value.shape}; the mask has {len(ijk)} voxels."
            )
        return value.astype(np.float32)


class MindEyeLayout:
    """Per split and person, for each stimulus: KEY.nsdgeneral.npy (repeats, V) and KEY.coco73k.npy, its 0-based NSD number."""

    own_val = True

    def __init__(self, root: Path) -> None:
        self.top = root / "webdataset_avg_split"
        folders = {
            folder
            for split in ("train", "val", "test")
            for folder in (self.top / split).glob("subj*")
        }
        self.subjects = dict(sorted((folder.name, self.top) for folder in folders))

    def trials(self, subject: str) -> pd.DataFrame:
        """One row per repeat: `key`, `split`, `nsd_id`, `repeat`."""
        rows = []
        for split in ("train", "val", "test"):
            files = sorted((self.top / split / subject).glob("*.nsdgeneral.npy"))
            if not files:
                raise InputError(
                    f"{self.top / split / subject} has no *.nsdgeneral.npy; expected train, val and test."
                )
            for file in files:
                key = file.name.removesuffix(".nsdgeneral.npy")
                number = int(self.read(file.with_name(f"{key}.coco73k.npy")).item())
                rows += [(key, split, number, i) for i in range(len(self.read(file)))]
        return pd.DataFrame(rows, columns=["key", "split", "nsd_id", "repetition"])

    def iter_chunks(self, subject: str, trials: pd.DataFrame, ijk: np.ndarray) -> Chunks:
        """(rows, values (repeats, V)), one stimulus at a time."""
        for (split, key), some in trials.groupby(["split", "key"], sort=False):
            file = self.top / str(split) / subject / f"{key}.nsdgeneral.npy"
            values = self.read(file)
            if values.shape != (len(some), len(ijk)):
                raise InputError(
                    f"{file} has shape {values.shape}; expected ({len(some)}, {len(ijk)}): repeats, voxels of the mask."
                )
            yield some.index.to_numpy(), values.astype(np.float32)

    def read(self, file: Path) -> np.ndarray:
        """An array from disk, without running anything in it."""
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
