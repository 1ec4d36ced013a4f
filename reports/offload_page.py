"""Text for a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def reflow(page: str) -> str:
    """Paragraphs and bullets broken anew: numbers have their own widths."""
    blocks = []
    for block in page.strip().split("\n\n"):
        items = re.split(r"\n(?=\* )", block)
        if not block.strip().startswith(("|", "#", "!", "<")):
            items = [
                fill(
                    " ".join(item.split()),
                    120,
                    subsequent_indent="  " * item.startswith("* "),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in items
            ]
        blocks.append("\n".join(items).strip("\n"))
    return "\n\n".join(blocks) + "\n"
