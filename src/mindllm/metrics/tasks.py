"""The tasks of `mindllm score`: what a reference looks like in each, and which official scores it gets."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindllm.metrics import vqa as answers
from mindllm.metrics.captions import METRICS, caption_scores, java_unavailable_reason
from mindllm.metrics.grounding import grounding
from mindllm.utils.errors import InputError

ItemScores = dict[str, np.ndarray]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricResult:
    """`values`: score -> number (per cent, but for RMSE). `each`: what every item earns, where a score is a mean of them."""

    task: str
    values: dict[str, float]
    per_item: ItemScores
    keys: list[str]


def captions(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """BLEU, METEOR, ROUGE-L, CIDEr, SPICE."""
    return caption_scores(
        predictions, {key: texts(value, key) for key, value in references.items()}
    )


def vqa(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """VQA accuracy."""
    return mean(
        "accuracy",
        answers.vqa(list(predictions.values()), [ten(references[k], k) for k in predictions]),
    )


def exact(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Share of exact matches."""
    return mean(
        "accuracy",
        answers.exact(list(predictions.values()), [texts(references[k], k) for k in predictions]),
    )


def choice(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Share of right letters."""
    letters = [
        field(references[k], "answer", k) if isinstance(references[k], dict) else str(references[k])
        for k in predictions
    ]
    options = [
        texts(references[k].get("choices", []), k) if isinstance(references[k], dict) else []
        for k in predictions
    ]
    return mean("accuracy", answers.choice(list(predictions.values()), letters, options))


def anls(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Average normalized Levenshtein similarity."""
    return mean(
        "ANLS",
        answers.anls(list(predictions.values()), [texts(references[k], k) for k in predictions]),
    )


def count(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Share of right numbers, RMSE, and the share of answers that name no number (they count as 0)."""
    given = [one_number(references[k], k) for k in predictions]
    errors = answers.squared_errors(list(predictions.values()), given)
    hits = np.array(
        [
            float(answers.number(p) == answers.number(r))
            for p, r in zip(predictions.values(), given, strict=True)
        ]
    )
    silent = sum(answers.number(p) is None for p in predictions.values())
    values, each = mean("accuracy", hits)
    return values | {"RMSE": float(errors.mean() ** 0.5), "without a number": 100 * silent / len(predictions)}, each | {"squared error": errors}  # fmt: skip


def explained(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """VQA accuracy of the answer, and caption scores of the explanation."""
    parts = {key: answers.split_explanation(text) for key, text in predictions.items()}
    people = [ten(field(references[k], "answers", k), k) for k in predictions]
    values, each = mean("accuracy", answers.vqa([parts[k][0] for k in predictions], people))
    reasons = {key: texts(field(references[key], "explanation", key), key) for key in predictions}
    total, more = where_java({key: parts[key][1] for key in predictions}, reasons)
    return values | {f"explanation {n}": v for n, v in total.items()}, each | {f"explanation {n}": v for n, v in more.items()}  # fmt: skip


def sentences(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """VQA accuracy of the short answer contained in the sentence, exact match of the sentence, and its caption scores."""
    shorts = [str(field(references[k], "answer", k)) for k in predictions]
    people = [ten(field(references[k], "answers", k), k) for k in predictions]
    wholes = {k: texts(field(references[k], "sentence", k), k) for k in predictions}
    values, each = mean(
        "VQA accuracy", answers.vqa(answers.contained(list(predictions.values()), shorts), people)
    )
    more, also = mean(
        "FSVQA accuracy", answers.exact(list(predictions.values()), list(wholes.values()))
    )
    total, every = where_java({k: answers.short(t) for k, t in predictions.items()}, {k: [answers.short(t) for t in some] for k, some in wholes.items()})  # fmt: skip
    return values | more | total, each | also | every


def per_type(
    predictions: dict[str, str], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Accuracy per question type, and TDIUC's means over types."""
    kinds, given = (
        [str(field(references[k], "type", k)) for k in predictions],
        [str(field(references[k], "answer", k)) for k in predictions],
    )
    hits = answers.exact(list(predictions.values()), [[a] for a in given])
    values, each = mean("accuracy", hits)
    return values | answers.mean_per_type(hits, kinds, given), each


def where_java(
    predictions: dict[str, str], references: dict[str, list[str]]
) -> tuple[dict[str, float], ItemScores]:
    """Caption scores beside others: left out, saying so, where there is no Java."""
    if missing := java_unavailable_reason():
        logger.warning("left out: %s. %s", ", ".join(METRICS), missing)
        return {}, {}
    return caption_scores(predictions, references)


def boxes(
    predictions: dict[str, Any], references: dict[str, Any]
) -> tuple[dict[str, float], ItemScores]:
    """Accuracy at IoU 0.5 and mean IoU, per group of categories."""
    return grounding(predictions, references)[0], {}


@dataclass(frozen=True)
class AnswerMetric:
    """How a task is scored, what a reference is, and whose protocol it is."""

    run: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, float], ItemScores]]
    reference: str
    source: str


