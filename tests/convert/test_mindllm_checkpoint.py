"""Published checkpoints: the authors' answers, other sizes and numberings, refusals, LoRA."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindllm.convert.mindllm_checkpoint import convert_checkpoint
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.generation import generate_ids
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt
from mindllm.utils.errors import InputError
from tests.published import ENCODER, Sizes, make_published, reference_tokens, relabel, write_volume

REGIONS = {"HCP_MMP1": 9, "floc-faces": 2, "Kastner2015": 4}


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    if not (shared / "official" / "official.ckpt").is_file():
        pytest.skip(f"no golden answers of the published model at {shared / 'official'}")
    return shared / "official"


@pytest.fixture(scope="session", params=["as published", "relabelled"])
def converted(golden: Path, request, tmp_path_factory) -> tuple[MindLLM, dict[str, str]]:
    """The golden checkpoint as a model folder, and how its people are called there."""
    folder = tmp_path_factory.mktemp("converted")
    people = {1: 1, 2: 2, 8: 8}
    source, rois = golden / "official.ckpt", golden / "roi"
    if request.param == "relabelled":
        people = {1: 6, 2: 1, 8: 3}
        relabel(source, rois, folder / "source", people, seed=5)
        source, rois = folder / "source" / "model.ckpt", folder / "source" / "roi"
    convert_checkpoint(source, rois, str(golden / "tiny-vicuna"), folder / "model")
    return MindLLM.from_pretrained(folder / "model"), {
        f"subj{a:02d}": f"subj{b:02d}" for a, b in people.items()
    }


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    """Within 1e-4 of the largest number."""
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert (found.detach() - expected).abs().max() <= 1e-4 * expected.abs().max()


def single(prompt: EncodedPrompt, fmri_id: int) -> tuple[list[int], list[int]]:
    """A prompt's ids and loss mask with one place for the scan, as the golden answers have them."""
    keep = np.ones(len(prompt.input_ids), bool)
    keep[prompt.fmri_token_positions[1:]] = False
    assert (prompt.input_ids[prompt.fmri_token_positions] == fmri_id).all()
    return prompt.input_ids[keep].tolist(), (prompt.labels[keep] != IGNORE_INDEX).astype(
        int
    ).tolist()


def test_golden_tokens(golden: Path, converted) -> None:
    model, names = converted
    arrays = np.load(golden / "arrays.npz")
    groups, expected = [], []
    for subject, own in names.items():
        values = arrays[f"voxels_{subject}"]
        for row in range(len(values)):  # one at a time
            alone = model.encode(values[row], model.maskers[own])
            close(alone[0], arrays[f"encoder_tokens_{subject}"][row])
            close(model.projector(alone)[0], arrays[f"llm_tokens_{subject}"][row])
        groups.append((model.encoder.prepare_voxels(model.maskers[own]), torch.from_numpy(values)))
        expected.append(arrays[f"encoder_tokens_{subject}"])
    close(model.encoder(groups), np.concatenate(expected))  # and all people in one batch


def test_golden_conversations(golden: Path, converted) -> None:
    model, names = converted
    arrays, cases = np.load(golden / "arrays.npz"), json.loads((golden / "cases.json").read_text())
    tokens = torch.cat(
        [
            model.encode(
                arrays[f"voxels_{c['subject']}"][c["row"]], model.maskers[names[c["subject"]]]
            ).detach()
            for c in cases
        ]
    )
    whole = [model.processor(c["chat"]) for c in cases]
    for case, prompt, token in zip(cases, whole, tokens, strict=True):
        assert single(prompt, model.processor.fmri_token_id) == (
            case["input_ids"],
            case["assistant_mask"],
        )
        opened = model.processor(case["chat"][:-1], generate=True)
        assert single(opened, model.processor.fmri_token_id)[0] == case["prompt_ids"]
        total, count = prompt_log_likelihood(model, token[None], [prompt])
        assert -total.item() / count.item() == pytest.approx(case["loss"], abs=1e-4)
        assert greedy(model, token[None], [case["chat"]]) == [case["greedy_ids"]]
    total, count = prompt_log_likelihood(model, tokens, whole)
    np.testing.assert_allclose((-total / count).detach(), [c["loss"] for c in cases], atol=1e-4)
    assert greedy(model, tokens, [c["chat"] for c in cases]) == [c["greedy_ids"] for c in cases]
    for case, prompt, token in zip(cases, whole, tokens, strict=True):
        batch = model.processor.pad([prompt])
        logits = model.language_model.model(
            inputs_embeds=model.prepare_inputs_embeds(
                batch["input_ids"], batch["fmri_token_positions"], token[None]
            )
        ).logits
        close(logits[0, -8:], arrays[f"{case['subject']}_chat{case['row']}_logits_last8"])


