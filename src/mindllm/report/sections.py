"""The report as sections of tables and pictures, the same for the terminal, Markdown and HTML."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.text_scores import TEXT_METRICS
from mindllm.report.methods_text import methods_text
from mindllm.report.summary import get_row, percent
from mindllm.report.tables import Cell, ScoreTables, Section, Table, interval


class ReportBuilder(ScoreTables):
    """All sections, from report.json's content."""

    def sections(self) -> list[Section]:
        """All of them, in order; those without content are left out."""
        parts = [
            self.scores(), self.persons(), self.texts(), self.protocols(), self.calibration(), self.confusion(),
            self.ceiling(), self.ablation(), self.examples(), self.brains(), self.published(), self.missing(), self.method(),
        ]  # fmt: skip
        return [part for part in parts if part]

    def calibration(self) -> Section:
        """Whether the evidence tells right from wrong."""
        names = {
            "decoded": "free-running text, by its evidence",
            "likeliest": "likeliest candidate, by its gain",
            "probability": "likeliest candidate, by its probability",
        }
        lines = []
        for key, words in names.items():
            part = self.meta["calibration"][key]
            value = part["auroc"]
            cell = (
                Cell("–", "all right, or none")
                if value is None
                else Cell(
                    f"{value['value']:.2f}", f"{value['ci_low']:.2f} – {value['ci_high']:.2f}"
                )
            )
            lines.append(("", [Cell(words), cell]))
        error = self.meta["calibration"]["probability"]["expected_calibration_error"]
        words = f"Evidence is log p(answer | scan) − log p(answer | no brain), in nats; every decoded answer carries it. AUROC: how often a right answer has more than a wrong one (0.5: it tells nothing). The candidates' probabilities are off by {percent(error)} on average (expected calibration error)."
        table = Table(
            "95 % interval: bootstrap over trials.", [Cell("What is right"), Cell("AUROC")], [lines]
        )
        return Section(
            "Does the evidence tell right from wrong?",
            [words],
            [table],
            [
                (
                    "calibration",
                    "all",
                    "Share of trials that are right, in bins of equal count, with Wilson's 95 % interval.",
                )
            ],
        )

    def confusion(self) -> Section | None:
        """By category."""
        part = self.meta["confusion"]
        if not part:
            return None
        words = f"Categories: {part['origin']}. The likeliest candidate is of the true category in {percent(part['right'])} of trials; the same answers, given to random trials, would be in {percent(part['chance_level'])}."
        return Section(
            "Confusion by category",
            [words],
            pictures=[
                (
                    "confusion",
                    "all",
                    "True category (rows) by that of the likeliest candidate (columns); per cent of the row.",
                )
            ],
        )

    def ceiling(self) -> Section:
        """What the data would allow."""
        people = self.meta["noise_ceiling"]
        if not people:
            return Section(
                "Noise ceiling",
                [
                    "No stimulus was shown twice to one person, so a noise ceiling cannot be estimated from this data."
                ],
            )
        lines = [
            ("", [Cell(s), Cell(f"{c['repeats']:.1f}"), Cell(percent(c["explainable_median"])), Cell(percent(c["reliable_voxels"])), Cell(percent(c["own_repeats_top1"]), interval(c))])
            for s, c in people.items()
        ]  # fmt: skip
        head = [
            Cell("Subject"),
            Cell("Trials per stimulus"),
            Cell("Explainable variance", "median voxel, single trials"),
            Cell("Reliable voxels", "more than 10 % explainable"),
            Cell(
                "Own repeats", "nearest pattern among this person's other trials names the answer"
            ),
        ]
        return Section(
            "Noise ceiling",
            (),
            [
                Table(
                    "From the repeats of the evaluated stimuli; 95 % interval over answers. A reference, no bound: all voxels count alike here, and a decoder that weighs them may do better.",
                    head,
                    [lines],
                )
            ],
        )

    def ablation(self) -> Section | None:
        """What is lost without a region."""
        if self.meta["ablation"] is None:
            return None
        lines = [
            ("", [Cell(r["region"].replace("_", " "), r["parcellation"]), Cell(percent(r["voxel_share"])), *(Cell(f"{100 * r[f'{m}_loss']:+.1f}", f"{100 * r[f'{m}_low']:+.1f} to {100 * r[f'{m}_high']:+.1f}") for m in ("top1", "2way"))])
            for r in self.meta["ablation"]
        ]  # fmt: skip
        head = [
            Cell("Without"),
            Cell("Share of the voxels"),
            Cell("Loss, top 1", "points"),
            Cell("Loss, pairwise", "points"),
        ]
        words = "The regions that the tokens look at most were left out one at a time, as if they had not been measured. Regions share information, so a small loss does not mean that a region holds none."
        return Section(
            "Without a region",
            [words],
            [
                Table(
                    "Points of identification lost; 95 % interval over people and answers.",
                    head,
                    [lines],
                )
            ],
        )

    def examples(self) -> Section:
        """Best, median and worst."""
        head = [
            Cell("Subject"),
            Cell("Truly seen"),
            Cell("Decoded, free-running"),
            Cell("Evidence", "nats"),
            Cell("Likeliest candidate"),
            Cell("Gain of the truth", "nats"),
            Cell("Rank of the truth", f"of {len(self.meta['candidates'])}"),
        ]
        tables = []
        for kind, some in examples(self.predictions).items():
            lines = [
                ("", [Cell(p["subject"], f"trial {p['trial_index']}"), Cell(p["truth"]), Cell((p["decoded"] or "(nothing)") + " ✓" * p["exact_match"]), Cell(f"{p['evidence']:+.1f}"), Cell(p["likeliest"][0] + " ✓" * (p["likeliest"][0] == p["truth"])), Cell(f"{p['gain']:+.2f}"), Cell(f"{p['rank']:g}")])
                for p in some
            ]  # fmt: skip
            tables.append(Table(f"{kind}.", head, [lines]))
        words = f"Chosen by the gain of the true answer, log p(truth | scan) − log p(truth | no brain): the best, the middle and the worst of all {len(self.predictions)} trials. Above 0, the scan speaks for the truth. All trials are in predictions.jsonl."
        return Section("Examples", [words], tables)

    def brains(self) -> Section | None:
        """Where voxels are, and where the tokens look."""
        if not self.whose:
            return None
        many = len(self.people) > 1
        pictures = []
        for name in self.whose:
            person = self.people[0] if name == ALL_SUBJECTS else name
            voxels = (
                "All evaluated people together: the stronger the colour, the more measured voxels lie along the line of sight."
                if name == ALL_SUBJECTS and many
                else f"{person}: {self.meta['subjects'][person]['voxels']} voxels."
            )
            pictures += [
                ("voxels", name, voxels),
                (
                    "attention",
                    name,
                    "Mean over all evaluated people." if name == ALL_SUBJECTS and many else person,
                ),
            ]
        lines = [
            ("", [Cell(r["region"].replace("_", " "), r["parcellation"]), Cell(percent(r["attention"])), Cell(percent(r["voxel_share"])), Cell(f"{r['times_uniform']:.2f}")])
            for r in self.meta.get("attention_by_region", [])
        ]  # fmt: skip
        head = [
            Cell("Region"),
            Cell("Share of the attention"),
            Cell("Share of the voxels"),
            Cell("Times uniform"),
        ]
        tables = (
            [
                Table(
                    "Regions with the most attention, mean over the evaluated people.",
                    head,
                    [lines],
                )
            ]
            if lines
            else []
        )
        words = "Attention per voxel, averaged over the encoder's queries; 1 = as much as if every voxel were looked at alike. The colours end at the 97th percentile. The map depends on the person's anatomy and the weights, not on the trial. It shows where the model listens, not what it would lose without that place."
        return Section("Where the voxels are, and where the tokens look", [words], tables, pictures)

    def published(self) -> Section | None:
        """The literature, for scale."""
        if not self.content["texts"]:
            return None
        data = json.loads(
            files("mindllm.report").joinpath("published_results.json").read_text(encoding="utf-8")
        )
        own = {m: get_row(self.content["texts"], m)["value"] for m in TEXT_METRICS}
        lines = [
            (
                "fmri",
                [
                    Cell("this report", self.meta["data"]["store"]),
                    Cell("all"),
                    *(Cell(f"{own[m]:.2f}") for m in TEXT_METRICS),
                ],
            )
        ]
        numbers = list(data["sources"])
        for r in data["caption"]:
            note = f"{r['setting']} [{numbers.index(r['source']) + 1}]"
            lines.append(
                (
                    "",
                    [
                        Cell(r["system"], note),
                        Cell(r["subject"]),
                        *(
                            Cell(f"{r['scores'][m]:.2f}" if m in r["scores"] else "–")
                            for m in TEXT_METRICS
                        ),
                    ],
                )
            )
        words = f"Published scores on {data['data']}, {data['scores_are']}. They can be compared with this report only where it is about the same data, people and references; on other data they are for scale alone. None of them comes with controls."
        sources = "Sources: " + "; ".join(
            f"[{i + 1}] {text}" for i, text in enumerate(data["sources"].values())
        )
        return Section(
            "Beside published results",
            [words, sources],
            [Table("", [Cell("System"), Cell("Subject"), *map(Cell, TEXT_METRICS)], [lines])],
            folded=True,
        )

    def missing(self) -> Section | None:
        """Controls that were not measured, and why."""
        if not self.meta["missing"]:
            return None
        lines = [
            ("", [Cell(CONDITIONS[c].label), Cell(reason)])
            for c, reason in self.meta["missing"].items()
        ]
        return Section("Not measured", (), [Table("", [Cell("Condition"), Cell("Why")], [lines])])

    def method(self) -> Section:
        """How it was measured, and whom it was measured in."""
        head = [
            Cell(name)
            for name in (
                "Subject",
                "Trials",
                "Split",
                "Stimuli",
                "Seen in training",
                "Person seen in training",
                "Voxels",
                "Normalized with",
            )
        ]
        lines = []
        for name, p in self.meta["subjects"].items():
            known = {True: "yes", False: "no"}.get(p["in_training"], str(p["in_training"]))
            known += ", but chose the weights" if p["chose_checkpoint"] else ""
            texts = (
                name,
                p["trials"],
                p["split"],
                p["stimuli"],
                p["stimuli_seen_in_training"],
                known,
                p["voxels"],
                p["normalized_with"],
            )
            lines.append(("", [Cell(str(text)) for text in texts]))
        people = Table("The people, their trials, and what the model knew of them.", head, [lines])
        steps = Table(
            "",
            [Cell("What"), Cell("How")],
            [[("", [Cell(name), Cell(text)]) for name, text in methods_text(self.meta)]],
        )
        return Section("How it was measured", (), [people, steps])


def examples(
    predictions: Sequence[Mapping[str, Any]], each: int = 3
) -> dict[str, list[Mapping[str, Any]]]:
    """Trials with the largest, the middle and the smallest gain, never only the best; none is shown twice."""
    order = sorted(predictions, key=lambda p: -p["gain"])
    each = min(each, max(1, len(order) // 3))
    middle = (len(order) - each) // 2
    if len(order) < 3:
        return {"All": order}
    return {"Best": order[:each], "Median": order[middle : middle + each], "Worst": order[-each:]}
