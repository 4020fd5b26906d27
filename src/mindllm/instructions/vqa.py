"""Questions with an answer each, or ten."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import intern
from typing import TypeVar

from mindllm.instructions import file_formats
from mindllm.instructions.base import UNANSWERED, InstructionSample, Wanted, genome
from mindllm.instructions.file_formats import FileFormat
from mindllm.instructions.schemas import Question, VQAAnnotation, number_in
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError

A = TypeVar("A", bound=VQAAnnotation)


def coco_qa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Line n of three files in one folder is the n-th question, its answer, its image."""
    kinds = (file_formats.LINES_IMAGES, file_formats.LINES_QUESTIONS, file_formats.LINES_ANSWERS)
    for folder in sorted({path.parent for kind in kinds for path in given.files[kind]}):
        files = [[path for path in given.files[kind] if path.parent == folder] for kind in kinds]
        if lacking := [
            kind.name for kind, some in zip(kinds, files, strict=True) if len(some) != 1
        ]:
            raise InputError(f"{folder}: coco-qa needs one {' and one '.join(lacking)} beside the others of its split; keep train and test in folders of their own.")  # fmt: skip
        images, questions, answers = ([line.strip() for line in some[0].read_text("utf-8").rstrip().split("\n")] for some in files)  # fmt: skip
        if not len(images) == len(questions) == len(answers):
            raise InputError(f"{folder}: {files[0][0].name} has {len(images)} lines, {files[1][0].name} {len(questions)}, {files[2][0].name} {len(answers)}; expected as many in each. Fetch them again.")  # fmt: skip
        for number, (image, question, answer) in enumerate(
            zip(images, questions, answers, strict=True), 1
        ):
            if not image.isdecimal():
                raise InputError(
                    f"{files[0][0]}, line {number}: {image!r} is no COCO id. Fetch the file again."
                )
            if int(image) in wanted:
                yield InstructionSample(
                    int(image), f"{folder.name}-{number}", [(question, answer)], [answer]
                )


