"""The benchmarks, one row each: where the data lies, how to ask, how to score.

To add one: a row in `TASKS`, a function in `scores`, and a file in `llava/eval/metrics/` if no metric there fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval import scores, submissions
from llava.eval.data import Data
from llava.eval.mmbench_file import folder_of, read_mmbench, unpack
from llava.eval.questions import Question, read_mmmu, read_questions, read_scienceqa, read_vizwiz, read_vqav2
from llava.eval.submissions import Submission
from llava.inference.prompts import LETTER, LETTER_CN, SHORT

LONG = 1024  # tokens; LLaVA asks for free answers so
JUDGE = "A language model grades the answers: python -m llava.eval.judge {} ANSWERS --base-url URL --model NAME."
MMBENCH_SERVER = "MMBench's server scores the submission too: https://opencompass.org.cn/leaderboard-multimodal"


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name: what the user types.
        data: its files, relative to playground/.
        metric: files and answers -> scores by name; ValueError if they do not belong together. None: a judge or server
            scores them.
        headline: which of the scores stands for all of them where there is place for one; None if there never are any.
            Scores lack it where none of its questions is answered.
        embedded: a small stand-in for the files that comes with the project, for the embedded model, if there is one.
        read: question file, and how many at most -> questions.
        unpack: brings the files into the form that `read` expects, where they come in another.
        max_new_tokens: longest answer, in tokens.
        prompt_suffix: put after every question, where the question file leaves the instruction out.
        unit: of the scores.
        submission: makes the file that the benchmark's own server or judge takes, if it takes one.
        elsewhere: who scores the answers or that file, and where.
    """

    name: str
    data: Data
    metric: Callable[[Data, Sequence[Mapping]], dict[str, float]] | None
    headline: str | None
    embedded: Data | None = None
    read: Callable[[Path, int | None], list[Question]] = read_questions
    unpack: Callable[[Data], None] | None = None
    max_new_tokens: int = 128
    prompt_suffix: str = ""
    unit: str = "%"
    submission: Submission | None = None
    elsewhere: str = ""


def files(
    folder: str,
    questions: str,
    images: str,
    annotation: str | None,
    *fetch: str,
    spellings: Sequence[str] = (),
    hub: str = "",
    also: tuple[str, ...] = (),
) -> Data:
    """Files below data/eval/`folder`, which LLaVA's eval.zip makes; `fetch` says how to get the others."""
    root = Path("data/eval") / folder
    zipped = (
        "questions: LLaVA's eval.zip, unpacked to playground/data/eval: "
        "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view"
    )
    return Data(
        root / questions,
        root / images,
        annotation and root / annotation,
        fetch=(zipped, *fetch),
        spellings=tuple(f"data/eval/{spelling}" for spelling in spellings),
        hub=hub,
        also=also,
    )


def mmbench(name: str, hub: str) -> Data:
    """A TSV file that holds everything; its images are unpacked beside it."""
    path = Path("data/eval/mmbench") / f"{name}.tsv"
    fetch = (
        f"{name}.tsv to playground/data/eval/mmbench: https://download.openmmlab.com/mmclassification/datasets/mmbench/"
    )
    return Data(
        path,
        folder_of(path),
        path,
        fetch=(fetch,),
        spellings=("data/eval/mmbench", "data/eval/mmbench_cn"),
        hub=hub,
    )


