"""The setting of VisionZip: checked when made, saved in `config.json`, rebuilt on load."""

from dataclasses import asdict, dataclass, fields

from visionzip_patch.selection import MERGES, check_counts
from visionzip_patch.selectors import SELECTORS

FORMER = {"attention": "visionzip"}  # names of selectors in settings that earlier versions have saved
PUBLISHED = {"dominant": 191, "contextual": 30}  # tokens of a crop where nobody says, as in the published code
CONTEXTUAL_SHARE = 10 / 64  # of a budget, as in every budget of the paper: 54 + 10, 108 + 20, 162 + 30


@dataclass(frozen=True)
class VisionZipConfig:
    """How many tokens describe an image, and how they are chosen.

    Args:
        dominant: tokens kept as they are, per crop; CLS counts as one where the tower has it. At least 1. By default
            191, as in the published code.
        contextual: tokens merged from the rest, per crop. 0 drops the rest. By default 30, whatever `dominant` is.
        tokens_per_image: a budget for the whole image in place of the two above, which are None then. It is split
            evenly over the image's crops (base and tiles of an anyres model), rounded down, 54 : 10 within a crop. A
            crop never gets more tokens than the tower gives.
        merge: "sum" (target + mean of the rest, the published code) or "mean" (average of all, the paper's text).
        selector: who chooses, by its name in `visionzip_patch.selectors.SELECTORS`: "visionzip", or to compare with
            it "random" and "uniform", which choose the dominant patches blindly.
        seed: of a selector that draws, "random": one pattern per seed, the same for every image, so that answers do not
            depend on how images are batched.

    Raises:
        ValueError: a value that no vision tower could satisfy, or counts beside `tokens_per_image`. What a particular
            tower can give is checked when the setting is attached to it.
    """

    dominant: int | None = None
    contextual: int | None = None
    tokens_per_image: int | None = None
    merge: str = "sum"
    selector: str = "visionzip"
    seed: int = 0

    def __post_init__(self):
        if self.tokens_per_image is None:
            for name, count in PUBLISHED.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, count)  # the way into a frozen instance
        elif given := [f"{name}={value!r}" for name in PUBLISHED if (value := getattr(self, name)) is not None]:
            raise ValueError(
                f"tokens_per_image={self.tokens_per_image!r} stands in place of dominant and contextual, but "
                f"{' and '.join(given)} came with it: give one or the other."
            )
        if isinstance(self.selector, str):
            object.__setattr__(self, "selector", FORMER.get(self.selector, self.selector))
        self.check()

    def check(self) -> None:
        """Raise ValueError for a value that no vision tower could satisfy."""
        numbers = PUBLISHED if self.tokens_per_image is None else ("tokens_per_image",)
        for name in (*numbers, "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: expected a whole number.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be 0 to 2**63 - 1.")
        if self.tokens_per_image is not None and self.tokens_per_image < 1:
            raise ValueError(f"tokens_per_image={self.tokens_per_image}: an image needs at least 1 token.")
        for name, value, known in (("merge", self.merge, MERGES), ("selector", self.selector, tuple(SELECTORS))):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        if self.counts:
            check_counts(*self.counts)

    @property
    def counts(self) -> tuple[int, int] | None:
        """The dominant and contextual tokens of a crop, where the setting names them; None: it counts per image."""
        return None if self.dominant is None or self.contextual is None else (self.dominant, self.contextual)

    @classmethod
    def from_dict(cls, values: dict) -> "VisionZipConfig":
        """Make the setting that `to_dict` has described.

        Raises:
            ValueError: an unknown key, with the known ones, or what no setting can be.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict):
            raise ValueError(f"VisionZip settings are {values!r}; expected a table of {', '.join(known)}.")
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"Unknown VisionZip setting {', '.join(unknown)}; known are {', '.join(known)}.")
        if values.get("tokens_per_image") is not None:  # earlier versions wrote the other two beside it
            values = {name: value for name, value in values.items() if name not in PUBLISHED}
        return cls(**values)

    def to_dict(self) -> dict:
        """Return the arguments that make the setting again, ready for JSON: per image without counts of a crop."""
        return {name: value for name, value in asdict(self).items() if name not in PUBLISHED or value is not None}

    def per_crop(self, crops: int, available: int) -> tuple[int, int]:
        """Share the tokens of an image out over its crops.

        Args:
            crops: how many the image has.
            available: tokens that the tower gives of each, CLS included.

        Returns:
            Dominant and contextual tokens of each crop.

        Raises:
            ValueError: there is less than one token for each crop.
        """
        if self.counts:
            return self.counts
        assert self.tokens_per_image is not None
        budget = min(self.tokens_per_image // crops, available)
        if budget < 1:
            raise ValueError(
                f"tokens_per_image={self.tokens_per_image} cannot be split over {crops} crops: "
                f"give at least {crops}, or set dominant and contextual, which count per crop."
            )
        contextual = round(budget * CONTEXTUAL_SHARE)
        return budget - contextual, contextual

    def __str__(self) -> str:
        counts = f"{self.dominant}+{self.contextual} tokens per crop"
        text = counts if self.tokens_per_image is None else f"{self.tokens_per_image} tokens per image"
        return text if self.selector == type(self).selector else f"{text}, selector {self.selector}"


def with_current_names(settings: dict) -> dict:
    """Return a record that holds a saved setting, `visionzip`, with that as it would be saved now.

    So answers and features that an earlier version has made are still known as those of the same setting.

    Raises:
        ValueError: no setting can be like that.
    """
    saved = settings.get("visionzip")
    return {**settings, "visionzip": VisionZipConfig.from_dict(saved).to_dict()} if saved else settings
