"""Predictions on disk as soon as they exist, so that a failure in a later step loses none."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions
from mindllm.model.modeling import MindLLM
from mindllm.utils.arrays import ArrayHeader, Shape, check_header, load_arrays
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, describe_read_errors, read_json, write_json
from mindllm.utils.folders import remove_folder

PARTIAL_DIR = "partial"  # within the folder of a result
FINGERPRINT_FILE = "fingerprint.json"
NO_TEXTS = np.frombuffer(b"null", np.uint8)
FLOATS = ("float32", "float64")
REMEDY = "Delete the folder and evaluate anew."


class PredictionCache:
    """Predictions per subject and condition in a folder; without a folder nothing is kept.

    Parameters
    ----------
    directory : Path or None
        Where predictions are written and read; None: nowhere.
    fingerprint : mapping of str to str
        What predictions depend on (see `run_fingerprint`).

    Raises
    ------
    InputError
        If the folder holds the predictions of another evaluation.
    """

    def __init__(self, directory: Path | None, fingerprint: Mapping[str, str]) -> None:
        self.directory = directory
        if directory is None:
            return
        path = directory / FINGERPRINT_FILE
        if path.exists():
            check_fingerprint(directory, read_json(path, "a folder of predictions"), fingerprint)
        else:
            write_json(path, dict(fingerprint))

    def predictions(
        self, subject: str, condition: str, predict: Callable[[], ConditionPredictions]
    ) -> ConditionPredictions:
        """Return saved predictions, or make and save them.

        Parameters
        ----------
        subject, condition : str
            Which predictions.
        predict : callable
            Makes them where they are not saved yet.

        Returns
        -------
        ConditionPredictions
            The same to the last bit, made or read.
        """
        if self.directory is None:
            return predict()
        path = self.directory / subject / f"{condition}.npz"
        if not path.exists():
            save_predictions(path, predict())
        return load_predictions(path)

    def array(self, subject: str, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a saved array of a subject, or compute and save it."""
        if self.directory is None:
            return compute()
        path = self.directory / subject / f"{name}.npz"
        if not path.exists():
            with atomic_write(path) as temporary:
                np.savez_compressed(temporary, values=compute())
        return load_arrays(path, ["values"], REMEDY)["values"]

    def texts(self, name: str, compute: Callable[[], list[str]]) -> list[str]:
        """Return saved texts that are the same for all subjects, or make and save them."""
        if self.directory is None:
            return compute()
        path = self.directory / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        content = read_json(path, "a list of texts", list)
        return check_texts(content, path)

    def has(self, subject: str, condition: str) -> bool:
        """Return whether these predictions are saved."""
        return (
            self.directory is not None and (self.directory / subject / f"{condition}.npz").exists()
        )


def clear_cache(directory: Path) -> None:
    """Delete the saved predictions in the folder of a result, where there are any."""
    if (directory / PARTIAL_DIR).exists():
        remove_folder(directory / PARTIAL_DIR, within=directory)


def save_predictions(path: Path, predictions: ConditionPredictions) -> None:
    """Write predictions as arrays; texts as UTF-8 JSON, for an array of str drops final NULs."""
    texts = json.dumps(list(predictions.texts)).encode()
    arrays = {"texts": np.frombuffer(texts, np.uint8)}
    for name in ("log_likelihoods", "null_log_likelihoods", "evidence"):
        values = getattr(predictions, name)
        if values is not None:
            arrays[name] = values
    if predictions.groups is not None:
        arrays["row_groups"], arrays["trial_groups"] = predictions.groups
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type] # its stub has a flag


def load_predictions(path: Path) -> ConditionPredictions:
    """Read what `save_predictions` wrote; a damaged file is an InputError."""
    arrays = load_arrays(path, remedy=REMEDY)
    with describe_read_errors(path, REMEDY):
        texts = check_texts(json.loads(arrays.get("texts", NO_TEXTS).tobytes()), path)
    check_parts(arrays, len(texts), path)
    groups = (arrays["row_groups"], arrays["trial_groups"]) if "row_groups" in arrays else None
    return ConditionPredictions(
        arrays.get("log_likelihoods"),
        texts,
        arrays.get("null_log_likelihoods"),
        groups,
        arrays.get("evidence"),
    )


