"""Adaptation to a new task: a trained model is trained further on questions that it never met.

Three models answer the same questions of a source about the same trials: the trained model as it
is, the same trained further on the source (its complete encoder, through the frozen language
model), and a new model that is trained on the source alone, with the same trials, questions and
steps of instruction tuning, after an alignment with the answers. Beside each stand the controls of
question answering.

References
----------
Qiu et al., MindLLM, ICML 2025, arXiv 2502.15786, adaptation to TDIUC.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.evaluation.question_answering import (
    CONDITIONS,
    QAResult,
    choose_task,
    collect_questions,
    evaluate_qa,
)
from mindllm.metrics.inference import bootstrap_interval, subject_means
from mindllm.metrics.tasks import MetricResult, score
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, read_json, write_json
from mindllm.utils.progress import progress_bar

BEFORE, ADAPTED, SCRATCH = "before", "adapted", "from scratch"
MODELS = (BEFORE, ADAPTED, SCRATCH)
DESCRIPTION = "new_task.json"
MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class NewTaskRow:
    """How well the questions are answered by one model under one condition.

    Parameters
    ----------
    model : {"before", "adapted", "from scratch"}
    condition : str
        `fmri`, or a control.
    metric : str
        The first score of the source's protocol that is a mean over questions.
    n_items : int
        Questions about trials.
    value, ci_low, ci_high : float
        In percent; 95 % bootstrap interval over stimuli, and over subjects if there are several.
    difference, difference_ci_low, difference_ci_high : float
        fMRI of the adapted model minus this, paired.
    """

    model: str
    condition: str
    metric: str
    n_items: int
    value: float
    ci_low: float
    ci_high: float
    difference: float
    difference_ci_low: float
    difference_ci_high: float


@dataclass(frozen=True, slots=True)
class NewTask:
    """Which questions are new, and about whose trials.

    Parameters
    ----------
    source : str
        In the store, and not among those that the model was trained on.
    subjects : sequence of str or None
        Trained on; None: the model's training subjects that the store has.
    tested : sequence of str or None
        Asked about, in their test trials; None: the same subjects.
    """

    source: str
    subjects: Sequence[str] | None = None
    tested: Sequence[str] | None = None


def adapt_to_task(
    model: MindLLM,
    model_dir: str | Path,
    store: Store,
    task: NewTask,
    out: Path,
    config: TrainConfig,
    *,
    language_model: str | None = None,
    progress: Progress | None = None,
) -> list[NewTaskRow]:
    """Train a model further on a new source, and ask before and after, beside a new model.

    Parameters
    ----------
    model : MindLLM
        The trained model.
    model_dir : str or Path
        Its folder.
    store : Store
    task : NewTask
    out : Path
        Holds `adapted-model`, `scratch-model` and the answers of all three models; what is there
        already is not made again.
    config : TrainConfig
        `instruction_tuning` is of both trainings; all else of the new model alone.
    language_model : str, optional
        If not found under the model's name for it.
    progress : Progress, optional

    Returns
    -------
    list of NewTaskRow

    Raises
    ------
    InputError
        If the model was trained on the source, or the store does not have it.
    """
    check_is_new(model, task.source, str(model_dir))
    subjects = store.select_subjects(task.subjects or trained_subjects(model, store))
    tested = store.select_subjects(task.tested or subjects)
    further, anew = both_configs(config, task.source, str(model_dir), language_model)

    def train_or_load(name: str, options: TrainConfig) -> MindLLM:
        return train(store, out / name, options, subjects=subjects, resume=True, progress=progress)

    makers: dict[str, Callable[[], MindLLM]] = {
        BEFORE: lambda: model,
        ADAPTED: lambda: train_or_load("adapted-model", further),
        SCRATCH: lambda: train_or_load("scratch-model", anew),
    }
    scores = {}
    for name, make in makers.items():
        folder = out / f"answers-{name.replace(' ', '-')}"
        if not (folder / "scores.json").exists():
            ask_questions(make(), store, task.source, folder, tested, progress)
        scores[name] = read_scores(folder, choose_task(task.source, None))
    return compare_models(scores)


def check_is_new(model: MindLLM, source: str, name: str) -> None:
    """Raise InputError if a model was trained on a source, or on all types of its questions."""
    trained = model.model_card.sources
    if trained is None:
        raise InputError(
            f"the card of {name} does not say which sources it was trained on, so {source} cannot "
            "be shown to be new to it."
        )
    if source in trained or source.split("/")[0] in trained:
        raise InputError(
            f"{name} was trained on {source} (its sources: {', '.join(trained)}). Choose a source "
            "that is new to it."
        )


def trained_subjects(model: MindLLM, store: Store) -> list[str]:
    """Return the model's training subjects that a store has."""
    names = [s for s in store.subjects if s in (model.model_card.subjects or [])]
    if not names:
        raise InputError(
            f"{store.path} has none of the subjects that the model was trained on; name those to "
            "train on (--subjects)."
        )
    return names


