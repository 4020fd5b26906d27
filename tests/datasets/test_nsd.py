"""NSD's official layout: planted betas, coordinates and images of a faithful copy come back."""

from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat

from benchmarks.generate import write_nsd_design
from mindllm.data.store import Store
from mindllm.datasets import nsd
from mindllm.utils.errors import InputError

SHAPE = (6, 7, 5)
PEOPLE = {1: SHAPE, 5: (5, 6, 7)}


def affine(shape: tuple[int, int, int]) -> np.ndarray:
    """NSD's: 1.8 mm, its own origin in the middle of the slab."""
    out = np.diag([1.8, 1.8, 1.8, 1.0])
    out[:3, 3] = -1.8 * (np.array(shape) - 1) / 2
    return out


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine(values.shape[:3])), path)


def shown(root: Path, person: int) -> np.ndarray:
    """0-based nsdId of every trial, worked out from the 1-based files without the reader."""
    design = loadmat(root / nsd.EXPERIMENT / "nsd_expdesign.mat")
    return np.array(
        [design["subjectim"][person - 1, place - 1] - 1 for place in design["masterordering"][0]]
    )


def write_nsd(root: Path) -> None:
    """Two subjects with two sessions each, one format each, and the design of all.

    ROIs have -1 and 0; the transform has its marker of what is outside.
    """
    rng = np.random.default_rng(0)
    folder = root / nsd.EXPERIMENT
    images, order, shared = write_nsd_design(folder, rng)
    info = pd.DataFrame(
        {
            "cocoId": 100_000 + np.arange(73000) * 3,
            "cocoSplit": "train2017",
            "nsdId": np.arange(73000),
            "shared1000": np.isin(np.arange(73000) + 1, shared),
        }
    )
    for person in range(1, 9):
        for repeat in range(3):
            trial = np.zeros(73000, int)
            places = order[repeat * 10000 : (repeat + 1) * 10000]
            trial[images[person - 1, places - 1] - 1] = repeat * 10000 + np.arange(10000) + 1
            info[f"subject{person}_rep{repeat}"] = trial
    info.to_csv(folder / "nsd_stim_info_merged.csv")
    for person, shape in PEOPLE.items():
        files = nsd.NSDSubjectFiles(root, person)
        mask = np.full(shape, -1, np.int16)
        mask[1:-1, 1:-1, 1:-1] = 0
        mask[1:-1, 2:4, 1:-1] = 1
        save(files.functional / "roi" / "nsdgeneral.nii.gz", mask)
        regions = np.where(mask < 0, -1, rng.integers(0, 4, shape)).astype(np.int16)
        save(files.functional / "roi" / "floc-faces.nii.gz", regions)
        save(files.functional / "roi" / "lh.floc-faces.nii.gz", regions)
        save(files.functional / "brainmask.nii.gz", (mask >= 0).astype(np.uint8))
        left = np.where(np.arange(shape[0])[:, None, None] < shape[0] / 2, mask, -1).astype(
            np.int16
        )
        save(files.functional / "roi" / "lh.nsdgeneral.nii.gz", left)
        files.labels[0].mkdir(parents=True)
        (files.labels[0] / "floc-faces.mgz.ctab").write_text("0 Unknown\n1 OFA\n2 FFA-1\n3 FFA-2\n")
        ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        # The template is stored from right to left: left in the scan is a high number there.
        place = np.array([91, 127, 73]) + np.array([-1, 1, 1]) * (
            10 * (ijk - np.array(shape) // 2) + 0.25
        )
        place[1, 2, 1] = 9999  # outside
        save(files.transform, place.astype(np.float32))
        if person == 1:
            ncsnr = rng.gamma(2, 0.2, shape).astype(np.float32)
            ncsnr[2, 3, 2] = np.nan
            save(files.betas(nsd.BETAS) / "ncsnr.nii.gz", ncsnr)
        for session in (1, 2):
            betas = rng.integers(-3000, 3000, (*shape, 750)).astype(np.int16)
            betas[2, 2, 2] = (
                shown(root, person)[(session - 1) * 750 : session * 750] % 30000 - 15000
            )  # says what was shown
            betas[3, 2, 2] = (
                shown(root, person)[(session - 1) * 750 : session * 750] // 30000
            )  # and so does this
            file = files.betas(nsd.BETAS) / f"betas_session{session:02d}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if person == 1:
                with h5py.File(f"{file}.hdf5", "w") as content:
                    content.create_dataset("betas", data=betas.T, chunks=(750, 1, 1, 1))
            else:
                save(Path(f"{file}.nii.gz"), betas)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nsd")
    write_nsd(root)
    return root


@pytest.fixture(scope="module")
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return nsd.NSDReader(root, sessions=[1, 2]).prepare(
        tmp_path_factory.mktemp("out") / "store", dtype="float32", n_jobs=2
    )


def test_every_trial_is_that_of_its_image(root: Path, store: Store) -> None:
    assert store.subjects == ["subj01", "subj05"]
    for person in PEOPLE:
        name, expected = f"subj{person:02d}", shown(root, person)[:1500]
        trials = store.trials(name)
        assert trials["stimulus"].tolist() == expected.astype(str).tolist()
        assert trials["coco_id"].tolist() == (100_000 + expected * 3).tolist()
        voxel = np.flatnonzero((store.masker(name).voxel_indices == 2).all(1))[0]
        np.testing.assert_allclose(
            store.betas(name)[:, voxel] * 300, expected % 30000 - 15000, atol=0.01
        )
        assert trials["session"].tolist() == ["1"] * 750 + ["2"] * 750
        assert trials["run"].iloc[[0, 62, 63, 124, 125, 749, 750]].tolist() == [
            "1",
            "1",
            "2",
            "2",
            "3",
            "12",
            "1",
        ]
        assert (trials["repetition"] == 0).all(), (
            "in the made-up design nothing is shown again before trial 10,000"
        )


def test_both_formats_and_any_voxel(root: Path, store: Store) -> None:
    with h5py.File(nsd.NSDSubjectFiles(root, 1).session(nsd.BETAS, 2)) as content:
        first = content["betas"][:].T
    second = np.asarray(nib.load(nsd.NSDSubjectFiles(root, 5).session(nsd.BETAS, 1)).dataobj)
    for name, session, rows in (
        ("subj01", first, slice(750, 1500)),
        ("subj05", second, slice(0, 750)),
    ):
        expected = session[tuple(store.masker(name).voxel_indices.T)].T / 300
        np.testing.assert_allclose(store.betas(name)[rows], expected, rtol=1e-5)


def test_places_are_mni_millimetres(store: Store) -> None:
    for name, shape in (("subj01", PEOPLE[1]), ("subj05", PEOPLE[5])):
        space = store.masker(name)
        middle = np.array(shape) // 2
        np.testing.assert_allclose(
            space.coords_mm, 10 * (space.voxel_indices - middle) + 0.25, atol=1e-3
        )
        assert not (space.voxel_indices == [1, 2, 1]).all(1).any(), "outside the template"
        assert len(space) == (shape[0] - 2) * 2 * (shape[2] - 2) - 1
        assert set(space.parcel_names["floc-faces"].values()) >= {"OFA", "FFA-1", "FFA-2"}
        assert "lh.floc-faces" not in space.parcel_labels


def test_the_shared_images_are_the_test_and_both_conventions_have_a_name(
    root: Path, store: Store
) -> None:
    info = pd.read_csv(root / nsd.EXPERIMENT / "nsd_stim_info_merged.csv")
    shared = set(info.loc[info["shared1000"], "nsdId"].astype(str))
    trials = store.trials("subj01")
    assert ((trials["split"] == "test") == trials["stimulus"].isin(shared)).all()
    assert set(store.stimulus_sets["1000"]) == shared
    early = set(shown(root, 1)[: 37 * 750].astype(str)) & shared
    assert set(store.stimulus_sets["982"]) == early
    assert store.scaler("subj01").fitted_on == "training trials"


def test_other_masks_and_choices(root: Path, tmp_path: Path) -> None:
    brain = nsd.NSDReader(root, subjects=[5], sessions=[2], mask="brain").prepare(
        tmp_path / "brain", val_fraction=0.2
    )
    assert len(brain.masker("subj05")) == 3 * 4 * 5 - 1
    assert "nsdgeneral" in brain.masker("subj05").parcel_labels
    assert set(brain.trials("subj05")["session"]) == {"2"}
    assert set(brain.trials("subj05")["split"]) == {"train", "val", "test"}
    assert brain.betas("subj05").dtype == np.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": [1, 3]}, "has no subject subj03; it holds subj01, subj05"),
        (
            {},
            r"subj01 lacks the sessions 3-40 \(38 of 40\): there is no "
            r".*betas_fithrf_GLMdenoise_RR/betas_session03\.hdf5.*--sessions 1-2",
        ),
        ({"sessions": [1, 41]}, r"sessions 1 to 40; \[41\] were asked for"),
        ({"betas": "betas_assumehrf"}, "has the versions betas_fithrf_GLMdenoise_RR"),
        ({"sessions": [1], "mask": "V1"}, "no mask .*choose brain or one of floc-faces"),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        nsd.NSDReader(root, **options).prepare(tmp_path / "store")
    with pytest.raises(InputError, match="does not hold NSD"):
        nsd.NSDReader(tmp_path).prepare(tmp_path / "store")


def damaged(root: Path, tmp_path: Path) -> Path:
    """A copy of the small NSD that may be damaged."""
    import shutil

    return Path(shutil.copytree(root, tmp_path / "copy"))


def test_damage_is_named_and_a_second_call_goes_on(root: Path, tmp_path: Path) -> None:
    copy = damaged(root, tmp_path)
    file = nsd.NSDSubjectFiles(copy, 1).session(nsd.BETAS, 2)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"betas_session02\.hdf5 is damaged, truncated or"):
        nsd.NSDReader(copy, sessions=[1, 2]).prepare(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (kept,) = (tmp_path / "store.partial" / "sessions" / "subj01").iterdir()
    before = kept.stat().st_mtime_ns
    file.write_bytes(whole)
    import mindllm.datasets.nsd as module

    read: list[Path] = []
    original = module.read_betas

    def counted(path: Path, *rest: object) -> np.ndarray:
        read.append(path)
        return original(path, *rest)

    module.read_betas = counted
    try:
        store = nsd.NSDReader(copy, sessions=[1, 2]).prepare(tmp_path / "store")
    finally:
        module.read_betas = original
    assert before
    assert [path.name for path in read][:1] == ["betas_session02.hdf5"], (
        "the first session was kept"
    )
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "conversations.parquet",
        "dataset.json",
        "manifest.json",
        "regions.json",
        "subjects",
    ]
    assert len(store.trials("subj01")) == 1500


