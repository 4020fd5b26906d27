"""The walk-through as a Markdown page with its figures; all its numbers come from the steps."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.progress import Progress

from mindllm.model.encoder import SCALE_MM, octave_frequencies
from mindllm.plotting.brain import (
    MIN_TOP_ATTENTION,
    plot_brain_slices,
    plot_signed_slices,
    plot_voxel_coverage,
    slice_heights,
)
from mindllm.plotting.walkthrough import (
    plot_fourier_features,
    plot_matrices,
    plot_two_passes,
)
from mindllm.report.walkthrough import ATLAS, SubjectSteps, Walkthrough
from mindllm.utils.folders import atomic_directory
from mindllm.utils.progress import progress_bar

PAGE = "walkthrough.md"
FIGURES = Path("figures") / "walkthrough"
QUERY = 0  # whose attention is drawn
TRIAL = 0  # whose values and tokens are drawn
N_ROWS = 60  # voxels of the picture of features and keys
N_SLICES = 6
LIMIT = 2.5  # end of the color scale of standardized betas
TOLERANCE = 1e-5  # of what is equal up to rounding

INTRODUCTION = """# The method, step by step

```sh
mindllm walkthrough --out walkthrough
```

This page is made by the command above: {n_subjects} made-up subjects with {voxels} voxels go
through the encoder of the preset `walkthrough`, and every number and picture here is what the code
computed. The weights are random, as before training, so the page shows what the steps *do*, not
what a trained model attends to. [Method](method.md) says why the steps are as they are.

| step | shape | what |
|---|---|---|
{table}
"""

VOXELS = """## 1. Voxels

The subjects have other voxels, and other numbers of them: {voxels}, of which {common} are the same
points of MNI space. A trial is one number a voxel, the standardized beta.

{figures}

## 2. Values

Both subjects saw the same {trials} stimuli. Here their responses to the first: red is more than the
voxel's mean over stimuli, blue is less.

{betas}
"""

POSITIONS = """## 3. Positions

A voxel's position is its MNI coordinates, divided by 100 mm. Each axis gets a sine and a cosine of
{n_waves} wavelengths ({wavelengths} mm): 2 × {n_waves} × 3 = {n_fourier} numbers. Near voxels get
similar numbers: on one axis, the similarity is {near} at 5 mm and {far} at 25 mm. Beyond that, long
wavelengths tell points apart that short ones take for each other.

{figure}

## 4. Keys

{n_fourier} Fourier features + 3 coordinates + {n_region} numbers of the voxel's region =
{n_features} numbers, from which one linear layer makes a key of {key_dim}. The region's numbers are
looked up in a table that is learned, with one row for each of the {n_regions} regions of {atlas}
(and one of zeros for voxels in none). The betas are not among the {n_features}: a key says where a
voxel is, not what it does.

{keys}

The code adds two layers, one for positions and one for regions. That is the same as one layer for
{n_features} numbers: the keys differ by {key_error}. The {common} voxels that both subjects have
get the same keys (they differ by {common_error}): nothing in a key belongs to a subject.
"""

ATTENTION = """## 5. Attention

Each of {n_queries} learned queries of {key_dim} numbers is compared with every key:
A = softmax(Q Kᵀ / √{key_dim}). A row sums to one over the subject's voxels, whatever their number.
Query {query} in both subjects, on slices of the MNI template (1: as much as if every voxel got the
same):

{figures}

| subject | shape of A | center (MNI mm) | largest attention | region with most of it |
|---|---|---|---|---|
{table}

Keys depend on the point of the brain alone, so a query prefers the same points in both subjects;
the maps differ where the subjects have other voxels.

## 6. Query outputs

A query's output is the mean of the betas, weighted by its attention: {n_queries} numbers a trial,
for {v1} and for {v2} voxels alike.

{outputs}

Query outputs can be compared between subjects who share no voxel: over the {n_queries} queries, the
correlation of one subject with the other is {same} for the same stimulus and {other} for
different ones. (The made-up responses have a part that is the same in both brains; in real
brains that part is smaller.)

