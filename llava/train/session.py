"""Do the steps of a run around the training itself: read the data, claim the output folder, save the result."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object

from llava.conversation import conv_templates
from llava.data.collator import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.records import image_names, other_media, questions_of, read_records
from llava.data.subset import draw
from llava.data.verify import check
from llava.encode.build import build_cache
from llava.encode.store import FeatureCache, cache_key, open_cache
from llava.model.fields import owns_tower
from llava.model.save import all_or_nothing
from llava.train.arguments import TrainingArguments
from llava.train.loading import compute_dtype
from llava.train.report import gather_facts, peak_memory, write_report
from llava.train.run import Run
from llava.train.saving import save
from llava.train.sharding import gathered, is_first, wait_for_all
from llava.train.trainer import LLaVATrainer, checkpoints, remove_unfinished
from llava.utils.files import drop_lock, read_json, take_lock, write_json
from visionzip_patch import VisionZipConfig

logger = logging.getLogger(__name__)

RUN_FILE, RESULT_FILE = "run.json", "training.json"
RESULTS = (  # what a run leaves, as patterns
    *("config.json", "mm_projector.bin", "adapter_*", "non_lora_trainables.bin", "*.safetensors", "pytorch_model*.bin"),
    *("checkpoint-*", "loss.png", RESULT_FILE),
)


class Counts(NamedTuple):
    """How many samples there are, at each step of reading them."""

    in_file: int
    drawn: int  # of --data_fraction and --images_only
    bad: int  # left out with --skip_bad_data
    with_image: int  # of those that are used
    used: int


def read_data(run: Run) -> tuple[list[dict], Counts]:
    """Read the records to train on.

    Raises:
        ValueError: some of them cannot be used, and --skip_bad_data was not given.
    """
    data, training = run.data, run.training
    records = read_records(run.records)
    in_file = len(records)
    if data.images_only:
        # What brings another medium is no text alone: it is kept, to be refused below.
        records = [record for record in records if image_names(record) or other_media(record, questions_of(record))]
    if data.data_fraction < 1:
        seed = training.seed if training.data_seed is None else training.data_seed
        records = [records[i] for i in draw(records, data.data_fraction, seed)]
    drawn, report = len(records), check(records, data.image_folder)
    if report.bad and not data.skip_bad_data:
        raise ValueError(
            f"{run.records}: {report.summary()}\n"
            f"Fix them, or write a list without them: python -m llava.data.verify {run.records} --image-folder "
            f"{data.image_folder} --clean CLEAN.json; or leave them out, and count them, with --skip_bad_data True."
        )
    records = report.clean()
    if not records:
        raise ValueError(f"{run.records}: nothing is left to train on, of {in_file} samples.")
    with_image = sum(bool(image_names(record)) for record in records)
    return records, Counts(in_file, drawn, drawn - len(records), with_image, len(records))


def describe(counts: Counts) -> str:
    """Describe the counts in a sentence."""
    left_out = f", {counts.bad} unusable ones left out" if counts.bad else ""
    return (
        f"{counts.used:,} samples, {counts.with_image:,} of them with images; {counts.drawn:,} drawn from "
        f"{counts.in_file:,}{left_out}."
    )


def make_dataset(
    run: Run, records: list[dict], tokenizer, model, image_processor
) -> tuple[LazySupervisedDataset, DataCollatorForSupervisedDataset]:
    """Make the dataset, and the collator that makes batches of its samples."""
    cache = None
    if folder := run.data.cache_features:
        cache = features_of(folder, run, records, model, image_processor)
    dataset = LazySupervisedDataset(
        records,
        tokenizer,
        conversation=conv_templates[template_of(run, model)],
        image_folder=run.data.image_folder,
        image_processor=image_processor,
        config=model.config,
        cache=cache,
        skip_bad=run.data.skip_bad_data,
        max_length=run.training.model_max_length,
    )
    return dataset, DataCollatorForSupervisedDataset(tokenizer.pad_token_id, dataset.dummy)


def template_of(run: Run, model) -> str:
    """Name the prompt template that is trained with; `loading.load` chose it where the run names none."""
    return run.model.version or model.config.conv_mode


def features_of(folder: str, run: Run, records: Sequence[dict], model, image_processor) -> FeatureCache:
    """Open the features of every image in `folder`, computing those that are missing; then drop the tower."""
    names = dict.fromkeys(name for record in records for name in image_names(record))
    tower = model.get_vision_tower()
    with gathered(tower.parameters()):
        key = cache_key(model, image_processor)
        build_cache(folder, list(names), run.data.image_folder, model, image_processor, skip_bad=run.data.skip_bad_data)
    wait_for_all()
    if not owns_tower(model.config):  # else it is saved with the model
        tower.drop()
    return open_cache(folder, key)


def is_finished(output: Path, run: Run) -> bool:
    """Check whether an earlier run of the same settings has left its result in `output`, on every machine.

    Raises:
        ValueError: `output` belongs to a run of other settings, which are named, or holds files that no run wrote.
    """
    require_own_folder(output, run)
    if run.training.overwrite_output_dir:
        return False
    now, known = run.settings(), (output / RUN_FILE).is_file()
    before = read_json(output / RUN_FILE) if known else now
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        differences = "; ".join(f"{name} {before.get(name)} → {now[name]}" for name in changed[:6])
        raise ValueError(
            f"{output} belongs to a run with other settings: {differences}. Choose another --output_dir, or start "
            f"again there with --overwrite_output_dir."
        )
    return all(gather_object([known and (output / RESULT_FILE).is_file()]))


def require_own_folder(output: Path, run: Run) -> None:
    """Refuse to write over what the run reads, and into a folder with a model that no run has left there.

    Raises:
        ValueError: names the files.
    """
    model, training = run.model, run.training
    read = (model.model_name_or_path, model.vision_tower, training.lora_weight_path)
    if mixed := [name for name in read if name and Path(name).is_dir() and output.is_dir() and output.samefile(name)]:
        raise ValueError(f"--output_dir {output} is {mixed[0]}, which the run reads. Choose another --output_dir.")
    if not output.is_dir() or (output / RUN_FILE).is_file():
        return
    if there := sorted({path.name for pattern in RESULTS for path in output.glob(pattern)}):
        raise ValueError(
            f"{output} has no {RUN_FILE}, but {', '.join(there[:6])}, which the result would replace. "
            f"Choose another --output_dir."
        )


@contextmanager
def claimed(output: Path, run: Run) -> Iterator[None]:
    """Claim `output` for this run alone, and remove what a killed or an overwritten run has left.

    Raises:
        ValueError: it cannot be written to, another run is writing there, or machines hold different checkpoints.
    """
    training, lock = run.training, None
    choose_writers(output, training)
    try:
        if training.should_save:
            lock = take_lock(output / "run.lock")
            remove_unfinished(output)
            if training.overwrite_output_dir:
                discard(output)
            write_json(output / RUN_FILE, run.settings())
        remove_partial(output, training)
        wait_for_all()
        yield
    finally:
        if lock:
            drop_lock(lock, output / "run.lock")


def choose_writers(output: Path, training: TrainingArguments) -> None:
    """Let one process write to each `output`: the first of all, or of each machine if every machine has its own."""
    with tempfile.NamedTemporaryFile(dir=output, prefix=".shared-") if is_first() else nullcontext() as mark:
        [name] = broadcast_object_list([mark and Path(mark.name).name])
        assert name, "the first process has named its file"
        training.save_on_each_node = not all(gather_object([(output / name).exists()]))
    if training.deepspeed_plugin:
        checkpoint = training.deepspeed_plugin.deepspeed_config.setdefault("checkpoint", {})
        checkpoint["use_node_local_storage"] = training.save_on_each_node


def remove_partial(output: Path, training: TrainingArguments) -> None:
    """Delete the checkpoints whose other parts are missing on other machines, where a run was killed while saving.

    Raises:
        ValueError: nothing would be left.
    """
    held = gather_object([[path.name for path in checkpoints(output)]] if training.should_save else [])
    complete = set.intersection(*map(set, held))
    if any(held) and not complete:
        lists = "; ".join(", ".join(names) or "none" for names in held)
        raise ValueError(
            f"The machines' folders {output} have no checkpoint in common: {lists}. Take the machines that the run was "
            f"started on, or start again there with --overwrite_output_dir True."
        )
    if training.should_save:
        for path in checkpoints(output):
            if path.name not in complete:
                logger.warning("Removing %s: other machines had not finished it.", path)
                shutil.rmtree(path)


def discard(output: Path) -> None:
    """Delete the checkpoints and the report of an earlier run."""
    for path in checkpoints(output):
        shutil.rmtree(path)
    (output / RESULT_FILE).unlink(missing_ok=True)


def save_result(trainer: LLaVATrainer, run: Run, counts: Counts) -> None:
    """Write the trained part and the report into the output folder."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    output = run.output
    writes = run.training.should_save
    with all_or_nothing(output) if writes else nullcontext() as folder:
        save(trainer.part, model, trainer.processing_class, folder or output, compute_dtype(run), writes=writes)
    peaks: Any = trainer.accelerator.gather(
        torch.tensor([peak_memory()], dtype=torch.float64, device=run.training.device)
    )
    skipped = trainer.spent().skipped
    if writes:
        budget = getattr(model.config, "visionzip", None)
        facts = {
            "budget": str(VisionZipConfig.from_dict(budget)) if budget else "all tokens",
            "template": template_of(run, model),
            "samples": {**counts._asdict(), "skipped_while_training": skipped},
            **gather_facts(),
            "peak_memory_gib": round(peaks.max().item() / 2**30, 3),
            "settings": run.settings(),
        }
        write_report(output, history=trainer.state.log_history, facts=facts)
    wait_for_all()  # a process that failed while ending would take the others with it
