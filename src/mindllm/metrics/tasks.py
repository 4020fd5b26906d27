"""The tasks of `mindllm score`: what a reference looks like in each, and which official scores it gets."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindllm.metrics import vqa as answers
from mindllm.metrics.captions import METRICS, caption_scores, no_java
from mindllm.metrics.grounding import grounding
from mindllm.utils.errors import InputError

Each = dict[str, np.ndarray]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """`values`: score -> number (per cent, but for RMSE). `each`: what every item earns, where a score is a mean of them."""

    task: str
    values: dict[str, float]
    each: Each
    keys: list[str]


def captions(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """BLEU, METEOR, ROUGE-L, CIDEr, SPICE."""
    return caption_scores(said, {key: texts(value, key) for key, value in right.items()})


def vqa(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """VQA accuracy."""
    return mean("accuracy", answers.vqa(list(said.values()), [ten(right[k], k) for k in said]))


def exact(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Share of exact matches."""
    return mean("accuracy", answers.exact(list(said.values()), [texts(right[k], k) for k in said]))


def choice(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Share of right letters."""
    letters = [field(right[k], "answer", k) if isinstance(right[k], dict) else str(right[k]) for k in said]
    options = [texts(right[k].get("choices", []), k) if isinstance(right[k], dict) else [] for k in said]
    return mean("accuracy", answers.choice(list(said.values()), letters, options))


def anls(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Average normalized Levenshtein similarity."""
    return mean("ANLS", answers.anls(list(said.values()), [texts(right[k], k) for k in said]))


def count(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Share of right numbers, RMSE, and the share of answers that name no number (they count as 0)."""
    given = [one_number(right[k], k) for k in said]
    errors = answers.squared_errors(list(said.values()), given)
    hits = np.array([float(answers.number(p) == answers.number(r)) for p, r in zip(said.values(), given, strict=True)])
    silent = sum(answers.number(p) is None for p in said.values())
    values, each = mean("accuracy", hits)
    return values | {"RMSE": float(errors.mean() ** 0.5), "without a number": 100 * silent / len(said)}, each | {"squared error": errors}  # fmt: skip


def explained(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """VQA accuracy of the answer, and caption scores of the explanation."""
    parts = {key: answers.split_explanation(text) for key, text in said.items()}
    people = [ten(field(right[k], "answers", k), k) for k in said]
    values, each = mean("accuracy", answers.vqa([parts[k][0] for k in said], people))
    reasons = {key: texts(field(right[key], "explanation", key), key) for key in said}
    total, more = where_java({key: parts[key][1] for key in said}, reasons)
    return values | {f"explanation {n}": v for n, v in total.items()}, each | {f"explanation {n}": v for n, v in more.items()}  # fmt: skip


def sentences(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """VQA accuracy of the short answer contained in the sentence, exact match of the sentence, and its caption scores."""
    shorts = [str(field(right[k], "answer", k)) for k in said]
    people = [ten(field(right[k], "answers", k), k) for k in said]
    wholes = {k: texts(field(right[k], "sentence", k), k) for k in said}
    values, each = mean("VQA accuracy", answers.vqa(answers.contained(list(said.values()), shorts), people))
    more, also = mean("FSVQA accuracy", answers.exact(list(said.values()), list(wholes.values())))
    total, every = where_java({k: answers.short(t) for k, t in said.items()}, {k: [answers.short(t) for t in some] for k, some in wholes.items()})  # fmt: skip
    return values | more | total, each | also | every


def per_type(said: dict[str, str], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Accuracy per question type, and TDIUC's means over types."""
    kinds, given = [str(field(right[k], "type", k)) for k in said], [str(field(right[k], "answer", k)) for k in said]
    hits = answers.exact(list(said.values()), [[a] for a in given])
    values, each = mean("accuracy", hits)
    return values | answers.mean_per_type(hits, kinds, given), each


def where_java(said: dict[str, str], right: dict[str, list[str]]) -> tuple[dict[str, float], Each]:
    """Caption scores beside others: left out, saying so, where there is no Java."""
    if missing := no_java():
        logger.warning("left out: %s. %s", ", ".join(METRICS), missing)
        return {}, {}
    return caption_scores(said, right)


def boxes(said: dict[str, Any], right: dict[str, Any]) -> tuple[dict[str, float], Each]:
    """Accuracy at IoU 0.5 and mean IoU, per group of categories."""
    return grounding(said, right)[0], {}


@dataclass(frozen=True)
class Task:
    """How a task is scored, what a reference is, and whose protocol it is."""

    run: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, float], Each]]
    reference: str
    source: str


