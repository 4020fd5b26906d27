"""Files of fMRIPrep's derivatives and of the raw BIDS data set that they were made from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from pydantic import BaseModel, TypeAdapter

from mindllm.fmri.atlases import load_atlas_lut, select_atlases
from mindllm.fmri.nifti import (
    binarize_mask,
    check_same_grid,
    get_data,
    img_filename,
    is_on_grid,
    load_img,
)
from mindllm.fmri.single_trial import ScanTimes
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from mindllm.utils.sorting import natural_key, natural_sorted
from mindllm.utils.validation import validate_content

BOLD, AROMA = "desc-preproc_bold", "desc-smoothAROMAnonaggr_bold"
OTHER_OUTPUTS = ("*_bold.dtseries.nii", "*_bold.func.gii", "*_bold.mgz", "*_bold.func.mgz")
CONFOUNDS = ("desc-confounds_timeseries.tsv", "desc-confounds_regressors.tsv")
OF_SPACE = ("space", "cohort", "res")
NOT_OF_RUN = ("sub", "ses", "task", "run", "desc", *OF_SPACE)
DEFAULT_SLICE_TIME_REF = 0.5  # of fMRIPrep: the middle of the repetition time
TR_TOLERANCE = 1e-3  # seconds


class BoldSidecar(BaseModel):
    """What is read of the JSON file beside a preprocessed run, with BIDS's names."""

    RepetitionTime: float
    SliceTimingCorrected: bool | None = None
    StartTime: float | None = None


SIDECAR = TypeAdapter(BoldSidecar)


def parse_entities(name: str) -> dict[str, str]:
    """Parse the entities of a BIDS file name.

    Examples
    --------
    >>> parse_entities("sub-01_task-x_run-2_events.tsv")
    {'sub': '01', 'task': 'x', 'run': '2'}
    """
    return dict(re.findall(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9+]+)(?=[_.])", name))


@dataclass(frozen=True)
class PreprocessedRun:
    """A preprocessed run.

    Attributes
    ----------
    file : Path
        Its 4-D image.
    """

    file: Path

    @cached_property
    def entities(self) -> dict[str, str]:
        """Entities of the file name."""
        return parse_entities(self.file.name)

    @property
    def space(self) -> str:
        """Space of the image, as fMRIPrep's --output-spaces has it: TEMPLATE[:res-N]."""
        details = [f"{k}-{self.entities[k]}" for k in OF_SPACE[1:] if k in self.entities]
        return ":".join([self.entities.get("space", "func"), *details])

    @property
    def session(self) -> str:
        """Label of the session, "1" where there are none."""
        return self.entities.get("ses", "1")

    @property
    def run(self) -> str:
        """Label of the run within its session, with other entities such as `dir` if it has any."""
        others = {k: v for k, v in self.entities.items() if k not in NOT_OF_RUN}
        names = [*(f"{k}-{v}" for k, v in others.items()), self.entities.get("run", "1")]
        return "_".join(names)

    @property
    def stem(self) -> str:
        """Name of the file without `desc` and suffix."""
        return self.file.name.rsplit("_desc-", 1)[0]

    @property
    def mask_file(self) -> Path:
        """Brain mask in the same space."""
        return self.file.with_name(f"{self.stem}_desc-brain_mask.nii.gz")

    @property
    def sidecar_file(self) -> Path:
        """JSON file beside the image."""
        return self.file.with_name(f"{self.file.name.split('.nii')[0]}.json")

    @property
    def confounds_candidates(self) -> list[Path]:
        """Names of the table of confounds, by versions of fMRIPrep."""
        stem = re.sub(rf"_({'|'.join(OF_SPACE)})-[A-Za-z0-9+]+", "", self.stem)
        return [self.file.with_name(f"{stem}_{suffix}") for suffix in CONFOUNDS]

    @property
    def has_confounds(self) -> bool:
        """Whether there is a table of confounds."""
        return any(file.is_file() for file in self.confounds_candidates)

    @cached_property
    def confounds_file(self) -> Path:
        """Table of confounds.

        Raises
        ------
        InputError
            If there is none.
        """
        if not self.has_confounds:
            raise InputError(
                f"{self.file.name} has no confounds: there is no {self.confounds_candidates[0]}. "
                "Fetch it, or take --confounds none."
            )
        return next(file for file in self.confounds_candidates if file.is_file())

    def read_times(self, slice_time_ref: float | None) -> ScanTimes:
        """Read when the volumes were acquired, from the header and the JSON file.

        Parameters
        ----------
        slice_time_ref : float, optional
            In place of `StartTime` of the JSON file; fMRIPrep's default is the middle.

        Raises
        ------
        InputError
            If there is no JSON file, or header and JSON file have different repetition times.
        """
        if not self.sidecar_file.is_file():
            raise InputError(
                f"{self.file.name} has no repetition time: there is no {self.sidecar_file}. "
                "Fetch the JSON file that fMRIPrep writes beside each image."
            )
        content = read_json(self.sidecar_file, "a JSON file beside a preprocessed run")
        remedy = "Fetch the file again."
        sidecar = validate_content(SIDECAR, content, str(self.sidecar_file), remedy)
        tr_seconds = sidecar.RepetitionTime
        img = load_img(self.file, "run", dimensions=4)
        unit = {"msec": 1e-3, "usec": 1e-6}.get(img.header.get_xyzt_units()[1], 1.0)
        header_tr = float(img.header.get_zooms()[3]) * unit
        if not tr_seconds > 0 or (header_tr > 0 and abs(header_tr - tr_seconds) > TR_TOLERANCE):
            raise InputError(
                f"{self.file} has a repetition time of {header_tr:g} s in its header, and of "
                f"{tr_seconds:g} s in {self.sidecar_file.name}; expected the same. Correct the "
                "one that is wrong."
            )
        if slice_time_ref is None:
            start = sidecar.StartTime
            slice_time_ref = DEFAULT_SLICE_TIME_REF
            if start is not None and sidecar.SliceTimingCorrected is not False:
                slice_time_ref = start / tr_seconds
        if not 0 <= slice_time_ref <= 1:
            raise InputError(
                f"{self.sidecar_file}: StartTime {sidecar.StartTime} is not within a repetition "
                f"time of {tr_seconds:g} s; expected that. Choose with --slice-time-ref."
            )
        return ScanTimes(img.shape[3], tr_seconds, slice_time_ref)


