"""The verdict in plain sentences, computed from the numbers and from nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from mindllm.evaluate.controls import ALL

ALPHA = 0.05
MAIN = "identification_top1"
NAMES = {"shuffled": "shuffled scans", "no_brain": "no brain", "constant": "the constant answer"}
Rows = Sequence[Mapping[str, Any]]


def percent(value: float | None) -> str:
    """A share as a percentage, with a digit more where it is small."""
    return "unknown" if value is None else f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def p_text(p: float, permutations: int) -> str:
    """A p-value as text; the smallest that the permutations can show is a bound."""
    return f"p < {1.001 / permutations:.1g}" if p <= 1.5 / (permutations + 1) else f"p = {p:.2g}"


def find(rows: Rows, metric: str, condition: str = "brain", subject: str = ALL) -> Mapping[str, Any]:
    """The row of a metric, condition and subject."""
    return next(
        row for row in rows if (row["metric"], row["condition"], row["subject"]) == (metric, condition, subject)
    )


def beaten(rows: Rows, metric: str, subject: str = ALL) -> tuple[list[str], list[str]]:
    """The controls that the brain is above, and those it is not: by permutation for shuffled scans, else by the interval of the difference."""
    above: list[str] = []
    not_above: list[str] = []
    for condition, name in NAMES.items():
        row = find(rows, metric, condition, subject)
        if row["value"] is None:
            continue
        sure = (
            find(rows, metric, subject=subject)["p_value"] < ALPHA
            if condition == "shuffled"
            else row["difference_low"] > 0
        )
        (above if sure else not_above).append(f"{name} ({percent(row['value'])})")
    return above, not_above


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def verdict(rows: Rows, meta: Mapping[str, Any]) -> list[str]:
    """Sentences: identification against all controls, how many people it holds for, and free-running text."""
    main, count = find(rows, MAIN), len(meta["candidates"])
    p = p_text(main["p_value"], meta["permutations"])
    measured = f"Identification from the scan: the true answer came first among {count} in {percent(main['value'])} of {main['n']} trials (95 % interval {percent(main['ci_low'])} to {percent(main['ci_high'])}; chance {percent(main['chance'])})"
    above, not_above = beaten(rows, MAIN)
    if not not_above:
        first = f"{measured}, above {joined(above)}; {p} by permutation of the scans."
    else:
        though = f", though above {joined(above)}" if above else ""
        first = f"{measured}: not above its controls. It cannot be called better than {joined(not_above)}{though}; {p} by permutation of the scans."
    return [first, *people_sentence(rows, meta), text_sentence(rows, meta), *validation_sentence(meta)]


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


def people_sentence(rows: Rows, meta: Mapping[str, Any]) -> list[str]:
    """In how many people identification is above shuffled scans; nothing for one person."""
    people = list(meta["subjects"])
    if len(people) == 1:
        return []
    held = [subject for subject in people if find(rows, MAIN, subject=subject)["p_value"] < ALPHA]
    values = ", ".join(f"{subject} {percent(find(rows, MAIN, subject=subject)['value'])}" for subject in people[:12])
    more = f", and {len(people) - 12} more in the table" if len(people) > 12 else ""
    return [
        f"Taken one by one, {len(held)} of {len(people)} people are above their shuffled scans (p < {ALPHA}, each tested alone): {values}{more}."
    ]


def text_sentence(rows: Rows, meta: Mapping[str, Any]) -> str:
    """How often the free-running text was right."""
    row = find(rows, "exact_match")
    above, not_above = beaten(rows, "exact_match")
    p = p_text(row["p_value"], meta["permutations"])
    text = f"Free-running text equalled an accepted answer in {percent(row['value'])} of trials"
    return (
        f"{text}, above {joined(above)} ({p})."
        if not not_above
        else f"{text}: not above {joined(not_above)} ({p} against shuffled scans)."
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
    return (
        f"{who}, and {count} seen in training too: this score is partly about stimuli already seen, not about new ones."
    )
