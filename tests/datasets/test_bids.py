"""BIDS derivatives: planted betas come back, and every missing or damaged file is named."""

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.utils.errors import InputError
from tests.conftest import REGIONS, TEXTS, make_bids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_bids(tmp_path / "bids")
    return tmp_path / "bids"


def one(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def test_planted_values_come_back(tmp_path: Path) -> None:
    """An oblique grid, int16 with slope and intercept, two sessions in two folders, an atlas."""
    planted = make_bids(tmp_path / "bids")
    store = BIDSReader(tmp_path / "bids").prepare(tmp_path / "store")
    assert store.subjects == ["sub-01", "sub-02"]
    labels = nib.load(one(tmp_path / "bids", "*dseg.nii.gz"))
    for subject, betas in planted.items():
        np.testing.assert_array_equal(store.betas(subject), betas)
        space, trials = store.masker(subject), store.trials(subject)
        assert np.abs(labels.affine[:3, :3][~np.eye(3, dtype=bool)]).min() > 0.1  # oblique
        np.testing.assert_allclose(
            space.coords_mm, nib.affines.apply_affine(labels.affine, space.voxel_indices), atol=1e-3
        )
        np.testing.assert_array_equal(
            space.parcel_labels["visual"], np.asarray(labels.dataobj)[tuple(space.voxel_indices.T)]
        )
        assert trials["session"].tolist() == ["01"] * 12 + ["02"] * 12
        tables = [
            pd.read_csv(f, sep="\t")
            for f in sorted((tmp_path / "bids" / subject).rglob("*_trials.tsv"))
        ]
        assert trials["stimulus"].tolist() == pd.concat(tables)["stimulus"].tolist()
        assert "file" not in trials
    assert store.parcel_names == {"visual": REGIONS["visual"]}
    said = store.conversations.set_index("stimulus")["answers"]
    assert {s: a[0] for s, a in said.items()} == {f"stim{i}": text for i, text in enumerate(TEXTS)}


def test_rows_of_a_trials_table_may_stand_in_any_order(tmp_path: Path) -> None:
    planted = make_bids(tmp_path / "bids", people=1, sessions=1)
    file = one(tmp_path / "bids", "*_trials.tsv")
    table = pd.read_csv(file, sep="\t").iloc[::-1]
    table.to_csv(file, sep="\t", index=False)
    store = BIDSReader(tmp_path / "bids").prepare(tmp_path / "store")
    np.testing.assert_array_equal(store.betas("sub-01"), planted["sub-01"])
    assert store.trials("sub-01")["stimulus"].tolist() == table["stimulus"].tolist()[::-1]


def test_the_naming_of_laion_fmri(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "laion"
    planted = make_bids(root, people=1)["sub-01"]
    for file in sorted(root.rglob("*_statmap.nii.gz")):
        file.rename(file.with_name(file.name.replace("MNI152", "T1w")))
    for session, file in enumerate(sorted(root.rglob("*_trials.tsv")), 1):
        table = pd.read_csv(file, sep="\t").rename(
            columns={"volume": "beta_index", "stimulus": "label"}
        )
        table.assign(session=session, run=7)[["session", "run", "beta_index", "label"]].to_csv(
            file, sep="\t", index=False
        )
    mask = nib.load(one(root, "*brain_mask.nii.gz"))
    inside = np.asarray(mask.dataobj) > 0
    r2 = np.where(inside, 0.25, np.where(np.indices(inside.shape)[0] % 2, 0, np.nan)).astype(
        np.float32
    )
    one(root, "*brain_mask.nii.gz").unlink()
    nib.save(
        nib.Nifti1Image(r2, mask.affine),
        root / "sub-01" / "sub-01_task-images_space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz",
    )
    (root / "stimuli").mkdir()
    (root / "stimuli" / "captions.tsv").write_text(
        "stimulus\tcaption\nstim0\ta dog runs\nstim0\ta running dog\nstim9\tnever shown\n"
    )
    with caplog.at_level(logging.WARNING):
        store = BIDSReader(root).prepare(tmp_path / "store")
    np.testing.assert_array_equal(store.betas("sub-01"), planted)
    assert (store.trials("sub-01")["run"] == "7").all()
    assert store.trials("sub-01")["session"].tolist() == ["1"] * 12 + ["2"] * 12
    assert store.conversations["answers"].tolist() == [
        ["a dog runs", "a running dog"],
        ["a running dog", "a dog runs"],
    ]
    assert "names no MNI space; its coordinates are taken as they are" in caplog.text
    assert "5 of 6 stimuli have no caption (first: stim1)" in caplog.text


def harm_values(root: Path, change: Any) -> None:
    """Change one betas file of sub-01, an array (x, y, z, trials)."""
    file = one(root, "sub-01_ses-02*_statmap.nii.gz")
    image = nib.load(file)
    data = image.get_fdata(dtype=np.float32)
    inside = np.asarray(nib.load(one(root, "sub-01*_mask.nii.gz")).dataobj) > 0
    nib.save(nib.Nifti1Image(change(data, np.argwhere(inside)), image.affine), file)


def nan_in_one_voxel(data: np.ndarray, ijk: np.ndarray) -> np.ndarray:
    data[(*ijk[3], 5)] = np.nan
    return data


def test_nan_is_refused_or_its_voxels_are_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = BIDSReader(root).prepare(root.parent / "whole")
    harm_values(root, nan_in_one_voxel)
    with pytest.raises(InputError, match=r"NaN or infinite values in 1 of 60 voxels .*--nan drop"):
        BIDSReader(root).prepare(root.parent / "store")
    store = BIDSReader(root, nan="drop").prepare(root.parent / "store")
    assert (
        "sub-01: 1 of 60 voxels hold NaN or infinity in some trial and are left out" in caplog.text
    )
    np.testing.assert_array_equal(
        store.betas("sub-01"), np.delete(whole.betas("sub-01"), 3, axis=1)
    )
    np.testing.assert_array_equal(
        store.masker("sub-01").voxel_indices,
        np.delete(whole.masker("sub-01").voxel_indices, 3, axis=0),
    )
    harm_values(root, lambda data, ijk: data * np.nan)
    with pytest.raises(InputError, match=r"all 60 voxels of its mask hold NaN .* so none is left"):
        BIDSReader(root, nan="drop").prepare(root.parent / "none")


def no_mask(root: Path) -> None:
    one(root, "sub-01*_mask.nii.gz").unlink()


def two_masks(root: Path) -> None:
    file = one(root, "sub-01*_mask.nii.gz")
    file.with_name(file.name.replace("images", "rest")).write_bytes(file.read_bytes())


def no_trials(root: Path) -> None:
    one(root, "sub-01_ses-02*_trials.tsv").unlink()


def edit(root: Path, change: Any) -> None:
    file = one(root, "sub-01_ses-02*_trials.tsv")
    change(pd.read_csv(file, sep="\t")).to_csv(file, sep="\t", index=False)


def other_grid(root: Path) -> None:
    file = one(root, "atlas-visual*.nii.gz")
    image = nib.load(file)
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, 1, -1, 1])), file
    )


