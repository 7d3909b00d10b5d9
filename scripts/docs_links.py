"""A hook of mkdocs: links to source files and folders become plain text, as these are no pages of the site.

A link to something that does not exist is left, and the build, which is strict, fails at it.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Rewrite the links of one page, which lies among the pages as it does in the repository."""
    here = ROOT / Path(page.file.src_uri).parent
    pages = {ROOT / file.src_uri for file in files}

    def replace(match: re.Match) -> str:
        target = (here / match[2]).resolve()
        return match[1] if target.exists() and target not in pages else match[0]

    return LINK.sub(replace, markdown)
