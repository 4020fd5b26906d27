"""Sessions are read side by side, whatever happens to a worker, the disk or a file."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial as bind
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter
from mindllm.datasets import parallel
from mindllm.datasets.base import DatasetDescription, DatasetReader
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError

TRIALS, VOXELS = 6, 20


def betas_of(session: int) -> np.ndarray:
    return (np.random.default_rng(session).normal(size=(TRIALS, VOXELS)) + 100 * session).astype(
        np.float32
    )


def read(
    session: int, log: Path, trouble: Path | None = None, shape: tuple[int, int] = (TRIALS, VOXELS)
) -> np.ndarray:
    """A session's betas; the file `trouble` says what happens to session 2 while it is there."""
    kind = trouble.read_text() if trouble and trouble.exists() and session == 2 else ""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        raise MemoryError
    if kind == "damaged":
        raise InputError("session 2 is damaged. Fetch it again.")
    (log / f"read-{session}").touch(exist_ok=False)  # a session is read once, ever
    values = betas_of(session)
    if kind == "NaN":
        values[3, 4] = np.nan
    if kind == "large":
        values[3, 4] = 1e6
    return values[:-1] if kind == "short" else values[:, :-1] if kind == "narrow" else values


def recordings(
    log: Path, people: int = 2, sessions: int = 3, trouble: Path | None = None
) -> list[SubjectRecording]:
    out = []
    for person in range(people):
        numbers = [person * 10 + n for n in range(1, sessions + 1)]
        trials = pd.DataFrame(
            {
                "stimulus": [f"s{n}" for n in range(TRIALS)] * sessions,
                "session": np.repeat(numbers, TRIALS),
            }
        )
        # Sessions come in another order than their rows stand in the table.
        jobs = [
            SessionReader(
                f"sub-{person}, session {n}",
                np.flatnonzero(trials["session"] == n),
                bind(read, n, log, trouble),
            )
            for n in numbers[::-1]
        ]
        ijk = np.argwhere(np.ones((4, 5, 1))).astype(np.int32)
        space = VoxelMasker(
            f"sub-{person}", (4, 5, 1), np.eye(4), ijk, ijk.astype(np.float32), {}, {}
        )
        out.append(
            SubjectRecording(
                space, trials, jobs, np.linspace(0, 1, VOXELS, dtype=np.float32) if person else None
            )
        )
    return out


def prepare(
    out: Path,
    log: Path,
    *,
    n_jobs: int = 1,
    dtype: str = "float32",
    trouble: Path | None = None,
    **options: object,
) -> Store:
    writer = StoreWriter(out, name="n", source="o", license="l", prepared_by="r", options={})
    write_recordings(writer, recordings(log, trouble=trouble), dtype, n_jobs=n_jobs, **options)  # type: ignore[arg-type]
    return writer.finish(pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []}))


