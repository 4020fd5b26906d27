"""Official scores: those published by BrainHub, and hand-made cases of every protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.metrics import captions, grounding, vqa
from mindllm.metrics.java import java_problem
from mindllm.metrics.tasks import TASKS, read_keyed, score
from mindllm.utils.errors import InputError

PUBLISHED = {
    "umbrae": (59.44, 40.48, 27.66, 19.03, 19.45, 43.71, 61.06),
    "sdrecon": (36.21, 17.11, 7.72, 3.43, 10.03, 25.13, 13.83),
}
java = pytest.mark.skipif(java_problem() is not None, reason="no Java that runs")


@java
@pytest.mark.parametrize("system", PUBLISHED)
def test_published_scores(shared: Path, system: str) -> None:
    said = read_keyed(shared / "brainhub" / f"{system}_sub01.json")
    right = read_keyed(shared / "brainhub" / "references.json")
    shuffled = dict(
        sorted(said.items(), key=lambda item: item[1])
    )  # the order of a file means nothing
    found = score(shuffled, right, "caption")
    assert [round(found.values[m], 2) for m in captions.METRICS[:-1]] == list(PUBLISHED[system])
    assert len(found.keys) == 982
    for name in ("ROUGE-L", "CIDEr"):
        assert found.per_item[name].mean() == pytest.approx(found.values[name])


@java
def test_captions_with_nasty_texts() -> None:
    """Line separators stay in their text, empty ones in place, and the locale does not matter."""
    right = {
        "a": ["a dog runs"],
        "b": ["a naïve café at night"],
        "c": ["a cat\u2028sleeps\x0bhere"],
        "d": ["two birds"],
    }
    said = {"a": "", "b": "A naïve café, at night!", "c": "a cat sleeps\r\nhere", "d": "TWO BIRDS"}
    found = score(said, right, "caption")
    assert found.per_item["ROUGE-L"].round(1).tolist() == [0, 100, 100, 100]
    assert found.per_item["METEOR"][0] == 0
    assert found.per_item["METEOR"][1:].min() > 40
    assert found.per_item["BLEU-1"].round(1).tolist() == [0, 100, 100, 100]


def normal(text: str) -> str:
    return vqa.vqa_words(vqa.vqa_punctuation(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog", "dog"),
        ("a an the", ""),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("hed've", "he'd've"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("1,000 (maybe)", "1000 maybe"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("3.5 inches.", "3.5 inches"),
        ("yes!", "yes"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("", ""),
        ("ÉCLAIR", "éclair"),
        ("東京", "東京"),
    ],
)
def test_vqa_normalization(text: str, expected: str) -> None:
    assert normal(text) == expected


@pytest.mark.parametrize(
    ("text", "people", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        (
            "yes",
            ["yes"] * 3 + ["no"] * 7,
            0.9,
        ),  # three of ten: 2/3 for these three, 1 for the others
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),
        ("yes", ["yes"] + ["no"] * 9, 0.3),
        ("no", ["yes"] * 10, 0.0),
        ("The Yes.", ["yes"] * 4 + ["no"] * 6, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("two", ["two"] * 10, 0.0),  # the official code makes digits of the prediction alone
        (
            "t-shirt",
            ["t-shirt"] * 9 + ["shirt"],
            1.0,
        ),  # people differ: their punctuation is treated
        ("t-shirt", ["t-shirt"] * 10, 0.0),  # they agree: it is not
        ("", ["yes"] * 10, 0.0),
        ("", [""] * 10, 1.0),
        ("a\nred\tcar ", ["red car"] * 10, 1.0),
    ],
)
def test_vqa_accuracy(text: str, people: list[str], expected: float) -> None:
    assert vqa.vqa([text], [people])[0] == pytest.approx(expected)


def test_exact() -> None:
    said, right = (
        ["Red.", " two people", "", "it's", "Straße"],
        [["red"], ["two  people"], [""], ["its", "it's"], ["straße"]],
    )
    assert vqa.exact(said, right).tolist() == [1, 0, 1, 1, 1]


def test_choice() -> None:
    options = [["a dog", "a cat", "bus", "Apple"]] * 9
    said = ["B", "(b)", "b.", "B. a cat", "a cat", "A cat.", "Apple", "none of them", ""]
    assert vqa.choice(said, ["B"] * 6 + ["D", "A", "A"], options).tolist() == [
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        0,
        0,
    ]
    assert vqa.choice(["A dog"], ["B"], [["a cat", "a dog"]]).tolist() == [1], (
        "words win over the article"
    )


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", "B"), ("b.", "B"), ("B)", "B"), ("[B] it is", "B"), ("**B**", "B"), ("'B'", "B"),
        ("B: because", "B"), ("B, because it barks", "B"), ("B - a dog", "B"), ("B\nbecause", "B"),
        ("The answer is B.", "B"), ("Answer: (b)", "B"), ("the correct option is B", "B"),
        ("A. A dog runs", "A"), ("(A) a dog or a cat", "A"), ("A. I think so", "A"),
        ("A dog runs on the beach", None), ("a", "A"), ("A red car", None), ("I think B", None),
        ("A or B", None), ("A, B", None), ("A. B.", None), ("A and B", None), ("(A) or (B)", None),
        ("A/B", None), ("Because", None), ("D", None), ("b&w", None), ("A-frame", None),
    ],
)  # fmt: skip
def test_an_option_counts_only_where_it_is_stated(text: str, chosen: str | None) -> None:
    assert vqa.stated_letter(text, ["A", "B", "C"]) == chosen


def test_a_short_answer_counts_as_whole_words() -> None:
    texts = ["it is snowing", "no, it is not", "There are 12", "a red-brick house", "C'est l'été."]
    answers = ["no", "No", "2", "red", "été"]
    assert vqa.contained(texts, answers) == ["", "no", "", "red", "été"]


def test_anls() -> None:
    assert vqa.distance("kitten", "sitting") == 3
    said, right = (
        ["Coca Cola", "coca", "", "", "stop", "abcd"],
        [["coca-cola"], ["pepsi", "coca"], [""], ["x"], ["shop"], ["abxy"]],
    )
    assert vqa.anls(said, right) == pytest.approx([8 / 9, 1, 1, 0, 3 / 4, 0])  # half wrong is wrong


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("twelve", 12), ("a dozen", 12), ("two dozen", 24), ("half a dozen", 6), ("3 dozen", 36),
        ("twenty-one", 21), ("Twenty one dogs", 21), ("ninety-nine", 99), ("nineteen", 19),
        ("one hundred and five", 105), ("a hundred", 100), ("hundred twelve", 112),
        ("two hundred and thirty-four", 234), ("a thousand", 1000), ("2 thousand", 2000),
        ("three thousand two hundred", 3200), ("two million", 2e6), ("two or three", 2),
        ("two three", 2), ("five and six", 5), ("twenty and one", 20), ("one hundred and a", 100),
        ("21 dogs and two cats", 21), ("dozens", None), ("someone", None), ("9" * 400, None),
        ("-3", -3), ("zero", 0), ("2-3", 2), ("twenty twelve", 20), ("1,000", 1000),
    ],
)  # fmt: skip
def test_numbers_in_words(text: str, count: float | None) -> None:
    assert vqa.number(text) == count


def test_counts() -> None:
    assert [
        vqa.number(t)
        for t in ("3", "three.", "There are 12 dogs", "none", "many", "", "1,000", "-2.5")
    ] == [3, 3, 12, 0, None, None, 1000, -2.5]
    found = score({"a": "three", "b": "5", "c": "many"}, {"a": "3", "b": "7", "c": 2}, "count")
    assert found.values["accuracy"] == pytest.approx(100 / 3)
    assert found.values["RMSE"] == pytest.approx(((0 + 4 + 4) / 3) ** 0.5)
    assert found.values["without a number"] == pytest.approx(100 / 3)


def test_explanations_are_split_off() -> None:
    split = vqa.split_explanation
    assert split("Two. Here is the explanation: There are two.") == ("Two", "There are two.")
    assert split("red. It is painted.") == ("red", "It is painted.")
    assert split("no idea") == ("no idea", "no idea")
    assert split("") == ("", "")


@java
def test_answer_and_explanation() -> None:
    right = {"x": {"answers": ["two"] * 5 + ["2"] * 5, "explanation": ["there are two dogs"]}}
    found = score({"x": "2. Here is the explanation: There are two dogs."}, right, "vqa-e").values
    assert found["accuracy"] == 100
    assert found["explanation BLEU-4"] == pytest.approx(100)


@java
def test_full_sentences() -> None:
    right = {
        "x": {"answers": ["red"] * 10, "answer": "red", "sentence": "The car is red."},
        "y": {"answers": ["blue"] * 10, "answer": "blue", "sentence": "The car is blue."},
    }
    found = score({"x": "the car is red", "y": "a car in blue"}, right, "fsvqa").values
    assert (found["VQA accuracy"], found["FSVQA accuracy"]) == (100, 50)
    assert 50 < found["BLEU-1"] < 100


def test_tdiuc() -> None:
    right = {
        str(i): {"type": t, "answer": a}
        for i, (t, a) in enumerate(
            [("color", "red")] * 3 + [("color", "blue"), ("sport", "tennis"), ("sport", "golf")]
        )
    }
    said = dict(zip(right, ["red", "Red.", "blue", "blue", "tennis", "tennis"], strict=True))
    found = score(said, right, "tdiuc").values
    assert found["color"] == pytest.approx(75)
    assert found["arithmetic MPT"] == pytest.approx(62.5)
    assert found["harmonic MPT"] == pytest.approx(2 / (1 / 75 + 1 / 50))
    assert found["N arithmetic MPT"] == pytest.approx(((2 / 3 + 1) / 2 + 1 / 2) / 2 * 100)
    said |= {"4": "", "5": ""}
    assert score(said, right, "tdiuc").values["harmonic MPT"] == 0


def test_boxes() -> None:
    assert grounding.first_box("a dog [0.1, 0.2,0.5,.9] and [0,0,1,1]") == (0.1, 0.2, 0.5, 0.9)
    assert grounding.first_box([[[0, 0, 1, 1]]]) == (0, 0, 1, 1)
    assert (
        grounding.first_box("nothing")
        is grounding.first_box([])
        is grounding.first_box([0, 1, 2])
        is None
    )
    assert grounding.iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert grounding.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    right = {
        "1": {"person": [[0, 0, 1, 1]], "cup": [[0, 0, 0.5, 1]]},
        "2": {"bus": [[0, 0, 1, 0.5]]},
    }
    said = {
        "1": {"person": "[0,0,1,1]", "cup": "?"},
        "2": {"bus": [[0, 0, 1, 1]]},
    }  # the bus: exactly 0.5 is not above
    found = score(said, right, "grounding").values
    assert found["accuracy@0.5 (all)"] == pytest.approx(100 / 3)
    assert found["IoU (all)"] == pytest.approx(50)
    assert found["accuracy@0.5 (salient creatures)"] == 100
    assert (found["accuracy@0.5 (salient objects)"], found["IoU (salient objects)"]) == (0, 50)
    assert found["IoU (inconspicuous)"] == 0
    assert found["accuracy@0.5 (salient)"] == 50


@pytest.mark.parametrize(
    ("said", "right", "task", "message"),
    [
        (
            {"a": "x"},
            {"a": "x", "b": "y"},
            "exact",
            "1 of 2 references have no prediction \\(first: 'b'\\)",
        ),
        (
            {"a": "x", "c": "z"},
            {"a": "x"},
            "exact",
            "1 of 2 predictions no reference \\(first: 'c'\\)",
        ),
        ({}, {}, "exact", "the file is empty"),
        ({"a": "x"}, {"a": "x"}, "bleu", "unknown task 'bleu'; known: caption"),
        ({"a": ["x", "y"]}, {"a": "x"}, "exact", "the prediction for 'a' is .*expected one text"),
        ({"a": "x"}, {"a": []}, "caption", "the reference for 'a' is \\[\\]; expected a text"),
        (
            {"a": "2"},
            {"a": "2"},
            "vqa",
            "reference for 'a' is '2'; expected the list of ten annotators' answers",
        ),
        ({"a": "2"}, {"a": "many"}, "count", "reference for 'a' is 'many'; expected a number"),
        ({"a": "2"}, {"a": True}, "count", "expected a number"),
        ({"a": "2"}, {"a": ["2", "3"]}, "count", "expected a number"),
        ({"a": "x"}, {"a": "x"}, "tdiuc", "the reference for 'a' lacks 'type'"),
    ],
)
def test_bad_input(said, right, task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(said, right, task)


def test_without_java(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"BLEU-1, .*METEOR, ROUGE-L, CIDEr, SPICE need Java"):
        score({"a": "x"}, {"a": "x"}, "caption")
    right = {"x": {"answers": ["2"] * 10, "explanation": "there are two"}}
    assert score({"x": "two. Because."}, right, "vqa-e").values == {"accuracy": 100}
    assert "left out: BLEU-1" in caplog.text


def test_files(tmp_path: Path) -> None:
    def place(text: str) -> Path:
        (tmp_path / "f.json").write_text(text)
        return tmp_path / "f.json"

    assert read_keyed(place('[{"image_id": 7, "caption": "a dog"}]')) == {"7": "a dog"}
    assert read_keyed(place('[{"question_id": 7, "answer": "two"}]')) == {"7": "two"}
    annotations = [
        {"image_id": 7, "id": n, "caption": text} for n, text in enumerate(("a dog", "the dog"))
    ]
    assert read_keyed(place(json.dumps({"info": {}, "annotations": annotations}))) == {
        "7": ["a dog", "the dog"]
    }
    for text, message in (
        ('{"a": 1, "a": 2}', "gives the key 'a' twice"),
        ("[1]", "holds a list; expected items"),
        ("3", "holds int"),
        ("{", "cannot be read as JSON"),
    ):
        with pytest.raises(InputError, match=message):
            read_keyed(place(text))
    with pytest.raises(InputError, match="there is no file"):
        read_keyed(tmp_path / "nothing.json")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "said.json").write_text(json.dumps({"a": "Red.", "b": "cat"}))
    (tmp_path / "right.json").write_text(json.dumps({"b": ["dog"], "a": "red"}))
    words = ["score", str(tmp_path / "said.json"), str(tmp_path / "right.json"), "--task", "exact"]
    assert "50.00" in CliRunner().invoke(app, words).stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["scores"] == {"accuracy": 50.0}
    assert found["n_items"] == 2
    assert all(task.source and task.reference for task in TASKS.values())


def test_each_item_is_in_the_order_of_the_references() -> None:
    found = score({"a": "1", "b": "2"}, {"b": "2", "a": "3"}, "exact")
    assert found.keys == ["b", "a"]
    assert np.array_equal(found.per_item["accuracy"], [100, 0])


def test_boxes_in_texts_are_scored_against_one_expression() -> None:
    references = {
        "a": {"the dog": "[0.000,0.000,0.500,1.000]"},
        "b": {"the cat": "[0.500,0.500,1.000,1.000]"},
        "c": {"the cat": [[0.0, 0.0, 1.0, 1.0]]},
    }
    texts = {"a": "It is at [0, 0, 0.5, 0.8].", "b": "[0.0,0.0,0.5,0.5]", "c": "no idea"}
    result = score(texts, references, "grounding")
    assert result.per_item["IoU"].tolist() == pytest.approx([80, 0, 0])
    assert result.per_item["accuracy@0.5"].tolist() == [100, 0, 0]
    assert result.values == pytest.approx({"accuracy@0.5": 100 / 3, "IoU": 80 / 3})
    with pytest.raises(InputError, match="one expression -> its box"):
        score(texts, references | {"a": {"dog": [0, 0, 1, 1], "cat": [0, 0, 1, 1]}}, "grounding")
    with pytest.raises(InputError, match="1 of 3 references have no readable box"):
        score(texts, references | {"a": {"dog": "left"}}, "grounding")
