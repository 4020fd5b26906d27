"""What the README and the docs promise: commands, options, files, links, numbers, and Python that runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml

from mindllm.cli import app
from mindllm.convert.mindllm_checkpoint import convert_checkpoint
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.model import checkpoint
from mindllm.model.configuration import PRESETS, MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import TrainConfig
from tests.conftest import REGIONS
from tests.published import Sizes, make_published

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ids = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [code for kind, code in found if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def lines(page: Path) -> Iterator[list[str]]:
    """The shell commands of a page, as words: its code blocks, and what stands in backticks in the text."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for inline in re.findall(r"`((?:mindllm|make) [^`]+)`", prose(page)):
        yield shlex.split(re.sub(r"<[^>]*>", "X", inline))


def command_of(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and the words left for it."""
    found = typer.main.get_command(app)
    while hasattr(found, "commands"):
        assert words, f"{found.name}: no verb is given"
        assert words[0] in found.commands, (
            f"there is no command {words[0]!r}; there are {sorted(found.commands)}"
        )
        found, words = found.commands[words[0]], words[1:]
    return found, words


@ids
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in lines(page):
        if words[:1] != ["mindllm"] or words[1:] == ["prepare"]:
            continue
        words = words[: words.index(">")] if ">" in words else words
        command, rest = command_of(words[1:])
        known = {name: parameter for parameter in command.params for name in parameter.opts}
        for word in rest:
            assert not word.startswith("--") or word in known, (
                f"{' '.join(words)}: no option {word}"
            )


def test_whole_commands_of_the_readme_are_understood() -> None:
    """Every argument and required option is there: the words can be parsed, though nothing is run."""
    seen = set()
    for block in blocks(README, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["mindllm"]:
                words = words[: words.index(">")] if ">" in words else words
                command, rest = command_of(words[1:])
                command.make_context(str(command.name), rest)
                seen.add(command.name)
    assert seen == {"bids", "nsd", "instructions", "inspect", "split", "train", "decode", "evaluate", "compare", "answer", "convert", "demo", "config"}  # fmt: skip


@ids
def test_options_named_in_the_text_exist(page: Path) -> None:
    everything = {
        "--no-deps",  # pip's
        "--output-spaces",  # fMRIPrep's
    }
    todo = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        everything |= {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for inline in re.findall(r"`([^`]+)`", prose(page)):
        for option in re.findall(r"(?<!\S)--[a-z-]+", inline):
            assert option in everything, f"{page.name}: {option}"


@ids
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in lines(page):
        if words[:1] == ["make"]:
            for word in words[1:]:
                assert "=" in word or word in targets, f"{page.name}: make {word}"


def tree() -> set[str]:
    """The paths in the README's tree."""
    block = next(b for b in blocks(README, "") if b.startswith("README.md"))
    return {line.split()[0] for line in block.splitlines()}


def test_the_tree_is_the_repository() -> None:
    named = tree()
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src" / "mindllm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    docs = {
        path.relative_to(ROOT).as_posix() + "/" * path.is_dir()
        for path in (ROOT / "docs").iterdir()
    }
    assert not sorted((source | docs) - named), "files that the README's tree lacks"


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can lead to."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@ids
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


@ids
def test_no_marker_is_left_open(page: Path) -> None:
    assert not re.findall(r"@@\w+@@", page.read_text(encoding="utf-8"))


def test_the_citation_is_valid_and_of_this_version() -> None:
    import mindllm

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mindllm.__version__
    assert f"[{mindllm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_error_messages_in_the_docs_stand_in_the_code() -> None:
    section = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## What errors mean")[1]
    )
    code = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src" / "mindllm").rglob("*.py")
    )
    quoted = [
        q
        for row in re.findall(r"^\| (`.+?) \|", section, re.M)
        for q in re.findall(r"`([^`]+)`", row)
    ]
    assert len(quoted) > 30
    for quote in quoted:
        for piece in re.split(r"\.\.\.|\d+|\[|\]|\*\S*", quote):
            assert piece.strip() in code, f"{quote!r}: {piece.strip()!r} is in no message"


