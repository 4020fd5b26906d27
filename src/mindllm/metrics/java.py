"""Java programs of the field's caption scores: the PTB tokenizer and METEOR, within time limits."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
from pycocoevalcap.meteor import meteor as coco_meteor
from pycocoevalcap.tokenizer import ptbtokenizer as coco_tokenizer

from mindllm.utils.errors import InputError

START_SECONDS = 60  # within which a Java that runs says its version
LIMIT_SECONDS = 300  # of a program that says nothing, beside a second per text
INSTALL = (
    "Install a Java runtime, e.g. `apt install default-jre-headless` or `conda install openjdk`."
)
TOKENIZER = (
    "-cp", coco_tokenizer.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer",
    "-preserveLines", "-lowerCase",
)  # fmt: skip
METEOR = ("-jar", "-Xmx2G", coco_meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm")


class JavaError(InputError):
    """A Java program is missing, died or said nothing in time."""


def java_problem() -> str | None:
    """Say why no Java program can be run.

    Returns
    -------
    str or None
        None where there is a Java on the PATH, and it runs.
    """
    java = shutil.which("java")
    return f"there is none on the PATH. {INSTALL}" if java is None else _startup_problem(java)


@cache
def _startup_problem(java: str) -> str | None:
    """Say why this Java does not run; None where it does."""
    command = [java, "-version"]
    try:
        result = subprocess.run(command, capture_output=True, timeout=START_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{java} said nothing in {START_SECONDS} seconds. {INSTALL}"
    except OSError as error:
        return f"{java} cannot be run ({error.strerror}). {INSTALL}"
    if result.returncode:
        return f"{java} does not run ({describe_exit(result.returncode, result.stderr)}). {INSTALL}"
    return None


def describe_exit(code: int | None, stderr: bytes) -> str:
    """Return how a program ended, and the first line of what it said."""
    lines = [line.strip() for line in stderr.decode(errors="replace").split("\n") if line.strip()]
    return f"exit code {code}" + (f": {lines[0][:200]}" if lines else "")


def utf8_environment() -> dict[str, str]:
    """Return the environment in which Java reads and writes UTF-8, whatever the locale."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def tokenize_lines(lines: Sequence[str]) -> list[str]:
    """Tokenize lines as the Penn Treebank does, in lower case and without punctuation.

    Parameters
    ----------
    lines : sequence of str
        Texts without line breaks.

    Returns
    -------
    list of str
        The tokens of each line, separated by blanks.

    Raises
    ------
    JavaError
        If the program dies, says nothing in time or loses a line.
    """
    name, limit = "the PTB tokenizer's Java program", LIMIT_SECONDS + len(lines)
    try:
        result = subprocess.run(
            [shutil.which("java") or "java", *TOKENIZER],
            input="".join(f"{line}\n" for line in lines).encode(),
            capture_output=True,
            cwd=Path(coco_tokenizer.__file__).parent,
            env=utf8_environment(),
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JavaError(f"{name} did not end in {limit} seconds and was stopped.") from error
    except OSError as error:
        raise JavaError(f"{name} cannot be run ({error.strerror}). {INSTALL}") from error
    if result.returncode:
        reason = describe_exit(result.returncode, result.stderr)
        raise JavaError(f"{name} died ({reason}). Check the installation of Java.")
    tokens = result.stdout.decode().removesuffix("\n").split("\n")
    if len(tokens) != len(lines):
        raise JavaError(
            f"{name} gave {len(tokens)} lines for {len(lines)}. Check the installation of Java."
        )
    punctuation = set(coco_tokenizer.PUNCTUATIONS)
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in punctuation)
        for line in tokens
    ]


