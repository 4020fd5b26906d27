"""Run the inputs that once went wrong, and write a table of what happens now.

    python benchmarks/cases.py FOLDER --out docs/cases.md

The folder holds the inputs by their names, such as 01-unbalanced-quote/bids. Each row says what
is expected, a refusal or a number in the store or the scores; the script ends with status 1 where
one is otherwise. Kinds that need no file of their own, such as two commands on one output, are
named with the tests that hold them.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.utils.errors import InputError

COLUMNS = "| case | command | what happened | what happens now |\n|---|---|---|---|\n"
HEAD = """# Inputs that once went wrong

Each of these inputs was once read wrongly, ended in a traceback or hung. The situations are taken
from public bug reports of neighboring tools. The table is written by `benchmarks/cases.py`, which
runs every input and fails where the outcome is another.

"""
KINDS_HEAD = """
## Kinds without a file of their own

Tests make their own inputs of these kinds.

| kind | what happened | tests |
|---|---|---|
"""
KINDS = [
    (
        "damaged containers",
        "a flipped byte was accepted with other betas",
        "`tests/fuzz`, `tests/utils/test_containers.py`",
    ),
    (
        "labels that are numbers",
        "sorted as text: 1, 10, 2",
        "`tests/datasets/test_bids.py`, `tests/data/test_store.py`",
    ),
    ("greedy answer parsers", "an answer that only contains an option counted", "`tests/metrics`"),
    (
        "likelihoods of other language models",
        "up to 8 nats off, or crashes",
        "`tests/model/test_model_families.py`",
    ),
    (
        "end of turn, generation_config, thoughts, control tokens, limit of positions",
        "invented turns, changed greedy text, an IndexError",
        "`tests/model/test_generation.py`, `tests/language/test_chat_templates.py`",
    ),
    (
        "two commands on one output, kills, full disks",
        "a store that lacked files, exit 0; new predictions beside an old report",
        "`tests/cli/test_races.py`, `tests/utils/test_folders.py`, `tests/utils/test_locks.py`",
    ),
    ("an output that is an input", "written into", "`tests/cli/test_refusals.py`"),
    (
        "identity of finished work",
        "a finished model was taken for one of other options",
        "`tests/training/test_trainer.py`",
    ),
    (
        "damage inside a readable container",
        "an infinite beta became a trial of zeros",
        "`tests/utils/test_manifest.py`, `tests/data/test_store.py`",
    ),
    (
        "going on with changed inputs",
        "a session held the betas of another",
        "`tests/datasets/test_parallel.py`",
    ),
    (
        "names from data in paths",
        "folders outside the output were written or removed",
        "`tests/utils/test_files.py`",
    ),
    (
        "one voxel, constant betas, meters, no atlas of the model",
        "evaluated without a word",
        "`tests/model/test_coverage.py`",
    ),
    (
        "nothing leaves the machine",
        "the hub was asked though all was local",
        "`tests/language/test_offline.py`",
    ),
    (
        "signals",
        "workers that hold the terminal after SIGTERM",
        "`tests/cli/test_interruption.py`",
    ),
    (
        "small hostile files, line separators, results that are no numbers",
        "20 GB for 100 KB, a broken `compare`, NaN as JSON",
        "`tests/utils/test_text_files.py`, `tests/fuzz`",
    ),
]

Check = Callable[[Path], str]  # of the output folder: what it holds, or AssertionError


@dataclass(frozen=True)
class Case:
    """An input, the command that reads it, and what is expected.

    Parameters
    ----------
    name : str
        Its folder or file.
    command : str
        Arguments of mindllm; {case} is the input, {store} a good store, {out} an output.
    happened : str
        What happened once.
    refusal : str
        Regular expression of the message that is expected; empty: it is read.
    check : callable, optional
        What is expected of the output; returns it in words.
    path : str
        Folder below the cases that is put first on the PATH.
    """

    name: str
    command: str
    happened: str
    refusal: str = ""
    check: Check | None = None
    path: str = ""


def captions(count: int, *texts: str) -> Check:
    """A store with so many captions, these among them."""

    def check(out: Path) -> str:
        table = Store(out / "store").conversations
        answers = {text for answers in table["answers"] for text in answers}
        assert len(table) == count, f"{len(table)} captions"
        assert answers.issuperset(texts), sorted(answers)
        return f"{count} captions" + (f", such as {texts[0]!r}" if texts else "")

    return check


def shape(n_trials: int, n_voxels: int | None = None) -> Check:
    """A store with so many trials, and voxels, none of whose betas have become 0."""

    def check(out: Path) -> str:
        store = Store(out / "store")
        betas = store.betas(store.subjects[0])
        assert len(betas) == n_trials, betas.shape
        assert n_voxels in (None, betas.shape[1]), betas.shape
        assert (betas != 0).mean() > 0.9
        return f"{betas.shape[0]} trials of {betas.shape[1]} voxels"

    return check


def printed(pattern: str) -> Check:
    """Words of what the command prints."""

    def check(out: Path) -> str:
        text = " ".join((out / "printed").read_text(encoding="utf-8").split())
        match = re.search(pattern, text)
        assert match, text
        return f"{match[0]}"

    return check


BIDS = "prepare bids {case} --out {out}/store"
INSTRUCTIONS = "prepare instructions caption {case} --store {store}"
LLAVA = "prepare instructions llava {case} --store {store}"
SCORE = "score {case}.pred.json {case}.ref.json --task caption --json"
GLMSINGLE = "prepare glmsingle {case} --design {case}/design.tsv --mask mask.nii.gz"
CASES = [
    Case("01-unbalanced-quote/bids", BIDS, "12 captions became 10", check=captions(12)),
    Case("14-tables/quote.tsv", INSTRUCTIONS, "three rows became one", check=captions(3)),
    Case("14-tables/trailing.tsv", INSTRUCTIONS, "`img0 ` was left out", check=captions(2)),
    Case("14-tables/index.tsv", INSTRUCTIONS, "read", check=captions(2)),
    Case("02-volume-float/bids", BIDS, "IndexError", check=shape(12)),
    Case("03-two-stat/bids", BIDS, "24 trials of 12", refusal="both have the trials of .*--betas"),
    Case("04-no-orientation/bids", BIDS, "mirrored positions", refusal="has no orientation"),
    Case(
        "06-caption-words/bids",
        BIDS,
        "captions were dropped",
        check=captions(7, "None", "null"),
    ),
    Case(
        "06-caption-words/bids-placeholder",
        BIDS,
        "an error without file and row",
        refusal=r"captions\.tsv, line \d+",
    ),
    Case("07-na-session/bids", BIDS, "TypeError", refusal="`session`|session"),
    Case(
        "08-caption-files/surrogate",
        SCORE,
        "UnicodeEncodeError",
        check=printed(r"\"BLEU-1\": [\d.]+"),
    ),
    Case(
        "08-caption-files/bom", SCORE, "refused with a riddle", check=printed(r"\"BLEU-1\": [\d.]+")
    ),
    Case(
        "08-caption-files/ok",
        SCORE,
        "AssertionError about tokens",
        refusal="need Java.*does not run",
        path="09-java/exits-1",
    ),
    Case(
        "08-caption-files/ok",
        SCORE,
        "a hang for ever",
        check=printed("METEOR[^,]*"),
        path="09-java/no-heap",
    ),
    Case(
        "10-tiny-betas/bids",
        BIDS + " --dtype float16",
        "betas became 0",
        refusal="too small for float16",
    ),
    Case("10-tiny-betas/bids", BIDS, "read", check=shape(12)),
    Case(
        "15-glmsingle/tiny",
        GLMSINGLE + " --out {out}/store --dtype float16",
        "betas became 0",
        refusal="too small for float16",
    ),
    Case(
        "15-glmsingle/nan-later",
        GLMSINGLE + " --out {out}/store --nan drop",
        "refused with the advice --nan drop",
        check=shape(12),
    ),
    Case("11-atlas-index-na/bids", BIDS, "IntCastingNaNError", refusal="index"),
    Case("11-atlas-two-resolutions/bids", BIDS, "refused for the grid", check=shape(12)),
    Case("12-smooth-mask/bids-float", BIDS, "216 voxels of 72", refusal="is not binary"),
    Case("12-smooth-mask/bids-probabilities", BIDS, "all voxels", refusal="is not binary"),
    Case(
        "12-smooth-mask/bids-float",
        BIDS + " --mask-threshold 0.5",
        "216 voxels of 72",
        check=shape(12, 72),
    ),
    Case(
        "13-llava/vg.json",
        LLAVA,
        "joined to pictures of COCO",
        check=printed(r"\d+ conversations .*?left out"),
    ),
    Case(
        "13-llava/ocr.json",
        LLAVA,
        "joined to pictures of COCO",
        check=printed(r"\d+ conversations .*?left out"),
    ),
    Case(
        "13-llava/textonly.json",
        LLAVA,
        "'fetch the file again'",
        check=printed(r"\d+ conversations .*?left out"),
    ),
    Case(
        "16-count/c",
        "score {case}.pred.json {case}.ref.json --task count --json",
        "'twenty-one' was 1, 'a dozen' none",
        check=printed(r"\"accuracy\": 70"),
    ),
    Case(
        "17-subject-path",
        GLMSINGLE + " --out {out}/store",
        "folders outside the store",
        refusal=r"design\.tsv.*cannot name a subject",
    ),
    Case(
        "18-yaml/int-key.yaml",
        "train {store} --out {out}/model --config {case}",
        "TypeError",
        refusal=r"int-key\.yaml",
    ),
    Case(
        "18-yaml/bomb.yaml",
        "train {store} --out {out}/model --config {case}",
        "printed for minutes",
        refusal=r"bomb\.yaml",
    ),
]


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the inputs")
    parser.add_argument("--out", type=Path, default=Path("docs/cases.md"))
    options = parser.parse_args()
    rows, wrong = [], []
    for case in track(CASES, "running cases"):
        with tempfile.TemporaryDirectory() as folder:
            outcome, is_right = run(case, options.folder.resolve(), Path(folder))
        if not is_right:
            wrong.append(f"{case.name}: {outcome}")
        rows.append(f"| `{case.name}` | `{shown(case)}` | {case.happened} | {outcome} |")
    kinds = [f"| {kind} | {happened} | {tests} |" for kind, happened, tests in KINDS]
    text = HEAD + COLUMNS + "\n".join(rows) + "\n" + KINDS_HEAD + "\n".join(kinds) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(f"{len(rows)} cases, {len(wrong)} wrong; {options.out}")
    if wrong:
        sys.exit("\n".join(wrong))


def shown(case: Case) -> str:
    """The command without places."""
    command = re.sub(r" --(out|store|config) \S+", "", case.command).replace("{case}/", "")
    return re.sub(r" \{\w+\}\S*", "", command)


def run(case: Case, folder: Path, out: Path) -> tuple[str, bool]:
    """Run a case; what happens in words, and whether it is what is expected."""
    store = out / "good"
    if "{store}" in case.command:
        invoke(f"prepare bids {folder / '13-llava' / 'bids'} --out {store}", "")
    path = f"{folder / case.path}{os.pathsep}{os.environ['PATH']}" if case.path else ""
    places = {"case": folder / case.name, "out": out, "store": store}
    code, text = invoke(case.command.format(**places), path)
    message = re.sub(re.escape(str(folder)) + "/|" + re.escape(str(out)) + "/", "", text)
    message = " ".join(message.split()).replace("|", "\\|").replace("<", "&lt;")
    if case.refusal:
        return f"refused: {message}", code == 1 and re.search(case.refusal, message) is not None
    if code:
        return f"refused: {message}", False
    if store.exists() and case.command.startswith("prepare instructions caption"):
        store.rename(out / "store")
    (out / "printed").write_text(text, encoding="utf-8")
    try:
        assert case.check is not None
        return f"read: {case.check(out)}", True
    except AssertionError as error:
        return f"wrong: {error}", False


def invoke(command: str, path: str) -> tuple[int, str]:
    """Exit code of a command in this process, and what it prints or the message of its error."""
    result = CliRunner().invoke(app, command.split(), env={"PATH": path} if path else {})
    if isinstance(result.exception, InputError):
        return 1, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, f"{type(result.exception).__name__}: {result.exception}"
    return result.exit_code, result.output


if __name__ == "__main__":
    main()
