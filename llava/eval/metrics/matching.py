"""Match answers to the questions that they are to."""

from collections.abc import Iterable, Mapping


def rows_by_id(rows: Iterable[Mapping], known: Iterable, key: str = "question_id") -> dict[str, Mapping]:
    """Look rows up by their `key`, as text; of rows with the same id the last counts.

    Raises:
        ValueError: rows have ids that are not among the `known`.
    """
    found, ids = {str(row[key]): row for row in rows}, {str(name) for name in known}
    if unknown := [name for name in found if name not in ids]:
        raise ValueError(
            f"{len(unknown)} of {len(found)} answers are to none of the {len(ids)} questions: their {key} is, for "
            f"instance, {', '.join(unknown[:3])}. Answers and questions must be of one split."
        )
    return found
