"""Uploaded scans: read in another process, kept for their user alone, removed after a time."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from mindllm.fmri.masker import VoxelMasker
from mindllm.serve.api_errors import APIError, not_found
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.scan_reader import ScanLimits, load_voxels
from mindllm.utils.errors import InputError

READERS = 2  # scans that are read at once
GRACE_SECONDS = 5  # of a reader beyond its limit, which starts slowly
RETRY_SECONDS = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scan:
    """An uploaded scan.

    Parameters
    ----------
    id, user : str
        What it is asked for by, and who may.
    folder : Path
        With betas.npy and voxels.npz.
    created, expires : float
        Seconds since 1970.
    warnings : tuple of str
        Why the model may decode it badly.
    """

    id: str
    user: str
    folder: Path
    created: float
    expires: float
    warnings: tuple[str, ...] = ()

    @cached_property
    def masker(self) -> VoxelMasker:
        """Its voxels."""
        return load_voxels(self.folder / "voxels.npz")

    @cached_property
    def betas(self) -> np.ndarray:
        """Standardized betas (n_volumes, n_voxels), memory-mapped."""
        return np.load(self.folder / "betas.npy", mmap_mode="r", allow_pickle=False)

    @property
    def n_bytes(self) -> int:
        """Size of its betas."""
        return int(self.betas.nbytes)


class ScanCollection:
    """All uploaded scans; a user sees those of the same token alone.

    Parameters
    ----------
    config : ServeConfig
    check_voxels : callable
        Called with the voxels of a scan; it returns warnings, or raises InputError.
    parcel_names : mapping from str to mapping
        Parcels that the model knows by number alone.
    on_remove : callable
        Called with the id of a scan that is removed.
    """

    def __init__(
        self,
        config: ServeConfig,
        check_voxels: Callable[[VoxelMasker], tuple[str, ...]],
        parcel_names: Mapping[str, Mapping[str, str]],
        on_remove: Callable[[str], None],
    ) -> None:
        self.config, self.check_voxels, self.on_remove = config, check_voxels, on_remove
        self.parcel_names = parcel_names
        self.folder = Path(mkdtemp(prefix="mindllm-serve-"))  # for this user of the machine alone
        self._scans: dict[str, Scan] = {}
        self._reserved: dict[str, int] = {}
        self._readers = asyncio.Semaphore(READERS)

    def __len__(self) -> int:
        return len(self._scans)

    def list(self, user: str) -> list[Scan]:
        """Scans of a user, the oldest first."""
        self.remove_expired()
        return [scan for scan in self._scans.values() if scan.user == user]

    def get(self, scan_id: str, user: str, param: str | None = None) -> Scan:
        """A scan of a user.

        Raises
        ------
        APIError
            If there is none of this id, or it is another user's.
        """
        self.remove_expired()
        scan = self._scans.get(scan_id)
        if scan is None or scan.user != user:
            raise not_found(
                "there is no such scan: it was never sent, has expired, or is another user's.",
                "scan_not_found",
                param,
            )
        return scan

    def remove(self, scan: Scan) -> None:
        """Remove a scan and its files."""
        self._scans.pop(scan.id, None)
        self.on_remove(scan.id)
        shutil.rmtree(scan.folder, ignore_errors=True)

    def remove_expired(self) -> None:
        """Remove scans whose time is over."""
        now = time.time()
        for scan in [scan for scan in self._scans.values() if scan.expires <= now]:
            self.remove(scan)

    def close(self) -> None:
        """Remove all scans."""
        for scan in [*self._scans.values()]:
            self.remove(scan)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def reserve(self, user: str) -> Iterator[Path]:
        """Yield a folder for a user's next scan; removed if the scan is not kept.

        Raises
        ------
        APIError
            If the user keeps as many scans as are allowed, or the server does.
        """
        count = len(self.list(user)) + self._reserved.get(user, 0)
        if count >= self.config.max_scans:
            raise APIError(
                429,
                f"{count} scans are kept, the most that are allowed. Remove one with "
                "DELETE /v1/scans/{id}.",
                "too_many_scans",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        folder = Path(mkdtemp(dir=self.folder))
        self._reserved[user] = self._reserved.get(user, 0) + 1
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._reserved[user] -= 1
            if not self._reserved[user]:
                del self._reserved[user]

    async def read(self, folder: Path, user: str, standardized: bool) -> Scan:
        """Read the files of a folder in another process, and keep what it made of them.

        Parameters
        ----------
        folder : Path
            With `volume`, `mask` and `atlases`, as they were sent.
        user : str
        standardized : bool
            Whether the betas came standardized.

        Returns
        -------
        Scan

        Raises
        ------
        APIError
            If the files cannot be read within the limits, or are no scan that the model reads.
        """
        config = self.config
        limits = ScanLimits(
            image_bytes=config.max_image_bytes,
            grid_length=config.max_grid_length,
            volumes=config.max_volumes,
            voxels=config.max_voxels,
            memory_bytes=config.read_memory_bytes,
            seconds=config.read_seconds,
            standardized=standardized,
            parcel_names=self.parcel_names,
        )
        limits.write(folder / "limits.json")
        async with self._readers:
            await run_reader(folder, config.read_seconds + GRACE_SECONDS)
        refused = folder / "refused.json"
        if refused.exists():
            message = json.loads(refused.read_text(encoding="utf-8"))["message"]
            raise APIError(400, message, "invalid_scan")
        if not (folder / "voxels.npz").exists():
            raise unreadable()
        for path in folder.iterdir():
            if path.name not in ("betas.npy", "voxels.npz"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return await asyncio.to_thread(self._keep, folder, user)

    def _keep(self, folder: Path, user: str) -> Scan:
        now = time.time()
        scan = Scan(secrets.token_urlsafe(18), user, folder, now, now + self.config.scan_seconds)
        try:
            warnings = self.check_voxels(scan.masker)
        except InputError as error:
            raise APIError(400, str(error), "invalid_scan") from None
        total = sum(other.n_bytes for other in self._scans.values()) + scan.n_bytes
        if total > self.config.max_scan_bytes:
            raise APIError(
                429,
                "the server keeps as many scans as it has room for. Try again later.",
                "no_room_for_scan",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        scan = Scan(scan.id, user, folder, scan.created, scan.expires, warnings)
        self._scans[scan.id] = scan
        return scan


def unreadable() -> APIError:
    """A scan whose reading ended without a reason, such as for want of time."""
    return APIError(
        400, "the scan could not be read within the limits of time and memory.", "invalid_scan"
    )


async def run_reader(folder: Path, seconds: float) -> None:
    """Run `mindllm.serve.scan_reader` on a folder; end it if it takes too long."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MINDLLM_TOKEN")  # which the reader has no use for
    } | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mindllm.serve.scan_reader",
        str(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        raise unreadable() from None
    finally:
        if process.returncode is None:  # it took too long, or the client has gone
            process.kill()
            await process.wait()
