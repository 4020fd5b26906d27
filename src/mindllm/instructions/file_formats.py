"""The kinds of official files, and how each is told by its content: names clash between data sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mindllm.instructions import schemas as r
from mindllm.instructions.schemas import Record

Head = Mapping[str, Any]
R = TypeVar("R", bound=Record, covariant=True)


@dataclass(frozen=True, eq=False)  # there is one object of each kind
class FileFormat(Generic[R]):
    """A kind of file.

    title: what it holds, in words.  name: what it is called officially.  model: what is read of a record.  at: where its
    records stand (a key; "": the outermost list; "*": the outermost object, each by a key of its own).  keys: those that a
    record has.  when: whether a file is of this kind, by what stands before its records and by the first of them.
    """

    title: str
    name: str
    model: type[R]
    at: str = ""
    keys: frozenset[str] = frozenset()
    when: Callable[[Head, dict[str, Any]], bool] = lambda head, first: True

    def holds(self, place: str) -> bool:
        """Whether what stands at this place of a file is one of its records."""
        return place == self.at if self.at != "*" else place not in ("", "info")

    def fits(self, place: str, first: Any, head: Head) -> bool:
        """Whether a file is of this kind, where this stands first at this place, and `head` before it."""
        return (
            self.holds(place)
            and isinstance(first, dict)
            and self.keys <= first.keys()
            and self.when(head, first)
        )


def keys(text: str) -> frozenset[str]:
    """Keys written one after the other."""
    return frozenset(text.split())


def second(head: Head, first: dict[str, Any]) -> bool:
    """Whether VQA's own header says version 2; without one, its question ids (the image's times 1,000, and a number) do."""
    info = head.get("info")
    version = info.get("version") if isinstance(info, dict) else None
    return (
        str(version).startswith("2")
        if version
        else str(first["question_id"])[:-3] == str(first["image_id"])
    )


def first_version(head: Head, first: dict[str, Any]) -> bool:
    """Whether annotations in VQA's layout are version 1 of VQA itself, and not OK-VQA's or TDIUC's."""
    return (
        not second(head, first)
        and "ans_source" not in first
        and "raw_answer" not in str(first["answers"])
    )


def of_dialogues(version: str) -> Callable[[Head, dict[str, Any]], bool]:
    """Whether VisDial's header says this version; a file without one passes for 1.0."""
    return lambda head, first: str(head.get("version", "1.0")) == version


ANNOTATION, ASKED, TALK = (
    keys("question_id image_id answers"),
    keys("question_id image_id question"),
    keys("id image conversations"),
)
TEN = ANNOTATION | keys("multiple_choice_answer")

