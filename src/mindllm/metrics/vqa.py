"""Answers to questions, scored by each data set's own protocol, one score per answer."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

# Contractions of the VQA evaluation: a missing apostrophe is put back, of two one at a time.
ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've
o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
someone's something'd something'll that's there'd there're there's they'd they'll they're
they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd
you'll you're you've
"""
TWO_APOSTROPHES = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
'ow's'at y'all'd've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in ONE_APOSTROPHE.split()} | {
    word[: match.start()] + word[match.end() :]: word
    for word in TWO_APOSTROPHES.split()
    for match in re.finditer("'", word)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # as in the official table
NUMBER_WORDS = "none zero one two three four five six seven eight nine ten"
NUMBERS = dict(zip(NUMBER_WORDS.split(), map(str, [0, *range(11)]), strict=True))
# Of counts, in which the VQA evaluation has no part.
TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
COUNTS = {word: int(digits) for word, digits in NUMBERS.items()}
COUNTS |= {word: count for count, word in enumerate(TEENS.split(), 11)}
COUNTS |= {word: 10 * count for count, word in enumerate(TENS.split(), 2)}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6}
MAX_COUNT = 1e12
# A letter that is stated as the answer, and one that is another.
STATED_LETTER = re.compile(
    r"""\W*(?:(?:the\ )?(?:correct\ |right\ |best\ )?(?:answer|option|choice)(?:\ is)?\W*)?
    (?:[(\[]\s*([a-z])\s*[)\]]        # (B) a cat
    |([a-z])["'*]*(?=\s*(?:$|[.:;,)\n])|\s+[-–—]\s))  # B; B. a cat; B) a cat; B - a cat
    """,
    re.IGNORECASE | re.VERBOSE,
)
OTHER_LETTER = re.compile(
    r"[\s.,;:/)]*(?:and\b|or\b|&)?\s*[(\[]?([a-z])[)\]]?\s*(?:$|[.,;:)])", re.IGNORECASE
)
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD, COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")
MAX_PERIODS = 32  # the official code passes a flag where the count stands


