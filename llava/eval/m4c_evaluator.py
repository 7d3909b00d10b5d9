"""Upstream's names for the metrics of TextVQA and ST-VQA, for programs that import them; `metrics.textvqa` is the code.

`STVQAANLSEvaluator` and `TextCapsBleu4Evaluator`, which need further packages, are not here.
"""

from collections.abc import Callable, Mapping, Sequence

from llava.eval.metrics.textvqa import exact_match, normalize_answer, score, soft_accuracy


class EvalAIAnswerProcessor:
    """Bring answers into the form that EvalAI's server compares: `EvalAIAnswerProcessor()("The  Dogs.")` is "dogs"."""

    def __call__(self, item: str) -> str:
        """Normalize one answer."""
        return normalize_answer(item)


class TextVQAAccuracyEvaluator:
    """Score answers as TextVQA does, against ten reference answers each."""

    metric: Callable[[str, Sequence[str]], float] = staticmethod(soft_accuracy)

    def __init__(self):
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Sequence[Mapping]) -> float:
        """Compute the mean score, 0 to 1, of entries with `pred_answer` and `gt_answers`.

        Raises:
            ValueError: no entries, or not as many reference answers as the metric is defined on.
        """
        predictions = [entry["pred_answer"] for entry in pred_list]
        return score(predictions, [entry["gt_answers"] for entry in pred_list], self.metric).accuracy


class STVQAAccuracyEvaluator(TextVQAAccuracyEvaluator):
    """Score answers as ST-VQA does: right if equal to any of the reference answers."""

    metric = staticmethod(exact_match)
