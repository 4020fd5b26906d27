"""Check the README and the docs against the program: commands, options, links, sizes, Python."""

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
from mindllm.cli.bids_app import make_parser
from mindllm.convert.mindllm_checkpoint import convert_checkpoint
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.data.webdataset_export import export_webdataset
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.model.configuration import PRESETS, MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import TrainConfig
from tests.conftest import REGIONS
from tests.published import Sizes, make_published

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mindllm"
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "example-report"),
]
ids = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [code for kind, code in fenced if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced code blocks, and without the old names in tables of renames."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(
        r"(?<=^\| Old \| New \|\n\|---\|---\|\n)(?:\|.*\n)+",
        lambda table: re.sub(r"^\|[^|]*\|", "| |", table[0], flags=re.M),
        text,
        flags=re.M,
    )


def shell_commands(page: Path) -> Iterator[list[str]]:
    """The commands in the code blocks of a page, as words, without what follows a redirection."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            yield words[: words.index(">")] if ">" in words else words


def commands(page: Path) -> Iterator[list[str]]:
    """The shell commands of a page, as words: those in code blocks, and those in backticks."""
    yield from shell_commands(page)
    for inline in re.findall(r"`((?:mindllm|make) [^`]+)`", prose(page)):
        yield shlex.split(re.sub(r"<[^>]*>", "X", inline))


def leaves() -> dict[str, typer.core.TyperCommand]:
    """Every command that does something, by its words: `prepare bids`, `train`, ..."""
    todo, by_words = [((), typer.main.get_command(app))], {}
    while todo:
        words, command = todo.pop()
        if hasattr(command, "commands"):
            todo += [((*words, name), child) for name, child in command.commands.items()]
        else:
            by_words[" ".join(words)] = command
    return by_words


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that words name, such as `prepare bids`, and the words left for it."""
    known = leaves()
    for count in (1, 2):
        if " ".join(words[:count]) in known:
            return " ".join(words[:count]), words[count:]
    raise AssertionError(f"there is no command {' '.join(words[:2])!r}; there are {sorted(known)}")


@ids
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        if words[:1] != ["mindllm"] or words[1:] == ["prepare"]:
            continue
        name, rest = split_command(words[1:])
        known = {option for parameter in leaves()[name].params for option in parameter.opts}
        for word in rest:
            assert not word.startswith("--") or word in known, (
                f"{' '.join(words)}: no option {word}"
            )


@ids
def test_whole_commands_are_understood(page: Path) -> None:
    """Every argument and required option is there: the words can be parsed; nothing is run."""
    for words in shell_commands(page):
        if words[:1] == ["mindllm"]:
            name, rest = split_command(words[1:])
            leaves()[name].make_context(name, rest)


def test_every_command_is_shown() -> None:
    shown = {
        split_command(words[1:])[0]
        for page in PAGES
        for words in shell_commands(page)
        if words[:1] == ["mindllm"]
    }
    assert shown == set(leaves())
    in_readme = {words[1] for words in shell_commands(README) if words[:1] == ["mindllm"]}
    assert in_readme == {"prepare", "qc", "train", "evaluate", "decode"}
    named = {words[1] for words in commands(README) if words[:1] == ["mindllm"]}
    assert named == {name.split()[0] for name in leaves()}


@ids
def test_options_named_in_the_text_exist(page: Path) -> None:
    everything = {
        "--help",
        "--no-deps",  # pip's
        "--output-spaces",  # fMRIPrep's
        "--network",  # docker's
    }
    everything |= {o for action in make_parser()._actions for o in action.option_strings}
    for command in leaves().values():
        everything |= {name for parameter in command.params for name in parameter.opts}
    for program in (ROOT / "benchmarks").glob("*.py"):
        everything |= set(re.findall(r'"(--[a-z-]+)"', program.read_text(encoding="utf-8")))
    for inline in re.findall(r"`([^`]+)`", prose(page)):
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]+", inline):
            assert option in everything, f"{page.name}: {option}"


@ids
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in commands(page):
        if words[:1] == ["make"]:
            for word in words[1:]:
                assert "=" in word or word in targets, f"{page.name}: make {word}"


def layers() -> list[set[str]]:
    """The packages of each layer of the contract, from the top."""
    contract = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1].split("]")[0]
    )
    return [set(re.findall(r"mindllm\.(\w+)", line)) for line in contract.strip().splitlines()]


@pytest.mark.parametrize("page", [README, DOCS / "api" / "index.md"], ids=lambda p: p.name)
def test_the_layers_shown_are_those_of_the_contract(page: Path) -> None:
    block = next(b for b in blocks(page, "") if b.startswith("7  cli"))
    shown = [re.split(r" {2,}", line.strip()) for line in block.splitlines()]
    assert [int(number) for number, *_ in shown] == list(range(7, 0, -1))
    packages = {name for layer in layers() for name in layer}
    assert [packages & set(names) for _, *names in shown] == layers()


def test_the_layers_in_contributing_are_those_of_the_contract() -> None:
    rows = re.findall(
        r"^\| (\d) \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    assert [number for number, _ in rows] == [str(n) for n in range(7, 0, -1)]
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == layers()


def test_every_module_is_in_the_api_reference() -> None:
    named = set()
    for page in (DOCS / "api").glob("*.md"):
        modules = re.findall(r"^::: mindllm\.(\w+)\.(\w+)$", page.read_text(encoding="utf-8"), re.M)
        assert {package for package, _ in modules} <= {page.stem}, page.name
        named |= {f"{package}/{module}" for package, module in modules}
    modules = {
        path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.glob("*/*.py")
    }
    assert named == {m for m in modules if not m.startswith("cli/") and not m.endswith("__init__")}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1].split("\ntheme:")[0]
    )
    listed = set(re.findall(r"([\w/-]+\.md)", navigation))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_the_gallery_shows_every_example() -> None:
    shown = re.findall(
        r'--8<-- "(examples/\w+\.py)"', (DOCS / "gallery" / "index.md").read_text(encoding="utf-8")
    )
    assert len(shown) == len(set(shown)) == 11
    if not (ROOT / "examples").is_dir():
        pytest.skip("the examples are not written yet")
    assert set(shown) == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")
    }


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
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


