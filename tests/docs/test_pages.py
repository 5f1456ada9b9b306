"""What the Markdown outside the site says exists, and what the how-to guides quote is really printed."""

import ast
import re
import sys

import pytest
from tests.docs.tutorial import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import literals

import lclm_jax

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md"]
API = "docs/reference/api.md"
MESSAGES = ["docs/how-to/operate.md", "docs/how-to/troubleshoot.md"]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name):
    assert literals.defects_of_page(ROOT / name) == []


def test_every_public_name_is_documented():
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", (ROOT / API).read_text(encoding="utf-8"), re.MULTILINE))
    assert documented == set(lclm_jax.__all__) - {"__version__"}


def texts_of_the_source() -> list[str]:
    """Every string of the package; what an f-string or ``%`` fills in is a NUL character."""
    texts = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[\d.]*[a-z]", "\0", node.value))
    return texts


@pytest.mark.parametrize("name", MESSAGES)
def test_quoted_messages_are_printed(name):
    """The first column of a table of messages; ``...`` stands for what differs."""
    source = texts_of_the_source()
    quoted = []
    for table in re.findall(r"^\| message [^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", (ROOT / name).read_text(), re.MULTILINE):
        quoted += [text for row in table.splitlines() for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert quoted
    for message in quoted:
        fragments = [fragment.strip() for fragment in message.split("...") if fragment.strip(" .;,()")]
        assert any(all(fragment in text for fragment in fragments) for text in source), f"never printed: {message}"
