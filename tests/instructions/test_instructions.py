"""The instruction sources: small files in each official format, and how they can be wrong."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.evaluation import question_answering
from mindllm.instructions import SOURCES, attach_source, collect, json_stream, summary
from mindllm.instructions.registry import ASPECTS, Style
from mindllm.instructions.source_files import detect_file_formats
from mindllm.language.conversation import QUESTION, build_conversation, check_conversation
from mindllm.metrics.tasks import score
from mindllm.utils.errors import InputError
from tests.conftest import make_space

KNOWN, NEIGHBOURS = (
    262148,
    (262147, 262149),
)  # the image that is asked about; the numbers beside it are shown too
GENOME = {2410408: KNOWN, 2410407: None, 2410409: KNOWN + 1}  # Visual Genome's numbers
SHOWN = {"known": KNOWN, "below": NEIGHBOURS[0], "above": NEIGHBOURS[1], "twin": KNOWN}
SHORT = "Answer the question with a short phrase."
INFO = {
    "description": "This is v2.0 of the VQA dataset.",
    "url": "http://visualqa.org",
    "version": "2.0",
    "year": 2017,
}
OLD = INFO | {"description": "This is v1.0 of the VQA dataset.", "version": "1.0"}
PEOPLE = ["down", "at table", "down", "down", "skateboard", "down", "table", "down", "down", "down"]


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two people; in each run the order is known, above, below, twin."""
    order = ["known", "above", "below", "twin"] * 2
    trials = pd.DataFrame(
        {"stimulus": order, "run": ["1"] * 4 + ["2"] * 4, "coco_id": [SHOWN[s] for s in order]}
    )
    rng = np.random.default_rng(0)
    people = [
        (make_space(f"sub-0{n}", 20, seed=n), rng.normal(size=(8, 20)).astype(np.float32), trials)
        for n in (1, 2)
    ]
    empty = pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []})
    return write_store(tmp_path / "store", people, empty, name="shown")


# Each function writes a source's files into a folder: one question about KNOWN, others about
# images that were not shown.


def coco(folder: Path) -> None:
    for split, numbers in {
        "train": [(KNOWN, 11), (9, 12)],
        "val": [(KNOWN, 13), (KNOWN + 1000, 14)],
    }.items():
        put(
            folder / f"captions_{split}2017.json",
            {
                "info": {"description": "COCO 2017 Dataset", "version": "1.0"},
                "licenses": [{"id": 1, "name": "", "url": ""}],
                "images": [
                    {
                        "license": 1,
                        "file_name": f"{image:012}.jpg",
                        "height": 1,
                        "width": 1,
                        "id": image,
                    }
                    for image, _ in numbers
                ],
                "annotations": [
                    {"image_id": image, "id": number, "caption": f"A dog, told {number}. \n"}
                    for image, number in numbers
                ],
            },
        )


def genome_images(folder: Path) -> None:
    put(
        folder / "image_data.json",
        [
            {
                "width": 800,
                "url": f"https://cs.stanford.edu/people/rak248/VG_100K_2/{n}.jpg",
                "height": 600,
                "image_id": n,
                "coco_id": c,
                "flickr_id": None,
            }
            for n, c in {**GENOME, 1: None, 2: 9}.items()
            if c != KNOWN + 1
        ],
    )


def paragraph(folder: Path) -> None:
    genome_images(folder)
    put(
        folder / "paragraphs_v1.json",
        [
            {
                "url": f"https://cs.stanford.edu/people/rak248/VG_100K_2/{n}.jpg",
                "image_id": n,
                "paragraph": f"On a board {n} is a dog. It runs. ",
            }
            for n in GENOME
        ],
    )
    put(folder / "train_split.json", list(GENOME))


def coco_qa(folder: Path) -> None:
    for split, image in {"train": KNOWN, "test": 9}.items():
        put(
            folder / split / "questions.txt",
            f"what is the color of the {split} bus\nhow many dogs run\n",
        )
        put(folder / split / "answers.txt", "red\ntwo\n")
        put(folder / split / "img_ids.txt", f"{image}\n57870\n")
        put(folder / split / "types.txt", "2\n1\n")


def genome_qa(folder: Path) -> None:
    genome_images(folder)
    put(
        folder / "question_answers.json",
        [
            {
                "id": n,
                "qas": [
                    {
                        "a_objects": [],
                        "question": "What color is the clock?",
                        "image_id": n,
                        "qa_id": n + 1,
                        "answer": "Green.",
                        "q_objects": [],
                    }
                ],
            }
            for n in GENOME
        ],
    )


def vqa(
    folder: Path,
    prefix: str = "v2_",
    info: Any = INFO,
    per_image: int = 1000,
    split: str = "train",
    **more: Any,
) -> None:
    pairs = (
        [(KNOWN, KNOWN * per_image), (9, 9 * per_image)]
        if split == "train"
        else [(42, 42 * per_image)]
    )
    put(
        folder / f"{prefix}OpenEnded_mscoco_{split}2014_questions.json",
        {
            "info": info,
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "license": {"url": "", "name": ""},
            "data_subtype": f"{split}2014",
            "questions": [
                {
                    "image_id": image,
                    "question": f"Where is he looking, {number}?",
                    "question_id": number,
                }
                for image, number in pairs
            ],
        },
    )
    put(
        folder / f"{prefix}mscoco_{split}2014_annotations.json",
        {
            "info": info,
            "license": {"url": "", "name": ""},
            "data_subtype": f"{split}2014",
            "annotations": [
                {
                    "question_type": "none of the above",
                    "answer_type": "other",
                    "image_id": image,
                    "question_id": number,
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": n}
                        for n, a in enumerate(PEOPLE, 1)
                    ],
                }
                | {"multiple_choice_answer": "down"}
                | more
                for image, number in pairs
            ],
            "data_type": "mscoco",
        },
    )


def ok_vqa(folder: Path) -> None:
    vqa(folder, "", OLD | {"description": "This is v1.0 of the OK-VQA dataset."}, 10)
    path = folder / "mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        del one["multiple_choice_answer"]
        one |= {
            "question_type": "four",
            "confidence": 3,
            "answers": [a | {"raw_answer": a["answer"] + "s"} for a in one["answers"]],
        }
    put(path, content | {"question_types": {"four": "Sports and Recreation"}})


