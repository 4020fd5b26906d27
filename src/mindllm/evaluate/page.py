"""The report for the terminal, as Markdown, and as one HTML page that needs nothing from the network."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mindllm.evaluate.controls import ALL, CONDITIONS, METRICS
from mindllm.evaluate.verdict import find, p_text, percent

HEADS = {
    "exact_match": ("Exact match", "free-running text equals an accepted answer"),
    "identification_top1": ("Top 1", "the true answer is the likeliest, given the scan"),
    "identification_top5": ("Top 5", "it is among the five likeliest"),
    "identification_gain_top1": ("Top 1 by gain", "ranked by log p(answer | scan) - log p(answer | no brain)"),
    "identification_gain_top5": ("Top 5 by gain", "among the five with the largest gain"),
}
CONDITION_NAMES = {
    "brain": ("brain", "the scan itself"),
    "shuffled": ("shuffled", "another trial of the same person"),
    "no_brain": ("no brain", "the mean fMRI token"),
    "constant": ("constant", "the most frequent training answer"),
}
Rows = Sequence[Mapping[str, Any]]


def interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of a row as text."""
    return "" if row["value"] is None else f"{100 * row['ci_low']:.1f} – {100 * row['ci_high']:.1f}"


def listed_subjects(meta: Mapping[str, Any]) -> list[str]:
    """The subjects of the table: `all` first, where there is more than one."""
    people = list(meta["subjects"])
    return [ALL, *people] if len(people) > 1 else people