TASKS = {
    "caption": AnswerMetric(captions, "a caption, or a list of them", "Chen et al. 2015, arXiv 1504.00325 (pycocoevalcap)"),
    "paragraph": AnswerMetric(captions, "a paragraph, or a list of them", "Krause et al. 2017, arXiv 1611.06607"),
    "vqa": AnswerMetric(vqa, "the list of ten people's answers", "Antol et al. 2015 (github.com/GT-Vision-Lab/VQA)"),
    "exact": AnswerMetric(exact, "an answer, or a list of accepted ones", "Ren et al. 2015 (COCO-QA)"),
    "choice": AnswerMetric(choice, 'a letter, or {"answer": letter, "choices": [texts]}', "Schwenk et al. 2022 (A-OKVQA)"),
    "anls": AnswerMetric(anls, "the list of accepted answers", "Biten et al. 2019, arXiv 1905.13648 (ST-VQA)"),
    "count": AnswerMetric(count, "a number", "Acharya et al. 2019, arXiv 1810.12440 (TallyQA)"),
    "vqa-e": AnswerMetric(explained, '{"answers": [ten], "explanation": text or list}', "Li et al. 2018, arXiv 1803.07464"),
    "fsvqa": AnswerMetric(sentences, '{"answers": [ten], "answer": short, "sentence": full}', "Shin et al. 2016, arXiv 1609.06657"),
    "tdiuc": AnswerMetric(per_type, '{"type": question type, "answer": text}', "Kafle & Kanan 2017, arXiv 1703.09684"),
    "grounding": AnswerMetric(boxes, "{category: boxes [x1, y1, x2, y2]}", "Xia et al. 2024, BrainHub"),
}  # fmt: skip


def score(predictions: Mapping[str, Any], references: Mapping[str, Any], task: str) -> MetricResult:
    """Official scores of predictions, keyed by stimulus as the references are.

    Raises InputError for an unknown task, keys that differ, or a reference that is not of the task's form.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}.")
    if not references:
        raise InputError("there is no reference: the file is empty.")
    missing, spare = (
        sorted(references.keys() - predictions.keys()),
        sorted(predictions.keys() - references.keys()),
    )
    if missing or spare:
        raise InputError(
            f"predictions and references must have the same keys: {len(missing)} of {len(references)} references have no prediction{f' (first: {missing[0]!r})' if missing else ''}, {len(spare)} of {len(predictions)} predictions no reference{f' (first: {spare[0]!r})' if spare else ''}. Nothing is left out silently."
        )
    said = {key: predictions[key] for key in references}  # in one order, whatever the files'
    if task != "grounding":
        said = {key: alone(value, key) for key, value in said.items()}
    values, each = TASKS[task].run(said, dict(references))
    return MetricResult(task, values, each, list(said))


def alone(value: Any, key: str) -> str:
    """A prediction: one text."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(text, str):
        raise InputError(f"the prediction for {key!r} is {value!r}; expected one text.")
    return text


def texts(value: Any, key: str) -> list[str]:
    """A reference as a list of texts."""
    found = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if not found or isinstance(value, dict):
        raise InputError(
            f"the reference for {key!r} is {value!r}; expected a text or a list of texts."
        )
    return found


def ten(value: Any, key: str) -> list[str]:
    """What people answered: ten in the official data; fewer than two say nothing about agreement."""
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(
            f"the reference for {key!r} is {value!r}; expected the list of ten people's answers."
        )
    if len(value) != 10:
        logger.warning("%r has %d people's answers; the official protocol has ten", key, len(value))
    return texts(value, key)


def one_number(value: Any, key: str) -> str:
    """A count, as text."""
    found = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(found, (bool, list, dict)) or answers.number(str(found)) is None:
        raise InputError(f"the reference for {key!r} is {value!r}; expected a number.")
    return str(found)


def field(value: Any, name: str, key: str) -> Any:
    """A part of a reference that has several."""
    if not isinstance(value, dict) or name not in value:
        raise InputError(f"the reference for {key!r} lacks {name!r}; found {value!r}.")
    return value[name]


def mean(name: str, each: np.ndarray) -> tuple[dict[str, float], ItemScores]:
    """A score that is the mean of what every item earns, in per cent."""
    return {name: 100 * float(each.mean())}, {name: 100 * each}


def read_keyed(path: Path) -> dict[str, Any]:
    """A JSON object keyed by stimulus; or COCO's list of results, VQA's, or COCO's caption annotations. No key may come twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for n, (key, _) in enumerate(pairs) if key in {k for k, _ in pairs[:n]}] if len({k for k, _ in pairs}) < len(pairs) else []  # fmt: skip
        if twice:
            raise InputError(f"{path} gives the key {twice[0]!r} twice.")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}).") from error
    if isinstance(content, list):
        try:
            pair = (
                ("question_id", "answer")
                if "question_id" in content[0]
                else ("image_id", "caption")
            )
            return unique([(str(item[pair[0]]), item[pair[1]]) for item in content])
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(
                f'{path} holds a list; expected items {{"image_id": ..., "caption": ...}} or {{"question_id": ..., "answer": ...}}.'
            ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds {type(content).__name__}; expected an object keyed by stimulus."
        )
    if isinstance(content.get("annotations"), list) and all(
        "caption" in item for item in content["annotations"]
    ):
        grouped: dict[str, list[str]] = {}
        for item in content["annotations"]:
            grouped.setdefault(str(item["image_id"]), []).append(item["caption"])
        return grouped
    return content
