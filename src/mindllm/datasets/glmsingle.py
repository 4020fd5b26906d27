"""A store from GLMsingle's outputs (Prince et al. 2022; cvnlab/GLMsingle), wherever they lie: a table tells what they are of.

The design table (.tsv or .csv) has a row per trial, in the order of the trials in each output:
    subject, stimulus   who saw what
    file                the output, or its folder, relative to the outputs' folder; several sessions may share one
    session, run, repeat, split, coco_id, mask, caption    optional; mask: the person's mask, relative likewise.
                        Betas are z-scored by session; without that column an output is one session

    TYPED_FITHRF_GLMDENOISE_RR.hdf5   Python, wanthdf5=1: betasmd (X, Y, Z, trials)
    TYPED_FITHRF_GLMDENOISE_RR.mat    MATLAB, -v7.3, that is HDF5: modelmd, read in reverse as (trials, Z, Y, X)
    TYPED_FITHRF_GLMDENOISE_RR.npy    Python: a pickle; only numbers and text are read from it, so nothing in it can be run
    DESIGNINFO.mat or .npy            stimorder, the condition of each trial, against which the table is checked

The outputs tell no positions: the mask, on the same grid, does. Outputs of V voxels in a row, (V, 1, 1, trials), are those
of the mask's voxels: in the order of numpy (data[mask]) for Python's files, of MATLAB (data(mask)) for MATLAB's.
"""

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import hold_out_validation, split_stimuli
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter, conversations_from_captions
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.atlases import atlases_by_name
from mindllm.fmri.masker import CHUNK_BYTES, VoxelMasker
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name, check_not_exists
from mindllm.utils.tables import read_table