## 7. Tokens

A query output becomes a value of {value_dim} numbers, and the value a token of {token_dim}, by two
linear layers that all queries share: {n_queries} tokens of {token_dim} for each trial. Attention
weights sum to one, so it does not matter whether betas become values before the attention or after
it, as in the code, which is cheaper: the difference is {value_error}. The language model reads the
tokens in place of `<fMRI>`, after a linear layer to the size of its own embeddings.

{tokens}
"""

SLIPS = """## Two slips

Two slips are easily made in code for this method, and neither needs to end in an error. This is
what they do.

### Coordinates concatenated twice

```
fourier = cat([sin, cos, coordinates])  # 27 numbers, with the coordinates
features = cat([coordinates, fourier, region]) # 3 + 27 + 8 = 38 numbers, not 35
```

| check | {n_features} numbers | {n_twice} numbers |
|---|---|---|
| linearly independent columns | {rank} | {rank} |
| weights of the layer to the key | {n_weights:,} | {n_weights_twice:,} |
| keys, when the copies' weights add up to the single ones | | differ by {key_error} |
| step of gradient descent on the weights of coordinates | 1 | {ratio:.2f} |

The three numbers more say nothing new, and the layer has weights that it does not need. But raw
coordinates are learned {ratio:.0f} times as fast by gradient descent. Where the layer is made for
{n_features} numbers, the slip is an error: `{message}`. The encoder of this package computes the
number of features from the options, beside the code that concatenates them.

### A region embedding made anew in every forward pass

```
def forward(self, ...):
    embedding = nn.Embedding(n_regions + 1, 8)  # random numbers, other ones in each pass
    region = embedding(region_ids)
```

| check | made once, in `__init__` | made anew in each pass |
|---|---|---|
| numbers that are learned and saved | {region_weights:,} | 0 |
| cosine of a region's embedding in two passes, mean | 1.00 | {cosine:.2f} |
| attention that moves to other voxels from one pass to the next | 0 % | {moved:.0f} % |
| change of the tokens, relative to how far trials differ | {kept:.2f} | {new:.2f} |

With the slip, nothing about a region is learned, a checkpoint does not hold what was used, and one
scan gives other tokens each time. Here the change from pass to pass is {new:.2f} times what tells
trials apart. Below, the numbers of the tokens of one trial in two passes.

