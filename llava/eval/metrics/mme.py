"""MME: two yes/no questions about each image; ten subtasks of perception, four of cognition.

Scores as Fu et al. (arXiv 2306.13394) define them and calculation.py of their eval_tool computes them: a subtask's
score is its accuracy plus its accuracy+, the share of images with both questions right, each in percent. So a subtask
gives 200 points, perception 2000 and cognition 800. Which question an answer belongs to is found as LLaVA's
convert_answer_to_mme.py finds it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION

INSTRUCTIONS = ("Answer the question using a single word or phrase.", "Please answer yes or no.")
PARSED = 4  # letters of an answer that are looked at


class Truth(NamedTuple):
    """A question and its answer, "yes" or "no" in any case."""

    subtask: str
    image: str  # file name
    question: str
    answer: str


class SubtaskScore(NamedTuple):
    """Counts of a subtask and the points made of them."""

    images: int
    right: int  # questions, two per image
    both_right: int  # images

    @property
    def accuracy(self) -> float:
        """Compute the percentage of questions answered right."""
        return self.right / (2 * self.images) * 100

    @property
    def accuracy_plus(self) -> float:
        """Compute the percentage of images with both questions answered right."""
        return self.both_right / self.images * 100

    @property
    def score(self) -> float:
        """Add up the points of the subtask, 0 to 200."""
        return self.accuracy + self.accuracy_plus


class MMEResult(NamedTuple):
    """Scores of the subtasks that were answered, in the order of the official script."""

    subtasks: dict[str, SubtaskScore]

    @property
    def perception(self) -> float:
        """Add up the points of perception, 0 to 2000."""
        return self.points(PERCEPTION)

    @property
    def cognition(self) -> float:
        """Add up the points of cognition, 0 to 800."""
        return self.points(COGNITION)

    @property
    def total(self) -> float:
        """Add up all points, 0 to 2800; some papers print them as "MME", others perception alone."""
        return self.perception + self.cognition

    @property
    def possible(self) -> int:
        """Compute the most that `total` could be: 2800, or less where subtasks were not answered."""
        return 200 * len(self.subtasks)

    def points(self, names: Sequence[str]) -> float:
        """Add up the points of some subtasks; those that were not answered have none."""
        return sum(self.subtasks[name].score for name in names if name in self.subtasks)


def parse_answer(text: str) -> str:
    """Read "yes" or "no" if the first four letters contain it, in any case, else "other", as published numbers do.

    So "Not", "None" and "Know" are "no", and "The answer is yes" is "other".
    """
    start = text.lower()[:PARSED]
    return next((word for word in ("yes", "no") if word in start), "other")


def score(truths: Sequence[Truth], predictions: Sequence[Mapping]) -> MMEResult:
    """Score predictions on the images with both questions answered.

    MME's score is defined on all of them. With fewer, a subtask's points are those of the images that it has, and a
    subtask without any gives none; `possible` of the result says of how many. The official script pairs lines as they
    come; here the two questions of an image find each other by its name, which is the same for files in their native
    order.

    Args:
        truths: the questions of all fourteen subtasks, two per image.
        predictions: rows with `question_id` ("SUBTASK/IMAGE", folders between are skipped), `prompt` and `text`. Of
            rows with the same image and question the last counts.

    Raises:
        ValueError: `truths` are not of all subtasks or of others, an image has not two questions, a true answer is
            neither yes nor no, a prediction answers none of the questions, or no image has both of its answered.
    """
    check(truths)
    texts = {key_of(row["question_id"], row["prompt"]): row["text"] for row in predictions}
    asked = [key_of(f"{truth.subtask}/{truth.image}", truth.question) for truth in truths]
    if unknown := list(texts.keys() - set(asked)):
        raise ValueError(
            f"{len(unknown)} of {len(texts)} predictions answer none of MME's {len(asked)} questions, for instance "
            f"(subtask, image, question) {min(unknown)}."
        )
    parsed = {name: {} for name in SUBTASKS}  # subtask -> image -> [(answer, truth), ...]
    for truth, key in zip(truths, asked, strict=True):
        if key in texts:
            parsed[truth.subtask].setdefault(truth.image, []).append((parse_answer(texts[key]), truth.answer.lower()))
    pairs = {name: [answers for answers in images.values() if len(answers) == 2] for name, images in parsed.items()}
    if not any(pairs.values()):
        raise ValueError(
            f"MME scores images by both of their questions; of its {len(asked)} questions {len(texts)} have a "
            f"prediction, and no image has two. Answer more of them."
        )
    return MMEResult({name: score_subtask(images) for name, images in pairs.items() if images})


def score_subtask(images: Sequence[Sequence[tuple[str, str]]]) -> SubtaskScore:
    """Count the right answers of a subtask, from the (parsed, true) answers to each image."""
    right = [sum(answer == truth for answer, truth in pairs) for pairs in images]
    return SubtaskScore(len(images), sum(right), right.count(2))


def key_of(question_id: str, prompt: str) -> tuple[str, str, str]:
    """Make the key of a question: subtask, image without ending, and text without the instructions LLaVA adds."""
    subtask, *_, image = question_id.split("/")
    for instruction in INSTRUCTIONS:
        prompt = prompt.replace(instruction, "")
    # Some questions of the release have two blanks before the instruction, others one.
    return subtask, image.split(".")[0], " ".join(prompt.split())


def check(truths: Sequence[Truth]) -> None:
    """Raise ValueError unless `truths` are two questions per image of all subtasks."""
    found = {truth.subtask for truth in truths}
    if found != set(SUBTASKS):
        missing, unknown = sorted(set(SUBTASKS) - found), sorted(found - set(SUBTASKS))
        raise ValueError(
            f"MME's score is the sum of {len(SUBTASKS)} subtasks; {len(missing)} are missing "
            f"({', '.join(missing) or 'none'}) and {len(unknown)} are unknown ({', '.join(unknown) or 'none'})."
        )
    if wrong := [truth for truth in truths if truth.answer.lower() not in ("yes", "no")]:
        raise ValueError(f"MME's answers are yes and no; {len(wrong)} of {len(truths)} are not, first {wrong[0]}.")
    images = Counter((truth.subtask, truth.image) for truth in truths)
    if uneven := [image for image, count in images.items() if count != 2]:
        raise ValueError(
            f"MME asks two questions per image, but {len(uneven)} of {len(images)} images have another number: "
            f"{'/'.join(uneven[0])} has {images[uneven[0]]}."
        )
