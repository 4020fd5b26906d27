"""The tasks of `mindllm score`: what a reference looks like in each, and its official scores."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindllm.metrics import vqa as answers
from mindllm.metrics.captions import (
    METRICS,
    CaptionScores,
    caption_scores,
)
from mindllm.metrics.grounding import grounding
from mindllm.metrics.java import JavaError
from mindllm.utils.errors import InputError, shorten
from mindllm.utils.text_files import parse_json, read_text

N_ANNOTATORS = 10  # of the VQA protocol
ItemScores = dict[str, np.ndarray]
Scores = tuple[dict[str, float], ItemScores]
Texts = Mapping[str, str]
References = Mapping[str, Any]  # the form depends on the task: see TASKS
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricResult:
    """Official scores of a task.

    Parameters
    ----------
    task : str
        A key of TASKS.
    values : dict of str to float
        In percent, as papers print them; RMSE is a number.
    per_item : dict of str to ndarray of shape (n_items,)
        The same of every item, where a score is a mean of them.
    keys : list of str
        Items, in this order.
    """

    task: str
    values: dict[str, float]
    per_item: ItemScores
    keys: list[str]


def score_captions(predictions: Texts, references: References) -> Scores:
    """BLEU, METEOR, ROUGE-L, CIDEr, SPICE."""
    targets = {key: as_texts(value, key) for key, value in references.items()}
    return caption_scores(predictions, targets)


def score_vqa(predictions: Texts, references: References) -> Scores:
    """VQA accuracy."""
    annotated = [annotators_answers(references[k], k) for k in predictions]
    return mean("accuracy", answers.vqa(list(predictions.values()), annotated))


def score_exact(predictions: Texts, references: References) -> Scores:
    """Fraction of exact matches."""
    accepted = [as_texts(references[k], k) for k in predictions]
    return mean("accuracy", answers.exact(list(predictions.values()), accepted))


def score_choice(predictions: Texts, references: References) -> Scores:
    """Fraction of correct letters."""
    letters, options = [], []
    for key in predictions:
        reference = references[key]
        has_options = isinstance(reference, dict)
        letter = get_field(reference, "answer", key) if has_options else reference
        if not isinstance(letter, str):
            raise InputError(f"the reference for {key!r} is {letter!r}; expected a letter.")
        letters.append(letter)
        options.append(as_texts(reference.get("choices", []), key) if has_options else [])
    return mean("accuracy", answers.choice(list(predictions.values()), letters, options))


def score_anls(predictions: Texts, references: References) -> Scores:
    """Average normalized Levenshtein similarity."""
    accepted = [as_texts(references[k], k) for k in predictions]
    return mean("ANLS", answers.anls(list(predictions.values()), accepted))


def score_count(predictions: Texts, references: References) -> Scores:
    """Fraction of correct numbers, RMSE, and fraction without a number (they count as 0)."""
    texts = list(predictions.values())
    targets = [as_number(references[k], k) for k in predictions]
    errors = answers.squared_errors(texts, targets)
    correct = [
        float(answers.number(text) == answers.number(target))
        for text, target in zip(texts, targets, strict=True)
    ]
    n_without = sum(answers.number(text) is None for text in texts)
    values, per_item = mean("accuracy", np.array(correct))
    values |= {"RMSE": float(errors.mean() ** 0.5)}
    values |= {"without a number": 100 * n_without / len(predictions)}
    return values, per_item | {"squared error": errors}


def score_vqa_e(predictions: Texts, references: References) -> Scores:
    """VQA accuracy of the answer, and caption scores of the explanation."""
    parts = {key: answers.split_explanation(text) for key, text in predictions.items()}
    annotated = [annotators_answers(get_field(references[k], "answers", k), k) for k in predictions]
    values, per_item = mean("accuracy", answers.vqa([parts[k][0] for k in predictions], annotated))
    reasons = {k: as_texts(get_field(references[k], "explanation", k), k) for k in predictions}
    corpus, per_text = captions_with_java({k: parts[k][1] for k in predictions}, reasons)
    values |= {f"explanation {name}": value for name, value in corpus.items()}
    per_item |= {f"explanation {name}": value for name, value in per_text.items()}
    return values, per_item


def score_fsvqa(predictions: Texts, references: References) -> Scores:
    """VQA accuracy of the short answer in the sentence, its exact match, its caption scores."""
    texts = list(predictions.values())
    shorts = [str(get_field(references[k], "answer", k)) for k in predictions]
    annotated = [annotators_answers(get_field(references[k], "answers", k), k) for k in predictions]
    sentences = {k: as_texts(get_field(references[k], "sentence", k), k) for k in predictions}
    values, per_item = mean(
        "VQA accuracy", answers.vqa(answers.contained(texts, shorts), annotated)
    )
    exact_values, exact_per_item = mean(
        "FSVQA accuracy", answers.exact(texts, list(sentences.values()))
    )
    corpus, per_text = captions_with_java(
        {k: answers.short(text) for k, text in predictions.items()},
        {k: [answers.short(text) for text in group] for k, group in sentences.items()},
    )
    return values | exact_values | corpus, per_item | exact_per_item | per_text


def score_tdiuc(predictions: Texts, references: References) -> Scores:
    """Accuracy per question type, and TDIUC's means over types."""
    kinds = [str(get_field(references[k], "type", k)) for k in predictions]
    targets = [str(get_field(references[k], "answer", k)) for k in predictions]
    correct = answers.exact(list(predictions.values()), [[target] for target in targets])
    values, per_item = mean("accuracy", correct)
    return values | answers.mean_per_type(correct, kinds, targets), per_item