def check(store: Store) -> None:
    assert store.subjects == ["sub-0", "sub-1"]
    for person, name in enumerate(store.subjects):
        expected = np.concatenate([betas_of(person * 10 + n) for n in (1, 2, 3)])
        np.testing.assert_array_equal(store.betas(name), expected)
    assert store.ncsnr("sub-0") is None
    np.testing.assert_allclose(store.ncsnr("sub-1"), np.linspace(0, 1, VOXELS), rtol=1e-6)
    assert sorted(p.name for p in store.path.iterdir()) == [
        "conversations.parquet",
        "dataset.json",
        "manifest.json",
        "regions.json",
        "subjects",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_session_comes_to_its_rows(tmp_path: Path, workers: int) -> None:
    check(prepare(tmp_path / "store", tmp_path, n_jobs=workers))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("killed", r"a worker was killed, most likely because memory ran out\. Take fewer workers"),
        ("memory", r"a worker was killed, most likely because memory ran out\. Take fewer workers"),
        ("damaged", "session 2 is damaged"),
        ("NaN", "sub-0, session 2 holds NaN or infinite values in 1 of 20 voxels"),
        ("large", r"sub-0, session 2: betas of up to 1e\+06 do not fit float16"),
        ("short", "sub-0, session 2 has 5 trials; its table promises 6"),
        ("narrow", r"sub-0, session 2 have shape \(6, 19\); expected .* \(trials, 20\)"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_call_goes_on(
    tmp_path: Path, kind: str, message: str
) -> None:
    workers = 2 if kind in ("killed", "damaged") else 1  # one worker is this very process
    trouble = tmp_path / "trouble"
    trouble.write_text(kind)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "store", tmp_path, n_jobs=workers, dtype="float16", trouble=trouble)
    assert not (tmp_path / "store").exists()
    trouble.unlink()
    (tmp_path / "read-2").unlink(missing_ok=True)
    for done in tmp_path.glob(
        "read-*"
    ):  # those under way as the other failed may not have been kept
        if not list((tmp_path / "store.partial").rglob(f"*{done.name}")):
            done.unlink()
    store = prepare(tmp_path / "store", tmp_path, n_jobs=workers, dtype="float16", trouble=trouble)
    np.testing.assert_allclose(store.betas("sub-0")[TRIALS : 2 * TRIALS], betas_of(2), rtol=1e-3)


def test_sessions_that_were_kept_are_not_read_again(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    trouble.write_text("damaged")
    with pytest.raises(InputError, match="session 2 is damaged"):
        prepare(tmp_path / "store", tmp_path, trouble=trouble)
    assert (tmp_path / "read-3").exists(), "the first one in the list was read and kept"
    trouble.unlink()
    check(
        prepare(tmp_path / "store", tmp_path, trouble=trouble)
    )  # reading session 3 twice would be an error


class FileReader(DatasetReader):
    """A reader of subjects with an .npy file per session, named after it."""

    prepared_by = "files"

    def find_subjects(self) -> list[str]:
        return sorted(folder.name for folder in self.root.iterdir())

    def read_trials(self, subject: str) -> pd.DataFrame:
        sessions = [file.stem for file in sorted((self.root / subject).glob("*.npy"))]
        return pd.DataFrame(
            {"stimulus": [f"s{n}" for n in range(TRIALS)] * len(sessions)}
            | {"session": np.repeat(sessions, TRIALS)}
        )

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        ijk = np.argwhere(np.ones((4, 5, 1))).astype(np.int32)
        return VoxelMasker(subject, (4, 5, 1), np.eye(4), ijk, ijk.astype(np.float32), {}, {})

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        files = sorted((self.root / masker.subject).glob("*.npy"))
        return [
            SessionReader(
                f"{masker.subject}, session {file.stem}",
                np.flatnonzero(trials["session"] == file.stem),
                bind(load, file),
                (file,),
            )
            for file in files
        ]

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        return DatasetDescription("files", "none", "CC0", standardized=True)


def load(file: Path) -> np.ndarray:
    if not file.stat().st_size:
        raise InputError(f"{file} is damaged. Fetch it again.")
    (file.with_suffix(".read")).write_text("x")
    return np.asarray(np.load(file))


def interrupted(root: Path, out: Path) -> None:
    """Two subjects; the second session of sub-02 is damaged, so that only parts are read."""
    for number, subject in enumerate(["sub-01", "sub-02"]):
        (root / subject).mkdir(parents=True)
        for session in ("b", "d"):
            np.save(root / subject / f"{session}.npy", betas_of(10 * number + ord(session)))
    (root / "sub-02" / "d.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"d\.npy is damaged"):
        FileReader(root).prepare(out, dtype="float32")
    np.save(root / "sub-02" / "d.npy", betas_of(10 + ord("d")))
    for file in root.rglob("*.read"):
        file.unlink()


def add_session(root: Path) -> None:
    """A session of each subject whose place is before those that were read."""
    for number, subject in enumerate(["sub-01", "sub-02"]):
        np.save(root / subject / "a.npy", betas_of(10 * number + ord("a")))


def change_betas(root: Path) -> None:
    for number, subject in enumerate(["sub-01", "sub-02"]):
        np.save(root / subject / "b.npy", betas_of(100 + number))


def move(root: Path) -> None:
    """Another data set of the same name and layout in its place."""
    for number, subject in enumerate(["sub-01", "sub-02"]):
        for session in ("b", "d"):
            np.save(root / subject / f"{session}.npy", betas_of(200 + number + ord(session)))


@pytest.mark.parametrize("change", [add_session, change_betas, move])
def test_going_on_never_takes_the_parts_of_other_files(
    tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    root, out = tmp_path / "data", tmp_path / "store"
    interrupted(root, out)
    change(root)
    with caplog.at_level(logging.WARNING):
        store = FileReader(root).prepare(out, dtype="float32")
    again = FileReader(root).prepare(tmp_path / "anew", dtype="float32")
    for subject in ("sub-01", "sub-02"):
        np.testing.assert_array_equal(store.betas(subject), again.betas(subject))
        assert store.fingerprint(subject) == again.fingerprint(subject)
    if change is not add_session:
        assert "changed since" in caplog.text


def test_going_on_with_the_same_files_reads_the_rest_alone(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "store"
    interrupted(root, out)
    FileReader(root).prepare(out, dtype="float32")
    assert [file.parent.name + file.stem for file in root.rglob("*.read")] == ["sub-02d"]


SCRIPT = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.datasets.test_parallel import prepare
from mindllm.utils.errors import InputError
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
here = Path(sys.argv[1])
try:
    prepare(here / "store", here / sys.argv[4], n_jobs=int(sys.argv[5]))
except InputError as error:
    sys.exit(f"told: {error}")
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_told_and_the_next_call_completes(tmp_path: Path, workers: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    here = str(Path(__file__).parents[2])
    full = subprocess.run(
        [*command, "300", here, "first", workers], capture_output=True, text=True, check=False
    )
    assert full.returncode == 1, full.stderr
    assert "told: no room to write" in full.stderr
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "store.partial").rglob("*.npy")), (
        "nothing half-written passes for a session"
    )
    subprocess.run(
        [*command, "0", here, "second", workers], capture_output=True, text=True, check=True
    )
    check(Store(tmp_path / "store"))


def test_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MALLOC_TRIM_THRESHOLD_",
    ):
        monkeypatch.setenv(
            name, "1"
        )  # a local cluster sets these in this process too; they are set back at the end
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        check(prepare(tmp_path / "store", tmp_path, dask_scheduler=cluster.scheduler_address))


def test_there_are_no_more_workers_than_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, pool = [], joblib.Parallel

    def count(n_jobs: int, **options: object) -> joblib.Parallel:
        numbers.append(n_jobs)
        return pool(n_jobs=1, **options)

    monkeypatch.setattr(parallel.joblib, "Parallel", count)
    task = parallel.ReadTask(
        SessionReader("one", np.arange(TRIALS), bind(betas_of, 1)),
        tmp_path / "0.npy",
        VOXELS,
        "float32",
        "sub-01",
    )
    assert list(parallel.run_tasks([task], 400, None)) == [task]
    assert list(parallel.run_tasks([], 400, None)) == []
    assert numbers == [1, 1]


def test_no_cluster_there(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match=r"no dask scheduler at tcp://127\.0\.0\.1:9"):
        prepare(tmp_path / "store", tmp_path, dask_scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="no dask scheduler at nonsense"):
        prepare(tmp_path / "store", tmp_path, dask_scheduler="nonsense")