def check_texts(content: object, path: Path) -> list[str]:
    """Raise InputError unless saved texts are a list of them."""
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise InputError(f"{path}: the texts are {content!r}; expected a list of texts. {REMEDY}")
    return content


def check_parts(arrays: Mapping[str, np.ndarray], n_rows: int, path: Path) -> None:
    """Raise InputError unless saved arrays are of the shapes of `ConditionPredictions`."""
    scores = [arrays[name] for name in ("log_likelihoods", "evidence") if name in arrays]
    size = scores[0].shape[-1] if scores and scores[0].ndim else None
    expected: dict[str, tuple[Shape, tuple[str, ...]]] = {
        "texts": ((None,), ("uint8",)),
        "log_likelihoods": ((n_rows, size), FLOATS),
        "null_log_likelihoods": ((size,), FLOATS),
        "evidence": ((n_rows, size), FLOATS),
        "row_groups": ((n_rows,), ("int64", "text")),
        "trial_groups": ((None,), ("int64", "text")),
    }
    for name, values in arrays.items():
        shape, types = expected.get(name, ((), ()))
        header = ArrayHeader(values.shape, values.dtype, False, values.nbytes)
        check_header(header, f"{path}, {name}", shape, types, REMEDY)
    if ("row_groups" in arrays) != ("trial_groups" in arrays):
        raise InputError(f"{path} has groups of rows or of trials; expected both. {REMEDY}")


def check_fingerprint(
    directory: Path, saved: Mapping[str, str], current: Mapping[str, str]
) -> None:
    """Raise InputError unless saved predictions are of the same evaluation."""
    for name in current:
        if saved.get(name) != current[name]:
            raise InputError(
                f"{directory} holds predictions of another evaluation: its {name} is "
                f"{saved.get(name)!r}, that of this one {current[name]!r}. "
                "Give the same options to go on with it, or leave --resume out to begin anew."
            )


def run_fingerprint(
    model: MindLLM,
    store: Store,
    evaluation_set: EvaluationSet,
    *,
    seed: int,
    batch_size: int,
    generate_options: Mapping[str, object],
) -> dict[str, str]:
    """Return everything that predictions depend on, by name.

    Parameters
    ----------
    model, store, evaluation_set
        What is evaluated.
    seed, batch_size, generate_options
        Options of `evaluate`. (A batch of another size may round otherwise.)

    Returns
    -------
    dict of str to str
        Names, options, and hashes of weights and data.
    """
    data = (evaluation_set.references, evaluation_set.candidates)
    return {
        "model": hash_weights(model),
        "language model": model.language_model.fingerprint,
        "precision": str(model.language_model.model.dtype),
        "store": str(store.meta.get("name")),
        "split": json.dumps(dict(evaluation_set.splits), sort_keys=True),
        "subjects": ", ".join(evaluation_set.trial_indices),
        "trials": hash_texts(
            *(f"{s} {rows.tolist()}" for s, rows in evaluation_set.trial_indices.items()),
            *(store.fingerprint(s) for s in evaluation_set.trial_indices),
        ),
        "answers": hash_texts(json.dumps(data)),
        "question": evaluation_set.question,
        "generation options": json.dumps({k: str(v) for k, v in sorted(generate_options.items())}),
        "batch size": str(batch_size),
        "seed": str(seed),
    }


def hash_weights(model: MindLLM) -> str:
    """Return a hash of the trained weights; the language model has a fingerprint of its own."""
    digest = hashlib.sha256()
    tensors = {**model.encoder.state_dict(), "null_tokens": model.null_tokens}
    if model.encoding_model is not None:
        tensors |= model.encoding_model.state_dict(prefix="encoding_model.")
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def hash_texts(*texts: str) -> str:
    """Return the beginning of the SHA-256 of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