def find_runs(folder: Path, suffix: str = BOLD) -> list[PreprocessedRun]:
    """Find the preprocessed runs of a subject, in the order of sessions and runs.

    Raises
    ------
    InputError
        If there is none, or there are outputs of other kinds alone.
    """
    files = sorted(folder.rglob(f"*_{suffix}.nii*"), key=lambda file: natural_key(str(file)))
    runs = [PreprocessedRun(f) for f in files if "echo" not in parse_entities(f.name)]
    if runs:
        return runs
    others = sorted(file.name for pattern in OTHER_OUTPUTS for file in folder.rglob(pattern))
    if others:
        raise InputError(
            f"{folder} holds surfaces or CIFTI files alone (first: {others[0]}); volumes are "
            "expected. Run fMRIPrep with a volume among --output-spaces, such as "
            "MNI152NLin2009cAsym:res-2."
        )
    raise InputError(
        f"{folder} has no *_{suffix}.nii.gz: expected fMRIPrep's preprocessed runs in "
        "sub-XX/[ses-YY/]func."
    )


def select_value(values: Sequence[str], chosen: str | None, what: str, option: str) -> str:
    """Select one of several spaces or tasks.

    Raises
    ------
    InputError
        If there are several and none was chosen, or the one chosen is not there.
    """
    present = natural_sorted(set(values))
    if chosen is None and len(present) == 1:
        return present[0]
    if chosen not in present:
        state = f"hold the {what}s" if chosen is None else f"have no {what} {chosen}, but"
        raise InputError(
            f"the preprocessed runs {state} {', '.join(present)}; expected one. Choose it with "
            f"{option}, e.g. {option} {present[0]}."
        )
    return chosen


def find_events(root: Path, run: PreprocessedRun) -> Path:
    """Find the events of a run in the raw data set, by BIDS's inheritance principle.

    Parameters
    ----------
    root : Path
        The raw BIDS data set.
    run : PreprocessedRun

    Returns
    -------
    Path
        The file in the deepest folder whose entities are all the run's.

    Raises
    ------
    InputError
        If there is none, or several in one folder.

    References
    ----------
    Brain Imaging Data Structure 1.10, "The Inheritance Principle".
    """
    entities = run.entities
    folders = [root, root / f"sub-{entities['sub']}"]
    if "ses" in entities:
        folders.append(folders[-1] / f"ses-{entities['ses']}")
    folders.append(folders[-1] / "func")
    for folder in reversed(folders):
        files = [f for f in sorted(folder.glob("*_events.tsv")) if applies_to(f.name, entities)]
        if len(files) > 1:
            raise InputError(
                f"{run.file.name} has several tables of events: "
                f"{', '.join(map(str, files))}; expected one. Remove the others."
            )
        if files:
            return files[0]
    name = "_".join(f"{k}-{v}" for k, v in entities.items() if k not in ("desc", *OF_SPACE))
    raise InputError(
        f"{run.file.name} has no events: there is no {folders[-1] / name}_events.tsv. Add it, or "
        "leave runs without events out with --task."
    )


