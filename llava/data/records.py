"""LLaVA's instruction files: a JSON list of records, each a conversation about one image, several, or none.

A record is `{"id": ..., "image": "coco/train2017/000000033471.jpg", "conversations": [{"from": "human", "value":
"<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}, ...]}`. Text-only records have no `image`; further keys
are kept, but for those that hold what cannot be seen, see `MEDIA`. Records are numbered from 0.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.utils.files import dump_json, is_file, read_json, read_jsonl, shorten, whole_file

LFS_POINTER = b"version https://git-lfs"
ROLES = ("human", "gpt")

# The first question of a record distinguishes sources that share a folder: mix665k asks the same way within each.
STYLES = {
    "Answer the question using a single word or phrase": "short answer",
    "Answer with the option's letter from the given choices": "choice",
    "Please provide a short description for this region": "region",
    "Please provide the bounding box coordinate of the region": "region",
    "Provide a one-sentence caption": "caption",
}


class Medium(NamedTuple):
    """What a record may bring that is no image under "image", and so would be left out without a word."""

    kind: str
    fields: tuple[str, ...]  # that bring it, whatever they hold
    placeholders: tuple[str, ...]  # that stand for it in a question, as `plain` writes them
    suffixes: tuple[str, ...]  # of its files
    possible: str
    words: tuple[str, ...] = ()  # in the name of a field that may name such files; without any, each field may


MEDIA = (
    Medium(
        "video",
        ("video", "videos"),
        ("<video>", "<videos>", "<vid>"),
        (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
        'save frames of it, name them in a list under "image", and put an <image> for each into the question',
    ),
    Medium(
        "audio",
        ("audio", "audios"),
        ("<audio>", "<audios>", "<sound>", "<speech>"),
        (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus"),
        "leave such records out, or write into the question what is heard",
    ),
    Medium(
        "point clouds",
        ("point_cloud", "point_clouds", "pointcloud", "pointclouds"),
        ("<point>", "<points>", "<point_cloud>", "<point_clouds>", "<pointcloud>"),
        (".ply", ".pcd", ".las", ".laz", ".obj", ".off", ".stl", ".glb", ".gltf"),
        'save views of it, name them in a list under "image", and put an <image> for each into the question',
    ),
    Medium(
        "images elsewhere",
        ("images",),
        ("<images>", "<img>", "<image_>", "<im_patch>", "<start_of_image>", "<vision_start>"),
        (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
        'name its files under "image", a text or a list, and put an <image> for each into the question',
        ("image", "img", "picture", "pic", "photo", "frame", "view", "crop", "scan", "screenshot", "figure", "diagram"),
    ),
    Medium(
        "other media",
        (),
        ("<depth>", "<thermal>", "<imu>", "<fmri>", "<tactile>", "<mesh>", "<3d>", "<document>", "<pdf>"),
        (".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".exr", ".nii", ".nii.gz", ".dcm", ".pdf"),
        'save it as an image, name that under "image", and put an <image> for it into the question',
        ("depth", "thermal", "imu", "fmri", "tactile", "mesh", "document", "doc", "pdf", "embedding", "feature"),
    ),
)
PLACEHOLDERS = {mark: medium for medium in MEDIA for mark in medium.placeholders}
FILLED = re.compile(r"<(video|audio|img|image)>([^<>\n]*)</\1>", re.IGNORECASE)  # <video>a.mp4</video>
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")  # of video_path, videoPath or VIDEO-2
MARK = re.compile(r"<\|?[\w-]+\|?>")
PLACES = ("path", "file", "filename", "url", "uri", "folder", "dir")  # words that say where something is
OTHER_NAMES = {  # of a field, which with an image in the record may mean something else
    "video": ("clip", "clips"),
    "audio": ("speech", "sound"),
    "point clouds": ("point", "points"),
    "images elsewhere": ("image", "picture", "pictures"),
}
NAMED_AFTER = {  # input_video, video_path, video_file_2, image_base64
    medium: re.compile(
        rf"(.+_)?({'|'.join(medium.fields + OTHER_NAMES[medium.kind])})(_({'|'.join(PLACES)})s?|_base_64|_\d+)*"
    )
    for medium in MEDIA
    if medium.fields
}
NO_MEDIA = {"id", "question_id", "source", "conversations"}  # fields whose text may look like the name of a file


class Problem(NamedTuple):
    """What is wrong with a record: one of a few kinds, and the particulars."""

    kind: str
    detail: str


def read_records(path: str | Path) -> list[dict]:
    """Read the records of an instruction file: a JSON list or, if its name ends so, `.jsonl`.

    The records themselves are not checked here; `inspect` does that.

    Raises:
        ValueError: the file cannot be read, is no list of objects, or has no record with `conversations`.
    """
    if is_file(path):
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{path}: a Git LFS pointer in place of the data. Fetch the data with `git lfs pull`.")
    records = [row for _, row in read_jsonl(path)] if is_jsonl(path) else read_json(path)
    expected = 'an instruction file is a list [{"id": ..., "conversations": [...]}, ...]'
    if isinstance(records, dict):
        keys = ", ".join(list(records)[:5])
        raise ValueError(f"{path}: found an object with the keys {keys}; {expected}. Write its list to a file alone.")
    if not isinstance(records, list):
        raise ValueError(f"{path}: found {shorten(json.dumps(records))}; {expected}.")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {index}: found {shorten(json.dumps(record))}; {expected}.")
    if not any("conversations" in record for record in records):
        raise ValueError(f"{path}: none of its {len(records)} records has 'conversations'; {expected}.")
    return records


def write_records(path: str | Path, records: Iterable[dict]) -> None:
    """Write an instruction file, a record per line, in full or not at all; `.jsonl` if its name ends so."""
    with whole_file(path) as file:
        file.writelines(encoded(records, is_jsonl(path)))


def is_jsonl(path: str | Path) -> bool:
    """Return whether a file, by its name, has one record per line."""
    return Path(path).suffix == ".jsonl"


def encoded(records: Iterable[dict], as_lines: bool) -> Iterator[bytes]:
    """Yield the bytes of an instruction file in parts, as all of mix665k would be several GB."""
    if as_lines:
        yield from (encode(record) + b"\n" for record in records)
        return
    yield b"["
    for index, record in enumerate(records):
        yield (b",\n" if index else b"\n") + encode(record)
    yield b"\n]\n"


def encode(record: dict) -> bytes:
    """Encode a record as one line of JSON, without a line break."""
    return dump_json(record).encode()


def image_names(record: dict) -> list:
    """List the image files of a record, relative to the image folder; each a text unless `inspect` says otherwise."""
    image = record.get("image")
    if image is None or image == "":
        return []
    return image if isinstance(image, list) else [image]


def source_of(record: dict) -> str:
    """Name the data that a record comes from, such as "coco: short answer", "vg: region" or "text".

    This is its `source`, if it has one. Else it is the first folder of its image and the style of its first question;
    images without a folder, and numbered folders, are "images".
    """
    if source := record.get("source"):
        return str(source)
    names = image_names(record)
    if not names:
        return "text"
    folder = str(names[0]).rpartition("/")[0].partition("/")[0]
    question = first_question(record)
    style = next((style for mark, style in STYLES.items() if mark in question), "conversation")
    return f"{folder if folder and not folder.isdecimal() else 'images'}: {style}"


def first_question(record: dict) -> str:
    """Return what the human says first; "" in a record that `inspect` refuses."""
    return next(questions_of(record), "")


def questions_of(record: dict) -> Iterator[str]:
    """Yield what the human says, also in a record that `inspect` refuses."""
    turns = record.get("conversations")
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == "human":
            yield str(turn.get("value"))


def other_media(record: Mapping, questions: Iterable[str], *, named_only: bool = False) -> list[Problem]:
    """Find what a record brings that is no image under "image", and so would be left out unseen, medium by medium.

    Args:
        record: its fields. Those of `MEDIA` bring a medium; so does, unless the record has an image to which it may
            belong, any other that is named after one, or names a file of one as a field of its name may.
        questions: its texts, in which placeholders stand.
        named_only: of the fields, look at those of `MEDIA` alone: the others have a meaning of their own.
    """
    signs = defaultdict(list)
    for field, value in record.items():
        for medium in media_in(field, value, named_only or (field != "image" and bool(record.get("image")))):
            signs[medium].append(f'"{field}": {shorten(str(value))}')
    for mark in dict.fromkeys(marks_in(list(questions))):
        signs[PLACEHOLDERS[plain(mark)]].append(f"{mark} in a question")
    return [
        Problem(medium.kind, f"{', '.join(found)}; only images are seen: {medium.possible}")
        for medium, found in signs.items()
    ]


def media_in(field: str, value, named_only: bool) -> list[Medium]:
    """Find the media that a field brings: the one that it is named after, else those whose files it names."""
    if field in NO_MEDIA or not value:
        return []
    if named := [medium for medium in MEDIA if field in medium.fields]:
        return named
    if named_only:
        return []
    words = [word.lower() for word in WORD.findall(field)]
    if field != "image" and not is_count(value) and (named := media_named(words)):
        return named
    names = [text.strip().lower() for text in texts_in(value)]
    return [medium for medium in media_possible(field, words) if any(is_of(name, medium) for name in names)]


def is_count(value) -> bool:
    """Return whether a value is a number, as that of "num_videos" is, and no file."""
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdecimal())


def media_named(words: Sequence[str]) -> list[Medium]:
    """Find the media that a field with these words in its name is named after."""
    return [medium for medium, name in NAMED_AFTER.items() if name.fullmatch("_".join(words))]


def media_possible(field: str, words: Sequence[str]) -> list[Medium]:
    """Find the media whose files a field may name; in "image", images belong and nothing else does."""
    if field == "image":
        return [medium for medium in MEDIA if "images" not in medium.fields]
    return [medium for medium in MEDIA if may_name(words, medium)]


def may_name(words: Sequence[str], medium: Medium) -> bool:
    """Return whether a field with these words in its name may name files of a medium: "model" names no picture."""
    singular = {word.removesuffix("s") for word in words}
    return not medium.words or bool(singular & set(medium.words)) or singular <= {"path", "file", "filename", "name"}


def is_of(name: str, medium: Medium) -> bool:
    """Return whether a file is of a medium; a link to a document says where a text comes from."""
    return name.endswith(medium.suffixes) and (bool(medium.fields) or "://" not in name)


def marks_in(texts: Sequence[str]) -> Iterator[str]:
    """Find the placeholders in texts; words alone may be tags of HTML or XML, if closed or in the middle of a line."""
    for text in texts:
        for found in MARK.finditer(text):
            mark = found.group()
            if mark == DEFAULT_IMAGE_TOKEN or plain(mark) not in PLACEHOLDERS:
                continue
            filled = FILLED.match(text, found.start())
            if filled and (not filled[2].strip() or any(is_of(filled[2].strip().lower(), one) for one in MEDIA)):
                yield mark
                continue
            before, after = text[: found.start()].rpartition("\n")[2], text[found.end() :].partition("\n")[0]
            is_tag = any(mark.replace("<", "</") in other for other in texts) or (before.strip() and after.strip())
            if not (mark[1:-1].isalpha() and is_tag):
                yield mark


def plain(mark: str) -> str:
    """Write a placeholder in one way: <|video_pad|>, <VIDEO> and <video_1> are <video>, <image_1> is <image_>."""
    word = re.sub(r"[_-]?(pad|token|placeholder|here|\d+)$", "", mark.strip("<|>").lower())
    return "<image_>" if word == "image" else f"<{word}>"


def texts_in(value) -> Iterator[str]:
    """Yield the texts in a value of JSON, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