{figure}
"""


def shapes_table(walkthrough: Walkthrough) -> list[tuple[str, str, str]]:
    """Return the rows of the table of steps: name, shapes in both subjects, and what it is.

    Parameters
    ----------
    walkthrough : Walkthrough

    Returns
    -------
    list of (str, str, str)
    """

    def both(array: Callable[[SubjectSteps], np.ndarray]) -> str:
        return ", ".join(
            dict.fromkeys(show_shape(array(subject)) for subject in walkthrough.subjects)
        )

    return [
        ("voxels", both(lambda s: s.masker.coords_mm), "MNI coordinates, voxels × axes"),
        ("values", both(lambda s: s.betas), "standardized betas, trials × voxels"),
        ("features", both(lambda s: s.features), "24 + 3 + 8 numbers of a voxel"),
        ("keys", both(lambda s: s.keys), "one linear layer of the features"),
        ("attention", both(lambda s: s.attention), "queries × voxels, rows sum to one"),
        ("query outputs", both(lambda s: s.query_outputs), "trials × queries"),
        ("tokens", both(lambda s: s.tokens), "trials × tokens × size of a token"),
    ]


def show_shape(array: np.ndarray) -> str:
    """Show a shape as it is read: 12,000 × 35."""
    return " × ".join(f"{size:,}" for size in array.shape)


def show_error(error: float) -> str:
    """Show a difference that is rounding, or its size.

    Examples
    --------
    >>> show_error(3e-7), show_error(0.25)
    ('less than 0.00001', '0.25')
    """
    return "less than 0.00001" if error < TOLERANCE else f"{error:.2g}"


def picture(name: str, alt: str) -> str:
    """Markdown of a figure with its alternative text."""
    return f"![{alt}]({FIGURES.as_posix()}/{name}.png)"


def write_text(walkthrough: Walkthrough) -> str:
    """Write the page.

    Parameters
    ----------
    walkthrough : Walkthrough

    Returns
    -------
    str
        Markdown, with links to the figures.
    """
    parts = [
        introduce(walkthrough),
        describe_voxels(walkthrough),
        describe_positions(walkthrough),
        describe_attention(walkthrough),
        describe_slips(walkthrough),
    ]
    return "\n".join(part.strip() + "\n" for part in parts)


def counts(walkthrough: Walkthrough) -> str:
    """Say how many voxels the subjects have."""
    return " and ".join(f"{len(subject.masker):,}" for subject in walkthrough.subjects)


def introduce(walkthrough: Walkthrough) -> str:
    """Title, what the page is, and the table of shapes."""
    rows = [f"| {name} | {shape} | {words} |" for name, shape, words in shapes_table(walkthrough)]
    return INTRODUCTION.format(n_subjects="two", voxels=counts(walkthrough), table="\n".join(rows))


def describe_voxels(walkthrough: Walkthrough) -> str:
    """Steps 1 and 2."""
    names = [subject.masker.subject for subject in walkthrough.subjects]
    return VOXELS.format(
        voxels=counts(walkthrough),
        common=f"{walkthrough.n_common:,}",
        trials=len(walkthrough.subjects[0].betas),
        figures="\n\n".join(
            picture(
                f"voxels-{s.masker.subject}",
                f"{len(s.masker):,} voxels of {s.masker.subject} "
                "in the back of the brain, on four glass brains",
            )
            for s in walkthrough.subjects
        ),
        betas="\n\n".join(
            picture(f"values-{name}", f"Betas of the first trial of {name} on axial slices")
            for name in names
        ),
    )


def fourier_over_distance(walkthrough: Walkthrough) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine features and similarity of all Fourier features, over the distance on an axis.

    Returns
    -------
    distances_mm : ndarray of shape (201,)
    cosines : ndarray of shape (201, n_wavelengths)
    similarity : ndarray of shape (201,)
        Cosine similarity with the voxel at 0 mm; the other two axes are equal.
    """
    frequencies = np.array(octave_frequencies(walkthrough.encoder.config))
    distances_mm = np.arange(201.0)
    cosines = np.cos(2 * np.pi * distances_mm[:, None] / SCALE_MM * frequencies)
    return distances_mm, cosines, (cosines.mean(1) + 2) / 3


def describe_positions(walkthrough: Walkthrough) -> str:
    """Steps 3 and 4."""
    config, first = walkthrough.encoder.config, walkthrough.subjects[0]
    wavelengths = [SCALE_MM / frequency for frequency in octave_frequencies(config)]
    _, _, similarity = fourier_over_distance(walkthrough)
    return POSITIONS.format(
        n_waves=len(wavelengths),
        wavelengths=", ".join(f"{mm:.0f}" for mm in wavelengths),
        n_fourier=2 * len(walkthrough.encoder.frequencies),
        near=f"{similarity[5]:.2f}",
        far=f"{similarity[25]:.2f}",
        n_region=config.parcel_embedding_dim,
        n_regions=len(walkthrough.encoder.parcel_names[ATLAS]),
        atlas=ATLAS,
        n_features=first.features.shape[1],
        key_dim=config.key_dim,
        common=f"{walkthrough.n_common:,}",
        key_error=show_error(max(s.key_error for s in walkthrough.subjects)),
        common_error=show_error(walkthrough.common_key_error),
        figure=picture(
            "fourier",
            "Left: cosine features of four wavelengths over the position on an axis. "
            "Right: the similarity of two voxels' features over their distance",
        ),
        keys=picture(
            "keys",
            f"Left: {first.features.shape[1]} features of {N_ROWS} voxels of "
            f"{first.masker.subject}. Right: their keys of {config.key_dim} numbers",
        ),
    )


