"""What the site changes in a page: links that are right in the repository are made right, or plain text, in the site."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!http)[^)]+)\)")
_FROM_ROOT = {"architecture.md", "changelog.md", "security.md"}
"""Pages that are a file of the repository's root."""
_OTHER_ROOT = re.compile(r"\[([^\]]+)\]\((?!https?:|#)(?!docs/)([^)]+)\)")
_PAGES = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md", "README.md": "index.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    from pathlib import Path

    name = page.file.src_uri
    if name in _FROM_ROOT:
        # The snippet is put in here, before its links are looked at.
        source = re.search(r'--8<-- "([^"]+)"', markdown)
        assert source is not None, name
        markdown = Path(source[1]).read_text(encoding="utf-8")
        markdown = _OTHER_ROOT.sub(_plain_or_page, markdown)
        return markdown.replace("](docs/", "](")
    return _OUTSIDE.sub(_plain_or_page, markdown)


def _plain_or_page(link: re.Match[str]) -> str:
    """A link to a file outside the site's folder: to its page where it has one, else its text and path."""
    text, path = link[1], link[2]
    if path in _PAGES:
        return f"[{text}]({_PAGES[path]})"
    return text if path.rstrip("/") in text else f"{text} (`{path}`)"
