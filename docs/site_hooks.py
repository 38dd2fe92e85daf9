"""What the site needs beyond mkdocs: a page's link to a file of the checkout that is no page leads to a copy of it in the site.

    [results](../bench/results/README.md)   ->   files/bench/results/README.md.txt

So the pages read well in the checkout and in the site, and neither needs a network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?:#[^)\s]*)?(?=\))")
_SHOWN_AS_TEXT = {".md", ".py", ".sh", ".toml", ".csv"}


def _copy_of(link: str, page: str) -> str | None:
    """The site's name of a file that a page links to; None of a page, and of what is not there, which mkdocs reports."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    path = ROOT / target
    if target.startswith("docs/") or not path.is_file():
        return None
    return f"files/{target}" + (".txt" if path.suffix in _SHOWN_AS_TEXT else "")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' event: all pages are known. Adds the copies."""
    for page in list(files.documentation_pages()):
        for link in _LINK.findall(Path(page.abs_src_path).read_text("utf-8")):
            name = _copy_of(link, page.src_uri)
            if name and not files.get_file_from_path(name):
                source = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link))
                files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs' event: a page is read. Its links lead to the copies."""
    here = page.file.src_uri

    def led(found: re.Match[str]) -> str:
        name = _copy_of(found[1], here)
        return posixpath.relpath(name, posixpath.dirname(here) or ".") if name else found[0]

    return _LINK.sub(led, markdown)
