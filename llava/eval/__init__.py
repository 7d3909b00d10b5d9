"""Evaluation: answer the questions of a benchmark, score the answers, measure speed."""
