"""The surface that lmms-eval's `llava` model and LLaVA's own scripts import and call, used as they use it."""

import copy
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from llava import LlavaLlamaForCausalLM
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.tokenizer import load_tokenizer
from llava.utils import disable_torch_init

SURFACE = {  # module -> upstream's names, as public code imports them
    "llava": "LlavaLlamaForCausalLM",
    "llava.constants": "CONTROLLER_HEART_BEAT_EXPIRATION DEFAULT_IMAGE_PATCH_TOKEN DEFAULT_IMAGE_TOKEN "
    "DEFAULT_IM_END_TOKEN DEFAULT_IM_START_TOKEN IGNORE_INDEX IMAGE_PLACEHOLDER IMAGE_TOKEN_INDEX LOGDIR "
    "WORKER_HEART_BEAT_INTERVAL",
    "llava.conversation": "Conversation SeparatorStyle conv_templates default_conversation conv_vicuna_v0 "
    "conv_vicuna_v1 conv_llama_2 conv_mistral_instruct conv_chatml_direct conv_mpt conv_llava_plain conv_llava_v0 "
    "conv_llava_v0_mmtag conv_llava_v1 conv_llava_v1_mmtag conv_llava_llama_2",
    "llava.mm_utils": "KeywordsStoppingCriteria divide_to_patches expand2square get_anyres_image_grid_shape "
    "get_model_name_from_path load_image_from_base64 process_anyres_image process_images resize_and_pad_image "
    "select_best_resolution tokenizer_image_token",
    "llava.utils": "build_logger disable_torch_init moderation_msg pretty_print_semaphore rank0_print "
    "server_error_msg violates_moderation",
    "llava.model": "LlavaConfig LlavaLlamaForCausalLM LlavaMistralConfig LlavaMistralForCausalLM",
    "llava.model.builder": "load_pretrained_model",
    "llava.model.llava_arch": "LlavaMetaForCausalLM LlavaMetaModel unpad_image",
    "llava.model.language_model.llava_llama": "LlavaConfig LlavaLlamaForCausalLM LlavaLlamaModel",
    "llava.model.language_model.llava_mistral": "LlavaMistralConfig LlavaMistralForCausalLM LlavaMistralModel",
    "llava.model.multimodal_encoder.builder": "build_vision_tower",
    "llava.model.multimodal_encoder.clip_encoder": "CLIPVisionTower",
    "llava.model.multimodal_projector.builder": "build_vision_projector",
    "llava.eval.run_llava": "eval_model image_parser load_image load_images",
    "llava.eval.model_vqa": "eval_model",
    "llava.eval.model_vqa_loader": "CustomDataset collate_fn create_data_loader eval_model get_chunk split_list",
    "llava.eval.model_vqa_science": "eval_model",
    "llava.eval.model_vqa_mmbench": "eval_model",
    "llava.eval.eval_pope": "eval_pope",
    "llava.eval.eval_science_qa": "main",
    "llava.eval.eval_textvqa": "eval_single prompt_processor",
    "llava.eval.m4c_evaluator": "EvalAIAnswerProcessor STVQAAccuracyEvaluator TextVQAAccuracyEvaluator",
    "llava.serve.cli": "load_image main",
    "llava.train.train": "DataArguments DataCollatorForSupervisedDataset LLaVATrainer LazySupervisedDataset "
    "ModelArguments TrainingArguments find_all_linear_names get_mm_adapter_state_maybe_zero_3 "
    "get_peft_state_maybe_zero_3 get_peft_state_non_lora_maybe_zero_3 make_supervised_data_module maybe_zero_3 "
    "preprocess preprocess_llama_2 preprocess_mpt preprocess_multimodal preprocess_plain preprocess_v1 rank0_print "
    "safe_save_model_for_hf_trainer smart_tokenizer_and_embedding_resize train",
    "llava.train.train_mem": "train",
    "llava.train.llava_trainer": "LLaVATrainer LengthGroupedSampler get_length_grouped_indices "
    "get_mm_adapter_state_maybe_zero_3 get_modality_length_grouped_indices maybe_zero_3 split_to_even_chunks",
}