# fmt: off
CAPTIONS = FileFormat("COCO captions", "captions_{train,val}2017.json", r.Caption, "annotations", keys("image_id caption"))
PARAGRAPHS = FileFormat("Visual Genome paragraphs", "paragraphs_v1.json", r.Paragraph, "", keys("image_id paragraph"))
GENOME_IMAGES = FileFormat("the COCO ids of Visual Genome's images", "image_data.json", r.GenomeImage, "", keys("image_id coco_id"))
GENOME_QUESTIONS = FileFormat("Visual Genome questions", "question_answers.json", r.GenomeQuestions, "", keys("qas"))
VQA2_QUESTIONS = FileFormat("VQA version 2 questions", "v2_OpenEnded_mscoco_{train,val}2014_questions.json", r.Question, "questions", ASKED, second)
VQA2 = FileFormat("VQA version 2 annotations", "v2_mscoco_{train,val}2014_annotations.json", r.VQAAnnotation, "annotations", TEN, second)
VQA1 = FileFormat("VQA version 1 annotations", "mscoco_{train,val}2014_annotations.json", r.VQAAnnotation, "annotations", TEN, first_version)
OK_VQA = FileFormat("OK-VQA annotations", "mscoco_{train,val}2014_annotations.json", r.VQAAnnotation, "annotations", ANNOTATION, lambda head, first: "raw_answer" in str(first["answers"]))
TDIUC = FileFormat("TDIUC annotations", "mscoco_{train,val}2014_annotations.json", r.TDIUCAnnotation, "annotations", ANNOTATION | keys("ans_source question_type"))
QUESTIONS = FileFormat("questions in the layout of VQA version 1", "OpenEnded_mscoco_{train,val}2014_questions.json", r.Question, "questions", ASKED, lambda head, first: "multiple_choices" not in first)
SCENE_TEXT = FileFormat("ST-VQA questions", "train_task_{1,2,3}.json", r.SceneText, "data", keys("file_name dataset question"))
COUNTS = FileFormat("TallyQA questions", "train.json, test.json", r.Count, "", keys("image question answer question_id data_source"))
EXPLAINED = FileFormat("VQA-E questions", "VQA-E_{train,val}_set.json", r.VQAEAnnotation, "", keys("img_id question explanation"))
STATEMENTS = FileFormat("VSR statements", "{train,dev,test}.jsonl", r.Statement, "", keys("image caption label relation"))
CHOICES = FileFormat("A-OKVQA questions", "aokvqa_v1p0_{train,val}.json", r.Choice, "", ASKED | keys("choices"))
SENTENCE_QUESTIONS = FileFormat("FSVQA questions", "fsvqa_original_{train,val}_questions.json", r.SentenceQuestion, "questions", keys("question_id img_id question"))
SENTENCES = FileFormat("FSVQA annotations", "fsvqa_original_{train,val}_annotations.json", r.Sentence, "annotations", keys("question_id img_id answers"))
DIALOGUES = FileFormat("VisDial 1.0", "visdial_1.0_{train,val}.json", r.Dialogue, "data.dialogs", keys("image_id dialog"), of_dialogues("1.0"))
LLAVA = FileFormat("LLaVA conversations", "llava_instruct_150k.json", r.LlavaConversation, "", TALK, lambda head, first: "/" not in str(first["image"]))
LVIS = FileFormat("LVIS-Instruct4V conversations", "lvis_instruct4v_220k.json", r.LlavaConversation, "", TALK, lambda head, first: "/" in str(first["image"]) and not str(first["id"]).isdigit())
GRAPH = FileFormat("GQA questions", "{train,val}_balanced_questions.json", r.GraphQuestion, "*", keys("imageId question"))

# Plain text, told by its first lines: COCO-QA's four parallel files, and a table of one's own.
LINES_QUESTIONS = FileFormat("COCO-QA questions", "questions.txt", Record)
LINES_ANSWERS = FileFormat("COCO-QA answers", "answers.txt", Record)
LINES_IMAGES = FileFormat("COCO-QA image ids", "img_ids.txt", Record)
LINES_TYPES = FileFormat("COCO-QA question types", "types.txt", Record)
TABLE = FileFormat("a table of captions", "a .tsv or .csv with the columns `stimulus` and `caption`", Record)

# A file is called by the first that fits; those after GRAPH are known only to be named.
FILE_FORMATS: tuple[FileFormat[Any], ...] = (
    CAPTIONS, PARAGRAPHS, GENOME_IMAGES, GENOME_QUESTIONS, TDIUC, OK_VQA, VQA2, VQA1, VQA2_QUESTIONS, QUESTIONS, SCENE_TEXT, COUNTS,
    EXPLAINED, STATEMENTS, CHOICES, SENTENCE_QUESTIONS, SENTENCES, DIALOGUES, LLAVA, LVIS, GRAPH,
    FileFormat("VisDial 0.9", "visdial_0.9_train.json", Record, "data.dialogs", keys("image_id dialog"), of_dialogues("0.9")),
    FileFormat("a mix of LLaVA conversations", "llava_v1_5_mix665k.json", Record, "", keys("id conversations")),
    FileFormat("COCO keypoints", "person_keypoints_train2017.json", Record, "annotations", keys("keypoints")),
    FileFormat("COCO object boxes", "instances_train2017.json", Record, "annotations", keys("bbox category_id")),
    FileFormat("VQA multiple-choice questions", "MultipleChoice_mscoco_train2014_questions.json", Record, "questions", ASKED | keys("multiple_choices")),
    FileFormat("annotations in the layout of VQA", "mscoco_train2014_annotations.json", Record, "annotations", ANNOTATION),
    FileFormat("Visual Genome regions", "region_descriptions.json", Record, "", keys("regions")),
    FileFormat("Visual Genome objects", "objects.json", Record, "", keys("image_id objects")),
    FileFormat("Visual Genome attributes", "attributes.json", Record, "", keys("image_id attributes")),
    FileFormat("Visual Genome relationships", "relationships.json", Record, "", keys("image_id relationships")),
    FileFormat("GQA scene graphs", "train_sceneGraphs.json", Record, "*", keys("objects width height")),
)
# fmt: on
