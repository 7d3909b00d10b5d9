import json
import warnings
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from llava.inference.embedded import SOURCE_ROOT
from llava.model import LlavaConfig
from llava.train.arguments import KINDS, TrainingArguments
from llava.train.run import parse
from visionzip_patch import VisionZipConfig

RECIPES = sorted(str(path.relative_to(SOURCE_ROOT)) for path in (SOURCE_ROOT / "configs").rglob("*.yaml"))
NEEDED = ["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "out"]
PLAIN = ["--deepspeed", "none", "--report_to", "none", "--bf16", "False"]  # for any machine

# What the command lines that LLaVA publishes for pretraining, tuning and LoRA have in common.
LLAVA = """--model_name_or_path lmsys/vicuna-13b-v1.5 --image_folder ./playground/data --data_path d.json
--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2
--mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True --output_dir out --num_train_epochs 1
--per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps
--save_total_limit 1 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True
--model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True
--report_to none"""
STAGES = {
    "pretrain": "--version plain --tune_mm_mlp_adapter True --per_device_train_batch_size 32 --save_steps 24000 "
    "--learning_rate 1e-3",
    "finetune": "--version v1 --pretrain_mm_mlp_adapter ./checkpoints/pretrain/mm_projector.bin --save_steps 50000 "
    "--image_aspect_ratio pad --group_by_modality_length True --learning_rate 2e-5 --local_rank=0",
    "lora": "--version v1 --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4",
    "qlora": "--version v1 --lora_enable True --bits 4 --double_quant True --quant_type nf4 --learning_rate 2e-4",
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Settings are the same everywhere, and TF32 is left as it was."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)


@pytest.fixture
def recipe(tmp_path):
    """`recipe("dominant: 54")` -> options that read a file of these lines."""

    def write(text: str) -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return ["--recipe", str(path), *NEEDED]

    return write


def test_recipe_gives_defaults_and_the_command_line_wins(recipe):
    options = recipe("learning_rate: 1e-3\ndominant: 54\ncontextual: 10\ntune_mm_mlp_adapter: true\nweight_decay:\n")
    run = parse([*options, *PLAIN, "--learning_rate", "2e-4", "--output-dir=elsewhere"])
    assert run.training.learning_rate == 2e-4
    assert run.training.output_dir == "elsewhere"
    assert run.training.weight_decay == 0.0
    assert run.model.tune_mm_mlp_adapter
    assert run.visionzip() == VisionZipConfig(54, 10)
    assert str(run.recipe) == options[1]


@pytest.mark.parametrize("number", ["2e-5", "2.0e-5", "0.00002", "'2e-5'"])
def test_numbers_in_every_spelling(recipe, number):
    assert parse([*recipe(f"learning_rate: {number}"), *PLAIN]).training.learning_rate == 2e-5


def test_values_of_several_parts(recipe):
    training = parse([*recipe("report_to: [none]\nlr_scheduler_kwargs: {num_cycles: 2}"), *PLAIN[:2]]).training
    assert training.report_to == []
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'. Did you mean learning_rate?"),
        ("1: 2", "unknown key 1."),
        ("dominant: many", "argument --dominant: invalid int value: 'many'"),
        ("dominant: 54.5", "argument --dominant: invalid int value: '54.5'"),
        ("dominant: true", "dominant: True; expected int."),
        ("bf16: 3", "argument --bf16: Truthy value expected: got 3"),
        ("bits: true", "argument --bits: invalid choice: 'True' (choose from 4, 8, 16)"),
        ("output_dir: [a]", "output_dir: ['a']; expected str."),
        ("save_strategy: no", "save_strategy: False; expected SaveStrategy or str. A text that YAML takes for"),
        ("- a", "expected lines of 'name: value', found list."),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_in_a_recipe_name_file_and_key(recipe, text, message):
    options = recipe(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011, the text is compared whole
        parse([*options, *PLAIN])
    assert str(error.value).startswith(f"{options[1]}: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data_fracton 0.1", "Unknown option --data_fracton. Did you mean --data_fraction"),
        ("--lora-enabled", "Unknown option --lora-enabled. Did you mean --lora_enable"),
        ("--data", "Unknown option --data."),
        ("stray", "'stray' belongs to no option"),
        ("--data_fraction 0", "--data_fraction 0.0: give a share over 0 and up to 1"),
        ("--data_fraction 1.1", "--data_fraction 1.1"),
        ("--data_fraction nan", "--data_fraction nan"),
        *((f"--learning_rate {rate}", f"--learning_rate {rate}: give a number of") for rate in ("nan", "inf", "-1.0")),
        ("--mm_projector_lr nan", "--mm_projector_lr nan: give a number of at least 0"),
        ("--weight_decay nan", "--weight_decay nan: give"),
        ("--weight_decay -0.5", "--weight_decay -0.5: give"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: give a whole number of at least 1"),
        ("--per_device_train_batch_size -4", "--per_device_train_batch_size -4: give"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: give"),
        ("--num_train_epochs 0", "--num_train_epochs 0.0: give a number above 0"),
        ("--num_train_epochs nan", "--num_train_epochs nan: give"),
        ("--max_steps 0", "--max_steps 0: give at least 1, or -1 to go by --num_train_epochs"),
        ("--max_steps -5", "--max_steps -5: give"),
        ("--save_steps 0", "--save_steps 0.0: give a number above 0"),
        ("--logging_steps nan", "--logging_steps nan: give"),
        ("--save_total_limit 0", "--save_total_limit 0: give"),
        ("--warmup_ratio nan", "nan: a share of all steps"),
        ("--warmup_ratio -0.1", "-0.1: a share of all steps"),
        ("--warmup_steps nan", "--warmup_steps nan: give"),
        ("--max_grad_norm inf", "--max_grad_norm inf: give"),
        ("--adam_beta2 1", "--adam_beta2 1.0: give a share from 0 to below 1"),
        ("--lora_dropout 1.5", "--lora_dropout 1.5: give"),
        ("--lora_r 0", "--lora_r 0: give"),
        ("--model_max_length 0", "--model_max_length 0: give"),
        ("--seed -1", "--seed -1: give"),
        ("--version v7", "--version v7 is unknown; choose one of .*vicuna_v1"),
        ("--bits 5", "invalid choice: '5'"),
        ("--warmup_ratio 3", "3: a share of all steps, .* --warmup_steps takes steps"),
        ("--dominant 54", "--dominant and --contextual go together; got 54 and None"),
        ("--dominant 0 --contextual 1", "dominant=0"),
        ("--dominant 54 --contextual 10 --tokens_per_image 64", "--tokens_per_image replaces"),
        ("--merge mean", "--merge needs a budget"),
        ("--selector random", "--selector needs a budget"),
        ("--selector best", "invalid choice: 'best'"),
        ("--dominant 54 --contextual 10 --selector_seed 1", "--selector_seed 1: the selector visionzip draws nothing"),
        ("--tune_mm_mlp_adapter --lora_enable", "give one of them"),
        ("--tune_mm_mlp_adapter --freeze_mm_mlp_adapter", "--tune_mm_mlp_adapter trains the projector"),
        ("--freeze_backbone --freeze_mm_mlp_adapter", "--freeze_backbone trains the projector"),
        ("--bits 4", "Weights of 4 bits cannot be trained: add --lora_enable True"),
        ("--output_dir=", "A run needs --output_dir: on the command line, or in a --recipe"),
        ("--recipe none.yaml", "none.yaml: no such file, .*configs/finetune_projector.yaml"),
        ("--deepspeed ./scripts/zero2.json", "./scripts/zero2.json: no such file, .*configs/deepspeed/zero2.json"),
    ],
)
def test_mistakes_on_the_command_line(monkeypatch, options, message):
    def refuse(self):
        raise AssertionError("processes were connected")

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", refuse)
    with pytest.raises(ValueError, match=message):
        parse([*NEEDED, *options.split()])


@pytest.mark.parametrize("options", ["--bits 4 --lora_enable", "--bits 8 --tune_mm_mlp_adapter", "--merge mean"])
def test_what_belongs_together_passes(options):
    budget = ["--dominant", "54", "--contextual", "10"]
    assert parse([*NEEDED, *PLAIN, *budget, *options.split()]).visionzip()


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ("", VisionZipConfig(54, 10)),
        ("--dominant 27 --contextual 5", VisionZipConfig(27, 5)),
        ("--tokens_per_image 160 --merge mean", VisionZipConfig(tokens_per_image=160, merge="mean")),
        ("--selector random --selector_seed 2", VisionZipConfig(54, 10, selector="random", seed=2)),
    ],
)
def test_a_budget_replaces_that_of_the_recipe(recipe, options, budget):
    text = "dominant: 54\ncontextual: 10"
    assert parse([*recipe(text), *PLAIN, *options.split()]).visionzip() == budget


def test_counts_replace_tokens_per_image_of_the_recipe(recipe):
    options = [*recipe("tokens_per_image: 160"), *PLAIN, "--dominant", "27", "--contextual", "5"]
    assert parse(options).visionzip() == VisionZipConfig(27, 5)


def test_the_shipped_recipes_are_there():
    names = ["finetune", "finetune_lora", "finetune_projector", "pretrain"]
    assert [Path(path).stem for path in RECIPES] == names * 2


@pytest.mark.parametrize("path", RECIPES)
def test_shipped_recipes_parse_from_any_folder(monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    run = parse(["--recipe", path, "--data_path", "d.json", "--output_dir", "out", *PLAIN])
    trains = (run.model.tune_mm_mlp_adapter, run.training.lora_enable)
    name = Path(path).stem
    assert trains == (name in ("pretrain", "finetune_projector"), name == "finetune_lora")
    assert (run.visionzip() is None) == (name == "pretrain")
    assert 0 < run.training.warmup_steps < 1


@pytest.mark.parametrize("stage", STAGES)
def test_published_command_lines_of_llava_parse_without_a_warning(stage):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = parse([*LLAVA.split(), *STAGES[stage].split()])
    training = run.training
    assert training.warmup_steps == 0.03
    assert training.eval_strategy == "no"
    assert training.bf16
    assert training.use_cpu
    assert training.tf32 is None
    assert training.gradient_checkpointing
    assert getattr(training, "activation_checkpointing", True)
    assert run.model.mm_vision_select_layer == -2
    assert run.visionzip() is None
    assert training.bits == (4 if stage == "qlora" else 16)


def test_defaults_that_differ_from_those_of_transformers():
    training = parse([*NEEDED, *PLAIN]).training
    assert training.optim == "adamw_torch"
    assert not training.remove_unused_columns
    assert not training.logging_nan_inf_filter
    assert training.average_tokens_across_devices


def test_a_reporter_that_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setattr("llava.train.coherence.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ImportError, match=r"--report_to wandb is not installed. Choose of tensorboard, none, or pip"):
        parse([*NEEDED, "--report_to", "wandb"])


@pytest.mark.parametrize("installed", [True, False])
def test_reports_go_to_tensorboard_where_it_is_installed(monkeypatch, installed):
    available = ["tensorboard"] if installed else []
    monkeypatch.setattr("llava.train.arguments.is_tensorboard_available", lambda: installed)
    monkeypatch.setattr("llava.train.coherence.get_available_reporting_integrations", lambda: available)
    assert parse(NEEDED).training.report_to == available


def test_several_gpus_want_several_processes(monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"One process was started, and there are 2 GPUs.*--nproc_per_node 2"):
        parse([*NEEDED, *PLAIN])


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "expected a JSON object")])
def test_broken_deepspeed_settings(tmp_path, content, message):
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse([*NEEDED, "--deepspeed", str(path)])