TASKS = {
    "caption": Task(captions, "a caption, or a list of them", "Chen et al. 2015, arXiv 1504.00325 (pycocoevalcap)"),
    "paragraph": Task(captions, "a paragraph, or a list of them", "Krause et al. 2017, arXiv 1611.06607"),
    "vqa": Task(vqa, "the list of ten people's answers", "Antol et al. 2015 (github.com/GT-Vision-Lab/VQA)"),
    "exact": Task(exact, "an answer, or a list of accepted ones", "Ren et al. 2015 (COCO-QA)"),
    "choice": Task(choice, 'a letter, or {"answer": letter, "choices": [texts]}', "Schwenk et al. 2022 (A-OKVQA)"),
    "anls": Task(anls, "the list of accepted answers", "Biten et al. 2019, arXiv 1905.13648 (ST-VQA)"),
    "count": Task(count, "a number", "Acharya et al. 2019, arXiv 1810.12440 (TallyQA)"),
    "vqa-e": Task(explained, '{"answers": [ten], "explanation": text or list}', "Li et al. 2018, arXiv 1803.07464"),
    "fsvqa": Task(sentences, '{"answers": [ten], "answer": short, "sentence": full}', "Shin et al. 2016, arXiv 1609.06657"),
    "tdiuc": Task(per_type, '{"type": question type, "answer": text}', "Kafle & Kanan 2017, arXiv 1703.09684"),
    "grounding": Task(boxes, "{category: boxes [x1, y1, x2, y2]}", "Xia et al. 2024, BrainHub"),
}  # fmt: skip


def score(predictions: Mapping[str, Any], references: Mapping[str, Any], task: str) -> Score:
    """Official scores of predictions, keyed by stimulus as the references are.

    Raises InputError for an unknown task, keys that differ, or a reference that is not of the task's form.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}.")
    if not references:
        raise InputError("there is no reference: the file is empty.")
    missing, spare = sorted(references.keys() - predictions.keys()), sorted(predictions.keys() - references.keys())
    if missing or spare:
        raise InputError(
            f"predictions and references must have the same keys: {len(missing)} of {len(references)} references have no prediction{f' (first: {missing[0]!r})' if missing else ''}, {len(spare)} of {len(predictions)} predictions no reference{f' (first: {spare[0]!r})' if spare else ''}. Nothing is left out silently."
        )
    said = {key: predictions[key] for key in references}  # in one order, whatever the files'
    if task != "grounding":
        said = {key: alone(value, key) for key, value in said.items()}
    values, each = TASKS[task].run(said, dict(references))
    return Score(task, values, each, list(said))


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
        raise InputError(f"the reference for {key!r} is {value!r}; expected a text or a list of texts.")
    return found


def ten(value: Any, key: str) -> list[str]:
    """What people answered: ten in the official data; fewer than two say nothing about agreement."""
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(f"the reference for {key!r} is {value!r}; expected the list of ten people's answers.")
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


def mean(name: str, each: np.ndarray) -> tuple[dict[str, float], Each]:
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
            pair = ("question_id", "answer") if "question_id" in content[0] else ("image_id", "caption")
            return unique([(str(item[pair[0]]), item[pair[1]]) for item in content])
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(
                f'{path} holds a list; expected items {{"image_id": ..., "caption": ...}} or {{"question_id": ..., "answer": ...}}.'
            ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; expected an object keyed by stimulus.")
    if isinstance(content.get("annotations"), list) and all("caption" in item for item in content["annotations"]):
        grouped: dict[str, list[str]] = {}
        for item in content["annotations"]:
            grouped.setdefault(str(item["image_id"]), []).append(item["caption"])
        return grouped
    return content
