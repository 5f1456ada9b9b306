"""Fill ``${NAME}`` in a manifest from the environment; a name that is not set is an error.

python3 launch/render.py TEMPLATE > MANIFEST
"""

import json
import os
import string
import sys
from pathlib import Path


def render(text: str, values: dict[str, str]) -> str:
    """``text`` with every ``${NAME}`` replaced by its value; ``$$`` is a dollar sign.

    Raises:
        ValueError: a name is not set.
    """
    try:
        return string.Template(text).substitute(values)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is not set; export it") from None


if __name__ == "__main__":
    # The command's arguments arrive as a list in JSON: YAML reads that as it is.
    arguments = {"LCLM_ARGUMENTS": json.dumps(sys.argv[2:])}
    try:
        sys.stdout.write(render(Path(sys.argv[1]).read_text(encoding="utf-8"), {**os.environ, **arguments}))
    except ValueError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