def test_another_release_or_person_is_noticed(root: Path, tmp_path: Path) -> None:
    copy = damaged(root, tmp_path)
    info = copy / nsd.EXPERIMENT / "nsd_stim_info_merged.csv"
    table = pd.read_csv(info, index_col=0)
    table.assign(nsdId=table["nsdId"] + 1).to_csv(info)
    with pytest.raises(InputError, match=r"disagree about 10000 of 10000 images of subj01"):
        nsd.NSDReader(copy, sessions=[1]).prepare(tmp_path / "store")
    table.to_csv(info)
    files = nsd.NSDSubjectFiles(copy, 1)
    nib.save(nib.load(nsd.NSDSubjectFiles(root, 5).transform), files.transform)
    with pytest.raises(InputError, match="another subject's"):
        nsd.NSDReader(copy, subjects=[1], sessions=[1]).prepare(tmp_path / "store")
    place = np.asarray(nib.load(nsd.NSDSubjectFiles(root, 1).transform).dataobj).copy()
    place[..., 0] = np.where(place[..., 0] < 9000, 182 - place[..., 0], 9999)
    save(files.transform, place)
    with pytest.raises(InputError, match="mirrored"):
        nsd.NSDReader(copy, subjects=[1], sessions=[1]).prepare(tmp_path / "store")
    (copy / nsd.EXPERIMENT / "nsd_expdesign.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(InputError, match=r"nsd_expdesign\.mat is missing, damaged or truncated"):
        nsd.NSDReader(copy, subjects=[1], sessions=[1]).prepare(tmp_path / "store")


def cut(file: Path, root: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def moved(file: Path, root: Path) -> None:
    image = nib.load(file)
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.1, 1, 1, 1])), file
    )