def truncated(root: Path) -> None:
    file = one(root, "sub-01_ses-02*_statmap.nii.gz")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD: dict[str, tuple[Any, str]] = {
    "no mask": (
        no_mask,
        r"sub-01 has no mask: expected \*_desc-brain_mask.nii\* or \*_desc-R2mean_statmap",
    ),
    "two masks": (two_masks, r"sub-01 has 2 masks that match .*Name one with --mask"),
    "no trials": (
        no_trials,
        r"no file .*sub-01_ses-02_task-images_desc-SingletrialBetas_trials.tsv: expected the table",
    ),
    "rows": (
        lambda r: edit(r, lambda t: t.iloc[:-1]),
        r"lists 11 volumes \(0 to 10\), but .* has 12",
    ),
    "numbered from 1": (
        lambda r: edit(r, lambda t: t.assign(volume=t["volume"] + 1)),
        r"lists 12 volumes \(1 to 12\)",
    ),
    "columns": (
        lambda r: edit(r, lambda t: t.rename(columns={"stimulus": "picture"})),
        r"has the columns \['volume', 'picture', 'caption'\]; expected `volume` and `stimulus`",
    ),
    "gap": (
        lambda r: edit(r, lambda t: t.assign(stimulus=t["stimulus"].where(t.index > 0))),
        r"trials.tsv, line 2 has no stimulus: it is empty or n/a in 1 of 12 lines",
    ),
    "empty table": (
        lambda r: one(r, "sub-01_ses-02*_trials.tsv").write_text(""),
        r"trials.tsv has the columns \[\]; expected a header",
    ),
    "other grid": (
        other_grid,
        r"atlas visual .*atlas-visual_space-MNI152_dseg.nii.gz is on another grid than the mask",
    ),
    "no lookup": (
        lambda r: one(r, "atlas-visual_dseg.tsv").unlink(),
        "atlas visual: no lookup table",
    ),
    "truncated": (truncated, r"sub-01_ses-02.* is damaged or truncated: its header promises shape"),
    "description": (
        lambda r: (r / "dataset_description.json").write_text("{"),
        "dataset_description.json is damaged",
    ),
    "captions": (
        lambda r: (
            (r / "stimuli").mkdir(),
            (r / "stimuli" / "captions.tsv").write_text("image\ttext\n1\tx\n"),
        ),
        r"captions.tsv has the columns \['image', 'text'\]; expected `stimulus` and `caption`",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders(root: Path, kind: str) -> None:
    harm, message = BAD[kind]
    harm(root)
    with pytest.raises(InputError, match=message):
        BIDSReader(root).prepare(root.parent / "store", val_fraction=0.2)
    assert not (root.parent / "store").exists()


def test_bad_options(root: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"subjects": ["sub-01", "sub-07"]}, "has no subject sub-07; it holds sub-01, sub-02"),
        ({"mask": "*_mask.mgz"}, r"sub-01 has no mask: expected \*_mask.mgz"),
        ({"nan": "ignore"}, "nan='ignore' is unknown; expected error or drop"),
    ):
        with pytest.raises(InputError, match=message):
            BIDSReader(root, **options).prepare(tmp_path / "store")  # type: ignore[arg-type]
    for test_fraction, options, message in (
        (0.0, {"dtype": "int8"}, "dtype='int8' is unknown; expected float32 or float16"),
        (0.5, {"val_fraction": 0.7}, "sum to less than 1"),
        (0.0, {"val_fraction": 0.01}, "leaves the split val empty"),
    ):
        reader = BIDSReader(root, test_fraction=test_fraction)
        with pytest.raises(InputError, match=message):
            reader.prepare(tmp_path / "store", **options)  # type: ignore[arg-type]
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"holds no folder sub-\*: expected BIDS derivatives"):
            BIDSReader(empty).prepare(tmp_path / "store")
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(InputError, match="expected one 4-D file of single-trial betas per session"):
        BIDSReader(tmp_path).prepare(tmp_path / "store")


