"""Formats of the official files, detected by content: their names clash between data sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mindllm.instructions import schemas
from mindllm.instructions.schemas import Record

Head = Mapping[str, object]
FirstRecord = Mapping[str, Any]
R = TypeVar("R", bound=Record, covariant=True)


@dataclass(frozen=True, eq=False)  # there is one object of each format
class FileFormat(Generic[R]):
    """A format of official files.

    Parameters
    ----------
    title : str
        What such a file holds.
    name : str
        Its official name.
    model : type
        Subclass of `Record`: what is read of a record.
    records_key : str
        Key of the list of records; "": the outermost list; "*": the outermost object, which has
        each record under a key of its own.
    keys : frozenset of str
        Keys that a record has.
    condition : callable
        Called with what stands before the records and the first of them: whether a file is of
        this format.
    """

    title: str
    name: str
    model: type[R]
    records_key: str = ""
    keys: frozenset[str] = frozenset()
    condition: Callable[[Head, FirstRecord], bool] = lambda head, first: True

    def has_records_at(self, key: str) -> bool:
        """Return whether what a file has at `key` is one of its records."""
        return key == self.records_key if self.records_key != "*" else key not in ("", "info")

    def matches(self, key: str, first: object, head: Head) -> bool:
        """Detect the format of a file.

        Parameters
        ----------
        key : str
            A key of the file.
        first : object
            The first value there.
        head : mapping of str to object
            First values of the keys before it.

        Returns
        -------
        bool
            Whether the file is of this format.
        """
        return (
            self.has_records_at(key)
            and isinstance(first, dict)
            and self.keys <= first.keys()
            and self.condition(head, first)
        )


def split_keys(text: str) -> frozenset[str]:
    """Split keys that are separated by blanks."""
    return frozenset(text.split())


def is_vqa_v2(head: Head, first: FirstRecord) -> bool:
    """Return whether a file in VQA's layout is of version 2.

    VQA's own header says so; without one, question ids do: the image's times 1,000, and a number.
    """
    info = head.get("info")
    version = info.get("version") if isinstance(info, dict) else None
    if version:
        return str(version).startswith("2")
    return str(first["question_id"])[:-3] == str(first["image_id"])


def is_vqa_v1(head: Head, first: FirstRecord) -> bool:
    """Return whether annotations in VQA's layout are VQA version 1, not OK-VQA or TDIUC."""
    is_tdiuc, is_ok_vqa = "ans_source" in first, "raw_answer" in str(first["answers"])
    return not is_vqa_v2(head, first) and not is_tdiuc and not is_ok_vqa


def has_visdial_version(version: str) -> Callable[[Head, FirstRecord], bool]:
    """Make a condition: VisDial's header states this version; without one it is 1.0."""
    return lambda head, first: str(head.get("version", "1.0")) == version


def is_llava(head: Head, first: FirstRecord) -> bool:
    """Return whether conversations are LLaVA's, whose images are bare file names."""
    return "/" not in str(first["image"])


def is_lvis(head: Head, first: FirstRecord) -> bool:
    """Return whether conversations are LVIS-Instruct4V's, whose images and ids are paths."""
    return "/" in str(first["image"]) and not str(first["id"]).isdigit()


ANNOTATION_KEYS = split_keys("question_id image_id answers")
QUESTION_KEYS = split_keys("question_id image_id question")
CONVERSATION_KEYS = split_keys("id image conversations")
TEN_ANSWERS_KEYS = ANNOTATION_KEYS | split_keys("multiple_choice_answer")

