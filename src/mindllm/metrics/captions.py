"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE by pycocoevalcap, after PTB tokenization.

METEOR, SPICE and the tokenizer are Java programs.

References
----------
Microsoft COCO captions: Chen et al. 2015, arXiv 1504.00325. BLEU: Papineni et al. 2002, ACL.
METEOR: Denkowski & Lavie 2014, WMT. ROUGE-L: Lin 2004, ACL workshop. CIDEr: Vedantam, Zitnick &
Parikh 2015, CVPR. SPICE: Anderson et al. 2016, ECCV.
"""

import contextlib
import importlib.util
import io
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mindllm.metrics.java import (
    LIMIT_SECONDS,
    JavaError,
    java_problem,
    meteor,
    time_limit,
    tokenize_lines,
    utf8_environment,
)

Texts = Mapping[str, Sequence[str]]
CaptionScores = tuple[dict[str, float], dict[str, np.ndarray]]
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
SPICE_SECONDS = 5  # that SPICE may take for a text
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def java_environment() -> Iterator[None]:
    """Let SPICE read and write UTF-8, whatever the locale, and keep it off the terminal."""
    before = os.environ.get("LC_ALL")
    os.environ |= utf8_environment()
    quiet, kept = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(quiet, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(quiet)
        if before is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = before


def java_unavailable_reason() -> str | None:
    """Say what cannot be computed without Java, why, and how to get it.

    Returns
    -------
    str or None
        None where there is a Java on the PATH, and it runs.
    """
    if (problem := java_problem()) is None:
        return None
    return (
        f"{', '.join(METRICS)} need Java (for the PTB tokenizer, on whose tokens all are computed, "
        f"METEOR and SPICE): {problem}"
    )


def tokenize(texts: Texts) -> dict[str, list[str]]:
    """Tokenize texts as the Penn Treebank does, in lower case and without punctuation.

    Parameters
    ----------
    texts : mapping of str to sequence of str
        Texts by key.

    Returns
    -------
    dict of str to list of str
        Each text as one line of tokens, whatever line breaks are in it.

    Raises
    ------
    JavaError
        Without a Java that runs, or if the tokenizer dies.
    """
    if reason := java_unavailable_reason():
        raise JavaError(reason)
    tokens = iter(tokenize_lines([" ".join(t.split()) for group in texts.values() for t in group]))
    return {key: [next(tokens) for _ in group] for key, group in texts.items()}


def caption_scores(predictions: Mapping[str, str], references: Texts) -> CaptionScores:
    """Compute all caption scores of texts.

    Parameters
    ----------
    predictions : mapping of str to str
        One text per stimulus.
    references : mapping of str to sequence of str
        One or more per stimulus, with the same keys.

    Returns
    -------
    corpus : dict of str to float
        In percent, as papers print them (CIDEr-D times 100); SPICE only where its models are, and
        neither METEOR nor SPICE where their programs died, of which a warning is given.
    per_text : dict of str to ndarray
        Likewise of each text, in the order of `predictions`.
    """
    keys = list(predictions)
    targets = tokenize({key: references[key] for key in keys})
    texts = tokenize({key: [predictions[key]] for key in keys})
    corpus, per_text = sentence_scores(texts, targets)
    if spice_available():
        with left_out("SPICE"):
            corpus["SPICE"], per_text["SPICE"] = spice_scores(texts, targets)
    return {n: 100 * float(v) for n, v in corpus.items()}, {
        n: 100 * np.asarray(v, float) for n, v in per_text.items()
    }


def spice_scores(predictions: Texts, references: Texts) -> tuple[float, np.ndarray]:
    """Return SPICE in [0, 1] of all texts, and of each (n_texts,)."""
    from pycocoevalcap.spice.spice import Spice

    try:
        with (
            java_environment(),
            time_limit("spice", LIMIT_SECONDS + SPICE_SECONDS * len(predictions)),
            contextlib.redirect_stdout(io.StringIO()),  # the scorers print
        ):
            corpus, details = Spice().compute_score(references, predictions)
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaError(
            f"SPICE's Java program died, or was ended because it took too long ({error}). It needs "
            "8 GiB of memory."
        ) from error
    order = {key: i for i, key in enumerate(sorted(predictions))}  # SPICE answers in sorted order
    return corpus, np.array([details[order[key]]["All"]["f"] for key in predictions])


@contextlib.contextmanager
def left_out(metric: str) -> Iterator[None]:
    """Leave a score out, with a warning, where its Java program dies in the block."""
    try:
        yield
    except JavaError as error:
        logger.warning("%s is left out: %s", metric, error)


def sentence_scores(predictions: Texts, references: Texts) -> CaptionScores:
    """Compute all scores but SPICE of tokenized texts.

    Parameters
    ----------
    predictions, references : mapping of str to sequence of str
        Lines of tokens; one prediction per key.

    Returns
    -------
    corpus : dict of str to float
        In [0, 1]; CIDEr-D in [0, 10]. Without METEOR where its program died.
    per_text : dict of str to ndarray of shape (n_texts,)
        Likewise of each text.
    """
    corpus: dict[str, float] = {}
    per_text: dict[str, np.ndarray] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print
        bleu, bleus = Bleu(4).compute_score(references, predictions, verbose=0)
        for n in range(4):
            corpus[f"BLEU-{n + 1}"], per_text[f"BLEU-{n + 1}"] = bleu[n], np.array(bleus[n])
        with left_out("METEOR"):
            texts, targets = [predictions[key][0] for key in predictions], references.values()
            corpus["METEOR"], meteors = meteor().score(texts, list(targets))
            per_text["METEOR"] = np.array(meteors)
        corpus["ROUGE-L"], per_text["ROUGE-L"] = Rouge().compute_score(references, predictions)
        corpus["CIDEr"], per_text["CIDEr"] = Cider().compute_score(references, predictions)
    return corpus, per_text


def spice_available() -> bool:
    """Return whether SPICE's models are installed (400 MB); log a warning where they are not."""
    spec = importlib.util.find_spec("pycocoevalcap.spice")
    locations = spec.submodule_search_locations if spec else None
    folder = Path(str(locations[0])) / "lib" if locations else Path()
    missing = [name for name in SPICE_MODELS if not (folder / name).is_file()]
    if missing:
        logger.warning("SPICE is left out: %s not in %s", " and ".join(missing), folder)
    return not missing
