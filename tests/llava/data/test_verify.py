import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from llava.data import verify
from llava.data.records import inspect, read_records, write_records
from llava.data.verify import check


def record(id, image=None, question="<image>\nWhat?", answer="That."):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "conversations": turns} | ({"image": image} if image else {})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    for name in ("good.jpg", "good.png", "other.GIF", "third.png"):
        picture.save(folder / "a" / name)
    picture.save(folder / "a/named.jpg", "GIF")
    picture.save(folder / "a/camera.jpg", "MPO", save_all=True, append_images=[picture])
    whole = (folder / "a/good.jpg").read_bytes()
    (folder / "a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a/page.jpg").write_text("<html>404</html>")
    (folder / "a/empty.jpg").touch()
    (folder / "a/lost.png").write_text("no image under another extension")
    return folder


GOOD = [
    record("g0", "a/good.jpg"),
    record("g1", question="What?"),
    record("g2", ["a/good.jpg", "a/good.png"], "<image><image>"),
    record("g3", "a/camera.jpg"),
]
BAD = [
    record("b0", "a/none.jpg"),
    record("b1", "a/empty.jpg"),
    record("b2", "a/page.jpg"),
    record("b3", "a"),
    record("b4", "a/nul\0.jpg"),
    record("b5", "a/lost.jpg"),
    record("b6", "a/good.jpg", answer=""),
    record("b7"),
    record("b8", "a/good.jpg", "What?"),
    record("b9", ["a/good.jpg", "a/none.jpg"], "<image><image>"),
    {"id": "b10"},
]
RENAMED = [record("r0", "a/other.jpg"), record("r1", ["a/good.jpg", "a/third.jpg"], "<image><image>")]
HARMLESS = [
    record("h0", "a/named.jpg"),
    record("g0", "a/good.jpg"),
    record(7, "a/good.jpg"),
    record(None, "a/good.jpg"),
]
ALL = [*GOOD, *BAD, *RENAMED, *HARMLESS]


def kinds(found):
    return {index: [problem.kind for problem in problems] for index, problems in found.items()}


def test_nothing_is_found_where_all_is_good(folder):
    report = check(GOOD, folder)
    assert (report.bad, report.odd, report.notes, report.renamed) == ({}, {}, {}, {})
    assert report.summary() == "All 4 records can be trained on."
    assert report.clean() == GOOD


def test_each_planted_problem_is_found(folder):
    report = check(ALL, folder)
    found = [["missing file"], ["corrupt"], ["corrupt"], ["missing file"], ["missing file"], ["corrupt"]]
    found += [["no answer"], ["<image> without image"], ["image without <image>"], ["missing file"]]
    found += [["bad conversation"], ["wrong extension"], ["wrong extension"]]
    assert kinds(report.bad) == dict(enumerate(found, start=len(GOOD)))
    first = len(GOOD + BAD + RENAMED)
    odd = [["mislabelled"], ["duplicate id"], ["ids of mixed type"], ["no id"]]
    assert kinds(report.odd) == dict(enumerate(odd, start=first))
    assert report.notes == {"mislabelled": 1, "duplicate id": 1, "ids of mixed type": 1, "no id": 1}


def test_media_that_cannot_be_seen_are_counted_and_left_out(folder):
    fields = [{"video": "a.mp4"}, {"video": "b.mp4"}, {"images": ["b.png"]}]
    unseen = [record(f"u{i}", question="What?") | brought for i, brought in enumerate(fields)]
    report = check([*GOOD, *unseen], folder)
    assert kinds(report.bad) == {4: ["video"], 5: ["video"], 6: ["images elsewhere"]}
    assert "3 of 7 records cannot be trained on:\n  video                           2\n" in report.summary()
    assert report.clean() == GOOD


def test_particulars_name_what_was_found(folder):
    report = check(ALL, folder)
    details = {
        problem.detail for found in (report.bad, report.odd) for problems in found.values() for problem in problems
    }
    assert f"a/none.jpg is not in {folder}" in details
    assert "a/other.jpg is there as other.GIF" in details
    assert f"{folder}/a/named.jpg is GIF" in details
    assert f"{folder}/a/empty.jpg: not an image of a known format (0 bytes)." in details
    assert "as record 0" in details
    assert "int, most are str" in details


def test_damage_behind_the_header_is_found_by_decoding(folder):
    records = [record("c", "a/cut.jpg"), *GOOD]
    assert check(records, folder).bad == {}
    report = check(records, folder, decode=True)
    assert kinds(report.bad) == {0: ["corrupt"]}
    assert "cannot be decoded" in report.bad[0][0].detail