def vqa_punctuation(text: str) -> str:
    """Treat punctuation as the VQA evaluation does.

    It is dropped beside a space, or anywhere if there is a 1,000; else it becomes a space.
    """
    result = text
    for mark in PUNCTUATION:
        dropped = f"{mark} " in text or f" {mark}" in text or COMMA.search(text)
        result = result.replace(mark, "" if dropped else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


def vqa_words(text: str) -> str:
    """Put a text in lower case, number words as digits, no articles, apostrophes put back."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Compute VQA accuracy: min(1, matches / 3) among nine annotators, averaged over the ten.

    Parameters
    ----------
    predictions : sequence of str, length B
        Normalized whole.
    answers : sequence of sequence of str, length B
        Ten annotators' answers each. Only their punctuation is treated, where they differ.

    Returns
    -------
    ndarray of shape (B,)
        In [0, 1].

    References
    ----------
    Antol et al. 2015, ICCV; github.com/GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py.

    Examples
    --------
    >>> vqa(["two"], [["2"] * 10])
    array([1.])
    """
    accuracies = []
    for text, annotated in zip(predictions, answers, strict=True):
        plain = text.replace("\n", " ").replace("\t", " ").strip()
        prediction = vqa_words(vqa_punctuation(plain))
        differ = len(set(annotated)) > 1
        targets = [vqa_punctuation(answer) if differ else answer for answer in annotated]
        matches = [target == prediction for target in targets]
        scores = [min(1.0, (sum(matches) - match) / 3) for match in matches]
        accuracies.append(np.mean(scores))
    return np.array(accuracies)


def short(text: str) -> str:
    """Put a text in lower case, without space around it and periods at its end."""
    return text.lower().strip().rstrip(".")


def exact(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Return 1 where a prediction is one of the answers, case and final periods aside, (B,).

    So COCO-QA, VG-QA, VSR and TallyQA are scored.
    """
    return np.array(
        [float(short(p) in map(short, a)) for p, a in zip(predictions, answers, strict=True)]
    )


def choice(
    predictions: Sequence[str], answers: Sequence[str], options: Sequence[Sequence[str]]
) -> np.ndarray:
    """Return 1 where the correct letter was chosen (A-OKVQA), (B,).

    Parameters
    ----------
    predictions : sequence of str, length B
        `B`, `(b)`, `B. a dog`, `The answer is B`, or the words of option B. A text that only
        begins with a letter, such as `A dog`, or states two, chooses none.
    answers : sequence of str, length B
        Correct letters.
    options : sequence of sequence of str, length B
        Texts of the options; may be empty.
    """
    scores = []
    for text, letter, texts in zip(predictions, answers, options, strict=True):
        letters = [chr(ord("A") + i) for i in range(len(texts) or 26)]
        chosen = stated_letter(text.strip(), letters)
        for name, words in zip(letters, texts, strict=False):
            if short(text) == short(words):
                chosen = name
        scores.append(float(chosen == short(letter).upper()))
    return np.array(scores)


def stated_letter(text: str, letters: Sequence[str]) -> str | None:
    """Return the letter that a text states as its answer; None where it states none, or two."""
    match = STATED_LETTER.match(text)
    letter = (match[1] or match[2]).upper() if match else ""
    if not match or letter not in letters:
        return None
    other = OTHER_LETTER.match(text, match.end())
    return None if other and other[1].upper() in letters and other[1].upper() != letter else letter


def distance(one: str, other: str) -> int:
    """Return Levenshtein's distance: the least number of insertions, deletions, substitutions."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def anls(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], threshold: float = 0.5
) -> np.ndarray:
    """Compute the average normalized Levenshtein similarity.

    Parameters
    ----------
    predictions : sequence of str, length B
        Texts.
    answers : sequence of sequence of str, length B
        Accepted answers; the most similar one counts.
    threshold : float
        0 where this fraction of the text or more differs.

    Returns
    -------
    ndarray of shape (B,)
        In [0, 1]. Two empty texts are the same.

    References
    ----------
    Biten et al. 2019, Scene text visual question answering (ST-VQA), arXiv 1905.13648.
    """
    scores = []
    for text, accepted in zip(predictions, answers, strict=True):
        distances = [
            distance(text.lower(), answer.lower()) / max(len(text), len(answer), 1)
            for answer in accepted
        ]
        scores.append(max(1 - d if d < threshold else 0.0 for d in distances))
    return np.array(scores)


def number(text: str) -> float | None:
    """Read the first number that a text names, in digits or in words.

    Parameters
    ----------
    text : str
        Such as `There are twenty-one.`

    Returns
    -------
    float or None
        The number; None where there is none, or one of MAX_COUNT or more, which counts nothing.

    Examples
    --------
    >>> number("twenty-one"), number("half a dozen dogs"), number("2 or 3"), number("many")
    (21.0, 6.0, 2.0, None)
    """
    plain = text.lower().replace(",", "").replace("half a dozen", "six")
    words = re.findall(r"[a-z]+|-?\d+(?:\.\d+)?", plain)
    for start, word in enumerate(words):
        if word in COUNTS or word in SCALES or word[-1].isdigit():
            value = read_count(words[start:])
            return value if abs(value) < MAX_COUNT else None
    return None


def read_count(words: Sequence[str]) -> float:
    """Read the number that words begin with, such as two hundred and five, or 3 dozen."""
    total, part, room = 0.0, 0.0, math.inf  # room: what a further word must be below
    for n, word in enumerate(words):
        following = COUNTS.get(words[n + 1], math.inf) if n + 1 < len(words) else math.inf
        if word[-1].isdigit() and n == 0:
            part, room = float(word), 0
        elif word in COUNTS and COUNTS[word] < room:
            part += COUNTS[word]
            room = 10 if COUNTS[word] >= 20 else 0
        elif word == "hundred" and part < 10:
            part, room = 100 * (part or 1), 100
        elif word in SCALES and word != "hundred":
            total, part, room = total + SCALES[word] * (part or 1), 0.0, 1000
        elif word != "and" or room < 100 or following >= room:
            break
    return total + part


def squared_errors(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Return squared differences of the numbers named (B,), for RMSE.

    A text without a number counts as 0.

    References
    ----------
    TallyQA: Acharya, Kafle & Kanan 2019, arXiv 1810.12440.
    """
    predicted, target = (
        [number(text) or 0.0 for text in texts] for texts in (predictions, answers)
    )
    return np.subtract(predicted, target) ** 2


def split_explanation(text: str) -> tuple[str, str]:
    """Return answer and explanation of VQA-E.

    They part at `Here is the explanation:`, else at the first period; else the text is both.
    """
    for mark in (r"here is the explanation:", r"\."):
        if match := re.search(mark, text, re.I):
            return text[: match.start()].strip().strip("."), text[match.end() :].strip()
    return text.strip(), text.strip()


def contained(predictions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Return the short answer where a full sentence contains it as whole words, else "".

    This is what FSVQA scores by VQA accuracy.

    References
    ----------
    Shin, Ushiku & Harada 2016, arXiv 1609.06657.

    Examples
    --------
    >>> contained(["No, it is snow.", "It is snow."], ["no", "no"])
    ['no', '']
    """
    return [
        answer.lower()
        if re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", text.lower())
        else ""
        for text, answer in zip(predictions, answers, strict=True)
    ]


def mean_per_type(
    scores: np.ndarray, kinds: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """Compute TDIUC's means over question types, in percent.

    Parameters
    ----------
    scores : ndarray of shape (B,)
        1 where the answer is right, else 0.
    kinds, answers : sequence of str, length B
        Question type and correct answer.

    Returns
    -------
    dict of str to float
        Arithmetic and harmonic means, plain and (N) with each answer of a type weighing the same;
        and the accuracy of every type. A type that is never right makes the harmonic mean 0.

    References
    ----------
    Kafle & Kanan 2017, arXiv 1703.09684.
    """
    kind, answer = np.asarray(kinds), np.asarray(answers)
    plain, normalized = {}, {}
    for name in sorted(set(kinds)):
        of_kind = kind == name
        plain[name] = float(scores[of_kind].mean())
        by_answer = [scores[of_kind & (answer == a)].mean() for a in sorted(set(answer[of_kind]))]
        normalized[name] = float(np.mean(by_answer))
    means = {
        "arithmetic MPT": float(np.mean(list(plain.values()))),
        "harmonic MPT": harmonic_mean(plain),
        "N arithmetic MPT": float(np.mean(list(normalized.values()))),
        "N harmonic MPT": harmonic_mean(normalized),
    }
    return {name: 100 * value for name, value in (means | plain).items()}


def harmonic_mean(values: Mapping[str, float]) -> float:
    """Return the harmonic mean; 0 where a value is 0."""
    return len(values) / sum(1 / v for v in values.values()) if all(values.values()) else 0.0