def captions_with_java(
    predictions: Texts, references: Mapping[str, Sequence[str]]
) -> CaptionScores:
    """Return caption scores; none, with a warning, where there is no Java or it dies."""
    try:
        return caption_scores(predictions, references)
    except JavaError as error:
        logger.warning("left out: %s. %s", ", ".join(METRICS), error)
        return {}, {}


def score_grounding(predictions: Mapping[str, Any], references: References) -> Scores:
    """Accuracy at IoU 0.5 and mean IoU, per group of categories, or of expressions.

    Texts are answers to referring expressions: one each, without a category.
    """
    if not all(isinstance(value, str) for value in predictions.values()):
        return grounding(predictions, references)[0], {}
    boxes = {}
    for key, text in predictions.items():
        reference = references[key]
        if not isinstance(reference, Mapping) or len(reference) != 1:
            raise InputError(
                f"the reference for {key!r} is {shorten(repr(reference), 80)}; a text is scored "
                "against an object of one expression -> its box."
            )
        boxes[key] = dict.fromkeys(reference, text)
    scores, values = grounding(boxes, references)
    if len(values) < len(boxes):
        raise InputError(
            f"{len(boxes) - len(values)} of {len(boxes)} references have no readable box; expected "
            "[x1, y1, x2, y2]."
        )
    of_all = {name: scores[f"{name} (all)"] for name in ("accuracy@0.5", "IoU")}
    return of_all, {"accuracy@0.5": 100.0 * (values > 0.5), "IoU": 100 * values}


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """How a task is scored, what a reference is, and whose protocol it is."""

    run: Callable[[Mapping[str, Any], References], Scores]
    reference: str
    source: str


TASKS = {
    "caption": AnswerMetric(
        score_captions,
        "a caption, or a list of them",
        "Chen et al. 2015, arXiv 1504.00325 (pycocoevalcap)",
    ),
    "paragraph": AnswerMetric(
        score_captions,
        "a paragraph, or a list of them",
        "Krause et al. 2017, arXiv 1611.06607",
    ),
    "vqa": AnswerMetric(
        score_vqa,
        "the list of ten annotators' answers",
        "Antol et al. 2015 (github.com/GT-Vision-Lab/VQA)",
    ),
    "exact": AnswerMetric(
        score_exact, "an answer, or a list of accepted ones", "Ren et al. 2015 (COCO-QA)"
    ),
    "choice": AnswerMetric(
        score_choice,
        'a letter, or {"answer": letter, "choices": [texts]}',
        "Schwenk et al. 2022 (A-OKVQA)",
    ),
    "anls": AnswerMetric(
        score_anls,
        "the list of accepted answers",
        "Biten et al. 2019, arXiv 1905.13648 (ST-VQA)",
    ),
    "count": AnswerMetric(
        score_count, "a number", "Acharya et al. 2019, arXiv 1810.12440 (TallyQA)"
    ),
    "vqa-e": AnswerMetric(
        score_vqa_e,
        '{"answers": [ten], "explanation": text or list}',
        "Li et al. 2018, arXiv 1803.07464",
    ),
    "fsvqa": AnswerMetric(
        score_fsvqa,
        '{"answers": [ten], "answer": short, "sentence": full}',
        "Shin et al. 2016, arXiv 1609.06657",
    ),
    "tdiuc": AnswerMetric(
        score_tdiuc,
        '{"type": question type, "answer": text}',
        "Kafle & Kanan 2017, arXiv 1703.09684",
    ),
    "grounding": AnswerMetric(
        score_grounding,
        "{category: boxes [x1, y1, x2, y2]}, or of an expression",
        "Xia et al. 2024, BrainHub",
    ),
}


