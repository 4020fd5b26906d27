"""A text reader for a trained model, from the store that the model was trained on."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.model.encoding_model import EncodingModelConfig
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import sample_texts
from mindllm.training.batches import BatchBuilder
from mindllm.training.configuration import TrainConfig
from mindllm.training.encoding import collect_features, embed_stimuli
from mindllm.training.posterior_errors import PosteriorErrors, TrainingTrials, measure_errors
from mindllm.training.resume import check_fingerprint
from mindllm.training.text_reader import TextReaderOptions, TextReaderTrainer
from mindllm.training.trainer import CHECKPOINT, check_unfinished
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_output, read_json, write_json
from mindllm.utils.folders import recover_directory, remove_folder, replace_directory
from mindllm.utils.locks import lock_output
from mindllm.utils.progress import progress_bar

RECORD = "text_reader.json"  # how the reader was trained, in the model folder
SENTENCES = Path("training", "sentences.json")  # in the model folder, until the end
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReaderData:
    """What a reader is taught with, and what its training depends on.

    Parameters
    ----------
    answers : list of str
        First texts of the training stimuli.
    trials : TrainingTrials
        Their numbers of texts are those of `answers`.
    """

    answers: list[str]
    trials: TrainingTrials


def train_text_reader(
    model: MindLLM,
    store: Store,
    out: str | Path,
    options: TextReaderOptions | None = None,
    *,
    corpus: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> MindLLM:
    """Teach a model a text reader, and write the model with it.

    The sentences are the training answers, a corpus, and what the frozen language model writes
    after their example. Their noise is measured in training trials; see
    `mindllm.training.text_reader`. Neither encoder nor encoding model changes.

    Parameters
    ----------
    model : MindLLM
        With an encoding model; it gets the reader in place of an earlier one.
    store : Store
        That the model was trained on, with at least three of its training subjects.
    out : str or Path
        The model folder to write; its subfolder `training` holds the checkpoint until the end.
    options : TextReaderOptions, optional
    corpus : sequence of str
    resume : bool
        Go on from the last checkpoint in `out`, if there is one.
    progress : rich.progress.Progress, optional
        Bars to add some to.

    Returns
    -------
    MindLLM
        The same, in evaluation mode.

    Raises
    ------
    InputError
        If the model has no encoding model, the store holds fewer than three of its training
        subjects, `out` cannot be written or holds a training that is not resumed, or the training
        was begun with other options or data.

    Examples
    --------
    >>> train_text_reader(model, Store("store"), "model-with-reader")  # doctest: +SKIP
    """
    options, out = options or TextReaderOptions(), Path(out)
    model.require_encoding_model()
    subjects = select_subjects(model, store)
    with lock_output(out):
        recover_directory(out)
        check_unfinished(out, resume)
        fingerprint = reader_fingerprint(model, store, subjects, options, corpus)
        if (out / "config.json").exists():
            return reload_reader(out, fingerprint)
        check_output(out, [store.path], ("training",))
        data = collect_data(model, store, subjects, progress)
        errors = measure_with_bar(model, data.trials, options, progress)
        texts = collect_sentences(model, data, corpus, options, out, progress)
        trainer = TextReaderTrainer(model, texts, data.answers, errors, options)
        checkpoint = out / CHECKPOINT
        if checkpoint.exists():
            trainer.restore(checkpoint, fingerprint)
            logger.info("going on after step %d", trainer.state.step)
        done = trainer.state.step
        with progress_bar(progress, "text reader", options.max_steps, done) as advance:
            trainer.run(checkpoint, fingerprint, advance)
        save_with_reader(trainer, errors, fingerprint, out)
    return model


def select_subjects(model: MindLLM, store: Store) -> list[str]:
    """Training subjects of the model that the store holds; InputError if there are none."""
    trained = model.model_card.subjects or []
    subjects = [subject for subject in store.select_subjects(None) if subject in trained]
    if not subjects:
        raise InputError(
            f"{store.path} holds none of the subjects that the model was trained on "
            f"({', '.join(trained) or 'which it does not name'}); give the store of its training."
        )
    return subjects


def reload_reader(out: Path, fingerprint: dict[str, object]) -> MindLLM:
    """Load the finished model in `out`; InputError unless it comes from the same training."""
    saved = read_json(out / RECORD, "a model with a text reader").get("fingerprint")
    check_fingerprint(fingerprint, saved if isinstance(saved, dict) else {}, out)
    logger.info("%s has its text reader already", out)
    remove_folder(out / "training", within=out)
    return MindLLM.from_pretrained(out)


def reader_fingerprint(
    model: MindLLM,
    store: Store,
    subjects: Sequence[str],
    options: TextReaderOptions,
    corpus: Sequence[str],
) -> dict[str, object]:
    """Everything that must be the same for a training to be resumed, as JSON values."""
    assert model.encoding_model is not None
    weights = [tensor.numpy().tobytes() for tensor in model.encoding_model.buffers()]
    return options.model_dump(mode="json") | {
        "store": store.meta["name"],
        "split": store.split["name"],
        "subjects": {subject: store.fingerprint(subject) for subject in subjects},
        "corpus": digest("\n".join(corpus).encode()),
        "encoding_model": digest(b"".join(weights)),
        "language_model_fingerprint": model.language_model.fingerprint,
    }


def collect_data(
    model: MindLLM, store: Store, subjects: Sequence[str], progress: Progress | None
) -> ReaderData:
    """Query outputs and texts of the training trials, as the encoding model was fitted to them."""
    config = model.model_card.config or {}
    trials = TrialDataset(store, subjects, "train", list(config.get("source_weights") or {}))
    conversations = ConversationDataset(store, [trials])
    trials = trials.filter_stimuli(conversations.text_indices)
    _, sentence_encoder = model.require_encoding_model()
    stimuli, texts, embeddings = embed_stimuli(trials, conversations, sentence_encoder, progress)
    answers = [""] * len(embeddings)
    for stimulus, number in stimuli.items():
        first = conversations.text_indices[stimulus][0]
        answers[int(texts[number])] = conversations.texts[first]
    batches = BatchBuilder(store, model, conversations, TrainConfig())
    with progress_bar(progress, "text reader: trials", len(trials)) as advance:
        features = collect_features(model, trials, batches, stimuli, advance)
    fitted = EncodingModelConfig.model_validate(config.get("encoding_model") or {})
    return ReaderData(answers, TrainingTrials(features, embeddings, texts, fitted))


def measure_with_bar(
    model: MindLLM, trials: TrainingTrials, options: TextReaderOptions, progress: Progress | None
) -> PosteriorErrors:
    """Measure the errors of left-out trials, with a bar."""
    assert model.encoding_model is not None
    with progress_bar(progress, "text reader: errors", len(trials.subjects)) as advance:
        return measure_errors(trials, model.encoding_model, options.n_folds, options.seed, advance)


def collect_sentences(
    model: MindLLM,
    data: ReaderData,
    corpus: Sequence[str],
    options: TextReaderOptions,
    out: Path,
    progress: Progress | None,
) -> list[str]:
    """Sentences of the corpus and of the language model, which are kept until the end."""
    examples = list(dict.fromkeys([*data.answers, *corpus]))
    if not options.n_texts:
        return examples
    file = out / SENTENCES
    key = f"{digest(chr(10).join(examples).encode())} {options.n_texts} {options.seed}"
    kept = read_json(file, "sentences of a training") if file.exists() else {}
    if kept.get("examples") != key:
        with progress_bar(progress, "writing sentences", options.n_texts) as advance:
            sampled = sample_texts(
                model.language_model, examples, options.n_texts, seed=options.seed, advance=advance
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"examples": key, "sampled": sampled}
        write_json(file, kept)
    return [*examples, *map(str, kept["sampled"])]


def save_with_reader(
    trainer: TextReaderTrainer,
    errors: PosteriorErrors,
    fingerprint: dict[str, object],
    out: Path,
) -> None:
    """Write the model, and how its reader was trained."""
    content = {
        "fingerprint": fingerprint,
        "history": [entry.to_row() for entry in trainer.state.history],
        "n_sentences": len(trainer.texts),
        "gain": errors.gain,
        "explained": errors.explained,
    }
    with replace_directory(out) as folder:
        write_json(folder / RECORD, content)
        trainer.model.save_pretrained(folder)
    remove_folder(out / "training", within=out)


def digest(content: bytes) -> str:
    """Twelve hexadecimal digits that tell content from other content."""
    return hashlib.sha256(content).hexdigest()[:12]
