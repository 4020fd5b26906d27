"""Training options: defaults, files, and errors."""

from pathlib import Path

import pytest

from mindllm.training.configuration import StageConfig, TrainConfig, read_config
from mindllm.utils.errors import InputError

DEFAULT = TrainConfig()


@pytest.mark.parametrize("stage", ["alignment", "instruction_tuning"])
def test_options_of_a_stage_keep_its_other_defaults(tmp_path: Path, stage: str) -> None:
    (tmp_path / "options.yaml").write_text(f"{stage}: {{max_steps: 5}}")
    config = read_config(tmp_path / "options.yaml", {})
    expected = getattr(DEFAULT, stage).model_copy(update={"max_steps": 5})
    assert getattr(config, stage) == expected
    assert config.model_copy(update={stage: getattr(DEFAULT, stage)}) == DEFAULT


def test_a_stage_that_is_passed_as_an_object_is_taken_as_it_is() -> None:
    options = StageConfig(max_steps=5, batch_size=2)
    assert TrainConfig(instruction_tuning=options).instruction_tuning == options
    assert DEFAULT.instruction_tuning.learning_rate != options.learning_rate


def test_printed_options_are_read_again(tmp_path: Path) -> None:
    config = TrainConfig(seed=4, encoder={"num_queries": 8}, alignment={"batch_size": 3})
    (tmp_path / "options.json").write_text(config.model_dump_json())
    assert read_config(tmp_path / "options.json", {}) == config
    assert read_config(tmp_path / "options.json", {"seed": 5}).seed == 5


def test_a_trained_model_is_not_aligned_again_unless_asked() -> None:
    assert TrainConfig(init_from="model").alignment.max_steps == 0
    config = TrainConfig(init_from="model", alignment={"batch_size": 8})
    assert config.alignment.max_steps == DEFAULT.alignment.max_steps
    with pytest.raises(ValueError, match="are those of that model; leave them out"):
        TrainConfig(init_from="model", preset="paper")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed: 1", r"sed: Extra inputs are not permitted, found 1.*`mindllm config`"),
        (
            "alignment: {max_steps: 5, batch_size: 0}",
            r"alignment.batch_size: .*greater than 0, found 0",
        ),
        ("alignment: {max_steps: 5, batchsize: 4}", r"alignment.batchsize: Extra inputs"),
        ("alignment: 3", r"alignment: .*StageConfig, found 3"),
        ("mixup_prob: 1.5", r"mixup_prob: .*less than 1, found 1.5"),
        ("noise: lots", r"noise: .*found 'lots'"),
        ("dtype: float8", r"dtype: .*found 'float8'"),
        ("preset: huge", r"unknown preset 'huge'; known: default"),
        ("encoder: {queries: 3}", r"encoder options: queries: Extra inputs"),
        ("encoder: {num_queries: -3}", r"encoder options: num_queries: .*greater than 0, found -3"),
        ("- a list", "holds list; expected keys and values"),
        ("a: [", r"cannot be read"),
    ],
)
def test_bad_configuration(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "options.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "options.yaml", {}).encoder_config()
    with pytest.raises(InputError, match=r"there is no file .*: expected a configuration"):
        read_config(tmp_path / "nowhere.yaml", {})
