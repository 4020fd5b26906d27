"""What is read of the records in the official files."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Record(BaseModel):
    """What is read of a record; its other keys are passed over, white space around its texts goes."""

    model_config = ConfigDict(str_strip_whitespace=True)


def number_in(name: Any) -> Any:
    """The COCO id in `COCO_train2014_000000009.jpg`, `train2017/000000009.jpg` or `000000009`."""
    found = re.search(r"(\d+)(?:\.\w+)?$", name) if isinstance(name, str) else None
    return int(found[1]) if found else name


def first_of(value: Any) -> Any:
    """VQA-E gives an explanation and, behind it, numbers about it."""
    return value[0] if isinstance(value, list) and value else value


ImageFile = Annotated[int, BeforeValidator(number_in)]


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
    """What one person answered."""

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
    explanation: Annotated[str, BeforeValidator(first_of)]


class Statement(Record):
    """A statement of VSR: 1 is true, 0 false."""

    image: ImageFile
    caption: str
    label: Literal[0, 1]


class Choice(Record):
    """A question of A-OKVQA; in the test split nothing is said to be right."""

    image_id: int
    question_id: str
    question: str
    choices: list[str] = Field(min_length=2)
    correct_choice_idx: int | None = Field(None, ge=0)
    rationales: list[str] = []

    @model_validator(mode="after")
    def among_the_choices(self) -> Self:
        """The right one must be there."""
        if self.correct_choice_idx is not None and self.correct_choice_idx >= len(self.choices):
            raise ValueError(
                f"choice {self.correct_choice_idx} is said to be right, of {len(self.choices)}"
            )
        return self


class SentenceQuestion(Question):
    """A question of FSVQA."""

    image_id: int = Field(alias="img_id")


class Sentence(VQAAnnotation):
    """Its answer, one full sentence."""

    image_id: int = Field(alias="img_id")


class Round(Record):
    """Numbers of a question and its answer; in the test split the last answer lacks."""

    question: int = Field(ge=0)
    answer: int | None = Field(None, ge=0)


class Dialogue(Record):
    """A dialogue of VisDial."""

    image_id: int
    dialog: list[Round] = Field(min_length=1)


class Turn(Record):
    """What one side says."""

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str


class LlavaConversation(Record):
    """A conversation in LLaVA's layout."""

    id: str
    image: ImageFile
    conversations: list[Turn] = Field(min_length=2)

    @field_validator("conversations")
    @classmethod
    def in_turn(cls, turns: list[Turn]) -> list[Turn]:
        """An answer follows each question."""
        if [turn.speaker for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
            raise ValueError("human and gpt must speak in turn")
        return turns


class GraphQuestion(Record):
    """A question of GQA; in the test split without an answer."""

    imageId: str
    question: str
    answer: str | None = None
