"""Code blocks of a Markdown page, for the tests that do what the documents say."""

from pathlib import Path


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of ``language`` ("" for plain ones), in order."""
    found: list[str] = []
    fence, lines = None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif fence is None:
            fence, lines = line.removeprefix("```"), []
        else:
            if fence == language:
                found.append("\n".join(lines) + "\n")
            fence = None
    return found