def tdiuc(folder: Path) -> None:
    vqa(
        folder,
        "",
        {"description": "TDIUC"},
        7,
        ans_source="amt_v1",
        question_type="color",
        answers=[{"answer": "red", "answer_confidence": "yes"}],
    )
    path = folder / "mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        del one["multiple_choice_answer"], one["answer_type"]
    put(path, content)


def fsvqa(folder: Path) -> None:
    vqa(folder / "VQA", "", OLD, 10)
    pairs = [(KNOWN, KNOWN * 10), (9, 90)]
    put(
        folder / "fsvqa_original_train_questions.json",
        {
            "questions": [
                {"question_id": n, "img_id": i, "question": "where is he looking?"}
                for i, n in pairs
            ]
        },
    )
    put(
        folder / "fsvqa_original_train_annotations.json",
        {
            "annotations": [
                {"question_id": n, "img_id": i, "answers": [{"answer": "He is looking down."}]}
                for i, n in pairs
            ]
        },
    )


def st_vqa(folder: Path) -> None:
    rows = [
        ("coco-text", f"COCO_train2014_{KNOWN:012}.jpg"),
        ("coco-text", "COCO_train2014_000000000009.jpg"),
        ("VizWiz", f"VizWiz_train_{KNOWN:012}.jpg"),
        ("iiit_text", "img_000846.jpg"),
    ]
    for task in (1, 3):  # the tasks repeat the questions
        put(
            folder / f"train_task_{task}.json",
            {
                "task": task,
                "data": [
                    {
                        "question_id": n,
                        "image_classification": "train",
                        "question": "Who is holding the mini jet?",
                        "answers": ["U.S. AIR FORCE", "AIR FORCE"],
                        "file_path": f"{dataset}/{name}",
                        "file_name": name,
                        "dataset": dataset,
                        "set_name": "train",
                    }
                    for n, (dataset, name) in enumerate(rows, 21)
                ],
            },
        )


def tally_qa(folder: Path) -> None:
    genome_images(folder)
    common = {"question": "How many headlights does the black bus have?", "answer": 4}
    put(
        folder / "train.json",
        [
            common
            | {
                "image": "VG_100K_2/2410408.jpg",
                "image_id": 92410408,
                "data_source": "imported_genome",
                "question_id": 30095774,
            },
            common
            | {
                "image": "VG_100K/2410407.jpg",
                "image_id": 92410407,
                "data_source": "imported_genome",
                "question_id": 30095773,
            },
            common
            | {
                "image": f"VG_100K/{KNOWN}.jpg",
                "image_id": KNOWN + 90_000_000,
                "data_source": "amt",
                "question_id": 30095772,
            },
        ],
    )
    put(
        folder / "test.json",
        [
            common
            | {
                "image": "val2014/COCO_val2014_000000000009.jpg",
                "image_id": 9,
                "data_source": "amt",
                "question_id": 3,
                "issimple": True,
            }
        ],
    )


def vqa_e(folder: Path) -> None:
    for split, image in {"train": KNOWN, "val": 9}.items():
        put(
            folder / f"VQA-E_{split}_set.json",
            [
                {
                    "img_id": image,
                    "question": "Where is he looking?",
                    "answers": PEOPLE,
                    "multiple_choice_answer": "down",
                    "answer_type": "other",
                    "question_type": "where is the",
                    "explanation": ["A man looks down at his skateboard.", 0.71],
                },
            ],
        )


def vsr(folder: Path) -> None:
    one = {
        "image_link": "http://images.cocodataset.org/train2017/x.jpg",
        "caption": "The bench is left of the train.",
        "relation": "left of",
        "annotator_id": 1,
        "vote_true_validator_id": "[]",
        "vote_false_validator_id": "[2, 10, 1]",
        "reference_frame": None,
    }
    lines = [
        one | {"image": f"{image:012}.jpg", "label": label} for image, label in ((KNOWN, 0), (9, 1))
    ]
    for split in ("random", "zeroshot"):  # which share statements
        put(folder / split / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def refcoco(folder: Path) -> None:
    lines = [
        {
            "img_path": f"COCO_train2014_{image:012}.jpg",
            "expression": "the dog on the left",
            "bbox": [0.0, 120.0, 320.0, 480.0],
            "dataset_name": "refcoco",
            "height": 480,
            "width": 640,
        }
        for image in (KNOWN, 9)
    ]
    put(folder / "REC_refcoco_unc_train.jsonl", "".join(json.dumps(x) + "\n" for x in lines))


def a_okvqa(folder: Path) -> None:
    one = {
        "question": "What is in the motorcyclist's mouth?",
        "choices": ["toothpick", "food", "popsicle stick", "cigarette"],
    }
    right = {
        "correct_choice_idx": 3,
        "direct_answers": ["cigarette"] * 10,
        "difficult_direct_answer": False,
        "rationales": ["He's smoking while riding.", "Smoke.", "A cigarette."],
    }
    put(
        folder / "aokvqa_v1p0_train.json",
        [
            one | right | {"split": "train", "image_id": i, "question_id": q}
            for i, q in ((KNOWN, "22jbM6gDxdaMaunuzgrsBB"), (9, "2"))
        ],
    )
    put(
        folder / "aokvqa_v1p0_test.json",
        [
            one
            | {
                "split": "test",
                "image_id": 77,
                "question_id": "x",
                "difficult_direct_answer": False,
            }
        ],
    )


def visdial(folder: Path) -> None:
    rounds = [
        {"answer": n % 3, "gt_index": 5, "question": n % 2, "answer_options": list(range(3))}
        for n in range(10)
    ]
    put(
        folder / "visdial_1.0_train.json",
        {
            "version": "1.0",
            "split": "train",
            "data": {
                "dialogs": [
                    {
                        "image_id": image,
                        "dialog": rounds,
                        "caption": "a bedroom is filled with posters",
                    }
                    for image in (KNOWN, 9)
                ],
                "answers": ["yes", "no, in the image", "3"],
                "questions": ["is the image in color", "is the girl alone?"],
            },
        },
    )
    put(
        folder / "visdial_1.0_test.json",
        {
            "version": "1.0",
            "split": "test2018",
            "data": {
                "dialogs": [
                    {"image_id": 568676, "dialog": [*rounds[:2], {"question": 1}], "caption": "x"}
                ],
                "answers": ["yes", "no", "3"],
                "questions": ["is it", "how"],
            },
        },
    )


def talk(first: str) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": first},
        {"from": "gpt", "value": "The bus in the image is white."},
        {"from": "human", "value": "Is the image dark?"},
        {"from": "gpt", "value": "No."},
    ]