CAPTIONS = FileFormat(
    "COCO captions",
    "captions_{train,val}2017.json",
    schemas.Caption,
    "annotations",
    split_keys("image_id caption"),
)
PARAGRAPHS = FileFormat(
    "Visual Genome paragraphs",
    "paragraphs_v1.json",
    schemas.Paragraph,
    "",
    split_keys("image_id paragraph"),
)
GENOME_IMAGES = FileFormat(
    "the COCO ids of Visual Genome's images",
    "image_data.json",
    schemas.GenomeImage,
    "",
    split_keys("image_id coco_id"),
)
GENOME_QUESTIONS = FileFormat(
    "Visual Genome questions",
    "question_answers.json",
    schemas.GenomeQuestions,
    "",
    split_keys("qas"),
)
VQA2_QUESTIONS = FileFormat(
    "VQA version 2 questions",
    "v2_OpenEnded_mscoco_{train,val}2014_questions.json",
    schemas.Question,
    "questions",
    QUESTION_KEYS,
    is_vqa_v2,
)
VQA2 = FileFormat(
    "VQA version 2 annotations",
    "v2_mscoco_{train,val}2014_annotations.json",
    schemas.VQAAnnotation,
    "annotations",
    TEN_ANSWERS_KEYS,
    is_vqa_v2,
)
VQA1 = FileFormat(
    "VQA version 1 annotations",
    "mscoco_{train,val}2014_annotations.json",
    schemas.VQAAnnotation,
    "annotations",
    TEN_ANSWERS_KEYS,
    is_vqa_v1,
)
OK_VQA = FileFormat(
    "OK-VQA annotations",
    "mscoco_{train,val}2014_annotations.json",
    schemas.VQAAnnotation,
    "annotations",
    ANNOTATION_KEYS,
    lambda head, first: "raw_answer" in str(first["answers"]),
)
TDIUC = FileFormat(
    "TDIUC annotations",
    "mscoco_{train,val}2014_annotations.json",
    schemas.TDIUCAnnotation,
    "annotations",
    ANNOTATION_KEYS | split_keys("ans_source question_type"),
)
QUESTIONS = FileFormat(
    "questions in the layout of VQA version 1",
    "OpenEnded_mscoco_{train,val}2014_questions.json",
    schemas.Question,
    "questions",
    QUESTION_KEYS,
    lambda head, first: "multiple_choices" not in first,
)
SCENE_TEXT = FileFormat(
    "ST-VQA questions",
    "train_task_{1,2,3}.json",
    schemas.SceneText,
    "data",
    split_keys("file_name dataset question"),
)
COUNTS = FileFormat(
    "TallyQA questions",
    "train.json, test.json",
    schemas.Count,
    "",
    split_keys("image question answer question_id data_source"),
)
EXPLAINED = FileFormat(
    "VQA-E questions",
    "VQA-E_{train,val}_set.json",
    schemas.VQAEAnnotation,
    "",
    split_keys("img_id question explanation"),
)
STATEMENTS = FileFormat(
    "VSR statements",
    "{train,dev,test}.jsonl",
    schemas.Statement,
    "",
    split_keys("image caption label relation"),
)
EXPRESSIONS = FileFormat(
    "RefCOCO expressions with boxes",
    "REC_refcoco_unc_{train,val}.jsonl",
    schemas.ReferringExpression,
    "",
    split_keys("img_path expression bbox height width"),
)
CHOICES = FileFormat(
    "A-OKVQA questions",
    "aokvqa_v1p0_{train,val}.json",
    schemas.Choice,
    "",
    QUESTION_KEYS | split_keys("choices"),
)
SENTENCE_QUESTIONS = FileFormat(
    "FSVQA questions",
    "fsvqa_original_{train,val}_questions.json",
    schemas.SentenceQuestion,
    "questions",
    split_keys("question_id img_id question"),
)
SENTENCES = FileFormat(
    "FSVQA annotations",
    "fsvqa_original_{train,val}_annotations.json",
    schemas.Sentence,
    "annotations",
    split_keys("question_id img_id answers"),
)
DIALOGUES = FileFormat(
    "VisDial 1.0",
    "visdial_1.0_{train,val}.json",
    schemas.Dialogue,
    "data.dialogs",
    split_keys("image_id dialog"),
    has_visdial_version("1.0"),
)
LLAVA = FileFormat(
    "LLaVA conversations",
    "llava_instruct_150k.json",
    schemas.LlavaConversation,
    "",
    CONVERSATION_KEYS,
    is_llava,
)
LVIS = FileFormat(
    "LVIS-Instruct4V conversations",
    "lvis_instruct4v_220k.json",
    schemas.LlavaConversation,
    "",
    CONVERSATION_KEYS,
    is_lvis,
)
GRAPH = FileFormat(
    "GQA questions",
    "{train,val}_balanced_questions.json",
    schemas.GraphQuestion,
    "*",
    split_keys("imageId question"),
)

# Plain text, detected by its first lines: COCO-QA's four parallel files, and a table of captions.
LINES_QUESTIONS = FileFormat("COCO-QA questions", "questions.txt", Record)
LINES_ANSWERS = FileFormat("COCO-QA answers", "answers.txt", Record)
LINES_IMAGES = FileFormat("COCO-QA image ids", "img_ids.txt", Record)
LINES_TYPES = FileFormat("COCO-QA question types", "types.txt", Record)
TABLE = FileFormat(
    "a table of captions", "a .tsv or .csv with the columns `stimulus` and `caption`", Record
)

# Messages name a file by the first format that matches; those after GRAPH are never read.
FILE_FORMATS: tuple[FileFormat[Any], ...] = (
    CAPTIONS,
    PARAGRAPHS,
    GENOME_IMAGES,
    GENOME_QUESTIONS,
    TDIUC,
    OK_VQA,
    VQA2,
    VQA1,
    VQA2_QUESTIONS,
    QUESTIONS,
    SCENE_TEXT,
    COUNTS,
    EXPLAINED,
    STATEMENTS,
    EXPRESSIONS,
    CHOICES,
    SENTENCE_QUESTIONS,
    SENTENCES,
    DIALOGUES,
    LLAVA,
    LVIS,
    GRAPH,
    FileFormat(
        "VisDial 0.9",
        "visdial_0.9_train.json",
        Record,
        "data.dialogs",
        split_keys("image_id dialog"),
        has_visdial_version("0.9"),
    ),
    FileFormat(
        "a mix of LLaVA conversations",
        "llava_v1_5_mix665k.json",
        Record,
        "",
        split_keys("id conversations"),
    ),
    FileFormat(
        "COCO keypoints",
        "person_keypoints_train2017.json",
        Record,
        "annotations",
        split_keys("keypoints"),
    ),
    FileFormat(
        "COCO object boxes",
        "instances_train2017.json",
        Record,
        "annotations",
        split_keys("bbox category_id"),
    ),
    FileFormat(
        "VQA multiple-choice questions",
        "MultipleChoice_mscoco_train2014_questions.json",
        Record,
        "questions",
        QUESTION_KEYS | split_keys("multiple_choices"),
    ),
    FileFormat(
        "annotations in the layout of VQA",
        "mscoco_train2014_annotations.json",
        Record,
        "annotations",
        ANNOTATION_KEYS,
    ),
    FileFormat(
        "Visual Genome regions", "region_descriptions.json", Record, "", split_keys("regions")
    ),
    FileFormat("Visual Genome objects", "objects.json", Record, "", split_keys("image_id objects")),
    FileFormat(
        "Visual Genome attributes", "attributes.json", Record, "", split_keys("image_id attributes")
    ),
    FileFormat(
        "Visual Genome relationships",
        "relationships.json",
        Record,
        "",
        split_keys("image_id relationships"),
    ),
    FileFormat(
        "GQA scene graphs",
        "train_sceneGraphs.json",
        Record,
        "*",
        split_keys("objects width height"),
    ),
)