def visual_genome(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Every question about an image that has a COCO id."""
    coco = genome(given, wanted)
    for _, _, record in given.records(file_formats.GENOME_QUESTIONS):
        for qa in record.qas:
            if qa.image_id in coco:
                yield InstructionSample(
                    coco[qa.image_id], str(qa.qa_id), [(qa.question, qa.answer)], [qa.answer]
                )


def gqa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Images are Visual Genome's; those numbered `n...` are not and have no COCO id."""
    coco = genome(given, wanted)
    for _, name, record in given.records(file_formats.GRAPH):
        if record.answer is None:
            yield UNANSWERED
        elif record.imageId.isdecimal() and int(record.imageId) in coco:
            yield InstructionSample(
                coco[int(record.imageId)], name, [(record.question, record.answer)], [record.answer]
            )


def tally_qa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Images are COCO's, or Visual Genome's (folders VG_100K), whose own number stands in the path alone."""
    coco = genome(given, wanted)
    for _, _, record in given.records(file_formats.COUNTS):
        number = number_in(record.image)
        image = coco.get(number, -1) if record.image.startswith("VG_") else number
        if image in wanted:
            yield InstructionSample(
                image,
                str(record.question_id),
                [(record.question, str(record.answer))],
                [str(record.answer)],
            )


def vqa_v2(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Says the answer that most gave; all ten are kept."""
    for record, question in joined(given, file_formats.VQA2_QUESTIONS, file_formats.VQA2, wanted):
        answers = said_first(record)
        yield InstructionSample(
            record.image_id, str(record.question_id), [(question, answers[0])], answers
        )


def ok_vqa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Says the most frequent answer; all ten are kept."""
    for record, question in joined(given, file_formats.QUESTIONS, file_formats.OK_VQA, wanted):
        answers = said_first(record)
        yield InstructionSample(
            record.image_id, str(record.question_id), [(question, answers[0])], answers
        )


def tdiuc(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """One answer, and the type of the question, by which it is scored."""
    for record, question in joined(given, file_formats.QUESTIONS, file_formats.TDIUC, wanted):
        answer = record.answers[0].answer
        yield InstructionSample(
            record.image_id,
            str(record.question_id),
            [(question, answer)],
            [answer, record.question_type],
        )


def fsvqa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Says the full sentence; the short answer and ten people's come from VQA version 1."""
    short = {
        r.question_id: said_first(r)
        for _, _, r in given.records(file_formats.VQA1)
        if r.image_id in wanted
    }
    for record, question in joined(
        given, file_formats.SENTENCE_QUESTIONS, file_formats.SENTENCES, wanted
    ):
        if record.question_id not in short:
            raise InputError(f"question {record.question_id} of FSVQA has no ten answers: fsvqa needs {file_formats.VQA1.name} of VQA version 1, of train and val where both are given; found {', '.join(map(str, given.files[file_formats.VQA1]))}.")  # fmt: skip
        sentence, people = record.answers[0].answer, short[record.question_id]
        yield InstructionSample(
            record.image_id,
            str(record.question_id),
            [(question, sentence)],
            [sentence, people[0], *people],
        )


def joined(
    given: SourceFiles, asked: FileFormat[Question], answered: FileFormat[A], wanted: Wanted
) -> Iterator[tuple[A, str]]:
    """The answers about wanted images, each with its question.

    Raises InputError for answers without a question, and for a file of questions none of which is answered.
    """
    questions: dict[int, tuple[int, str, Path]] = {}
    for path, _, record in given.records(asked):
        if record.image_id in wanted:
            before = questions.setdefault(
                record.question_id, (record.image_id, record.question, path)
            )
            if before[:2] != (record.image_id, record.question):
                raise InputError(f"{before[2]} and {path} ask different questions with the number {record.question_id}; give the files of one data set only.")  # fmt: skip
    bare = {path for _, _, path in questions.values()}
    for path, _, answer in given.records(answered):
        if answer.image_id in wanted:
            image, text, origin = questions.get(answer.question_id, (None, "", path))
            if image != answer.image_id:
                raise InputError(f"{path} answers question {answer.question_id} about image {answer.image_id}, which is not asked in {', '.join(map(str, given.files[asked]))}; give the {asked.name} that belongs to it.")  # fmt: skip
            bare.discard(origin)
            yield answer, text
    if bare:
        raise InputError(f"no question in {', '.join(map(str, sorted(bare)))} is answered; give the {answered.name} ({answered.title}) that belongs to it, or leave the file out.")  # fmt: skip


def said_first(record: VQAAnnotation) -> list[str]:
    """All people's answers, that of most of them first (as the file says it, where it does; the earliest of equals)."""
    return most_first(
        [intern(said.answer) for said in record.answers], record.multiple_choice_answer
    )


def most_first(people: Sequence[str], told: str | None) -> list[str]:
    """The answers with one brought to the front: the one told, or the most frequent."""
    first = told if told is not None and told in people else Counter(people).most_common(1)[0][0]
    others = list(people)
    others.remove(first)
    return [first, *others]


def vqa_e(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Says the answer that most gave, and why; kept are that text, the ten answers, the explanation."""
    for _, name, record in given.records(file_formats.EXPLAINED):
        if record.img_id in wanted:
            people = most_first(record.answers, record.multiple_choice_answer)
            said = f"{people[0].rstrip('.')}. Here is the explanation:\n{record.explanation}"
            yield InstructionSample(
                record.img_id, name, [(record.question, said)], [said, *people, record.explanation]
            )


def st_vqa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Questions about COCO's images, each once: the three tasks repeat them."""
    seen = set()
    for _, _, record in given.records(file_formats.SCENE_TEXT):
        image = number_in(record.file_name)
        if "coco" not in record.dataset.lower() or (image, record.question) in seen:
            continue
        seen.add((image, record.question))
        if not record.answers:
            yield UNANSWERED
        elif image in wanted:
            yield InstructionSample(
                image,
                str(record.question_id),
                [(record.question, record.answers[0])],
                record.answers,
            )


def vsr(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """A statement, true or not; each once, as the random and the zero-shot split share them."""
    seen = set()
    for _, name, record in given.records(file_formats.STATEMENTS):
        if record.image in wanted and (record.image, record.caption) not in seen:
            seen.add((record.image, record.caption))
            said = ("No.", "Yes.")[record.label]
            yield InstructionSample(record.image, name, [(record.caption, said)], [said])


def a_okvqa(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Says the letter and the first rationale, as the prompt asks for both; the letter is what is scored."""
    for _, _, record in given.records(file_formats.CHOICES):
        if record.correct_choice_idx is None:
            yield UNANSWERED
        elif record.image_id in wanted:
            letters = [chr(ord("A") + i) for i in range(len(record.choices))]
            options = "".join(
                f"{x}. {choice}\n" for x, choice in zip(letters, record.choices, strict=True)
            )
            letter = letters[record.correct_choice_idx]
            said = " ".join([f"{letter}.", *record.rationales[:1]])
            yield InstructionSample(record.image_id, record.question_id, [(f"{record.question}\nMultiple Choices:\n{options}", said)], [letter, record.choices[record.correct_choice_idx]])  # fmt: skip
