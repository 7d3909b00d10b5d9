"""Frames of folders and videos: which are taken, and what is said where there are none."""

import sys

import pytest
from PIL import Image

from llava.mm_utils import find_pictures
from llava.visualize.frames import evenly, frames_of, video_frames


def test_pictures_of_a_folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", "below/c.webp"):
        (tmp_path / name).touch()
    assert find_pictures(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert find_pictures(str(tmp_path), deep=True)[2:] == [tmp_path / "below/c.webp"]
    with pytest.raises(ValueError, match=r"folder\.png: no pictures in this folder; looked for \.png, "):
        find_pictures(tmp_path / "folder.png")
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        find_pictures(tmp_path / "nowhere")


@pytest.mark.parametrize(("count", "limit", "chosen"), [(9, 3, [1, 4, 7]), (2, 8, [0, 1]), (3, None, [0, 1, 2])])
def test_frames_are_spaced_evenly(count, limit, chosen):
    assert evenly(count, limit) == chosen


def test_a_video_without_pyav_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"\[video\]', or pip install av"):
        next(video_frames(tmp_path / "film.mp4", 8))


def test_a_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(10):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (25 * i, 0, 0)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = list(frames_of(path, 2))
    assert [title for title, _ in frames] == ["frame 3", "frame 8"]
    assert [image.getpixel((9, 9))[0] for _, image in frames] == pytest.approx([50, 175], abs=12)
    path.write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"no video that can be decoded"):
        list(frames_of(path, 2))