def describe_attention(walkthrough: Walkthrough) -> str:
    """Steps 5 to 7."""
    config, (first, second) = walkthrough.encoder.config, walkthrough.subjects
    names = [subject.masker.subject for subject in walkthrough.subjects]
    return ATTENTION.format(
        n_queries=config.num_queries,
        key_dim=config.key_dim,
        query=QUERY + 1,
        figures="\n\n".join(
            picture(
                f"attention-{name}",
                f"Attention of query {QUERY + 1} over the voxels of {name} on axial slices",
            )
            for name in names
        ),
        table="\n".join(attention_row(subject) for subject in walkthrough.subjects),
        v1=f"{len(first.masker):,}",
        v2=f"{len(second.masker):,}",
        outputs=picture(
            "query-outputs",
            f"Query outputs of {names[0]} and {names[1]}: trials by "
            "queries, with a similar pattern in both",
        ),
        same=f"{walkthrough.same_stimulus:.2f}",
        other=f"{walkthrough.other_stimulus:.2f}",
        value_dim=config.value_dim,
        token_dim=config.token_dim,
        value_error=show_error(max(s.value_error for s in walkthrough.subjects)),
        tokens=picture(
            "tokens",
            f"The {config.num_fmri_tokens} fMRI tokens of the first trial of "
            f"{names[0]} and {names[1]}, {config.token_dim} numbers each",
        ),
    )


def attention_row(subject: SubjectSteps) -> str:
    """One row of the table of a query's attention."""
    attention, masker = subject.attention[QUERY], subject.masker
    center = ", ".join(str(round(float(mm))) for mm in attention @ masker.coords_mm)
    labels = masker.parcel_labels[ATLAS]
    mass = np.bincount(labels, attention)
    mass[0] = 0  # in no region
    top = int(mass.argmax())
    return (
        f"| {masker.subject} | {show_shape(subject.attention)} | {center} | "
        f"{attention.max() * len(masker):.1f} | {masker.parcel_names[ATLAS][top]}, "
        f"{100 * mass[top]:.1f} % of the attention, "
        f"{100 * (labels == top).mean():.1f} % of the voxels |"
    )


def describe_slips(walkthrough: Walkthrough) -> str:
    """The two slips and their consequences."""
    coordinate, region = walkthrough.coordinate_slip, walkthrough.region_slip
    return SLIPS.format(
        n_features=walkthrough.subjects[0].features.shape[1],
        n_twice=coordinate.n_features,
        rank=coordinate.rank,
        n_weights=coordinate.n_weights,
        n_weights_twice=coordinate.n_weights_twice,
        key_error=show_error(coordinate.key_error),
        ratio=coordinate.step_ratio,
        message=coordinate.message,
        region_weights=region.n_weights,
        cosine=region.cosine,
        moved=100 * region.attention_moved,
        kept=region.kept_change,
        new=region.new_change,
        figure=picture(
            "region-slip",
            "Numbers of the tokens of one trial in two forward passes: "
            "on the diagonal with a learned embedding, scattered with one made anew",
        ),
    )


def plan_figures(walkthrough: Walkthrough) -> Mapping[str, Callable[[], bytes]]:
    """Return the name of each figure and what draws it.

    Parameters
    ----------
    walkthrough : Walkthrough

    Returns
    -------
    mapping of str to callable
        Without a suffix -> function that returns PNG bytes.
    """
    figures: dict[str, Callable[[], bytes]] = {}
    relative = [s.attention[QUERY] * len(s.masker) for s in walkthrough.subjects]
    cut_coords = slice_heights([s.masker for s in walkthrough.subjects], N_SLICES)
    top = max(MIN_TOP_ATTENTION, *(float(np.quantile(values, 0.97)) for values in relative))
    for subject, values in zip(walkthrough.subjects, relative, strict=True):
        figures |= brain_figures(subject, values, top, cut_coords)
    return figures | {
        "fourier": lambda: draw_fourier(walkthrough),
        "keys": lambda: draw_keys(walkthrough.subjects[0]),
        "query-outputs": lambda: draw_query_outputs(walkthrough),
        "tokens": lambda: draw_tokens(walkthrough),
        "region-slip": lambda: plot_two_passes(
            [walkthrough.region_slip.kept_passes, walkthrough.region_slip.new_passes],
            ["embedding made once", "embedding made anew"],
        ),
    }


