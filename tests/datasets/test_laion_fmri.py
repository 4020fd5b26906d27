"""LAION-fMRI's layout: planted betas, coordinates and ROIs of a small faithful copy come back."""

import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.datasets import laion_fmri
from mindllm.fmri.noise_ceiling import ncsnr_from_noise_ceiling
from mindllm.fmri.transforms import MNI305_TO_MNI152, read_transform, scanner_to_mni152
from mindllm.utils.errors import InputError

GRID = (7, 6, 5)
AFFINE = np.array([[-1.7778, 0, 0, 6], [0, 1.7778, 0, -4], [0, 0, 1.7778, 3], [0, 0, 0, 1]])  # LAS
PEOPLE = {"sub-01": 9, "sub-03": 8}  # trials per session
TO_305 = np.array(
    [[1.05, 0.02, 0.01, 2.0], [-0.02, 1.1, 0.1, -3.0], [0.01, -0.09, 1.08, 4.0], [0, 0, 0, 1]]
)
MARK = (3, 3, 2)  # the voxel that says which image was shown
SHARED = [
    "shared_12rep_LAION_cluster_1003_i0.jpg",
    "shared_4rep_NSD_i7.jpg",
    "shared_4rep_OOD_gabor_3.png",
]


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)


def images(person: str) -> list[str]:
    return [*SHARED, *(f"unique_{person}_LAION_i{n}.jpg" for n in range(6))]


def code(image: str) -> float:
    """A number that stands for an image."""
    return float(sum(map(ord, image)) % 997)


def shown(person: str, session: int) -> list[str]:
    """The images of a session, in the order of their betas."""
    rng = np.random.default_rng(session)
    return [images(person)[n] for n in rng.integers(0, 9, PEOPLE[person])]


def lta(matrix: np.ndarray) -> str:
    """The transform as FreeSurfer writes it from voxels to voxels, of two grids."""
    volume = (
        "valid = 1  # volume info valid\nfilename = orig.mgz\nvolume = 256 256 256\n"
        "voxelsize = {0} {0} {0}\nxras   = -1 0 0\nyras   = 0 0 -1\nzras   = 0 1 0\n"
        "cras   = {1} 2 3\n"
    )
    grids = []
    for size, centre in ((0.8, 5), (1, -1)):
        axes = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]) * size
        grids.append(np.eye(4))
        grids[-1][:3, :3], grids[-1][:3, 3] = (
            axes,
            np.array([centre, 2, 3]) - axes @ [128, 128, 128],
        )
    voxels = np.linalg.inv(grids[1]) @ matrix @ grids[0]
    rows = "\n".join(" ".join(f"{n:.15e}" for n in row) for row in voxels)
    return (
        "type      = 0 # LINEAR_VOX_TO_VOX\nnxforms   = 1\nmean      = 0.0000 0.0000 0.0000\n"
        f"sigma     = 10000.0000\n1 4 4\n{rows}\nsrc volume info\n{volume.format(0.8, 5)}"
        f"dst volume info\n{volume.format(1, -1)}"
    )


