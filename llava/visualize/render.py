"""Draw what VisionZip sees and keeps, and write it to files: the work of `llava.visualize`."""

import argparse
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from llava.inference.budget import choose_budget
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.inference.loading import load
from llava.mm_utils import get_model_name_from_path
from llava.model.description import read_config
from llava.utils.environment import device_of
from llava.utils.files import make_folder, require_apart, require_own, write_bytes, write_text
from llava.utils.processes import ALONE
from llava.visualize import GENERATOR, KEPT, View, average_figure, figure, map_view, on_one_scale, page
from llava.visualize.crops import SIDE, view_of
from llava.visualize.frames import frames_of

NARROWEST = 176  # pixels of a crop among many

Frame = tuple[str, Image.Image]  # title and image


def draw(args: argparse.Namespace) -> int:
    """Draw the images and write a PNG and a page; returns the exit status."""
    files = choose_files(args)
    frames: Iterable[Frame] = (
        frame for path in args.image for frame in frames_of(Path(path), None if args.average else args.frames)
    )
    if not args.average:
        frames = list(frames)  # before the model, which may have to be fetched
    checkpoint = args.model or str(playground() / EMBEDDED_CHECKPOINT)
    budget = choose_budget(args, *read_config(checkpoint, args.model_base))
    make_folder(files[0].parent)
    device = device_of(args.device, ALONE)
    _, model, processor = load(checkpoint, model_base=args.model_base, device=device, visionzip=budget)

    title = f"{get_model_name_from_path(checkpoint)} with VisionZip, {budget}"
    if args.average:
        views, count = average(model, processor, frames)
        subtitle = f"Average of {count} images"
        picture = average_figure(views, title, subtitle)
    else:
        views = side_by_side(model, processor, list(frames), args.size)
        subtitle = summary(views)
        picture = figure(views, title, subtitle)
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    write_bytes(files[0], png.getvalue())
    write_text(files[1], page(views, title, subtitle))
    print(f"{title}. {subtitle}.\nWritten: {', '.join(map(str, files))}")
    return 0


def choose_files(args: argparse.Namespace) -> list[Path]:
    """Name the picture and the page to write.

    Raises:
        ValueError: one of them would replace an image to be drawn, or a file that this command has not written.
    """
    out = Path(args.out or playground() / "results/pictures")
    stem = Path(args.image[0]).absolute().stem if len(args.image) == 1 else "frames"
    kind = "visionzip-average" if args.average else "visionzip"
    files = [out / f"{stem}-{kind}{suffix}" for suffix in (".png", ".html")]
    folders = [folder for folder in map(Path, args.image) if folder.is_dir()]
    require_apart(files, [*args.image, *(path for folder in folders for path in folder.iterdir())])
    require_own(files, GENERATOR)
    return files


def side_by_side(model, image_processor, frames: Sequence[Frame], side: int | None) -> list[View]:
    """Make views of frames on one scale, each crop `side` pixels wide; by default the narrower, the more there are."""
    side = side or max(NARROWEST, SIDE * 2 // (1 + len(frames)))
    return on_one_scale([view_of(model, image_processor, image, title=title, side=side) for title, image in frames])


def average(model, image_processor, frames: Iterable[Frame]) -> tuple[list[View], int]:
    """Map each patch's mean score, and how often it is kept, over all images; also returns the number of images."""
    tower, scores, kept, count, meaning = model.get_vision_tower(), [], [], 0, ""
    for title, image in frames:
        view = view_of(model, image_processor, image, title=title, side=tower.num_patches_per_side)
        scores += [crop.score for crop in view.crops]
        kept += [crop.token == KEPT for crop in view.crops]
        count, meaning = count + 1, view.meaning
    whose = "images" if len(scores) == count else "crops"
    mean, often = np.mean(scores, axis=0), 100 * np.mean(kept, axis=0)
    maps = [
        map_view(mean, title="mean score", meaning=meaning, side=SIDE),
        map_view(often, title="how often kept", meaning=f"of the {whose}, in which it is kept", side=SIDE),
    ]
    return maps, count


def summary(views: Sequence[View]) -> str:
    """Say in a sentence how many tokens an image becomes."""
    view = views[0]
    crops = len(view.crops)
    parts = [f"{view.dominant} patches"]
    if view.has_cls:
        parts.insert(0, "CLS" if crops == 1 else f"{crops} CLS")
    text = f"{view.tokens} tokens for {view.patches} patches: {' + '.join(parts)} kept, {view.contextual} contextual"
    return text if len({view.tokens for view in views}) == 1 else f"{text} (first image)"
