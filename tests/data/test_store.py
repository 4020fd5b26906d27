"""The store: what is written is read back, statistics see training trials, nothing is half-made."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm.data.splits import split_stimuli
from mindllm.data.store import Store
from mindllm.data.store_writer import (
    StoreWriter,
    conversations_from_captions,
    write_store,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, partial_path
from tests.conftest import TEXTS, make_space, update_manifests

SPACE = make_space(voxels=30)
TALK = conversations_from_captions(
    pd.DataFrame({"stimulus": ["a", "b"], "caption": ["a dog", "a cat"]})
)


def table(count: int = 20, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"stimulus": ["a", "b"] * (count // 2), **columns})


def values(count: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 5, (count, len(SPACE))).astype(np.float32)


def make(path: Path, betas: np.ndarray, trials: pd.DataFrame, **options: Any) -> Store:
    return write_store(path, [(SPACE, betas, trials)], TALK, name="test", **options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: str) -> None:
    betas, trials = values(), table(session=["1", "2"] * 10, note=range(20))
    make(tmp_path / "store", betas, trials, source="here", license="MIT", dtype=dtype)
    store = Store(tmp_path / "store")
    assert not partial_path(store.path).exists()
    assert store.subjects == ["sub-01"]
    assert (store.meta["name"], store.meta["source"], store.meta["license"]) == (
        "test",
        "here",
        "MIT",
    )
    np.testing.assert_array_equal(store.betas("sub-01"), betas.astype(dtype))
    assert isinstance(store.betas("sub-01"), np.memmap)
    read = store.masker("sub-01")
    assert (read.subject, read.shape) == (SPACE.subject, SPACE.shape)
    for field in ("affine", "voxel_indices", "coords_mm"):
        np.testing.assert_allclose(getattr(read, field), getattr(SPACE, field), rtol=1e-6)
    assert read.parcel_names == SPACE.parcel_names
    for p in SPACE.parcel_labels:
        np.testing.assert_array_equal(read.parcel_labels[p], SPACE.parcel_labels[p])
    found = store.trials("sub-01")
    assert found["stimulus"].tolist() == trials["stimulus"].tolist()
    assert found["note"].tolist() == trials["note"].tolist()
    assert (found["run"] == "1").all()
    assert (found["split"] == "train").all()
    assert found["repetition"].tolist() == [i // 2 for i in range(20)]
    assert store.conversations["answers"].tolist() == [["a dog"], ["a cat"]]
    assert store.conversations["turns"][0] == TALK["turns"][0]


def test_all_captions_of_a_stimulus_count_as_right() -> None:
    talk = conversations_from_captions(
        pd.DataFrame({"stimulus": [1, 1, 2, 1], "caption": ["x", "y", "z", "x"]}),
        source="coco",
        question="What?",
    )
    assert talk["answers"].tolist() == [["x", "y"], ["y", "x"], ["z"]]
    assert talk["stimulus"].tolist() == ["1", "1", "2"]
    assert set(talk["source"]) == {"coco"}
    assert all("What?" in turns[0]["content"] for turns in talk["turns"])


def test_statistics_come_from_training_trials_alone(tmp_path: Path) -> None:
    trials = pd.DataFrame(
        {"stimulus": ["a"] * 12 + ["b"] * 8, "split": ["train"] * 12 + ["test"] * 8}
    )
    betas = values()
    changed = betas.copy()
    changed[12:] = 1e3 * values(8, seed=1)
    one, two = make(tmp_path / "one", betas, trials), make(tmp_path / "two", changed, trials)
    np.testing.assert_array_equal(one.scaler("sub-01").mean, two.scaler("sub-01").mean)
    np.testing.assert_array_equal(one.scaler("sub-01").std, two.scaler("sub-01").std)
    assert one.scaler("sub-01").fitted_on == "training trials"
    seen = one.betas("sub-01", range(12), standardize=True)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(0), 1, atol=1e-4)
    np.testing.assert_array_equal(
        one.betas("sub-01", standardize=True)[[15, 3]],
        one.betas("sub-01", [15, 3], standardize=True),
    )


def test_statistics_are_per_session_and_pooled_where_a_session_is_short(tmp_path: Path) -> None:
    sessions = ["1"] * 10 + ["2"] * 10 + ["3"] * 4
    betas = values(24)
    betas[10:20, ::2] += 30
    store = make(tmp_path / "store", betas, table(24, session=sessions))
    z = store.betas("sub-01", standardize=True)
    for part in (slice(0, 10), slice(10, 20)):
        np.testing.assert_allclose(z[part].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(z[part].std(0), 1, atol=1e-4)
    pooled = make(tmp_path / "pooled", betas, table(24)).betas("sub-01", standardize=True)
    np.testing.assert_allclose(z[20:], pooled[20:], atol=1e-4)


def test_a_person_without_training_trials_says_what_normalized_it(tmp_path: Path) -> None:
    store = make(tmp_path / "store", values(), table(split="test"))
    assert "no training trials" in store.scaler("sub-01").fitted_on
    np.testing.assert_allclose(store.betas("sub-01", standardize=True).std(0), 1, atol=1e-4)
    with pytest.raises(
        InputError, match="4 trials are too few to standardize voxels with; at least 8"
    ):
        make(tmp_path / "short", values(4), table(4))


def test_voxels_that_never_vary_become_zero(tmp_path: Path) -> None:
    betas = values()
    betas[:, 3], betas[:, 7] = 0, 250
    z = make(tmp_path / "store", betas, table()).betas("sub-01", standardize=True)
    assert np.isfinite(z).all()
    assert (z[:, [3, 7]] == 0).all()
    assert (z.std(0) > 0.9).sum() == len(SPACE) - 2


BAD = {
    "no stimulus": (
        values(),
        table().rename(columns={"stimulus": "image"}),
        r"needs a column `stimulus`.*'image'",
    ),
    "a gap": (values(), table().replace("b", None), "needs a column `stimulus` without gaps"),
    "split": (
        values(),
        table(split=["train", "dev"] * 10),
        r"unknown split \['dev'\]; expected train, val, test",
    ),
    "split gap": (
        values(),
        table(split=["train", None] * 10),
        "sub-01: unknown split .*expected train, val, test",
    ),
    "two splits": (
        values(),
        table(split=["train"] * 10 + ["test"] * 10),
        r"2 stimuli stand in two splits, first 'a'",
    ),
    "width": (values()[:, 1:], table(), r"shape \(20, 29\); expected \(30,\) or \(trials, 30\)"),
    "rows": (values(18), table(), "18 rows of betas, but 20 rows of trials"),
    "NaN": (
        np.where(np.arange(30) == 4, np.nan, values()),
        table(),
        r"NaN or infinite values in 1 of 30 voxels",
    ),
    "infinity": (
        np.where(np.arange(30) == 4, np.inf, values()),
        table(),
        r"NaN or infinite values in 1 of 30 voxels",
    ),
    "overflow": (1e4 * values(), table(), r"do not fit float16; use --dtype float32"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arrays_and_tables(tmp_path: Path, kind: str) -> None:
    betas, trials, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        make(tmp_path / "store", betas, trials, dtype="float16")
    assert not (tmp_path / "store").exists()
    # What went wrong leaves nothing behind that a right call would take for its own.
    np.testing.assert_array_equal(
        make(tmp_path / "store", values(), table()).betas("sub-01"), values()
    )


def test_a_stimulus_in_two_splits_across_subjects(tmp_path: Path) -> None:
    people = [
        (make_space(name, 30), values(), table(split=split))
        for name, split in (("s1", "train"), ("s2", "test"))
    ]
    with pytest.raises(InputError, match=r"'a': train \(s1\), test \(s2\)"):
        write_store(tmp_path / "store", people, TALK, name="test")


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"already exists. Choose another name"):
        make(tmp_path / "store", values(), table())
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["thesis.txt"]


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "."):
        with pytest.raises(InputError, match=r"is not a store .*it has no dataset.json"):
            Store(tmp_path / name)
    with pytest.raises(InputError, match=r"nowhere is not a store .*: there is no such folder"):
        Store(tmp_path / "nowhere")
    store = make(tmp_path / "store", values(), table())
    with pytest.raises(InputError, match=r"has no subject sub-99; it holds sub-01"):
        store.select_subjects(["sub-01", "sub-99"])
    (store.path / "dataset.json").write_text(json.dumps(store.meta | {"format": 4}))
    with pytest.raises(
        InputError, match=r"store format 4; this version of mindllm reads 3. Upgrade"
    ):
        Store(store.path)
    (store.path / "dataset.json").write_text('{"format": ')
    with pytest.raises(InputError, match="damaged and cannot be read as JSON"):
        Store(store.path)


def read_all(store: Store) -> tuple[Any, ...]:
    return store.conversations, store.betas("sub-01", standardize=True), store.masker("sub-01")


@pytest.mark.parametrize(
    "name",
    [
        "betas.npy",
        "trials.parquet",
        "voxels.parquet",
        "statistics.npz",
        "mask.nii.gz",
        "conversations.parquet",
    ],
)
@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_damaged_files_are_named(tmp_path: Path, name: str, harm: str) -> None:
    path = make(tmp_path / "store", values(), table()).path
    file = next(path.rglob(name))
    if harm == "missing":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(
        InputError,
        match=rf"{name} is (missing|not the file that was written).* Prepare the store anew",
    ):
        read_all(Store(path))


def test_betas_of_another_shape_than_promised(tmp_path: Path) -> None:
    store = make(tmp_path / "store", values(), table())
    np.save(store.path / "subjects" / "sub-01" / "betas.npy", values(18))
    update_manifests(store.path)
    store = Store(store.path)
    with pytest.raises(
        InputError,
        match=r"has shape \(18, 30\); trials.parquet and voxels.parquet promise \(20, 30\)",
    ):
        store.betas("sub-01", standardize=True)


@given(
    count=st.integers(4, 60),
    shares=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    seed=st.integers(0, 99),
    repeats=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_stimulus_crosses_a_split(
    count: int, shares: tuple[float, float], seed: int, repeats: int
) -> None:
    stimuli = [f"s{i}" for i in range(count)] * repeats
    asked = dict(zip(("val", "test"), shares, strict=True))
    counts = [round(share * count) for share in shares]
    if sum(counts) == count or any(
        share and not number for share, number in zip(shares, counts, strict=True)
    ):
        with pytest.raises(
            InputError, match=r"empty; take a larger share|train empty; take smaller shares"
        ):
            split_stimuli(stimuli, asked, seed)
        return
    found = split_stimuli(stimuli, asked, seed)
    assert set(found) == set(stimuli)  # one split each: it is a mapping
    assert found == split_stimuli(stimuli[::-1], asked, seed)
    sizes = Counter(found.values())
    assert [sizes["val"], sizes["test"], sizes["train"]] == [*counts, count - sum(counts)]
    assert sizes["train"] > 0


@pytest.mark.parametrize(
    "shares", [{"val": 0.6, "test": 0.4}, {"dev": 0.1}, {"val": -0.2}, {"val": float("nan")}]
)
def test_bad_shares(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected shares of val and test that sum to less than 1"):
        split_stimuli(TEXTS, shares)


# Interruptions. The script prepares two people slowly, or as fast as it can.
SCRIPT = """
import resource, sys, time
import numpy as np, pandas as pd
from mindllm.fmri.masker import VoxelMasker
from mindllm.data.store_writer import StoreWriter, conversations_from_captions
from mindllm.utils.errors import InputError