def examples(predictions: Sequence[Mapping[str, Any]], each: int = 3) -> dict[str, list[Mapping[str, Any]]]:
    """Trials with the largest, the middle and the smallest gain, never only the best; none is shown twice."""
    order = sorted(predictions, key=lambda p: -p["gain"])
    each = min(each, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    if len(order) < 3:
        return {"All": order}
    return {"Best": order[:each], "Median": order[middle : middle + each], "Worst": order[-each:]}


def as_table(rows: Rows, meta: Mapping[str, Any]) -> Group:
    """The verdict above a table of subject x condition, for the terminal."""
    table = Table(caption="per cent of trials, 95 % interval below", caption_justify="left", box=SIMPLE_HEAD)
    for name in ("subject", "condition", *(HEADS[metric][0] for metric in METRICS)):
        table.add_column(name)
    for subject in listed_subjects(meta):
        for condition in CONDITIONS:
            found = [find(rows, metric, condition, subject) for metric in METRICS]
            cells = [f"{percent(row['value'])}\n[dim]{interval(row)}[/dim]" for row in found]
            style, last = ("bold" if condition == "brain" else None), condition == CONDITIONS[-1]
            label = escape(subject) if condition == "brain" else ""
            table.add_row(label, CONDITION_NAMES[condition][0], *cells, style=style, end_section=last)
    return Group(*[f"{escape(sentence)}\n" for sentence in meta["verdict"]], table)


def as_markdown(rows: Rows, predictions: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    """The verdict, the table, examples, and how it was measured."""
    lines = [
        f"# Evaluation of {meta['model']['name']} on {meta['data']['store']}",
        "",
        *[f"{s}\n" for s in meta["verdict"]],
    ]
    lines += [
        "| subject | condition | " + " | ".join(HEADS[m][0] for m in METRICS) + " |",
        "|---|---|" + "---|" * len(METRICS),
    ]
    for subject in listed_subjects(meta):
        for condition in CONDITIONS:
            cells = []
            for metric in METRICS:
                row = find(rows, metric, condition, subject)
                p = f", {p_text(row['p_value'], meta['permutations'])}" if "p_value" in row else ""
                cells.append("unknown" if row["value"] is None else f"{percent(row['value'])} ({interval(row)}{p})")
            lines.append(f"| {subject} | {CONDITION_NAMES[condition][0]} | {' | '.join(cells)} |")
    first = find(rows, METRICS[1], subject=ALL)
    lines += [
        "",
        f"Per cent of trials, 95 % interval in brackets. Chance among {len(meta['candidates'])} answers: {percent(first['chance'])} (top 1), {percent(find(rows, METRICS[2])['chance'])} (top 5).",
    ]
    lines += [
        "",
        "## Examples",
        "",
        "Chosen by the gain of the true answer, log p(truth | scan) - log p(truth | no brain), in nats.",
        "",
    ]
    lines += ["| | subject | true | decoded | gain | rank of the truth |", "|---|---|---|---|---|---|"]
    for kind, some in examples(predictions).items():
        lines += [
            f"| {kind} | {p['subject']} | {cell(p['truth'])} | {cell(p['decoded'])} | {p['gain']:+.2f} | {p['rank']:g} |"
            for p in some
        ]
    lines += ["", "## How it was measured", "", *[f"- **{name}**: {text}" for name, text in method(meta)]]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text in a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def method(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was measured, as (name, text)."""
    model, data = meta["model"], meta["data"]
    trained = model["trained_on_subjects"]
    ties = (
        f" (one of {meta['constant_ties']} equally frequent ones: scored as a random one of them)"
        if meta["constant_ties"] > 1
        else ""
    )
    llm = f"{model['llm']} (fingerprint {model['llm_fingerprint']}), frozen"
    return [
        (
            "Model",
            f"{model['name']}; language model {llm}; trained on {trained if isinstance(trained, str) else ', '.join(trained)}; store {model['trained_on_store']}; seed {model['training_seed']}",
        ),
        ("Data", f"{data['store']}. {data['origin']}. Licence: {data['licence']}"),
        (
            "Trials",
            f"{sum(p['trials'] for p in meta['subjects'].values())} single trials, none averaged and none left out; see the table of people",
        ),
        ("Question", f"“{' '.join(meta['question'].split())}” ({meta['question_origin']})"),
        (
            "Candidates",
            f"{len(meta['candidates'])}: the first accepted answer of every evaluated stimulus; the truth is the stimulus' own. Ties count in expectation, as if broken at random",
        ),
        (
            "Generation",
            f"free-running, greedy unless the options say otherwise: {meta['generate_options'] or 'default options'}",
        ),
        (
            "Shuffled",
            f"the same model reading another trial of the same person: the exact mean over all permutations; the interval is where 95 % of {meta['permutations']:,} single shuffles fall, and p is the share of shuffles that do as well as the brain (one-sided)",
        ),
        (
            "No brain",
            f"the mean fMRI token of training in place of the scan. It says: “{meta['no_brain_text']}”. Its gain is zero for every answer, so it stands at chance by definition",
        ),
        (
            "Constant",
            f"the most frequent training answer: “{meta['constant_text']}”{ties}; candidates are ranked by their frequency in training",
        ),
        (
            "Intervals",
            f"95 %, percentile bootstrap of {meta['bootstrap_resamples']:,} resamples over stimuli; all trials of a stimulus, of all people, stay together. An interval of no width at 0 means that no hit was there to resample, not certainty",
        ),
        ("Seed and time", f"seed {meta['seed']}; {meta['time']}; {meta['seconds']} s"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in meta["versions"].items())),
    ]


def as_html(
    rows: Rows, predictions: Sequence[Mapping[str, Any]], meta: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> str:
    """One page: verdict, table, examples, brain pictures, method; styles and pictures are inside it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "interval": interval}
    template = environment.from_string(
        files("mindllm.evaluate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    encoded = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()}
    return template.render(
        rows=rows, meta=meta, pictures=encoded, subjects=listed_subjects(meta), conditions=CONDITIONS, metrics=METRICS, heads=HEADS, names=CONDITION_NAMES,
        find=lambda metric, condition, subject: find(rows, metric, condition, subject), p_text=lambda p: p_text(p, meta["permutations"]),
        examples=examples(predictions), method=method(meta), whose=list(dict.fromkeys(name.split("|")[1] for name in pictures)),
    )  # fmt: skip
