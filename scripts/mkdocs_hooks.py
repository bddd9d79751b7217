"""What the site changes on the pages of docs/, which are also read in the repository."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)\s#]+)[^)\s]*\)")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Replace links to files outside of docs/ by the files' names."""
    if "/" in page.file.src_uri:
        return markdown
    return OUTSIDE.sub(lambda link: link[1] if link[1].strip("`") == link[2] else f"{link[1]} (`{link[2]}`)", markdown)
