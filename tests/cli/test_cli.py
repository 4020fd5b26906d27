"""The commands as a user types them: each ends in its result, or in one message and status 1."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindllm import cli
from mindllm.cli import options
from mindllm.data.store import Store
from mindllm.evaluation.conditions import CONDITIONS
from mindllm.training.configuration import TrainConfig
from mindllm.utils.errors import InputError
from tests.conftest import TINY_SIZES, make_bids

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in this process: exit status, stdout, stderr."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mindllm", *map(str, words)])
        monkeypatch.setattr(options.console, "width", 400)
        monkeypatch.setattr(options.errors, "width", 400)
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return (status, *capsys.readouterr())

    yield command
    root.handlers[:], root.level = before, level


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path) -> Path:
    """A folder with BIDS derivatives, and options for a training of a second."""
    place = tmp_path_factory.mktemp("cli")
    make_bids(place / "bids", people=3)
    sizes = TINY_SIZES | {"embedding_dim": 8}
    stage = {"max_steps": 4, "batch_size": 12}
    content = {
        "encoder": sizes,
        "dtype": "float32",
        "language_model": str(tiny_llm_folder),
        "alignment": stage,
        "instruction_tuning": stage,
    }
    (place / "options.yaml").write_text(yaml.safe_dump(content))
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    """The commands up to a model, in a process of their own."""
    prepare = ["prepare", "bids", "bids", "--out", "store", "--test-fraction", "0.34"]
    train = [
        "train",
        "store",
        "--out",
        "model",
        "--config",
        "options.yaml",
        "--subjects",
        "sub-01,sub-02",
    ]
    for words, told in (
        (prepare, "store: 3 subjects, 72 trials, 6 stimuli"),
        (train, "model: trained"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from mindllm.cli import main; main()", *words],
            cwd=place, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told in done.stdout
        assert "error" not in done.stderr.lower()
    return place / "model"


def scan_of(place: Path, subject: str) -> list[object]:
    """What `decode` needs of the second session of a subject."""
    scan = next((place / "bids" / subject / "ses-02").rglob("*_statmap.nii.gz"))
    mask = next((place / "bids" / subject).rglob("*_mask.nii.gz"))
    return [
        scan,
        "--mask",
        mask,
        "--atlas",
        f"visual={place / 'bids' / 'atlas-visual_space-MNI152_dseg.nii.gz'}",
    ]


def test_decode_prints_json_alone_on_stdout(place: Path, model: Path, run: Run) -> None:
    given = ["decode", model, *scan_of(place, "sub-03"), "--max-new-tokens", 4]
    status, out, err = run(*given, "--json", "--volumes", "5,0-2")
    assert status == 0, err
    found = json.loads(out)
    assert [d["volume"] for d in found] == [5, 0, 1, 2]
    assert all(
        set(d) == {"volume", "text", "log_likelihood_ratio"}
        and isinstance(d["log_likelihood_ratio"], float)
        for d in found
    )
    status, out, _ = run(*given, "--volumes", "5,0-2")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["5", "0", "1", "2"]
    assert all("(log-likelihood ratio " in line for line in out.splitlines())


def test_decode_chooses_by_evidence_among_a_corpus(
    place: Path, model: Path, run: Run, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a [bold]dog[/bold] swims\na train stops\n")
    words = ["decode", model, *scan_of(place, "sub-03"), "--by", "evidence", "--n-texts", 0]
    words += ["--corpus", corpus, "--n-best", 8]
    status, out, err = run(*words, "--json", "--volumes", "5,0-2", "--abstain-below", 0.99)
    assert status == 0, err
    rows = json.loads(out)
    assert [row["volume"] for row in rows] == [5, 0, 1, 2]
    for row in rows:
        texts = [row, *row["alternatives"]]
        assert len({t["text"] for t in texts}) == len(texts) == 6
        assert {"a [bold]dog[/bold] swims", "a train stops"} <= {t["text"] for t in texts}
        gains = [t["similarity_gain"] for t in texts]
        assert gains == sorted(gains, reverse=True)
        assert sum(t["probability"] for t in texts) == pytest.approx(1, abs=1e-3)
        assert row["abstained"] == (row["probability"] < 0.99)
    status, out, _ = run(*words, "--volumes", "5,0-2", "--abstain-below", 1)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["5", "0", "1", "2"]
    assert all("abstained" in line and " nats, probability " in line for line in out.splitlines())
    everything = json.loads(run(*words, "--json", "--abstain-below", 0.99)[1])
    for all_read, row in zip((everything[i] for i in (5, 0, 1, 2)), rows, strict=True):
        assert all_read["text"] == row["text"]  # aligned by the same volumes
        assert all_read["evidence"] == pytest.approx(row["evidence"], abs=1e-3)


def test_decode_chooses_by_likelihood_and_guides(place: Path, model: Path, run: Run) -> None:
    words = ["decode", model, *scan_of(place, "sub-03"), "--volumes", "0,1"]
    answers = ["--choice", "yes,yeah", "--choice", "no", "--question", "Is there a dog?"]
    status, out, err = run(*words, "--by", "likelihood", *answers, "--json")
    assert status == 0, err
    rows = json.loads(out)
    assert [[a["answer"] for a in row["answers"]] for row in rows] == [["yes", "no"]] * 2
    assert all(abs(sum(a["probability"] for a in row["answers"]) - 1) < 1e-3 for row in rows)
    status, out, err = run(*words, "--guidance-scale", "3", "--max-new-tokens", 4, "--json")
    assert status == 0, err
    assert len(json.loads(out)) == 2


def test_prompts_and_their_language_model_are_exported(
    place: Path, model: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "prompts.jsonl"
    words = ["export-prompts", model, *scan_of(place, "sub-03"), "--volumes", "4,0", "--out", out]
    status, printed, err = run(*words, "--api", "chat", "--served-name", "tiny")
    assert status == 0, err
    assert "2 prompts in bfloat16" in printed
    requests = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [request["custom_id"] for request in requests] == ["volume-4", "volume-0"]
    assert {request["url"] for request in requests} == {"/v1/chat/completions"}
    assert {request["body"]["model"] for request in requests} == {"tiny"}
    assert requests[0]["body"]["messages"][-1]["content"][0]["type"] == "prompt_embeds"
    status, _, err = run(*words)
    assert status == 1
    assert "already exists" in err
    status, printed, err = run("export-language-model", model, "--out", tmp_path / "llm")
    assert status == 0, err
    assert "without an adapter" in printed
    assert (tmp_path / "llm" / "model.safetensors").is_file()


def test_decode_decides_a_question_by_evidence(place: Path, model: Path, run: Run) -> None:
    words = ["decode", model, *scan_of(place, "sub-03"), "--by", "evidence", "--n-texts", 0]
    words += ["--choice", "dog,dogs"]
    status, out, err = run(*words, "--choice", "cat", "--json", "--volumes", "3,1")
    assert status == 0, err
    rows = json.loads(out)
    assert [row["volume"] for row in rows] == [3, 1]
    for row in rows:
        assert [a["answer"] for a in row["answers"]] == ["dog", "cat"]
        assert sum(a["probability"] for a in row["answers"]) == pytest.approx(1, abs=1e-3)
        assert row["probability"] == max(a["probability"] for a in row["answers"])
    status, out, _ = run(*words, "--volumes", "3,1")
    assert status == 0
    assert all(
        re.search(r"  (no )?dog  \(probability \d+%, of 2", line) for line in out.splitlines()
    )
    status, _, err = run(*words, "--choice", "zebra")
    assert status == 1
    assert "texts names zebra, so there is no evidence for it" in " ".join(err.split())
    status, _, err = run(*words, "--choice", "Dogs")
    assert status == 1
    assert "--choice names 'dogs' twice" in err


def test_text_that_looks_like_markup_is_printed_as_it_is(
    place: Path, model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindllm.model.modeling import MindLLM

    text = "[/red] a [bold]dog[/bold]"
    monkeypatch.setattr(MindLLM, "generate", lambda self, tokens, *a, **k: [text] * len(tokens))
    status, out, err = run("decode", model, *scan_of(place, "sub-03"), "--volumes", "0")
    assert status == 0, err
    assert text in out


def test_stream_prints_words_as_they_come(place: Path, model: Path, run: Run) -> None:
    given = ["decode", model, *scan_of(place, "sub-03"), "--max-new-tokens", 4, "--volumes", "1,2"]
    whole = [d["text"] for d in json.loads(run(*given, "--json")[1])]
    status, out, _ = run(*given, "--stream")
    assert status == 0
    assert all(word in out for text in whole for word in text.split())


def test_evaluate_resumes_after_a_failed_report(
    place: Path, model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report needs nilearn's figures, which are not what this is about."""
    command = ["evaluate", model, place / "store", "--subjects", "sub-03", "--out", tmp_path / "r"]

    def fail(*args: object, **options: object) -> None:
        raise InputError("no room")

    monkeypatch.setattr("mindllm.report.write.write_report", fail)
    assert run(*command)[0] == 1
    assert (tmp_path / "r" / "partial" / "sub-03" / "fmri.npz").is_file()
    status, _, err = run(*command, "--resume", "--seed", "7")
    assert status == 1
    assert "its seed is '0', that of this one '7'" in err
    monkeypatch.setattr("mindllm.report.write.write_report", lambda *args, **options: None)
    status, _, err = run(*command, "--resume")
    assert status == 0, err
    assert not (tmp_path / "r" / "partial").exists(), "a finished evaluation leaves none behind"