def llava(folder: Path) -> None:
    put(
        folder / "llava_instruct_150k.json",
        [
            {
                "id": f"{image:012}",
                "image": f"{image:012}.jpg",
                "conversations": talk("<image>\nWhat are the colors of the bus in the image?"),
            }
            for image in (KNOWN, 9)
        ],
    )


def lvis(folder: Path) -> None:
    put(
        folder / "lvis_instruct4v_220k.json",
        [
            {
                "id": f"coco/train2017/{image:012}",
                "image": f"coco/train2017/{image:012}.jpg",
                "conversations": talk("What are the colors of the bus in the image?\n<image>"),
            }
            for image in (KNOWN, 9)
        ],
    )


def gqa(folder: Path) -> None:
    genome_images(folder)
    common = {
        "question": "Is there a red apple on the table?",
        "isBalanced": True,
        "groups": {"global": None, "local": "8r-binary-apple"},
        "entailed": [],
        "types": {},
        "semantic": [],
    }
    said = {"answer": "no", "fullAnswer": "No, there is an apple but it is green."}
    put(
        folder / "train_balanced_questions.json",
        {
            "1238592": common | said | {"imageId": "2410408"},
            "07333408": common | said | {"imageId": "2410407"},
            "5": common | said | {"imageId": "n161313"},
        },
    )
    put(
        folder / "test_balanced_questions.json",
        {"6": {"imageId": "2", "question": "Is it red?", "isBalanced": True}},
    )


def own(folder: Path) -> None:
    put(
        folder / "captions.tsv",
        "stimulus\tcaption\tby\nknown\tA dog, told 11.\tme\nknown\tA dog, told 13. \tme\ntwin\tA "
        "dog, told 11.\tme\nthere\tA cat.\tme\n",
    )


WHERE = f"Where is he looking, {KNOWN}"
BUS = "What are the colors of the bus in the image?"
# source: files, question, answer of the conversation, answers as stored, key, metrics at 100 %
CASES: dict[str, tuple[Callable[[Path], None], str, str, list[str], str, list[str]]] = {
    "coco-caption": (
        coco,
        "Please describe the fMRI as simply as possible.",
        "A dog, told 11.",
        ["A dog, told 11.", "A dog, told 13."],
        "11",
        [],
    ),
    "paragraph-caption": (
        paragraph,
        "Describe the fMRI in one paragraph.",
        "On a board 2410408 is a dog. It runs.",
        ["On a board 2410408 is a dog. It runs."],
        "2410408",
        [],
    ),
    "coco-qa": (
        coco_qa,
        f"what is the color of the train bus\n{SHORT}",
        "red",
        ["red"],
        "train-1",
        ["accuracy"],
    ),
    "visual-genome": (
        genome_qa,
        f"What color is the clock?\n{SHORT}",
        "Green.",
        ["Green."],
        "2410409",
        ["accuracy"],
    ),
    "vqa-v2": (
        vqa,
        f"{WHERE}000?\n{SHORT}",
        "down",
        ["down", *PEOPLE[1:]],
        f"{KNOWN}000",
        ["accuracy"],
    ),
    "ok-vqa": (
        ok_vqa,
        f"{WHERE}0?\n{SHORT}",
        "down",
        ["down", *PEOPLE[1:]],
        f"{KNOWN}0",
        ["accuracy"],
    ),
    "st-vqa": (
        st_vqa,
        f"Who is holding the mini jet?\n{SHORT}",
        "U.S. AIR FORCE",
        ["U.S. AIR FORCE", "AIR FORCE"],
        "21",
        ["ANLS"],
    ),
    "tally-qa": (
        tally_qa,
        "How many headlights does the black bus have?\nAnswer the question with a number.",
        "4",
        ["4"],
        "30095774",
        ["accuracy"],
    ),
    "vqa-e": (
        vqa_e,
        "Where is he looking?\nAnswer with a short phrase and provide explanation for your answer.",
        "down. Here is the explanation:\nA man looks down at his skateboard.",
        [
            "down. Here is the explanation:\nA man looks down at his skateboard.",
            "down",
            *PEOPLE[1:],
            "A man looks down at his skateboard.",
        ],
        "VQA-E_train_set-1",
        ["accuracy"],
    ),
    "vsr": (
        vsr,
        "The bench is left of the train.\nPlease answer yes or no about whether the statement "
        "about the image is true.",
        "No.",
        ["No."],
        "train-1",
        ["accuracy"],
    ),
    "refcoco": (
        refcoco,
        "the dog on the left\nAnswer with the box of it in the image, as [x1,y1,x2,y2].",
        "[0.000,0.250,0.500,1.000]",
        ["[0.000,0.250,0.500,1.000]", "the dog on the left"],
        "REC_refcoco_unc_train-1",
        ["accuracy@0.5", "IoU"],
    ),
    "a-okvqa": (
        a_okvqa,
        "What is in the motorcyclist's mouth?\nMultiple Choices:\nA. toothpick\nB. food\nC. "
        "popsicle stick\nD. cigarette\n\nAnswer with option's letter from the given choices and "
        "provide explanation for your choice.",
        "D. He's smoking while riding.",
        ["D", "cigarette"],
        "22jbM6gDxdaMaunuzgrsBB",
        ["accuracy"],
    ),
    "fsvqa": (
        fsvqa,
        "where is he looking?\nAnswer the question in a full sentence.",
        "He is looking down.",
        ["He is looking down.", "down", "down", *PEOPLE[1:]],
        f"{KNOWN}0",
        ["VQA accuracy", "FSVQA accuracy"],
    ),
    "gqa": (
        gqa,
        f"Is there a red apple on the table?\n{SHORT}",
        "no",
        ["no"],
        "1238592",
        ["accuracy"],
    ),
    "tdiuc": (
        tdiuc,
        f"Where is he looking, {KNOWN * 7}?\n{SHORT}",
        "red",
        ["red", "color"],
        str(KNOWN * 7),
        ["accuracy", "arithmetic MPT"],
    ),
    "caption": (
        own,
        QUESTION,
        "A dog, told 11.",
        ["A dog, told 11.", "A dog, told 13."],
        "captions-1",
        [],
    ),
}
DIALOGUES = {"visdial": visdial, "llava": llava, "lvis": lvis}