def write_laion(root: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros(GRID, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    for name, trials in PEOPLE.items():
        p = laion_fmri.LAIONSubjectFiles(root, name)
        for n in (1, 2):
            betas, table = p.session(n)
            values = rng.normal(size=(*GRID, trials)).astype(np.float32)
            values[MARK] = [code(image) for image in shown(name, n)]
            values[1, 1, n] = np.nan  # invalid in this session
            save(betas, values)
            rows = pd.DataFrame(
                {
                    "session": f"ses-{n:02d}",
                    "run": 1 + np.arange(trials) // 3,
                    "beta_index": np.arange(trials),
                    "label": shown(name, n),
                }
            )
            rows.sample(frac=1, random_state=0).to_csv(table, sep="\t", index=False)
        stem = f"{name}_task-images_space-T1w_"
        r2 = np.where(mask, rng.uniform(1, 50, GRID), 0).astype(np.float32)
        r2[0, 0, 0] = np.nan
        save(p.betas / f"{stem}stat-rsquare_desc-R2mean_statmap.nii.gz", r2)
        ceiling = np.where(mask, 60, 0).astype(np.float32)
        save(p.betas / f"{stem}desc-Noiseceiling4rep_statmap.nii.gz", ceiling / 2)
        save(p.betas / f"{stem}desc-Noiseceiling12rep_statmap.nii.gz", ceiling)
        brain = (
            p.anatomy
            / "ses-PrismaAnat"
            / "anat"
            / f"{name}_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
        )
        save(brain, np.ones(GRID, np.uint8))
        general, dorsal, face = (np.zeros(GRID, np.uint8) for _ in range(3))
        general[2:5], dorsal[3], face[1:3, 2] = 1, 1, 1
        rois = {
            "laion": {"laion-general": general, "laion-dorsal": dorsal},
            "face": {"FFA-1": face},
        }
        if name == "sub-03":
            rois["face"] = {"OFA": face}
        for kind, masks in rois.items():
            for label, values in masks.items():
                save(p.rois / kind / f"{name}_space-T1w_res-1pt8_label-{label}_mask.nii.gz", values)
        p.transforms.mkdir(parents=True)
    rows = "\n".join(" ".join(map(str, row)) for row in TO_305[:3])
    header = (
        "MNI Transform File\n%VIO_Volume: orig.mgz\n\n"
        "Transform_Type = Linear;\nLinear_Transform =\n"
    )
    (laion_fmri.LAIONSubjectFiles(root, "sub-01").transforms / "talairach.xfm").write_text(
        f"{header}{rows};\n"
    )
    (laion_fmri.LAIONSubjectFiles(root, "sub-03").transforms / "talairach.lta").write_text(
        lta(TO_305)
    )
    stimuli = root / "stimuli"
    stimuli.mkdir()
    names = sorted({*images("sub-01"), *images("sub-03")})
    kinds = ["shared" if name in SHARED else "unique" for name in names]
    pd.DataFrame(
        {
            "image_name": names,
            "dataset": "LAION",
            "participant": "shared",
            "unique_or_shared": kinds,
            "n_reps": 4,
        }
    ).to_csv(stimuli / laion_fmri.METADATA, index=False)
    lines = [
        (name, rank, "ai" if rank == 0 else "human", f"{name}, said {rank}")
        for name in names
        for rank in (2, 0, 1)
    ]
    pd.DataFrame(lines, columns=["image_name", "caption_idx", "source", "caption"]).to_csv(
        stimuli / laion_fmri.CAPTIONS, index=False
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("laion")
    write_laion(root)
    return root


@pytest.fixture(scope="module")
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return laion_fmri.LAIONReader(root, sessions=[1, 2]).prepare(
        tmp_path_factory.mktemp("out") / "store", dtype="float32", n_jobs=2
    )


def test_every_trial_is_that_of_its_image(root: Path, store: Store) -> None:
    assert store.subjects == ["sub-01", "sub-03"]
    for name, count in PEOPLE.items():
        trials, space = store.trials(name), store.masker(name)
        expected = [*shown(name, 1), *shown(name, 2)]
        assert trials["stimulus"].tolist() == expected
        assert trials["session"].tolist() == ["1"] * count + ["2"] * count
        assert trials["run"].tolist()[:4] == ["1", "1", "1", "2"]
        assert trials["repetition"].tolist() == [
            expected[:n].count(image) for n, image in enumerate(expected)
        ]
        mark = np.flatnonzero((space.voxel_indices == MARK).all(1))[0]
        assert store.betas(name)[:, mark].tolist() == [code(image) for image in expected]
        image = np.asarray(nib.load(laion_fmri.LAIONSubjectFiles(root, name).session(2)[0]).dataobj)
        np.testing.assert_array_equal(
            store.betas(name)[count:], image[tuple(space.voxel_indices.T)].T
        )


def test_voxels_without_a_number_in_some_session_are_left_out(store: Store) -> None:
    for name in PEOPLE:
        ijk = store.masker(name).voxel_indices.tolist()
        assert [1, 1, 1] not in ijk
        assert [1, 1, 2] not in ijk
        assert len(ijk) == 5 * 4 * 3 - 2


def test_places_are_mni_millimetres(store: Store) -> None:
    for name in PEOPLE:  # one has an .xfm file, one an .lta file
        space = store.masker(name)
        own = nib.affines.apply_affine(AFFINE, space.voxel_indices)
        expected = nib.affines.apply_affine(MNI305_TO_MNI152, nib.affines.apply_affine(TO_305, own))
        np.testing.assert_allclose(space.coords_mm, expected, atol=1e-3)


def test_the_published_matrix_gives_the_published_example() -> None:
    moved = nib.affines.apply_affine(MNI305_TO_MNI152, [10, -20, 35])
    np.testing.assert_allclose(
        moved, [10.695, -18.409, 36.137], atol=0.005
    )  # FreeSurfer wiki, CoordinateSystems


def test_rois_are_parcellations(store: Store) -> None:
    for name in PEOPLE:
        space = store.masker(name)
        told = [space.parcel_names["laion"].get(n, "") for n in space.parcel_labels["laion"]]
        i = space.voxel_indices[:, 0]
        expected = np.select([i == 3, (i >= 2) & (i < 5)], ["laion-dorsal", "laion-general"], "")
        assert told == expected.tolist(), "the smaller ROI stands"
        faces = {
            space.parcel_names["face"].get(n, "") for n in np.unique(space.parcel_labels["face"])
        }
        assert faces == {"", "FFA-1" if name == "sub-01" else "OFA"}
    assert store.parcel_names["face"] == {1: "FFA-1", 2: "OFA"}


def test_shared_images_are_the_test(store: Store) -> None:
    trials = store.trials("sub-01")
    assert ((trials["split"] == "test") == trials["stimulus"].isin(SHARED)).all()
    used = {image for name in PEOPLE for n in (1, 2) for image in shown(name, n)}
    assert SHARED[2] in used
    assert store.stimulus_sets["ood"] == [SHARED[2]]
    assert set(store.stimulus_sets["shared"]) == set(SHARED[:2]) & used


def test_captions_and_noise_ceilings(store: Store) -> None:
    table = store.conversations
    assert set(table["stimulus"]) == {
        image for name in PEOPLE for n in (1, 2) for image in shown(name, n)
    }
    first = table[table["stimulus"] == SHARED[0]]
    assert first["answers"].iloc[0] == [f"{SHARED[0]}, said 1", f"{SHARED[0]}, said 2"], (
        "people's, best first"
    )
    np.testing.assert_allclose(store.ncsnr("sub-01"), np.sqrt(60 / 40 / 12), rtol=1e-6)
    np.testing.assert_array_equal(
        ncsnr_from_noise_ceiling(np.array([0, 50, 100, -1, np.nan])), [0, 1, np.nan, np.nan, np.nan]
    )


def test_other_masks_and_choices(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    shutil.rmtree(copy / "stimuli")
    general = laion_fmri.LAIONReader(
        copy, subjects=["sub-01"], sessions=[2], mask="laion-general"
    ).prepare(tmp_path / "roi", val_fraction=0.3)
    assert len(general.masker("sub-01")) == 3 * 6 * 5
    assert set(general.trials("sub-01")["session"]) == {"2"}
    assert set(general.trials("sub-01")["split"]) == {"train", "val", "test"}, "the labels tell"
    assert not len(general.conversations)
    assert general.betas("sub-01").dtype == np.float16
    pattern = laion_fmri.LAIONReader(
        copy, subjects=["sub-01"], sessions=[1], mask="*label-FFA-1_mask.nii.gz"
    ).prepare(tmp_path / "pattern")
    assert pattern.masker("sub-01").voxel_indices.tolist() == [
        [i, 2, k] for i in (1, 2) for k in range(5)
    ]
    hyphens = laion_fmri.LAIONReader(copy, subjects=["sub-01"], sessions=[1], mask="FFA1").prepare(
        tmp_path / "hyphens"
    )
    assert (
        hyphens.masker("sub-01").voxel_indices.tolist()
        == pattern.masker("sub-01").voxel_indices.tolist()
    )
    shutil.rmtree(copy / "derivatives" / "freesurfer")
    with pytest.raises(
        InputError,
        match=r"there is no .*talairach\.xfm .*Fetch the FreeSurfer derivatives .*--native-space",
    ):
        laion_fmri.LAIONReader(copy, sessions=[1], mask="brain").prepare(tmp_path / "brain")
    with caplog.at_level(logging.WARNING):
        brain = laion_fmri.LAIONReader(copy, sessions=[1], mask="brain", native_space=True).prepare(
            tmp_path / "brain"
        )
    assert "coordinates are those of the subject's own scanner space" in caplog.text
    assert "ROIs of laion overlap at" in caplog.text
    space = brain.masker("sub-03")
    assert len(space) == np.prod(GRID) - 1
    np.testing.assert_allclose(
        space.coords_mm, nib.affines.apply_affine(AFFINE, space.voxel_indices), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ["sub-02"]}, "has no subject sub-02; it holds sub-01, sub-03"),
        ({}, r"sub-01 lacks the sessions 3-30 \(28 of 30\).*--sessions 1-2"),
        (
            {"sessions": [1], "mask": "V1"},
            r"no masks V1; choose R2mean, brain, a ROI \(FFA-1, laion-dorsal",
        ),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        laion_fmri.LAIONReader(root, **options).prepare(tmp_path / "store")
    with pytest.raises(InputError, match="does not hold LAION-fMRI"):
        laion_fmri.LAIONReader(tmp_path).prepare(tmp_path / "store")


def test_damage_is_named_and_a_second_call_goes_on(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    betas, table = laion_fmri.LAIONSubjectFiles(copy, "sub-01").session(2)
    whole, told = betas.read_bytes(), table.read_text()

    def attempt(message: str) -> None:
        with pytest.raises(InputError, match=message):
            laion_fmri.LAIONReader(copy, subjects=["sub-01"], sessions=[1, 2]).prepare(
                tmp_path / "store"
            )
        assert not (tmp_path / "store").exists()

    betas.write_bytes(whole[: len(whole) // 2])
    attempt(r"ses-02.*statmap\.nii\.gz is damaged or truncated")
    kept = list((tmp_path / "store.partial" / "sessions" / "sub-01").iterdir())
    assert len(kept) == 1, "the first session was kept"
    values = np.asarray(
        nib.load(laion_fmri.LAIONSubjectFiles(root, "sub-01").session(2)[0]).dataobj
    ).copy()
    save(betas, np.where(np.arange(9) == 4, np.nan, values).astype(np.float32))
    attempt(r"holds NaN or infinite values in 58 of 58 voxels")
    nib.save(nib.Nifti1Image(values, np.diag([2, 2, 2, 1])), betas)
    attempt("on another grid than the mask R2mean")
    save(betas, values[..., :8])
    attempt(r"lists 9 trials \(0 to 8\), but .* has 8 volumes")
    betas.write_bytes(whole)
    table.write_text(told.replace("ses-02", "ses-01"))
    attempt("is the table of session ses-01; expected that of session 2")
    table.write_text(told.replace("label", "picture"))
    attempt("expected `beta_index` and `label`")
    table.write_text(told)
    assert (
        len(
            laion_fmri.LAIONReader(copy, subjects=["sub-01"], sessions=[1, 2])
            .prepare(tmp_path / "store")
            .trials("sub-01")
        )
        == 18
    )


def test_another_persons_files_are_noticed(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    one, two = (laion_fmri.LAIONSubjectFiles(copy, name) for name in PEOPLE)
    table = pd.read_csv(one.session(1)[1], sep="\t").query("beta_index < 8")
    table.to_csv(two.session(1)[1], sep="\t", index=False)
    with pytest.raises(
        InputError,
        match=r"unique images were shown to several subjects, "
        r"first unique_sub-01.* to sub-01, sub-03",
    ):
        laion_fmri.LAIONReader(copy, sessions=[1]).prepare(tmp_path / "store")
    table.assign(label="a.jpg").to_csv(two.session(1)[1], sep="\t", index=False)
    with pytest.raises(InputError, match=r"1 images are neither shared nor unique, first 'a\.jpg'"):
        laion_fmri.LAIONReader(copy, subjects=["sub-03"], sessions=[1]).prepare(tmp_path / "store")


def test_transforms_that_are_damaged_or_lead_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "talairach.lta"
    file.write_text(lta(TO_305).replace("type      = 0", "type      = 1"))
    assert read_transform(file).shape == (4, 4)
    file.write_text(lta(TO_305).replace("type      = 0", "type      = 14"))
    with pytest.raises(InputError, match="is of type 14; expected 0"):
        read_transform(file)
    file.write_text(lta(TO_305)[:150])
    with pytest.raises(InputError, match=r"talairach\.lta is damaged"):
        read_transform(file)
    far = tmp_path / "talairach.xfm"
    far.write_text("MNI Transform File\nLinear_Transform =\n1 0 0 500\n0 1 0 0\n0 0 1 0;\n")
    with pytest.raises(InputError, match=r"places 100% of the voxels outside of the MNI brain"):
        scanner_to_mni152(np.zeros((3, 3)), tmp_path)
