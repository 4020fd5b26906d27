"""GLMsingle's outputs in each format: planted betas come back; wrong tables are refused."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.datasets import glmsingle
from mindllm.datasets.glmsingle import find_output
from mindllm.utils.errors import InputError

GRID = (5, 4, 3)
AFFINE = np.diag([2.0, 2, 2, 1])
MARK = (2, 1, 1)  # the voxel that says which stimulus was shown
STIMULI = [f"picture{n:02d}" for n in range(6)]
TRIALS = {("sub-01", "1"): 20, ("sub-01", "2"): 16, ("sub-02", "1"): 14}
TYPED = "TYPED_FITHRF_GLMDENOISE_RR"


def shown(subject: str, session: str) -> np.ndarray:
    """The condition of each trial: 0-based numbers of stimuli, each shown at least once."""
    rng = np.random.default_rng([len(subject), int(subject[-1]), int(session)])
    return rng.permutation(np.r_[np.arange(6), np.arange(TRIALS[subject, session] - 6) % 2])


def betas(subject: str, session: str) -> np.ndarray:
    """(X, Y, Z, trials), as Python's GLMsingle returns them; outside the brain they are NaN."""
    rng = np.random.default_rng([7, int(subject[-1]), int(session)])
    out = rng.normal(size=(*GRID, TRIALS[subject, session])).astype(np.float32)
    out[MARK] = shown(subject, session) + 0.5
    out[0, 0] = np.nan
    return out


def mask(subject: str) -> np.ndarray:
    out = np.zeros(GRID, bool)
    out[1:, 1:] = True
    out[1, 1, 1] = subject == "sub-02"
    return out


def write_python(
    folder: Path, values: np.ndarray, conditions: np.ndarray, pickle: bool = False
) -> None:
    """What glmsingle.py writes: each key a data set at the root in C order, None an empty one.

    Or a dictionary in a .npy file.
    """
    folder.mkdir(parents=True)
    rest: dict[str, Any] = {
        "R2": values[..., 0],
        "FRACvalue": values[..., 0],
        "pcnum": 3,
        "meanvol": values[..., 0],
        "noisepool": None,
    }
    np.save(
        folder / "DESIGNINFO.npy",
        np.array({"stimorder": conditions.tolist(), "numtrialrun": [len(conditions)]}),
    )
    if pickle:
        np.save(folder / f"{TYPED}.npy", np.array({"betasmd": values, **rest}))
        return
    for name, shift in ((TYPED, 0), ("TYPEB_FITHRF", 100)):
        with h5py.File(folder / f"{name}.hdf5", "w") as content:
            for key, value in {"betasmd": values + np.float32(shift), **rest}.items():
                content.create_dataset(key, data=h5py.Empty("f") if value is None else value)


def write_matlab(folder: Path, values: np.ndarray, conditions: np.ndarray) -> None:
    """What save -v7.3 writes: chunked HDF5, dimensions in reverse; conditions from 1."""
    folder.mkdir(parents=True)
    with h5py.File(folder / f"{TYPED}.mat", "w", userblock_size=512) as content:
        content.create_dataset(
            "modelmd", data=values.T, chunks=(3, *values.shape[2::-1]), compression="gzip"
        )
    with h5py.File(folder / "DESIGNINFO.mat", "w", userblock_size=512) as content:
        content.create_dataset("stimorder", data=conditions[:, None] + 1.0)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)


