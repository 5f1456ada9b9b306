"""Checks what the text says in code font, and links it: configuration keys, ``lclm`` commands, files, Python names.

A literal such as ``train.z_loss`` becomes a link to the reference of that key, ``lclm data show`` one to that of the
command. A key, command, option, file or name that does not exist is a warning, so that ``make docs`` fails. Command
lines in code blocks are checked in the same way. ``defects_of_page`` does it for Markdown outside the site.
"""

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
from command_pages import commands
from config_pages import known_keys
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lclm_jax"
# What looks like a file or key of this repository and is none: files that the reader is told to write, files of others.
ELSEWHERE = {
    "src/lclm_jax/model/poolings/scored.py",
    "configs/ablate/tiny/scored.yaml",
    "train/launch_train.py",  # of the PyTorch project
    "inference/vllm_inference/decode.py",
    "tokenizer.model",  # a SentencePiece file
    "model.safetensors",
    "docs/_build/html",
    "mesh.shape",  # of JAX
}

_TOP = "corpus|tokenizer|model|init|data|stages|train|mesh|environment|eval"
_KEY = re.compile(rf"((?:{_TOP})(?:\.[A-Za-z_]\w*)+)(?:[=: ].*)?$", re.DOTALL)
_FILE = re.compile(r"((?:src|tests|configs|launch|docs|examples|benchmarks)/[\w./{},*-]+)$")
_SOURCE_FILE = re.compile(r"([a-z_]+(?:/[a-z_]+)*\.py)(?::(\w+))?$")
_PYTHON_NAME = re.compile(r"lclm_jax(?:\.\w+)+$")
_SHORT_NAME = re.compile(r"(?:kernels|parallel|text|interop|inference|bench|plan|ops|ablate|report|suite)(?:\.\w+)+$")
_SUFFIXES = (".py", ".md", ".yaml", ".json", ".jsonl", ".html")
_SECTION = "lclm-section"
_SHELLS = {"bash", "sh", "shell", "console", "none", "text", "default", ""}


@cache
def _key_patterns() -> dict[re.Pattern[str], str]:
    return {re.compile(key.replace(".", r"\.").replace("NAME", "[^.]+")): key for key in known_keys()}


@cache
def _commands() -> dict[str, click.Command]:
    return commands()


def find_key(text: str) -> tuple[str | None, str | None]:
    """(key of the tree that ``text`` names, what is wrong with it); (None, None) if it names no key."""
    match = _KEY.match(text)
    if match is None or match[1] in ELSEWHERE or match[1].endswith(_SUFFIXES):
        return None, None
    for pattern, key in _key_patterns().items():
        if pattern.fullmatch(match[1]):
            return key, None
    module = PACKAGE.joinpath(*match[1].split(".")[:2])
    if module.is_dir() or module.with_suffix(".py").exists():
        return None, None  # a module: ``train.core``
    return None, f"configuration key {match[1]!r} does not exist"


