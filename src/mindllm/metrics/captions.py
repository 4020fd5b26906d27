"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE as the field computes them: pycocoevalcap, after PTB tokenization.

Source: Chen et al. 2015, arXiv 1504.00325. METEOR, SPICE and the tokenizer are Java programs.
"""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from mindllm.utils.errors import InputError

Texts = Mapping[str, Sequence[str]]
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def java() -> Iterator[None]:
    """Java reads and writes UTF-8, whatever the machine's locale, and its chatter is kept off the terminal."""
    before = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
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
    """What cannot be had where there is no Java, and how to get one; None where there is one."""
    if shutil.which("java") is not None:
        return None
    return f"{', '.join(METRICS)} need Java (for the PTB tokenizer, on whose tokens all are computed, METEOR and SPICE), and there is none on the PATH. Install a Java runtime, e.g. `apt install default-jre-headless` or `conda install openjdk`."


def tokenize(texts: Texts) -> dict[str, list[str]]:
    """Lower-case PTB tokens without punctuation, each text as one line. A text stays one, whatever line breaks are in it."""
    if missing := java_unavailable_reason():
        raise InputError(missing)
    flat = {
        key: [{"caption": " ".join(text.split())} for text in some] for key, some in texts.items()
    }
    try:
        with java():
            return PTBTokenizer().tokenize(flat)
    except PermissionError as error:
        raise InputError(
            f"the PTB tokenizer must write beside its own program, and may not: {error}. Install mindllm where you may write, e.g. in a virtual environment."
        ) from error


def caption_scores(
    predictions: Mapping[str, str], references: Texts
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Corpus scores in per cent (SPICE only where its models are), and what each text earns (in the order of `predictions`).

    predictions and references have the same keys; a stimulus may have several references.
    """
    keys = list(predictions)
    right = tokenize({key: references[key] for key in keys})
    said = tokenize({key: [predictions[key]] for key in keys})
    if right.keys() != said.keys() or any(len(right[key]) != len(references[key]) for key in keys):
        raise AssertionError("a text was lost in tokenization")
    total, each = sentence_scores(said, right)
    if spice_available():
        from pycocoevalcap.spice.spice import Spice

        with java(), contextlib.redirect_stdout(io.StringIO()):  # the scorers print
            total["SPICE"], found = Spice().compute_score(right, said)
        order = {key: i for i, key in enumerate(sorted(keys))}  # SPICE answers in sorted order
        each["SPICE"] = np.array([found[order[key]]["All"]["f"] for key in keys])
    return {n: 100 * float(v) for n, v in total.items()}, {
        n: 100 * np.asarray(v, float) for n, v in each.items()
    }


class BatchedMeteor(Meteor):
    """METEOR that aligns each pair of texts once, and sends all pairs on before it waits for the first answer."""

    def __init__(self) -> None:
        with java():
            super().__init__()
        self.known: dict[tuple[str, ...], str] = {}

    def compute_score(self, references: Texts, predictions: Texts) -> tuple[float, list[float]]:
        pairs = sorted(
            {(predictions[key][0], *references[key]) for key in predictions} - self.known.keys()
        )
        writer = threading.Thread(target=self.send, args=(pairs,))
        writer.start()
        self.known |= {pair: self.meteor_p.stdout.readline().decode().strip() for pair in pairs}
        writer.join()
        return super().compute_score(references, predictions)

    def send(self, pairs: Sequence[tuple[str, ...]]) -> None:
        """Ask for the alignment statistics of pairs of a text and its references."""
        for text, *right in pairs:
            self.meteor_p.stdin.write(
                f"SCORE ||| {' ||| '.join(right)} ||| {self.plain(text)}\n".encode()
            )
        self.meteor_p.stdin.flush()

    def _stat(self, hypothesis_str: str, reference_list: Sequence[str]) -> str:
        return self.known[(hypothesis_str, *reference_list)]

    @staticmethod
    def plain(text: str) -> str:
        """A text as pycocoevalcap hands it on."""
        return text.replace("|||", "").replace("  ", " ")


@cache
def meteor() -> BatchedMeteor:
    """METEOR's program of this process: it takes seconds to begin, and serves until the end."""
    return BatchedMeteor()


def sentence_scores(
    predictions: Texts, references: Texts
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All scores but SPICE, from 0 to 1, of tokenized texts (one per key): of the whole and of each."""
    total: dict[str, float] = {}
    each: dict[str, np.ndarray] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print
        bleu, bleus = Bleu(4).compute_score(references, predictions, verbose=0)
        for n in range(4):
            total[f"BLEU-{n + 1}"], each[f"BLEU-{n + 1}"] = bleu[n], np.array(bleus[n])
        total["METEOR"], meteors = meteor().compute_score(references, predictions)
        each["METEOR"] = np.array(meteors)
        total["ROUGE-L"], each["ROUGE-L"] = Rouge().compute_score(references, predictions)
        total["CIDEr"], each["CIDEr"] = Cider().compute_score(references, predictions)
    return total, each


def spice_available() -> bool:
    """Whether SPICE's models are installed (400 MB, which pycocoevalcap would fetch); says so where they are not."""
    spec = importlib.util.find_spec("pycocoevalcap.spice")
    folder = (
        Path(str(spec.submodule_search_locations[0])) / "lib"
        if spec and spec.submodule_search_locations
        else Path()
    )
    missing = [name for name in SPICE_MODELS if not (folder / name).is_file()]
    if missing:
        logger.warning("SPICE is left out: %s not in %s", " and ".join(missing), folder)
    return not missing
