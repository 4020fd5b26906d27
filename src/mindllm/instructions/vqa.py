"""Samples of questions with one answer, or with those of ten annotators.

The reading functions have the interface of `mindllm.instructions.base.SampleReader`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import intern
from typing import NamedTuple, TypeVar

from mindllm.instructions import file_formats
from mindllm.instructions.base import (
    UNANSWERED,
    ImageIds,
    InstructionSample,
    read_genome_coco_ids,
)
from mindllm.instructions.file_formats import FileFormat
from mindllm.instructions.schemas import Question, VQAAnnotation, parse_image_number
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError, shorten
from mindllm.utils.text_files import read_text

Annotation = TypeVar("Annotation", bound=VQAAnnotation)
COCO_QA_FORMATS = (
    file_formats.LINES_IMAGES,
    file_formats.LINES_QUESTIONS,
    file_formats.LINES_ANSWERS,
)


def read_coco_qa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of COCO-QA.

    Line n of three files in one folder holds the n-th question, its answer, and its image.
    """
    paths = [path for file_format in COCO_QA_FORMATS for path in files.paths[file_format]]
    for folder in sorted({path.parent for path in paths}):
        images_file, *other_files = find_coco_qa_files(files, folder)
        images, questions, answers = read_parallel_lines([images_file, *other_files])
        for number, (image, question, answer) in enumerate(
            zip(images, questions, answers, strict=True), 1
        ):
            if not re.fullmatch(r"\d{1,18}", image):
                raise InputError(
                    f"{images_file}, line {number}: {shorten(repr(image), 80)} is no COCO id. "
                    "Fetch the file again."
                )
            if int(image) in image_ids:
                key = f"{folder.name}-{number}"
                yield InstructionSample(int(image), key, [(question, answer)], [answer])


def find_coco_qa_files(files: SourceFiles, folder: Path) -> list[Path]:
    """Find the files of COCO-QA's images, questions and answers in a folder."""
    present = {
        file_format.name: [path for path in files.paths[file_format] if path.parent == folder]
        for file_format in COCO_QA_FORMATS
    }
    if lacking := [name for name, paths in present.items() if len(paths) != 1]:
        raise InputError(
            f"{folder}: coco-qa needs one {' and one '.join(lacking)} beside the others of its "
            "split; keep train and test in folders of their own."
        )
    return [paths[0] for paths in present.values()]


def read_parallel_lines(paths: Sequence[Path]) -> list[list[str]]:
    """Read the stripped lines of three files, which must have equally many."""
    lines = [
        [line.strip() for line in read_text(path, "COCO-QA's lines").rstrip().split("\n")]
        for path in paths
    ]
    if len({len(of_file) for of_file in lines}) != 1:
        first, *others = zip(paths, lines, strict=True)
        counts = "".join(f", {path.name} {len(of_file)}" for path, of_file in others)
        raise InputError(
            f"{first[0].parent}: {first[0].name} has {len(first[1])} lines{counts}; "
            "expected as many in each. Fetch them again."
        )
    return lines


