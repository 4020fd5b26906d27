"""Two commands on one output, kills and full disks at random: the old state or the new one."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindllm.data.store import Store
from mindllm.evaluation.results import EvaluationResult
from mindllm.utils.errors import InputError
from mindllm.utils.manifest import find_manifests
from tests.conftest import make_bids
from tests.training.test_trainer import options

# Commands are forked from a process that has loaded the libraries, which takes long.
LAUNCHER = """
import json, os, resource, sys
import mindllm.cli, mindllm.evaluation.evaluator, mindllm.model.modeling, mindllm.report.write
import mindllm.datasets.bids, mindllm.training.trainer
os.environ["PATH"] = ""  # no Java: its scores take long
outputs = {}
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if pid := request.get("wait"):
        text = outputs.pop(pid).read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([code, text]), flush=True)
        continue
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        outputs[pid] = os.fdopen(reader, encoding="utf-8", errors="replace")
        print(pid, flush=True)
        continue
    for stream in (1, 2):
        os.dup2(writer, stream)
    os.close(writer)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"],) * 2)
    sys.argv = ["mindllm", *request["arguments"]]
    try:
        mindllm.cli.main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code or 0)
    os._exit(0)
"""


@dataclass
class Command:
    """A command that is running."""

    launcher: "Launcher"
    pid: int

    def kill(self) -> None:
        subprocess.run(["/bin/kill", "-9", str(self.pid)], check=False, capture_output=True)

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        code, text = json.loads(self.launcher.request({"wait": self.pid}))
        return code, " ".join(text.split())


class Launcher:
    """Starts commands quickly."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def request(self, content: dict[str, object]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, arguments: list[str], limit: int = 0) -> Command:
        content: dict[str, object] = {"arguments": arguments, "limit": limit}
        return Command(self, int(self.request(content)))

    def run(self, arguments: list[str], limit: int = 0) -> tuple[int, str]:
        return self.start(arguments, limit).wait()


