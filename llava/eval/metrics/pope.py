"""POPE: is there such an object in the image? Yes or no, counted as a binary classification with "yes" positive."""

from collections.abc import Sequence
from typing import NamedTuple


class PopeResult(NamedTuple):
    """Counts of right and wrong answers, and the ratios made of them.

    Precision, recall and F1 are 0.0 where they have nothing to divide by, accuracy and yes ratio of no answers are nan.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def count(self) -> int:
        """Count the answers."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Compute the share of right answers, 0 to 1."""
        return (self.tp + self.tn) / self.count if self.count else float("nan")

    @property
    def precision(self) -> float:
        """Compute the share of objects among those said to be there, 0 to 1."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0

    @property
    def recall(self) -> float:
        """Compute the share of objects said to be there among those that are, 0 to 1."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def f1(self) -> float:
        """Compute the harmonic mean of precision and recall, 0 to 1."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def yes_ratio(self) -> float:
        """Compute the share of answers that are yes, 0 to 1."""
        return (self.tp + self.fp) / self.count if self.count else float("nan")

    def report(self) -> str:
        """Write the lines that LLaVA's POPE script prints."""
        short = (self.f1, self.accuracy, self.precision, self.recall, self.yes_ratio)
        return "\n".join(
            [
                "TP\tFP\tTN\tFN\t",
                f"{self.tp}\t{self.fp}\t{self.tn}\t{self.fn}",
                f"Accuracy: {self.accuracy}",
                f"Precision: {self.precision}",
                f"Recall: {self.recall}",
                f"F1 score: {self.f1}",
                f"Yes ratio: {self.yes_ratio}",
                ", ".join(f"{value:.3f}" for value in short),
            ]
        )


def parse_answer(text: str) -> str:
    """Read "no" if the words No, no or not stand before the first period, else "yes", as published numbers count it.

    Only these spellings count, between spaces or commas: "NO", "nope" and "No" before a line break are "yes".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "yes" if {"No", "no", "not"}.isdisjoint(words) else "no"


def score(answers: Sequence[str], labels: Sequence[str]) -> PopeResult:
    """Count answers (any text) against the labels at the same place.

    Raises:
        ValueError: not as many answers as labels, or a label that is neither "yes" nor "no".
    """
    if len(answers) != len(labels):
        raise ValueError(f"Each answer needs its label: got {len(answers)} answers and {len(labels)} labels.")
    if unknown := set(labels) - {"yes", "no"}:
        raise ValueError(f"POPE's labels are 'yes' and 'no'; found {sorted(map(str, unknown))}.")
    pairs = [(parse_answer(answer), label) for answer, label in zip(answers, labels, strict=True)]
    return PopeResult(*map(pairs.count, [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")]))