def design(**columns: Any) -> pd.DataFrame:
    """The table: a row per trial of everybody; file names the output's folder."""
    rows = []
    for subject, session in TRIALS:
        for n, condition in enumerate(shown(subject, session)):
            rows.append(
                {
                    "subject": subject,
                    "session": session,
                    "run": str(1 + n // 4),
                    "file": f"{subject}/ses-{session}",
                    "stimulus": STIMULI[condition],
                    "caption": f"a {STIMULI[condition]}",
                    "coco_id": 1000 + condition if condition else None,
                }
            )
    return pd.DataFrame(rows).assign(**columns)


def write_outputs(root: Path) -> None:
    """Three outputs, one in each format, masks, and one parcellation per person."""
    write_python(root / "sub-01" / "ses-1", betas("sub-01", "1"), shown("sub-01", "1"))
    write_matlab(root / "sub-01" / "ses-2", betas("sub-01", "2"), shown("sub-01", "2"))
    write_python(root / "sub-02" / "ses-1", betas("sub-02", "1"), shown("sub-02", "1"), pickle=True)
    for subject in ("sub-01", "sub-02"):
        save(root / "masks" / f"{subject}_mask.nii.gz", mask(subject).astype(np.uint8))
        labels = np.full(GRID, int(subject[-1]), np.int16)
        save(root / "masks" / f"{subject}_atlas-Areas_dseg.nii.gz", labels)
        (root / "masks" / f"{subject}_atlas-Areas_dseg.tsv").write_text(
            "index\tname\n1\tV1\n2\tV2\n"
        )
    design().to_csv(root / "design.tsv", sep="\t", index=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_outputs(tmp_path / "outputs")
    return tmp_path / "outputs"


def prepare(
    root: Path,
    out: Path,
    *,
    n_jobs: int = 1,
    val_fraction: float = 0.0,
    dtype: str = "float32",
    **options: Any,
) -> Store:
    defaults = {"design": root / "design.tsv", "mask": "masks/{subject}_mask.nii.gz"}
    reader = glmsingle.GLMsingleReader(root, **(defaults | options))
    return reader.prepare(out, dtype=dtype, val_fraction=val_fraction, n_jobs=n_jobs)


def test_every_trial_is_that_of_its_stimulus_in_every_format(root: Path, tmp_path: Path) -> None:
    store = prepare(root, tmp_path / "store", n_jobs=2)
    assert store.subjects == ["sub-01", "sub-02"]
    for name in store.subjects:
        sessions = [session for subject, session in TRIALS if subject == name]
        conditions = np.concatenate([shown(name, session) for session in sessions])
        trials, space = store.trials(name), store.masker(name)
        assert trials["stimulus"].tolist() == [STIMULI[n] for n in conditions]
        assert [None if pd.isna(n) else n for n in trials["coco_id"]] == [
            1000 + n if n else None for n in conditions
        ]
        assert trials["session"].tolist() == [s for s in sessions for _ in range(TRIALS[name, s])]
        np.testing.assert_array_equal(space.voxel_indices, np.argwhere(mask(name)))
        np.testing.assert_allclose(space.coords_mm, 2 * space.voxel_indices)
        assert {space.parcel_names["Areas"][n] for n in space.parcel_labels["Areas"]} == {
            "V1" if name == "sub-01" else "V2"
        }
        at = np.flatnonzero((space.voxel_indices == MARK).all(1))[0]
        assert store.betas(name)[:, at].tolist() == (conditions + 0.5).tolist()
        expected = np.concatenate([betas(name, session)[mask(name)].T for session in sessions])
        np.testing.assert_array_equal(store.betas(name), expected)
        assert "caption" not in trials
    told = store.conversations.drop_duplicates("stimulus")
    assert dict(zip(told["stimulus"], told["answers"].map(lambda a: a[0]), strict=True)) == {
        s: f"a {s}" for s in STIMULI
    }


def test_parts_larger_than_a_worker_reads_at_a_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glmsingle, "CHUNK_SIZE", 3)
    monkeypatch.setattr(glmsingle, "CHUNK_BYTES", 500)
    store = prepare(root, tmp_path / "store")
    expected = np.concatenate([betas("sub-01", s)[mask("sub-01")].T for s in ("1", "2")])
    np.testing.assert_array_equal(store.betas("sub-01"), expected)


def test_voxels_in_a_row_are_those_of_the_mask(root: Path, tmp_path: Path) -> None:
    inside, values, rows = mask("sub-01"), betas("sub-01", "1"), shown("sub-01", "1")
    write_python(root / "sub-01" / "ses-3", values[inside][:, None, None], rows)
    fortran = values.transpose(2, 1, 0, 3)[inside.T]  # MATLAB's data(mask)
    write_matlab(root / "sub-01" / "ses-4", fortran[:, None, None], rows)
    table = design().query("subject == 'sub-01' and session == '1'")
    table = pd.concat(
        [table.assign(file=f"sub-01/ses-{n}", session=str(n)) for n in (3, 4)]
    ).assign(mask="masks/sub-01_mask.nii.gz")
    table.to_csv(root / "row.csv", index=False)
    store = prepare(root, tmp_path / "store", design=root / "row.csv", mask=None)
    np.testing.assert_array_equal(store.betas("sub-01"), np.concatenate([values[inside].T] * 2))
    other = prepare(root, tmp_path / "other", design=root / "row.csv", order="F")
    assert not np.array_equal(other.betas("sub-01")[:20], store.betas("sub-01")[:20])
    np.testing.assert_array_equal(other.betas("sub-01")[20:], store.betas("sub-01")[20:])


def test_splits_models_and_files_named_one_by_one(root: Path, tmp_path: Path) -> None:
    table = (
        design()
        .query("subject == 'sub-01' and session == '1'")
        .drop(columns=["session", "caption"])
    )
    table.assign(file=f"sub-01/ses-1/{TYPED}.hdf5").to_csv(root / "one.tsv", sep="\t", index=False)
    store = prepare(
        root, tmp_path / "one", design=root / "one.tsv", test_fraction=0.3, val_fraction=0.3
    )
    assert set(store.trials("sub-01")["split"]) == {"train", "val", "test"}
    assert store.trials("sub-01")["session"].nunique() == 1
    assert not len(store.conversations)
    table.assign(split="train").to_csv(root / "two.tsv", sep="\t", index=False)
    b = prepare(root, tmp_path / "b", design=root / "two.tsv", model="TYPEB", test_fraction=0.3)
    np.testing.assert_allclose(b.betas("sub-01"), store.betas("sub-01") + 100, atol=1e-4)
    assert set(b.trials("sub-01")["split"]) == {"train"}, "the table's own split"


def test_nan_is_refused_or_left_out(root: Path, tmp_path: Path) -> None:
    inside = mask("sub-01")
    inside[0, 0, 1] = True
    save(root / "masks" / "sub-01_mask.nii.gz", inside.astype(np.uint8))
    with pytest.raises(InputError, match="holds NaN or infinite values in 1 of"):
        prepare(root, tmp_path / "store", subjects=["sub-01"])
    store = prepare(root, tmp_path / "store", subjects=["sub-01"], nan="drop")
    np.testing.assert_array_equal(store.masker("sub-01").voxel_indices, np.argwhere(mask("sub-01")))
    save(root / "masks" / "sub-01_mask.nii.gz", (np.indices(GRID)[:2].sum(0) == 0).astype(np.uint8))
    with pytest.raises(InputError, match="all 3 voxels of its mask hold NaN"):
        prepare(root, tmp_path / "none", subjects=["sub-01"], nan="drop")


def test_a_voxel_that_is_nan_in_later_trials_only_is_left_out(root: Path, tmp_path: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values[3, 3, 2, 5:] = np.nan
        return values

    with h5py.File(root / "sub-01" / "ses-1" / f"{TYPED}.hdf5", "r+") as content:
        content["betasmd"][...] = spoil(betas("sub-01", "1"))
    with pytest.raises(InputError, match=r"NaN or infinite values in 1 of .*--nan drop"):
        prepare(root, tmp_path / "store", subjects=["sub-01"])
    n_voxels = len(prepare(root, tmp_path / "other", subjects=["sub-02"]).masker("sub-02")) - 1
    store = prepare(root, tmp_path / "store", subjects=["sub-01"], nan="drop")
    assert len(store.masker("sub-01")) == n_voxels - 1
    assert [3, 3, 2] not in store.masker("sub-01").voxel_indices.tolist()


def test_two_outputs_of_a_model_in_one_folder_are_refused(tmp_path: Path) -> None:
    for suffix in (".hdf5", ".mat"):
        (tmp_path / f"TYPED_FITHRF_GLMDENOISE_RR{suffix}").touch()
    with pytest.raises(InputError, match=r"RR\.hdf5 and TYPED\S+\.mat, which may differ"):
        find_output(tmp_path, "TYPED")
    (tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.mat").unlink()
    assert find_output(tmp_path, "TYPED").suffix == ".hdf5"


def test_betas_too_small_for_float16_are_refused(root: Path, tmp_path: Path) -> None:
    with h5py.File(root / "sub-01" / "ses-1" / f"{TYPED}.hdf5", "r+") as content:
        content["betasmd"][...] = betas("sub-01", "1") * 1e-8
    with pytest.raises(InputError, match=r"too small for float16.*use --dtype float32"):
        prepare(root, tmp_path / "store", subjects=["sub-01"], dtype="float16")


def test_nothing_in_a_pickle_is_run(root: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    shutil.copytree(root, tmp_path / "copy")
    file = tmp_path / "copy" / "sub-02" / "ses-1" / f"{TYPED}.npy"
    content = np.load(file, allow_pickle=True).item()
    np.save(file, content | {"params": Bad()}, allow_pickle=True)
    with pytest.raises(
        InputError,
        match=r"it names pathlib\.Path\.touch|it names builtins\.getattr|"
        r"which is neither a number nor text",
    ):
        prepare(tmp_path / "copy", tmp_path / "store")
    assert not (tmp_path / "run").exists()
    np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="it holds an array, and not a dictionary"):
        prepare(tmp_path / "copy", tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stimulus": np.roll(design()["stimulus"], 1)},
            r"disagrees with .*DESIGNINFO\.\w+ about \d+ pairs",
        ),
        (
            {"file": "sub-01/ses-1"},
            r"sub-01.*ses-1.* has 20 trials; the design table has 36 for it",
        ),
        (
            {"file": "sub-09"},
            r"there is no .*sub-09/TYPED_FITHRF_GLMDENOISE_RR\.hdf5, \.mat or \.npy "
            r"\(found: no output",
        ),
        ({"stimulus": None}, "line 2 has no stimulus: it is empty or n/a in 50 of 50 lines"),
        ({"mask": [f"masks/{n}.nii.gz" for n in range(50)]}, "sub-01 has 36 masks; expected one"),
    ],
)
def test_tables_that_do_not_fit(root: Path, tmp_path: Path, change: dict, message: str) -> None:
    design(**change).to_csv(root / "design.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=message):
        prepare(root, tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ["sub-03"]}, "has no subject sub-03; it holds sub-01, sub-02"),
        ({"mask": None}, "sub-01 has 0 masks; expected one"),
        (
            {"model": "TYPEC"},
            r"there is no .*TYPEC_FITHRF_GLMDENOISE\.hdf5, .*found: TYPEB_FITHRF.hdf5, TYPED",
        ),
        ({"model": "TYPEA"}, "model='TYPEA' is unknown; expected TYPEB or TYPEC or TYPED"),
        ({"nan": "zero"}, "nan='zero' is unknown"),
        ({"design": "nothing.tsv"}, r"there is no file nothing\.tsv: expected the design table"),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(root, tmp_path / "store", **options)


def test_damage_is_named_and_a_second_call_goes_on(root: Path, tmp_path: Path) -> None:
    file = root / "sub-01" / "ses-1" / f"{TYPED}.hdf5"
    whole = file.read_bytes()

    def attempt(message: str) -> None:
        with pytest.raises(InputError, match=message):
            prepare(root, tmp_path / "store", subjects=["sub-01"])
        assert not (tmp_path / "store").exists()

    file.write_bytes(whole[: len(whole) // 2])
    attempt(
        r"ses-1/TYPED_FITHRF_GLMDENOISE_RR\.hdf5 is damaged, truncated or "
        r"not an output of GLMsingle"
    )
    with h5py.File(file, "w") as content:
        content["R2"] = np.zeros(GRID)
    attempt(r"hdf5: betasmd is missing; there is R2\.")
    with h5py.File(file, "w") as content:
        content["betasmd"] = betas("sub-01", "1").T  # the dimensions of MATLAB
    attempt(r"has 5 trials; the design table has 20")
    with h5py.File(file, "w") as content:
        content["betasmd"] = betas("sub-01", "1")[:4]
    attempt(
        r"betas on a grid of \(4, 4, 3\); the mask of sub-01 has the grid \(5, 4, 3\) and 35 voxels"
    )
    file.write_bytes(whole)
    pickled = root / "sub-02" / "ses-1" / f"{TYPED}.npy"
    pickled.write_bytes(pickled.read_bytes()[:200])
    with pytest.raises(InputError, match=r"\.npy is damaged or no output of GLMsingle"):
        prepare(root, tmp_path / "store")
    assert len(prepare(root, tmp_path / "store", subjects=["sub-01"]).trials("sub-01")) == 36