def read_visual_genome(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield every question about an image of Visual Genome that has a COCO id."""
    coco_ids = read_genome_coco_ids(files, image_ids)
    for _, _, record in files.iter_records(file_formats.GENOME_QUESTIONS):
        for qa in record.qas:
            if qa.image_id in coco_ids:
                image, turn = coco_ids[qa.image_id], (qa.question, qa.answer)
                yield InstructionSample(image, str(qa.qa_id), [turn], [qa.answer])


def read_gqa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of GQA.

    Images are Visual Genome's; those numbered `n...` are not, and have no COCO id.
    """
    coco_ids = read_genome_coco_ids(files, image_ids)
    for _, key, record in files.iter_records(file_formats.GRAPH):
        if record.answer is None:
            yield UNANSWERED
        elif re.fullmatch(r"\d{1,18}", record.imageId) and int(record.imageId) in coco_ids:
            image, turn = coco_ids[int(record.imageId)], (record.question, record.answer)
            yield InstructionSample(image, key, [turn], [record.answer])


def read_tally_qa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of TallyQA.

    Images are COCO's, or Visual Genome's (folders VG_100K), whose number is in the path alone.
    """
    coco_ids = read_genome_coco_ids(files, image_ids)
    for _, _, record in files.iter_records(file_formats.COUNTS):
        number = parse_image_number(record.image)
        image = coco_ids.get(number, -1) if record.image.startswith("VG_") else number
        if image in image_ids:
            answer = str(record.answer)
            turns = [(record.question, answer)]
            yield InstructionSample(image, str(record.question_id), turns, [answer])


def read_vqa_v2(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of VQA version 2, answered as most annotators did."""
    return read_annotated_questions(
        files, file_formats.VQA2_QUESTIONS, file_formats.VQA2, image_ids
    )


def read_ok_vqa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of OK-VQA, answered as most annotators did."""
    return read_annotated_questions(files, file_formats.QUESTIONS, file_formats.OK_VQA, image_ids)


def read_annotated_questions(
    files: SourceFiles,
    question_format: FileFormat[Question],
    annotation_format: FileFormat[VQAAnnotation],
    image_ids: ImageIds,
) -> Iterator[InstructionSample]:
    """Yield questions with the most frequent answer; the references are all ten, it first."""
    for record, question in join_annotations(files, question_format, annotation_format, image_ids):
        answers = rank_answers(record)
        turns = [(question, answers[0])]
        yield InstructionSample(record.image_id, str(record.question_id), turns, answers)


def read_tdiuc(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of TDIUC; the type of a question, by which it is scored, comes last."""
    for record, question in join_annotations(
        files, file_formats.QUESTIONS, file_formats.TDIUC, image_ids
    ):
        answer = record.answers[0].answer
        references = [answer, record.question_type]
        key = str(record.question_id)
        yield InstructionSample(record.image_id, key, [(question, answer)], references)


def read_fsvqa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of FSVQA, answered in a full sentence.

    The short answer and those of ten annotators, which follow as references, are those of VQA
    version 1.
    """
    short_answers = {
        record.question_id: rank_answers(record)
        for _, _, record in files.iter_records(file_formats.VQA1)
        if record.image_id in image_ids
    }
    for record, question in join_annotations(
        files, file_formats.SENTENCE_QUESTIONS, file_formats.SENTENCES, image_ids
    ):
        if record.question_id not in short_answers:
            raise InputError(
                f"question {record.question_id} of FSVQA has no ten answers: fsvqa needs "
                f"{file_formats.VQA1.name} of VQA version 1, of train and val where both are "
                f"given; found {', '.join(map(str, files.paths[file_formats.VQA1]))}."
            )
        sentence, answers = record.answers[0].answer, short_answers[record.question_id]
        references = [sentence, answers[0], *answers]
        key = str(record.question_id)
        yield InstructionSample(record.image_id, key, [(question, sentence)], references)


class AskedQuestion(NamedTuple):
    """A question, its image and the file that asks it."""

    image_id: int
    text: str
    path: Path


def join_annotations(
    files: SourceFiles,
    question_format: FileFormat[Question],
    annotation_format: FileFormat[Annotation],
    image_ids: ImageIds,
) -> Iterator[tuple[Annotation, str]]:
    """Join the two kinds of files in VQA's layout by the number of the question.

    Parameters
    ----------
    files : SourceFiles
        Files of the source.
    question_format, annotation_format : FileFormat
        The two formats.
    image_ids : container of int or str
        COCO ids that conversations are needed about.

    Yields
    ------
    annotation : VQAAnnotation
        The answers to a question about one of the images.
    question : str
        The question.

    Raises
    ------
    InputError
        For answers without a question, two questions with one number, and a file of questions
        none of which is answered.
    """
    questions = read_questions(files, question_format, image_ids)
    unanswered_files = {question.path for question in questions.values()}
    for path, _, annotation in files.iter_records(annotation_format):
        if annotation.image_id not in image_ids:
            continue
        question = questions.get(annotation.question_id)
        if question is None or question.image_id != annotation.image_id:
            raise InputError(
                f"{path} answers question {annotation.question_id} about image "
                f"{annotation.image_id}, which is not asked in "
                f"{', '.join(map(str, files.paths[question_format]))}; "
                f"give the {question_format.name} that belongs to it."
            )
        unanswered_files.discard(question.path)
        yield annotation, question.text
    if unanswered_files:
        raise InputError(
            f"no question in {', '.join(map(str, sorted(unanswered_files)))} is answered; give "
            f"the {annotation_format.name} ({annotation_format.title}) that belongs to it, or "
            "leave the file out."
        )


def read_questions(
    files: SourceFiles, question_format: FileFormat[Question], image_ids: ImageIds
) -> dict[int, AskedQuestion]:
    """Read the questions about some images by their number."""
    questions: dict[int, AskedQuestion] = {}
    for path, _, record in files.iter_records(question_format):
        if record.image_id in image_ids:
            question = AskedQuestion(record.image_id, record.question, path)
            first = questions.setdefault(record.question_id, question)
            if first[:2] != question[:2]:
                raise InputError(
                    f"{first.path} and {path} ask different questions with the number "
                    f"{record.question_id}; give the files of one data set only."
                )
    return questions


def rank_answers(record: VQAAnnotation) -> list[str]:
    """List all annotators' answers, the most frequent one first.

    The file says which one it is in `multiple_choice_answer`; without, it is the earliest of
    equally frequent ones.
    """
    answers = [intern(annotator.answer) for annotator in record.answers]
    return move_to_front(answers, record.multiple_choice_answer)


def move_to_front(answers: Sequence[str], stated: str | None) -> list[str]:
    """Move one answer to the front: the stated one if it is there, else the most frequent.

    Examples
    --------
    >>> move_to_front(["no", "yes", "yes"], None)
    ['yes', 'no', 'yes']
    """
    is_stated = stated is not None and stated in answers
    first = stated if is_stated else Counter(answers).most_common(1)[0][0]
    others = list(answers)
    others.remove(str(first))
    return [str(first), *others]


def read_vqa_e(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of VQA-E, answered as most annotators did, with the explanation.

    References are that text, the ten answers, and the explanation.
    """
    for _, key, record in files.iter_records(file_formats.EXPLAINED):
        if record.img_id in image_ids:
            answers = move_to_front(record.answers, record.multiple_choice_answer)
            text = f"{answers[0].rstrip('.')}. Here is the explanation:\n{record.explanation}"
            references = [text, *answers, record.explanation]
            yield InstructionSample(record.img_id, key, [(record.question, text)], references)


def read_st_vqa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of ST-VQA about COCO's images, once although its tasks repeat them."""
    done = set()
    for _, _, record in files.iter_records(file_formats.SCENE_TEXT):
        image = parse_image_number(record.file_name)
        if "coco" not in record.dataset.lower() or (image, record.question) in done:
            continue
        done.add((image, record.question))
        if not record.answers:
            yield UNANSWERED
        elif image in image_ids:
            turns = [(record.question, record.answers[0])]
            yield InstructionSample(image, str(record.question_id), turns, record.answers)


def read_vsr(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the statements of VSR, once although its random and zero-shot splits share them."""
    done = set()
    for _, key, record in files.iter_records(file_formats.STATEMENTS):
        if record.image in image_ids and (record.image, record.caption) not in done:
            done.add((record.image, record.caption))
            answer = ("No.", "Yes.")[record.label]
            yield InstructionSample(record.image, key, [(record.caption, answer)], [answer])


def read_a_okvqa(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the questions of A-OKVQA with their choices.

    The answer is the letter and the first rationale, as the prompt asks for both; references are
    the letter and the words of the choice.
    """
    for _, _, record in files.iter_records(file_formats.CHOICES):
        if record.correct_choice_idx is None:
            yield UNANSWERED
        elif record.image_id in image_ids:
            letters = [chr(ord("A") + i) for i in range(len(record.choices))]
            options = "".join(
                f"{letter}. {choice}\n"
                for letter, choice in zip(letters, record.choices, strict=True)
            )
            question = f"{record.question}\nMultiple Choices:\n{options}"
            letter = letters[record.correct_choice_idx]
            answer = " ".join([f"{letter}.", *record.rationales[:1]])
            references = [letter, record.choices[record.correct_choice_idx]]
            turns = [(question, answer)]
            yield InstructionSample(record.image_id, record.question_id, turns, references)
