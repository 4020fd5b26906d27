"""What is inside a store, in tables and on a page: for whoever prepared it, and whoever must trust it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from rich.progress import Progress

from mindllm.data.quality_control import QCResult, check_store, check_subject, group_results
from mindllm.data.splits import SPLITS
from mindllm.data.store import Store
from mindllm.fmri.noise_ceiling import noise_ceiling_percent
from mindllm.instructions import summary
from mindllm.plotting.brain import plot_brain_slices, plot_voxel_coverage
from mindllm.plotting.curves import plot_counts
from mindllm.utils.files import atomic_directory
from mindllm.utils.progress import progress_bar


@dataclass(frozen=True)
class StoreReport:
    """Tables of what a store holds, the checks, and sample conversations (stimulus or trial, source, turns)."""

    about: dict[str, str]
    subjects: pd.DataFrame
    regions: pd.DataFrame
    sources: pd.DataFrame
    checks: list[QCResult]
    samples: list[tuple[str, str, list[dict[str, str]]]]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables under their titles."""
        people = "People (split: trials of train/val/test, and unused ones; ceiling: the noise ceiling of the median voxel, one trial)"
        return {people: self.subjects, "Parcellations": self.regions, "Text": self.sources}


def inspect_store(store: Store, seed: int = 0, progress: Progress | None = None) -> StoreReport:
    """Look through a store: all tables, a sample of the betas, some conversations of each source."""
    rng = np.random.default_rng(seed)
    rows, parts, checks = [], [], []
    with progress_bar(progress, "looking through", len(store.subjects)) as advance:
        for subject in store.subjects:
            advance(0, f"looking through {subject}")
            rows.append(count(store, subject))
            space = store.masker(subject)
            parts += [
                {
                    "parcellation": p,
                    "regions": len(np.setdiff1d(r, 0)),
                    "labelled": 100 * (r > 0).mean(),
                }
                for p, r in space.parcel_labels.items()
            ]
            checks += check_subject(store, subject, rng)
            advance(1)
    checks += check_store(store)
    meta = store.meta
    shown = {name for subject in store.subjects for name in store.trials(subject)["stimulus"]}
    about = {
        "store": str(store.path), "name": meta["name"], "source": meta["source"], "license": meta["license"],
        "made by": f"mindllm {meta['version']}, prepared by {meta['prepared_by']}, {', '.join(f'{k}={v}' for k, v in meta['options'].items())}",
        "values": "standardized already" if meta.get("standardized") else "betas as measured, standardized when read",
        "split": f"{store.split['name']} (others: {', '.join(store.splits) or 'none'})",
        "named sets": ", ".join(f"{name} ({len(shown.intersection(members)):,} of {len(members):,} stimuli here)" for name, members in store.stimulus_sets.items()) or "none",
    }  # fmt: skip
    told = summary(store)
    told = told.assign(
        share=told["share"].map("{:.0%}".format), words=told["words"].map("{:.1f}".format)
    )
    return StoreReport(
        about,
        pd.DataFrame(rows),
        over_people(parts),
        told,
        group_results(checks),
        sample_conversations(store, rng),
    )


def count(store: Store, subject: str) -> dict[str, object]:
    """One person's numbers."""
    trials, space, betas = store.trials(subject), store.masker(subject), store.betas(subject)
    shown, ncsnr = trials["stimulus"].value_counts(), store.ncsnr(subject)
    kinds = trials["split"].value_counts().to_dict()
    return {
        "subject": subject, "voxels": f"{len(space):,}", "trials": f"{len(trials):,}", "sessions": trials["session"].nunique(),
        "stimuli": f"{len(shown):,}", "shown": f"{shown.min()}-{shown.max()}x" if shown.min() < shown.max() else f"{shown.max()}x",
        "split": "/".join(str(kinds.get(split, 0)) for split in SPLITS if kinds.get(split) or split != "unused"), "betas": f"{betas.nbytes / 2**20:,.0f} MiB",
        "ceiling": "-" if ncsnr is None else f"{np.nanmedian(noise_ceiling_percent(ncsnr)):.0f} %",
    }  # fmt: skip


def over_people(parts: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per parcellation: how many people have it, from how many to how many regions, and per cent of their voxels in one."""
    rows = []
    for name, some in pd.DataFrame(parts).groupby("parcellation", sort=False) if parts else []:
        span = {key: (some[key].min(), some[key].max()) for key in ("regions", "labelled")}
        told = {
            key: f"{low:.0f}-{high:.0f}" if round(low) < round(high) else f"{low:.0f}"
            for key, (low, high) in span.items()
        }
        rows.append({"parcellation": name, "people": len(some), "regions": told["regions"], "% of voxels in a region": told["labelled"]})  # fmt: skip
    return pd.DataFrame(rows)


def sample_conversations(
    store: Store, rng: np.random.Generator
) -> list[tuple[str, str, list[dict[str, str]]]]:
    """Two conversations of each source, drawn at random."""
    table, out = store.conversations, []
    for source, rows in table.groupby("source", sort=False).indices.items():
        for row in rng.permutation(rows)[:2]:
            about = table.iloc[row]
            whose = about["stimulus"] if isinstance(about["stimulus"], str) else f"trial {about['trial_index']} of {about['subject']}"  # fmt: skip
            out.append((str(whose), str(source), list(about["turns"])))
    return out


def write_page(found: StoreReport, store: Store, out: str | Path) -> Path:
    """The inspection as a page with pictures, in the folder `out`: index.html and PNG files."""
    spaces = [store.masker(subject) for subject in store.subjects]
    pictures = {"coverage": ("Where the voxels are; colour is how many mm of voxels one looks through, mean over people", plot_voxel_coverage(spaces))}  # fmt: skip
    known = [(space, store.ncsnr(space.subject)) for space in spaces]
    having = [
        (space, np.nan_to_num(noise_ceiling_percent(ncsnr)))
        for space, ncsnr in known
        if ncsnr is not None
    ]
    if having:
        ceilings = [values for _, values in having]
        pictures["noise-ceiling"] = (
            "Noise ceiling of one trial as published with the data: per cent of the variance that a perfect model could explain",
            plot_brain_slices([space for space, _ in having], ceilings, top=max(5.0, float(np.quantile(np.concatenate(ceilings), 0.97)))),
        )  # fmt: skip
    kinds = (
        pd.DataFrame({s: store.trials(s)["split"].value_counts() for s in store.subjects})
        .T.reindex(columns=list(SPLITS))
        .fillna(0)
    )
    pictures["trials"] = ("Trials per person and split", plot_counts(kinds))  # fmt: skip
    template = Environment(loader=PackageLoader("mindllm.report"), autoescape=True).get_template(
        "store.html.jinja"
    )
    with atomic_directory(Path(out)) as folder:
        for name, (_, png) in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
        html = template.render(
            found=found, pictures={name: words for name, (words, _) in pictures.items()}
        )
        (folder / "index.html").write_text(html, encoding="utf-8")
    return Path(out) / "index.html"