def greedy(model: MindLLM, tokens: torch.Tensor, chats: list) -> list[list[int]]:
    asked = [chat[:-1] for chat in chats]
    return [ids[:24] for ids in generate_ids(model, tokens, asked, max_new_tokens=24)]


@pytest.mark.parametrize(
    ("subjects", "regions", "sizes"),
    [
        ([3], {"only": 3}, Sizes(layers=0)),
        ([8, 1], REGIONS, Sizes()),
        (
            list(range(1, 9)),
            REGIONS | {"B": 1, "a": 30},
            Sizes(queries=33, rank=12, frequencies=7, tokens=5, layers=3),
        ),
    ],
    ids=["one person", "two people", "eight people"],
)
def test_other_sizes(
    subjects: list[int], regions, sizes: Sizes, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Everything comes from the files; voxels outside the cortex (-1) are read as theirs."""
    state = make_published(tmp_path, subjects, regions, sizes, seed=len(subjects))
    convert_checkpoint(
        tmp_path / "model.ckpt", tmp_path / "roi", str(tiny_llm_folder), tmp_path / "model"
    )
    model = MindLLM.from_pretrained(tmp_path / "model")
    assert list(model.maskers) == [f"subj{n:02d}" for n in sorted(subjects)]
    for number in subjects:
        space = model.maskers[f"subj{number:02d}"]
        values = np.random.default_rng(number).normal(size=(3, len(space))).astype(np.float32)
        close(model.encode(values, space), reference_tokens(state, number, values, sizes))
        assert {name for table in space.parcel_names.values() for name in table.values()} >= {
            "1",
            "not cortex",
        }
    assert model.model_card.converted_from.tensors.keys() == state.keys()


def test_region_names_come_from_lookup_tables(
    tiny_llm_folder: Path, tmp_path: Path, caplog
) -> None:
    make_published(tmp_path, [1], {"A": 2, "B": 2}, Sizes(), outside=0)
    (tmp_path / "roi" / "A.ctab").write_text("0 Unknown 0 0 0 0\n1 V1 10 0 0 0\n2 V2 20 0 0 0\n")
    (tmp_path / "roi" / "subj01" / "B.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    convert_checkpoint(
        tmp_path / "model.ckpt", tmp_path / "roi", str(tiny_llm_folder), tmp_path / "model"
    )
    assert MindLLM.from_pretrained(tmp_path / "model").encoder.parcel_names == {
        "A": ["V1", "V2"],
        "B": ["left", "right"],
    }


def drop(name: str) -> Callable[[dict], None]:
    return lambda state: state.pop(name)


def reshape(name: str) -> Callable[[dict], None]:
    return lambda state: state.update({name: state[name][..., :-1]})


def spoil(name: str) -> Callable[[dict], None]:
    return lambda state: state[name].fill_(float("nan"))


STATES = {
    "a weight missing": (drop(f"{ENCODER}head.bias"), r"lacks fmri_encoder\.head\.bias"),
    "the queries missing": (
        drop(f"{ENCODER}neuro_informed_attn.query_embeddings"),
        r"lacks the tensor .*query_embeddings",
    ),
    "a projector missing": (drop("projector.weight"), r"lacks the tensor projector\.weight"),
    "a mask missing": (
        drop(f"{ENCODER}visual_mask_subject_4"),
        r"lacks the tensor .*visual_mask_subject_4",
    ),
    "a parcellation missing": (
        drop(f"{ENCODER}roi_HCP_MMP1_subject_1"),
        r"lacks fmri_encoder\.roi_HCP_MMP1_subject_1",
    ),
    "a table missing": (
        drop(f"{ENCODER}roi_embeds.HCP_MMP1"),
        r"left over .*roi_HCP_MMP1_subject_1",
    ),
    "a layer incomplete": (drop(f"{ENCODER}mlp.0.1.bias"), r"lacks fmri_encoder\.mlp\.0\.1\.bias"),
    "left over": (lambda s: s.update({"lm.weight": torch.ones(2)}), r"left over lm\.weight"),
    "a wrong shape": (
        reshape(f"{ENCODER}mlp.1.0.weight"),
        r"mlp\.1\.0\.weight \(expected \(20, 20\), found \(20, 19\)\)",
    ),
    "too few numbers": (
        reshape("projector.weight"),
        r"head\.weight makes 30 numbers, which is no multiple of the 9",
    ),
    "numbers whose product is too large": (
        lambda s: [
            tensor.fill_(1e30)
            for name, tensor in s.items()
            if "transform" in name or "region_feature_project" in name
        ],
        r"converted to single precision: \d+ of \d+ weights of \S+ are NaN or infinite",
    ),
    "NaN": (
        spoil(f"{ENCODER}mlp.1.0.weight"),
        r"NaN or infinity in fmri_encoder\.mlp\.1\.0\.weight",
    ),
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    make_published(tmp_path, [1, 4], REGIONS, Sizes())
    return tmp_path


def refused(folder: Path, llm: Path, message: str) -> None:
    """Nothing is written, and the message names the culprit."""
    with pytest.raises(InputError, match=message):
        convert_checkpoint(folder / "model.ckpt", folder / "roi", str(llm), folder / "model")
    assert not (folder / "model").exists()
    assert not list(folder.glob("*partial*"))


@pytest.mark.parametrize("case", STATES)
def test_a_mangled_checkpoint_is_refused(published: Path, tiny_llm_folder: Path, case: str) -> None:
    mangle, message = STATES[case]
    content = torch.load(published / "model.ckpt", weights_only=True)
    mangle(content["state_dict"])
    torch.save(content, published / "model.ckpt")
    refused(published, tiny_llm_folder, message)


def another_grid(rois: Path) -> None:
    write_volume(rois / "subj04" / "nsdgeneral.nii.gz", np.ones((3, 4, 5)))
    for file in (rois / "subj04").glob("*.nii.gz"):
        write_volume(file, np.ones((3, 4, 5)))


def own_grid(rois: Path) -> None:
    write_volume(rois / "subj04" / "floc-faces.nii.gz", np.ones((3, 4, 5)))


def another_mask(rois: Path) -> None:
    image = nib.load(rois / "subj04" / "nsdgeneral.nii.gz")
    write_volume(rois / "subj04" / "nsdgeneral.nii.gz", np.ones(image.shape))


def renumbered(rois: Path) -> None:
    image = nib.load(rois / "subj04" / "floc-faces.nii.gz")
    write_volume(rois / "subj04" / "floc-faces.nii.gz", (image.get_fdata() + 1) % 3)


def too_many(rois: Path) -> None:
    image = nib.load(rois / "subj04" / "floc-faces.nii.gz")
    write_volume(rois / "subj04" / "floc-faces.nii.gz", image.get_fdata() + 90)


def cut(rois: Path) -> None:
    file = rois / "subj04" / "floc-faces.nii.gz"
    file.write_bytes(file.read_bytes()[:-40])


ROIS = {
    "another grid than the checkpoint's": (
        another_grid,
        r"subj04/nsdgeneral\.nii\.gz is on another grid than the checkpoint.*visual_mask_subject_4",
    ),
    "another grid than the mask's": (own_grid, r"atlas floc-faces of subj04 .*another grid"),
    "another mask": (
        another_mask,
        r"subj04/nsdgeneral\.nii\.gz is another mask than .*visual_mask_subject_4",
    ),
    "another numbering": (
        renumbered,
        r"subj04/floc-faces\.nii\.gz numbers \d+ of \d+ voxels otherwise "
        r"than fmri_encoder\.roi_floc-faces_subject_4",
    ),
    "too many regions": (
        too_many,
        r"floc-faces\.nii\.gz has the parcel label 92, but floc-faces has 2 parcels",
    ),
    "truncated": (cut, "floc-faces.* is damaged or truncated"),
    "a file missing": (
        lambda rois: (rois / "subj01" / "HCP_MMP1.nii.gz").unlink(),
        r"there is no file .*subj01/HCP_MMP1\.nii\.gz",
    ),
    "a person missing": (
        lambda rois: shutil.rmtree(rois / "subj04"),
        r"left over visual_mask_subject_4: .* has no folder subj04",
    ),
    "nobody": (lambda rois: shutil.rmtree(rois), "has no folder of a subject"),
}


@pytest.mark.parametrize("case", ROIS)
def test_roi_files_that_do_not_fit_are_refused(
    published: Path, tiny_llm_folder: Path, case: str
) -> None:
    spoil, message = ROIS[case]
    spoil(published / "roi")
    refused(published, tiny_llm_folder, message)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_code_in_a_checkpoint_is_refused_and_not_run(
    published: Path, tiny_llm_folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(published)
    content = torch.load("model.ckpt", weights_only=True)
    torch.save(content | {"hyper_parameters": Bomb()}, "model.ckpt")
    refused(published, tiny_llm_folder, r"reading it would run code \(.*mkdir")
    (published / "model.ckpt").write_bytes(
        pickle.dumps(content | {"hyper_parameters": Bomb()})
    )  # no zip file
    refused(published, tiny_llm_folder, "is refused")
    assert not Path("bomb-went-off").exists()


def test_settings_beside_the_weights_are_passed_over(
    published: Path, tiny_llm_folder: Path, monkeypatch
) -> None:
    """Lightning writes the module's arguments, a tokenizer among them: read as empty stand-ins."""
    content = torch.load(published / "model.ckpt", weights_only=True)
    settings = {
        "tokenizer": AutoTokenizer.from_pretrained(tiny_llm_folder),
        "peft_config": LoraConfig(r=4),
        "lr": 1e-3,
    }
    torch.save(content | {"hyper_parameters": settings}, published / "model.ckpt")
    monkeypatch.setattr(
        LoraConfig, "__setstate__", lambda *_: pytest.fail("it was run"), raising=False
    )
    monkeypatch.setattr(
        type(settings["tokenizer"]),
        "__setstate__",
        lambda *_: pytest.fail("it was run"),
        raising=False,
    )
    convert_checkpoint(
        published / "model.ckpt", published / "roi", str(tiny_llm_folder), published / "model"
    )
    assert MindLLM.from_pretrained(published / "model").maskers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "is damaged or truncated, or no plain checkpoint"),
        (b"", "is damaged or truncated"),
        ({"weights": torch.ones(2)}, r"holds no `state_dict` of tensors.*\['weights'\]"),
        ([torch.ones(2)], "holds no `state_dict` of tensors.*list"),
        ({"state_dict": {"a": 1}}, "holds no `state_dict` of tensors"),
    ],
)
def test_other_files_are_refused(
    published: Path, tiny_llm_folder: Path, content, message: str
) -> None:
    if isinstance(content, bytes):
        (published / "model.ckpt").write_bytes(content)
    else:
        torch.save(content, published / "model.ckpt")
    refused(published, tiny_llm_folder, message)


