"""The authors' prepared data in both layouts, and a published model from prepare to scores."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import mindllm
from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.datasets import mindllm_release
from mindllm.datasets.mindllm_release import MindLLMReleaseReader
from mindllm.evaluation.evaluator import evaluate
from mindllm.utils.errors import InputError
from tests.published import Sizes, make_published, write_volume

COCO = {n: 1000 + 7 * n for n in range(60)}  # 0-based NSD number -> COCO id
TRAIN, VAL, TEST = {"subj01": range(20), "subj02": range(20, 40)}, range(40, 44), range(50, 56)


def value_of(person: int, image: int, repeat: int, voxels: int) -> np.ndarray:
    """What the fixture plants: known from person, image and repeat alone."""
    return np.random.default_rng([person, image, repeat]).normal(size=voxels).astype(np.float32)


def caption(image: int, n: int = 0) -> str:
    return f"caption {n} of image {image}."


def write_instructions(folder: Path) -> None:
    """Instruction files as the authors' cache holds them; some are about images that nobody saw."""
    folder.mkdir(parents=True)
    said = "<fMRI>\nPlease describe the fMRI as simply as possible."
    captions = [
        {
            "coco_id": coco,
            "from": "coco-caption",
            "split": "train",
            "unique_key": coco,
            "chat": [
                {"role": "user", "content": said},
                {"role": "assistant", "content": caption(image, n)},
            ],
            "answers": [caption(image, m) for m in range(3)],
        }
        for image, coco in [*COCO.items(), (99, 99999)]
        for n in range(3)
    ]
    questions = [
        {
            "coco_id": coco,
            "from": "coco-qa",
            "split": "test",
            "unique_key": n,
            "answers": "red",
            "chat": [
                {
                    "role": "user",
                    "content": f"<fMRI>\nwhat is in image {image} ?\n"
                    "Answer the question with a short phrase.",
                },
                {"role": "assistant", "content": "red"},
            ],
        }
        for n, (image, coco) in enumerate(COCO.items())
    ]
    explained = [
        {
            "coco_id": COCO[3],
            "from": "vqa-e",
            "split": "train",
            "answers": [["two", "2", "two"], "There are two."],
            "chat": [
                {"role": "user", "content": "<fMRI>\nHow many?"},
                {"role": "assistant", "content": "two. Here is the explanation: There are two."},
            ],
        }
    ]
    before = [
        {
            "sample_id": f"subject_1-{split}-{key}",
            "from": "coco-caption-previous",
            "split": split,
            "unique_key": 0,
            "answers": ["before"],
            "chat": [
                {
                    "role": "user",
                    "content": "<fMRI>\nPlease describe the fMRI the subject saw previously.",
                },
                {"role": "assistant", "content": "before"},
            ],
        }
        for split, key in (("train", "4"), ("test", "1"), ("train", "999"))
    ]
    for name, samples in {
        "coco-qa": questions,
        "coco-caption": captions,
        "vqa-e": explained,
        "coco-caption-previous": before,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(samples))


