"""Manifests: size and SHA-256 checksum of every file of a store, a model or a report.

A manifest is written with its folder and checked when the folder is opened, so that a file that
was damaged, changed or left from an earlier run is not taken for one of the others.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, describe_read_errors, read_json, write_json
from mindllm.utils.validation import validate_content

MANIFEST = "manifest.json"
LARGE_BYTES = 32 * 2**20
UPDATE = "If you changed it on purpose, `mindllm verify {folder} --update` accepts it."


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 checksum of a file.

    Examples
    --------
    >>> FileEntry(size=0, sha256=hashlib.sha256(b"").hexdigest()).size
    0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(size=path.stat().st_size, sha256=digest)


class ManifestContent(BaseModel):
    """What manifest.json holds.

    Attributes
    ----------
    files : dict of str to FileEntry
        By path within the folder.
    replaced : dict of str to FileEntry
        Earlier versions of files that are being replaced, which are valid until that is done.
    """

    model_config = ConfigDict(extra="forbid")

    files: dict[str, FileEntry]
    replaced: dict[str, FileEntry] = {}


CONTENT = TypeAdapter(ManifestContent)


@dataclass(frozen=True)
class Manifest:
    """The files that belong to a folder, as they were written.

    Parameters
    ----------
    folder : Path
    content : ManifestContent
    what : str
        What the folder is, for messages ("a store").
    remedy : str
        What to do where a file differs, for messages.
    owner : Path, optional
        Folder of the store, model or report that `folder` is a part of, for messages.
    """

    folder: Path
    content: ManifestContent
    what: str = "a folder with a manifest"
    remedy: str = "Make it anew."
    owner: Path | None = None

    @classmethod
    def create(cls, folder: Path, names: Iterable[str] | None = None) -> Self:
        """Measure the files of a folder and write its manifest.

        Parameters
        ----------
        folder : Path
        names : iterable of str, optional
            Paths within the folder. Default: all files; of a subfolder that has a manifest of its
            own that manifest alone.

        Returns
        -------
        Manifest
        """
        chosen = list_files(folder) if names is None else names
        files = {name: FileEntry.of(folder / name) for name in sorted(chosen)}
        manifest = cls(folder, ManifestContent(files=files))
        manifest.write()
        return manifest

    @classmethod
    def read(cls, folder: Path, what: str, remedy: str, owner: Path | None = None) -> Self:
        """Read the manifest of a folder; what it says of the files is not checked yet.

        Parameters
        ----------
        folder : Path
        what, remedy, owner
            For messages.

        Returns
        -------
        Manifest

        Raises
        ------
        InputError
            If it is missing, damaged, or names files outside the folder.
        """
        raw: Any = read_json(folder / MANIFEST, what)
        content = validate_content(CONTENT, raw, str(folder / MANIFEST), remedy)
        for name in content.files:
            if not is_inside(folder, name):
                raise InputError(
                    f"{folder / MANIFEST} names {name!r}, which is not in {folder}; expected paths "
                    f"within the folder. {remedy}"
                )
        return cls(folder, content, what, remedy, owner)

    def write(self) -> None:
        """Write manifest.json, completely or not at all."""
        write_json(self.folder / MANIFEST, self.content.model_dump(exclude_defaults=True))

    def check(self, name: str, full: bool = False) -> Path:
        """Check one file: its size, and its checksum unless it is a large file of arrays.

        Parameters
        ----------
        name : str
            Path within the folder.
        full : bool
            Compute the checksum of any file. Otherwise that of a .npy file of more than 32 MiB,
            which is not read as a whole either, is left out.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        InputError
            If the file is not listed, is missing, or is not the one that was written.
        """
        path = self.folder / name
        expected = [
            part[name] for part in (self.content.files, self.content.replaced) if name in part
        ]
        if not expected:
            raise InputError(
                f"{path} does not belong to {self.what}: {self.folder / MANIFEST} does not list "
                f"it. {self.remedy}"
            )
        if not path.exists():
            raise InputError(f"{path} is missing; {MANIFEST} lists it. {self.remedy}")
        size = path.stat().st_size
        sizes = [entry.size for entry in expected]
        if size not in sizes:
            self._refuse(path, f"it has {size} bytes, {' or '.join(map(str, sizes))} were written")
        if full or not (path.suffix == ".npy" and size > LARGE_BYTES):
            with describe_read_errors(path, self.remedy):
                entry = FileEntry.of(path)
            if entry not in expected:
                self._refuse(path, f"its checksum is {entry.sha256[:12]}..., another was written")
        return path

    def check_all(self, full: bool = False) -> None:
        """Check every listed file.

        Parameters
        ----------
        full : bool
            Compute the checksum of any file; see `check`.

        Raises
        ------
        InputError
            If a file is missing or is not the one that was written.
        """
        for name in self.content.files:
            self.check(name, full)

    def list_changes(self, advance: Callable[[int], None]) -> list[str]:
        """Check every listed file in full.

        Parameters
        ----------
        advance : callable
            Called with the number of bytes after each file.

        Returns
        -------
        list of str
            A sentence for each file that is missing or is not the one that was written.
        """
        changes = []
        for name, entry in self.content.files.items():
            try:
                self.check(name, full=True)
            except InputError as error:
                changes.append(str(error))
            advance(entry.size)
        return changes

    def update(self, advance: Callable[[int], None] | None = None) -> None:
        """Measure the listed files anew and write their checksums.

        Parameters
        ----------
        advance : callable, optional
            Called with the number of bytes after each file.

        Raises
        ------
        InputError
            If a listed file is missing.
        """
        for name in self.content.files:
            with describe_read_errors(self.folder / name, self.remedy):
                entry = FileEntry.of(self.folder / name)
            self.content.files[name] = entry
            if advance:
                advance(entry.size)
        self.content.replaced.clear()
        self.write()

    def _refuse(self, path: Path, difference: str) -> None:
        update = UPDATE.format(folder=self.owner or self.folder)
        raise InputError(
            f"{path} is not the file that was written: {difference}. {self.remedy} {update}"
        )

    @contextmanager
    def replace_file(self, name: str) -> Iterator[Path]:
        """Replace a listed file, or add one; at any moment the old or the new one is valid.

        Parameters
        ----------
        name : str
            Path within the folder.

        Yields
        ------
        Path
            Temporary file to write to.
        """
        files, replaced = self.content.files, self.content.replaced
        if name in files:
            replaced[name] = FileEntry.of(self.check(name, full=True))
        with atomic_write(self.folder / name) as temporary:
            yield temporary
            files[name] = FileEntry.of(temporary)
            self.write()
        replaced.pop(name, None)
        self.write()


def find_manifests(folder: Path) -> list[Manifest]:
    """Read the manifests in a folder and below it, the innermost first.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Manifest

    Raises
    ------
    InputError
        If there is no such folder, or no manifest in it.
    """
    files = sorted(folder.rglob(MANIFEST), key=lambda file: (-len(file.parts), file))
    if not files:
        raise InputError(
            f"{folder} holds no {MANIFEST}: expected a store, a model or a report of this version "
            "of mindllm, or a folder with some."
        )
    what = "a folder that mindllm has written"
    return [Manifest.read(file.parent, what, "Make it anew.", owner=folder) for file in files]


def list_files(folder: Path) -> list[str]:
    """List the files of a folder by their paths within it; see `Manifest.create`."""
    names = []
    for entry in sorted(folder.iterdir()):
        if entry.name == MANIFEST:
            continue
        if not entry.is_dir():
            names.append(entry.name)
        elif (entry / MANIFEST).exists():
            names.append(f"{entry.name}/{MANIFEST}")
        else:
            names += [f"{entry.name}/{name}" for name in list_files(entry)]
    return names


def is_inside(folder: Path, name: str) -> bool:
    """Return whether a path within a folder stays there."""
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