def test_a_named_mask_and_chosen_subjects(root: Path, tmp_path: Path) -> None:
    two_masks(root)
    store = BIDSReader(root, mask="*task-images*_mask.nii.gz", subjects=["sub-01"]).prepare(
        tmp_path / "store"
    )
    assert store.subjects == ["sub-01"]


def test_fractions_are_of_stimuli_and_a_column_split_is_kept(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = BIDSReader(root, test_fraction=2 / 6)
    store = reader.prepare(tmp_path / "store", val_fraction=1 / 6, seed=3)
    kinds = (
        pd.concat([store.trials(s) for s in store.subjects]).groupby("stimulus")["split"].unique()
    )
    assert sorted(len(k) for k in kinds) == [1] * 6
    assert kinds.str[0].value_counts().to_dict() == {"train": 3, "test": 2, "val": 1}
    for file in root.rglob("*_trials.tsv"):
        table = pd.read_csv(file, sep="\t")
        table.assign(
            split=table["stimulus"].map(lambda s: "test" if s == "stim4" else "train")
        ).to_csv(file, sep="\t", index=False)
    trials = reader.prepare(tmp_path / "own", val_fraction=1 / 6).trials("sub-02")
    assert "have a column `split`; the fractions" in caplog.text
    assert set(trials.loc[trials["split"] == "test", "stimulus"]) == {"stim4"}


@pytest.mark.real
def test_the_actions_data_is_what_it_is_known_to_be(shared: Path, tmp_path: Path) -> None:
    root = shared / "actions"
    known = pd.read_csv(root / "participants.tsv", sep="\t").set_index("participant_id")["n_voxels"]
    assert len(known) == 10
    few = ["sub-01", "sub-08"]
    store = BIDSReader(root, subjects=few).prepare(tmp_path / "store")
    assert Store(tmp_path / "store").subjects == few
    for subject in few:
        assert store.betas(subject).shape == (120, known[subject])
        assert set(store.masker(subject).parcel_labels) == {"HCPEx", "Wang2015"}
        assert np.isfinite(store.betas(subject, standardize=True)).all()
    assert store.conversations["stimulus"].nunique() == 120
    assert len({answers[0] for answers in store.conversations["answers"]}) == 60
    for subject in known.index:  # the others: masks alone, so that this stays fast
        mask = nib.load(one(root / subject, "*_desc-brain_mask.nii.gz"))
        assert np.count_nonzero(np.asarray(mask.dataobj)) == known[subject]


def replace_text(root: Path, pattern: str, before: str, after: str) -> None:
    for file in root.rglob(pattern):
        file.write_text(file.read_text().replace(before, after))


def captions(root: Path, rows: str) -> None:
    (root / "stimuli").mkdir(exist_ok=True)
    (root / "stimuli" / "captions.tsv").write_text("stimulus\tcaption\n" + rows)


def test_captions_are_read_as_they_stand(root: Path) -> None:
    """Quotation marks that do not balance, and words that other programs take for missing."""
    texts = ['"Hi from here', 'a 12" pizza', "None", "null", "NA", '"']
    captions(root, "".join(f"stim{n} \t{text}\n" for n, text in enumerate(texts)))
    store = BIDSReader(root).prepare(root.parent / "store")
    answers = dict(
        zip(store.conversations["stimulus"], store.conversations["answers"], strict=True)
    )
    assert answers == {f"stim{n}": [text] for n, text in enumerate(texts)}


@pytest.mark.parametrize("in_table", [True, False])
def test_a_placeholder_in_a_caption_is_refused_by_its_row(root: Path, in_table: bool) -> None:
    if in_table:
        captions(root, "stim0\ta dog\nstim1\ta <fMRI> scan\n")
        message = r"captions\.tsv, line 3: the caption 'a <fMRI> scan' holds <fMRI>"
    else:
        replace_text(root, "*_trials.tsv", "a dog runs", "a <fMRI> dog")
        message = r"_trials\.tsv, line \d+: the caption 'a <fMRI> dog' holds <fMRI>"
    with pytest.raises(InputError, match=message):
        BIDSReader(root).prepare(root.parent / "store")


def test_volumes_may_be_written_as_pandas_does(root: Path) -> None:
    edit_all(root, lambda t: t.assign(volume=t["volume"].astype(float)))
    assert "0.0\t" in one(root, "*_trials.tsv").read_text()
    BIDSReader(root).prepare(root.parent / "store")
    edit_all(root, lambda t: t.assign(volume=t["volume"] + 0.5 * (t["volume"] == 3)))
    with pytest.raises(InputError, match=r"_trials\.tsv, line 5: the volume '3\.5' is no whole"):
        BIDSReader(root).prepare(root.parent / "other")


def edit_all(root: Path, change: Any) -> None:
    for file in root.rglob("*_trials.tsv"):
        table = pd.read_csv(file, sep="\t", keep_default_na=False)
        change(table).to_csv(file, sep="\t", index=False)


@pytest.mark.parametrize("column", ["volume", "stimulus", "session", "run", "repetition", "split"])
def test_a_missing_value_is_refused_by_its_row(root: Path, column: str) -> None:
    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        default = "train" if column == "split" else "1"
        values = table[column].astype(str) if column in table else default
        table = table.assign(**{column: values})
        table.loc[4, column] = "n/a"
        return table

    edit_all(root, spoil)
    with pytest.raises(InputError, match=rf"_trials\.tsv, line 6 has no {column}: .* 1 of 12"):
        BIDSReader(root).prepare(root.parent / "store")
    assert not (root.parent / "store.partial").exists()


def test_columns_of_all_kinds_are_kept(root: Path) -> None:
    edit_all(
        root,
        lambda t: t.assign(
            response=["a", "1", "n/a"] * 4, seconds=["1.5", "n/a", "2"] * 4, session="n/a"
        ),
    )
    trials = BIDSReader(root).prepare(root.parent / "store").trials("sub-01")
    assert trials["response"].fillna("").tolist()[:3] == ["a", "1", ""]
    np.testing.assert_array_equal(trials["seconds"][:3], [1.5, np.nan, 2])
    assert trials["session"].tolist() == ["01"] * 12 + ["02"] * 12  # n/a alone is no column


@pytest.mark.parametrize(
    ("entity", "other"), [("stat-effect", "stat-t"), ("space-MNI152", "space-T1w"), (".gz", "")]
)
def test_two_files_for_one_table_are_refused(root: Path, entity: str, other: str) -> None:
    expected = BIDSReader(root).prepare(root.parent / "expected").betas("sub-01")
    for file in sorted(root.rglob("*_desc-SingletrialBetas_statmap.nii.gz")):
        nib.save(nib.load(file), file.with_name(file.name.replace(entity, other)))
    with pytest.raises(InputError, match=r"both have the trials of .*_trials\.tsv.*--betas '") as e:
        BIDSReader(root).prepare(root.parent / "store")
    assert str(e.value).count("Betas_statmap.nii") == 2
    pattern = f"*_{entity}_*_statmap.nii*" if entity != ".gz" else "*_statmap.nii.gz"
    store = BIDSReader(root, betas=pattern).prepare(root.parent / "store")
    np.testing.assert_array_equal(store.betas("sub-01"), expected)


def test_subjects_sessions_and_runs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """sub-10 and ses-1 to ses-10, two runs in file names each; each file shows one stimulus."""
    affine = np.diag([3.0, 3, 3, 1])
    for subject in ("sub-10", "sub-9"):
        folder = tmp_path / "bids" / subject / "func"
        folder.mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), affine),
            folder / f"{subject}_space-MNI_desc-brain_mask.nii.gz",
        )
        for session in range(1, 11):
            for run in (2, 10):
                stem = f"{subject}_ses-{session}_task-x_run-{run}"
                data = np.random.default_rng(run).normal(session, size=(2, 2, 2, 1))
                nib.save(
                    nib.Nifti1Image(data.astype(np.float32), affine),
                    folder / f"{stem}_space-MNI_desc-SingletrialBetas_statmap.nii.gz",
                )
                (folder / f"{stem}_desc-SingletrialBetas_trials.tsv").write_text(
                    f"volume\tstimulus\n0\timg{session}-{run}\n"
                )
    store = BIDSReader(tmp_path / "bids").prepare(tmp_path / "store")
    assert store.subjects == ["sub-9", "sub-10"]
    trials = store.trials("sub-9")
    expected = [(str(session), str(run)) for session in range(1, 11) for run in (2, 10)]
    assert list(zip(trials["session"], trials["run"], strict=True)) == expected
    assert trials["stimulus"].tolist() == [f"img{s}-{r}" for s, r in expected]


