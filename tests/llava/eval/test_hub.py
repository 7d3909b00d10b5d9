"""Benchmarks from Hugging Face data sets: tiny ones in the hub's layout, made into files, read and scored."""

import json
import sys
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")

from benchmark_files import stored_picture, to_dataset, write_data_set  # noqa: E402

from llava.eval import data  # noqa: E402
from llava.eval.hub.fetch import fetch  # noqa: E402
from llava.eval.hub.tables import Part, open_table, parquet_files  # noqa: E402
from llava.eval.hub.write import save  # noqa: E402
from llava.eval.metrics.judged import llava_bench_reviews  # noqa: E402
from llava.eval.metrics.mme import SUBTASKS  # noqa: E402
from llava.eval.questions import missing_images  # noqa: E402
from llava.eval.tasks import TASKS  # noqa: E402
from llava.inference.embedded import playground  # noqa: E402
from llava.inference.instructions import LETTER, SHORT  # noqa: E402
from llava.utils.files import read_json, read_jsonl  # noqa: E402


def textvqa() -> list:
    rows = []
    for number, answer in enumerate(("nike", "52", "stop")):
        row = {"image_id": f"im{number // 2}", "question_id": 9 + number, "question": f"what is {number}?"}
        rows.append(
            row | {"answers": [answer] * 10, "ocr_tokens": ["A", answer][:number], "image": stored_picture(number // 2)}
        )
    return [rows]


def pope() -> list:
    rows = []
    for category in ("adversarial", "popular", "random"):
        for number, answer in enumerate(("yes", "no")):
            row = {"id": str(number), "question_id": str(number), "question": f"Is there a {number} in the image?"}
            row |= {"answer": answer, "image_source": "COCO_val2014_000000000007", "image": stored_picture(7)}
            rows.append(row | {"category": category})
    return [rows]


def gqa() -> list:
    images = [{"id": f"n{number}", "image": stored_picture(number)} for number in range(2)]
    rows = []
    for number, (structural, answer) in enumerate((("verify", "yes"), ("query", "table"))):
        types = {"structural": structural, "semantic": "attr", "detailed": "any"}
        row = {"id": f"20{number}", "imageId": f"n{number}", "question": f"What of {number}?", "answer": answer}
        rows.append(row | {"types": types, "isBalanced": True})
    return [images, rows]


def mme() -> list:
    rows = []
    for number, subtask in enumerate(SUBTASKS):
        for asked, answer in (("Is it so?", "Yes"), ("Is it not so?", "No")):
            row = {"question_id": f"{subtask}/{number:04d}.png", "question": f"{asked}  Please answer yes or no."}
            rows.append(row | {"category": subtask, "answer": answer, "image": stored_picture(number, "PNG")})
    return [rows]


def scienceqa() -> list:
    rows = []
    for number, answer in enumerate((1, 0, 2)):
        row = {"question": f"Which is {number}?", "choices": ["up", "down", "left"], "answer": answer}
        rows.append(
            row | {"hint": "Look." if number else "", "image": None if number == 1 else stored_picture(number, "PNG")}
        )
    return [rows]


def vqav2() -> list:
    rows = []
    for number, answer in enumerate(("yes", "2")):
        answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
        row = {"question_id": 1000 + number, "image_id": 5, "question": f"What of {number}?", "question_type": "what"}
        rows.append(row | {"answer_type": "other", "answers": answers, "image": stored_picture(5)})
    return [rows]


def vizwiz() -> list:
    rows = []
    for number, answer in enumerate(("can", "unanswerable")):
        row = {"question_id": f"VizWiz_val_{number:08d}", "question": f"What is {number}?", "answers": [answer] * 10}
        rows.append(row | {"category": "other", "image": stored_picture(number)})
    return [rows]


def mmbench() -> list:
    rows = []
    for turn, (options, answer) in enumerate(((("red", "blue"), "A"), (("blue", "red"), "B"))):
        row = {"index": 3 + turn * 1_000_000, "question": "Which\tcolour?", "hint": "nan", "answer": answer}
        row |= dict(zip("ABCD", (*options, "nan", "nan"), strict=True)) | {"category": "colour", "L2-category": "look"}
        rows.append(row | {"source": "web", "image": stored_picture(3), "split": "dev"})
    return [rows]


def seed() -> list:
    rows = []
    for number, (kind, answer) in enumerate((("image", "A"), ("video", "C"))):
        row = {"question_id": f"v{number}" if number else "101", "data_id": f"14_{number}", "data_type": kind}
        row |= {"question_type_id": 1 + 9 * number, "question": f"What is {number}?", "answer": answer}
        row |= {f"choice_{letter}": letter * 2 for letter in "abcd"}
        rows.append(row | {"image": [stored_picture(n, "PNG") for n in (range(8) if number else range(1))]})
    return [rows]


def mmmu() -> list:
    rows = []
    for number, (kind, options, answer) in enumerate((("multiple-choice", ["x", "y"], "B"), ("open", [], "12"))):
        row = {"id": f"validation_Math_{number + 1}", "question": f"What is {number} of <image {number + 1}>?"}
        row |= {"options": str(options), "answer": answer, "question_type": kind}
        rows.append(row | {f"image_{n}": stored_picture(n) if n <= number + 1 else None for n in range(1, 8)})
    return [rows]


def mmvet() -> list:
    row = {"question_id": "v1_0", "question": "What is x?", "answer": "-1<AND>-5", "capability": "ocr,math"}
    return [[row | {"image_source": "web", "image": stored_picture(0, "PNG")}]]


def llava_bench() -> list:
    row = {"question_id": 0, "image_id": "001", "question": "Where?", "gpt_answer": "In Rome.", "category": "conv"}
    return [[row | {"caption": ["A city."], "image": stored_picture(0)}]]


MAKERS = {
    "textvqa": (textvqa, ["Nike", "52", "stop."]),
    "pope": (pope, ["Yes", "No"] * 3),
    "gqa": (gqa, ["yes.", "Table"]),
    "mme": (mme, ["Yes", "No"] * 14),
    "scienceqa": (scienceqa, ["B", "A", "C"]),
    "vqav2": (vqav2, ["yes", "2"]),
    "vizwiz": (vizwiz, ["can", "unanswerable"]),
    "mmbench": (mmbench, ["A", "B"]),
    "mmbench_cn": (mmbench, ["A", "B"]),
    "seed": (seed, ["A", "C"]),
    "mmmu": (mmmu, ["B", "12"]),
    "mmvet": (mmvet, None),  # None: graded by a language model
    "llava_bench": (llava_bench, None),
}


def make(name: str, folder: Path) -> Path:
    """Write the data set of a benchmark in the hub's layout."""
    return write_data_set(TASKS[name].source, MAKERS[name][0](), folder)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with an empty playground, an empty cache of the hub, and no network."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "tables")
    (tmp_path / "playground").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(name: str):
    return TASKS[name].data.below(playground())


def questions_of(name: str) -> list:
    """As a run gets them, with the images that they need."""
    task, files = TASKS[name], files_of(name)
    if task.packed:
        task.packed.unpack(files)
    questions = task.read(files.question_file, None)
    assert not missing_images(questions, files.image_folder)
    return questions


def test_every_task_with_true_answers_can_be_fetched():
    own = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "tasks").glob("test_*.py")}
    sources = {name for name, task in TASKS.items() if task.source}
    assert sources == MAKERS.keys() | own  # each is tested here, or in a file of its own
    assert {name for name, task in TASKS.items() if task.metric} <= sources