path, wait, limit = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writer = StoreWriter(path, name="n", source="o", license="l", prepared_by="r", options={})

def pieces(seed):
    rng = np.random.default_rng(seed)
    for start in range(0, 40, 8):
        yield np.arange(start, start + 8), rng.normal(size=(8, 900)).astype("float32")
        time.sleep(wait)

try:
    for seed, name in enumerate(["sub-01", "sub-02"]):
        if not writer.has_subject(name, name):
            print("writing", name, flush=True)
            ijk = np.argwhere(np.ones((9, 10, 10))).astype("int32")
            space = VoxelMasker(name, (9, 10, 10), np.eye(4), ijk, ijk.astype("float32"), {}, {})
            trials = pd.DataFrame({"stimulus": ["a", "b"] * 20})
            writer.write_subject(space, trials, pieces(seed), fingerprint=name)
    captions = pd.DataFrame({"stimulus": ["a"], "caption": ["a dog"]})
    writer.finish(conversations_from_captions(captions))
except InputError as error:
    sys.exit(f"told: {error}")
"""


def script(path: Path, wait: float = 0, limit: int = 0) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(path), str(wait), str(limit)]


def content(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_killed_preparation_leaves_no_store_and_the_next_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        script(tmp_path / "killed", wait=0.1), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [
            "writing sub-01\n",
            "writing sub-02\n",
        ]
        process.kill()
    assert not (tmp_path / "killed").exists()
    with pytest.raises(
        InputError, match=r"not prepared to its end. Run the same `mindllm prepare` command again"
    ):
        Store(tmp_path / "killed")
    again = subprocess.run(script(tmp_path / "killed"), capture_output=True, text=True, check=True)
    assert again.stdout == "writing sub-02\n"
    subprocess.run(script(tmp_path / "whole"), capture_output=True, check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not partial_path(tmp_path / "killed").exists()


@pytest.mark.parametrize("kind", ["file size limit", "small disk"])
def test_a_full_disk_is_told_and_leaves_no_store(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = script(disk / "store", limit=60_000 if kind == "file size limit" else 0)
    if kind == "small disk":
        mount = (
            f'mount -t tmpfs -o size=100k tmpfs {disk} && "$@"; '
            f"code=$?; ls -A {disk} >&2; exit $code"
        )
        command = ["unshare", "-rm", "sh", "-c", mount, "-", *command]
        if (
            not shutil.which("unshare")
            or subprocess.run(["unshare", "-rm", "true"], check=False).returncode
        ):
            pytest.skip(
                "a small disk is made with unshare and mount, which this machine does not permit"
            )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"told: no room to write {disk / 'store'}" in done.stderr
    assert "nothing half-written" in done.stderr
    left = done.stderr.split() if kind == "small disk" else [p.name for p in disk.iterdir()]
    assert "store" not in left
    assert "store.partial" in left


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store", Path("/proc/nowhere/store")):
        with pytest.raises(InputError, match=r"cannot write .* Choose a folder you may write to"):
            StoreWriter(place, name="n", source="o", license="l", prepared_by="r", options={})


def test_a_file_may_be_read_by_whom_any_other_may(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with atomic_write(tmp_path / "file") as path:
        path.write_text("x")
        path.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_subjects_used_last_are_held(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindllm.data.store.MAX_MASKER_BYTES", 1)
    monkeypatch.setattr("mindllm.data.store.MAX_SCALER_BYTES", 1)
    store = Store(tiny_store.path)
    for subject in store.subjects:
        masker, scaler = store.masker(subject), store.scaler(subject)
        assert store.masker(subject) is masker
        assert store.scaler(subject) is scaler
    assert store._maskers.keys() == store._scalers.keys() == ["sub-03"]
    expected = tiny_store.betas("sub-01", [0, 5], standardize=True)
    np.testing.assert_array_equal(store.betas("sub-01", [0, 5], standardize=True), expected)
    assert store._maskers.keys() == ["sub-01"]
    maskers = store.maskers(store.subjects)
    assert [len(masker) for masker in maskers[1:]] == [60, 70]
