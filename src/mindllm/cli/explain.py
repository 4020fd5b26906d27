"""The command explain: which voxels a model listens to, and which speak for a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mindllm.cli.options import (
    MAX_COUNT,
    LanguageModelPath,
    ModelFolder,
    Seed,
    SplitScheme,
    bars,
    check_model,
    claim_output,
    console,
    finite,
    parse_int_ranges,
    parse_list,
)
from mindllm.cli.scans import Atlases, Mask, Standardized, get_masker, parse_atlases
from mindllm.utils.errors import InputError
from mindllm.utils.folders import remove_folder
from mindllm.utils.progress import spinner

if TYPE_CHECKING:
    from mindllm.explain.subject_data import SubjectData
    from mindllm.model.modeling import MindLLM

app = typer.Typer()
PARTS = "partial"  # within the folder: what was computed before an interruption


Data = Annotated[
    Path, typer.Argument(help="A prepared store, or a NIfTI file with one volume per trial.")
]
NewFolder = Annotated[Path, typer.Option(help="Folder of maps, tables, pictures and the page.")]
ExplainedSubjects = Annotated[
    str | None,
    typer.Option(
        help="Subjects of the store, comma-separated. Of a scan: one whose masker the model "
        "holds, instead of --mask."
    ),
]
Trials = Annotated[
    str | None, typer.Option(help="Which trials, from 0, e.g. 0,3,5-9. Default: all.")
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        help="A word to map, with its forms: dog,dogs. The texts that name it are compared with "
        "those that do not. Repeatable."
    ),
]
Attributes = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=WORD,WORD: words (the first form of each --word) whose maps are averaged, such "
        "as those of one attribute. Repeatable."
    ),
]
SmoothMm = Annotated[
    float | None,
    typer.Option(
        min=0, max=100, callback=finite,
        help="Smoothing of drawn maps, FWHM in mm; 0: none. Default: as wide as the receptive "
        "fields of the model's queries.",
    ),
]  # fmt: skip
Networks = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=PARCEL,PARCEL: parcels to lesion together; * stands for any letters. Repeatable."
    ),
]
NRandom = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Random voxel sets per lesion.")]
RandomVoxels = Annotated[
    Literal["contiguous", "scattered"],
    typer.Option(help="Random voxels: patches of neighbors, or drawn one by one."),
]
NAnswers = Annotated[
    int, typer.Option(min=0, help="Trials per subject whose generated words are attributed.")
]
WriteQueries = Annotated[bool, typer.Option(help="Write the attention of every single query.")]
WriteInteractive = Annotated[bool, typer.Option(help="Write interactive maps.")]


@app.command()
def explain(
    model: ModelFolder,
    data: Data,
    out: NewFolder,
    subject: ExplainedSubjects = None,
    trials: Trials = None,
    word: Words = None,
    attribute: Attributes = None,
    network: Networks = None,
    mask: Mask = None,
    atlas: Atlases = None,
    standardized: Standardized = False,
    n_random: NRandom = 200,
    random_sets: RandomVoxels = "contiguous",
    n_answers: NAnswers = 1,
    queries: WriteQueries = True,
    interactive: WriteInteractive = True,
    smooth_mm: SmoothMm = None,
    llm: LanguageModelPath = None,
    split_scheme: SplitScheme = None,
    seed: Seed = 0,
) -> None:
    """Show where a model attends, which voxels speak for a text, and what a lesion costs."""
    from mindllm.explain.explanation import ExplainConfig, check_attributes
    from mindllm.explain.explanation import explain as explain_subjects
    from mindllm.model.modeling import MindLLM
    from mindllm.report.explanation import write_explanation

    config = ExplainConfig(
        words=tuple(tuple(parse_list(forms) or ()) for forms in word or ()),
        attributes=parse_groups("--attribute", "NAME=WORD,WORD", attribute or []),
        smooth_mm=smooth_mm,
        networks=parse_groups("--network", "NAME=PARCEL,PARCEL", network or []),
        n_random=n_random, random_sets=random_sets, n_answers=n_answers, seed=seed,
    )  # fmt: skip
    check_attributes(config)
    claim_output(out, inputs=[model, data], resumable=["explanation.json", PARTS])
    check_model(model, llm)
    source = Source(data, parse_list(subject), mask, parse_atlases(atlas or []), standardized)
    indices = parse_int_ranges(trials)
    source.check()
    loaded = MindLLM.from_pretrained(model, language_model=llm)
    subjects = source.read(loaded, model, indices, split_scheme)
    with bars() as progress:
        explanation = explain_subjects(loaded, subjects, config, progress, out / PARTS)
        with spinner(progress, "drawing and writing"):
            title = f"What {model.name} makes of {data.name}"
            page = write_explanation(explanation, out, title, queries, interactive)
            remove_folder(out / PARTS, within=out)
    console.print(f"{page}: {', '.join(d.masker.subject for d in subjects)} explained")


class Source:
    """A store or a scan whose trials are explained."""

    def __init__(
        self,
        path: Path,
        subjects: list[str] | None,
        mask: Path | None,
        atlases: dict[str, str],
        standardized: bool,
    ) -> None:
        self.path, self.subjects, self.mask = path, subjects, mask
        self.atlases, self.standardized = atlases, standardized

    def check(self) -> None:
        """Refuse options that do not go together, before anything is loaded."""
        if self.path.is_dir():
            if self.mask or self.atlases or self.standardized:
                raise InputError(
                    f"{self.path} is a folder, so a store is expected: --mask, --atlas and "
                    "--standardized are for a scan. Leave them out."
                )
            return
        n_subjects = len(self.subjects or [])
        if (self.mask is None) == (n_subjects == 0) or n_subjects > 1:
            raise InputError(
                f"{self.path} is taken for a scan: give either --mask (and --atlas), or --subject "
                "for one subject whose masker the model holds."
            )

    def read(
        self,
        model: "MindLLM",
        folder: Path,
        trials: list[int] | None,
        split_scheme: str | None,
    ) -> "Sequence[SubjectData]":
        """Read the trials to explain."""
        from mindllm.data.store import Store
        from mindllm.explain.subject_data import read_scan_subject, read_store_subject
        from mindllm.model.scan_voxels import resolve_masker

        if self.path.is_dir():
            store = Store(self.path, split_scheme)
            return [
                read_store_subject(store, name, trials)
                for name in store.select_subjects(self.subjects)
            ]
        if self.subjects:
            masker = get_masker(model, folder, self.subjects[0])
        else:
            assert self.mask is not None
            masker = resolve_masker(model, self.mask, self.atlases)
        return [read_scan_subject(model, self.path, masker, trials, standardized=self.standardized)]


def parse_groups(option: str, form: str, values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Map name to parts of options NAME=PART,PART.

    Examples
    --------
    >>> parse_groups("--network", "NAME=PARCEL,PARCEL", ["motion=TO1,TO2"])
    {'motion': ('TO1', 'TO2')}
    """
    groups = {}
    for value in values:
        name, separator, parts = value.partition("=")
        if not separator or not name.strip():
            raise InputError(f"{option} {value}: expected {form}.")
        groups[name.strip()] = tuple(parse_list(parts) or ())
    return groups
