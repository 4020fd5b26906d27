"""What a source has about an image: one sample per conversation."""

from collections.abc import Container, Iterator
from typing import NamedTuple, Protocol

from mindllm.instructions import file_formats
from mindllm.instructions.source_files import SourceFiles

ImageIds = Container[int | str]


class InstructionSample(NamedTuple):
    """One conversation about an image.

    Parameters
    ----------
    image : int or str
        COCO id of the image, or name of the stimulus.
    key : str
        Identifier of the sample in its source.
    turns : list of (str, str)
        Question and answer of every round; the question is empty where the source's prompt is
        all that is asked.
    answers : list of str
        References that a prediction is compared with, in the form of the source's protocol (see
        `mindllm.evaluation.question_answering.build_reference`); none where the file has none, as
        in a test split.
    """

    image: int | str
    key: str
    turns: list[tuple[str, str]]
    answers: list[str]


UNANSWERED = InstructionSample(-1, "", [], [])


class SampleReader(Protocol):
    """Read the samples of a source.

    Parameters
    ----------
    files : SourceFiles
        Files of the source, by format.
    image_ids : container of int or str
        COCO ids, or names of stimuli, that conversations are needed about.

    Yields
    ------
    InstructionSample
        In the order of the files; those about other images are left out. A question without an
        answer, as in a test split, gives `UNANSWERED`.

    Raises
    ------
    InputError
        If a record is not as its format says, or the files do not belong together.
    """

    def __call__(self, files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]: ...


def read_genome_coco_ids(files: SourceFiles, image_ids: ImageIds) -> dict[int, int]:
    """Read which images of Visual Genome are images of COCO.

    Parameters
    ----------
    files : SourceFiles
        Files of a source that needs image_data.json.
    image_ids : container of int or str
        COCO ids that conversations are needed about.

    Returns
    -------
    dict of int to int
        Visual Genome id -> COCO id, of the images in `image_ids`.
    """
    return {
        record.image_id: record.coco_id
        for _, _, record in files.iter_records(file_formats.GENOME_IMAGES)
        if record.coco_id is not None and record.coco_id in image_ids
    }
