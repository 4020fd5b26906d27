"""Answers to questions, scored by each data set's own protocol. Every function gives what each answer earns, as an array."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

# Contractions as the VQA evaluation knows them: a missing apostrophe is put back, one at a time where there are two.
ONE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm
I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
TWO = """couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've 'ow's'at y'all'd've"""
CONTRACTIONS = {word.replace("'", ""): word for word in ONE.split()} | {
    word[: m.start()] + word[m.end() :]: word
    for word in TWO.split()
    for m in re.finditer("'", word)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # so in the official table
NUMBERS = dict(
    zip(
        [
            "none",
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
        ],
        map(str, [0, *range(11)]),
        strict=True,
    )
)
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD, COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")


def vqa_punctuation(text: str) -> str:
    """Punctuation as the VQA evaluation treats it: dropped beside a space, or anywhere if there is a 1,000; else a space."""
    out = text
    for mark in PUNCTUATION:
        gone = f"{mark} " in text or f" {mark}" in text or COMMA.search(text)
        out = out.replace(mark, "" if gone else " ")
    return PERIOD.sub("", out, count=32)  # the official code passes a flag where the count stands


def vqa_words(text: str) -> str:
    """Lower case, number words as digits, no articles, apostrophes put back."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """VQA accuracy: min(1, matches / 3) among the other nine people, averaged over the ten.

    Only the prediction is normalized whole; people's answers have their punctuation treated, and that only where they differ.
    Source: Antol et al. 2015, and github.com/GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py.
    """
    out = []
    for text, people in zip(predictions, answers, strict=True):
        said = vqa_words(vqa_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))
        given = [vqa_punctuation(a) for a in people] if len(set(people)) > 1 else list(people)
        same = [a == said for a in given]
        out.append(np.mean([min(1.0, (sum(same) - own) / 3) for own in same]))
    return np.array(out)


def short(text: str) -> str:
    """Lower case, without space around it and periods at its end."""
    return text.lower().strip().rstrip(".")


def exact(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where the prediction is one of the answers, case and final periods aside (COCO-QA, VG-QA, VSR, TallyQA)."""
    return np.array(
        [float(short(p) in map(short, a)) for p, a in zip(predictions, answers, strict=True)]
    )


def choice(
    predictions: Sequence[str], answers: Sequence[str], options: Sequence[Sequence[str]]
) -> np.ndarray:
    """1 where the right letter was chosen: `B`, `(b)`, `B. a dog`, or the words of option B (A-OKVQA)."""
    out = []
    for text, letter, texts in zip(predictions, answers, options, strict=True):
        letters = [chr(ord("A") + i) for i in range(len(texts) or 26)]
        alone = re.fullmatch(r"\W*([A-Za-z])(?:[\W].*)?", text.strip(), re.S)
        chosen = alone[1].upper() if alone and alone[1].upper() in letters else None
        for name, words in zip(letters, texts, strict=False):
            if short(text) == short(words):
                chosen = name
        out.append(float(chosen == short(letter).upper()))
    return np.array(out)


def distance(one: str, other: str) -> int:
    """Levenshtein's: the least number of insertions, deletions and substitutions."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def anls(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], threshold: float = 0.5
) -> np.ndarray:
    """Average normalized Levenshtein similarity: the best over the answers, 0 where half of it or more differs.

    Source: Biten et al. 2019, arXiv 1905.13648 (ST-VQA). Two empty texts are the same.
    """
    out = []
    for text, right in zip(predictions, answers, strict=True):
        apart = [distance(text.lower(), r.lower()) / max(len(text), len(r), 1) for r in right]
        out.append(max(1 - d if d < threshold else 0.0 for d in apart))
    return np.array(out)


def number(text: str) -> float | None:
    """The number that a text says, in digits or as a word up to ten; None: it says none."""
    words = [
        NUMBERS.get(word, word)
        for word in re.findall(r"[a-z]+|-?\d+(?:\.\d+)?", text.lower().replace(",", ""))
    ]
    found = [word for word in words if word[-1].isdigit()]
    return float(found[0]) if found else None


def squared_errors(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Squared difference of the numbers said, for RMSE (TallyQA, Acharya et al. 2019). A text without a number counts as 0."""
    said, right = ([number(text) or 0.0 for text in texts] for texts in (predictions, answers))
    return np.subtract(said, right) ** 2


def split_explanation(text: str) -> tuple[str, str]:
    """Answer and explanation of VQA-E: at `Here is the explanation:`, else at the first period; else the text is both."""
    for mark in (r"here is the explanation:", r"\."):
        if found := re.search(mark, text, re.I):
            return text[: found.start()].strip().strip("."), text[found.end() :].strip()
    return text.strip(), text.strip()


def contained(predictions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """The short answer where a full sentence contains it, else nothing: what FSVQA scores by VQA accuracy.

    Source: Shin et al. 2016, arXiv 1609.06657.
    """
    return [
        right.lower() if right.lower() in text.lower() else ""
        for text, right in zip(predictions, answers, strict=True)
    ]


def mean_per_type(
    right: np.ndarray, kinds: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """TDIUC's means over question types: arithmetic and harmonic, plain and (N-) with each answer of a type weighing the same.

    Source: Kafle & Kanan 2017, arXiv 1703.09684. A type that is never right makes the harmonic mean 0.
    """
    kind, answer = np.asarray(kinds), np.asarray(answers)
    plain, even = {}, {}
    for name in sorted(set(kinds)):
        of_kind = kind == name
        plain[name] = float(right[of_kind].mean())
        even[name] = float(
            np.mean([right[of_kind & (answer == a)].mean() for a in sorted(set(answer[of_kind]))])
        )

    def harmonic(values: Mapping[str, float]) -> float:
        return len(values) / sum(1 / v for v in values.values()) if all(values.values()) else 0.0

    out = {"arithmetic MPT": float(np.mean(list(plain.values()))), "harmonic MPT": harmonic(plain)}
    out |= {
        "N arithmetic MPT": float(np.mean(list(even.values()))),
        "N harmonic MPT": harmonic(even),
    }
    return {n: 100 * v for n, v in (out | plain).items()}