@pytest.mark.parametrize("name", [name for name, (_, right) in MAKERS.items() if right])
def test_right_answers_have_the_full_score(here, name, capsys):
    source = make(name, here / "set")
    assert data.main(["--task", name, "--fetch", str(source)]) == 0
    assert "no\n" not in capsys.readouterr().out
    task, files, questions = TASKS[name], files_of(name), questions_of(name)
    rows = [
        {"question_id": question.question_id, "prompt": question.text + task.prompt_suffix, "text": text}
        for question, text in zip(questions, MAKERS[name][1], strict=True)
    ]
    best = 2800 if name == "mme" else 100
    assert task.metric(files, rows)[task.headline] == best
    assert task.metric(files, [{**row, "text": "neither"} for row in rows])[task.headline] < best
    assert fetch(task, files, str(source)) == []
    assert data.main(["--task", name, "--fetch", "not/looked-at"]) == 0
    assert f"{name}: all of it was there; not/looked-at was not needed." in capsys.readouterr().out


def test_prompts_are_those_of_the_native_files(here):
    texts = {}
    for name in ("textvqa", "mme", "scienceqa", "mmbench", "seed"):
        fetch(TASKS[name], files_of(name), str(make(name, here / name)))
        texts[name] = [question.text for question in questions_of(name)]
    assert texts["textvqa"][2] == f"What is 2?\nReference OCR token: A, stop{SHORT}"
    assert texts["textvqa"][0] == f"What is 0?\nReference OCR token: {SHORT}"
    assert texts["mme"][0] == f"Is it so?{SHORT}"
    assert texts["scienceqa"][:2] == [
        "Which is 0?\nA. up\nB. down\nC. left",
        "Context: Look.\nWhich is 1?\nA. up\nB. down\nC. left",
    ]
    assert texts["mmbench"] == ["Which\tcolour?\nA. red\nB. blue", "Which\tcolour?\nA. blue\nB. red"]
    assert texts["seed"][0] == f"What is 0?\nA. aa\nB. bb\nC. cc\nD. dd{LETTER}"


