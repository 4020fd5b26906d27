"""Options and configuration files that cannot be: refused in one line, and nothing is written."""

import shutil
from pathlib import Path

import pytest

from mindllm import MindLLM
from mindllm.training import trainer
from tests.cli.bad_input import checksums, run_command

TRAIN = "train store --out x"
DECODE = "decode model scan.nii --mask mask.nii"
BIDS = "prepare bids bids --out x"
OPTIONS = [
    (f"{TRAIN} --preset huge", "unknown preset 'huge'"),
    (f"{TRAIN} --subjects sub-01,sub-99", "has no subject sub-99"),
    (f"{TRAIN} --split-scheme none", "has no split 'none'"),
    (f"{TRAIN} --llm ./nowhere", "nowhere"),
    (f"{TRAIN} --config nowhere.yaml", "there is no file nowhere.yaml"),
    (f"{TRAIN} --config store", "store is a folder"),
    (f"{TRAIN} --seed nan", "--seed"),
    (f"{TRAIN} --steps 3", "--steps"),
    (f"{TRAIN} --nodes 2 --partition gpu", "partition, nodes: options of --cluster"),
    (f"{TRAIN} --cluster magic", "--cluster"),
    (f"{TRAIN} --cluster local --partition gpu", "--cluster local is this machine alone"),
    (f"{TRAIN} --cluster local --tasks-per-node 2", "2 processes share the micro batches"),
    (f"{TRAIN} --cluster slurm --slurm-option account", "has no name or value"),
    (f"{TRAIN} --cluster slurm --subjects sub-99", "has no subject sub-99"),
    ("export-webdataset nowhere x", "nowhere is not a store"),
    ("export-webdataset store store/x", "lies in store"),
    ("export-webdataset store x --shard-size 0", "--shard-size"),
    ("export-webdataset store x --subjects sub-99", "has no subject sub-99"),
    ("train nowhere --out x", "nowhere is not a store"),
    ("train model --out x", "model is not a store"),
    ("train store", "--out"),
    ("evaluate model store --split dev", "dev"),
    ("evaluate model store --batch-size 1e9", "--batch-size"),
    ("evaluate model store --batch-size 100001", "--batch-size"),
    ("evaluate model store --split-scheme none", "has no split 'none'"),
    ("evaluate model store --dtype float8", "'float8' is not one of 'auto', 'float32', 'bfloat16'"),
    ("evaluate store store", "store is not a model"),
    ("evaluate-qa model store --source caption --out x --batch-size -1", "--batch-size"),
    ("evaluate-qa model store --out x", "--source"),
    ("evaluate-qa model nowhere --source caption --out x", "nowhere is not a store"),
    ("cross-validate store --out x --folds 1", "--folds"),
    ("cross-validate store --out x --folds 1000", "1000"),
    ("cross-validate store --out x --test-split dev", "dev"),
    ("cross-validate store --out x --subjects sub-01,sub-02", "2 subjects"),
    ("cross-validate store --out x --left-out sub-99", "sub-99"),
    ("cross-validate store --out x --seed 1.5", "--seed"),
    ("compare report nowhere", "nowhere is not a report"),
    ("compare report store", "store is not a report"),
    ("compare report", "Missing argument"),
    ("score texts.json nowhere.json", "there is no file nowhere.json"),
    ("score texts.json texts.json --task magic", "magic"),
    ("score list.json texts.json", "list.json"),
    ("score numbers.json texts.json", "the prediction for 'a' is 1"),
    ("score fewer.json texts.json", "must have the same keys"),
    ("score texts.json scan.nii", "scan.nii"),
    ("split store default --by stimulus --test 0.3", "'default'"),
    ("split store other --by stimulus --test 0.3", "already exists"),
    ("split store ../x --by stimulus --test 0.3", "'../x'"),
    ("split store s --by magic --test 0.3", "--by magic"),
    ("split store s --by stimulus", "a share is needed"),
    ("split store s --by stimulus --test some", "--test 0.2"),
    ("split store s --by stimulus --test 0.01", "leaves the split test empty"),
    ("split store s --by stimulus --test 0.6 --val 0.6", "sum to less than 1"),
    ("split store s --by subject --test sub-99", "sub-99"),
    ("split store s --by subject --test sub-01 --val sub-01", "each for one"),
    ("split store s --by subject --test sub-01,sub-02,sub-03", "leave some"),
    ("split store s --by sessions --sessions 9", "2 sessions"),
    ("split store s --by sessions --sessions 2", "changes nothing"),
    ("split store s --by sessions --sessions 0", "--sessions"),
    ("split store s --by sessions --subjects sub-99", "sub-99"),
    ("split store s --by stimulus --test 0.3 --from other", "begins anew"),
    ("qc store --split-scheme none", "has no split 'none'"),
    ("qc store --seed many", "--seed"),
    ("qc report", "report is not a store"),
    ("verify nowhere", "nowhere holds no manifest.json"),
    ("verify store --update now", "now holds no manifest.json"),
    ("convert nowhere.ckpt --roi-dir store --out x", "nowhere.ckpt"),
    ("convert texts.json --roi-dir store --out x", "texts.json"),
    ("convert texts.json --roi-dir store --out x --lora-alpha -1", "--lora-alpha"),
    ("convert texts.json --out x", "--roi-dir"),
    (f"{DECODE} --volumes 5-2", "'5-2' is no list of whole numbers"),
    (f"{DECODE} --volumes all", "'all' is no list of whole numbers"),
    (f"{DECODE} --volumes -1", "--volumes|'-1'"),
    (f"{DECODE} --atlas visual", "visual"),
    (f"{DECODE} --subject sub-01", "give either --mask"),
    ("decode model scan.nii", "give either --mask"),
    (f"{DECODE} --mask-threshold nan", "nan"),
    (f"{DECODE} --temperature 0", "--temperature"),
    (f"{DECODE} --max-new-tokens 0", "--max-new-tokens"),
    (f"{DECODE} --batch-size 0", "--batch-size"),
    (f"{DECODE} --n-best 0", "--n-best"),
    (f"{DECODE} --abstain-below 2", "--abstain-below"),
    (f"{DECODE} --by magic", "--by"),
    (f"{DECODE} --stream --json", "--stream"),
    (f"{DECODE} --choice dog", "add --by evidence"),
    (f"{DECODE} --by evidence --choice ,", "names nothing"),
    (f"{DECODE} --by evidence --guidance-scale 2", "are for --by generation. Leave them out"),
    (f"{DECODE} --guidance-scale -1", "--guidance-scale"),
    (f"{DECODE} --by likelihood --choice dog", "with 1 --choice; expected two or more"),
    (f"{DECODE} --by likelihood --choice a --choice b --stream", "weighs the answers of --choice"),
    (f"{DECODE} --by evidence --choice dog --choice dog", "'dog' twice"),
    (f"{DECODE} --by reader --choice dog", "samples texts and chooses by evidence"),
    (f"{DECODE} --by reader --stream", "samples texts and chooses by evidence"),
    (f"{DECODE} --by reader --n-samples 0", "--n-samples"),
    ("train-reader model store --out x --max-steps 0", "--max-steps"),
    ("train-reader model store --out x --brain-fraction 2", "--brain-fraction"),
    ("train-reader model store --out store", "store"),
    ("train-reader nowhere store --out x", "nowhere"),
    ("train-reader model store --out x --corpus nowhere", "nowhere"),
    ("demo --out x --n-subjects 2", "--n-subjects"),
    ("demo --out x --n-subjects -5", "--n-subjects"),
    ("demo --out x --seed -1", "--seed"),
    ("config --all", "--all"),
    (f"{BIDS} --dtype int8", "int8"),
    (f"{BIDS} --n-jobs 0", "--n-jobs"),
    (f"{BIDS} --nan zero", "zero"),
    (f"{BIDS} --val-fraction 2", "--val-fraction"),
    ("prepare bids nowhere --out x", "nowhere"),
    ("prepare nsd nowhere --out x", "nowhere"),
    ("prepare nsd bids --out x --subjects one", "one"),
    ("prepare nsd bids --out x --sessions 9-1", "9-1"),
    ("prepare glmsingle bids --out x", "--"),
    ("prepare magic bids --out x", "magic"),
    ("magic", "magic"),
]
CONFIGS = [
    ("[1, 2]", ""),
    ("3", ""),
    ("layers: 3", "layers"),
    ("preset: [paper]", "preset"),
    ("seed: 1.5", "seed"),
    ("alignment: 3", "alignment"),
    ("alignment: {max_steps: -1}", "alignment.max_steps"),
    ("alignment: {max_steps: 10000000000}", "alignment.max_steps"),
    ("alignment: {batch_size: 0}", "alignment.batch_size"),
    ("alignment: {batch_size: 1000000000000}", "alignment.batch_size"),
    ("alignment: {steps: 3}", "alignment.steps"),
    ("instruction_tuning: {learning_rate: 0}", "instruction_tuning.learning_rate"),
    ("source_weights: {caption: -1}", "source_weights.caption"),
    ("source_weights: {nothing: 1}", "nothing"),
    ("source_weights: [caption]", "source_weights"),
    ("voxel_dropout: [0.1]", "voxel_dropout"),
    ("voxel_dropout: [0.1, 1.5]", "voxel_dropout"),
    ("voxel_dropout: [0.6, 0.1]", "voxel_dropout"),
    ("mixup_prob: 2", "mixup_prob"),
    ("eval_steps: 0", "eval_steps"),
    ("num_validation_subjects: 3", "3"),
    ("encoder: {num_queries: 0}", "num_queries"),
    ("encoder: {num_queries: 1000000000000}", "num_queries"),
    ("encoder: {hidden_size: 1000000, memory_size: 0, num_fmri_tokens: 1000000}", "GiB"),
    ("encoder: {value_dim: 8}", "num_fmri_tokens"),
    ("encoder: {layers: 3}", "layers"),
    ("encoding_model: {rank: 0}", "rank"),
    ("init_from: model\npreset: paper", "init_from"),
    ("{", "options.yaml"),
    ("seed: 1\nseed: 2", "comes twice"),
]