def table_of(store: Store, source: str, folder: Path, style: Style = "mindllm") -> pd.DataFrame:
    files = {n: case[0] for n, case in CASES.items()} | DIALOGUES | {"coco-caption-previous": coco}
    files[source](folder)
    return collect(store, source, [folder], style=style)


def test_every_source_is_here() -> None:
    assert {*CASES, *DIALOGUES, "coco-caption-previous"} == set(SOURCES)
    assert len(SOURCES) == 20
    assert {source.aspect for source in SOURCES.values()} == set(ASPECTS)
    assert set(question_answering.SOURCES) <= set(SOURCES)


@pytest.mark.parametrize("source", list(CASES))
def test_a_question_goes_to_its_image_and_to_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    _, question, said, answers, key, full = CASES[source]
    table = table_of(store, source, tmp_path / "files")
    assert set(table["stimulus"]) == {
        "known",
        "twin",
    }  # both show the image; not the numbers beside it
    assert table["subject"].isna().all()
    assert table["trial_index"].isna().all()
    assert (table["source"] == source).all()
    row = table[(table["stimulus"] == "known")].iloc[0]
    assert row["turns"] == build_conversation(question, said)
    assert row["answers"] == answers
    assert row["key"] == key
    if source not in ("coco-caption", "caption"):  # which have a row per caption
        assert len(table) == 2
    for turns in table["turns"]:
        check_conversation(turns)
    if full:
        monkeypatch.setattr(
            "mindllm.metrics.captions.java_problem", lambda: "there is no Java"
        )  # accuracies alone
        task = question_answering.SOURCES.get(source, "exact")
        found = score(
            {"q": said}, {"q": question_answering.build_reference(row["answers"], task)}, task
        )
        assert [found.values[name] for name in full] == [100.0] * len(full)


def test_all_captions_of_an_image_count(store: Store, tmp_path: Path) -> None:
    table = table_of(store, "coco-caption", tmp_path / "files").query("stimulus == 'known'")
    one, two = "A dog, told 11.", "A dog, told 13."
    assert table["answers"].tolist() == [[one, two], [two, one]]
    assert [turns[1]["content"] for turns in table["turns"]] == [one, two]


def test_a_box_outside_its_image_is_refused(store: Store, tmp_path: Path) -> None:
    refcoco(tmp_path)
    file = tmp_path / "REC_refcoco_unc_train.jsonl"
    for bbox in ("[0.0, 120.0, 0.0, 480.0]", "[0.0, 120.0, 320.0, 481.0]"):
        content = file.read_text().replace("[0.0, 120.0, 320.0, 480.0]", bbox)
        (tmp_path / "wrong.jsonl").write_text(content)
        with pytest.raises(InputError, match=r"is not x1 < x2, y1 < y2 within 640 x 480 pixels"):
            collect(store, "refcoco", [tmp_path / "wrong.jsonl"])


def test_the_image_before_in_the_same_run(store: Store, tmp_path: Path) -> None:
    table = table_of(store, "coco-caption-previous", tmp_path / "files")
    # known, above, below, twin, known, above, below, twin: known comes right before rows 1 and 5;
    # twin before the next run's
    assert table[["subject", "trial_index"]].values.tolist() == [
        [s, t] for s in ("sub-01", "sub-02") for t in (1, 5)
    ]
    assert table["stimulus"].isna().all()
    assert (
        table["turns"].map(lambda turns: turns[0]["content"])
        == "Please describe the image the subject saw previously.\n<fMRI>"
    ).all()
    assert table["answers"].tolist() == [["A dog, told 11.", "A dog, told 13."]] * 4
    assert "(trials" not in str(attach_source(store, "coco-caption-previous", [tmp_path / "files"]))
    assert Store(store.path).conversations["trial_index"].tolist() == [1, 5, 1, 5]


def test_the_image_before_as_the_prepared_data_says_it(store: Store, tmp_path: Path) -> None:
    for subject in store.subjects:
        trials = store.trials(subject)
        trials["prev_coco_id"] = [-1, 9, 9, KNOWN, 9, -1, 9, 9]
    assert table_of(store, "coco-caption-previous", tmp_path / "files").groupby("trial_index")[
        "answers"
    ].first().map(len).to_dict() == {1: 1, 2: 1, 3: 2, 4: 1, 6: 1, 7: 1}


