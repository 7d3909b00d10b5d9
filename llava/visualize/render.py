"""Pictures of what VisionZip sees and keeps, for `llava.visualize`."""

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


def draw(args: argparse.Namespace) -> int:
    """Do what `llava.visualize` was asked for; returns the exit status."""
    files = choose_files(args)
    frames = (frame for path in args.image for frame in frames_of(Path(path), None if args.average else args.frames))
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
        paint, subtitle = average_figure, f"Average of {count} images"
    else:
        side = args.size or max(NARROWEST, SIDE * 2 // (1 + len(frames)))
        views = on_one_scale([view_of(model, processor, image, title=name, side=side) for name, image in frames])
        paint, subtitle = figure, summary(views)
    png = io.BytesIO()
    paint(views, title, subtitle).save(png, "PNG", optimize=True)
    write_bytes(files[0], png.getvalue())
    write_text(files[1], page(views, title, subtitle))
    print(f"{title}. {subtitle}.\nWritten: {', '.join(map(str, files))}")
    return 0


def choose_files(args: argparse.Namespace) -> list[Path]:
    """Where the picture and the page go. Raises ValueError if one of them is an image to be drawn, or somebody's."""
    out = Path(args.out or playground() / "results/pictures")
    stem = Path(args.image[0]).absolute().stem if len(args.image) == 1 else "frames"
    kind = "visionzip-average" if args.average else "visionzip"
    files = [out / f"{stem}-{kind}{suffix}" for suffix in (".png", ".html")]
    folders = [folder for folder in map(Path, args.image) if folder.is_dir()]
    require_apart(files, [*args.image, *(path for folder in folders for path in folder.iterdir())])
    require_own(files, GENERATOR)
    return files


def average(model, image_processor, frames: Iterable[tuple[str, Image.Image]]) -> tuple[list[View], int]:
    """Maps of the mean score of each patch, and of how often it is kept; and how many images they are of."""
    tower, scores, kept, count = model.get_vision_tower(), [], [], 0
    for title, image in frames:
        view = view_of(model, image_processor, image, title=title, side=tower.num_patches_per_side)
        scores += [crop.score for crop in view.crops]
        kept += [crop.token == KEPT for crop in view.crops]
        count += 1
    whose = "images" if len(scores) == count else "crops"
    meaning = f"of the {whose}, in which it is kept"
    maps = [
        map_view(np.mean(scores, axis=0), title="mean score", meaning=view.meaning, side=SIDE),
        map_view(100 * np.mean(kept, axis=0), title="how often kept", meaning=meaning, side=SIDE),
    ]
    return maps, count


def summary(views: Sequence[View]) -> str:
    """The tokens of an image in a sentence."""
    view = views[0]
    crops = len(view.crops)
    parts = [f"{view.dominant} patches"]
    if view.has_cls:
        parts.insert(0, "CLS" if crops == 1 else f"{crops} CLS")
    text = f"{view.tokens} tokens for {view.patches} patches: {' + '.join(parts)} kept, {view.contextual} contextual"
    return text if len({view.tokens for view in views}) == 1 else f"{text} (first image)"