@pytest.fixture
def folder(good_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good input, beside files that are none; nothing heavy can be loaded."""

    def load(*arguments: object, **options: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(MindLLM, "from_pretrained", load)
    monkeypatch.setattr(trainer, "load_language_model", load)
    shutil.copytree(good_inputs, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bids").mkdir()
    for name, content in (("list", "[1]"), ("numbers", '{"a": 1, "b": 2}'), ("fewer", '{"a": ""}')):
        (tmp_path / f"{name}.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "message"), OPTIONS)
def test_an_option_that_cannot_be_is_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    before = checksums(folder)
    status, error = run_command(words, monkeypatch, capsys)
    shown = " ".join(error.replace("│", " ").split())
    assert status in (1, 2), shown
    assert any(part in shown for part in message.split("|")), shown
    assert status == 2 or error.splitlines()[-1].startswith("error: "), error
    assert checksums(folder) == before


@pytest.mark.parametrize(("content", "message"), CONFIGS)
def test_training_options_that_cannot_be_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    (folder / "options.yaml").write_text(content)
    before = checksums(folder)
    status, error = run_command(f"{TRAIN} --config options.yaml", monkeypatch, capsys)
    assert status == 1, error
    assert error.splitlines()[-1].startswith("error: "), error
    assert message in error, error
    assert checksums(folder) == before