class MeteorProgram:
    """METEOR's program: it takes seconds to begin, and is asked for many texts.

    Once it has died it is not begun again.

    Parameters
    ----------
    java : str
        Path of Java.
    """

    def __init__(self, java: str) -> None:
        self.failure: JavaError | None = None
        self.statistics: dict[tuple[str, ...], str] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the program
        self._process = subprocess.Popen(
            [java, *METEOR],
            cwd=Path(coco_meteor.__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=utf8_environment(),
            start_new_session=True,  # so that it can be stopped with all that it began
        )
        weakref.finalize(self, stop, self._process)

    def score(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[float, list[float]]:
        """Score texts.

        Parameters
        ----------
        predictions : sequence of str, length B
            Lines of tokens.
        references : sequence of sequence of str, length B
            Likewise, one or more of each.

        Returns
        -------
        corpus : float
            In [0, 1].
        per_text : list of float, length B
            Likewise of each text.

        Raises
        ------
        JavaError
            If the program dies or says nothing in time.
        """
        pairs = [
            tuple(map(without_bars, (text, *group)))
            for text, group in zip(predictions, references, strict=True)
        ]
        unknown = sorted(set(pairs) - self.statistics.keys())
        questions = [f"SCORE ||| {' ||| '.join(group)} ||| {text}" for text, *group in unknown]
        self.statistics |= zip(unknown, self._ask(questions, len(questions)), strict=True)
        line = " ||| ".join(["EVAL", *(self.statistics[pair] for pair in pairs)])
        *per_text, corpus = self._ask([line], len(pairs) + 1)
        return float(corpus), [float(score) for score in per_text]

    def _ask(self, questions: Sequence[str], n_answers: int) -> list[str]:
        """Send lines, all before the first answer is waited for; return the lines of answers."""
        if self.failure:
            raise self.failure
        limit, is_late = LIMIT_SECONDS + n_answers, threading.Event()
        timer = threading.Timer(limit, self._stop_late, [is_late])
        writer = threading.Thread(target=self._send, args=(questions,), daemon=True)
        timer.start()
        writer.start()
        assert self._process.stdout is not None
        answers = [self._process.stdout.readline().decode() for _ in range(n_answers)]
        timer.cancel()
        if all(answer.strip() for answer in answers):
            return [answer.strip() for answer in answers]
        stop(self._process)
        self._stderr.seek(0)
        reason = (
            f"it said nothing in {limit} seconds and was stopped"
            if is_late.is_set()
            else describe_exit(self._process.returncode, self._stderr.read())
        )
        self.failure = JavaError(
            f"METEOR's Java program died ({reason}). It needs 2 GiB of memory; free some, or check "
            "the installation of Java."
        )
        raise self.failure

    def _stop_late(self, is_late: threading.Event) -> None:
        """Stop the program, and note that it was too late."""
        is_late.set()
        stop(self._process)

    def _send(self, questions: Iterable[str]) -> None:
        """Write lines; a program that has died is told where its answers are read."""
        assert self._process.stdin is not None
        try:
            for question in questions:
                self._process.stdin.write(f"{question}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError):
            return


def without_bars(text: str) -> str:
    """Return a text without the mark between texts, as pycocoevalcap hands it on."""
    return text.replace("|||", "").replace("  ", " ")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a program, and all that it began."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()


@contextmanager
def time_limit(word: str, seconds: float) -> Iterator[None]:
    """End programs that a library starts in the block, and gives no limit, when they take too long.

    Parameters
    ----------
    word : str
        A part of their command lines, such as the name of a .jar file.
    seconds : float
        How long they may take.
    """

    def end() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any(word in argument for argument in process.cmdline()):
                    process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def meteor() -> MeteorProgram:
    """Return METEOR's program of this process.

    Raises
    ------
    JavaError
        If there is no Java that runs.
    """
    java = shutil.which("java")
    if (problem := java_problem()) or java is None:
        raise JavaError(f"METEOR needs Java: {problem}")
    return _begin_meteor(java)


@cache
def _begin_meteor(java: str) -> MeteorProgram:
    return MeteorProgram(java)
