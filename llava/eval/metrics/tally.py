"""Right answers of a number of questions, together and by groups."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple


class Tally(NamedTuple):
    """How many of a number of questions are answered right."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """Compute the share of right answers, 0 to 1; nan without questions."""
        return self.right / self.count if self.count else float("nan")


def tally(outcomes: Iterable[bool]) -> Tally:
    """Count right answers."""
    outcomes = list(outcomes)
    return Tally(sum(outcomes), len(outcomes))


def tally_by(outcomes: Iterable[tuple]) -> dict:
    """Count right answers by group, in order of the groups, from pairs of a group and whether an answer is right."""
    groups = defaultdict(list)
    for group, right in outcomes:
        groups[group].append(right)
    return {group: tally(groups[group]) for group in sorted(groups)}
