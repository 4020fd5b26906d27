"""Questions about simulated scenes, and boxes of their agents, in the layouts of public data sets.

Questions are of TDIUC's types and in its layout; a box is the quadrant of the image that the agent
is in, in the layout of RefCOCO's expressions as Shikra has them.

References
----------
TDIUC: Kafle & Kanan 2017, arXiv 1703.09684. Shikra: Chen et al. 2023, arXiv 2306.15195.
"""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.simulate.scenes import ATTRIBUTES, POSITIONS
from mindllm.utils.files import write_json

QUESTIONS_FILE = "OpenEnded_mscoco_scenes_questions.json"
ANNOTATIONS_FILE = "mscoco_scenes_annotations.json"
BOXES_FILE = "REC_scenes.jsonl"
IMAGE_SIZE = 448  # pixels, of width and height
Scene = Mapping[Hashable, str]


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about a scene.

    Parameters
    ----------
    question_type : str
        As TDIUC calls it.
    question, answer : str
    """

    question_type: str
    question: str
    answer: str


def write_questions(scene: Scene, rng: np.random.Generator) -> list[SceneQuestion]:
    """Write the questions about a scene; which animal or person a yes-no question names is drawn.

    Examples
    --------
    >>> scene = {"number": "two", "agent": "dog", "action": "running", "place": "beach"}
    >>> scene |= {"object": "ball", "position": "upper_left"}
    >>> for item in write_questions(scene, np.random.default_rng(0))[:2]:
    ...     print(item.question, item.answer)
    How many are there? two
    Where are they? beach
    """
    others = [agent for agent in ATTRIBUTES["agent"] if agent != scene["agent"]]
    is_there = bool(rng.integers(2))
    asked = scene["agent"] if is_there else str(rng.choice(others))
    position = POSITIONS["position"][scene["position"]]
    return [
        SceneQuestion("counting", "How many are there?", scene["number"]),
        SceneQuestion("scene_recognition", "Where are they?", scene["place"]),
        SceneQuestion("activity_recognition", "What are they doing?", scene["action"]),
        SceneQuestion("object_recognition", "What object is there?", scene["object"]),
        SceneQuestion("object_presence", f"Is there a {asked}?", "yes" if is_there else "no"),
        SceneQuestion("positional_reasoning", "In which part of the image are they?", position),
    ]


def position_box(position: str) -> list[int]:
    """Return the quadrant of a position as x1, y1, x2, y2 in pixels, from the upper left.

    Examples
    --------
    >>> position_box("lower_left")
    [0, 224, 224, 448]
    """
    vertical, horizontal = position.split("_")
    half = IMAGE_SIZE // 2
    x, y = half * (horizontal == "right"), half * (vertical == "lower")
    return [x, y, x + half, y + half]


def write_question_files(folder: Path, stimuli: pd.DataFrame, seed: int) -> None:
    """Write all questions and boxes about scenes, whose images are known by `coco_id`."""
    rng = np.random.default_rng([seed, 5])
    scenes = stimuli.to_dict("records")
    items = [(scene["coco_id"], item) for scene in scenes for item in write_questions(scene, rng)]
    questions, annotations = [], []
    for number, (image, item) in enumerate(items, 1):
        ids = {"question_id": number, "image_id": image}
        answer = {"answer": item.answer, "answer_id": 1, "answer_confidence": "yes"}
        questions.append(ids | {"question": item.question})
        annotations.append(
            ids
            | {"answers": [answer], "ans_source": "simulated", "question_type": item.question_type}
        )
    write_json(folder / QUESTIONS_FILE, {"questions": questions})
    write_json(folder / ANNOTATIONS_FILE, {"annotations": annotations})
    lines = [json.dumps(record) for record in box_records(scenes)]
    (folder / BOXES_FILE).write_text("\n".join(lines) + "\n", "utf-8")


def box_records(scenes: Sequence[Scene]) -> Iterator[dict[str, object]]:
    """Yield the box of each scene's agent."""
    for scene in scenes:
        yield {
            "img_path": f"COCO_train2014_{scene['coco_id']:012d}.jpg",
            "expression": f"the {scene['agent']}",
            "bbox": position_box(scene["position"]),
            "dataset_name": "simulated scenes",
            "height": IMAGE_SIZE,
            "width": IMAGE_SIZE,
        }