def write_official(root: Path) -> None:
    """Two people's ROI files and the instruction files."""
    make_published(root, [1, 2], {"A": 3, "B": 2}, Sizes(), outside=0)
    shutil.move(root / "roi", root / "data" / "roi")
    write_instructions(root / "data" / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_official(tmp_path)
    return tmp_path


def write_info(root: Path) -> None:
    table = pd.DataFrame({"cocoId": COCO.values(), "nsdId": COCO.keys()})
    table.to_csv(
        root / "data" / "nsd_stim_info_merged.csv"
    )  # with the unnamed index that NSD's has


def masks(root: Path) -> dict[str, np.ndarray]:
    found = sorted((root / "data" / "roi").glob("*/nsdgeneral.nii.gz"))
    return {file.parent.name: nib.load(file).get_fdata() > 0 for file in found}


def order_of(person: int, images: range, repeats: int) -> list[list[int]]:
    """Image and repeat of each trial in the order of its key."""
    return (
        np.random.default_rng(person)
        .permutation([(i, r) for i in images for r in range(repeats)])
        .tolist()
    )


def write_nsd0(root: Path, volumes: bool = False) -> None:
    """One HDF5 file per subject; images twice in train, three times in test, in a random order."""
    (root / "data" / "nsd0").mkdir()
    for subject, mask in masks(root).items():
        person = int(subject[4:])
        with h5py.File(root / "data" / "nsd0" / f"subject_{person}.h5", "w") as file:
            for split, images, repeats in (("train", TRAIN[subject], 2), ("test", TEST, 3)):
                shown = order_of(person, images, repeats)
                for key, (image, repeat) in enumerate(shown):
                    trial = file.create_group(f"{split}/{key}")
                    value = value_of(person, image, repeat, int(mask.sum()))
                    if volumes:
                        volume = np.full(mask.shape, 99, np.float32)
                        volume[mask] = value
                        value = volume
                    trial["visual_voxels"], trial["coco_id"] = value, COCO[image]
                    trial["prev_coco_id"] = COCO[shown[key - 1][0]] if key else -1
                    trial.attrs["planted"] = repeat


def write_mindeye(root: Path) -> None:
    for subject, mask in masks(root).items():
        person = int(subject[4:])
        for split, images in (("train", TRAIN[subject]), ("val", VAL), ("test", TEST)):
            folder = root / "data" / "webdataset_avg_split" / split / subject
            folder.mkdir(parents=True)
            for image in images:
                values = np.stack(
                    [value_of(person, image, r, int(mask.sum())) for r in range(3)]
                ).astype(np.float16)
                np.save(folder / f"sample{900 - image:06d}.nsdgeneral.npy", values)
                np.save(folder / f"sample{900 - image:06d}.coco73k.npy", np.array([image]))


@pytest.mark.parametrize("named", [True, False], ids=["nsdId", "cocoId"])
@pytest.mark.parametrize("layout", ["nsd0", "nsd0 volumes", "mindeye"])
def test_every_trial_has_its_values_and_its_text(root: Path, layout: str, named: bool) -> None:
    """The trial of image N has N's planted betas, N's captions and N's question."""
    if layout == "mindeye":
        write_mindeye(root)
    else:
        write_nsd0(root, volumes=layout.endswith("volumes"))
    if named or layout == "mindeye":
        write_info(root)
    store = MindLLMReleaseReader(root).prepare(root / "store", val_fraction=0.2)
    named = named or layout == "mindeye"
    assert store.subjects == ["subj01", "subj02"]
    assert store.meta["standardized"]
    number = {str(n if named else c): n for n, c in COCO.items()}
    for subject in store.subjects:
        trials, person = store.trials(subject), int(subject[4:])
        assert set(store.masker(subject).parcel_labels) == {"A", "B"}
        values = store.betas(subject, standardize=True)
        for row, trial in enumerate(trials.itertuples()):
            image = number[trial.stimulus]
            assert trial.coco_id == COCO[image]
            planted = [value_of(person, image, r, values.shape[1]) for r in range(3)]
            near = [np.abs(values[row] - p).max() < 1e-2 for p in planted]
            assert sum(near) == 1, f"{subject}, trial {row} of image {image} has other values"
            if layout == "mindeye":
                assert near[trial.repetition]
            assert trial.split == "test" if image in TEST else trial.split in ("train", "val")
    told = store.conversations.dropna(subset="stimulus")
    for row in told.itertuples():
        image = number[row.stimulus]
        if row.source == "coco-caption":
            assert row.answers[0] == row.turns[1]["content"]
            assert sorted(row.answers) == [caption(image, n) for n in range(3)]
        elif row.source == "coco-qa":
            assert f"image {image} ?" in row.turns[0]["content"]
            assert row.answers == ["red"]
        else:
            assert row.answers == [
                "two. Here is the explanation: There are two.",
                "two",
                "2",
                "two",
                "There are two.",
            ]
    assert told["source"].iloc[0] == "coco-caption"
    shown = {number[s] for subject in store.subjects for s in store.trials(subject)["stimulus"]}
    assert {number[s] for s in told["stimulus"]} == shown, "the image that nobody saw is left out"


def test_validation_comes_from_training_stimuli(root: Path) -> None:
    write_nsd0(root)
    store = MindLLMReleaseReader(root / "data").prepare(root / "store", val_fraction=0.25, seed=3)
    trials = pd.concat([store.trials(s) for s in store.subjects])
    kinds = trials.groupby("split")["stimulus"].agg(set)
    assert len(kinds["val"]) == 10
    assert kinds["test"] == {str(COCO[n]) for n in TEST}
    assert not kinds["val"] & (kinds["test"] | kinds["train"])
    before = store.conversations[store.conversations["stimulus"].isna()]
    assert [(r.subject, r.source, r.answers) for r in before.itertuples()] == [
        ("subj01", "coco-caption-previous", ["before"])
    ] * 2
    keys = [
        store.trials("subj01").iloc[t][["split", "key"]].tolist() for t in before["trial_index"]
    ]
    assert sorted(k for _, k in keys) == ["1", "4"]


def test_options(root: Path) -> None:
    write_nsd0(root)
    store = MindLLMReleaseReader(root, subjects=["subj02"], sources=["coco-qa"]).prepare(
        root / "store", val_fraction=0, dtype="float16"
    )
    assert store.subjects == ["subj02"]
    assert set(store.conversations["source"]) == {"coco-qa"}
    assert store.betas("subj02").dtype == np.float16
    assert set(store.trials("subj02")["split"]) == {"train", "test"}


def test_voxels_outside_the_cortex_are_a_region_of_their_own(root: Path) -> None:
    """NSD marks them with -1."""
    write_nsd0(root)
    file = root / "data" / "roi" / "subj02" / "A.nii.gz"
    labels = nib.load(file).get_fdata()
    inside = masks(root)["subj02"]
    labels[np.cumsum(inside).reshape(inside.shape) <= 4] = -1
    write_volume(file, labels)
    store = MindLLMReleaseReader(root).prepare(root / "store")
    assert store.parcel_names["A"] == {1: "1", 2: "2", 3: "3", 4: "not cortex"}
    assert store.masker("subj02").parcel_labels["A"][:4].tolist() == [4] * 4
    assert store.masker("subj01").parcel_labels["A"].max() == 3


def test_subjects_are_read_side_by_side_and_in_parts(root: Path, monkeypatch) -> None:
    """Two processes, and parts of seven images, give the store that one process gives."""
    write_mindeye(root)
    write_info(root)
    one = MindLLMReleaseReader(root).prepare(root / "one")
    monkeypatch.setattr(mindllm_release, "CHUNK_SIZE", 7)
    two = MindLLMReleaseReader(root).prepare(root / "two", n_jobs=2)
    for subject in one.subjects:
        np.testing.assert_array_equal(one.betas(subject), two.betas(subject))
        pd.testing.assert_frame_equal(one.trials(subject), two.trials(subject))


def test_an_interrupted_preparation_goes_on(root: Path, monkeypatch) -> None:
    from mindllm.datasets.release_layouts import HDF5Layout

    write_nsd0(root)
    read_betas = HDF5Layout.read_betas

    def interrupted(self, subject, *arguments):
        if subject == "subj02":
            raise KeyboardInterrupt
        return read_betas(self, subject, *arguments)

    monkeypatch.setattr(HDF5Layout, "read_betas", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MindLLMReleaseReader(root).prepare(root / "store")
    with pytest.raises(InputError, match="was not prepared to its end"):
        Store(root / "store")
    read = []

    def recorded(self, subject, *arguments):
        read.append(subject)
        return read_betas(self, subject, *arguments)

    monkeypatch.setattr(HDF5Layout, "read_betas", recorded)
    MindLLMReleaseReader(root).prepare(root / "store")
    assert read == ["subj02"]


def edit(name: str, change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        with h5py.File(data / "nsd0" / name, "r+") as file:
            change(file)

    return spoil


def short_voxels(file: h5py.File) -> None:
    del file["train/5/visual_voxels"]
    file["train/5/visual_voxels"] = np.zeros(7, np.float32)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def instruct(sample) -> Callable[[Path], None]:
    return lambda data: (data / "cache" / "coco-qa.json").write_text(json.dumps([sample]))


def leak(file: h5py.File) -> None:
    del file["test/0/coco_id"]
    file["test/0/coco_id"] = COCO[0]


NSD0 = {
    "an image in train and test": (edit("subject_1.h5", leak), "1 stimuli stand in two splits"),
    "nothing there": (
        lambda d: shutil.rmtree(d / "nsd0"),
        r"holds the layouts of no subject.*Expected nsd0/subject_1\.h5",
    ),
    "no masks": (lambda d: shutil.rmtree(d / "roi" / "subj02"), "roi has no folder subj02"),
    "a file cut": (lambda d: cut(d / "nsd0" / "subject_2.h5"), r"subject_2\.h5 is damaged"),
    "no test": (
        edit("subject_2.h5", lambda f: f.__delitem__("test")),
        r"subject_2\.h5 has the groups \['train'\]; expected train and test",
    ),
    "no voxels": (
        edit("subject_1.h5", lambda f: f.__delitem__("train/5/visual_voxels")),
        r"the trial train/5 lacks visual_voxels",
    ),
    "other voxels": (
        edit("subject_1.h5", short_voxels),
        r"train/5/visual_voxels has shape \(7,\); the mask has \d+ voxels",
    ),
    "no text": (lambda d: shutil.rmtree(d / "cache"), "has no instruction files"),
    "a text cut": (
        lambda d: cut(d / "cache" / "coco-caption.json"),
        r"coco-caption\.json is damaged and cannot be read as JSON",
    ),
    "another text": (
        lambda d: (d / "cache" / "coco-qa.json").write_text("{}"),
        r"coco-qa\.json holds dict; expected a list",
    ),
    "a sample of another kind": (
        instruct({"image": 3}),
        r"coco-qa\.json, sample 0 is not as published .*KeyError: 'sample_id'",
    ),
    "a sample without a scan": (
        instruct(
            {
                "coco_id": COCO[0],
                "from": "coco-qa",
                "chat": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
            }
        ),
        r"coco-qa\.json, sample 0: <fMRI> must stand exactly once",
    ),
    "a table of other images": (
        lambda d: (d / "nsd_stim_info_merged.csv").write_text("nsdId,cocoId\n0,5\n"),
        "does not list 26 images",
    ),
    "another table": (
        lambda d: (d / "nsd_stim_info_merged.csv").write_text("a,b\n0,5\n"),
        r"has the columns \['a', 'b'\]; expected `nsdId` and `cocoId`",
    ),
}


@pytest.mark.parametrize("case", NSD0)
def test_what_is_wrong_is_said_and_mending_it_completes(root: Path, case: str) -> None:
    write_nsd0(root)
    shutil.copytree(root / "data", root / "good")
    spoil, message = NSD0[case]
    spoil(root / "data")
    with pytest.raises(InputError, match=message):
        MindLLMReleaseReader(root).prepare(root / "store")
    assert not (root / "store").exists()
    shutil.rmtree(root / "data")
    shutil.move(root / "good", root / "data")
    assert MindLLMReleaseReader(root).prepare(root / "store").subjects == ["subj01", "subj02"]


MINDEYE = {
    "no table": (
        lambda d: (d / "nsd_stim_info_merged.csv").unlink(),
        r"there is no .*nsd_stim_info_merged\.csv",
    ),
    "no val": (
        lambda d: shutil.rmtree(d / "webdataset_avg_split" / "val" / "subj02"),
        "val/subj02 has no",
    ),
    "no number": (
        lambda d: next(d.rglob("*.coco73k.npy")).unlink(),
        r"coco73k\.npy is missing, damaged or truncated",
    ),
    "cut": (
        lambda d: cut(next(d.rglob("*.nsdgeneral.npy"))),
        r"nsdgeneral\.npy is missing, damaged or truncated",
    ),
    "other voxels": (
        lambda d: np.save(
            next((d / "webdataset_avg_split" / "train" / "subj01").glob("*.nsdgeneral.npy")),
            np.zeros((3, 7)),
        ),
        r"has shape \(3, 7\); expected \(3, \d+\)",
    ),
}


@pytest.mark.parametrize("case", MINDEYE)
def test_mindeye_errors(root: Path, case: str) -> None:
    write_mindeye(root)
    write_info(root)
    spoil, message = MINDEYE[case]
    spoil(root / "data")
    with pytest.raises(InputError, match=message):
        MindLLMReleaseReader(root).prepare(root / "store")
    assert not (root / "store").exists()


def test_two_layouts_ask_for_one(root: Path) -> None:
    write_nsd0(root)
    write_mindeye(root)
    write_info(root)
    with pytest.raises(InputError, match=r"\['nsd0', 'mindeye'\]; choose one with --layout"):
        MindLLMReleaseReader(root).prepare(root / "store")
    assert (
        len(MindLLMReleaseReader(root, layout="mindeye").prepare(root / "store").trials("subj01"))
        == 3 * 30
    )
    with pytest.raises(InputError, match=r"has no subject subj07; it holds subj01, subj02"):
        MindLLMReleaseReader(root, layout="nsd0", subjects=["subj07"]).prepare(root / "other")


def test_references_take_the_form_of_their_task() -> None:
    from mindllm.datasets.mindllm_release import flatten_answers
    from mindllm.evaluation.question_answering import build_reference

    def stored(said: str, published) -> list[str]:
        return flatten_answers(
            [{"role": "user", "content": "<fMRI>?"}, {"role": "assistant", "content": said}],
            published,
        )

    ten = ["two"] * 6 + ["2"] * 4
    assert sorted(build_reference(stored("two", ten), "vqa")) == sorted(ten)
    whole = "two. Here is the explanation: There are two."
    assert build_reference(stored(whole, [ten, "There are two."]), "vqa-e") == {
        "answers": ten,
        "explanation": ["There are two."],
    }
    sentence = build_reference(stored("There are two.", ["two", "There are two.", ten]), "fsvqa")
    assert sentence == {"sentence": "There are two.", "answer": "two", "answers": ten}
    assert build_reference(stored("red", ["color", "red"]), "tdiuc") == {
        "type": "color",
        "answer": "red",
    }
    assert build_reference(stored("3", "3"), "count") == "3"


def test_shuffled_scans_show_something_else() -> None:
    from mindllm.evaluation.question_answering import shuffle_scans

    shown = np.array(["a", "a", "b", "c", "c", "c"])
    assert (shown[shuffle_scans(shown, np.random.default_rng(0))] != shown).all()
    with pytest.raises(InputError, match="all scans show one stimulus"):
        shuffle_scans(np.array(["a", "a"]), np.random.default_rng(0))


def test_a_published_model_trains_evaluates_and_decodes_as_any_other(
    root: Path, tiny_llm_folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(root)
    write_nsd0(root)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    run(
        "prepare",
        "mindllm-release",
        ".",
        "--out",
        "store",
        "--val-fraction",
        "0.2",
        "--sources",
        "coco-caption",
    )
    told = run(
        "convert",
        "model.ckpt",
        "--roi-dir",
        "data/roi",
        "--llm",
        tiny_llm_folder,
        "--out",
        "model",
        "--trained-on",
        "subj01",
    )
    assert "tensors used, none left over" in told.replace("\n", " ")
    published = mindllm.MindLLM.from_pretrained("model")
    store = Store("store")
    values = store.betas("subj02", [3], standardize=True)
    assert (
        published.maskers["subj02"].parcel_labels.keys()
        == store.masker("subj02").parcel_labels.keys()
    )
    torch.testing.assert_close(
        published.encode(values, published.maskers["subj02"]),
        published.encode(values, store.masker("subj02")),
    )

    # evaluate: the people and their test trials, the model's own question
    report = evaluate(published, store, progress=False, max_new_tokens=4)
    assert report.run_info.question == "<fMRI>\nPlease describe the fMRI as simply as possible."
    assert report.run_info.model.trained_on_subjects == ("subj01",)
    assert {p.stimulus for p in report.predictions} == {str(COCO[n]) for n in TEST}
    run("evaluate", "model", "store", "--out", "report", "--max-new-tokens", 4)

    # answer: the questions of a source, scored officially; the repeats of an image averaged
    run(
        "prepare",
        "mindllm-release",
        ".",
        "--out",
        "asked",
        "--val-fraction",
        "0",
        "--sources",
        "coco-qa",
    )
    run(
        "evaluate-qa",
        "model",
        "asked",
        "--source",
        "coco-qa",
        "--average-repetitions",
        "--max-new-tokens",
        4,
        "--out",
        "answers",
    )
    told = json.loads(Path("answers/scores.json").read_text())
    assert (told["n_items"], told["task"], told["average_repetitions"]) == (
        2 * len(TEST),
        "exact",
        True,
    )
    assert set(told["scores"]) == {"fmri", "shuffled_trials", "null_tokens", "question_only"}
    said = json.loads(Path("answers/predictions-fmri.json").read_text())
    asked = Store("asked")
    trials = asked.trials("subj01")
    shown = str(COCO[TEST[0]])
    mean = asked.betas(
        "subj01", np.flatnonzero(trials["stimulus"] == shown), standardize=True
    ).mean(0)
    question = f"<fMRI>\nwhat is in image {TEST[0]} ?\nAnswer the question with a short phrase."
    alone = published.decode(mean, asked.masker("subj01"), question, max_new_tokens=4)[0]
    assert said[f"subj01/{shown}/0"] == alone
    again = run(
        "score",
        "answers/predictions-fmri.json",
        "answers/references.json",
        "--task",
        "exact",
        "--json",
    )
    assert json.loads(again)["scores"] == told["scores"]["fmri"]

    # decode: with the voxels that travel along, or with the ROI files
    scan = store.masker("subj02").inverse_transform(store.betas("subj02")[:9])
    nib.save(scan, "scan.nii.gz")
    own = run(
        "decode",
        "model",
        "scan.nii.gz",
        "--subject",
        "subj02",
        "--standardized",
        "--volumes",
        "0-2",
        "--max-new-tokens",
        8,
        "--json",
    )
    rois = Path("data/roi/subj02")
    files = [
        "--mask",
        rois / "nsdgeneral.nii.gz",
        *(w for p in "AB" for w in ("--atlas", f"{p}={rois / p}.nii.gz")),
    ]
    same = run(
        "decode",
        "model",
        "scan.nii.gz",
        *files,
        "--standardized",
        "--volumes",
        "0-2",
        "--max-new-tokens",
        8,
        "--json",
    )
    assert same == own
    assert [a["volume"] for a in json.loads(own)] == [0, 1, 2]
    run(
        "decode", "model", "scan.nii.gz", "--subject", "subj02", "--max-new-tokens", 8
    )  # raw values are normalized
    expected = published.decode(
        store.betas("subj02", [0, 1, 2], standardize=True),
        published.maskers["subj02"],
        max_new_tokens=8,
    )
    assert [a["text"] for a in json.loads(own)] == expected

    # train further: the whole encoder, through the language model
    Path("options.yaml").write_text(
        "{instruction_tuning: {max_steps: 3, batch_size: 4, learning_rate: 0.01}, eval_steps: 1}"
    )
    run("train", "store", "--out", "further", "--init-from", "model", "--config", "options.yaml")
    further = mindllm.MindLLM.from_pretrained("further")
    assert further.model_card.subjects == ["subj01", "subj02"]
    assert further.model_card.started_from.converted_from.file == "model.ckpt"
    assert list(further.maskers) == ["subj01", "subj02"]
    assert further.model_card.stimuli is None
    before = dict(published.named_parameters())
    moved = {name for name, p in further.named_parameters() if not torch.equal(p, before[name])}
    assert {
        "encoder.queries",
        "encoder.head.token_proj.weight",
        "projector.weight",
        "encoder.parcel_proj.weight",
    } <= moved
    run("evaluate", "further", "store", "--out", "report-further", "--max-new-tokens", 4)
    run(
        "decode",
        "further",
        "scan.nii.gz",
        "--subject",
        "subj02",
        "--standardized",
        "--max-new-tokens",
        8,
    )
    rows = json.loads(Path("report-further/result.json").read_text())["rows"]
    assert rows