@pytest.mark.parametrize("module", SURFACE)
def test_names_that_others_import_are_there(module):
    found = import_module(module)
    assert [name for name in SURFACE[module].split() if not hasattr(found, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_a_star_import_binds_the_classes_and_registers_them():
    bound = {}
    exec("from llava.model import *", bound)
    assert bound.keys() >= set(SURFACE["llava.model"].split())
    assert isinstance(AutoConfig.for_model("llava_mistral"), bound["LlavaMistralConfig"])


@pytest.fixture(scope="module")
def loaded(golden):
    disable_torch_init()
    path = str(golden / "models/llava-v1.5-tiny")
    name = get_model_name_from_path(path)
    return load_pretrained_model(path, None, name, device_map="cpu", multimodal=True, attn_implementation="sdpa")


@pytest.fixture
def pictures(golden):
    return [
        Image.open(golden / "images" / name).convert("RGB") for name in ("street_640x480.png", "square_336x336.png")
    ]


def ask(question, tokenizer):
    conversation = copy.deepcopy(conv_templates["vicuna_v1"])
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
    conversation.append_message(conversation.roles[1], None)
    return tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")


def test_generation_as_an_evaluator_does_it(loaded, pictures):
    """Half-precision images on an fp32 model, left-padded batch with a mask, the whole output decoded."""
    tokenizer, model, processor, max_length = loaded
    assert isinstance(model, LlavaLlamaForCausalLM)
    assert max_length == 2048
    model.config.image_aspect_ratio = "pad"
    images = process_images(pictures, processor, model.config)
    images = [image.to(dtype=torch.float16, device="cpu") for image in images]
    prompts = [ask("What is the man holding?", tokenizer), ask("How many signs are there near the bridge?", tokenizer)]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat([p.new_full((longest - len(p),), pad_id), p]) for p in prompts])
    arguments = {
        "attention_mask": ids.ne(pad_id),
        "pad_token_id": pad_id,
        "images": images,
        "image_sizes": [picture.size for picture in pictures],
        "do_sample": False,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 6,
        "use_cache": True,
    }
    out = model.generate(ids, **arguments)
    assert out.shape[1] <= 6
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    for i, prompt in enumerate(prompts):
        call = {**arguments, "images": images[i : i + 1], "image_sizes": arguments["image_sizes"][i : i + 1]}
        alone = model.generate(prompt[None], **{**call, "attention_mask": None})
        assert tokenizer.decode(alone[0], skip_special_tokens=True) == texts[i]


def test_loglikelihood_as_an_evaluator_does_it(loaded, pictures):
    tokenizer, model, processor, _ = loaded
    images = process_images(pictures[:1], processor, model.config).half()
    ids = ask("What is the man holding?", tokenizer)[None]
    labels = ids.clone()
    labels[0, :-3] = IGNORE_INDEX
    with torch.inference_mode():
        out = model(input_ids=ids, labels=labels, images=images, use_cache=True, image_sizes=[pictures[0].size])
    assert out["loss"] > 0
    greedy = out["logits"].argmax(dim=-1)
    assert greedy[:, ids.shape[1] : 576 + ids.shape[1]].shape == (1, 575)


def test_stopping_and_accessors_as_upstream_scripts_use_them(loaded, pictures):
    tokenizer, model, processor, _ = loaded
    assert SeparatorStyle.TWO != SeparatorStyle.SINGLE
    assert DEFAULT_IM_START_TOKEN != DEFAULT_IM_END_TOKEN
    tower = model.get_vision_tower()
    assert tower.is_loaded
    assert tower.image_processor is processor
    assert model.get_model().mm_projector[0].in_features == tower.hidden_size == 64
    ids = ask("What is the man holding?", tokenizer)[None]
    images = process_images(pictures[:1], processor, model.config)
    free = model.generate(ids, images=images, do_sample=False, max_new_tokens=12)
    word = tokenizer.decode(free[0, :3], skip_special_tokens=True)
    stop = KeywordsStoppingCriteria([word], tokenizer, ids)
    stopped = model.generate(ids, images=images, do_sample=False, max_new_tokens=12, stopping_criteria=[stop])
    assert stopped.shape[1] < free.shape[1]
    assert torch.equal(stopped, free[:, : stopped.shape[1]])


def test_the_templates_of_the_chat_are_where_they_were():
    from llava.serve.loading import TEMPLATES

    assert set(TEMPLATES.values()) <= conv_templates.keys()
    assert "llava_llama" not in TEMPLATES  # Vicuna, Llama-2, Llama-3 and Yi are of this class