def inspect(record: dict) -> list[Problem]:
    """Find what is wrong with a record, without a look at its image files."""
    problems = [] if record.get("id") is not None else [Problem("no id", "")]
    names = image_names(record)
    for name in names:
        if not isinstance(name, str) or not name:
            problems.append(Problem("bad image name", f"{name!r}, expected the name of a file"))
    problems += (media := other_media(record, questions_of(record)))
    try:
        texts = turn_texts(record.get("conversations"))
    except ValueError as error:
        return [*problems, Problem("bad conversation", str(error))]
    if not any(text.strip() for text in texts[1::2]):
        problems.append(Problem("no answer", f"gpt says nothing in {len(texts)} turns"))
    tokens = sum(text.count(DEFAULT_IMAGE_TOKEN) for text in texts)
    if tokens != len(names) and not media:
        kind = "<image> without image" if tokens > len(names) else "image without <image>"
        problems.append(Problem(kind, f"{tokens} times <image>, {len(names)} image files"))
    return problems


def turn_texts(turns) -> list[str]:
    """List what human and gpt say in turn, from the first word of human on: what gpt says before it answers nothing.

    Raises:
        ValueError: no list of turns, an unknown role, two turns in a row of the same one, or a value that is no text.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"the conversation is {shorten(str(turns))}: it must be a list of turns")
    for i, turn in enumerate(turns):
        which = f"turn {i + 1} of {len(turns)}"
        if not isinstance(turn, dict):
            raise ValueError(f"{which} is {shorten(str(turn))}: it must be an object with 'from' and 'value'")
        role, value = turn.get("from"), turn.get("value")
        if role not in ROLES:
            raise ValueError(f"{which} is from {role!r}: choose 'human' or 'gpt'")
        if i and role == turns[i - 1]["from"]:
            raise ValueError(f"{which} is from {role!r}, as the one before: human and gpt alternate")
        if not isinstance(value, str):
            raise ValueError(f"the value of {which} is {shorten(str(value))}: it must be a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the value of {which} holds half of a surrogate pair, which no tokenizer takes") from None
    return [turn["value"] for turn in turns[turns[0]["from"] == "gpt" :]]
