"""Read the VisionZip budget of a command: its options, what they ask for, and whether a checkpoint can give it.

All commands mean the same by the same options:

- `--dominant` and `--contextual` go together, and count tokens of each crop;
- `--tokens-per-image` stands in their place, and counts tokens of the whole image;
- `--merge`, `--selector` and `--selector-seed` alone change how a budget merges and chooses that holds without them,
  and are refused where there is none.

Imports nothing heavy by itself, so that options can be declared and refused before torch is loaded.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llava.utils.cli import positive, whole
from visionzip_patch.selectors import SELECTORS

if TYPE_CHECKING:
    from visionzip_patch import VisionZipConfig

CHOICES = {"merge": "merge", "selector": "selector", "seed": "selector_seed"}  # setting: attribute of its option
USUAL = 54, 10  # dominant and contextual tokens of 576 patches, the paper's smallest budget for LLaVA-1.5


def add_budget_options(parser: argparse.ArgumentParser, *, default: str, counts_only: bool = False):
    """Declare the options of a budget, and return their group.

    Args:
        parser: of the command.
        default: what holds without them, in words.
        counts_only: leave out how tokens are chosen and merged, for a command that calculates from their number.
    """
    group = parser.add_argument_group(f"VisionZip budget (default: {default})")
    add = group.add_argument
    add("--dominant", type=positive, metavar="D", help="tokens kept of each crop, CLS included; needs --contextual")
    add("--contextual", type=whole, metavar="C", help="tokens merged from the rest of each crop; 0 drops the rest")
    add("--tokens-per-image", type=positive, metavar="N", help="instead of both: tokens over all crops of an image")
    if not counts_only:
        add("--merge", choices=("sum", "mean"), help="as the published code (sum, default) or the paper's text (mean)")
        kinds = "; ".join(f"{name}: {selector.help}" for name, selector in SELECTORS.items())
        add("--selector", choices=tuple(SELECTORS), help=f"what is kept (default: visionzip). {kinds}")
        add("--selector-seed", type=whole, metavar="N", help="of a selector that draws: random (default: 0)")
    return group


def to_flag(name: str) -> str:
    """Write the name of an attribute as the commands' option of that name."""
    return f"--{name.replace('_', '-')}"


def asked_counts(args: Any, spell: Callable[[str], str] = to_flag) -> dict[str, Any]:
    """Read the token counts that were asked for, as arguments of `VisionZipConfig`; empty if none were.

    Args:
        args: has `dominant`, `contextual` and `tokens_per_image`, each a number or None.
        spell: how the user writes the option of an attribute, for messages.

    Raises:
        ValueError: half a budget, or two.
    """
    counts = {name: value for name in ("dominant", "contextual") if (value := getattr(args, name)) is not None}
    dominant, contextual = spell("dominant"), spell("contextual")
    if args.tokens_per_image is not None:
        if counts:
            raise ValueError(
                f"{spell('tokens_per_image')} replaces {dominant} and {contextual}: give one or the other."
            )
        return {"tokens_per_image": args.tokens_per_image}
    if len(counts) == 1:
        ((name, value),) = counts.items()
        partner, usual = usual_partner(name, value)
        raise ValueError(
            f"{dominant} and {contextual} go together; got {args.dominant} and {args.contextual}. With {spell(name)} "
            f"{value}, {spell(partner)} {usual} is usual; {contextual} 0 drops what is not kept."
        )
    return counts


def usual_partner(name: str, value: int) -> tuple[str, int]:
    """Name the other count of a budget and what it usually is: 54 dominant tokens go with 10 contextual ones."""
    if name == "dominant":
        return "contextual", round(value * USUAL[1] / USUAL[0])
    return "dominant", round(value * USUAL[0] / USUAL[1]) or USUAL[0]


def budget_of(
    args: Any, default: "VisionZipConfig | None" = None, spell: Callable[[str], str] = to_flag
) -> "VisionZipConfig | None":
    """Make the budget that was asked for; None stands for all tokens.

    Args:
        args: as of `asked_counts`, and perhaps with `merge`, `selector` and `selector_seed`.
        default: the budget that holds without counts: one that the checkpoint carries, or the command's own.
        spell: as of `asked_counts`.

    Raises:
        ValueError: half a budget, or two; counts that no tower could satisfy; how to merge or choose without a budget;
            a seed for a selector that draws nothing.
    """
    counts, choices = asked_counts(args, spell), asked_choices(args)
    if counts:
        from visionzip_patch import VisionZipConfig  # imports torch

        budget = VisionZipConfig(**{**counts, **choices})
    elif not choices:
        return default
    elif default is None:
        raise ValueError(
            f"{spell(CHOICES[next(iter(choices))])} needs a budget: add {spell('dominant')} and {spell('contextual')}, "
            f"or {spell('tokens_per_image')}."
        )
    else:
        budget = replace(default, **choices)
    if "seed" in choices and "seed" not in SELECTORS[budget.selector].parameters:
        drawing = [name for name, selector in SELECTORS.items() if "seed" in selector.parameters]
        raise ValueError(
            f"{spell('selector_seed')} {budget.seed}: the selector {budget.selector} draws nothing. Those that draw: "
            f"{', '.join(drawing)}."
        )
    return budget