def test_a_truncated_checkpoint_is_refused(published: Path, tiny_llm_folder: Path) -> None:
    file = published / "model.ckpt"
    file.write_bytes(file.read_bytes()[:-500])
    refused(published, tiny_llm_folder, "is damaged or truncated")
    file.unlink()
    refused(published, tiny_llm_folder, "there is no file")


def test_a_language_model_of_another_hidden_size_is_refused(
    tmp_path: Path, tiny_llm_folder: Path
) -> None:
    make_published(tmp_path, [1], {"A": 2}, Sizes(llm_width=48))
    refused(tmp_path, tiny_llm_folder, "for a language model of hidden size 48; .* has 32")


def test_lora_weights_are_carried_over(published: Path, tiny_llm_folder: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llm_folder), config).eval()
    weights = {
        name: torch.randn_like(tensor) * 0.2
        for name, tensor in get_peft_model_state_dict(theirs).items()
    }
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora" in name:
                parameter.copy_(weights[name.replace(".default", "")])
    content = torch.load(published / "model.ckpt", weights_only=True)
    torch.save(content | {"peft_model": weights}, published / "model.ckpt")
    convert_checkpoint(
        published / "model.ckpt", published / "roi", str(tiny_llm_folder), published / "model"
    )
    model = MindLLM.from_pretrained(published / "model")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(
        model.language_model.model(input_ids=ids).logits, theirs(input_ids=ids).logits
    )
    model.save_pretrained(published / "again")  # and saved again, as after further training
    again = MindLLM.from_pretrained(published / "again")
    torch.testing.assert_close(
        again.language_model.model(input_ids=ids).logits, theirs(input_ids=ids).logits
    )
    assert not any(parameter.requires_grad for parameter in again.language_model.model.parameters())

    for change, message in (
        ({"nonsense": torch.ones(2)}, r"unknown tensors \['nonsense'\]"),
        (
            {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)},
            "no layers .*layers.9",
        ),
    ):
        torch.save(content | {"peft_model": weights | change}, published / "odd.ckpt")
        with pytest.raises(InputError, match=message):
            convert_checkpoint(
                published / "odd.ckpt", published / "roi", str(tiny_llm_folder), published / "odd"
            )
        assert not (published / "odd").exists()
