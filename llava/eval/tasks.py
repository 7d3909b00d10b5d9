"""The benchmarks, one row each: where the data lies, how to ask, how to score.

To add one: a row in `TASKS`, and a file in `llava/eval/metrics/` if no metric there fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval import eval_textvqa

SOURCE_ROOT = Path(__file__).resolve().parents[2]
EMBEDDED_CHECKPOINT = "checkpoints/llava-signs"  # relative to playground/


@dataclass(frozen=True)
class Data:
    """Where the questions, images and true answers of a benchmark lie.

    Args:
        question_file: JSONL with `question_id`, `image` and `text`.
        image_folder: what `image` is relative to.
        annotation_file: the true answers.
        fetch: how to get them, one step per line; shown when a file is missing.
    """

    question_file: Path
    image_folder: Path
    annotation_file: Path
    fetch: tuple[str, ...] = ()

    def how_to_fetch(self) -> str:
        return "Fetch\n" + "\n".join(f"  {step}" for step in self.fetch)


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name: what the user types.
        data: its files, relative to playground/.
        embedded: a small stand-in for them that comes with the project, for the embedded model.
        metric: annotation file and answers -> scores by name, each in %; ValueError if the answers are not to the
            annotation's questions.
        headline: which of the scores stands for all of them where there is place for one.
        max_new_tokens: longest answer, in tokens.
        prompt_suffix: put after every question, where the question file leaves the instruction out.
    """

    name: str
    data: Data
    embedded: Data
    metric: Callable[[Path, Sequence[Mapping]], dict[str, float]]
    headline: str
    max_new_tokens: int = 128
    prompt_suffix: str = ""


def score_textvqa(annotation_file: Path, rows: Sequence[Mapping]) -> dict[str, float]:
    return {"accuracy": 100 * eval_textvqa.evaluate(annotation_file, rows).accuracy}


TASKS = {
    task.name: task
    for task in (
        Task(
            name="textvqa",
            data=Data(
                question_file=Path("data/eval/textvqa/llava_textvqa_val_v051_ocr.jsonl"),
                image_folder=Path("data/eval/textvqa/train_images"),
                annotation_file=Path("data/eval/textvqa/TextVQA_0.5.1_val.json"),
                fetch=(
                    "questions: LLaVA's eval.zip, unpacked to playground/data/eval: "
                    "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view",
                    "answers, to playground/data/eval/textvqa: "
                    "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json",
                    "images, unpacked to playground/data/eval/textvqa (makes train_images): "
                    "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
                ),
            ),
            embedded=Data(
                question_file=Path("data/eval/signs/llava_textvqa_val_v051_ocr.jsonl"),
                image_folder=Path("data/eval/signs/train_images"),
                annotation_file=Path("data/eval/signs/TextVQA_0.5.1_val.json"),
                fetch=("these files come with the project: restore playground/data/eval/signs from its repository",),
            ),
            metric=score_textvqa,
            headline="accuracy",
        ),
    )
}


def playground() -> Path:
    """The folder of data, checkpoints and results: the current directory's if it has one, else this source tree's."""
    here = Path("playground")
    return here if here.is_dir() else SOURCE_ROOT / "playground"