def exchanged(file: Path, root: Path) -> None:
    """The design with the images of subjects 1 and 5 in each other's place."""
    design = {name: value for name, value in loadmat(file).items() if not name.startswith("__")}
    savemat(file, design | {"subjectim": design["subjectim"][[4, 1, 2, 3, 0, 5, 6, 7]]})


def of_another(file: Path, root: Path) -> None:
    other = nsd.NSDSubjectFiles(root, 5).session(nsd.BETAS, 2)
    with h5py.File(file, "w") as content:
        content["betas"] = np.asarray(nib.load(other).dataobj).T


@pytest.mark.parametrize(
    ("place", "trouble", "message"),
    [
        (
            lambda p: p[0].session(nsd.BETAS, 1),
            cut,
            r"betas_session01\.hdf5 is damaged, truncated or .*Fetch or make the file again",
        ),
        (
            lambda p: p[1].session(nsd.BETAS, 2),
            cut,
            r"betas_session02\.nii\.gz is damaged or truncated.*Fetch or make the file again",
        ),
        (
            lambda p: p[0].session(nsd.BETAS, 2),
            of_another,
            r"betas_session02\.hdf5 has shape \(750, 7, 6, 5\); expected \(750, 5, 7, 6\)",
        ),
        (
            lambda p: p[0].session(nsd.BETAS, 2),
            lambda f, r: f.unlink(),
            r"subj01 lacks the sessions 2 .*Fetch them, or say which to take, e\.g\. --sessions 1",
        ),
        (
            lambda p: p[0].functional / "roi" / "nsdgeneral.nii.gz",
            lambda f, r: f.unlink(),
            r"subj01 has no mask .*nsdgeneral\.nii\.gz; choose brain or one of floc-faces",
        ),
        (
            lambda p: p[1].functional / "roi" / "floc-faces.nii.gz",
            moved,
            r"floc-faces.* is on another grid than the mask",
        ),
        (
            lambda p: p[0].transform,
            lambda f, r: f.unlink(),
            r"there is no file .*MNI-to-func1pt8\.nii\.gz",
        ),
        (
            lambda p: p[0].root / nsd.EXPERIMENT / "nsd_expdesign.mat",
            exchanged,
            r"disagree about \d+ of 10000 images of subj01.*fetch both again",
        ),
        (
            lambda p: p[0].betas(nsd.BETAS) / "ncsnr.nii.gz",
            moved,
            "noise ceiling .* is on another grid than the mask",
        ),
    ],
)
def test_after_any_trouble_the_same_call_completes(
    root: Path, store: Store, tmp_path: Path, place: Callable, trouble: Callable, message: str
) -> None:
    copy = damaged(root, tmp_path)
    file = place([nsd.NSDSubjectFiles(copy, 1), nsd.NSDSubjectFiles(copy, 5)])
    whole = file.read_bytes()
    trouble(file, copy)
    with pytest.raises(InputError, match=message):
        nsd.NSDReader(copy, sessions=[1, 2]).prepare(tmp_path / "store", dtype="float32")
    assert not (tmp_path / "store").exists()
    file.write_bytes(whole)
    made = nsd.NSDReader(copy, sessions=[1, 2]).prepare(tmp_path / "store", dtype="float32")
    for subject in store.subjects:
        np.testing.assert_array_equal(made.betas(subject), store.betas(subject))
        pd.testing.assert_frame_equal(made.trials(subject), store.trials(subject))


def test_noise_ceilings_come_with_the_voxels(root: Path, store: Store) -> None:
    file = nsd.NSDSubjectFiles(root, 1).betas(nsd.BETAS) / "ncsnr.nii.gz"
    expected = np.asarray(nib.load(file).dataobj)[tuple(store.masker("subj01").voxel_indices.T)]
    np.testing.assert_array_equal(store.ncsnr("subj01"), expected)
    assert np.isnan(expected).any()
    assert store.ncsnr("subj05") is None
