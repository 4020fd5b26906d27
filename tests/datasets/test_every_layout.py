"""In every layout, a trial's text is about the stimulus that its betas stand for, and no other.

In each small data set some voxels at known coordinates hold a number that stands for the stimulus.
From there to the text of a training step, nothing is taken from the readers: the voxel is found by
its MNI coordinates.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import SubjectBatchSampler
from mindllm.data.store import Store
from mindllm.datasets import bids, laion_fmri, mindllm_release, mosaic, nsd
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.transforms import MNI305_TO_MNI152
from mindllm.instructions import attach_source
from mindllm.utils.errors import InputError
from tests.conftest import make_bids
from tests.datasets import (
    test_glmsingle,
    test_laion_fmri,
    test_mindllm_release,
    test_mosaic,
    test_nsd,
)

Thing = int | str  # what was shown: an image's COCO id, or what else tells it
ABOUT_STIMULI = Counter({"coco-caption": 2, "vqa-v2": 1, "caption": 1})


@dataclass(frozen=True)
class Mark:
    """A voxel that says what was shown: where it is, and its region."""

    mm: Sequence[float]
    parcellation: str
    region: str


@dataclass(frozen=True)
class Planted:
    """A store and what was planted in it.

    marks: subject -> voxels; thing: what their values mean.  shown: subject -> what each trial
    shows; runs: in which run, None where the order of trials is not known.  names: thing ->
    stimulus.  images: the table of COCO ids, for trials that have
    none.  step: how far apart the COCO ids of neighbouring images are.
    """

    store: Store
    marks: dict[str, list[Mark]]
    thing: Callable[..., Thing]
    shown: dict[str, list[Thing]]
    names: dict[Thing, str]
    runs: dict[str, list[str]] | None
    images: pd.DataFrame | None = None
    step: int = 1
    seen: dict[str, list[Thing]] = field(default_factory=dict)

    def read(self) -> None:
        """What each trial shows, by its values alone."""
        for subject, marks in self.marks.items():
            space, betas = self.store.masker(subject), self.store.betas(subject)
            values = [betas[:, nearest(space, mark.mm)].tolist() for mark in marks]
            self.seen[subject] = [self.thing(subject, *some) for some in zip(*values, strict=True)]

    def before(self, subject: str) -> list[Thing | None]:
        """What the trial before showed, None for the first of a run."""
        assert self.runs is not None
        things, runs = self.seen[subject], self.runs[subject]
        return [things[i - 1] if i and runs[i - 1] == run else None for i, run in enumerate(runs)]


def nearest(space: VoxelMasker, mm: Sequence[float]) -> int:
    far = np.abs(space.coords_mm - np.asarray(mm)).max(1)
    assert far.min() < 2e-3, f"{space.subject} has no voxel at {mm}"
    return int(far.argmin())


def relabel(file: Path, labels: dict[tuple[int, ...], int]) -> None:
    """Give these voxels these labels, and to no other voxel the same."""
    image = nib.load(file)
    values = np.asarray(image.dataobj).copy()
    values[np.isin(values, list(labels.values()))] = 0
    for ijk, label in labels.items():
        values[ijk] = label
    nib.save(nib.Nifti1Image(values, image.affine), file)


def in_nsd(root: Path) -> Planted:
    test_nsd.write_nsd(root)
    marks = {}
    for person, shape in test_nsd.PEOPLE.items():
        relabel(
            nsd.NSDSubjectFiles(root, person).functional / "roi" / "floc-faces.nii.gz",
            {(2, 2, 2): 2, (3, 2, 2): 1},
        )
        low, high = (10 * (np.array([i, 2, 2]) - np.array(shape) // 2) + 0.25 for i in (2, 3))
        marks[f"subj{person:02d}"] = [
            Mark(low, "floc-faces", "FFA-1"),
            Mark(high, "floc-faces", "OFA"),
        ]
    store = nsd.NSDReader(root, sessions=[1, 2]).prepare(root / "store", dtype="float32")
    shown = {
        f"subj{p:02d}": (100_000 + 3 * test_nsd.shown(root, p)[:1500]).tolist()
        for p in test_nsd.PEOPLE
    }
    lengths = [63 - run % 2 for run in range(12)]
    runs = [
        f"{session}.{run}" for session in (1, 2) for run in range(12) for _ in range(lengths[run])
    ]

    def thing(subject: str, rest: float, thirty_thousands: float) -> int:
        return 100_000 + 3 * (round(rest * 300) + 15000 + 30000 * round(thirty_thousands * 300))

    names = {coco: str((coco - 100_000) // 3) for some in shown.values() for coco in some}
    return Planted(store, marks, thing, shown, names, dict.fromkeys(marks, runs), step=3)


def in_mosaic(root: Path) -> Planted:
    (root / "anatomy").mkdir()
    test_mosaic.write_anatomy(root / "anatomy")
    files = {
        side: nib.load(root / "anatomy" / test_mosaic.FILES[side])
        for side in ("left", "right", "areas", "voxels")
    }
    axis = files["areas"].header.get_axis(1)
    assert test_mosaic.MARKS == [0, test_mosaic.LEFT + 10304, test_mosaic.GRAYORDINATES - 1]
    mm = [
        files["left"].agg_data("pointset")[axis.vertex[0]],
        files["right"].agg_data("pointset")[axis.vertex[40000]],
    ]
    ijk = np.argwhere(np.asarray(files["voxels"].dataobj).T == 49)[-1][
        ::-1
    ]  # the first index runs fastest
    mm.append(nib.affines.apply_affine(files["voxels"].affine, ijk))
    regions = [
        ("HCP_MMP1", "A1"),
        ("HCP_MMP1", f"A{10304 % 180 + 1}"),
        ("subcortex", test_mosaic.STRUCTURES[49]),
    ]
    marks = [Mark(place, *region) for place, region in zip(mm, regions, strict=True)]
    people = {"sub-01_NSD": "NSD", "sub-02_BOLD5000": "BOLD5000"}
    for name, dataset in people.items():
        test_mosaic.write_person(root, name.split("_")[0], dataset)
    store = mosaic.MOSAICReader(root, surface_dir=root / "anatomy").prepare(
        root / "store", dtype="float32"
    )
    names = {
        262145: "coco:262145",
        9: "coco:9",
        25: "coco:25",
        "012": "NSD:012",
        "n01440764_1": "imagenet:n01440764_1",
        "tower_a_b": "BOLD5000:tower_a_b",
    }

    def thing_of(picture: str) -> Thing:
        stem = Path(picture).stem
        return int(stem) if len(stem) == 12 else stem

    def thing(subject: str, *numbers: float) -> Thing:
        (number,) = {round(number) for number in numbers}
        return thing_of(test_mosaic.SHOWN[people[subject]][number - 1][0])

    shown = {
        name: [thing_of(picture) for picture, *_ in test_mosaic.SHOWN[dataset]]
        for name, dataset in people.items()
    }
    return Planted(store, dict.fromkeys(people, marks), thing, shown, names, runs=None)


def in_glmsingle(root: Path) -> Planted:
    """On an oblique grid."""
    test_glmsingle.write_outputs(root)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = nib.affines.from_matvec(turn * [-2, 2.5, 3], [10, -60, 5])
    for file in (root / "masks").glob("*.nii.gz"):
        values = np.asarray(nib.load(file).dataobj)
        nib.save(nib.Nifti1Image(values, affine), file)
        if "atlas" in file.name:
            relabel(file, {test_glmsingle.MARK: 2})
    store = test_glmsingle.prepare(root, root / "store")
    things: list[Thing] = ["picture00", *range(1001, 1006)]
    mark = [Mark(nib.affines.apply_affine(affine, test_glmsingle.MARK), "Areas", "V2")]
    subjects = sorted({subject for subject, _ in test_glmsingle.TRIALS})
    shown = {
        s: [
            things[n]
            for who, session in test_glmsingle.TRIALS
            if who == s
            for n in test_glmsingle.shown(s, session)
        ]
        for s in subjects
    }
    runs = {
        s: [
            f"{e}.{n // 4}"
            for (who, e), count in test_glmsingle.TRIALS.items()
            if who == s
            for n in range(count)
        ]
        for s in subjects
    }
    return Planted(
        store,
        dict.fromkeys(subjects, mark),
        lambda s, value: things[round(value - 0.5)],
        shown,
        dict(zip(things, test_glmsingle.STIMULI, strict=True)),
        runs,
    )


def in_laion(root: Path) -> Planted:
    test_laion_fmri.write_laion(root)
    store = laion_fmri.LAIONReader(root, sessions=[1, 2]).prepare(root / "store", dtype="float32")
    labels = sorted(
        {label for person in test_laion_fmri.PEOPLE for label in test_laion_fmri.images(person)}
    )
    number: dict[str, Thing] = {label: 5000 + n for n, label in enumerate(labels)}
    meaning = {
        person: {
            test_laion_fmri.code(label): number[label] for label in test_laion_fmri.images(person)
        }
        for person in test_laion_fmri.PEOPLE
    }
    mark = [
        Mark(
            nib.affines.apply_affine(
                MNI305_TO_MNI152 @ test_laion_fmri.TO_305 @ test_laion_fmri.AFFINE,
                test_laion_fmri.MARK,
            ),
            "laion",
            "laion-dorsal",
        )
    ]
    shown = {
        p: [number[label] for session in (1, 2) for label in test_laion_fmri.shown(p, session)]
        for p in test_laion_fmri.PEOPLE
    }
    runs = {
        p: [f"{session}.{n // 3}" for session in (1, 2) for n in range(count)]
        for p, count in test_laion_fmri.PEOPLE.items()
    }
    images = pd.DataFrame({"stimulus": labels, "coco_id": number.values()})
    return Planted(
        store,
        dict.fromkeys(shown, mark),
        lambda s, value: meaning[s][value],
        shown,
        {thing: label for label, thing in number.items()},
        runs,
        images,
    )


def in_bids(root: Path) -> Planted:
    """The rows of the trials tables stand in any order."""
    make_bids(root)
    marks, shown, runs = {}, {}, {}
    atlas = root / "atlas-visual_space-MNI152_dseg.nii.gz"
    places = {}
    for folder in sorted(root.glob("sub-*")):
        mask = nib.load(next(folder.rglob("*_mask.nii.gz")))
        places[folder.name] = ijk = tuple(np.argwhere(np.asarray(mask.dataobj))[7].tolist())
        marks[folder.name] = [Mark(nib.affines.apply_affine(mask.affine, ijk), "visual", "FFA")]
        shown[folder.name], runs[folder.name] = [], []
        for session, file in enumerate(sorted(folder.rglob("*_trials.tsv"))):
            table = pd.read_csv(file, sep="\t")
            numbers = table["stimulus"].str.removeprefix("stim").astype(int)
            scan = next(file.parent.glob("*_statmap.nii.gz"))
            image = nib.load(scan)
            raw = image.dataobj.get_unscaled().copy()
            raw[ijk] = 10 * numbers
            changed = nib.Nifti1Image(raw, image.affine)
            changed.header.set_slope_inter(0.5, 40)
            nib.save(changed, scan)
            shown[folder.name] += (300 + numbers).tolist()
            runs[folder.name] += [str(session)] * len(table)
            table.sample(frac=1, random_state=session).to_csv(file, sep="\t", index=False)
    relabel(atlas, dict.fromkeys(places.values(), 3))
    names: dict[Thing, str] = {300 + n: f"stim{n}" for n in range(6)}
    images = pd.DataFrame({"stimulus": names.values(), "coco_id": names.keys()})
    return Planted(
        bids.BIDSReader(root).prepare(root / "store"),
        marks,
        lambda s, value: 300 + round((value - 40) / 5),
        shown,
        names,
        runs,
        images,
    )


def in_prepared(root: Path, layout: str) -> Planted:
    """In the layouts of the authors' prepared data the voxel is the eighth of the mask."""
    test_mindllm_release.write_official(root)
    (test_mindllm_release.write_nsd0 if layout == "nsd0" else test_mindllm_release.write_mindeye)(
        root
    )
    marks, shown, runs = {}, {}, {}
    for subject, mask in test_mindllm_release.masks(root).items():
        ijk = tuple(np.argwhere(mask)[7].tolist())
        relabel(root / "data" / "roi" / subject / "A.nii.gz", {ijk: 3})
        marks[subject], shown[subject], runs[subject] = (
            [Mark(1.8 * np.array(ijk), "A", "3")],
            [],
            [],
        )
        person, splits = (
            int(subject[4:]),
            {
                "train": test_mindllm_release.TRAIN[subject],
                "val": test_mindllm_release.VAL,
                "test": test_mindllm_release.TEST,
            },
        )
        if layout == "nsd0":
            with h5py.File(root / "data" / "nsd0" / f"subject_{person}.h5", "r+") as file:
                for split, repeats in (("train", 2), ("test", 3)):
                    order = test_mindllm_release.order_of(person, splits[split], repeats)
                    for key, (image, _) in enumerate(order):
                        file[f"{split}/{key}/visual_voxels"][7] = image
                    shown[subject] += [test_mindllm_release.COCO[image] for image, _ in order]
                    runs[subject] += [split] * len(order)
        else:
            for split, images in splits.items():
                for image in images:
                    file = (
                        root
                        / "data"
                        / "webdataset_avg_split"
                        / split
                        / subject
                        / f"sample{900 - image:06d}.nsdgeneral.npy"
                    )
                    values = np.load(file)
                    values[:, 7] = image
                    np.save(file, values)
                    shown[subject] += [test_mindllm_release.COCO[image]] * len(values)
    if layout == "mindeye":
        test_mindllm_release.write_info(root)
    store = mindllm_release.MindLLMReleaseReader(root, sources=["coco-caption"]).prepare(
        root / "store", val_fraction=0
    )
    names = {
        coco: str(image if layout == "mindeye" else coco)
        for image, coco in test_mindllm_release.COCO.items()
    }
    return Planted(
        store,
        marks,
        lambda s, value: test_mindllm_release.COCO[round(value)],
        shown,
        names,
        runs if layout == "nsd0" else None,
        step=7,
    )


