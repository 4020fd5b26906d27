"""Routes of the store's subjects and of uploaded scans."""

import re
import shutil
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from mindllm.fmri.masker import VoxelMasker
from mindllm.serve.api_errors import APIError
from mindllm.serve.scans import Scan
from mindllm.serve.schemas import (
    Deleted,
    ScanInfo,
    ScanList,
    SubjectInfo,
    SubjectList,
    TrialList,
)
from mindllm.serve.services import ServicesOf, UserOf
from mindllm.serve.store_subjects import describe_regions

router = APIRouter(prefix="/v1", tags=["scans"])
NIFTI_TYPE = "application/octet-stream"
NIFTI = {
    200: {
        "description": "A NIfTI image (.nii)",
        "content": {NIFTI_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
ATLAS_FILE = re.compile(r"(?:.*_)?atlas-([A-Za-z0-9]{1,64})_(?:.*_)?dseg\.(nii|nii\.gz|tsv)")


@router.get("/subjects", summary="Subjects of the store")
async def list_subjects(services: ServicesOf) -> SubjectList:
    """List the subjects of the store; without one the list is empty."""
    subjects = services.subjects
    infos = await run_in_threadpool(lambda: [subjects.info(name) for name in subjects.names()])
    return SubjectList(data=infos)


@router.get("/subjects/{subject}", summary="A subject")
async def get_subject(subject: str, services: ServicesOf) -> SubjectInfo:
    """Describe a subject: voxels, trials, and the parcels in which it has voxels."""
    return await run_in_threadpool(services.subjects.info, subject)


@router.get("/subjects/{subject}/trials", summary="Trials of a subject")
async def list_trials(
    subject: str,
    services: ServicesOf,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    split: Annotated[str | None, Query(pattern="^(train|val|test)$")] = None,
) -> TrialList:
    """List trials. What was shown stays hidden unless the server was started so as to tell it."""
    trials, total = await run_in_threadpool(services.subjects.trials, subject, offset, limit, split)
    return TrialList(data=trials, total=total)


@router.get(
    "/subjects/{subject}/mask", summary="Voxels of a subject", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_subject_mask(subject: str, services: ServicesOf) -> Response:
    """The voxels that the model reads, as an image of zeros and ones on the subject's grid."""
    masker = await run_in_threadpool(services.subjects.masker, subject)
    return await run_in_threadpool(mask_response, masker, f"{subject}_mask.nii")


@router.post("/scans", summary="Send a scan", status_code=201)
async def create_scan(
    services: ServicesOf,
    user: UserOf,
    volume: UploadFile,
    mask: UploadFile,
    atlases: Annotated[list[UploadFile] | None, Form()] = None,
    standardized: Annotated[bool, Form()] = False,
) -> ScanInfo:
    """Send a scan and the mask of its voxels, as NIfTI files in MNI space on one grid.

    - `volume`: a 3-D or 4-D image of betas, one volume per trial. They are standardized with all
      volumes, of which 8 or more are needed, unless `standardized` is true.
    - `mask`: a 3-D image, 0 outside and 1 inside.
    - `atlases`: label images on the same grid, named `atlas-<NAME>_dseg.nii.gz`, each with its
      lookup table `atlas-<NAME>_dseg.tsv` (columns `index` and `name`).

    Only who sends a scan can ask about it. It is removed after a time, or with DELETE.
    """
    with services.scans.reserve(user) as folder:
        files = {"volume": volume, "mask": mask, **name_atlases(atlases or [])}
        for name, file in files.items():
            await run_in_threadpool(save_upload, file, folder / name)
        scan = await services.scans.read(folder, user, standardized)
    services.monitoring.scans.set(len(services.scans))
    return describe_scan(scan)


@router.get("/scans", summary="Your scans")
async def list_scans(services: ServicesOf, user: UserOf) -> ScanList:
    """List the scans that were sent with the token of this request."""
    return ScanList(data=[describe_scan(scan) for scan in services.scans.list(user)])


@router.get("/scans/{scan}", summary="A scan")
async def get_scan(scan: str, services: ServicesOf, user: UserOf) -> ScanInfo:
    """Describe a scan."""
    return describe_scan(services.scans.get(scan, user))


@router.get(
    "/scans/{scan}/mask", summary="Voxels of a scan", response_class=Response,
    responses=NIFTI,  # type: ignore[arg-type]
)  # fmt: skip
async def get_scan_mask(scan: str, services: ServicesOf, user: UserOf) -> Response:
    """The voxels that the model reads, as an image of zeros and ones on the scan's grid."""
    masker = services.scans.get(scan, user).masker
    return await run_in_threadpool(mask_response, masker, "scan_mask.nii")


@router.delete("/scans/{scan}", summary="Remove a scan")
async def delete_scan(scan: str, services: ServicesOf, user: UserOf) -> Deleted:
    """Remove a scan and all that was made of it."""
    services.scans.remove(services.scans.get(scan, user))
    services.monitoring.scans.set(len(services.scans))
    return Deleted(id=scan)


def name_atlases(files: list[UploadFile]) -> dict[str, UploadFile]:
    """Paths of atlases and lookup tables in the folder of a scan.

    Raises
    ------
    APIError
        If a file is not named as BIDS has it, or two have one name.
    """
    paths: dict[str, UploadFile] = {}
    for file in files:
        match = ATLAS_FILE.fullmatch(file.filename or "")
        path = match and f"atlases/atlas-{match[1]}_dseg.{match[2][:3]}"
        if path is None or path in paths:
            raise APIError(
                400,
                "an atlas has an unexpected name; expected one file atlas-<NAME>_dseg.nii.gz and "
                "one atlas-<NAME>_dseg.tsv for each atlas.",
                "invalid_atlas_name",
                "atlases",
            )
        paths[path] = file
    return paths


def save_upload(file: UploadFile, path: Path) -> None:
    """Copy an uploaded file to a folder."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target, 2**20)


def describe_scan(scan: Scan) -> ScanInfo:
    """Describe a scan."""
    return ScanInfo(
        id=scan.id,
        created=int(scan.created),
        expires=int(scan.expires),
        n_volumes=len(scan.betas),
        n_voxels=len(scan.masker),
        shape=list(scan.masker.shape),
        regions=describe_regions(scan.masker),
        warnings=list(scan.warnings),
    )


def mask_response(masker: VoxelMasker, name: str) -> Response:
    """Voxels as an image."""
    return nifti_response(masker.inverse_transform(np.ones(len(masker), np.uint8)), name)


def nifti_response(img: nib.Nifti1Image, name: str) -> Response:
    """An image as a file."""
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "private, no-store",
    }
    return Response(img.to_bytes(), media_type=NIFTI_TYPE, headers=headers)
