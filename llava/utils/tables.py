"""Write tables in Markdown that are also legible as plain text."""

from collections.abc import Sequence


def to_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a table, the first of `lines` as its head; its first `left` columns are aligned left, the others right."""
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
    """Write a number with three digits, or with all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