LAYOUTS: dict[str, Callable[[Path], Planted]] = {
    "nsd": in_nsd,
    "mosaic": in_mosaic,
    "glmsingle": in_glmsingle,
    "laion": in_laion,
    "bids": in_bids,
    "official nsd0": lambda root: in_prepared(root, "nsd0"),
    "official mindeye": lambda root: in_prepared(root, "mindeye"),
}


def write_coco(folder: Path, images: Sequence[int]) -> None:
    """Two captions of each image, in the official form; train and val hold other images."""
    folder.mkdir()
    for split, parity in (("train", 0), ("val", 1)):
        some = [image for image in images if image % 2 == parity]
        lines = [
            (image, 2 * image + k, f"{word} picture of #{image}#.")
            for k, word in enumerate(("One", "Another"))
            for image in some
        ]
        content = {
            "info": {"description": "COCO 2017 Dataset"},
            "licenses": [],
            "images": [{"file_name": f"{image:012}.jpg", "id": image} for image in some],
            "annotations": [
                {"image_id": image, "id": number, "caption": text} for image, number, text in lines
            ],
        }
        (folder / f"captions_{split}2017.json").write_text(json.dumps(content))


def write_vqa(folder: Path, images: Sequence[int]) -> None:
    """A question about each image; the answers stand in another order than the questions."""
    folder.mkdir()
    info = {"info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0"}}
    asked = [
        {"image_id": image, "question": f"Is this #{image}#?", "question_id": 1000 * image}
        for image in images
    ]
    said = [
        {
            "image_id": image,
            "question_id": 1000 * image,
            "question_type": "is",
            "answer_type": "other",
            "multiple_choice_answer": f"#{image}#",
            "answers": [
                {"answer": f"#{image}#", "answer_confidence": "yes", "answer_id": k}
                for k in range(1, 11)
            ],
        }
        for image in images[::-1]
    ]
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(
        json.dumps(info | {"questions": asked})
    )
    (folder / "v2_mscoco_train2014_annotations.json").write_text(
        json.dumps(info | {"annotations": said})
    )