def asked_choices(args: Any) -> dict[str, Any]:
    """Read how to merge and choose, as far as it was asked for, as arguments of `VisionZipConfig`."""
    given = {name: getattr(args, option, None) for name, option in CHOICES.items()}
    return {name: value for name, value in given.items() if value is not None}


def counts_per_crop(args: Any, default: tuple[int, int], *, crops: int, available: int) -> tuple[int, int]:
    """Count the dominant and contextual tokens of a crop that were asked for.

    Args:
        args: as of `asked_counts`.
        default: what holds where nothing was asked for.
        crops: of an image.
        available: tokens that the tower gives of a crop, CLS included.

    Raises:
        ValueError: half a budget, two, or more tokens than the tower gives.
    """
    asked = asked_counts(args)
    if not asked:
        return default
    if "tokens_per_image" in asked or sum(asked.values()) > available:
        from visionzip_patch import VisionZipConfig  # imports torch
        from visionzip_patch.selection import check_budget

        counts = VisionZipConfig(**asked).per_crop(crops, available)
        check_budget(*counts, available)
        return counts
    return asked["dominant"], asked["contextual"]


def carried_budget(tower) -> "VisionZipConfig | None":
    """Return the budget that a checkpoint's tower carries, if any."""
    return tower.reducer.config if tower.reducer else None


def usual_budget(tower, ninths: int = 1) -> "VisionZipConfig":
    """Choose tokens for a ninth of the tower's patches, or for several: 54 + 10 of 576 as in the paper, 6 + 1 of 64."""
    from visionzip_patch import VisionZipConfig

    tokens = VisionZipConfig(tokens_per_image=max(1, ninths * tower.num_patches // 9))
    return VisionZipConfig(*tokens.per_crop(1, tower.num_patches + tower.has_cls))


def choose_budget(args: argparse.Namespace, config, tower, *, usual: bool = True) -> "VisionZipConfig | None":
    """Choose what the options ask for, else what the checkpoint carries, else the usual budget of its tower.

    Args:
        args: as of `budget_of`.
        config: of the checkpoint.
        tower: its vision tower, perhaps without weights.
        usual: False gives None, all tokens, in place of the usual budget.

    Raises:
        ValueError: as `budget_of` and `require_possible`; nothing needs to be loaded for either.
    """
    budget = budget_of(args, carried_budget(tower) or (usual_budget(tower) if usual else None))
    if budget:
        require_possible(budget, config, tower)
    return budget


def require_possible(budget: "VisionZipConfig", config, tower) -> None:
    """Refuse a budget that some image of a checkpoint cannot be given: more tokens than there are, or too few.

    Args:
        budget: what was asked for.
        config: of the checkpoint.
        tower: its vision tower, perhaps without weights.

    Raises:
        ValueError: both numbers are named.
    """
    from visionzip_patch.reducer import VisionZip

    crops = most_crops(config, tower)
    VisionZip(budget, tower).tokens(crops)
    if budget.tokens_per_image and budget.tokens_per_image >= crops * tower.num_patches:
        raise ValueError(
            f"tokens_per_image={budget.tokens_per_image}: no image has more than {crops * tower.num_patches} tokens "
            f"without VisionZip. Ask for fewer, or for no budget: then it keeps them all."
        )


def most_crops(config, tower) -> int:
    """Count the crops of the largest grid that an image can be cut into."""
    from llava.model.anyres import is_anyres, parse_pinpoints

    if not is_anyres(config):
        return 1
    side = tower.config.image_size
    return 1 + max((w // side) * (h // side) for w, h in parse_pinpoints(config.image_grid_pinpoints, side))


def set_budget(model, budget: "VisionZipConfig | None") -> None:
    """Zip a model at `budget`; None gives it all its tokens again."""
    from visionzip_patch import unzip
    from visionzip_patch.api import attach

    if budget is None:
        unzip(model)
    else:
        attach(model, budget)


def budget_name(budget: "VisionZipConfig | None") -> str:
    """Name a budget for tables and files: full, 54+10, 160-per-image, 54+10-random-seed3."""
    if budget is None:
        return "full"
    counts = f"{budget.dominant}+{budget.contextual}"
    name = counts if budget.tokens_per_image is None else f"{budget.tokens_per_image}-per-image"
    options = {"merge": budget.merge, "selector": budget.selector, "seed": f"seed{budget.seed}"}
    usual = type(budget)
    return "-".join(
        [name, *(text for field, text in options.items() if getattr(budget, field) != getattr(usual, field))]
    )