MODELS = {
    "TYPEB": "TYPEB_FITHRF",
    "TYPEC": "TYPEC_FITHRF_GLMDENOISE",
    "TYPED": "TYPED_FITHRF_GLMDENOISE_RR",
}
SUFFIXES = (".hdf5", ".mat", ".npy")
COLUMNS = (
    "stimulus",
    "session",
    "run",
    "repetition",
    "split",
    "coco_id",
)  # those that the store keeps
CHUNK_SIZE = 250  # trials that a worker reads at a time
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GLMsingleOutput:
    """A file that GLMsingle wrote."""

    file: Path

    @property
    def matlab(self) -> bool:
        return self.file.suffix == ".mat"

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The betas, as they lie in the file; what goes wrong in reading them is an InputError that names it."""
        try:
            if self.file.suffix == ".npy":
                yield unpickle(self.file)["betasmd"]
                return
            with h5py.File(self.file) as content:
                yield content["modelmd" if self.matlab else "betasmd"]
        except (OSError, KeyError, EOFError, RuntimeError) as error:
            raise InputError(
                f"{self.file} is damaged, truncated, or holds no single-trial betas of GLMsingle ({type(error).__name__}: {error}). A .mat file must be saved with -v7.3. Make it anew."
            ) from error

    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z, trials), or (V, 1, 1, trials)."""
        with self.opened() as betas:
            shape = tuple(betas.shape or ())[:: -1 if self.matlab else 1]
        if len(shape) != 4:
            raise InputError(f"{self.file} has betas of shape {shape}; expected (X, Y, Z, trials).")
        return shape

    def parts(self, trials: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """What a worker reads at a time: the first trial and the rows of the table. A pickle opens as a whole."""
        size = len(trials) if self.file.suffix == ".npy" else CHUNK_SIZE
        for start in range(0, len(trials), size):
            yield start, trials[start : start + size]

    def read(self, at: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The betas (trials, V) from trial `start` to `stop` at the places `at` (V, 3) of the grid, part by part."""
        out = np.empty((stop - start, len(at)), np.float32)
        with self.opened() as betas:
            size = betas.dtype.itemsize * int(np.prod(betas.shape[1:]))
            lead = (getattr(betas, "chunks", None) or (1,))[0]
            step = max(1, CHUNK_BYTES // size // lead) * lead  # whole chunks
            if self.matlab:
                for t in range(start, stop, step):
                    part = betas[t : min(t + step, stop)]
                    out[t - start : t - start + len(part)] = part[:, at[:, 2], at[:, 1], at[:, 0]]
            else:
                for x in range(0, betas.shape[0], step):
                    here = np.flatnonzero((at[:, 0] >= x) & (at[:, 0] < x + step))
                    if len(here):
                        part = betas[x : x + step, :, :, start:stop]
                        out[:, here] = part[at[here, 0] - x, at[here, 1], at[here, 2]].T
        return out


def prepare(
    folder: str | Path,
    out: str | Path,
    *,
    design: str | Path,
    mask: str | None = None,
    subjects: Sequence[str] | None = None,
    model: Literal["TYPEB", "TYPEC", "TYPED"] = "TYPED",
    order: Literal["C", "F"] | None = None,
    nan: Literal["error", "drop"] = "error",
    test_fraction: float = 0.0,
    val_fraction: float = 0.0,
    dtype: str = "float16",
    seed: int = 0,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out` of GLMsingle's outputs in `folder`, as the table `design` describes them (see above).

    mask: a person's mask, relative to `folder`, with {subject} in it; where the table has no column `mask`. Parcellations
    atlas-<NAME>_..._dseg.nii.gz, or <subject>_..._atlas-<NAME>_..., beside a mask label its voxels.
    model: which output to take where the table names folders.  order: of voxels in a row, C (numpy's) or F (MATLAB's); None:
    as the program that wrote the file.  nan: what to do about voxels with NaN: refuse, or leave them out.
    A worker that reads an .npy file needs memory for all of it.
    test, val: shares of the stimuli for test, where the table has no `split`, and of the training stimuli for val.
    Raises InputError, naming the file, for anything missing, damaged or not as the table says.
    """
    check_not_exists(Path(out))
    for option, value, known in (("model", model, MODELS), ("order", order, ("C", "F", None)), ("nan", nan, ("error", "drop"))):  # fmt: skip
        if value not in known:
            raise InputError(
                f"{option}={value!r} is unknown; expected {' or '.join(map(str, known))}."
            )
    folder = Path(folder)
    table = read_design(Path(design), subjects)
    if "session" not in table:
        table["session"] = table["file"]  # an output is most often of one session
    if "split" in table and test_fraction:
        logger.warning(
            "the design table has a column `split`; the share %s of test is not used", test_fraction
        )
    elif test_fraction:
        table["split"] = table["stimulus"].map(
            split_stimuli(table["stimulus"].tolist(), {"test": test_fraction}, seed)
        )
    tables = {str(name): rows.reset_index(drop=True) for name, rows in table.groupby("subject")}
    kept = {name: rows[[c for c in COLUMNS if c in rows]] for name, rows in tables.items()}
    drawn = hold_out_validation(
        {n: t if "split" in t else t.assign(split="train") for n, t in kept.items()},
        val_fraction,
        seed,
    )
    recordings = []
    for name, rows in tables.items():
        space = VoxelMasker.from_mask_img(*find_mask(folder, name, rows, mask), subject=name)
        files = {
            str(file): trials.index.to_numpy() for file, trials in rows.groupby("file", sort=False)
        }
        outputs = {
            GLMsingleOutput(find_output(folder / file, model)): trials
            for file, trials in files.items()
        }
        places = {
            output: check(output, rows.iloc[trials], space, order)
            for output, trials in outputs.items()
        }
        space, places = drop_nan(space, places) if nan == "drop" else (space, places)
        read = [
            SessionReader(f"{name}, {o.file}, trials {start + 1} to {start + len(part)}", part, bind(o.read, places[o], start, start + len(part)))
            for o, trials in outputs.items()
            for start, part in o.parts(trials)
        ]  # fmt: skip
        recordings.append(SubjectRecording(space, drawn[name], read))
    options: dict[str, Any] = {"subjects": sorted(tables), "model": model, "mask": mask, "order": order, "nan": nan, "test_fraction": test_fraction, "val_fraction": val_fraction, "dtype": dtype, "seed": seed}  # fmt: skip
    writer = StoreWriter(out, name=folder.resolve().name, source="GLMsingle", license="unknown", prepared_by="glmsingle", options=options)  # fmt: skip
    write_recordings(
        writer, recordings, dtype, n_jobs=n_jobs, dask_scheduler=dask_scheduler, progress=progress
    )
    told = table if "caption" in table else pd.DataFrame({"stimulus": [], "caption": []})
    return writer.finish(conversations_from_captions(told.dropna(subset=["caption"])))


def read_design(file: Path, subjects: Sequence[str] | None) -> pd.DataFrame:
    """The rows of these people. Raises InputError for a missing column, a gap, or a person who is not there."""
    needed = ("subject", "file", "stimulus")
    table = read_table(file, "the design table", needed)
    for column in needed:
        if table[column].isna().any():
            raise InputError(
                f"{file} has {table[column].isna().sum()} rows without a {column}; expected one in each."
            )
    for row, subject in enumerate(table["subject"], 2):  # the header is line 1
        check_name(subject, "subject", f"{file}, line {row}")
    if odd := sorted(set(subjects or []) - set(table["subject"])):
        raise InputError(
            f"{file} has no subject {', '.join(odd)}; it has {', '.join(sorted(set(table['subject'])))}."
        )
    if "coco_id" in table:
        table["coco_id"] = table["coco_id"].astype("Int64")
    return table[table["subject"].isin(list(subjects or table["subject"]))].reset_index(drop=True)


def find_output(place: Path, model: str) -> Path:
    """The file that the table names, or that of this model in the folder that it names."""
    if place.is_file():
        if place.suffix not in (*SUFFIXES, ".h5"):
            raise InputError(
                f"{place} is no output of GLMsingle; expected a file that ends in {', '.join(SUFFIXES)}."
            )
        return place
    for suffix in SUFFIXES:
        if (file := place / f"{MODELS[model]}{suffix}").is_file():
            return file
    there = ", ".join(sorted(f.name for f in place.glob("TYPE*"))) or "no output of GLMsingle"
    raise InputError(f"there is no {place / MODELS[model]}.hdf5, .mat or .npy (found: {there}).")


def find_mask(
    folder: Path, subject: str, rows: pd.DataFrame, pattern: str | None
) -> tuple[Path, dict[str, Path]]:
    """A person's mask, and the parcellations beside it that are theirs or everybody's."""
    named = rows["mask"].dropna().unique().tolist() if "mask" in rows else []
    if not named and pattern:
        named = [pattern.replace("{subject}", subject)]
    if len(named) != 1:
        raise InputError(
            f"{subject} has {len(named)} masks; expected one, from the design table's column `mask` or as --mask masks/{{subject}}_mask.nii.gz."
        )
    file = folder / named[0]
    beside = sorted(file.parent.glob("*atlas-*_dseg.nii*"))
    return file, atlases_by_name(
        [f for f in beside if f.name.startswith(("atlas-", f"{subject}_"))]
    )


def check(
    output: GLMsingleOutput, rows: pd.DataFrame, space: VoxelMasker, order: Literal["C", "F"] | None
) -> np.ndarray:
    """(V, 3) where the mask's voxels are in the output's grid. Raises InputError if table, mask and output do not fit."""
    shape = output.shape()
    if shape[3] != len(rows):
        raise InputError(
            f"{output.file} has {shape[3]} trials; the design table has {len(rows)} for it. A row per trial is expected, in their order."
        )
    check_design(output, rows["stimulus"].tolist())
    if shape[:3] == space.shape:
        return space.voxel_indices
    if shape[:3] != (len(space), 1, 1):
        raise InputError(
            f"{output.file} has betas on a grid of {shape[:3]}; the mask of {space.subject} has the grid {space.shape} and {len(space)} voxels. Give the mask of the very volumes that GLMsingle was given."
        )
    at = np.zeros((len(space), 3), np.int32)
    flat = np.ravel_multi_index(
        tuple(space.voxel_indices.T), space.shape, order=order or ("F" if output.matlab else "C")
    )
    at[np.argsort(flat), 0] = np.arange(len(space))
    return at


def drop_nan(
    space: VoxelMasker, places: Mapping[GLMsingleOutput, np.ndarray]
) -> tuple[VoxelMasker, dict[GLMsingleOutput, np.ndarray]]:
    """The voxels that every output has a number for. GLMsingle fits a voxel's trials together: the first tells of all."""
    finite = np.all(
        [np.isfinite(output.read(at, 0, 1)[0]) for output, at in places.items()], axis=0
    )
    if not finite.all():
        logger.warning(
            "%s: %d of %d voxels hold NaN and are left out",
            space.subject,
            (~finite).sum(),
            len(finite),
        )
    if not finite.any():
        raise InputError(
            f"{space.subject}: all {len(space)} voxels of the mask hold NaN in some output."
        )
    return space.select_voxels(finite), {output: at[finite] for output, at in places.items()}


def check_design(output: GLMsingleOutput, stimuli: Sequence[str]) -> None:
    """Raise InputError unless the table shows a stimulus where GLMsingle's own design, if it is there, has its condition."""
    file = output.file.with_name("DESIGNINFO" + (".mat" if output.matlab else ".npy"))
    if not file.is_file():
        return
    if output.matlab and not h5py.is_hdf5(file):
        logger.warning(
            "%s was not saved with -v7.3, so the design table is not checked against it", file
        )
        return
    try:
        if output.matlab:
            with h5py.File(file) as content:
                conditions = np.asarray(content["stimorder"]).ravel()
        else:
            conditions = np.asarray(unpickle(file)["stimorder"]).ravel()
    except (OSError, KeyError) as error:
        raise InputError(f"{file} is damaged or holds no stimorder ({error}).") from error
    if len(conditions) != len(stimuli):
        raise InputError(
            f"{file} tells of {len(conditions)} trials; the design table of {len(stimuli)}."
        )
    both = pd.DataFrame({"condition": conditions, "stimulus": list(stimuli)}).drop_duplicates()
    if (
        wrong := both[
            both.duplicated("condition", keep=False) | both.duplicated("stimulus", keep=False)
        ].size
        // 2
    ):
        raise InputError(
            f"the design table disagrees with {file} about {wrong} pairs of stimulus and condition: a condition must be one stimulus throughout. The rows are out of order, or of another person or session."
        )


class SafeUnpickler(pickle.Unpickler):
    """Opens a pickle of numbers and text. Anything else that it names is refused, so that nothing in it can be run."""

    names = frozenset({
        ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        known = module.replace("numpy.core", "numpy._core")  # as numpy 1 called it
        if (known, name) not in self.names:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is neither a number nor text"
            )
        return super().find_class(known, name)


def unpickle(file: Path) -> Mapping[str, Any]:
    """The dictionary in a .npy file of GLMsingle, which is a pickle."""
    try:
        with file.open("rb") as content:
            version = np.lib.format.read_magic(content)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            if not read(content)[2].hasobject:
                raise ValueError("it holds an array, and not a dictionary")
            return dict(SafeUnpickler(content).load().item())
    except Exception as error:  # a damaged pickle may end in any error
        raise InputError(
            f"{file} is damaged or no output of GLMsingle ({type(error).__name__}: {error}). Make it anew, or let GLMsingle write HDF5 (wanthdf5=1)."
        ) from error
