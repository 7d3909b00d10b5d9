import json

import pytest

from llava.data.records import image_names, inspect, read_records, source_of, write_records

HALF = "\ud83d"  # of a surrogate pair


def record(question="<image>\nWhat is this?", answer="A bus.", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a", "image": "coco/train2017/1.jpg", "conversations": turns} | fields


@pytest.fixture
def varied():
    """What a list of records may hold: ids of two types, text alone, further keys, all of Unicode and half of it."""
    text = record("Ça va? 你好 🙂\u2028<b>", id=7, model="x", scores=[1, 2.5, None], nested={"a": {"b": True}})
    del text["image"]
    return [record(), text, record(image=["a.png", "b.png"], id="7"), record(answer=f"cut {HALF}", id=None)]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_what_is_written_is_read_back_whole(tmp_path, varied, name):
    write_records(tmp_path / name, iter(varied))
    assert read_records(tmp_path / name) == varied
    assert [list(one) for one in read_records(tmp_path / name)] == [list(one) for one in varied]  # keys in their order
    assert "Ça va? 你好 🙂" in (tmp_path / name).read_text("utf-8")


def test_a_written_file_is_a_json_list_with_a_record_per_line(tmp_path, varied):
    write_records(tmp_path / "data.json", varied)
    assert json.loads((tmp_path / "data.json").read_bytes()) == varied
    assert (tmp_path / "data.json").read_bytes().count(b"\n") == len(varied) + 2
    write_records(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_bytes()) == []


def test_an_interrupted_write_leaves_what_was_there(tmp_path, varied):
    path = tmp_path / "data.json"
    write_records(path, varied)
    before = path.read_bytes()

    def interrupted():
        yield record()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "`git lfs pull`"),
        ('[\n{"id": 1, "conversations": [', "not JSON .*line 2"),
        ('{"info": 1, "annotations": []}', "an object with the keys info, annotations; .*list to a file alone"),
        ("3", "found '3'; an instruction file is a list"),
        ('[{"conversations": []}, "b"]', "record 1: found '\"b\"'"),
        ("[]", "none of its 0 records has 'conversations'"),
        ('[{"question_id": 1}]', "none of its 1 records has 'conversations'"),
    ],
)
def test_what_is_no_instruction_file_is_told_with_its_place(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_records(path)
    assert str(error.value).startswith(str(path))


def test_a_broken_line_of_jsonl_and_a_missing_file(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(record()) + "\n[1]\n")
    with pytest.raises(ValueError, match="line 2: expected a JSON object"):
        read_records(tmp_path / "data.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        read_records(tmp_path / "nowhere.json")


def test_image_names():
    names = [image_names(one) for one in ({}, {"image": None}, {"image": ""}, {"image": []})]
    assert names == [[]] * 4
    assert image_names({"image": "a/b.jpg"}) == ["a/b.jpg"]
    assert image_names({"image": ["a.jpg", "b.jpg"]}) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("image", "question", "source"),
    [
        ("coco/train2017/1.jpg", "Why?\n<image>", "coco: conversation"),
        ("coco/train2017/1.jpg", "Why?\nAnswer the question using a single word or phrase.", "coco: short answer"),
        (
            "coco/train2017/1.jpg",
            "Why?\nA. x\nAnswer with the option's letter from the given choices directly.",
            "coco: choice",
        ),
        ("coco/train2017/1.jpg", "Please provide a short description for this region: [0, 0, 1, 1]", "coco: region"),
        (
            "vg/VG_100K_2/1.jpg",
            "Please provide the bounding box coordinate of the region this sentence describes: a.",
            "vg: region",
        ),
        ("vg/VG_100K/1.jpg", "Please provide a short description for this region: [0, 0, 1, 1].", "vg: region"),
        ("gqa/images/1.jpg", "Why?\nAnswer the question using a single word or phrase.", "gqa: short answer"),
        ("textvqa/train_images/1.jpg", "Provide a one-sentence caption for the provided image.", "textvqa: caption"),
        (["ocr_vqa/images/1.jpg", "b.jpg"], "Who wrote this?", "ocr_vqa: conversation"),
        ("00453/004539375.jpg", "Describe this.", "images: conversation"),
        ("004539375.jpg", "Describe this.", "images: conversation"),
        (None, "Answer the question using a single word or phrase.", "text"),
    ],
)
def test_sources_of_llava_data(image, question, source):
    assert source_of(record(question, image=image)) == source
    assert source_of(record(question, image=image, source="mine")) == "mine"


def test_the_first_question_decides_the_style():
    one = record("<image>\nWhy?")
    one["conversations"] += [
        {"from": "human", "value": "So?\nAnswer the question using a single word or phrase."},
        {"from": "gpt", "value": "Yes"},
    ]
    assert source_of(one) == "coco: conversation"
    one["conversations"] = one["conversations"][1:]  # begins with gpt
    assert source_of(one) == "coco: short answer"


HUMAN, GPT = {"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}


@pytest.mark.parametrize(
    ("fields", "kind", "detail"),
    [
        ({"id": None}, "no id", ""),
        ({"image": 7}, "bad image name", "7, expected the name of a file"),
        ({"image": [""]}, "bad image name", "''"),
        ({"conversations": None}, "bad conversation", "must be a list of turns"),
        ({"conversations": []}, "bad conversation", "must be a list of turns"),
        ({"conversations": [HUMAN, "So."]}, "bad conversation", "turn 2 of 2 is 'So.'"),
        ({"conversations": [{**HUMAN, "from": "user"}, GPT]}, "bad conversation", "turn 1 of 2 is from 'user'"),
        ({"conversations": [HUMAN, HUMAN, GPT]}, "bad conversation", "turn 2 of 3 is from 'human', as the one before"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "bad conversation", "the value of turn 2 of 2 is 'None'"),
        ({"conversations": [HUMAN, {**GPT, "value": HALF}]}, "bad conversation", "half of a surrogate pair"),
        ({"conversations": [HUMAN]}, "no answer", "1 turns"),
        ({"conversations": [HUMAN, {**GPT, "value": " \n"}]}, "no answer", "2 turns"),
        ({"conversations": [GPT, HUMAN]}, "no answer", "1 turns"),
        ({"image": None}, "<image> without image", "1 times <image>, 0 image files"),
        ({"image": ["a.jpg", "b.jpg"]}, "image without <image>", "1 times <image>, 2 image files"),
        ({"conversations": [{"from": "gpt", "value": "<image>"}, {"from": "human", "value": "Why?"}, GPT]}, *(
            "image without <image>", "0 times <image>, 1 image files")),
    ],
)  # fmt: skip
def test_each_problem_of_a_record_is_found(fields, kind, detail):
    (problem,) = inspect(record(**fields))
    assert problem.kind == kind
    assert detail in problem.detail


def test_nothing_is_found_in_good_records(varied):
    assert inspect(record()) == inspect(varied[1]) == []
    assert inspect(record(conversations=[GPT, HUMAN, GPT])) == []
    assert inspect(record("<image><image>", image=["a.jpg", "b.jpg"])) == []
    assert source_of({"image": 7, "conversations": 3}) == "images: conversation"  # bad records have a source, too