def test_defaults_and_sizes_in_the_docs_are_those_of_the_code() -> None:
    text, config = (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), TrainConfig()
    table = dict(re.findall(r"^\| `(\w+)` \| ([\d. to]+) \|", text, re.M))
    assert set(table) == {
        "voxel_dropout",
        "coord_jitter_mm",
        "affine_jitter_sd",
        "mix",
        "repetition_noise_scale",
        "noise",
        "embedding_noise_scale",
    }
    for name, value in table.items():
        found = getattr(config, name)
        assert value == (f"{found[0]} to {found[1]}" if isinstance(found, tuple) else str(found)), (
            name
        )
    assert (
        f"({config.alignment.max_steps} steps of up to {config.alignment.batch_size} trials" in text
    )
    assert (
        f"({config.instruction_tuning.max_steps} steps of {config.instruction_tuning.batch_size})"
        in text
    )

    def row(head: str) -> list[str]:
        return [
            cell.strip()
            for cell in re.findall(rf"^\| ?{re.escape(head)} \|(.+)\|$", text, re.M)[0].split("|")
        ]

    assert row("") == [f"`{name}`" for name in PRESETS]
    for place, preset in enumerate(PRESETS.values()):
        assert row("queries")[place] == str(preset.num_queries)
        assert row("key width")[place] == str(preset.key_dim)
        assert row("linear layers to the key")[place] == str(preset.num_key_layers)
        assert row("region embedding")[place] == str(preset.parcel_embedding_dim)
        assert row("fMRI tokens")[place] == f"{preset.num_fmri_tokens} × {preset.token_dim}"
        with torch.device("meta"):
            encoder = FMRIEncoder(preset, {})
        for head, part in (
            ("weights (no parcellation)", encoder),
            ("of them, in the layer that makes the tokens", encoder.head.token_proj),
        ):
            said = row(head)[place].split()[0]
            digits = len(said.partition(".")[2])
            assert said == f"{sum(p.numel() for p in part.parameters()) / 1e6:.{digits}f}", (
                head,
                preset,
            )


@pytest.fixture
def desk(
    tmp_path: Path,
    tiny_llm: FrozenLanguageModel,
    tiny_config: MindLLMConfig,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the files that the Python blocks name, as the working directory."""
    torch.manual_seed(0)
    names = {p: list(numbers.values()) for p, numbers in REGIONS.items()} | {"HCPEx": ["V1", "V2"]}
    checkpoint.save(MindLLM(tiny_config, names, tiny_llm), tmp_path / "model")
    (tmp_path / "store").symlink_to(tiny_store.path, target_is_directory=True)
    rng, shape = np.random.default_rng(0), (5, 4, 3)
    affine = np.diag([-8.0, 8.0, 8.0, 1.0])
    for name, array in {
        "mask": np.ones(shape, np.uint8),
        "betas": rng.normal(size=(*shape, 10)).astype(np.float32),
        "atlas-HCPEx_dseg": rng.integers(0, 3, shape).astype(np.int16),
    }.items():
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    for name in ("mask", "betas"):
        (tmp_path / f"sub-03_{name}.nii.gz").symlink_to(tmp_path / f"{name}.nii.gz")
    (tmp_path / "atlas-HCPEx_dseg.tsv").write_text("index\tname\n1\tV1\n2\tV2\n")
    make_published(tmp_path / "source", [1], {"HCP_MMP1": 3}, Sizes())
    published = convert_checkpoint(
        tmp_path / "source/model.ckpt",
        tmp_path / "source/roi",
        tiny_llm.name,
        tmp_path / "published",
    )
    space = published.maskers["subj01"]
    trials, said = (
        pd.DataFrame({"stimulus": ["0", "1", "2"]}),
        pd.DataFrame({"stimulus": ["0"], "caption": ["a dog"]}),
    )
    betas = rng.normal(size=(3, len(space))).astype(np.float32)
    write_store(
        tmp_path / "nsd",
        [(space, betas, trials)],
        conversations_from_captions(said),
        name="nsd",
        standardized=True,
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUNNABLE = [
    (page.name, number, code)
    for page in PAGES
    for number, code in enumerate(
        re.findall(
            r"^<!-- runnable -->\n```python\n(.*?)^```$",
            page.read_text(encoding="utf-8"),
            re.M | re.S,
        ),
        1,
    )
]


@pytest.mark.parametrize(
    ("page", "number", "code"), RUNNABLE, ids=[f"{page}-{number}" for page, number, _ in RUNNABLE]
)
def test_python_in_the_docs_runs(page: str, number: int, code: str, desk: Path) -> None:
    exec(compile(code, f"{page}, block {number}", "exec"), {"__name__": "__main__"})


def test_every_python_block_is_run() -> None:
    assert len(RUNNABLE) == sum(len(blocks(page, "python")) for page in PAGES) >= 3