@pytest.mark.parametrize("source", list(DIALOGUES))
def test_dialogues_keep_their_rounds(
    store: Store, tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = table_of(store, source, tmp_path / "files")
    assert table["stimulus"].tolist() == ["known", "twin"]
    turns = table["turns"][0]
    check_conversation(turns)
    contents = [turn["content"] for turn in turns]
    if source == "visdial":
        assert contents[:4] == [
            "is the image in color?\n<fMRI>",
            "yes",
            "is the girl alone?",
            "no, in the image",
        ]
        assert contents[4] == "is the image in color?"
        assert len(turns) == 20
        assert "1 items have no answer" in caplog.text
    else:
        assert contents == [
            f"{BUS}\n<fMRI>",
            "The bus in the image is white.",
            "Is the image dark?",
            "No.",
        ]
    assert table["answers"][0] == [contents[-1]]


def test_published_words(store: Store, tmp_path: Path) -> None:
    def words(source: str) -> list[str]:
        table = table_of(store, source, tmp_path / source, style="published")
        for turns in table["turns"]:
            check_conversation(turns)
        return [turn["content"] for turn in table["turns"][0]]

    assert words("coco-caption")[0] == "<fMRI>\nPlease describe the fMRI as simply as possible."
    assert (
        words("coco-caption-previous")[0]
        == "<fMRI>\nPlease describe the fMRI the subject saw previously."
    )
    assert (
        words("vsr")[0]
        == "<fMRI>\nThe bench is left of the train.\nPlease answer yes or no about whether the "
        "statement about the fMRI is true."
    )
    assert words("vqa-v2") == [f"<fMRI>\n{WHERE}000?\n{SHORT}", "down"]
    bus = BUS.replace("image", "fMRI")
    said = ["The bus in the fMRI is white.", "Is the fMRI dark?", "No."]
    assert words("llava") == [f"<fMRI>\n{bus}", *said]
    assert words("lvis") == [f"{bus}\n<fMRI>", *said]
    # VisDial: the first question alone is rewritten, none gets a question mark
    assert words("visdial")[:5] == [
        "<fMRI>\nis the fMRI in color",
        "yes",
        "is the girl alone?",
        "no, in the image",
        "is the image in color",
    ]
    with pytest.raises(InputError, match="no style 'old'; choose mindllm or published"):
        table_of(store, "vsr", tmp_path / "vsr", style="old")  # type: ignore[arg-type]


def test_the_most_frequent_answer_where_the_file_does_not_say(store: Store, tmp_path: Path) -> None:
    ok_vqa(tmp_path / "f")
    path = tmp_path / "f" / "mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    tie = ["b", "a", "a", "b", "c", "d", "e", "f", "g", "h"]
    content["annotations"][0]["answers"] = [
        {"answer": a, "raw_answer": a, "answer_confidence": "yes"} for a in tie
    ]
    put(path, content)
    assert collect(store, "ok-vqa", [tmp_path / "f"])["answers"][0] == [
        "b",
        "a",
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
    ]


def test_train_and_val_in_any_order_and_names_that_clash(store: Store, tmp_path: Path) -> None:
    vqa(tmp_path / "f", split="val")
    vqa(tmp_path / "f")
    files = sorted((tmp_path / "f").iterdir())
    for some in (files, files[::-1], [*files, tmp_path / "f"]):
        assert len(collect(store, "vqa-v2", some)) == 2
    ok_vqa(tmp_path / "ok")
    renamed = [
        path.rename(path.with_name(f"{n}.txt"))
        for n, path in enumerate((tmp_path / "ok").iterdir())
    ]
    assert len(collect(store, "ok-vqa", renamed)) == 2


def test_images_may_be_told_by_a_table(store: Store, tmp_path: Path) -> None:
    for subject in store.subjects:
        store.trials(subject).drop(columns="coco_id", inplace=True)
    vsr(tmp_path / "f")
    with pytest.raises(InputError, match=r"no trial in .*store has a coco_id.*--images TABLE"):
        collect(store, "vsr", [tmp_path / "f"])
    images = pd.DataFrame({"stimulus": ["below", "elsewhere"], "coco_id": [KNOWN, 5]})
    assert collect(store, "vsr", [tmp_path / "f"], images=images)["stimulus"].tolist() == ["below"]
    with pytest.raises(
        InputError, match=r"columns \['stimulus', 'nsdId'\]; expected `stimulus` and `coco_id`"
    ):
        collect(store, "vsr", [tmp_path / "f"], images=images.rename(columns={"coco_id": "nsdId"}))
    with pytest.raises(
        InputError, match=r"names no stimulus of .*, whose stimuli are called as 'above'"
    ):
        collect(store, "vsr", [tmp_path / "f"], images=images.assign(stimulus="s"))
    with pytest.raises(InputError, match="'below' has two COCO ids, 262148 and 5"):
        collect(store, "vsr", [tmp_path / "f"], images=images.assign(stimulus="below"))
    with pytest.raises(InputError, match="a coco_id is no whole number"):
        collect(store, "vsr", [tmp_path / "f"], images=images.assign(coco_id="x"))


def test_added_to_a_store_and_summed_up(store: Store, tmp_path: Path) -> None:
    vsr(tmp_path / "vsr")
    llava(tmp_path / "llava")
    a_okvqa(tmp_path / "a")
    assert (
        str(attach_source(store, "vsr", [tmp_path / "vsr"]))
        == "vsr: 2 conversations about 2 of 4 stimuli (50%)"
    )
    attach_source(store, "llava", [tmp_path / "llava"])
    attach_source(store, "a-okvqa", [tmp_path / "a"])
    attach_source(store, "vsr", [tmp_path / "vsr"])  # in place of what was there
    coco(tmp_path / "coco")
    attach_source(store, "coco-caption-previous", [tmp_path / "coco"])
    table = summary(Store(store.path))
    assert table["source"].tolist() == [
        "a-okvqa",
        "coco-caption-previous",
        "all",
        "llava",
        "vsr",
        "all",
    ]
    rows = table.set_index(["aspect", "source"])
    assert rows.loc[("complex reasoning", "all")].tolist() == [
        4,
        2,
        "stimuli",
        0.5,
        pytest.approx((7 + 1 + 1) / 3),
    ]
    assert rows.loc[("complex reasoning", "llava"), "words"] == pytest.approx(4)
    assert rows.loc[("memory and knowledge", "coco-caption-previous")].tolist()[:4] == [
        4,
        4,
        "trials",
        4 / 16,
    ]
    back = Store(store.path).conversations
    assert back[back["source"] == "vsr"]["key"].tolist() == ["train-1", "train-1"]
    assert list(back[back["source"] == "vsr"]["answers"].iloc[0]) == ["No."]


def test_what_a_store_had_already_has_an_aspect_too(tiny_store: Store) -> None:
    assert summary(tiny_store)["aspect"].tolist() == ["perception and scene"]


def wrong(source: str, files: Callable[[Path], Any], message: str) -> Any:
    return pytest.param(source, files, message, id=f"{source}: {message[:60]}")


def boxes(folder: Path) -> Path:
    return put(
        folder / "instances_train2017.json",
        {
            "info": {},
            "images": [{"id": 9, "file_name": "x"}],
            "annotations": [
                {"segmentation": [], "image_id": 9, "bbox": [0, 0, 1, 1], "category_id": 1, "id": 1}
            ],
        },
    )


def first_version(folder: Path) -> list[Path]:
    vqa(folder, "v2_", OLD, 10)
    return sorted(folder.iterdir())


def bare_ids(folder: Path) -> list[Path]:
    vqa(folder, "v2_", {}, 10)
    return sorted(folder.iterdir())[1:]


def changed(
    files: Callable[[Path], None], name: str, change: Callable[[str], str]
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        files(folder)
        path = folder / name
        put(path, change(path.read_text()))
        return folder

    return make


def without(files: Callable[[Path], None], *names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        files(folder)
        for name in names:
            (folder / name).unlink()
        return folder

    return make


def visdial_09(folder: Path) -> Path:
    visdial(folder)
    path = folder / "visdial_1.0_train.json"
    return put(path, path.read_text().replace('"version": "1.0"', '"version": "0.9"'))


def two_sets(folder: Path) -> Path:
    vqa(folder / "a")
    vqa(folder / "b", split="val")
    path = folder / "b" / "v2_OpenEnded_mscoco_val2014_questions.json"
    put(
        path,
        path.read_text()
        .replace('"image_id": 42', f'"image_id": {KNOWN}')
        .replace('_id": 42000', f'_id": {KNOWN}000'),
    )
    return folder


ANNOTATIONS, QUESTIONS = (
    "v2_mscoco_train2014_annotations.json",
    "v2_OpenEnded_mscoco_train2014_questions.json",
)


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        wrong("vqa", vsr, "there is no source 'vqa'; known: coco-caption, .*"),
        wrong(
            "coco-caption",
            boxes,
            r".*instances_train2017.json holds COCO object boxes; coco-caption needs "
            r"captions_\{train,val\}2017.json \(COCO captions\)",
        ),
        wrong(
            "vqa-v2",
            first_version,
            r".*v2_OpenEnded_mscoco_train2014_questions.json holds questions in the layout of "
            r"VQA version 1; vqa-v2 needs v2_Open.*\(VQA version 2 questions\)",
        ),
        wrong(
            "vqa-v2",
            lambda f: bare_ids(f),
            "annotations.json holds VQA version 1 annotations; vqa-v2 needs .*VQA version 2 "
            "annotations",
        ),
        wrong(
            "fsvqa",
            lambda f: [fsvqa(f), vqa(f), f / ANNOTATIONS][2],
            "holds VQA version 2 annotations; fsvqa needs .*VQA version 1 annotations",
        ),
        wrong("visdial", visdial_09, "holds VisDial 0.9; visdial needs .*VisDial 1.0"),
        wrong(
            "llava",
            lambda f: [lvis(f), f / "lvis_instruct4v_220k.json"][1],
            "holds LVIS-Instruct4V conversations; llava needs llava_instruct_150k.json",
        ),
        wrong(
            "lvis",
            lambda f: put(
                f / "x.json",
                [
                    {
                        "id": "000000033471",
                        "image": "coco/train2017/000000033471.jpg",
                        "conversations": [],
                    }
                ],
            ),
            "holds a mix of LLaVA conversations; lvis needs",
        ),
        wrong(
            "paragraph-caption",
            lambda f: put(f / "train_split.json", [1, 2]),
            "train_split.json holds nothing that is known here; paragraph-caption needs "
            "paragraphs_v1.json",
        ),
        wrong(
            "vsr",
            lambda f: put(f / "notes.txt", "where it is from\nmore"),
            "notes.txt holds COCO-QA questions; vsr needs",
        ),
        wrong(
            "caption",
            lambda f: put(f / "t.csv", "stimulus,caption\nknown,A dog, running, far\n"),
            r"t\.csv, line 2 has 4 cells; the header has 2\. .* stands in quotation marks",
        ),
        wrong(
            "tally-qa",
            changed(
                tally_qa, "test.json", lambda t: t.replace("COCO_val2014_000000000009.jpg", "bench")
            ),
            "test.json, record 1: image: string should match pattern",
        ),
        wrong(
            "caption",
            lambda f: put(f / "t.tsv", "image\ttext\na\tb"),
            "holds a table with the columns image, text; caption needs .* with the columns "
            "`stimulus` and `caption`",
        ),
        wrong(
            "caption",
            lambda f: put(f / "t.tsv", "stimulus\tcaption\nelsewhere\ta dog"),
            "tells of none of the .* stimuli of .*, which are called as",
        ),
        # a companion is missing
        wrong(
            "vqa-v2",
            without(vqa, ANNOTATIONS),
            r"vqa-v2 needs v2_mscoco_\{train,val\}2014_annotations.json \(VQA version 2 "
            r"annotations\) too; found .*questions.json. They are at https://visualqa.org",
        ),
        wrong(
            "vqa-v2",
            without(vqa, QUESTIONS),
            r"vqa-v2 needs v2_OpenEnded_mscoco_\{train,val\}2014_questions.json .* too; found "
            r".*annotations.json",
        ),
        wrong(
            "visual-genome",
            without(genome_qa, "image_data.json"),
            r"visual-genome needs image_data.json \(the COCO ids of Visual Genome's images\) too",
        ),
        wrong("gqa", without(gqa, "image_data.json"), "gqa needs image_data.json"),
        wrong("tally-qa", without(tally_qa, "image_data.json"), "tally-qa needs image_data.json"),
        wrong(
            "fsvqa",
            without(fsvqa, "VQA/mscoco_train2014_annotations.json"),
            r"fsvqa needs mscoco_\{train,val\}2014_annotations.json \(VQA version 1 "
            r"annotations\) too; .* Passed over: .*questions in the layout",
        ),
        wrong(
            "fsvqa",
            changed(
                fsvqa,
                "VQA/mscoco_train2014_annotations.json",
                lambda t: t.replace(f'"question_id": {KNOWN}0', '"question_id": 7'),
            ),
            f"question {KNOWN}0 of FSVQA has no ten answers: fsvqa needs mscoco_.*found "
            ".*VQA/mscoco_train2014",
        ),
        wrong(
            "coco-qa",
            without(coco_qa, "train/answers.txt"),
            "train: coco-qa needs one answers.txt beside the others of its split",
        ),
        wrong(
            "coco-qa",
            changed(coco_qa, "train/answers.txt", lambda t: t + "more\n"),
            "img_ids.txt has 2 lines, questions.txt 2, answers.txt 3; expected as many",
        ),
        wrong(
            "coco-qa",
            changed(coco_qa, "train/img_ids.txt", lambda t: "7\n" * 200 + "COCO_9\n"),
            "img_ids.txt has 201 lines",
        ),
        wrong(
            "coco-caption",
            without(coco, "captions_train2017.json", "captions_val2017.json"),
            "no files .*Unpack the archives",
        ),
        wrong(
            "coco-caption",
            lambda f: f / "captions_train2017.json",
            "there is no file .*captions_train2017.json",
        ),
        wrong("coco-caption", lambda f: [], "no files were given"),
        wrong(
            "vqa-v2",
            changed(vqa, QUESTIONS, lambda t: t.replace(f'"image_id": {KNOWN}', '"image_id": 7')),
            f"annotations.json answers question {KNOWN}000 about image {KNOWN}, which is not "
            "asked in .*questions.json",
        ),
        wrong(
            "vqa-v2",
            changed(vqa, ANNOTATIONS, lambda t: t.replace(f'"image_id": {KNOWN}', '"image_id": 7')),
            "no question in .*questions.json is answered; give the v2_mscoco",
        ),
        wrong("vqa-v2", two_sets, f"ask different questions with the number {KNOWN}000"),
        # damaged
        wrong(
            "vqa-v2",
            changed(vqa, ANNOTATIONS, lambda t: t[:-200]),
            r"annotations.json is damaged or truncated \(.*\). Fetch it again",
        ),
        wrong(
            "vqa-v2",
            changed(vqa, ANNOTATIONS, lambda t: t[: t.index('], "data_type')]),
            r"is damaged or truncated \(parse error: premature EOF\)",
        ),
        wrong(
            "vqa-v2",
            changed(vqa, ANNOTATIONS, lambda t: t + "]"),
            r"damaged or truncated .*trailing garbage",
        ),
        wrong(
            "vsr",
            changed(vsr, "random/train.jsonl", lambda t: t[:-20]),
            "train.jsonl is damaged or truncated",
        ),
        wrong("coco-caption", lambda f: put(f / "x.json", " \n"), "x.json is empty"),
        wrong(
            "coco-caption",
            lambda f: [put(f / "x.json", ""), (f / "x.json").write_bytes(b"\x1f\x8b\x08\xff"), f][
                2
            ],
            "x.json is no text .*Unpack",
        ),
        # types
        wrong(
            "coco-caption",
            changed(
                coco,
                "captions_val2017.json",
                lambda t: t.replace('"caption": "A dog, told 14', '"caption": 3, "x": "'),
            ),
            r"captions_val2017.json, annotations, record 2: caption: input should be a valid "
            r"string, found '3'. COCO captions were expected",
        ),
        wrong(
            "vqa-v2",
            changed(
                vqa, ANNOTATIONS, lambda t: t.replace('"answer": "at table"', '"answer": null')
            ),
            r"annotations, record 1: answers.1.answer: input should be a valid string, found "
            r"'None'",
        ),
        wrong(
            "vsr",
            changed(vsr, "random/train.jsonl", lambda t: t.replace('"label": 1', '"label": 2')),
            "train.jsonl, record 2: label: input should be 0 or 1, found '2'",
        ),
        wrong(
            "vsr",
            changed(vsr, "random/train.jsonl", lambda t: t.replace("000000000009.jpg", "bench")),
            "record 2: image: .*valid integer.*found 'bench'",
        ),
        wrong(
            "gqa",
            changed(
                gqa,
                "train_balanced_questions.json",
                lambda t: t.replace('"imageId": "2410407"', '"imageId": 2410407'),
            ),
            "07333408, record 2: imageId: input should be a valid string",
        ),
        wrong(
            "llava",
            changed(llava, "llava_instruct_150k.json", lambda t: t.replace("gpt", "human", 1)),
            "record 1: conversations: value error, human and gpt must speak in turn",
        ),
        wrong(
            "a-okvqa",
            changed(
                a_okvqa,
                "aokvqa_v1p0_train.json",
                lambda t: t.replace('"correct_choice_idx": 3', '"correct_choice_idx": 4', 1),
            ),
            "record 1: the record: value error, choice 4 is said to be right, of 4",
        ),
        wrong(
            "visdial",
            changed(
                visdial,
                "visdial_1.0_train.json",
                lambda t: t.replace('"answer": 2', '"answer": 200'),
            ),
            "data.dialogs, record 1: a number is beyond the 2 questions or the 3 answers",
        ),
        # nothing to say
        wrong(
            "a-okvqa",
            without(a_okvqa, "aokvqa_v1p0_train.json"),
            "none of 3 images of .* is asked about in .*; 1 of 1 items have no answer, as in a "
            "test split. Give the files of train and val",
        ),
        wrong(
            "vqa-v2",
            lambda f: [vqa(f, split="val"), f][1],
            "vqa-v2: none of 3 images of .* is asked about",
        ),
    ],
)
def test_wrong_files_are_named(
    store: Store, tmp_path: Path, source: str, files: Callable[[Path], Any], message: str
) -> None:
    (tmp_path / "files").mkdir()
    made = files(tmp_path / "files")
    given = [tmp_path / "files"] if made is None else made if isinstance(made, list) else [made]
    with pytest.raises(InputError) as error:
        collect(store, source, given)
    assert re.search(message, str(error.value)), str(error.value)


def test_unneeded_files_in_a_folder_are_passed_over(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vqa(tmp_path / "f")
    boxes(tmp_path / "f" / "coco")
    with caplog.at_level(logging.WARNING):
        assert len(collect(store, "vqa-v2", [tmp_path / "f"])) == 2
    assert re.search(
        r"vqa-v2 does not need, and passes over: \S*instances_train2017.json \(COCO object boxes\)",
        caplog.text,
    )


def test_records_of_a_test_split_are_counted(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(table_of(store, "gqa", tmp_path / "f")) == 2
    assert "gqa: 1 items have no answer, as in a test split, and are left out" in caplog.text


def test_every_place_of_a_file_is_found(tmp_path: Path) -> None:
    text = (
        '{"a": 12345, "b": [1, -2.5e3, "\\u00e9", null], '
        '"data": {"c": [], "d": [{"x": 1}, {}], "e": {"f": [1]}}}'
    )
    path = put(tmp_path / "x.json", text)
    assert list(json_stream.iter_first_values(path)) == [
        ("a", 12345),
        ("b", 1),
        ("data.d", {"x": 1}),
        ("data.e", {"f": [1]}),
    ]
    assert list(json_stream.iter_values(path, "b")) == [
        ("b", 1),
        ("b", -2500.0),
        ("b", "é"),
        ("b", None),
    ]
    assert list(json_stream.iter_values(path, "data.d")) == [("data.d", {"x": 1}), ("data.d", {})]
    assert [place for place, _ in json_stream.iter_values(path, "*")] == ["a", "b", "data"]
    marked = tmp_path / "y.json"
    marked.write_bytes(json_stream.BOM + b"[1, [2]]")
    assert list(json_stream.iter_values(marked, "")) == [("", 1), ("", [2])]
    assert list(json_stream.iter_first_values(marked)) == [("", 1)]
    assert list(json_stream.iter_values(put(tmp_path / "z.jsonl", '{"a": 1}\n{"a": 2}\n'), "")) == [
        ("", {"a": 1}),
        ("", {"a": 2}),
    ]


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", "[1, 2, {oops}, " + "3, " * 1000 + "4]")
    with pytest.raises(InputError, match=r"x\.json is damaged or truncated .*Fetch it again"):
        list(json_stream.iter_values(path, ""))


def test_no_more_of_a_file_is_read_than_tells_its_kind(tmp_path: Path) -> None:
    path = put(
        tmp_path / "x.json", json.dumps([{"image_id": 1, "paragraph": "x"}])[:-1] + ", damaged"
    )
    assert [file_format.title for file_format in detect_file_formats(path)] == [
        "Visual Genome paragraphs"
    ]
    assert detect_file_formats(put(tmp_path / "y.json", {str(n): n for n in range(5000)})) == []


def test_progress_is_shown_per_file(store: Store, tmp_path: Path) -> None:
    from rich.progress import Progress

    vqa(tmp_path / "f")
    progress = Progress(disable=True)
    collect(store, "vqa-v2", [tmp_path / "f"], progress=progress)
    assert sorted(task.description for task in progress.tasks) == [
        f"reading {name} (MiB)" for name in (QUESTIONS, ANNOTATIONS)
    ]
    assert all(task.finished for task in progress.tasks)


def test_captions_are_those_of_the_store_made_from_a_table(store: Store, tmp_path: Path) -> None:
    table = table_of(store, "caption", tmp_path / "f")
    made = conversations_from_captions(
        pd.DataFrame(
            {
                "stimulus": ["known", "known", "twin"],
                "caption": ["A dog, told 11.", "A dog, told 13.", "A dog, told 11."],
            }
        )
    )
    assert table["turns"].tolist() == made["turns"].tolist()
    assert table["answers"].tolist() == made["answers"].tolist()


def test_the_page_lists_every_source() -> None:
    lines = (
        (Path(__file__).parents[2] / "docs" / "how-to" / "instructions.md")
        .read_text("utf-8")
        .splitlines()
    )
    for name, source in SOURCES.items():
        files, said = (line for line in lines if re.match(rf"\| .*`{name}`.* \| .* \|$", line))
        for told in (*(form.name for form in source.files), source.url, source.license):
            assert told in files, (name, told)
        for told in (source.aspect, f"`{question_answering.SOURCES.get(name, '')}`".strip("`")):
            assert told in said, (name, told)
        assert (
            not source.prompt or source.prompt in said or "as COCO-QA" in said or name == "caption"
        ), name


MIXED = [
    {"id": 1, "image": "000000000100.jpg", "conversations": talk("<image>\nWhat is it?")},
    {"id": "2", "image": "vg/VG_100K/101.jpg", "conversations": talk("<image>\nWhat?")},
    {"id": "3", "image": "ocr_vqa/images/0101.jpg", "conversations": talk("<image>\nTitle?")},
    {"id": "4", "image": "gqa/images/101.jpg", "conversations": talk("<image>\nWhat?")},
    {"id": "5", "image": "textvqa/train_images/ab101.jpg", "conversations": talk("What?")},
    {"id": "6", "conversations": [{"from": "gpt", "value": "Roses"}]},
    {"id": "7", "conversations": [{"from": "system", "value": "Be brief."}, *talk("Write.")]},
    {"id": "8", "image": "coco/train2017/000000000101.jpg", "conversations": talk("Where?")},
    {"id": "9", "image": "x/COCO_val2014_000000000101.jpg", "conversations": talk("Who?")},
]


def store_of_images(folder: Path) -> Store:
    """A store of the images 100 and 101 of COCO."""
    space, betas = make_space(voxels=8), np.random.default_rng(0).normal(size=(8, 8))
    trials = pd.DataFrame({"stimulus": ["a", "b"] * 4, "coco_id": [100, 101] * 4})
    return write_store(
        folder,
        [(space, betas, trials)],
        pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []}),
        name="two images",
    )


def test_images_of_other_data_sets_are_no_images_of_coco(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their numbers are those of COCO's images, which show something else."""
    store = store_of_images(tmp_path / "store")
    put(tmp_path / "mix.json", MIXED)
    attach_source(store, "llava", [tmp_path / "mix.json"])
    table = store.conversations
    assert table["stimulus"].tolist() == ["a", "b"]
    assert "Where?" in table["turns"][1][0]["content"]
    assert "2 conversations have no image and are left out" in caplog.text
    assert "5 conversations are about images of other data sets" in caplog.text
    assert "(first: vg/VG_100K/101.jpg)" in caplog.text


def test_captions_of_a_table_are_read_as_they_stand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A quotation mark without its partner swallows nothing; a blank behind a name is no name."""
    store = store_of_images(tmp_path / "store")
    rows = 'stimulus\tcaption\na \t"Hi from here\nb\tNone\nb\ta 12" pizza\nzebra\tx\na\t\n'
    put(tmp_path / "captions.tsv", "\ufeff" + rows)
    attach_source(store, "caption", [tmp_path / "captions.tsv"])
    answers = store.conversations["answers"].tolist()
    assert answers == [['"Hi from here'], ["None", 'a 12" pizza'], ['a 12" pizza', "None"]]
    assert "1 of 5 lines are about stimuli that the store does not have (first: 'zebra')" in (
        caplog.text
    )
    assert "1 items have no answer" in caplog.text
    put(tmp_path / "captions.tsv", "stimulus\tcaption\na\tx\nb\ta <fMRI> scan\n")
    with pytest.raises(InputError, match=r"captions\.tsv, line 3: the caption .* holds <fMRI>"):
        attach_source(store, "caption", [tmp_path / "captions.tsv"])


def test_a_placeholder_in_a_source_is_refused_by_its_record(tmp_path: Path) -> None:
    store = store_of_images(tmp_path / "store")
    put(tmp_path / "x.json", [MIXED[0] | {"conversations": talk("<image> What <fMRI> is <fMRI>?")}])
    with pytest.raises(InputError, match=r"llava, x-1 of .*x\.json: <fMRI> must stand exactly"):
        attach_source(store, "llava", [tmp_path / "x.json"])


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"annotations":'])
def test_deep_nesting_is_refused_at_once(tmp_path: Path, opening: str) -> None:
    store = store_of_images(tmp_path / "store")
    put(tmp_path / "x.json", opening * 50_000)
    with pytest.raises(InputError, match=r"x\.json is damaged: .* nested"):
        attach_source(store, "coco-caption", [tmp_path / "x.json"])