def applies_to(name: str, entities: Mapping[str, str]) -> bool:
    """Whether all entities of a file name are those of a run; numbers may have other zeros."""

    def normalize(value: str) -> str:
        return value.lstrip("0") if value.isdecimal() else value

    stated = parse_entities(name)
    return all(normalize(entities.get(k, "")) == normalize(v) for k, v in stated.items())


def intersect_masks(runs: Sequence[PreprocessedRun], mask: Path | None) -> SpatialImage:
    """Intersect the brain masks of the runs of a subject, and a mask in the same template.

    Parameters
    ----------
    runs : sequence of PreprocessedRun
    mask : Path, optional
        It is brought to the grid of the runs by nearest-neighbor interpolation.

    Returns
    -------
    nibabel image
        Of zeros and ones.

    Raises
    ------
    InputError
        If a mask is missing or on another grid, or the intersection is empty.
    """
    subject, first = f"sub-{runs[0].entities['sub']}", None
    inside = np.ones(())
    for run in runs:
        if not run.mask_file.is_file():
            raise InputError(
                f"{run.file.name} has no brain mask: there is no {run.mask_file}. Fetch it."
            )
        img = binarize_mask(run.mask_file, what=f"brain mask of {subject}")
        first = img if first is None else first
        check_same_grid(img, first.shape, first.affine, "brain mask", img_filename(first))
        inside = inside * get_data(img, "brain mask")
    assert first is not None
    if mask is not None:
        chosen = binarize_mask(mask, what="--mask")
        inside = inside * get_data(resample_labels(chosen, first), "--mask")
    if not inside.any():
        raise InputError(
            f"{subject}: the masks of its {len(runs)} runs{' and --mask' if mask else ''} have no "
            f"voxel in common; expected some. Look at {runs[0].mask_file}."
        )
    img = nib.Nifti1Image(inside.astype(np.uint8), first.affine)
    img.file_map["image"].filename = img_filename(first)  # so that messages name the file
    return img


def resample_labels(img: SpatialImage, target: SpatialImage) -> SpatialImage:
    """Bring labels to the grid of another image, by nearest-neighbor interpolation."""
    if is_on_grid(img, target.shape, target.affine):
        return img
    from nilearn.image import resample_to_img  # slow to import

    labels_img = nib.Nifti1Image(get_data(img, "labels").astype(np.int32), img.affine)
    return resample_to_img(labels_img, target, interpolation="nearest")


@dataclass(frozen=True)
class AtlasImages:
    """Atlases on the grid of a subject, and the names of their parcels.

    Attributes
    ----------
    images : dict of str to nibabel image
        Atlas name -> labels.
    parcel_names : dict of str to dict
        Atlas name -> parcel label -> parcel name.
    """

    images: dict[str, SpatialImage]
    parcel_names: dict[str, dict[int, str]]


def load_atlases(files: Sequence[Path], mask_img: SpatialImage, template: str) -> AtlasImages:
    """Load atlases of a template, and bring them to the grid of a mask.

    Parameters
    ----------
    files : sequence of Path
        Files with the BIDS entity `atlas`, and `space` or `tpl` that names the template.
    mask_img : nibabel image
        The mask.
    template : str
        Template of the mask, such as MNI152NLin2009cAsym.

    Returns
    -------
    AtlasImages

    Raises
    ------
    InputError
        If an atlas is of no or another template alone, or as `select_atlases`.
    """
    candidates: dict[str, list[Path]] = {}
    for file in files:
        if atlas := parse_entities(file.name).get("atlas"):
            candidates.setdefault(atlas, []).append(file)
    fitting: list[Path] = []
    for atlas, paths in candidates.items():
        of_template = [path for path in paths if name_template(path) == template]
        if not of_template:
            raise InputError(
                f"atlas {atlas} is there in {', '.join(map(name_template, paths))} "
                f"({paths[0].name}), the runs are in {template}; expected the same template. "
                f"Fetch it in {template}, name it atlas-{atlas}_space-{template}_dseg.nii.gz if "
                "it is, or move it elsewhere."
            )
        fitting += of_template
    images, names = {}, {}
    for atlas, path in select_atlases(fitting, mask_img).items():
        img = load_img(path, f"atlas {atlas}", dimensions=3)
        images[atlas], names[atlas] = resample_labels(img, mask_img), load_atlas_lut(path, atlas)
    return AtlasImages(images, names)


def name_template(file: Path) -> str:
    """Name the template of an atlas file: its entity `space` or `tpl`."""
    entities = parse_entities(file.name)
    return entities.get("space") or entities.get("tpl") or "an unknown template"