def test_a_checkpoint_is_found_from_any_folder(golden, tmp_path, monkeypatch):
    """`mm_vision_tower` of these checkpoints is relative to the checkpoint."""
    monkeypatch.chdir(tmp_path)
    for read in (LlavaLlamaForCausalLM, AutoModelForCausalLM):
        model = read.from_pretrained(golden / "models/llava-v1.5-tiny")
        model.get_vision_tower().load_model()
        assert model.get_vision_tower().num_patches == 576


@pytest.fixture
def asked(loaded, pictures):
    """A model, and a question about one picture as ids (1, T) and pixels."""
    tokenizer, model, processor, _ = loaded
    ids = ask("What is the man holding?", tokenizer)[None]
    return model, ids, process_images(pictures[:1], processor, model.config)


def test_modalities_as_callers_of_llava_next_give_them(asked):
    model, ids, images = asked
    options = {"images": images, "do_sample": False, "max_new_tokens": 3}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, modalities=["image"], **options), plain)
    for call in (model.generate, model.forward):
        with pytest.raises(ValueError, match="video cannot be given"):
            call(ids, images=images, modalities=["image", "video"])


def test_a_patched_preparation_is_gone_through(asked, monkeypatch):
    """As programs that drop tokens do it: on the class, and by what upstream's `generate` calls."""
    model, ids, images = asked
    options = {"images": images, "do_sample": False, "max_new_tokens": 6}
    plain = model.generate(ids, **options)
    prepare, lengths = LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal, []

    def counting(self, *args, scale=1, **kwargs):
        none, positions, mask, cache, embeds, labels = prepare(self, *args, **kwargs)
        if embeds is None:  # a step of decoding
            return none, positions, mask, cache, embeds, labels
        lengths.append(embeds.shape[1])
        return none, positions, mask, cache, embeds * scale, labels

    monkeypatch.setattr(LlavaMetaForCausalLM, "prepare_inputs_labels_for_multimodal", counting)
    assert torch.equal(model.generate(ids, **options), plain)
    assert lengths == [575 + ids.shape[1]]
    model.generate(ids, fast="static", **options)
    assert len(lengths) == 2
    assert model.generate(ids[:, :5], do_sample=False, max_new_tokens=2).shape == (1, 2)  # text alone
    for call in (model.engine, lambda: model.generate(ids, image_features=[torch.zeros(576, 64)])):
        with pytest.raises(ValueError, match="is another program's"):
            call()
    monkeypatch.setattr(
        model, "prepare_inputs_labels_for_multimodal", lambda *a, **k: counting(model, *a, scale=0, **k)
    )
    assert not torch.equal(model.generate(ids, **options), plain)


@torch.no_grad()
def test_the_encoder_run_by_hand_gives_the_tower_s_features(tiny_tower):
    """As programs that choose tokens themselves do: `vision_model` in the path, and `feature_select`."""
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for kind, feature in (("clip", "patch"), ("clip", "cls_patch"), ("siglip", "patch")):
        tower = tiny_tower(kind, select_feature=feature)
        keys = list(tower.state_dict())
        encoder = tower.vision_tower.vision_model
        assert len(encoder.encoder.layers) == 3
        output = tower.vision_tower(images, output_hidden_states=True)
        torch.testing.assert_close(tower.feature_select(output), tower(images))
        assert list(tower.state_dict()) == keys
        assert not any("vision_model" in key for key in keys)
        copied = copy.deepcopy(tower)
        assert copied.vision_tower.vision_model is copied.vision_tower