@dataclass
class Case:
    """A command that writes an output, and what it writes when it is not disturbed."""

    name: str
    launcher: Launcher
    arguments: list[str]
    resume: list[str]
    out: Path
    earlier: Path | None  # copied to `out` before the command
    expected: dict[str, bytes]
    seconds: float

    def begin(self) -> None:
        """Bring the output into its earlier state."""
        for path in self.out.parent.glob(f"*{self.out.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.earlier is not None:
            shutil.copytree(self.earlier, self.out)

    def check(self) -> None:
        """The output is the one of a command that was not disturbed, and nothing else is left."""
        assert content(self.out) == self.expected
        assert [path.name for path in self.out.parent.iterdir()] == [self.out.name]

    def complete(self) -> None:
        """What was disturbed leaves the old output or the new one; the same command completes it.

        A store is never overwritten, so that one which is whole already is refused.
        """
        self.check_old_or_new()
        code, text = self.launcher.run([*self.arguments, *self.resume])
        assert code == 0 or (self.name == "prepare" and "already exists" in text), text
        self.check()

    def check_old_or_new(self) -> None:
        """The output is whole, as it was before or as it should become."""
        if self.name == "prepare":
            with_store = self.out.exists()
            assert not with_store or content(self.out) == self.expected
        elif self.name == "train":
            with_model = (self.out / "config.json").exists()
            assert not with_model or content(self.out) == self.expected
        else:
            EvaluationResult.load(self.out)
            assert self.earlier is not None
            assert content(self.out) in (self.expected, content(self.earlier))


def content(folder: Path) -> dict[str, bytes]:
    """What must be equal in every run: all but times, run ids and what holds them."""
    for manifest in find_manifests(folder):
        manifest.check_all(full=True)
    names = ("betas.npy", "trials.parquet", "model.safetensors", "predictions.jsonl")
    files = [path for path in folder.rglob("*") if path.name in (*names, "statistics.npz")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    assert launcher.process.stdin is not None
    launcher.process.stdin.close()
    launcher.process.wait(30)


EVALUATE = pytest.param("evaluate", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["prepare", "train", EVALUATE])
def case(
    request: pytest.FixtureRequest,
    launcher: Launcher,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llm_folder: Path,
    tiny_store: Store,
) -> Case:
    folder, earlier, resume = tmp_path_factory.mktemp(request.param), None, ["--resume"]
    out = folder / "out" / "output"
    if request.param == "prepare":
        make_bids(folder / "bids")
        arguments, resume = ["prepare", "bids", str(folder / "bids"), "--out", str(out)], []
    else:
        config = folder / "config.json"
        config.write_text(options(tiny_llm_folder).model_dump_json())
        model = folder / ("model" if request.param == "evaluate" else "out/output")
        subjects = ["--subjects", "sub-01,sub-02"]
        arguments = ["train", str(tiny_store.path), "--out", str(model), "--config", str(config)]
        arguments += subjects
    if request.param == "evaluate":
        assert launcher.run(arguments)[0] == 0
        arguments = ["evaluate", str(model), str(tiny_store.path), "--subjects", "sub-03"]
        earlier = folder / "earlier"
        code, text = launcher.run([*arguments, "--out", str(earlier), "--max-new-tokens", "3"])
        assert code == 0, text
        arguments += ["--out", str(out), "--max-new-tokens", "6"]
    out.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    code, text = launcher.run(arguments)
    assert code == 0, text
    seconds = time.monotonic() - begun
    return Case(request.param, launcher, arguments, resume, out, earlier, content(out), seconds)


SAID = ("is being written by", "already exists", "already holds", "holds other files")


def race(case: Case, delay: float) -> None:
    """Two commands on one output, the second some time after the first."""
    case.begin()
    first = case.launcher.start(case.arguments)
    time.sleep(delay)
    second = case.launcher.start(case.arguments)
    ends = [first.wait(), second.wait()]
    assert 0 in [code for code, _ in ends], ends
    for code, text in ends:
        assert code == 0 or (code == 1 and any(said in text for said in SAID)), text
    case.check()


def kill(case: Case, delay: float) -> None:
    """A kill; the same command then completes."""
    case.begin()
    command = case.launcher.start(case.arguments)
    time.sleep(delay)
    command.kill()
    command.wait()
    case.complete()


def fill_disk(case: Case, limit: int) -> None:
    """A disk that takes no file above a size; the same command then completes."""
    case.begin()
    code, text = case.launcher.run(case.arguments, limit)
    assert code == 0 or (code == 1 and "no room to write" in text), text
    case.complete()


def test_one_of_two_commands_wins(case: Case) -> None:
    race(case, 0.05)


def test_a_kill_loses_nothing(case: Case) -> None:
    kill(case, 0.7 * case.seconds)


def test_a_full_disk_loses_nothing(case: Case) -> None:
    fill_disk(case, 2_000)


@pytest.mark.slow
def test_twenty_races(case: Case) -> None:
    rng = random.Random(0)
    for _ in range(7):
        race(case, rng.uniform(0, 1.1 * case.seconds))


@pytest.mark.slow
def test_twenty_kills(case: Case) -> None:
    rng = random.Random(1)
    for _ in range(7):
        kill(case, rng.uniform(0, 1.05 * case.seconds))


@pytest.mark.slow
def test_ten_full_disks(case: Case) -> None:
    rng = random.Random(2)
    for _ in range(4):
        fill_disk(case, int(10 ** rng.uniform(1.5, 5.5)))


def test_a_mixture_of_two_reports_is_refused(case: Case, tmp_path: Path) -> None:
    if case.name != "evaluate":
        pytest.skip("of reports alone")
    assert case.earlier is not None
    mixture = Path(shutil.copytree(case.earlier, tmp_path / "mixture"))
    case.begin()
    assert case.launcher.run(case.arguments)[0] == 0
    shutil.copy(case.out / "predictions.jsonl", mixture)
    with pytest.raises(InputError, match=r"predictions\.jsonl is not the file that was written"):
        EvaluationResult.load(mixture)