def test_images_are_as_they_are_stored(here):
    for name in ("gqa", "mme", "seed", "mmbench", "mmmu"):
        fetch(TASKS[name], files_of(name), str(make(name, here / name)))
    questions_of("mmbench")  # unpacks
    root = here / "playground/data/eval"
    for place, number, kind in (
        ("gqa/data/images/n1.jpg", 1, "JPEG"),
        ("MME/MME_Benchmark_release_version/count/0001.png", 1, "PNG"),
        ("MME/MME_Benchmark_release_version/posters/images/0004.png", 4, "PNG"),
        ("seed_bench/SEED-Bench-image/14_0", 0, "PNG"),
        ("seed_bench/SEED-Bench-video-image/v1.png", 4, "PNG"),  # of frames 0 to 7
        ("mmbench/mmbench_dev_20230712-images/3.jpg", 3, "JPEG"),
        ("mmmu/images/validation_Math_2_2.png", 2, "JPEG"),
    ):
        assert (root / place).read_bytes() == stored_picture(number, kind)["bytes"], place
    assert len(list((root / "mmbench/mmbench_dev_20230712-images").iterdir())) == 1  # rotations share it
    assert (root / "MME/MME_Benchmark_release_version/posters/questions_answers_YN/0004.txt").is_file()


def test_what_a_judge_reads(here):
    for name in ("mmvet", "llava_bench"):
        fetch(TASKS[name], files_of(name), str(make(name, here / name)))
    (question,) = questions_of("mmvet")
    assert (question.question_id, question.images, question.text) == (0, ("v1_0.png",), "What is x?")
    (truth,) = read_json(files_of("mmvet").annotation_file).items()
    assert truth[0] == "v1_0"
    assert truth[1].items() >= {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}.items()
    files, (question,) = files_of("llava_bench"), questions_of("llava_bench")
    lists = [
        [row for _, row in read_jsonl(path)]
        for path in (files.question_file, files.question_file.with_name("context.jsonl"), files.annotation_file)
    ]
    rules = {"llava_bench_conv": {"role": "Assistant", "prompt": "Grade."}}
    (review,) = llava_bench_reviews(*lists, [{"question_id": question.question_id, "text": "In Paris."}], rules)
    assert "[Context]\nA city.\n\n[Question]\nWhere?\n\n[Assistant 1]\nIn Rome." in review.prompt