def strip_orientation(root: Path, pattern: str) -> None:
    for file in root.rglob(pattern):
        img = nib.load(file)
        img.set_qform(None, code=0)
        img.set_sform(None, code=0)
        nib.save(img, file)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*_mask.nii.gz", "mask of sub-01 .* has no orientation"),
        ("*_statmap.nii.gz", r"betas of sub-01 .*_statmap\.nii\.gz has no orientation"),
        ("*_dseg.nii.gz", "atlas visual .* has no orientation"),
    ],
)
def test_images_without_orientation_are_refused(root: Path, pattern: str, message: str) -> None:
    strip_orientation(root, pattern)
    with pytest.raises(InputError, match=message):
        BIDSReader(root).prepare(root.parent / "store")


def test_a_mask_that_is_not_binary_needs_a_threshold(root: Path) -> None:
    expected = BIDSReader(root).prepare(root.parent / "expected").betas("sub-01")
    for file in sorted(root.rglob("*_mask.nii.gz")):
        img = nib.load(file)
        smooth = np.where(img.get_fdata() > 0, 0.9, 1e-12).astype(np.float32)
        nib.save(nib.Nifti1Image(smooth, img.affine), file)
    with pytest.raises(InputError, match=r"_mask\.nii\.gz is not binary: .*--mask-threshold"):
        BIDSReader(root).prepare(root.parent / "store")
    store = BIDSReader(root, mask_threshold=0.5).prepare(root.parent / "store")
    np.testing.assert_array_equal(store.betas("sub-01"), expected)