def both_configs(
    config: TrainConfig, source: str, model: str, language_model: str | None
) -> tuple[TrainConfig, TrainConfig]:
    """Return options of training further, and of training a new model on the same questions."""
    # An encoding model of the new answers alone would take the place of the one for captions.
    common = {"source_weights": {source: 1.0}, "encoding_model": None}
    anew = config.model_copy(
        update=common | {"language_model": language_model or config.language_model}
    )
    further = config.model_copy(
        update=common
        | {
            "init_from": model,
            "language_model": language_model,
            "preset": "default",
            "encoder": {},
            "chat_template": None,
            "alignment": StageConfig(max_steps=0, batch_size=1),
        }
    )
    return further, anew


def ask_questions(
    model: MindLLM,
    store: Store,
    source: str,
    folder: Path,
    subjects: Sequence[str],
    progress: Progress | None,
) -> QAResult:
    """Ask a model all questions of a source about test trials."""
    items = collect_questions(store, source, subjects, "test", False, choose_task(source, None))
    n_done = 0
    with progress_bar(progress, f"asking ({folder.name})", len(items) * len(CONDITIONS)) as advance:

        def on_progress(done: int, total: int) -> None:
            nonlocal n_done
            advance(done - n_done)
            n_done = done

        return evaluate_qa(
            model,
            store,
            source,
            folder,
            subjects=subjects,
            on_progress=on_progress,
            max_new_tokens=MAX_ANSWER_TOKENS,
        )


def read_scores(folder: Path, task: str) -> dict[str, MetricResult]:
    """Read the answers of a model, and score them again, by condition."""
    references = read_json(folder / "references.json", "references")
    paths = {name: folder / f"predictions-{name}.json" for name in CONDITIONS}
    return {
        name: score(read_json(path, "predictions"), references, task)
        for name, path in paths.items()
    }


def compare_models(scores: Mapping[str, Mapping[str, MetricResult]]) -> list[NewTaskRow]:
    """Return scores of every model and condition, and how far the adapted model is above."""
    best = scores[ADAPTED]["fmri"]
    if not best.per_item:
        raise InputError(
            f"the protocol {best.task!r} has no score of single questions (text scores need Java)."
        )
    metric = next(iter(best.per_item))
    parts = [key.partition("/") for key in best.keys]  # subject/stimulus#trial/number
    subjects = [subject for subject, _, _ in parts]
    stimuli = [name.rpartition("#")[0] for _, _, name in parts]
    rows = []
    for model in MODELS:
        for condition, result in scores[model].items():
            table = np.column_stack(
                [result.per_item[metric], best.per_item[metric] - result.per_item[metric]]
            )
            low, high = bootstrap_interval(table, stimuli, subjects)
            mean = subject_means(table, np.array(subjects)).mean(0)
            numbers = [float(x) for triple in zip(mean, low, high, strict=True) for x in triple]
            rows.append(NewTaskRow(model, condition, metric, len(table), *numbers))
    return rows


def write_new_task(rows: Sequence[NewTaskRow], source: str, out: Path) -> None:
    """Write new_task.tsv and new_task.json."""
    with atomic_write(out / "new_task.tsv") as path:
        pd.DataFrame([asdict(row) for row in rows]).to_csv(path, sep="\t", index=False)
    write_json(out / DESCRIPTION, {"source": source, "rows": [asdict(row) for row in rows]})
