"""Skim and expand: ``lclm data`` ``expand-traces`` and ``lookups`` write chats to train on, ``lclm expand`` asks."""

from pathlib import Path

import click

from lclm_jax.cli.options import json_option, write_result


@click.command("expand-traces")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--codes", type=click.IntRange(0), default=0, help="Tasks about random codes under names.")
@click.option("--documents", multiple=True, type=click.Path(path_type=Path), help="Text file, or folder of such.")
@click.option("--prepared", multiple=True, type=click.Path(path_type=Path), help="Configuration whose shards are read.")
@click.option("--quotations", type=click.IntRange(0), default=0, help="Tasks that ask what follows in the documents.")
@click.option("--words", type=click.IntRange(8), default=48, show_default=True, help="Words of a segment of documents.")
@click.option("--ruler", type=click.IntRange(0), default=0, help="Tasks of each of the --ruler-tasks.")
@click.option("--ruler-tasks", multiple=True, metavar="NAME", help="Tasks of RULER; default: all that have segments.")
@click.option("--ruler-length", type=click.IntRange(256), default=1024, show_default=True, help="Words of their text.")
@click.option("--segments", type=click.IntRange(1), default=8, show_default=True, help="Segments of a task.")
@click.option("--questions", type=click.IntRange(1), default=4, show_default=True, help="Questions of a task, at most.")
@click.option("--direct", type=float, default=0.15, show_default=True, help="Share answered from latents, no tool.")
@click.option("--raw", type=float, default=0.15, show_default=True, help="Share of memory-free rows.")
@click.option("--distractors", type=float, default=0.1, show_default=True, help="Share of questions with a wrong call.")
@click.option("--lookup", is_flag=True, help="Say the name and its number before a call, as look-ups do.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--texts", type=click.Path(path_type=Path), help="Also write what the rows say, as documents.")
@click.option("--tasks", type=click.Path(path_type=Path), help="Also write the tasks, for lclm expand and lclm-agent.")
def expand_traces(
    out: Path,
    texts: Path | None,
    tasks: Path | None,
    direct: float,
    raw: float,
    distractors: float,
    lookup: bool,
    **chosen,
) -> None:
    """Write chats to OUT (JSON lines) in which an oracle expands compressed segments before it answers.

    A row has segments as memory spans behind their ids, questions, calls of the tool `expand`, their raw results, and
    answers; some rows are answered from latents alone, some have no memory. Train on them with `records: chat`: loss is
    on the assistant's turns, wrong calls excepted. A RULER task has one question, and needs lclm-jax[suite].
    """
    from lclm_jax.agent.traces import Choice, TraceShares, write_traces

    shares = TraceShares(direct, raw, distractors, lookup)
    for kind, count in write_traces(out, Choice(**chosen), shares, texts, tasks).items():
        click.echo(f"{out}: {count:,} rows of kind {kind}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--segments", type=click.IntRange(1), default=8, show_default=True, help="Segments of a row, at most.")
@click.option(
    "--ask",
    type=click.Choice(["number", "name", "code", "question"]),
    default="number",
    show_default=True,
    help="What has loss: numbers of names, names of numbers, codes of names, or name and number behind a question.",
)
@click.option("--plain", is_flag=True, help="Numbers and names as text, without memory: what is learned first.")
@click.option("--repeats", type=click.IntRange(0), default=0, help="Answers of a reply; default: each segment once.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--texts", type=click.Path(path_type=Path), help="Also write what the rows say, as documents.")
def lookups(out: Path, texts: Path | None, **chosen) -> None:
    """Write chats to OUT (JSON lines) about which name stands in which segment.

    They come before traces (`lclm data expand-traces`) where a model starts from random weights: loss is on the
    answers alone. Train on them with `records: chat`.
    """
    from lclm_jax.agent.lookups import Lookups
    from lclm_jax.agent.traces import write_rows

    counted = write_rows(out, Lookups(**chosen).draw(), texts)
    click.echo(f"{out}: {counted:,} rows")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("tasks", type=click.Path(path_type=Path))
@click.option("--protocol", type=click.Choice(["tools", "text"]), default="tools", show_default=True)
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True, help="Replies that may expand.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of one reply.")
@click.option("--limit", type=click.IntRange(1), help="Ask the first tasks only.")
@json_option
def expand(
    model: Path,
    tasks: Path,
    protocol: str,
    rounds: int,
    max_new_tokens: int,
    limit: int | None,
    json_file: Path | None,
) -> None:
    """Ask MODEL, an exported folder, the questions of TASKS with expansion and without; count right answers.

    TASKS is a file of `lclm data expand-traces --tasks`; take another --seed than that of the traces trained on. The
    same loop on a served model is `lclm-agent eval`.
    """
    from lclm_jax.agent.model import measure_tasks
    from lclm_jax.cli.progress_bar import progress_bar

    with progress_bar() as progress:
        found = measure_tasks(model, tasks, (protocol, rounds, max_new_tokens), limit, progress)
    write_result(json_file, found.as_json())
    for line in found.lines():
        click.echo(line)