def test_what_training_refuses_for_its_size_is_bad(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        report = check(GOOD[:1], folder)
    assert kinds(report.bad) == {0: ["corrupt"]}
    assert "40x30 pixels, the limit is 1199" in report.bad[0][0].detail


def test_the_clean_list_is_clean(folder):
    report = check(ALL, folder)
    cleaned = report.clean()
    assert [one["id"] for one in cleaned] == [one["id"] for one in GOOD + RENAMED + HARMLESS]
    assert cleaned[len(GOOD)]["image"] == "a/other.GIF"
    assert cleaned[len(GOOD) + 1]["image"] == ["a/good.jpg", "a/third.png"]
    assert check(cleaned, folder, decode=True).bad == {}
    assert RENAMED[0]["image"] == "a/other.jpg"  # what was given is left alone


def test_the_summary_counts_and_shows_examples(folder):
    summary = check(ALL, folder).summary(examples=2).splitlines()
    assert summary[0] == "13 of 21 records cannot be trained on:"
    place = next(i for i, line in enumerate(summary) if line.split() == ["missing", "file", "4"])
    assert summary[place + 1].strip() == f"record 4 (id 'b0'): a/none.jpg is not in {folder}"
    assert summary[place + 2].strip().startswith("record 7 (id 'b3')")
    assert "Harmless:" in summary


def test_each_image_is_read_once_and_progress_counts_it(folder, monkeypatch):
    read, totals = [], []
    monkeypatch.setattr(verify, "flaw", lambda path, decode: read.append(path))

    def progress(items, total):
        totals.append(total)
        return items

    records = [record(i, f"a/{name}.jpg") for i, name in enumerate(["good", "cut"] * 100)]
    assert check(records, folder, num_workers=3, progress=progress).bad == {}
    assert totals == [len(read)] == [2]


def test_text_alone_needs_no_folder_and_images_do(folder):
    assert check([record(1, question="What?")], "nowhere").bad == {}
    with pytest.raises(ValueError, match=r"nowhere: no such folder. 4 image files .* a/good.jpg"):
        check([*GOOD, record("x", "a/cut.jpg")], "nowhere")


def test_without_a_folder_names_are_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert check(GOOD, None).bad == {}
    assert "is not in ." in check([record(1, "none.jpg")], None).bad[0][0].detail


@pytest.fixture
def command(folder, tmp_path):
    write_records(tmp_path / "data.json", ALL)
    return [str(tmp_path / "data.json"), "--image-folder", str(folder)]


def test_the_command_reports_and_cleans(command, folder, tmp_path, capsys):
    clean, report = tmp_path / "out/clean.json", tmp_path / "out/report.json"
    assert verify.main([*command, "--clean", str(clean), "--report", str(report)]) == 1
    said = capsys.readouterr().out
    assert "13 of 21 records cannot be trained on" in said
    assert "Kept 10 records, 2 with a corrected extension; left out 11." in said
    written = json.loads(report.read_text())
    assert (written["records"], written["bad_records"], written["harmless"]["mislabelled"]) == (21, 13, 1)
    assert {"record": 4, "id": "b0", "kind": "missing file", "detail": f"a/none.jpg is not in {folder}"} in written[
        "problems"
    ]
    assert read_records(clean) == check(ALL, folder).clean()

    assert verify.main([str(clean), "--image-folder", str(folder), "--decode"]) == 0
    assert "All 10 records can be trained on" in capsys.readouterr().out


def test_the_command_points_to_cleaning(command, capsys):
    assert verify.main(command) == 1
    assert "--clean FILE" in capsys.readouterr().out


def test_requests_that_make_no_sense(command, tmp_path, capsys):
    assert verify.main([*command, "--clean", command[0]]) == 2
    assert f"{command[0]} would be written over, and {command[0]} is read" in capsys.readouterr().err
    assert verify.main([*command, "--report", command[0], "--overwrite"]) == 2
    assert "would be written over" in capsys.readouterr().err
    same = str(tmp_path / "same.json")
    assert verify.main([*command, "--clean", same, "--report", same]) == 2
    assert f"--clean and --report both name {same}" in capsys.readouterr().err
    assert verify.main([command[0], "--image-folder", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert verify.main([str(tmp_path / "none.json")]) == 2
    assert read_records(command[0]) == ALL


@pytest.mark.parametrize("flag", ["--clean", "--report"])
def test_a_file_that_is_there_is_replaced_only_on_demand(command, tmp_path, capsys, flag):
    path = tmp_path / "notes.json"
    path.write_text("mine")
    assert verify.main([*command, flag, str(path)]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert verify.main([*command, flag, str(path), "--overwrite"]) == 1
    assert path.read_text() != "mine"


def test_an_interruption_drops_the_images_that_wait(folder, monkeypatch):
    """One batch is read, the next has begun: it is finished, and no other begins."""
    read, is_dropped = [], threading.Event()

    def look_at(folder, name, decode):
        read.append(name)
        if len(read) > verify.AT_ONCE:
            is_dropped.wait()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(wait=False, **options)
            is_dropped.set()
            super().shutdown()

    def progress(seen, total):
        next(iter(seen))
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "look_at", look_at)
    monkeypatch.setattr(verify, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        check([record(i, f"{i}.jpg") for i in range(5000)], folder, num_workers=1, progress=progress)
    assert len(read) in (verify.AT_ONCE, 2 * verify.AT_ONCE)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]


def test_an_interrupted_command_writes_nothing(command, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "look_at", interrupted)
    assert verify.main([*command, "--clean", str(tmp_path / "out/clean.json")]) == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"point": "8882c"}, {"clip": "b"}, {"speech": "a"}, {"image_url": "http://x/y"}, {"image_base64": "iVBORw0"},
        {"question": "<VIDEO>\nWhat?"}, {"question": "<video_1>\nWhat?"}, {"question": "<|audio|>\nWhat?"},
        {"question": "<|video_pad|>What?"}, {"question": "<Image>\nWhat?"}, {"question": "<image_1>\nWhat?"},
        {"question": "<video></video>\nWhat?"}, {"question": "<video>a.mp4</video>\nWhat?"},
        {"question": "<start_of_image>\nWhat?"}, {"question": "<im_patch><im_patch>\nWhat?"},
    ],
    ids=str,
)  # fmt: skip
def test_other_names_and_spellings_of_what_is_not_seen(fields):
    question = fields.pop("question", "What?")
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A dog runs."}]
    assert inspect({"id": "a", **fields, "conversations": turns})


def test_html_in_a_text_is_no_medium():
    text = "Why does <video controls>, or <video> in <section>, not play?\n<audio>\n  <source src='a'>\n</audio>"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "<video> needs a source."}]
    assert not inspect({"id": "a", "conversations": turns})