@ids
def test_no_marker_is_left_open(page: Path) -> None:
    assert not re.findall(r"@@\w+@@", page.read_text(encoding="utf-8"))


def test_the_citation_is_valid_and_of_this_version() -> None:
    import mindllm

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mindllm.__version__
    assert f"[{mindllm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_error_messages_in_the_docs_stand_in_the_code() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    code = re.sub(r"([\"'])\n\s*[rf]*\1", "", code)  # literals that are broken over lines
    quoted = [
        q for row in re.findall(r"^\| (`.+?) \|", page, re.M) for q in re.findall(r"`([^`]+)`", row)
    ]
    assert len(quoted) > 30
    for quote in quoted:
        for piece in re.split(r"\.\.\.|\d+|\[|\]|\*\S*", quote):
            assert piece.strip() in code, f"{quote!r}: {piece.strip()!r} is in no message"


def test_defaults_and_sizes_in_the_docs_are_those_of_the_code() -> None:
    text, config = (DOCS / "method.md").read_text(encoding="utf-8"), TrainConfig()
    table = dict(re.findall(r"^\| `(\w+)` \| ([\d. to]+) \|", text, re.M))
    assert set(table) == {
        "voxel_dropout",
        "coord_jitter_mm",
        "affine_jitter_sd",
        "mixup_prob",
        "repetition_noise_scale",
        "query_noise_sd",
        "embedding_noise_scale",
    }
    for name, value in table.items():
        default = getattr(config, name)
        assert value == (
            f"{default[0]} to {default[1]}" if isinstance(default, tuple) else str(default)
        ), name
    assert (
        f"({config.alignment.max_steps} steps of up to {config.alignment.batch_size} trials" in text
    )
    tuning = config.instruction_tuning
    assert f"({tuning.max_steps} steps of {tuning.batch_size})" in text

    def row(head: str) -> list[str]:
        return [
            cell.strip()
            for cell in re.findall(rf"^\| ?{re.escape(head)} \|(.+)\|$", text, re.M)[0].split("|")
        ]

    assert row("") == [f"`{name}`" for name in PRESETS]
    for column, preset in enumerate(PRESETS.values()):
        assert row("queries")[column] == str(preset.num_queries)
        assert row("key dimension")[column] == str(preset.key_dim)
        assert row("linear layers to the key")[column] == str(preset.num_key_layers)
        assert row("parcel embedding")[column] == str(preset.parcel_embedding_dim)
        assert row("fMRI tokens")[column] == f"{preset.num_fmri_tokens} × {preset.token_dim}"
        with torch.device("meta"):
            encoder = FMRIEncoder(preset, {})
        for head, part in (
            ("weights (no atlas)", encoder),
            ("of them, in the layer that makes the tokens", encoder.head.token_proj),
        ):
            size = row(head)[column].split()[0]
            digits = len(size.partition(".")[2])
            assert size == f"{sum(p.numel() for p in part.parameters()) / 1e6:.{digits}f}", (
                head,
                preset,
            )


WORDS = ("house", "floor", "floors", "corridor", "road", "whoever", "verdict")


@ids
def test_the_docs_use_plain_terms(page: Path) -> None:
    assert not set(re.findall(r"[a-z]+", prose(page).lower())) & set(WORDS)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


@pytest.fixture
def desk(
    tmp_path: Path,
    tiny_llm: FrozenLanguageModel,
    tiny_llm_folder: Path,
    tiny_config: MindLLMConfig,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with the files that the Python blocks name, as the working directory."""
    torch.manual_seed(0)
    names = {atlas: list(labels.values()) for atlas, labels in REGIONS.items()} | {
        "HCPEx": ["V1", "V2"]
    }
    model = MindLLM(tiny_config, names, tiny_llm)
    queries = torch.randn(48, tiny_config.num_queries)
    subject = SubjectFeatures(queries, torch.arange(12).repeat(4))
    model.encoding_model = fit_encoding_model({"sub-01": subject}, torch.randn(12, 384))
    model.sentence_encoder = DEFAULT_SENTENCE_ENCODER
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "language-model").symlink_to(tiny_llm_folder, target_is_directory=True)
    (tmp_path / "store").symlink_to(tiny_store.path, target_is_directory=True)
    export_webdataset(tiny_store, tmp_path / "shards")
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
    checkpoint = tmp_path / "source" / "model.ckpt"
    published = convert_checkpoint(
        checkpoint, tmp_path / "source" / "roi", tiny_llm.name, tmp_path / "published"
    )
    masker = published.maskers["subj01"]
    trials = pd.DataFrame({"stimulus": ["0", "1", "2"]})
    texts = conversations_from_captions(pd.DataFrame({"stimulus": ["0"], "caption": ["a dog"]}))
    betas = rng.normal(size=(3, len(masker))).astype(np.float32)
    write_store(tmp_path / "nsd", [(masker, betas, trials)], texts, name="nsd", standardized=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUNNABLE = [
    (page.relative_to(ROOT).as_posix(), number, code)
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