def test_betas_too_small_for_float16_are_refused(root: Path) -> None:
    for file in sorted(root.rglob("*_statmap.nii.gz")):
        img = nib.load(file)
        tiny = nib.Nifti1Image((img.get_fdata() * 1e-10).astype(np.float32), img.affine)
        nib.save(tiny, file)
    with pytest.raises(InputError, match=r"too small for float16.*use --dtype float32"):
        BIDSReader(root).prepare(root.parent / "store", dtype="float16")
    store = BIDSReader(root).prepare(root.parent / "store", dtype="float32")
    assert 0 < np.abs(store.betas("sub-01")).min() < 1e-7


@pytest.mark.parametrize(
    ("index", "message"), [("NA", "the index 'NA' is no whole"), ("1.5", "index '1.5' is no whole")]
)
def test_a_lookup_table_says_which_row_is_wrong(root: Path, index: str, message: str) -> None:
    (root / "atlas-visual_dseg.tsv").write_text(f"index\tname\n1\tNA\n2\tV2\n{index}\tFFA\n")
    with pytest.raises(InputError, match=rf"atlas-visual_dseg\.tsv, line 4: .*{message}"):
        BIDSReader(root).prepare(root.parent / "store")
    (root / "atlas-visual_dseg.tsv").write_text("index\tname\n1.0\tNA\n2.0\tV2\n3.0\tFFA\n")
    store = BIDSReader(root).prepare(root.parent / "store")
    assert store.parcel_names["visual"] == {1: "NA", 2: "V2", 3: "FFA"}
