"""Records of the official files, as far as they are read."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Record(BaseModel):
    """A record: other keys are ignored, white space around texts is removed."""

    model_config = ConfigDict(str_strip_whitespace=True)


def parse_image_number(name: Any) -> Any:
    """Parse the number at the end of an image's file name.

    Parameters
    ----------
    name : object
        Name or path of an image, with or without suffix.

    Returns
    -------
    int or object
        The number; anything else than such a name is returned as it is.

    Examples
    --------
    >>> parse_image_number("COCO_train2014_000000009.jpg")
    9
    """
    match = IMAGE_NUMBER.search(name) if isinstance(name, str) else None
    return int(match[1]) if match else name


def parse_coco_image(path: str) -> int | None:
    """Parse the COCO id in the path of an image.

    Other data sets number their images too, so the path must say that it is COCO's: by a folder, by
    the name of the file, or by being the bare file name that LLaVA has for images of COCO.

    Parameters
    ----------
    path : str
        Path of an image.

    Returns
    -------
    int or None
        The id; None for an image of another data set.

    Examples
    --------
    >>> parse_coco_image("coco/train2017/000000033471.jpg"), parse_coco_image("000000033471.jpg")
    (33471, 33471)
    >>> parse_coco_image("vg/VG_100K/101.jpg") is None
    True
    """
    match = COCO_IMAGE.fullmatch(path)
    return int(match[1]) if match else None


def take_first(value: Any) -> Any:
    """Take the first element of a list: VQA-E has numbers behind its explanation."""
    return value[0] if isinstance(value, list) and value else value


COCO_FOLDER = r"(?:coco|(?:train|val|test)20(?:14|15|17))"
COCO_IMAGE = re.compile(
    rf"(?:(?:.*/)?{COCO_FOLDER}/(?:.*/)?)?(?:COCO_[a-z]+20\d\d_)?(\d{{1,18}})\.\w+",
    re.IGNORECASE,
)
IMAGE_NUMBER = re.compile(r"(?<!\d)(\d{1,18})(?:\.\w+)?$")  # of more digits it is no number of one
ImageFile = Annotated[int, BeforeValidator(parse_image_number)]


class Caption(Record):
    """A caption of COCO."""

    image_id: int
    id: int
    caption: str


class Paragraph(Record):
    """A paragraph about an image of Visual Genome."""

    image_id: int
    paragraph: str


class GenomeImage(Record):
    """An image of Visual Genome, which may be one of COCO's."""

    image_id: int
    coco_id: int | None


class GenomeQuestion(Record):
    """A question of Visual Genome; its answer ends in a full stop."""

    qa_id: int
    image_id: int
    question: str
    answer: str


class GenomeQuestions(Record):
    """All questions about an image."""

    qas: list[GenomeQuestion]


class Question(Record):
    """A question in VQA's layout."""

    question_id: int
    image_id: int
    question: str


class VQAAnswer(Record):
    """The answer of one annotator."""

    answer: str


class VQAAnnotation(Record):
    """The answers to a question in VQA's layout."""

    question_id: int
    image_id: int
    answers: list[VQAAnswer] = Field(min_length=1)
    multiple_choice_answer: str | None = None


class TDIUCAnnotation(VQAAnnotation):
    """An answer of TDIUC, with the type of the question."""

    question_type: str


class SceneText(Record):
    """A question of ST-VQA; in the test split without answers."""

    dataset: str
    file_name: str
    question_id: int | str
    question: str
    answers: list[str] = []


class Count(Record):
    """A question of TallyQA; its image is a path that ends in a number."""

    image: str = Field(pattern=r"\d\.\w+$")
    question_id: int
    question: str
    answer: int


class VQAEAnnotation(Record):
    """A question of VQA-E."""

    img_id: int
    question: str
    answers: list[str] = Field(min_length=1)
    multiple_choice_answer: str | None = None
    explanation: Annotated[str, BeforeValidator(take_first)]


class Statement(Record):
    """A statement of VSR: 1 is true, 0 false."""

    image: ImageFile
    caption: str
    label: Literal[0, 1]


class ReferringExpression(Record):
    """An expression and the box that it refers to, x1, y1, x2, y2 in pixels."""

    img_path: ImageFile
    expression: str
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class Choice(Record):
    """A question of A-OKVQA; the test split has no correct choice."""

    image_id: int
    question_id: str
    question: str
    choices: list[str] = Field(min_length=2)
    correct_choice_idx: int | None = Field(None, ge=0)
    rationales: list[str] = []

    @model_validator(mode="after")
    def check_correct_choice(self) -> Self:
        """The correct choice must be one of the choices."""
        if self.correct_choice_idx is not None and self.correct_choice_idx >= len(self.choices):
            raise ValueError(
                f"choice {self.correct_choice_idx} is said to be right, of {len(self.choices)}"
            )
        return self


class SentenceQuestion(Question):
    """A question of FSVQA."""

    image_id: int = Field(alias="img_id")


class Sentence(VQAAnnotation):
    """The answer to a question of FSVQA, one full sentence."""

    image_id: int = Field(alias="img_id")


class Round(Record):
    """Indices of a question and its answer; the test split lacks the last answer."""

    question: int = Field(ge=0)
    answer: int | None = Field(None, ge=0)


class Dialogue(Record):
    """A dialogue of VisDial."""

    image_id: int
    dialog: list[Round] = Field(min_length=1)


class Turn(Record):
    """A turn of one speaker."""

    speaker: str = Field(alias="from")
    value: str


class LlavaConversation(Record):
    """A conversation in LLaVA's layout; without an image, or one of another data set than COCO.

    Only those about an image of COCO are used, and must be well-formed.
    """

    image: str | None = None
    conversations: list[Turn]

    @property
    def coco_id(self) -> int | None:
        """COCO id of the image; None where it is none of COCO's."""
        return parse_coco_image(self.image) if self.image else None

    @field_validator("conversations")
    @classmethod
    def check_speakers(cls, turns: list[Turn], info: ValidationInfo) -> list[Turn]:
        """Human and gpt take turns, an answer after each question."""
        speakers, image = [turn.speaker for turn in turns], info.data.get("image")
        is_used = image and parse_coco_image(image) is not None
        if is_used and (speakers != ["human", "gpt"] * (len(turns) // 2) or not turns):
            raise ValueError("human and gpt must speak in turn")
        return turns


class GraphQuestion(Record):
    """A question of GQA; in the test split without an answer."""

    imageId: str
    question: str
    answer: str | None = None