@pytest.fixture
def language_model():
    """A small LLaVA of upstream's training code before `initialize_vision_modules`: without vision."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaLlamaForCausalLM.config_class(vocab_size=1000, pad_token_id=0, **sizes)
    return LlavaLlamaForCausalLM(config)


@pytest.mark.parametrize("fsdp", [None, "full_shard auto_wrap"])
def test_a_language_model_learns_to_see(language_model, tower_folder, tmp_path, fsdp):
    model = language_model
    arguments = SimpleNamespace(
        vision_tower=tower_folder("clip"),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad",
        pretrain_mm_mlp_adapter=None,
    )
    assert model.get_vision_tower() is None
    model.get_model().initialize_vision_modules(model_args=arguments, fsdp=fsdp)
    tower = model.get_vision_tower()
    assert tower.is_loaded
    assert any("vision_tower" in name for name, _ in model.named_parameters()) == (fsdp is None)  # hidden from FSDP
    assert model.config.mm_hidden_size == tower.hidden_size
    assert model.encode_images(torch.zeros(1, 3, 56, 56)).shape == (1, 16, 48)
    assert model.get_model().image_newline.shape == (48,)

    tuned = {f"model.{name}": torch.ones_like(p) for name, p in model.get_model().named_parameters() if "proj" in name}
    projector = {name: value for name, value in tuned.items() if "mm_projector" in name}
    torch.save(projector, tmp_path / "mm_projector.bin")
    arguments.pretrain_mm_mlp_adapter = str(tmp_path / "mm_projector.bin")
    model.get_model().initialize_vision_modules(arguments)
    assert model.get_vision_tower() is tower
    assert all((p == 1).all() and p.requires_grad for p in model.get_model().mm_projector.parameters())
    torch.save(dict(list(projector.items())[1:]), tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="1 weights are missing"):
        model.get_model().initialize_vision_modules(arguments)


def test_image_tokens_get_rows(language_model, golden, tmp_path):
    model, tokenizer = language_model, load_tokenizer(golden / "models/vicuna-tiny")
    before = model.get_input_embeddings().num_embeddings
    room = before - len(tokenizer)
    assert room >= 0
    tokenizer.add_tokens([f"<filler{i}>" for i in range(room)])
    arguments = SimpleNamespace(mm_use_im_patch_token=False, mm_use_im_start_end=True, tune_mm_mlp_adapter=True)
    model.initialize_vision_tokenizer(arguments, tokenizer=tokenizer)
    for table, learns in ((model.get_input_embeddings(), True), (model.get_output_embeddings(), False)):
        assert len(table.weight) == before + 2
        torch.testing.assert_close(table.weight[-2:], table.weight[:before].mean(0).expand(2, -1))
        assert table.weight.requires_grad is learns
    assert model.config.mm_use_im_start_end

    rows = torch.stack([torch.full((48,), 1.0), torch.full((48,), 2.0)])
    torch.save({"model.embed_tokens.weight": rows}, tmp_path / "mm_projector.bin")
    arguments.pretrain_mm_mlp_adapter = str(tmp_path / "mm_projector.bin")
    model.initialize_vision_tokenizer(arguments, tokenizer)
    marks = tokenizer.convert_tokens_to_ids([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN])
    assert torch.equal(model.get_input_embeddings().weight[marks], rows)
    torch.save({"model.embed_tokens.weight": rows[:, 1:]}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"shape \(2, 47\)"):
        model.initialize_vision_tokenizer(arguments, tokenizer)


def test_bars_are_cut_off_features():
    features = torch.arange(2 * 4 * 6).view(2, 4, 6)
    assert torch.equal(import_module("llava.model.llava_arch").unpad_image(features, (60, 20)), features[:, 1:3])
    assert torch.equal(import_module("llava.model.llava_arch").unpad_image(features, (20, 40)), features[:, :, 2:4])


def test_a_batch_is_done_when_all_of_it_is(loaded):
    tokenizer = loaded[0]
    ids = tokenizer("stop", return_tensors="pt").input_ids
    stop = KeywordsStoppingCriteria(["stop"], tokenizer, torch.zeros(1, 1, dtype=torch.long))
    assert stop.call_for_batch(ids) is True
    assert stop.call_for_batch(torch.cat([ids, torch.zeros_like(ids)])) is False


def test_visionzips_own_lines_run_under_our_module_name(golden, pictures):
    from llava.eval.run_llava import eval_model  # noqa: F401  as its README imports it
    from visionzip_patch import visionzip

    model_path = str(golden / "models/llava-v1.5-tiny")
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        model_path=model_path, model_base=None, model_name=get_model_name_from_path(model_path)
    )
    model = visionzip(model, dominant=54, contextual=10)
    images = process_images(pictures[:1], image_processor, model.config).to(model.device, model.dtype)
    assert model.encode_images(images).shape[1] == 64
    assert visionzip(model).encode_images(images).shape[1] == 191 + 30
    out = model.generate(ask("What?", tokenizer)[None].to(model.device), images=images, max_new_tokens=2)
    assert out.shape[1] <= 2 < context_len
