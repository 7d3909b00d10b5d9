import json

import pytest

from llava.data.records import MEDIA, image_names, inspect, other_media, read_records, source_of, write_records

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


@pytest.mark.parametrize(
    ("fields", "kind", "detail"),
    [
        ({"video": "a.mp4"}, "video", "\"video\": 'a.mp4'; only images are seen: save frames"),
        ({"video": "7", "image": ["1.png"], "question": "<image>\nWhy?"}, "video", "\"video\": '7'"),
        ({"image": "a.MP4", "question": "<image>\nWhy?"}, "video", "\"image\": 'a.MP4'"),
        ({"clip": {"path": ["x", "a.webm"]}}, "video", '"clip"'),
        ({"question": "<video>\nWhat happens?"}, "video", "<video> in a question"),
        ({"question": "What happens here? <video>", "video": "a.mp4"}, "video", "'a.mp4', <video> in a question"),
        ({"audio": {"array": [0.0], "sampling_rate": 1}}, "audio", '"audio"'),
        ({"sound_file": "a.wav", "question": "<speech>\nWho?"}, "audio", "'a.wav', <speech> in a question"),
        ({"point_cloud": "c.npy", "question": "<point>\nWhat?"}, "point clouds", "'c.npy', <point> in a question"),
        ({"question": "Describe <point_cloud> in a word."}, "point clouds", "<point_cloud>"),
        (
            {"images": ["b.png"], "question": "Compare."},
            "images elsewhere",
            'name its files under "image", a text or a',
        ),
        ({"images": ["b.png"], "question": "<image>\nWhy?"}, "images elsewhere", "b.png"),
        ({"img_path": "b.JPG"}, "images elsewhere", "b.JPG"),
        ({"question": "<image-placeholder>\nWhy?"}, "images elsewhere", "<image-placeholder>"),
        ({"embedding": "e.npy"}, "other media", "e.npy"),
        ({"pdf_file": "a.pdf"}, "other media", "a.pdf"),
        ({"path": "scan.pdf"}, "other media", "scan.pdf"),
        ({"video_path": "clips/7"}, "video", "clips/7"),
        ({"videoFile_2": "clips/7"}, "video", "clips/7"),
        ({"input_videos": [{"id": "x"}]}, "video", '"input_videos"'),
        ({"audio_url": "https://a.org/listen?v=1"}, "audio", "listen"),
        ({"input_audio": {"array": [0.0]}}, "audio", '"input_audio"'),
        ({"left_point_clouds": ["a"]}, "point clouds", '"left_point_clouds"'),
        ({"url": "https://a.org/a.mp4"}, "video", "a.mp4"),
        ({"image_url": "https://a.org/a.jpg"}, "images elsewhere", "a.jpg"),
        ({"Image": "b.jpg"}, "images elsewhere", "b.jpg"),
        ({"image": "a.pdf", "question": "<image>\nWhy?"}, "other media", "a.pdf"),
        ({"frames": ["1.png", "2.png"]}, "images elsewhere", "1.png"),
        ({"question": "<depth>\nHow far?"}, "other media", "<depth>"),
    ],
)
def test_a_medium_that_would_not_be_seen_is_a_problem_of_its_own_kind(fields, kind, detail):
    question = fields.pop("question", "Why?")
    (problem,) = inspect(record(question, **{"image": None, **fields}))
    assert problem.kind == kind
    assert detail in problem.detail


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium.kind)
def test_every_medium_is_known_by_fields_placeholders_and_files(medium):
    for field in medium.fields:
        assert [problem.kind for problem in other_media({field: "x"}, [])] == [medium.kind]
        assert other_media({field: None}, []) == other_media({field: []}, []) == []
    for mark in medium.placeholders:
        for text in (f"{mark}\nWhy?", f"Why?\n{mark}\n", f"Why? {mark}", f"{mark}{mark}"):
            assert [problem.kind for problem in other_media({}, [text])] == [medium.kind]
    for suffix in medium.suffixes:
        assert [problem.kind for problem in other_media({"path": [f"a/b{suffix}"]}, [])] == [medium.kind]


def test_what_only_looks_like_a_medium_is_none():
    html = "Why is this black?\n<video>\n<source src='a.mp4'>\n</video>"
    for question in ("How do I centre a <video> tag?", html, "Is 3 <image a tag?"):
        assert inspect(record(question, image=None)) == []
    assert inspect(record(answer="<video>", image="1.jpg")) == []  # an answer is learnt, not seen
    fields = {"source": "clips.mp4", "id": "v/1.mp4", "images": [], "video": "", "audio": None, "url": "https://a.org"}
    assert inspect(record("Why?", image=None, **fields)) == []
    fields = {"url": "https://a/b.pdf", "model": "ckpt.pt", "document_url": "https://a/b.pdf", "notes": "see page.png"}
    fields |= {"num_videos": 3, "videos_2": "3", "video_id": "v7", "video_caption": "A dog.", "has_audio": True}
    for field, value in fields.items():
        assert inspect(record("Why?", image=None, **{field: value})) == [], field
    assert (
        inspect(record(original="raw/1.png", cut_from="7.mp4", video_path="7.mp4")) == []
    )  # the image is there: these belong to it
