"""Reader of GLMsingle's outputs (cvnlab/GLMsingle), described by a design table.

The design table (.tsv or .csv) has a row per trial, in the order of the trials in each output:
    subject, stimulus   what was shown to which subject
    file                the output, or its folder, relative to the outputs' folder; sessions may
                        share one
    session, run, repetition, split, coco_id, mask, caption    optional; mask: the subject's mask,
                        relative likewise. Betas are z-scored by session; without that column an
                        output is one session

    TYPED_FITHRF_GLMDENOISE_RR.hdf5   Python, wanthdf5=1: betasmd (X, Y, Z, trials)
    TYPED_FITHRF_GLMDENOISE_RR.mat    MATLAB, -v7.3, that is HDF5: modelmd, read in reverse as
                                      (trials, Z, Y, X)
    TYPED_FITHRF_GLMDENOISE_RR.npy    Python: a pickle, of which only numbers and text are read, so
                                      that nothing in it can be run
    DESIGNINFO.mat or .npy            stimorder, the condition of each trial, against which the
                                      table is checked

The outputs have no coordinates: the mask, on the same grid, does. Outputs of V voxels in a row,
(V, 1, 1, trials), are those of the mask's voxels: in the order of numpy (data[mask]) for Python's
files, of MATLAB (data(mask)) for MATLAB's.

References
----------
Prince et al. 2022, eLife 11:e77599.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from mindllm.data.splits import draw_splits
from mindllm.data.store_writer import TRIAL_COLUMNS, check_captions, conversations_from_captions
from mindllm.datasets.base import DatasetDescription, DatasetReader, drop_voxels
from mindllm.datasets.parallel import SessionReader
from mindllm.fmri.atlases import select_atlases
from mindllm.fmri.masker import CHUNK_BYTES, VoxelMasker
from mindllm.fmri.nifti import binarize_mask
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name
from mindllm.utils.hdf5 import get_dataset, open_hdf5, read_values
from mindllm.utils.pickles import load_pickled_array
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.tables import read_table, require_values

MODELS = {
    "TYPEB": "TYPEB_FITHRF",
    "TYPEC": "TYPEC_FITHRF_GLMDENOISE",
    "TYPED": "TYPED_FITHRF_GLMDENOISE_RR",
}
SUFFIXES = (".hdf5", ".mat", ".npy")
COLUMNS = ("stimulus", "session", "run", "repetition", "split", "coco_id")  # that a store keeps
PICKLE, REMEDY = (
    "output of GLMsingle",
    "Make it anew, or let GLMsingle write HDF5 (wanthdf5=1).",
)
CHUNK_SIZE = 250  # trials that a worker reads at a time
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GLMsingleOutput:
    """A file of single-trial betas that GLMsingle wrote.

    Attributes
    ----------
    file : Path
        The file, in any of the formats.
    """

    file: Path

    @property
    def is_matlab(self) -> bool:
        """Whether MATLAB wrote the file."""
        return self.file.suffix == ".mat"

    @contextmanager
    def open(self) -> Iterator[np.ndarray | h5py.Dataset]:
        """Open the betas as they lie in the file; what is no betas is an InputError."""
        if self.file.suffix == ".npy":
            yield load_pickled_array(self.file, "betasmd", PICKLE, REMEDY)
            return
        remedy = "A .mat file must be saved with -v7.3. Make it anew."
        with open_hdf5(self.file, "an output of GLMsingle", remedy) as content:
            yield get_dataset(content, "modelmd" if self.is_matlab else "betasmd")

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the betas: (X, Y, Z, n_trials), or (V, 1, 1, n_trials)."""
        with self.open() as betas:
            shape = tuple(betas.shape)[:: -1 if self.is_matlab else 1]
        if len(shape) != 4:
            raise InputError(f"{self.file} has betas of shape {shape}; expected (X, Y, Z, trials).")
        return shape

    def iter_chunks(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over what a worker reads at a time: the first trial, and rows of the table.

        A pickle can only be opened as a whole, and is one chunk.
        """
        size = len(rows) if self.file.suffix == ".npy" else CHUNK_SIZE
        for start in range(0, len(rows), size):
            yield start, rows[start : start + size]

    def read(self, voxel_indices: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Read the betas of trials `start` to `stop`, whole HDF5 chunks at a time.

        Parameters
        ----------
        voxel_indices : np.ndarray
            (V, 3) voxels in the output's grid.
        start, stop : int
            First trial, and the one after the last.

        Returns
        -------
        np.ndarray
            (stop - start, V), float32.
        """
        out = np.empty((stop - start, len(voxel_indices)), np.float32)
        x, y, z = voxel_indices.T
        with self.open() as betas:
            n_bytes = betas.dtype.itemsize * int(np.prod(betas.shape[1:]))
            chunk_length = (getattr(betas, "chunks", None) or (1,))[0]
            step = max(1, CHUNK_BYTES // n_bytes // chunk_length) * chunk_length
            if self.is_matlab:
                for first in range(start, stop, step):
                    chunk = read_part(betas, slice(first, min(first + step, stop)))
                    out[first - start : first - start + len(chunk)] = chunk[:, z, y, x]
            else:
                for first in range(0, betas.shape[0], step):
                    columns = np.flatnonzero((x >= first) & (x < first + step))
                    if len(columns):
                        rows = slice(first, first + step)
                        chunk = read_part(betas, (rows, ..., slice(start, stop)))
                        out[:, columns] = chunk[x[columns] - first, y[columns], z[columns]].T
        return out


class GLMsingleReader(DatasetReader):
    """Reader of GLMsingle's outputs, as a design table describes them.

    Atlases atlas-<NAME>_..._dseg.nii.gz, or <subject>_..._atlas-<NAME>_..., beside a mask label its
    voxels. A worker that reads an .npy file needs memory for all of it.

    Parameters
    ----------
    root : str or Path
        Folder of the outputs.
    design : str or Path
        The design table.
    mask : str, optional
        A subject's mask, relative to `root`, with {subject} in it; where the table has no column
        `mask`.
    mask_threshold : float, optional
        For masks that are not binary: voxels above it are inside.
    subjects : sequence of str, optional
        Labels of the subjects to read. Default: all in the table.
    model : {"TYPED", "TYPEC", "TYPEB"}
        Which output to take where the table names folders.
    order : {"C", "F"}, optional
        Order of voxels in a row: numpy's or MATLAB's. Default: as the program that wrote the file.
    nan : {"error", "drop"}
        What to do about voxels with NaN: raise an error, or leave them out.
    test_fraction : float
        Fraction of the stimuli for testing, where the table has no column `split`.
    """

    prepared_by = "glmsingle"

    def __init__(
        self,
        root: str | Path,
        *,
        design: str | Path,
        mask: str | None = None,
        mask_threshold: float | None = None,
        subjects: Sequence[str] | None = None,
        model: Literal["TYPEB", "TYPEC", "TYPED"] = "TYPED",
        order: Literal["C", "F"] | None = None,
        nan: Literal["error", "drop"] = "error",
        test_fraction: float = 0.0,
    ) -> None:
        super().__init__(root, subjects=subjects)
        check_option("model", model, list(MODELS))
        check_option("order", order, ["C", "F", None])
        check_option("nan", nan, ["error", "drop"])
        self.design, self.mask, self.mask_threshold = Path(design), mask, mask_threshold
        self.model, self.order, self.nan, self.test_fraction = model, order, nan, test_fraction
        self._voxel_indices: dict[str, dict[GLMsingleOutput, np.ndarray]] = {}

    @property
    def location(self) -> str:
        return str(self.design)

    @cached_property
    def design_table(self) -> pd.DataFrame:
        """The design table of all subjects."""
        return read_design(self.design)

    def select_rows(self, subject: str) -> pd.DataFrame:
        """Select the rows of a subject from the design table."""
        table = self.design_table
        return table[table["subject"] == subject].reset_index(drop=True)

    def find_subjects(self) -> list[str]:
        return natural_sorted(set(self.design_table["subject"]))

    def read_trials(self, subject: str) -> pd.DataFrame:
        table = self.select_rows(subject)
        return table[[column for column in COLUMNS if column in table]]

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        has_split = any("split" in table for table in trials.values())
        if has_split and self.test_fraction:
            logger.warning(
                "the design table has a column `split`; the fraction %s of test is not used",
                self.test_fraction,
            )
        if has_split:
            return super().assign_splits(trials, val_fraction, seed)
        fractions = {"test": self.test_fraction} if self.test_fraction else {}
        tables = draw_splits(trials, fractions, seed)
        return super().assign_splits(tables, val_fraction, seed)

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        mask = find_mask(self.root, self.select_rows(subject), self.mask)
        mask_img = binarize_mask(mask, self.mask_threshold, what=f"mask of {subject}")
        atlases = select_atlases(find_atlases(mask, subject), mask_img)
        masker = VoxelMasker.from_mask_img(mask_img, atlases, subject=subject)
        voxel_indices = {}
        for output, rows in self.outputs(subject).items():
            stimuli = trials["stimulus"].iloc[rows].tolist()
            voxel_indices[output] = locate_voxels(output, stimuli, masker, self.order)
        if self.nan == "drop":
            masker, voxel_indices = drop_nan_voxels(masker, voxel_indices)
        self._voxel_indices[subject] = voxel_indices
        return masker

    def outputs(self, subject: str) -> dict[GLMsingleOutput, np.ndarray]:
        """Find a subject's outputs, and the rows of the subject's trials in each."""
        return {
            GLMsingleOutput(find_output(self.root / str(file), self.model)): rows.index.to_numpy()
            for file, rows in self.select_rows(subject).groupby("file", sort=False)
        }

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        readers = []
        for output, rows in self.outputs(masker.subject).items():
            voxel_indices = self._voxel_indices[masker.subject][output]
            for start, chunk in output.iter_chunks(rows):
                stop = start + len(chunk)
                name = f"{masker.subject}, {output.file}, trials {start + 1} to {stop}"
                read = bind(output.read, voxel_indices, start, stop)
                readers.append(SessionReader(name, chunk, read, (output.file,)))
        return readers

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        table = self.design_table[self.design_table["subject"].isin(list(trials))]
        if "caption" not in table:
            table = pd.DataFrame({"stimulus": [], "caption": []})
        table = table.dropna(subset=["caption"])
        check_captions(table, self.design)
        return conversations_from_captions(table)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        return DatasetDescription(
            name=self.root.resolve().name, source="GLMsingle", license="unknown"
        )

    def options(self) -> dict[str, object]:
        return {
            "model": self.model,
            "mask": self.mask,
            "mask_threshold": self.mask_threshold,
            "order": self.order,
            "nan": self.nan,
            "test_fraction": self.test_fraction,
        }


def check_option(name: str, value: str | None, known: Sequence[str | None]) -> None:
    """Raise InputError unless the option has one of the known values."""
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown; expected {' or '.join(map(str, known))}.")


def read_design(file: Path) -> pd.DataFrame:
    """Read the design table, with a `session` for each trial.

    Raises
    ------
    InputError
        If a column or a value is missing, or a subject's label cannot be part of a path.
    """
    needed = ("subject", "file", "stimulus")
    table = read_table(file, "the design table", needed)
    if table.empty:
        raise InputError(f"{file} has no line below its header; expected a line per trial.")
    require_values(table, needed, file)
    table = table.dropna(axis="columns", how="all")
    require_values(table, TRIAL_COLUMNS, file)
    for line, subject in table["subject"].items():
        check_name(subject, "subject", f"{file}, line {line}")
    if "session" not in table:
        table["session"] = table["file"]  # an output is most often of one session
    return table


def find_output(path: Path, model: str) -> Path:
    """Find the file that the table names, or that of this model in the folder that it names."""
    if path.is_file():
        if path.suffix not in (*SUFFIXES, ".h5"):
            raise InputError(
                f"{path} is no output of GLMsingle; "
                f"expected a file that ends in {', '.join(SUFFIXES)}."
            )
        return path
    files = [path / f"{MODELS[model]}{suffix}" for suffix in SUFFIXES]
    if len(files := [file for file in files if file.is_file()]) > 1:
        raise InputError(
            f"{path} holds {' and '.join(file.name for file in files)}, which may differ; expected "
            "one output of a model. Name the file in the table, or remove the other."
        )
    if files:
        return files[0]
    present = sorted(file.name for file in path.glob("TYPE*"))
    raise InputError(
        f"there is no {path / MODELS[model]}.hdf5, .mat or .npy "
        f"(found: {', '.join(present) or 'no output of GLMsingle'})."
    )


def find_mask(root: Path, design: pd.DataFrame, pattern: str | None) -> Path:
    """Find the mask of the subject of these rows: by their column `mask`, or by the pattern."""
    subject = design["subject"].iloc[0]
    masks = design["mask"].dropna().unique().tolist() if "mask" in design else []
    if not masks and pattern:
        masks = [pattern.replace("{subject}", subject)]
    if len(masks) != 1:
        raise InputError(
            f"{subject} has {len(masks)} masks; expected one, from the design table's column "
            "`mask` or as --mask masks/{subject}_mask.nii.gz."
        )
    return root / masks[0]


def find_atlases(mask: Path, subject: str) -> list[Path]:
    """Find the files of atlases beside a mask that are the subject's or all subjects'."""
    files = sorted(mask.parent.glob("*atlas-*_dseg.nii*"))
    return [file for file in files if file.name.startswith(("atlas-", f"{subject}_"))]


def locate_voxels(
    output: GLMsingleOutput,
    stimuli: Sequence[str],
    masker: VoxelMasker,
    order: Literal["C", "F"] | None,
) -> np.ndarray:
    """Locate the mask's voxels in the output's grid.

    Parameters
    ----------
    output : GLMsingleOutput
        The output.
    stimuli : sequence of str
        The stimulus of each of its trials, by the design table.
    masker : VoxelMasker
    order : {"C", "F"}, optional

    Returns
    -------
    np.ndarray
        (V, 3) voxel indices.

    Raises
    ------
    InputError
        If table, mask and output do not fit each other.
    """
    *grid, n_trials = output.shape()
    if n_trials != len(stimuli):
        raise InputError(
            f"{output.file} has {n_trials} trials; the design table has {len(stimuli)} for it. "
            "A row per trial is expected, in their order."
        )
    check_design(output, stimuli)
    if tuple(grid) == masker.shape:
        return masker.voxel_indices
    if tuple(grid) != (len(masker), 1, 1):
        raise InputError(
            f"{output.file} has betas on a grid of {tuple(grid)}; the mask of {masker.subject} has "
            f"the grid {masker.shape} and {len(masker)} voxels. Give the mask of the very volumes "
            "that GLMsingle was given."
        )
    flat_indices = np.ravel_multi_index(
        tuple(masker.voxel_indices.T),
        masker.shape,
        order=order or ("F" if output.is_matlab else "C"),
    )
    voxel_indices = np.zeros((len(masker), 3), np.int32)
    voxel_indices[np.argsort(flat_indices), 0] = np.arange(len(masker))
    return voxel_indices


def drop_nan_voxels(
    masker: VoxelMasker, voxel_indices: Mapping[GLMsingleOutput, np.ndarray]
) -> tuple[VoxelMasker, dict[GLMsingleOutput, np.ndarray]]:
    """Leave out the voxels with NaN or infinity in some trial, with a warning."""
    finite = np.ones(len(masker), bool)
    for output, at in voxel_indices.items():
        for start, trials in output.iter_chunks(np.arange(output.shape()[-1])):
            finite &= np.isfinite(output.read(at, start, start + len(trials))).all(0)
    masker = drop_voxels(masker, finite, "hold NaN in some trial", "Give another mask (--mask).")
    kept = {output: indices[finite] for output, indices in voxel_indices.items()}
    return masker, kept


def check_design(output: GLMsingleOutput, stimuli: Sequence[str]) -> None:
    """Raise InputError unless the stimuli match the conditions of GLMsingle's own design."""
    file = output.file.with_name("DESIGNINFO" + (".mat" if output.is_matlab else ".npy"))
    if not file.is_file():
        return
    if output.is_matlab and not h5py.is_hdf5(file):
        logger.warning(
            "%s was not saved with -v7.3, so the design table is not checked against it", file
        )
        return
    conditions = read_conditions(file)
    if len(conditions) != len(stimuli):
        raise InputError(
            f"{file} tells of {len(conditions)} trials; the design table of {len(stimuli)}."
        )
    pairs = pd.DataFrame({"condition": conditions, "stimulus": list(stimuli)}).drop_duplicates()
    ambiguous = pairs.duplicated("condition", keep=False) | pairs.duplicated("stimulus", keep=False)
    if ambiguous.any():
        raise InputError(
            f"the design table disagrees with {file} about {ambiguous.sum()} pairs of stimulus and "
            "condition: a condition must be one stimulus throughout. The rows are out of order, or "
            "of another subject or session."
        )


def read_conditions(file: Path) -> np.ndarray:
    """Read the condition of each trial (n_trials,) from DESIGNINFO."""
    if file.suffix == ".mat":
        with open_hdf5(file, "a design of GLMsingle", "Make it anew.") as content:
            return read_values(get_dataset(content, "stimorder")).ravel()
    return load_pickled_array(file, "stimorder", PICKLE, REMEDY).ravel()


def read_part(betas: np.ndarray | h5py.Dataset, selection: Any) -> np.ndarray:
    """Read a part of the betas, of a file or in memory."""
    return betas[selection] if isinstance(betas, np.ndarray) else read_values(betas, selection)