def signs(questions: str, annotation: str, also: tuple[str, ...] = ()) -> Data:
    """The embedded pictures, and questions about them."""
    root = Path("data/eval/signs")
    fetch = "these files come with the project: restore playground/data/eval/signs from its repository"
    return Data(root / questions, root / "train_images", root / annotation, fetch=(fetch,), also=also)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="textvqa",
            data=files(
                *("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"),
                "answers, to playground/data/eval/textvqa: "
                "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json",
                "images, unpacked to playground/data/eval/textvqa (makes train_images): "
                "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
                hub="textvqa",
            ),
            embedded=signs("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"),
            metric=scores.score_textvqa,
            headline="accuracy",
        ),
        Task(
            name="pope",
            data=files(
                *("pope", "llava_pope_test.jsonl", "val2014", "coco"),
                "answers, coco_pope_{random,popular,adversarial}.json to playground/data/eval/pope/coco: "
                "https://github.com/AoiDragon/POPE/tree/main/output/coco",
                "images, unpacked to playground/data/eval/pope (makes val2014): "
                "http://images.cocodataset.org/zips/val2014.zip",
                hub="pope",
                also=scores.POPE_FILES,
            ),
            embedded=signs("llava_pope_test.jsonl", "coco", scores.POPE_FILES),
            metric=scores.score_pope,
            headline="F1",
        ),
        Task(
            name="gqa",
            data=files(
                *("gqa", "llava_gqa_testdev_balanced.jsonl", "data/images", "data/testdev_balanced_questions.json"),
                "answers and images, questions and images unpacked to playground/data/eval/gqa/data: "
                "https://cs.stanford.edu/people/dorarad/gqa/download.html",
                spellings=("gqa/data", "gqa"),
                hub="gqa",
            ),
            metric=scores.score_gqa,
            headline="accuracy",
        ),
        Task(
            name="mme",
            data=files(
                *("MME", "llava_mme.jsonl", "MME_Benchmark_release_version", "MME_Benchmark_release_version"),
                "images with answers, unpacked to playground/data/eval/MME (makes MME_Benchmark_release_version): "
                "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
                hub="mme",
            ),
            metric=scores.score_mme,
            headline="total",
            unit="points",
        ),
        Task(
            name="scienceqa",
            data=files(
                *("scienceqa", "llava_test_CQM-A.json", "images/test", "problems.json"),
                "answers, problems.json and pid_splits.json to playground/data/eval/scienceqa: "
                "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa",
                "images, unpacked to playground/data/eval/scienceqa/images (makes test): "
                "https://github.com/lupantech/ScienceQA",
                hub="scienceqa",
                also=("../pid_splits.json",),
            ),
            embedded=signs("llava_test_CQM-A.json", "problems.json", ("../pid_splits.json",)),
            metric=scores.score_scienceqa,
            headline="accuracy with image",
            read=read_scienceqa,
            prompt_suffix=LETTER,
        ),
        Task(
            name="vqav2",
            data=Data(
                Path("data/eval/vqav2/v2_OpenEnded_mscoco_val2014_questions.json"),
                Path("data/eval/vqav2/val2014"),
                Path("data/eval/vqav2/v2_mscoco_val2014_annotations.json"),
                fetch=(
                    "questions and answers of the validation set, unpacked to playground/data/eval/vqav2: "
                    "https://visualqa.org/download.html",
                    "images, unpacked to playground/data/eval/vqav2 (makes val2014): "
                    "http://images.cocodataset.org/zips/val2014.zip",
                ),
                hub="vqav2",
            ),
            metric=scores.score_vqav2,
            headline="accuracy",
            read=read_vqav2,
            prompt_suffix=SHORT,
        ),
        Task(
            name="vqav2_test",
            data=files(
                "vqav2",
                "llava_vqav2_mscoco_test-dev2015.jsonl",
                "test2015",
                "llava_vqav2_mscoco_test2015.jsonl",  # its server wants an entry for each of these
                "images, unpacked to playground/data/eval/vqav2 (makes test2015): "
                "http://images.cocodataset.org/zips/test2015.zip",
            ),
            metric=None,
            headline=None,
            submission=Submission(submissions.vqav2_test),
            elsewhere="VQAv2's server scores the submission: "
            "https://eval.ai/web/challenges/challenge-page/830/my-submission",
        ),
        Task(
            name="vizwiz",
            data=Data(
                Path("data/eval/vizwiz/val.json"),
                Path("data/eval/vizwiz/val"),
                Path("data/eval/vizwiz/val.json"),
                fetch=(
                    "annotations and images of the validation set, unpacked to playground/data/eval/vizwiz (val.json, "
                    "val): https://vizwiz.org/tasks-and-datasets/vqa",
                ),
                hub="vizwiz",
            ),
            metric=scores.score_vizwiz,
            headline="accuracy",
            read=read_vizwiz,
            prompt_suffix=f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}",
        ),
        Task(
            name="vizwiz_test",
            data=files(
                *("vizwiz", "llava_test.jsonl", "test", None),
                "images, unpacked to playground/data/eval/vizwiz (makes test): "
                "https://vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip",
            ),
            metric=None,
            headline=None,
            submission=Submission(submissions.vizwiz_test),
            elsewhere="VizWiz's test challenge is closed: its server takes the submission if another one opens. Task "
            "vizwiz scores the validation set here. https://vizwiz.org/tasks-and-datasets/vqa",
        ),
        Task(
            name="mmbench",
            data=mmbench("mmbench_dev_20230712", hub="mmbench"),
            metric=scores.score_mmbench,
            headline="accuracy",
            read=read_mmbench,
            unpack=unpack,
            prompt_suffix=LETTER,
            submission=Submission(submissions.mmbench_table, ".xlsx"),
            elsewhere=MMBENCH_SERVER,
        ),
        Task(
            name="mmbench_cn",
            data=mmbench("mmbench_dev_cn_20231003", hub="mmbench_cn"),
            metric=scores.score_mmbench,
            headline="accuracy",
            read=read_mmbench,
            unpack=unpack,
            prompt_suffix=LETTER_CN,
            submission=Submission(submissions.mmbench_table, ".xlsx"),
            elsewhere=MMBENCH_SERVER,
        ),
        Task(
            name="seed",
            data=files(
                *("seed_bench", "llava-seed-bench.jsonl", ".", "SEED-Bench.json"),
                "answers, images and video frames to playground/data/eval/seed_bench (SEED-Bench.json, "
                "SEED-Bench-image, SEED-Bench-video-image): https://github.com/AILab-CVLab/SEED-Bench",
                hub="seed",
            ),
            metric=scores.score_seed,
            headline="accuracy",
        ),
        Task(
            name="mmmu",
            data=Data(
                Path("data/eval/mmmu/validation.jsonl"),
                Path("data/eval/mmmu/images"),
                Path("data/eval/mmmu/validation.jsonl"),
                fetch=(
                    "the validation split of all subjects, its images as files, to playground/data/eval/mmmu "
                    "(validation.jsonl, images): https://huggingface.co/datasets/MMMU/MMMU",
                ),
                hub="mmmu",
            ),
            metric=scores.score_mmmu,
            headline="accuracy",
            read=read_mmmu,
        ),
        Task(
            name="mmvet",
            data=files(
                *("mm-vet", "llava-mm-vet.jsonl", "images", "mm-vet.json"),
                "images and reference answers, unpacked to playground/data/eval (makes mm-vet): "
                "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
                spellings=("mm-vet", "mmvet", "mmvet/mm-vet"),
                hub="mmvet",
            ),
            metric=None,
            headline="total",
            max_new_tokens=LONG,
            submission=Submission(submissions.mmvet),
            elsewhere=f"{JUDGE.format('mmvet')} Or hand the submission to its authors' judge: "
            "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
        ),
        Task(
            name="llava_bench",
            data=Data(
                Path("data/eval/llava-bench-in-the-wild/questions.jsonl"),
                Path("data/eval/llava-bench-in-the-wild/images"),
                Path("data/eval/llava-bench-in-the-wild/answers_gpt4.jsonl"),
                fetch=(
                    "everything, to playground/data/eval/llava-bench-in-the-wild: "
                    "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
                ),
                hub="llava_bench",
            ),
            metric=None,
            headline="all",
            max_new_tokens=LONG,
            elsewhere=JUDGE.format("llava_bench"),
        ),
    )
}