def score(predictions: Mapping[str, Any], references: References, task: str) -> MetricResult:
    """Compute the official scores of a task.

    Parameters
    ----------
    predictions : mapping of str to str (for `grounding`, to boxes)
        By stimulus or question.
    references : mapping of str to object
        With the same keys, in the form that TASKS names.
    task : str
        A key of TASKS.

    Returns
    -------
    MetricResult
        Items are in the order of the references.

    Raises
    ------
    InputError
        For an unknown task, keys that differ, or a reference of another form.

    Examples
    --------
    >>> score({"a": "Red."}, {"a": ["red", "crimson"]}, "exact").values
    {'accuracy': 100.0}
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; known: {', '.join(TASKS)}.")
    check_keys(predictions, references)
    ordered = {key: predictions[key] for key in references}
    if task != "grounding":
        ordered = {key: as_text(value, key) for key, value in ordered.items()}
    values, per_item = TASKS[task].run(ordered, dict(references))
    return MetricResult(task, values, per_item, list(ordered))


def check_keys(predictions: Mapping[str, Any], references: References) -> None:
    """Raise InputError unless predictions and references have the same keys, and some."""
    if not references:
        raise InputError("there is no reference: the file is empty.")
    without = sorted(references.keys() - predictions.keys())
    extra = sorted(predictions.keys() - references.keys())
    if without or extra:
        first_without = f" (first: {without[0]!r})" if without else ""
        first_extra = f" (first: {extra[0]!r})" if extra else ""
        raise InputError(
            f"predictions and references must have the same keys: {len(without)} of "
            f"{len(references)} references have no prediction{first_without}, {len(extra)} of "
            f"{len(predictions)} predictions no reference{first_extra}. "
            "Nothing is left out silently."
        )


def as_text(value: Any, key: str) -> str:
    """Return a prediction: one text."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(text, str):
        raise InputError(f"the prediction for {key!r} is {value!r}; expected one text.")
    return text


def as_texts(value: Any, key: str) -> list[str]:
    """Return a reference as a list of texts."""
    texts = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if not texts or isinstance(value, dict):
        raise InputError(
            f"the reference for {key!r} is {value!r}; expected a text or a list of texts."
        )
    return texts


def annotators_answers(value: Any, key: str) -> list[str]:
    """Return annotators' answers: ten in the official data, at least two for any agreement."""
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(
            f"the reference for {key!r} is {value!r}; expected the list of ten annotators' answers."
        )
    if len(value) != N_ANNOTATORS:
        logger.warning(
            "%r has %d annotators' answers; the official protocol has ten", key, len(value)
        )
    return as_texts(value, key)


def as_number(value: Any, key: str) -> str:
    """Return a count, as text."""
    count = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(count, (bool, list, dict)) or answers.number(str(count)) is None:
        raise InputError(f"the reference for {key!r} is {value!r}; expected a number.")
    return str(count)


def get_field(value: Any, name: str, key: str) -> Any:
    """Return a field of a reference that has several."""
    if not isinstance(value, dict) or name not in value:
        raise InputError(f"the reference for {key!r} lacks {name!r}; found {value!r}.")
    return value[name]


def mean(name: str, per_item: np.ndarray) -> Scores:
    """Return a score that is the mean over items, in percent, and that of each item."""
    return {name: 100 * float(per_item.mean())}, {name: 100 * per_item}


def read_keyed(path: Path) -> Mapping[str, Any]:
    """Read predictions or references by key.

    Parameters
    ----------
    path : Path
        A JSON object by stimulus; or COCO's or VQA's list of results, or COCO's caption
        annotations.

    Returns
    -------
    mapping of str to object
        By stimulus, image or question.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another form, or gives a key twice.
    """
    text = read_text(path, "predictions or references")
    content = parse_json(text, path, "Make it anew.", lambda pairs: unique_keys(pairs, path))
    if isinstance(content, list):
        return read_results(content, path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds {type(content).__name__}; expected an object keyed by stimulus."
        )
    annotations = content.get("annotations")
    if isinstance(annotations, list) and all("caption" in item for item in annotations):
        captions: dict[str, list[str]] = {}
        for item in annotations:
            captions.setdefault(str(item["image_id"]), []).append(item["caption"])
        return captions
    return content


def unique_keys(pairs: Sequence[tuple[str, Any]], path: Path) -> Mapping[str, Any]:
    """Return pairs as a dict; a key that comes twice is an InputError."""
    content = {}
    for key, value in pairs:
        if key in content:
            raise InputError(f"{path} gives the key {key!r} twice.")
        content[key] = value
    return content


def read_results(items: Sequence[Any], path: Path) -> Mapping[str, Any]:
    """Return COCO's or VQA's list of results by image or question."""
    try:
        is_vqa = "question_id" in items[0]
        key, value = ("question_id", "answer") if is_vqa else ("image_id", "caption")
        return unique_keys([(str(item[key]), item[value]) for item in items], path)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f'{path} holds a list; expected items {{"image_id": ..., "caption": ...}} or '
            '{"question_id": ..., "answer": ...}.'
        ) from error