def test_an_interrupted_fetch_goes_on(here, monkeypatch):
    """It is cut after the first image, then before the last file; what was written stays as it was."""
    from llava.eval.hub import fetch as module
    from llava.eval.tasks import vizwiz

    name, source = "vizwiz", str(make("vizwiz", here / "set"))
    task, files = TASKS[name], files_of(name)

    def first_only(folder, image, content, save=save):
        if image.endswith("1.jpg"):
            raise KeyboardInterrupt
        return save(folder, image, content)

    monkeypatch.setattr(vizwiz, "save", first_only)
    with pytest.raises(KeyboardInterrupt):
        fetch(task, files, source)
    (image,) = files.image_folder.iterdir()
    before = image.stat().st_mtime_ns
    assert files.missing() == [files.question_file] * 2  # which is the annotation too

    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(module, "write_text", lambda path, text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(task, files, source)
    assert len(list(files.image_folder.iterdir())) == 2
    assert files.missing()

    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert fetch(task, files, source) == [files.question_file]
    assert image.stat().st_mtime_ns == before
    assert len(questions_of(name)) == 2


def test_files_that_are_there_are_kept(here):
    files, source = files_of("textvqa"), str(make("textvqa", here / "set"))
    files.question_file.parent.mkdir(parents=True)
    own = [{"question_id": "im1", "image": "im1.jpg", "text": f"What is 2?\nReference OCR token: LLaVA's{SHORT}"}]
    files.question_file.write_text("".join(json.dumps(row) + "\n" for row in own))
    assert fetch(TASKS["textvqa"], files, source) == [files.annotation_file]
    (question,) = questions_of("textvqa")
    row = {"question_id": question.question_id, "prompt": question.text, "text": "stop"}
    assert TASKS["textvqa"].metric(files, [row])["accuracy"] == 100


@pytest.mark.parametrize("name", ["pope", "scienceqa"])
def test_files_that_do_not_go_with_those_of_others(here, name, capsys):
    files = files_of(name)
    files.question_file.parent.mkdir(parents=True)
    files.question_file.write_text("[]")
    assert data.main(["--task", name, "--fetch", str(make(name, here / "set"))]) == 2
    assert f"{files.question_file} would not go with" in capsys.readouterr().err
    assert not files.image_folder.exists()


def test_a_folder_of_save_to_disk(here):
    (rows,) = vizwiz()
    to_dataset(rows).save_to_disk(here / "one")
    assert len(fetch(TASKS["vizwiz"], files_of("vizwiz"), str(here / "one"))) == 1
    images, rows = gqa()
    for part, table in zip(TASKS["gqa"].source.parts, (images, rows), strict=True):
        datasets.DatasetDict({part.split: to_dataset(table)}).save_to_disk(here / "many" / part.config)
    assert len(fetch(TASKS["gqa"], files_of("gqa"), str(here / "many"))) == 2
    assert [question.images for question in questions_of("gqa")] == [("n0.jpg",), ("n1.jpg",)]
    datasets.DatasetDict({"val": to_dataset(rows)}).save_to_disk(here / "other/x")
    with pytest.raises(ValueError, match="there is no split 'testdev' of 'x', only val"):
        open_table(str(here / "other"), Part("id", "testdev", "x"))


@pytest.mark.parametrize("owner", ["lmms-lab-encoder", "lmms-lab"])
def test_what_the_cache_of_the_hub_has_is_found_without_network(here, owner):
    repo = here / f"cache/datasets--{owner}--VizWiz-VQA"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("c0ffee")
    make("vizwiz", repo / "snapshots/c0ffee")
    assert len(fetch(TASKS["vizwiz"], files_of("vizwiz"))) == 1
    assert len(questions_of("vizwiz")) == 2


def test_without_network_it_is_told_what_was_tried_and_what_to_do(here, capsys):
    assert data.main(["--task", "gqa", "--fetch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gqa: no data set could be opened.")
    for part in ("lmms-lab-encoder/GQA: ", "lmms-lab/GQA: ", "OfflineModeIsEnabled", "--fetch FOLDER", "hf auth login"):
        assert part in said
    assert "--include 'testdev_balanced_images/testdev-*.parquet'" in said
    assert not files_of("gqa").question_file.parent.exists()
    assert data.main(["--task", "gqa", "--fetch", "me/mine"]) == 2
    said = capsys.readouterr().err
    assert "hub id me/mine: " in said
    assert "lmms-lab/GQA: " not in said


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets.exceptions", None)
    assert data.main(["--task", "gqa", "--fetch"]) == 2
    assert "needs datasets: pip install datasets" in capsys.readouterr().err


def test_data_sets_of_something_else(here, capsys):
    assert data.main(["--task", "vizwiz", "--fetch", str(make("mme", here / "mme"))]) == 2
    assert "no parquet files of split 'val' (*/val-*.parquet)" in capsys.readouterr().err
    assert data.main(["--task", "pope", "--fetch", str(here / "mme")]) == 2
    assert "split 'test' has no column image_source; its columns are question_id, " in capsys.readouterr().err
    with pytest.raises(ValueError, match="vqav2_test is in no data set known here; those that are: textvqa, pope"):
        fetch(TASKS["vqav2_test"], files_of("vqav2_test"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"bytes": b"junk", "path": "7.jpg"}, "cannot identify image file"),
        ({"bytes": None, "path": "gone.jpg"}, "No such file"),
        ({"bytes": None, "path": None}, "NoneType"),
    ],
)
def test_images_that_do_not_open_are_named(here, image, message, capsys):
    (rows,) = pope()
    rows[4]["image"] = image
    datasets.Dataset.from_list(rows).to_parquet(here / "test-00000-of-00001.parquet")
    assert data.main(["--task", "pope", "--fetch", str(here)]) == 2
    said = capsys.readouterr().err
    assert "pope, split 'test', row 5, column image: expected an image, {'bytes': ..., 'path': ...}, found " in said
    assert message in said
    assert not files_of("pope").question_file.exists()