def beside(numbers: Iterable[int], step: int) -> list[int]:
    """These numbers, and one and two from each."""
    return sorted({number + k * s for number in numbers for k in range(-2, 3) for s in (1, step)})


@pytest.fixture(scope="module", params=LAYOUTS)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store of each layout, with every source of text, also about images that were not shown."""
    planted = LAYOUTS[request.param](tmp_path_factory.mktemp("layout"))
    planted.read()
    store, files = planted.store, planted.store.path.parent / "files"
    files.mkdir()
    images = beside(
        [thing for some in planted.shown.values() for thing in some if isinstance(thing, int)],
        planted.step,
    )
    write_coco(files / "coco", images)
    write_vqa(files / "vqa", images)
    own = {name: f"Own words about #{thing}#" for thing, name in planted.names.items()}
    for name in list(own):
        others = (
            [str(n) for n in beside([int(name)], 1)]
            if name.isdecimal()
            else [f"{name}1", name[:-1]]
        )
        own |= {other: "Own words about #another#" for other in others if other not in own}
    (files / "own.tsv").write_text(
        "stimulus\tcaption\n" + "".join(f"{a}\t{b}\n" for a, b in own.items())
    )
    attach_source(store, "coco-caption", [files / "coco"], images=planted.images)
    attach_source(store, "vqa-v2", [files / "vqa"], images=planted.images)
    attach_source(store, "caption", [files / "own.tsv"])
    if planted.runs is not None:
        attach_source(store, "coco-caption-previous", [files / "coco"], images=planted.images)
    return planted


def about(row: Any) -> set[str]:
    """What a conversation and its answers are about."""
    texts = [*(turn["content"] for turn in row.turns), *row.answers]
    found = [re.findall("#(.+?)#", text) for text in (" ".join(texts[:2]), *texts[2:])]
    assert all(found), f"what {row.source} says is of none of these files: {texts}"
    return {thing for some in found for thing in some}


def test_a_voxel_is_where_it_was_planted_and_says_what_was_shown(planted: Planted) -> None:
    assert planted.store.subjects == list(planted.shown)
    for subject, marks in planted.marks.items():
        space = planted.store.masker(subject)
        for mark in marks:
            number = space.parcel_labels[mark.parcellation][nearest(space, mark.mm)]
            assert space.parcel_names[mark.parcellation][number] == mark.region
        if planted.runs is None:
            assert Counter(planted.seen[subject]) == Counter(planted.shown[subject])
        else:
            assert planted.seen[subject] == planted.shown[subject], "in the order of showing"


def test_every_trial_is_told_what_was_shown(planted: Planted) -> None:
    table = planted.store.conversations.dropna(subset="stimulus")
    told = {str(name): list(rows.itertuples()) for name, rows in table.groupby("stimulus")}
    for subject, seen in planted.seen.items():
        trials = planted.store.trials(subject)
        assert len(trials) == len(seen)
        for row, (stimulus, thing) in enumerate(zip(trials["stimulus"], seen, strict=True)):
            assert stimulus == planted.names[thing], f"{subject}, trial {row}"
            rows = told[stimulus]
            expected = ABOUT_STIMULI if isinstance(thing, int) else Counter(["caption"])
            assert Counter(row.source for row in rows) == expected, f"{subject}, trial {row}"
            assert {name for row in rows for name in about(row)} == {str(thing)}, (
                f"{subject}, trial {row}"
            )


def test_the_image_before_is_that_of_the_trial_before(planted: Planted) -> None:
    if planted.runs is None:
        with pytest.raises(InputError, match="does not say in which order its trials were shown"):
            attach_source(
                planted.store,
                "coco-caption-previous",
                [planted.store.path.parent / "files" / "coco"],
            )
        return
    table = planted.store.conversations
    table = table[table["stimulus"].isna()]
    assert set(table["source"]) == {"coco-caption-previous"}
    found = {(row.subject, row.trial_index): about(row) for row in table.itertuples()}
    assert len(found) == len(table), "one each"
    expected = {
        (subject, row): {str(thing)}
        for subject in planted.seen
        for row, thing in enumerate(planted.before(subject))
        if isinstance(thing, int)
    }
    assert found == expected


def test_training_reads_of_a_sample_what_its_scans_show(planted: Planted) -> None:
    store, rng, kinds = planted.store, np.random.default_rng(0), set()
    for split in sorted(
        {kind for subject in store.subjects for kind in store.trials(subject)["split"]}
    ):
        trials = TrialDataset(store, store.subjects, split)
        words = ConversationDataset(store, [trials])
        for _ in range(12):
            sampler = SubjectBatchSampler(trials, 40, len(store.subjects), (0.1, 0.6), 0.3)
            batch = sampler.sample(rng)
            read = [
                (person.subject, int(row))
                for person in batch.subjects
                for row in person.trial_indices
            ]
            for sample, turns in enumerate(words.sample_conversations(batch, rng)):
                mine = [read[i] for i in np.flatnonzero(batch.mixing_weights[sample])]
                shown = {str(planted.seen[subject][row]) for subject, row in mine}
                text = " ".join(turn["content"] for turn in turns)
                kind = next(
                    (k for k in ("previously", "Own words", "Is this", "picture") if k in text),
                    "other",
                )
                kinds.add(kind)
                if kind == "previously":
                    ((subject, row),) = mine  # of one trial, not of a mix
                    shown = {str(planted.before(subject)[row])}
                assert set(re.findall("#(.+?)#", text)) == shown, f"{mine}: {text}"
    assert kinds == {"Own words", "Is this", "picture"} | (
        {"previously"} if planted.runs else set()
    )
