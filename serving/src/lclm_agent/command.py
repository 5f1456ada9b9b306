"""``lclm-agent``: ask, replay, measure, serve documents to other agents, and a page to see it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from lclm_agent.errors import AgentError

_URL = "http://localhost:8000/v1"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = chosen.run
    try:
        run(chosen)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"lclm-agent: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lclm-agent",
        description="Skim and expand: documents are read as latents, and what a question needs as text. COMMAND --help"
        " explains each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ask = _add(commands, "ask", _ask, "ask about text files; what was expanded goes to standard error")
    ask.add_argument("question")
    ask.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="UTF-8 text files; - is standard input")
    ask.add_argument("--store", type=Path, help="file of a store of latents with the texts of lclm-agent mcp")
    ask.add_argument("--document", action="append", default=[], help="id or title in --store; may be repeated")
    _served(ask)
    _looping(ask)
    ask.add_argument("--words", type=int, default=384, help="words of a segment, at most (default 384)")
    ask.add_argument("--trace", type=Path, metavar="FILE", help="write what was sent and got, for replay")
    ask.add_argument("--json", action="store_true", help="print answer, expanded segments and usage as JSON")

    again = _add(commands, "replay", _replay, "run the loop again on the replies of a trace; fails if it does else now")
    again.add_argument("trace", type=Path)

    measured = _add(commands, "eval", _eval, "ask the questions of a file of tasks, with expansion and without")
    measured.add_argument("tasks", type=Path, help="made by lclm data expand-traces --tasks")
    _served(measured)
    _looping(measured)
    measured.add_argument("--limit", type=int, help="ask the first tasks only")
    measured.add_argument("--json", action="store_true", help="print the figures as JSON")

    compared = _add(
        commands, "compare", _compare, "compare policies of a context on generated conversations; no server"
    )
    compared.add_argument("--kind", choices=["dialogue", "tools"], default="dialogue", help="default dialogue")
    compared.add_argument("--budget", type=int, default=3000, help="positions of a prompt (default 3000)")
    compared.add_argument("--ratios", type=int, nargs="+", default=[16], help="compression ratios (default 16)")
    compared.add_argument("--conversations", type=int, default=20, help="default 20")
    compared.add_argument("--turns", type=int, default=60, help="of a conversation (default 60)")

    play = _add(commands, "play", _play, "a page: paste a document, see what it takes, ask, and watch it expand")
    _served(play)
    play.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone")
    play.add_argument("--port", type=int, default=8080, help="default 8080; 0: a free one")
    play.add_argument("--words", type=int, default=384, help="words of a segment, at most (default 384)")
    play.add_argument("--reply-tokens", type=int, default=256, help="tokens of one reply (default 256)")

    served = _add(commands, "mcp", _mcp, "serve documents to other agents by MCP, on standard input and output")
    served.add_argument("store", type=Path, help="file of a store of latents, or a new one; it keeps texts too")
    served.add_argument("--add", nargs="*", type=Path, default=[], metavar="FILE", help="text files to add first")
    served.add_argument("--stored", action="store_true", help="take the texts of what lclm store add put into STORE")
    served.add_argument("--ask", action="store_true", help="also offer the tool ask, answered by the served model")
    _served(served)
    return parser


def _add(commands, name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(run=run)
    return command


def _served(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default=_URL, help=f"address of the API (default {_URL})")
    command.add_argument("--model", help="name of the model; default: the only one that is served")
    command.add_argument("--key-variable", metavar="NAME", help="environment variable that holds the API key")


def _looping(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--protocol",
        choices=["tools", "text"],
        default="tools",
        help="tools: calls of the tool expand (default); text: lines EXPAND: 3, 7 and ANSWER: ...",
    )
    command.add_argument("--rounds", type=int, default=5, help="replies that may expand (default 5); 0: never expand")
    command.add_argument("--tokens", type=int, help="positions and tokens after the first reply before it must answer")
    command.add_argument("--reply-tokens", type=int, default=512, help="tokens of one reply (default 512)")


def _endpoint(chosen: argparse.Namespace):
    from lclm_agent.endpoint import Endpoint

    key = os.environ.get(chosen.key_variable, "") if chosen.key_variable else None
    if chosen.key_variable and not key:
        raise AgentError(f"the environment variable {chosen.key_variable} is not set; set it to the API key")
    return Endpoint(chosen.url, chosen.model, key)


def _budget(chosen: argparse.Namespace):
    from lclm_agent.loop import Budget

    return Budget(chosen.rounds, chosen.tokens, chosen.reply_tokens)


def read_files(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Name and text of each file; raises ``AgentError`` for one that is no UTF-8 text."""
    found = []
    for path in paths:
        try:
            data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
            found.append((path.name, data.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise AgentError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
        except OSError as error:
            raise AgentError(f"cannot read {path}: {error.strerror}; name text files") from None
    return found


def _ask(chosen: argparse.Namespace) -> None:
    from lclm_agent.loop import Conversation
    from lclm_agent.segments import number_segments
    from lclm_agent.trace import write_trace

    segments = number_segments(_pieces(chosen))
    budget = _budget(chosen)
    with _endpoint(chosen) as model:
        conversation = Conversation(model, segments, chosen.protocol, budget)
        outcome = conversation.ask(chosen.question)
    if chosen.trace is not None:
        write_trace(chosen.trace, conversation, [outcome])
    usage = outcome.usage
    if chosen.json:
        values = {"answer": outcome.answer, "expanded": outcome.expanded, "requests": len(outcome.rounds)}
        values |= {"prompt": usage.prompt, "cached": usage.cached, "completion": usage.completion}
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(
        f"{len(segments)} segments, {len(outcome.rounds)} requests, expanded: {', '.join(outcome.expanded) or 'none'};"
        f" {usage.prompt - usage.cached} positions prefilled, {usage.cached} cached, {usage.completion} generated\n"
    )
    sys.stdout.write(outcome.answer + "\n")


def _pieces(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Title and text of every segment that ``ask`` is about."""
    from lclm_agent.library import Library
    from lclm_agent.segments import cut

    if bool(chosen.document) != (chosen.store is not None) or not (chosen.paths or chosen.document):
        raise AgentError("name text files, or --store with a --document in it")
    pieces = [(name, piece) for name, text in read_files(chosen.paths) for piece in cut(text, chosen.words)]
    if chosen.document:
        with Library(chosen.store) as library:
            for name in chosen.document:
                pieces += [(one.title, one.text) for one in library.segments(name)]
    return pieces


def _replay(chosen: argparse.Namespace) -> None:
    from lclm_agent.trace import replay

    for outcome in replay(chosen.trace):
        sys.stdout.write(
            f"{outcome.question}\n  expanded: {', '.join(outcome.expanded) or 'none'}\n  {outcome.answer}\n"
        )


def _eval(chosen: argparse.Namespace) -> None:
    from lclm_agent.measure import measure
    from lclm_agent.tasks import read_tasks

    tasks = list(islice(read_tasks(chosen.tasks), chosen.limit))
    if not any(task.questions for task in tasks):
        raise AgentError(f"{chosen.tasks} has no question; make it with `lclm data expand-traces --tasks`")
    budget = _budget(chosen)
    with _endpoint(chosen) as model:
        figures = measure(tasks, lambda _: model, chosen.protocol, budget)
    lines = [json.dumps(figures.as_json())] if chosen.json else figures.lines()
    sys.stdout.write("\n".join(lines) + "\n")


def _compare(chosen: argparse.Namespace) -> None:
    from lclm_agent.comparison import compare, table

    found = compare(chosen.kind, chosen.budget, chosen.ratios, chosen.conversations, chosen.turns)
    sys.stdout.write(table(found) + "\n")


def _play(chosen: argparse.Namespace) -> None:
    from lclm_agent.play import Playground, server

    with (
        _endpoint(chosen) as model,
        server(Playground(model, chosen.words, chosen.reply_tokens), chosen.host, chosen.port) as page,
    ):
        sys.stdout.write(f"http://{chosen.host}:{page.server_address[1]}/ asks {model.model}; Ctrl-C ends it\n")
        sys.stdout.flush()
        page.serve_forever()


def _mcp(chosen: argparse.Namespace) -> None:
    from contextlib import ExitStack

    from lclm_agent.library import Library
    from lclm_agent.mcp_server import make_server

    with ExitStack() as opened:
        library = opened.enter_context(Library(chosen.store))
        for name, text in read_files(chosen.add):
            library.add(name, text)
        if chosen.stored:
            library.add_stored()
        model = opened.enter_context(_endpoint(chosen)) if chosen.ask else None
        make_server(library, model).run()


if __name__ == "__main__":
    sys.exit(main())