def test_columns_of_another_type_are_named(here, capsys):
    (rows,) = pope()
    for column, message in (("image", "row 1, column image: expected an image"), ("question", "a row of the data set")):
        wrong = [{**row, column: "7.jpg" if column == "image" else None} for row in rows]
        datasets.Dataset.from_list(wrong).to_parquet(here / f"{column}/test-00000-of-00001.parquet")
        assert data.main(["--task", "pope", "--fetch", str(here / column)]) == 2
        assert message in capsys.readouterr().err


def test_pope_has_three_lists(here, capsys):
    (rows,) = pope()
    to_dataset(rows[:4]).to_parquet(here / "set/test-00000-of-00001.parquet")
    assert data.main(["--task", "pope", "--fetch", str(here / "set")]) == 2
    assert "the data set's categories are adversarial, popular." in capsys.readouterr().err
    assert data.main(["--task", "pope"]) == 1  # whatever it left


def test_a_failed_fetch_leaves_nothing_that_looks_whole(here, capsys):
    (rows,) = mme()
    rows[0]["image"] = None
    to_dataset(rows).to_parquet(here / "set/test-00000-of-00001.parquet")
    assert data.main(["--task", "mme", "--fetch", str(here / "set")]) == 2
    assert "The data set has no image for existence/0000.png" in capsys.readouterr().err
    assert files_of("mme").image_folder.is_dir()  # for images and answers
    assert data.main(["--task", "mme"]) == 1
    assert "| yes" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["./nofolder", "nofolder", "/no/folder", "a/b/c", "set/test.parquet"])
def test_a_mistyped_folder_is_no_hub_id(here, source, capsys):
    (here / "set").mkdir()
    (here / "set/test.parquet").touch()
    assert data.main(["--task", "gqa", "--fetch", source]) == 2
    said = capsys.readouterr().err
    assert f"gqa: {source} is {'a file' if source[-1] == 't' else 'no folder that is there, and no hub id'}" in said


def test_files_of_a_split(here):
    """Of one configuration, and all of them: half a split would have a score that looks like one of all."""
    root = here / "cn/dev"  # where it lies does not make a file Chinese
    names = ("en/dev-00000-of-00002-ab12", "en/dev-00001-of-00002-ab12", "en/test-00000-of-00001", "cn/dev", "fr/dev/0")
    for name in (*names, "other"):
        (root / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.parquet").touch()
    english = parquet_files(root, Part("", "dev", "en"))
    assert [path.name[:9] for path in english] == ["dev-00000", "dev-00001"]
    assert parquet_files(root, Part("", "dev", "cn")) == [root / "cn/dev.parquet"]
    assert parquet_files(root, Part("", "dev", "fr")) == [root / "fr/dev/0.parquet"]
    assert parquet_files(root, Part("", "dev", "de")) == []
    assert len(parquet_files(root, Part("", "dev"))) == 4
    english[0].unlink()
    with pytest.raises(ValueError, match=r"en has 1 of the 2 files of split 'dev' of 'en'\."):
        parquet_files(root, Part("", "dev", "en"))


def test_a_name_that_leads_out_of_the_folder(here):
    for name in ("../x.jpg", "/x.jpg"):
        with pytest.raises(ValueError, match="would not be in"):
            save(here / "images", name, stored_picture(0)["bytes"])
    with pytest.raises(ValueError, match=r"The data set has no image for x\.jpg"):
        save(here / "images", "x.jpg", None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fetch"], "--fetch needs --task"),
        (["--task", "gqa", "--fetch", ""], "--fetch is given an empty SOURCE"),
        (["--task", "gqa", "--fetch", "x", "--embedded"], "neither --embedded nor --ready"),
        (["--task", "gqa", "pope", "--fetch", "x"], "is a source for one task, not for 2"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        data.main(flags)
    assert message in capsys.readouterr().err
