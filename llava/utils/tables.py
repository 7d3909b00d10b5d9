"""Tables in Markdown that also read well as they stand."""

from collections.abc import Sequence


def to_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """The head and rows of a table, the first `left` columns aligned to the left, the others to the right."""
    head, *rows = lines
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    signs = ["<" if i < left else ">" for i in range(len(head))]
    padded = [
        " | ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=True))
        for line in (head, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in padded)


def format_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