def test_evaluate_writes_its_report(
    place: Path, model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    command = ["evaluate", model, place / "store", "--subjects", "sub-03,sub-01"]
    command += ["--dtype", "bfloat16"]
    status, out, err = run(*command, "--out", tmp_path / "r", "--open")
    assert status == 0, err
    assert "report.html" in out
    assert opened == [(tmp_path / "r" / "report.html").as_uri()]
    figures = tmp_path / "r" / "figures"
    pictures = {path.stem for path in figures.glob("*.png")}
    assert pictures == {path.stem for path in figures.glob("*.tsv")}
    assert {"attention-sub-03", "contributions-all"} <= pictures
    text = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert ", bfloat16), frozen" in text
    rows = text.partition("## Contributions to the evidence")[2]
    records = [
        json.loads(line)
        for line in (tmp_path / "r" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for subject in ("sub-01", "sub-03"):
        evidence = [r["target_evidence"] for r in records if r["subject"] == subject]
        shown = re.search(rf"^\| {subject} \| {len(evidence)} \| (\S+) ", rows, re.M)
        assert shown, "the trials are few enough to be all averaged"
        assert float(shown[1]) == pytest.approx(sum(evidence) / len(evidence), abs=0.02)
    report = json.loads((tmp_path / "r" / "result.json").read_text())
    assert {row["condition"] for row in report["rows"]} == set(CONDITIONS) - set(
        report["run_info"]["skipped_conditions"]
    ) - {
        "human",
        "other_model",
        "linear_discriminant",
    }
    assert {row["subject"] for row in report["rows"]} >= {"sub-01", "sub-03"}
    lines = (tmp_path / "r" / "predictions.jsonl").read_text().splitlines()
    assert (
        len(lines) == 2 * 2 * 2 * 2
    )  # two people, two test stimuli, shown twice in each of two sessions


def test_config_is_accepted_back(run: Run, tmp_path: Path, place: Path) -> None:
    status, out, _ = run("config")
    assert status == 0
    assert TrainConfig(**yaml.safe_load(out)) == TrainConfig()
    (tmp_path / "options.yaml").write_text(out)
    # Read as options of a training, whose store is then not found.
    status, _, err = run(
        "train",
        place / "nowhere",
        "--out",
        tmp_path / "model",
        "--config",
        tmp_path / "options.yaml",
    )
    assert (status, "is not a store" in err) == (1, True)


ERRORS: dict[str, tuple[list[object], str]] = {
    "no data": (["prepare", "bids", "nowhere", "--out", "x"], "nowhere holds no folder sub-*"),
    "nan": (
        ["prepare", "bids", "bids", "--out", "x", "--nan", "keep"],
        "nan='keep' is unknown; expected error or drop",
    ),
    "exists": (["prepare", "bids", "bids", "--out", "store"], "store already exists"),
    "no store": (
        ["train", "bids", "--out", "x"],
        "bids is not a store (made by `mindllm prepare`)",
    ),
    "config": (
        ["train", "store", "--out", "x", "--config", "odd.yaml"],
        "stepz: Extra inputs are not permitted",
    ),
    "subject": (
        ["train", "store", "--out", "x", "--subjects", "sub-99"],
        "has no subject sub-99; it holds sub-01, sub-02",
    ),
    "trained": (
        ["train", "store", "--out", "model", "--config", "options.yaml"],
        "model already holds a trained model",
    ),
    "no model": (
        ["decode", "store", "scan.nii", "--mask", "m.nii"],
        "store is not a model (made by `mindllm train` or `mindllm convert`)",
    ),
    "atlas": (
        ["decode", "model", "scan.nii", "--mask", "m.nii", "--atlas", "a.nii"],
        "--atlas a.nii: expected NAME=FILE",
    ),
    "no mask": (
        ["decode", "model", "scan.nii", "--mask", "m.nii"],
        "there is no file m.nii: expected the mask",
    ),
    "no volume": (
        ["decode", "model", "scan.nii", "--mask", "m.nii", "--volumes", "9-2"],
        "'9-2' is no list of whole numbers",
    ),
    "no llm": (
        ["decode", "model", "s.nii", "--mask", "m.nii", "--llm", "./nowhere"],
        "there is no folder nowhere",
    ),
    "trained on": (
        ["evaluate", "model", "untested", "--out", "x"],
        "no trial of the split test to evaluate",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_end_in_one_message_and_status_1(
    place: Path, model: Path, run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, message = ERRORS[kind]
    monkeypatch.chdir(place)
    Path("odd.yaml").write_text("stepz: 3")
    if kind == "trained on":
        assert run("prepare", "bids", "bids", "--out", "untested")[0] == 0
    status, out, err = run(*words)
    assert status == 1
    assert f"error: {message}" in err or (err.count("error: ") == 1 and message in err)
    assert "Traceback" not in err + out
    assert not Path("x").exists()


@pytest.mark.parametrize("layout", ["mosaic", "glmsingle", "laion"])
def test_other_layouts_become_stores(run: Run, tmp_path: Path, layout: str) -> None:
    from tests.datasets import test_glmsingle, test_laion_fmri, test_mosaic

    root, out = tmp_path / "root", tmp_path / "store"
    root.mkdir()
    if layout == "mosaic":
        test_mosaic.write_anatomy(root)
        test_mosaic.write_person(root, "sub-01", "NSD")
        given: list[object] = [
            "--surface-dir",
            root,
            "--parcels",
            "A1,A3",
            "--subjects",
            "sub-01_NSD",
        ]
        told = "1 subject, 5 trials, 0 stimuli with text"
    elif layout == "glmsingle":
        test_glmsingle.write_outputs(root)
        given = [
            "--design",
            root / "design.tsv",
            "--mask",
            "masks/{subject}_mask.nii.gz",
            "--test-fraction",
            "0.2",
        ]
        told = "2 subjects, 50 trials, 6 stimuli with text"
    else:
        test_laion_fmri.write_laion(root)
        given = [
            "--sessions",
            "1-2",
            "--mask",
            "laion-general",
            "--subjects",
            "sub-03",
            "--native-space",
        ]
        told = "1 subject, 16 trials, 8 stimuli with text"
    status, printed, err = run("prepare", layout, root, "--out", out, *given)
    assert status == 0, err
    assert f"store: {told}" in printed
    assert ("It holds no text yet" in printed) == (layout == "mosaic")
    store = Store(out)
    assert store.meta["prepared_by"] == layout
    if layout == "mosaic":
        assert store.meta["options"]["parcels"] == ["A1", "A3"]
    if layout == "glmsingle":
        assert "test" in set(store.trials("sub-01")["split"])
    if layout == "laion":
        assert store.meta["options"]["sessions"] == {"sub-03": [1, 2]}
        assert store.meta["options"]["native_space"]


@pytest.fixture
def tiny(tiny_store: Store, tmp_path: Path) -> Path:
    """A store that a test may change."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "tiny"))


def test_instructions_are_added_to_a_store(run: Run, tiny: Path, tmp_path: Path) -> None:
    said = [
        {"image_id": image, "id": n, "caption": f"picture {image}"}
        for n, image in enumerate((101, 102, 900))
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": [], "annotations": said}))
    given = ["prepare", "instructions", "coco-caption", tmp_path / "captions.json", "--store", tiny]
    status, _, err = run(*given)
    assert status == 1
    assert "has a coco_id, by which images are known to this source. Give a table" in err
    (tmp_path / "images.csv").write_text("stimulus,coco_id\nstim1,101\nstim2,102\n")
    status, out, err = run(*given, "--images", tmp_path / "images.csv", "--style", "published")
    assert status == 0, err
    assert "coco-caption: 2 conversations about 2 of 6 stimuli (33%)" in out
    assert "perception and scene" in out
    table = Store(tiny).conversations.set_index("source")
    assert table.loc["coco-caption", "stimulus"].tolist() == ["stim1", "stim2"]
    assert table.loc["coco-caption", "turns"].iloc[1][0]["content"].startswith("<fMRI>\n"), (
        "in the published words"
    )
    assert len(table.loc["caption"]) == 6, "what was there stays"
    status, _, err = run(*given, "--images", tmp_path / "nothing.csv")
    assert status == 1
    assert "there is no file" in err


SPLITS: dict[str, tuple[list[object], str]] = {
    "stimulus": (
        ["--test", "0.34", "--val", "0.17", "--seed", "3"],
        "s (stimuli drawn at random, 0.34 to test, 0.17 to val; made from the split default): "
        "36 train, 24 test, 12 val trials",
    ),
    "cluster": (
        ["--test", "0.2", "--clusters", "3"],
        "s (whole clusters of stimuli of like meaning, 3 in all, 0.2 to test; ",
    ),
    "subject": (
        ["--test", "sub-03", "--val", "sub-02"],
        "s (subjects left out: test sub-03; val sub-02; made from the split default): "
        "24 train, 24 val, 24 test trials",
    ),
    "sessions": (
        ["--sessions", "1", "--subjects", "sub-02"],
        "s (the first 1 sessions of sub-02 for training; made from the split default): "
        "60 train, 12 unused trials",
    ),
}


@pytest.mark.parametrize("by", SPLITS)
def test_a_store_is_split_anew(run: Run, tiny: Path, by: str) -> None:
    given, told = SPLITS[by]
    status, out, err = run("split", tiny, "s", "--by", by, *given)
    assert status == 0, err
    assert told in out
    assert Store(tiny, "s").split["by"] == by
    assert Store(tiny, "s").split.get("seed", 3) == (0 if by == "cluster" else 3)
    status, _, err = run("split", tiny, "s", "--by", by, *given)
    assert status == 1
    assert "already exists" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--by", "chance"], "--by chance: expected stimulus, cluster, subject or sessions."),
        (
            ["--by", "stimulus", "--test", "sub-03"],
            "expected fractions of the stimuli, e.g. --test 0.2 --val 0.1.",
        ),
        (["--by", "stimulus"], "a share is needed of the stimuli to test with, e.g. --test 0.2."),
        (["--by", "subject", "--test", "sub-09"], "there is no subject sub-09"),
        (
            ["--by", "sessions", "--sessions", "3"],
            "sub-01 has 2 sessions; the first 3 were asked for",
        ),
        (["--by", "stimulus", "--test", "0.3", "--from", "other"], "has no split 'other'"),
    ],
)
def test_what_cannot_be_split_is_said(
    run: Run, tiny: Path, given: list[object], message: str
) -> None:
    status, _, err = run("split", tiny, "s", *given)
    assert status == 1
    assert message in err
    assert not list(tiny.glob("splits/*"))


def test_inspect_shows_what_a_store_holds(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("split", tiny, "half", "--by", "stimulus", "--test", "0.5")[0] == 0
    status, out, err = run("qc", tiny, "--split-scheme", "half", "--out", tmp_path / "page")
    assert status == 0, err
    assert "split  half (others: half)" in out
    assert all(
        word in out for word in ("Subjects (split: ", "Atlases", "sub-03", "visual", "lobes")
    )
    assert "What is this person seeing?" in out
    assert "pass  sessions  3 subjects; sub-01: 2 different ones" in out
    assert f"page: {tmp_path / 'page' / 'index.html'}" in out
    assert (tmp_path / "page" / "index.html").is_file()
    assert "page: " not in run("qc", tiny)[1]


def test_a_model_is_evaluated_with_its_own_split(
    run: Run, place: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text scores need Java and brain figures nilearn: neither is what this is about."""
    monkeypatch.setattr(
        "mindllm.evaluation.records.java_unavailable_reason", lambda: "not asked for"
    )
    monkeypatch.setattr("mindllm.report.write.draw_brain_figures", lambda *a, **k: {})
    for name, seed in (("mine", 0), ("other", 1)):
        assert (
            run("split", tiny, name, "--by", "stimulus", "--test", "0.34", "--seed", seed)[0] == 0
        )
    model, report = tmp_path / "model", tmp_path / "report"
    given = ["--config", place / "options.yaml", "--subjects", "sub-01,sub-02"]
    status, _, err = run("train", tiny, "--out", model, *given, "--split-scheme", "mine")
    assert status == 0, err
    evaluate = [
        "evaluate",
        model,
        tiny,
        "--subjects",
        "sub-01",
        "--out",
        report,
        "--max-new-tokens",
        "1",
    ]
    told = "mine (stimuli drawn at random, 0.34 to test; made from the split default)"
    status, _, err = run(*evaluate)
    assert status == 0, err
    assert json.loads((report / "result.json").read_text())["run_info"]["data"]["split"] == told
    assert told in (report / "report.md").read_text()
    shown = {
        json.loads(line)["stimulus"]
        for line in (report / "predictions.jsonl").read_text().split("\n")[:-1]
    }
    trials = Store(tiny, "mine").trials("sub-01")
    assert shown == set(trials.loc[trials["split"] == "test", "stimulus"])
    for other in ("other", "default"):
        status, _, err = run(*evaluate, "--split-scheme", other)
        assert status == 1
        assert (
            "the model was trained with the split 'mine' of tiny, "
            f"and {tiny} is opened with '{other}'" in err
        )
        assert "Give --split-scheme 'mine' (here are default, mine, other)." in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("0", [0]),
        ("0,3,5", [0, 3, 5]),
        (" 4 , 1-3,", [4, 1, 2, 3]),
        ("2-2", [2]),
        ("7,7", [7, 7]),
    ],
)
def test_lists_of_volumes(text: str | None, expected: list[int] | None) -> None:
    assert options.parse_int_ranges(text) == expected


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "1-b", "5-3", "1.5", "1-2-3", "²"])
def test_what_is_no_list_of_volumes(text: str) -> None:
    with pytest.raises(InputError, match=r"expected (e\.g\. 0,3,5 or 0-9|names or numbers)"):
        options.parse_int_ranges(text)


def test_imports_do_nothing(tmp_path: Path) -> None:
    code = """
import logging, sys
import mindllm
heavy = {"torch", "transformers", "pandas", "nibabel", "numpy"} & set(sys.modules)
import mindllm.cli
heavy |= {"torch", "transformers", "matplotlib", "nilearn"} & set(sys.modules)
assert not heavy, heavy
import mindllm.training.trainer, mindllm.model.decode, mindllm.evaluation.evaluator
import mindllm.datasets.bids, mindllm.plotting.brain
assert not logging.getLogger().handlers, "an import configured the logger"
assert mindllm.MindLLM is not None and mindllm.InputError is not None
"""
    # matplotlib makes its own folder of settings; that is kept out of the way.
    env = {
        "HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path.parent),
        "PATH": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert not list(tmp_path.rglob("*"))