def brain_figures(
    subject: SubjectSteps,
    relative_attention: np.ndarray,
    top: float,
    cut_coords: list[float],
) -> dict[str, Callable[[], bytes]]:
    """Return the figures of a subject on the brain."""
    masker, name = subject.masker, subject.masker.subject
    return {
        f"voxels-{name}": lambda: plot_voxel_coverage([masker]),
        f"values-{name}": lambda: plot_signed_slices(
            [masker], [subject.betas[TRIAL]], LIMIT, cut_coords
        ),
        f"attention-{name}": lambda: plot_brain_slices(
            [masker], [relative_attention], top, cut_coords=cut_coords
        ),
    }


def draw_fourier(walkthrough: Walkthrough) -> bytes:
    """Draw Fourier features over distance."""
    distances_mm, cosines, similarity = fourier_over_distance(walkthrough)
    frequencies = octave_frequencies(walkthrough.encoder.config)
    labels = [f"{SCALE_MM / frequency:.0f} mm" for frequency in frequencies]
    return plot_fourier_features(distances_mm, cosines, labels, similarity)


def draw_keys(subject: SubjectSteps) -> bytes:
    """Draw features and keys of voxels at equal steps of their order."""
    rows = np.linspace(0, len(subject.masker) - 1, N_ROWS).astype(int)
    return plot_matrices(
        [subject.features[rows], subject.keys[rows]],
        ["features: sines, cosines, coordinates, region", "keys"],
        ["number of the feature", "number of the key"],
        f"{N_ROWS} voxels",
    )


def draw_query_outputs(walkthrough: Walkthrough) -> bytes:
    """Draw query outputs (T, N) of both subjects."""
    return plot_matrices(
        [subject.query_outputs for subject in walkthrough.subjects],
        [f"{s.masker.subject}, {len(s.masker):,} voxels" for s in walkthrough.subjects],
        ["query", "query"],
        "trial",
        height=2.6,
    )


def draw_tokens(walkthrough: Walkthrough) -> bytes:
    """Draw the tokens (N, token_dim) of a trial of both subjects, minus their mean over trials."""
    return plot_matrices(
        [subject.tokens[TRIAL] - subject.tokens.mean(0) for subject in walkthrough.subjects],
        [f"{s.masker.subject}, minus the mean over trials" for s in walkthrough.subjects],
        ["number", "number"],
        "token",
        height=2.6,
    )


def write_walkthrough(
    walkthrough: Walkthrough, out: Path, progress: Progress | None = None
) -> None:
    """Write walkthrough.md and its figures into a new folder.

    Parameters
    ----------
    walkthrough : Walkthrough
    out : Path
        The folder; nothing is overwritten.
    progress : rich.progress.Progress, optional
        Shows which figure is drawn.

    Raises
    ------
    InputError
        If the folder holds something, or cannot be written.
    """
    figures = plan_figures(walkthrough)
    with (
        atomic_directory(out) as folder,
        progress_bar(progress, "drawing", len(figures)) as advance,
    ):
        (folder / FIGURES).mkdir(parents=True)
        for name, draw in figures.items():
            (folder / FIGURES / f"{name}.png").write_bytes(draw())
            advance(1, f"drawing {name}")
        (folder / PAGE).write_text(write_text(walkthrough), encoding="utf-8")
