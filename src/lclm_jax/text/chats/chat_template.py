"""Chat templates: jinja2 in its immutable sandbox, with the helpers that Hugging Face templates expect.

What a template prints depends on its input alone: the date is fixed, and nothing random or of this process is printed.
"""

import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, Undefined
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

TODAY = date(2024, 7, 26)
"""The date that ``strftime_now`` gives, on every day: the one that Llama 3's template prints where it has no clock."""

RENDER_SECONDS = 60.0
"""Longest that a template may take over one chat; a megabyte takes a real one less than a second."""

_FILE = "chat_template.jinja"
TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
"""Folders of a tokenizer that hold further templates."""
# The directives whose text depends on the locale or on the time zone.
_WORDS = {
    "A": "Friday",
    "a": "Fri",
    "B": "July",
    "b": "Jul",
    "h": "Jul",
    "p": "AM",
    "P": "am",
    "s": "",
    "Z": "",
    "+": "",
}
_WORDS |= {"c": "Fri Jul 26 00:00:00 2024", "r": "12:00:00 AM", "x": "07/26/24", "X": "00:00:00"}
_PROBE = "\ue000probe\ue000"


class ChatError(LclmError):
    """A chat that its template refuses or cannot render."""


class ChatTemplates:
    """The chat templates of a tokenizer folder, by name.

    They are ``chat_template.jinja`` (``default``) and the files of ``additional_chat_templates/`` (or
    ``chat_templates/``), named by their stems; without such files ``chat_template`` of ``tokenizer_config.json``, which
    is one text or a list of named ones.

    Args:
        folder: The folder.
        configured: ``chat_template`` of its ``tokenizer_config.json``.
        name: The template to use; None: ``tool_use`` for chats with tools if there is one, else ``default``, as
            transformers chooses.
    """

    def __init__(self, folder: Path, configured: object = None, name: str | None = None):
        self._folder, self._name = folder, name
        self._sources = _files(folder) or _named(configured, folder)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def sources(self) -> Mapping[str, str]:
        """Name and text of each."""
        return self._sources

    def render(self, messages: Sequence[ReadOnlyJson], variables: Mapping[str, object]) -> str:
        """Text of ``messages``; a template that prints no plain strings gets them as lists of one text part.

        Raises:
            LclmError: There is no template to use, or it does not compile.
            ChatError: It refuses the chat or fails on it.
        """
        chosen = self._chosen(bool(variables.get("tools")))
        if chosen.wants_parts(variables):
            messages = [as_parts(message) for message in messages]
        return chosen.render(messages, variables)

    def _chosen(self, tools: bool) -> "_ChatTemplate":
        found = self._sources
        name = self._name or ("tool_use" if tools and "tool_use" in found else "default")
        if not found:
            raise LclmError(f"tokenizer {self._folder} has no chat template; put a {_FILE} in the folder")
        if name not in found:
            raise LclmError(
                f"tokenizer {self._folder} has no chat template named {name!r} but {', '.join(sorted(found))}; set"
                " tokenizer.chat_template to one of them"
            )
        return _compiled(found[name], str(self._folder))


class _ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, folder: str):
        self._template, self._folder = compile_template(source), folder
        self._wants_parts: bool | None = None

    def wants_parts(self, variables: Mapping[str, object]) -> bool:
        """Whether it prints text parts but no plain strings, as some templates of models that also see images do."""
        if self._wants_parts is None:
            part = [{"type": "text", "text": _PROBE}]
            self._wants_parts = not self._prints(_PROBE, variables) and self._prints(part, variables)
        return self._wants_parts

    def _prints(self, content: object, variables: Mapping[str, object]) -> bool:
        try:
            return _PROBE in self.render([{"role": "user", "content": content}], {**variables, "tools": None})
        except ChatError:
            return False

    def render(self, messages: Sequence[ReadOnlyJson], variables: Mapping[str, object]) -> str:
        """Text of ``messages``."""
        try:
            with _time_limit(RENDER_SECONDS):
                return self._template.render(messages=list(messages), **variables)
        except Exception as error:  # noqa: BLE001 - a foreign program: whatever it raises concerns this chat alone
            what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise ChatError(f"chat template of {self._folder}: {what}; check the messages' roles and keys") from None


_compiled = lru_cache(maxsize=16)(_ChatTemplate)


def as_parts(message: ReadOnlyJson) -> ReadOnlyJson:
    """``message`` with its text as a list of one part."""
    content = message.get("content")
    return message if not isinstance(content, str) else {**message, "content": [{"type": "text", "text": content}]}


def compile_template(source: str) -> Template:
    """Compile a chat template; raises ``LclmError`` on a syntax error.

    A template comes from a foreign folder: the sandbox keeps it from touching anything but its own variables, and
    rendering ends after ``RENDER_SECONDS``.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_printable
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = strftime_today
    # What these print differs from call to call.
    del environment.globals["lipsum"], environment.filters["random"]
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise LclmError(f"the chat template does not compile: {error}; fix {_FILE}") from None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after ``seconds`` of wall-clock time.

    Python delivers signals to its main thread alone, which is where preparation and command line render. In another
    thread, or where the process has a timer of its own, the block is not limited.
    """
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_REAL)):
        yield
        return

    def expired(_signal: int, _frame: object) -> NoReturn:
        raise TimeoutError(f"it took more than {seconds:g} s over one chat; a template must end")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def strftime_today(form: str) -> str:
    """``TODAY`` in the format ``form``, with English names of days and months whatever the locale."""

    def filled(found: re.Match[str]) -> str:
        return _WORDS[found[1]] if found[1] in _WORDS else TODAY.strftime(found[0])

    return re.sub(r"%[-_0^#]*([a-zA-Z%+])", filled, form)


def _files(folder: Path) -> dict[str, str]:
    """Name -> source of the templates that are files."""
    paths = {path.stem: path for name in reversed(TEMPLATE_FOLDERS) for path in sorted((folder / name).glob("*.jinja"))}
    if (folder / _FILE).is_file():
        paths["default"] = folder / _FILE
    return {name: _read(path) for name, path in paths.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LclmError(f"cannot read {path}: {error}; a chat template is UTF-8 text") from None


def _named(configured: object, folder: Path) -> dict[str, str]:
    """Name -> source of ``chat_template`` in ``tokenizer_config.json``."""
    if not configured:
        return {}
    if isinstance(configured, list):  # [{"name": ..., "template": ...}]
        pairs = [(one.get("name"), one.get("template")) for one in configured if isinstance(one, Mapping)]
    else:
        pairs = list(configured.items()) if isinstance(configured, Mapping) else [("default", configured)]
    found = {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}
    if len(found) != (len(configured) if isinstance(configured, list | Mapping) else 1):
        raise LclmError(
            f"chat_template in {folder / 'tokenizer_config.json'} is neither a text nor a list of named texts; repair"
            f" it, or put a {_FILE} in the folder"
        )
    return found


class _Generation(Extension):
    """``{% generation %}`` marks replies for other trainers; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 asks for

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _printable(value: object) -> object:
    """``value``, unless it prints as an address in memory: a method in the place of a key (``schema.items``)."""
    if callable(value) and not isinstance(value, Undefined):
        raise TemplateError(f"it prints a function ({getattr(value, '__name__', type(value).__name__)}), not a value")
    return value


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