def find_command(text: str) -> tuple[str | None, str | None]:
    """(full name of the command that the line ``text`` calls, what is wrong with it)."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    if len(words) < 2 or words[0] != "lclm" or not re.fullmatch(r"[a-z][a-z-]*", words[1]):
        return None, None
    name = words[1]
    if name not in _commands():
        return None, f"command 'lclm {name}' does not exist"
    rest = words[2:]
    while rest and isinstance(_commands()[name], click.Group) and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        if (longer := f"{name} {rest[0]}") not in _commands():
            return None, f"command 'lclm {longer}' does not exist"
        name, rest = longer, rest[1:]
    return name, _wrong_option(name, rest)


def _wrong_option(name: str, words: list[str]) -> str | None:
    command = _commands()[name]
    known = {spelling for parameter in command.params for spelling in [*parameter.opts, *parameter.secondary_opts]}
    for position, word in enumerate(words):
        if word in ("|", ">", "&&", ";", "&"):
            break
        option = word.split("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", option) and option not in known | {"--help"}:
            return f"'lclm {name}' has no option {option}"
        if word == "--set" and position + 1 < len(words):
            _, defect = find_key(words[position + 1])
            if defect and name != "ablate":
                return defect
    return None


def find_file(text: str) -> str | None:
    """What is wrong with the file that ``text`` names, if it names one of this repository."""
    if text in ELSEWHERE:
        return None
    if match := _FILE.match(text):
        if not all(any(ROOT.glob(path)) for path in _braces(match[1].rstrip("/"))):
            return f"file {match[1]} does not exist"
    elif (match := _SOURCE_FILE.match(text)) and "/" in match[1]:
        path = PACKAGE / match[1].removeprefix("lclm_jax/")
        if not path.exists():
            return f"file {path.relative_to(ROOT)} does not exist"
        if match[2] and not re.search(rf"\b{match[2]}\b", path.read_text(encoding="utf-8")):
            return f"{path.relative_to(ROOT)} has no {match[2]}"
    return None


def _braces(text: str) -> Iterator[str]:
    if match := re.search(r"\{([^{}]*)\}", text):
        for choice in match[1].split(","):
            yield from _braces(text[: match.start()] + choice + text[match.end() :])
    else:
        yield text


def find_python(text: str) -> str | None:
    """What is wrong with the full Python name ``text``, if it is one."""
    if _SHORT_NAME.match(text):
        text = f"lclm_jax.{text}"
    if not _PYTHON_NAME.match(text) or text.endswith(_SUFFIXES):
        return None
    parts = text.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return f"Python name {text} does not exist"
            found = getattr(found, part)
        return None
    return f"Python name {text} does not exist"


def defects_of_literal(text: str) -> list[str]:
    """What is wrong with ``text``, which stands in code font."""
    found = [find_key(text)[1], find_command(text)[1], find_file(text), find_python(text)]
    return [defect for defect in found if defect]


def defects_of_block(text: str) -> list[str]:
    """What is wrong with the command lines of a code block."""
    defects = []
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.search(r"(?:^|[|;&$] ?|\s)(lclm [a-z].*)", line.split("  #")[0]):
            defects.append(find_command(match[1])[1])
        for word in line.split("#")[0].split():
            if word.startswith(("configs/", "launch/", "benchmarks/", "examples/")):
                defects.append(find_file(word))
    return [defect for defect in defects if defect]


def defects_of_page(path: Path) -> list[str]:
    """What is wrong with the literals, code blocks and relative links of a Markdown file outside the site."""
    markdown = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*[^\n]*\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    defects = [defect for block in blocks for defect in defects_of_block(block)]
    defects += [defect for text in re.findall(r"`([^`\n]+)`", prose) for defect in defects_of_literal(text)]
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", prose)
    return defects + [f"link to {link}, which does not exist" for link in links if not (path.parent / link).exists()]


class Literals(SphinxTransform):
    """Warns of literals that name what does not exist; links keys and commands to their reference."""

    default_priority = 400

    def apply(self, **kwargs: object) -> None:
        """Go through the page once."""
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            for defect in defects_of_literal(text):
                logger.warning(defect, location=node, type="literals")
            if isinstance(node.parent, nodes.TextElement) and not isinstance(
                node.parent, nodes.title | nodes.reference
            ):
                self._link(node, text)
        for block in self.document.findall(nodes.literal_block):
            if block.get("language", "") in _SHELLS:
                for defect in defects_of_block(block.astext()):
                    logger.warning(defect, location=block, type="literals")

    def _link(self, node: nodes.literal, text: str) -> None:
        if isinstance(node.parent, addnodes.pending_xref):
            return
        key, _ = find_key(text)
        command, _ = find_command(text)
        if key is not None and key in _leaves():
            target = {"refdomain": "std", "reftype": "confval", "reftarget": key}
        elif key is not None:
            target = {"refdomain": "", "reftype": _SECTION, "reftarget": f"config-{key.split('.')[0]}"}
        elif command is not None:
            target = {"refdomain": "", "reftype": _SECTION, "reftarget": f"lclm-{command.replace(' ', '-')}"}
        else:
            return
        shared = {"refdoc": self.env.docname, "refexplicit": True, "refwarn": True}
        node.parent.replace(node, addnodes.pending_xref("", node.deepcopy(), **target, **shared))


def _link_section(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.TextElement
) -> nodes.reference | None:
    """A link to a labelled section that keeps the code font of its text, which ``:ref:`` does not."""
    if node["reftype"] != _SECTION:
        return None
    document, anchor = env.domains.standard_domain.anonlabels.get(node["reftarget"], ("", ""))
    return make_refnode(app.builder, node["refdoc"], document, anchor, text) if document else None


@cache
def _leaves() -> set[str]:
    branches = {key.rpartition(".")[0].removesuffix(".NAME") for key in known_keys()}
    return known_keys() - branches


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(Literals)
    app.connect("missing-reference", _link_section)
    return {"parallel_read_safe": True}
