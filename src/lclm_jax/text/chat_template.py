"""Chat templates: jinja2 in its immutable sandbox, with the helpers that Hugging Face templates expect."""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lclm_jax.errors import LclmError


class _Generation(Extension):
    """``{% generation %}`` marks replies for other trainers; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 asks for

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """Compile a chat template; raises ``LclmError`` on a syntax error.

    A template comes from a foreign folder: the sandbox keeps it from touching anything but its own variables.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise LclmError(f"the chat template does not compile: {error}; fix chat_template.jinja") from None
