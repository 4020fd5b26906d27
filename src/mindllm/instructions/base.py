"""What a source says about an image: one item per conversation."""

from collections.abc import Container
from typing import NamedTuple

from mindllm.instructions import file_formats
from mindllm.instructions.source_files import SourceFiles


class InstructionSample(NamedTuple):
    """One conversation about an image.

    image: its COCO id (or the name of a stimulus).  talk: (question, answer) of every round, the question empty where the
    source's prompt is all that is asked.  answers: what an answer is compared with, in the form of the source's protocol
    (`mindllm.evaluation.question_answering.build_reference`); none where the file has none, as in a test split.
    """

    image: int | str
    key: str
    turns: list[tuple[str, str]]
    answers: list[str]


Wanted = Container[int | str]
UNANSWERED = InstructionSample(-1, "", [], [])


def genome(given: SourceFiles, wanted: Wanted) -> dict[int, int]:
    """Visual Genome's number -> COCO id, of the images that are wanted."""
    return {
        record.image_id: record.coco_id
        for _, _, record in given.records(file_formats.GENOME_IMAGES)
        if record.coco_id is not None and record.coco_id in wanted
    }
