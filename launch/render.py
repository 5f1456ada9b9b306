"""Fill ``${NAME}`` in a manifest from the environment; a name that is not set is an error.

python3 launch/render.py TEMPLATE [ARGUMENT ...] > MANIFEST

``${LCLM_ARGUMENTS}`` becomes the list of arguments, as Kubernetes passes them on unchanged. What stands between the
lines ``# if NAME`` (or ``# if NAME=VALUE``, ``# if NAME=VALUE|OTHER``) and ``# end`` is left out unless the name is set
and not empty (or has one of the values).
"""

import json
import os
import re
import string
import sys
from pathlib import Path

# What YAML does not allow in a document, or takes for the end of a line: it has to be escaped.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_IF, _END = re.compile(r"\s*# if (\w+)(?:=(\S+))?\s*"), re.compile(r"\s*# end\s*")


def render(text: str, values: dict[str, str]) -> str:
    """``text`` with every ``${NAME}`` replaced by its value; ``$$`` is a dollar sign.

    Between double quotes, where a value may hold anything, it is written with the escapes of YAML.

    Raises:
        ValueError: a name is not set, or an ``# if`` has no ``# end``.
    """

    def fill(part: str, value: dict[str, str]) -> str:
        try:
            return string.Template(part).substitute(value)
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is not set; export it") from None

    escaped = {name: quoted(value)[1:-1] for name, value in values.items()}
    lines = []
    for line in chosen(text.splitlines(keepends=True), values):
        parts = re.split(r'("[^"]*")', line) if not line.lstrip().startswith(("#", "export ", "lclm ")) else [line]
        lines.append("".join(fill(part, escaped if part.startswith('"') else values) for part in parts))
    return "".join(lines)


def chosen(lines: list[str], values: dict[str, str]) -> list[str]:
    """``lines`` less those whose condition does not hold, and less the conditions; they may be nested.

    Raises:
        ValueError: an ``# if`` has no ``# end``, or the other way round.
    """
    kept: list[str] = []
    holds = [True]
    for line in lines:
        if found := _IF.fullmatch(line):
            value = values.get(found[1], "")
            holds.append(holds[-1] and (value in found[2].split("|") if found[2] else bool(value)))
        elif _END.fullmatch(line):
            holds.pop()
            if not holds:
                raise ValueError("an `# end` without its `# if`")
        elif holds[-1]:
            kept.append(line)
    if len(holds) != 1:
        raise ValueError("an `# if` without its `# end`")
    return kept


def quoted(text: str) -> str:
    """``text`` as a string of JSON that is also one of YAML."""
    return _NOT_PLAIN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def arguments_of_pod(arguments: list[str]) -> str:
    """A YAML list of arguments; Kubernetes would expand ``$(NAME)``, so dollar signs are doubled for it.

    Raises:
        ValueError: an argument is not UTF-8, which a manifest cannot hold.
    """
    texts = []
    for argument in arguments:
        try:
            texts.append(os.fsencode(argument).decode("utf-8").replace("$", "$$"))
        except UnicodeDecodeError:
            raise ValueError(f"the argument {argument!r} is not UTF-8; write it otherwise") from None
    return f"[{', '.join(map(quoted, texts))}]"


if __name__ == "__main__":
    try:
        filled = {**os.environ, "LCLM_ARGUMENTS": arguments_of_pod(sys.argv[2:])}
        manifest = render(Path(sys.argv[1]).read_text(encoding="utf-8"), filled)
        sys.stdout.buffer.write(manifest.encode("utf-8", "surrogateescape"))
    except ValueError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
