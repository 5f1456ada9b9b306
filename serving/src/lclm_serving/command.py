"""``lclm-serving``: commands about a model's folder."""

import argparse
import sys
from pathlib import Path

from lclm_serving.engine_config import write_engine_files


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lclm-serving", description="Commands about the folder of an LCLM.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser(
        "add-config",
        help="write config.json and the tokenizer at the top of a published LCLM folder, so that transformers and vLLM"
        " load it; nothing else in it changes",
    )
    add.add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        write_engine_files(chosen.folder)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"lclm-serving: {error}\n")
        return 1
    sys.stdout.write(f"{chosen.folder}: transformers and vLLM can load it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
