"""The verdict in plain sentences, computed from the numbers and from nothing else."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS, Kind

ALPHA = 0.05
MAIN = "identification_top1"
CONTROLS: tuple[Kind, ...] = ("shuffled", "blind", "trained")
Rows = Sequence[Mapping[str, Any]]


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "unknown" if value is None else f"{100 * value:.1f} %"


def p_text(p: float, permutations: int) -> str:
    """A p-value as text; the smallest that the permutations can show is a bound."""
    return f"p < {1.001 / permutations:.1g}" if p <= 1.5 / (permutations + 1) else f"p = {p:.2g}"


def get_row(
    rows: Rows, metric: str, condition: str = "fmri", subject: str | None = None
) -> Mapping[str, Any]:
    """The row of a metric and condition; of one person, or of everybody."""
    return find_rows(rows, metric, condition, subject)[0]


def find_rows(
    rows: Rows, metric: str, condition: str, subject: str | None = None
) -> list[Mapping[str, Any]]:
    """That row, if there is one."""
    return [
        row
        for row in rows
        if (row["metric"], row["condition"], row["subject"])
        == (metric, condition, subject or ALL_SUBJECTS)
    ]


def controls_below_model(
    rows: Rows, metric: str, kinds: Sequence[Kind] = CONTROLS, subject: str | None = None
) -> tuple[list[str], list[str]]:
    """The conditions of these kinds that the brain is above (p < 0.05 against each, so all at once), and those it is not."""
    above: list[str] = []
    not_above: list[str] = []
    for name, condition in CONDITIONS.items():
        for row in find_rows(rows, metric, name, subject):
            if condition.kind in kinds and row["value"] is not None and "p_value" in row:
                text = f"{condition.words} ({percent(row['value'])})"
                (above if row["p_value"] < ALPHA else not_above).append(text)
    return above, not_above


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def summarize_findings(rows: Rows, texts: Rows, meta: Mapping[str, Any]) -> list[str]:
    """Sentences: identification against its controls and simpler methods, people, free-running text, and how clean the test is."""
    main, count = get_row(rows, MAIN), len(meta["candidates"])
    measured = f"Identification from the scan: the true answer came first among {count} in {percent(main['value'])} of {main['n']} trials (95 % interval {percent(main['ci_low'])} to {percent(main['ci_high'])}; chance {percent(main['chance_level'])})"
    above, not_above = controls_below_model(rows, MAIN)
    p = p_text(largest_p(rows, MAIN), meta["permutations"])
    if not not_above:
        first = (
            f"{measured}, above its controls: {joined(above)}; {p} against each, in these people."
        )
    else:
        though = f", though above {joined(above)}" if above else ""
        first = f"{measured}: not above its controls. It cannot be called better than {joined(not_above)}{though} (largest {p})."
    return [
        first, *simpler_sentence(rows), *people_sentence(rows, meta), text_sentence(rows, texts, meta),
        *evidence_sentence(meta), *ceiling_sentence(meta), *validation_sentence(meta), seen_sentence(meta),
    ]  # fmt: skip


def largest_p(rows: Rows, metric: str) -> float:
    """The largest p against a control."""
    return max(
        row["p_value"]
        for name, condition in CONDITIONS.items()
        for row in find_rows(rows, metric, name)
        if condition.kind in CONTROLS and "p_value" in row
    )


def simpler_sentence(rows: Rows) -> list[str]:
    """Whether simpler methods do as well."""
    parts = []
    for metric, name in (
        (MAIN, "by top 1"),
        ("identification_2way", "by pairwise identification"),
    ):
        above, not_above = controls_below_model(rows, metric, ("baseline",))
        own = percent(get_row(rows, metric)["value"])
        said = [f"above {joined(above)}"] * bool(above) + [f"not above {joined(not_above)}"] * bool(
            not_above
        )
        parts += [f"{name} ({own}) it is {', '.join(said)}"] * bool(said)
    return (
        [f"Beside simpler methods, trained on the same trials: {'; '.join(parts)}."]
        if parts
        else []
    )


def people_sentence(rows: Rows, meta: Mapping[str, Any]) -> list[str]:
    """In how many people identification is above shuffled scans, and whether in people at large; nothing for one person."""
    people = list(meta["subjects"])
    if len(people) == 1:
        return []
    held = [
        subject for subject in people if get_row(rows, MAIN, subject=subject)["p_value"] < ALPHA
    ]
    values = ", ".join(
        f"{subject} {percent(get_row(rows, MAIN, subject=subject)['value'])}"
        for subject in people[:12]
    )
    more = f", and {len(people) - 12} more in the table" if len(people) > 12 else ""
    p = get_row(rows, MAIN, "shuffled_trials").get("group_p_value")
    at_large = (
        f"; in people at large, brain above shuffled scans: p = {p:.2g} (one-sided t test over {len(people)} people)"
        if p is not None
        else ""
    )
    return [
        f"Taken one by one, {len(held)} of {len(people)} people are above their shuffled scans (p < {ALPHA}, each tested alone): {values}{more}{at_large}."
    ]


def text_sentence(rows: Rows, texts: Rows, meta: Mapping[str, Any]) -> str:
    """How often the free-running text was right, and where BLEU and CIDEr stand beside their strongest control."""
    value = get_row(rows, "exact_match")["value"]
    above, not_above = controls_below_model(rows, "exact_match")
    p = p_text(largest_p(rows, "exact_match"), meta["permutations"])
    text = f"Free-running text equalled an accepted answer in {percent(value)} of trials"
    said = (
        f"{text}, above {joined(above)} ({p} against each)"
        if not not_above
        else f"{text}: not above {joined(not_above)} (largest {p})"
    )
    return (
        f"{said}; {joined([*map(partial(strongest, texts), ('BLEU-1', 'CIDEr'))])}."
        if texts
        else f"{said}."
    )


def strongest(texts: Rows, metric: str) -> str:
    """A text score beside the control that earns most."""
    own = get_row(texts, metric)["value"]
    controls = {
        c: get_row(texts, metric, c)
        for c in CONDITIONS
        if CONDITIONS[c].kind in CONTROLS and find_rows(texts, metric, c)
    }
    best = max(controls, key=lambda c: controls[c]["value"])
    ties = [CONDITIONS[c].words for c in controls if controls[c]["difference_ci_low"] <= 0]
    if ties:
        return (
            f"{metric} is {own:.1f}, not above {joined(ties)} (up to {controls[best]['value']:.1f})"
        )
    return f"{metric} is {own:.1f}, above every control (the strongest is {CONDITIONS[best].words}, {controls[best]['value']:.1f})"


def evidence_sentence(meta: Mapping[str, Any]) -> list[str]:
    """Whether the evidence tells right from wrong."""
    found = meta["calibration"]["decoded"]["auroc"]
    if found is None:
        return []
    text = (
        f"AUROC {found['value']:.2f}, 95 % interval {found['ci_low']:.2f} to {found['ci_high']:.2f}"
    )
    if found["ci_low"] > 0.5:
        return [f"The evidence of a decoded text tells right from wrong ({text}; 0.5: not at all)."]
    return [
        f"The evidence of a decoded text does not tell whether it is right ({text}; 0.5: not at all)."
    ]


def ceiling_sentence(meta: Mapping[str, Any]) -> list[str]:
    """How far the data would allow one to go."""
    people = meta.get("noise_ceiling", {})
    values = [
        f"{subject} {percent(found['own_repeats_top1'])}" for subject, found in people.items()
    ][:12]
    return (
        [
            f"For scale, and no upper bound: a person's own other repeats name the answer by nearest pattern in {', '.join(values)}."
        ]
        if values
        else []
    )


def validation_sentence(meta: Mapping[str, Any]) -> list[str]:
    """A warning where the evaluated trials chose the model's weights; nothing otherwise."""
    people = [name for name, person in meta["subjects"].items() if person["chose_checkpoint"]]
    return (
        [
            f"Not a clean test: trials of {joined(people)} were validation data, by which this model's weights were chosen."
        ]
        if people
        else []
    )


def seen_sentence(meta: Mapping[str, Any]) -> str:
    """Whether people and stimuli were seen in training."""
    states = [person["in_training"] for person in meta["subjects"].values()]
    fresh, people = sum(state is False for state in states), len(states)
    if "unknown" in states:
        who = "Whether these people were seen in training is unknown, for the model's card does not say"
    elif fresh == people:
        who = (
            "The evaluated person was not seen in training"
            if people == 1
            else f"None of the {people} evaluated people was seen in training"
        )
    else:
        who = f"{people - fresh} of {people} evaluated people were seen in training, with other trials"
    seen, total = meta["stimuli_seen_in_training"], meta["stimuli"]
    if seen == "unknown":
        return f"{who}. Whether the stimuli were seen in training is unknown, for the model's card does not list them."
    if not seen:
        return f"{who}; none of the {total} evaluated stimuli was."
    count = (
        f"all {total} evaluated stimuli were"
        if seen == total
        else f"{seen} of the {total} evaluated stimuli ({percent(seen / total)}) were"
    )
    if fresh == people:
        return f"{who}, but {count}, by other people: this is identification of seen stimuli in unseen people. It says nothing about new stimuli."
    return f"{who}, and {count} seen in training too: this score is partly about stimuli already seen, not about new ones."
