"""The commands of the pages for operators, found as they are written there."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS, ALERTS = (ROOT / "docs" / name for name in ("operations.md", "alerts.md"))
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text):
    """Its shell blocks."""
    return [textwrap.dedent(block) for language, block in BLOCK.findall(text) if language == "sh"]


def part(page, heading):
    """From a heading to the next of any level."""
    return re.split(r"\n##", page.read_text().split(f"\n### {heading}\n")[-1])[0]


def bare(line):
    """Without what a comment says of it, and of its place in the background."""
    return line.split(" #")[0].strip().removesuffix(" &")


def lines(block):
    return [bare(line) for line in block.splitlines() if bare(line)]


def in_sentences(text):
    """What is in backticks between the blocks; it may go over the end of a line."""
    return [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def written():
    """Every line that the pages have, of blocks and in sentences."""
    texts = [page.read_text() for page in (OPERATIONS, ALERTS)]
    return {line for text in texts for block in blocks(text) for line in lines(block)} | {piece for text in texts for piece in in_sentences(text)}