def test_deepspeed_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("llava.train.coherence.is_deepspeed_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install deepspeed. --deepspeed none trains without"):
        parse([*NEEDED, "--deepspeed", "configs/deepspeed/zero2.json"])


def test_settings_are_json_and_tell_runs_apart():
    settings = parse([*NEEDED, *PLAIN]).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert parse([*NEEDED, *PLAIN, "--output_dir", "other", "--logging_steps", "3"]).settings() == settings
    changed = parse([*NEEDED, *PLAIN, "--learning_rate", "1e-4", "--dominant", "54", "--contextual", "10"]).settings()
    assert {name for name in settings if settings[name] != changed[name]} == {"learning_rate", "dominant", "contextual"}


def test_every_option_has_help():
    assert [each.name for kind in KINDS for each in fields(kind) if not each.metadata.get("help")] == []


def test_help_shows_own_options_and_help_all_the_rest(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    own = capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(["--help-all"])
    everything = capsys.readouterr().out
    for shown in ("--dominant N", "--data_fraction X", "--lora_r N", "--output_dir TEXT"):
        assert f"\n  {shown}" in own
        assert f"\n  {shown}" in everything
    assert "\n  --adam_beta1 X" in everything
    assert "\n  --adam_beta1" not in own


def test_deepspeed_wants_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("llava.train.coherence.is_deepspeed_available", lambda: True)
    monkeypatch.setattr("llava.train.coherence.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs a launcher, even for one process: torchrun"):
        parse([*NEEDED, "--deepspeed", "configs/deepspeed/zero2.json"])


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_transformers_fills_in_the_deepspeed_settings(monkeypatch, name, stage):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import get_zero_config

    monkeypatch.setenv("RANK", "0")
    options = [*PLAIN, "--deepspeed", f"configs/deepspeed/{name}.json", "--gradient_accumulation_steps", "2"]
    run = parse([*NEEDED, *options])
    assert run.training.zero_stage == run.settings()["zero_stage"] == stage
    filled = run.training.hf_deepspeed_config
    filled.trainer_config_finalize(run.training, SimpleNamespace(config=LlavaConfig()), num_training_steps=10)
    assert '"auto"' not in json.dumps(filled.config)
    assert filled.config["train_batch_size"] == 2 * run.training.per_device_train_batch_size
    assert get_zero_config(filled.config).stage == stage
    if stage == 3:
        with pytest.raises(ValueError, match=r"ZeRO-3 cannot split weights of 4 bits. Take .*zero2\.json"):
            parse([*NEEDED, *options, "--bits", "4", "--lora_enable"])
