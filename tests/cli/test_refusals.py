"""Options and paths that are refused before anything is loaded, computed or written."""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindllm import MindLLM, cli
from mindllm.cli import options
from mindllm.data.store import Store
from mindllm.training.configuration import read_config
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_output
from mindllm.utils.seeds import check_seed

Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_store: Store,
    tmp_path: Path,
) -> Run:
    """Run a command in a folder with a store, in which nothing heavy can be loaded."""

    def load(*arguments: object, **options: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(MindLLM, "from_pretrained", load)
    for name in ("training.trainer", "convert.mindllm_checkpoint"):
        monkeypatch.setattr(f"mindllm.{name}.load_language_model", load)
    shutil.copytree(tiny_store.path, tmp_path / "store")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(options.errors, "width", 400)

    def command(words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mindllm", *words.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        root.handlers[:], root.level = handlers, level
        return int(end.value.code or 0), capsys.readouterr().err

    return command


EVALUATE = "evaluate model store"
SPLIT = "split store s --by stimulus"
DECODE = "decode model file --mask file"
REFUSED = [
    ("train store --out x --seed -1", "--seed"),
    (f"train store --out x --seed {10**23}", "--seed"),
    ("train store --out x --seed 1e23", "--seed"),
    ("train store --out x --subjects ,", "',' names nothing"),
    (f"{EVALUATE} --subjects ,", "',' names nothing"),
    (f"{EVALUATE} --seed -1", "--seed"),
    (f"{EVALUATE} --batch-size 0", "--batch-size"),
    (f"{EVALUATE} --max-new-tokens {10**30}", "--max-new-tokens"),
    (f"{EVALUATE} --controls some", "controls='some'"),
    (f"{EVALUATE} --subjects sub-99", "has no subject sub-99"),
    ("evaluate-qa model store --source caption --out x --seed -3", "--seed"),
    ("evaluate-qa model store --source caption --out x --subjects sub-99", "no subject sub-99"),
    ("compare thesis thesis --seed -1", "--seed"),
    ("demo --out x --n-subjects 1000000", "--n-subjects"),
    ("qc store --seed -1", "--seed"),
    (f"{SPLIT} --test nan", "--test nan: expected fractions"),
    (f"{SPLIT} --test -0.5", "--test -0.5: expected fractions"),
    (f"{SPLIT} --test 1e9", "--test 1e9: expected fractions"),
    (f"{SPLIT} --test 0.5 --seed -1", "--seed"),
    ("split store s --by cluster --test 0.2 --clusters -2", "--clusters"),
    ("prepare bids store --out x --test-fraction nan", "--test-fraction"),
    ("prepare bids store --out x --val-fraction -1", "--val-fraction"),
    (f"{DECODE} --do-sample --temperature nan", "--temperature"),
    (f"{DECODE} --do-sample --temperature -1", "--temperature"),
    (f"{DECODE} --seed -1", "--seed"),
    ("decode model nowhere.nii --mask file", "there is no file nowhere.nii: expected the scan."),
    ("decode model file --mask nowhere.nii", "there is no file nowhere.nii: expected the mask."),
    ("decode model file --mask store", "store is a folder; expected the mask in a regular file."),
    ("decode modle file --mask file", "there is no folder modle"),
    ("evaluate modle store", "there is no folder modle"),
    ("evaluate thesis store", "thesis is not a model"),
    (f"{EVALUATE} --llm ./nowhere", "there is no folder nowhere"),
    (f"{DECODE} --atlas A=nowhere.nii", "there is no file nowhere.nii: expected the atlas A."),
    (f"{DECODE} --standardize-with nowhere.nii", "there is no file nowhere.nii"),
    (f"{DECODE} --corpus file", "add --by evidence"),
    (
        f"{DECODE} --by evidence --question what?",
        "--question, --do-sample, --guidance-scale and --stream are for",
    ),
    (
        f"{DECODE} --by evidence --stream",
        "--question, --do-sample, --guidance-scale and --stream are for",
    ),
    (f"{DECODE} --by evidence --corpus nowhere.txt", "there is no file nowhere.txt"),
    (f"{DECODE} --by evidence --abstain-below nan", "--abstain-below"),
    (f"{DECODE} --by evidence --n-texts -1", "--n-texts"),
    ("cross-validate store --out x --n-texts -1", "--n-texts"),
    ("cross-validate store --out x --llm ./nowhere", "there is no folder nowhere"),
    ("convert file --roi-dir store --out x --lora-alpha nan", "--lora-alpha"),
]
OUTPUTS = [
    ("file", "file is a file; expected a folder"),
    ("file/x", "cannot write file/x: Not a directory"),
    ("thesis", "thesis already exists and holds other files (chapter.txt)"),
    ("store", "store lies in store, which is read"),
    ("store/x", "store/x lies in store, which is read"),
]
WRITERS = {
    "train": "train store --out",
    "evaluate": f"{EVALUATE} --out",
    "evaluate-qa": "evaluate-qa model store --source caption --out",
    "qc": "qc store --out",
    "convert": "convert thesis/chapter.txt --roi-dir store --out",
}


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_an_option_that_cannot_be_is_refused(
    run: Run, tmp_path: Path, words: str, message: str
) -> None:
    before = files_of(tmp_path)
    status, err = run(words)
    assert status in (1, 2)
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(("out", "message"), OUTPUTS)
@pytest.mark.parametrize("command", WRITERS)
def test_an_output_that_cannot_be_is_refused(
    run: Run, tmp_path: Path, command: str, out: str, message: str
) -> None:
    before = files_of(tmp_path)
    status, err = run(f"{WRITERS[command]} {out}")
    assert (status, message in err) == (1, True), err
    assert files_of(tmp_path) == before
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize(("out", "message"), OUTPUTS[:3])
def test_the_demo_writes_into_no_other_folder(run: Run, out: str, message: str) -> None:
    status, err = run(f"demo --out {out}")
    assert (status, message in err) == (1, True), err


def test_an_output_leaves_no_trace_when_it_is_checked(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "result.json").write_text("{}")
    check_output(tmp_path / "report", resumable=("result.json",))
    with pytest.raises(InputError, match=r"holds other files \(result.json\)"):
        check_output(tmp_path / "report")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, float("nan"), "1", None])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(InputError, match="expected a whole number from 0 to 4294967295"):
        check_seed(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "seed: -1",
        "seed: 1.0e+23",
        "seed: .nan",
        "max_grad_norm: .inf",
        "query_noise_sd: -1",
        "query_noise_sd: .nan",
        "embedding_noise_scale: .inf",
        "alignment: {weight_decay: .nan}",
        "alignment: {learning_rate: .inf}",
        "instruction_tuning: {weight_decay: -0.1}",
        "voxel_dropout: [.nan, 0.5]",
        "encoder: {max_wavelength_mm: .inf}",
    ],
)
def test_options_of_a_training_are_finite_and_in_range(tmp_path: Path, text: str) -> None:
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(InputError, match="found"):
        read_config(tmp_path / "options.yaml", {}).encoder_config()
