"""``lclm store``: the encoder's vectors of documents, kept in a file that servers and later calls read."""

import time
from pathlib import Path

import click

from lclm_jax.cli.options import Place, json_option, write_result

path_argument = click.argument("store", type=click.Path(path_type=Path))
max_option = click.option("--max-gb", type=float, help="Drop least recently used vectors beyond so many gigabytes.")
ttl_option = click.option("--ttl-days", type=float, help="Vectors older than this count as missing.")


@click.group("store")
def store_group() -> None:
    """Keep what the encoder makes of documents: add, search, gc, verify, stat, export, import."""


@store_group.command("add")
@path_argument
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", type=Place(copied=True), required=True, help="Exported folder whose encoder reads the documents."
)
@click.option(
    "--code",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="How vectors are kept; default: as the model computes.",
)
@click.option("--batch-windows", type=click.IntRange(min=1), default=128, show_default=True)
@json_option
def add(store: Path, paths: tuple[Path, ...], model: Path, code: str | None, batch_windows: int, json_file) -> None:
    """Encode the text files in PATHS (files, or folders with all below them) into STORE.

    Documents are known by their content: one that is in the store is not read again, whatever its name, and one that
    grew at its end costs its last windows. After an interruption, rerun the same command to resume.
    """
    from lclm_jax.cli.progress_bar import progress_bar
    from lclm_jax.inference.documents import add_documents
    from lclm_jax.inference.generate import Generator

    generator = Generator.from_folder(model, batch_windows=batch_windows, store=store, store_code=code)
    start = time.monotonic()
    with progress_bar() as progress:
        done = add_documents(generator, paths, progress)
    seconds = time.monotonic() - start
    write_result(json_file, {**done, "seconds": seconds})
    click.echo(
        f"{store}: {done['documents']:,} documents, {done['new']:,} of them new, {done['skipped']:,} files left out"
        f" (not UTF-8 text); {done['encoded']:,} of {done['windows']:,} windows encoded in {seconds:.1f} s"
    )


@store_group.command("search")
@path_argument
@click.argument("query")
@click.option("--model", type=Place(copied=True), required=True, help="Folder of the model that filled STORE.")
@click.option("--code", type=click.Choice(["float32", "bfloat16", "int8"]), help="As it was given to add.")
@click.option("--limit", type=click.IntRange(min=1), default=5, show_default=True)
def search(store: Path, query: str, model: Path, code: str | None, limit: int) -> None:
    """List the windows of STORE whose vectors are most like those of QUERY.

    The encoder was not trained to be searched, so this finds texts of the same kind rather than answers.
    """
    from lclm_jax.inference.documents import DocumentIndex
    from lclm_jax.inference.generate import Generator

    generator = Generator.from_folder(model, store=store, store_code=code)
    for hit in DocumentIndex(generator).search(query, limit):
        click.echo(f"{hit.score:.3f}  {hit.title}  characters {hit.start} to {hit.stop}")


@store_group.command("stat")
@path_argument
@json_option
def stat(store: Path, json_file) -> None:
    """Count what STORE holds."""
    from lclm_jax.inference.stored_windows import open_store, store_errors

    with store_errors(), open_store(store, must_exist=True) as opened:
        found = opened.stat()
    write_result(json_file, {"entries": found.entries, "bytes": found.bytes, "documents": found.documents})
    click.echo(f"{store}: {found.entries:,} windows, {found.bytes:,} bytes of vectors, {found.documents:,} documents")


@store_group.command("gc")
@path_argument
@max_option
@ttl_option
@click.option("--compact", is_flag=True, help="Give freed space back to the file system; copies the whole file.")
def gc(store: Path, max_gb: float | None, ttl_days: float | None, compact: bool) -> None:
    """Remove vectors from STORE that are too old, or too many."""
    from lclm_jax.inference.stored_windows import open_store, store_errors

    max_bytes = None if max_gb is None else int(max_gb * 10**9)
    ttl_seconds = None if ttl_days is None else ttl_days * 86_400
    with store_errors(), open_store(store, max_bytes, ttl_seconds, must_exist=True) as opened:
        click.echo(f"{store}: {opened.gc(compact):,} windows removed")


@store_group.command("verify")
@path_argument
@click.option("--keep", is_flag=True, help="List damaged entries without removing them.")
def verify(store: Path, keep: bool) -> None:
    """Read every entry of STORE and remove those that are damaged; they are encoded again when they are needed."""
    from lclm_jax.inference.stored_windows import open_store, store_errors

    with store_errors(), open_store(store, must_exist=True) as opened:
        bad = opened.verify(remove=not keep)
    for key in bad:
        click.echo(key)
    click.echo(f"{store}: {len(bad):,} entries are damaged{'' if keep or not bad else ' and were removed'}")


@store_group.command("export")
@path_argument
@click.argument("out", type=click.Path(path_type=Path))
def export_entries(store: Path, out: Path) -> None:
    """Write the vectors of STORE to OUT (safetensors), for a store on another machine."""
    from lclm_jax.inference.stored_windows import open_store, store_errors

    with store_errors(), open_store(store, must_exist=True) as opened:
        click.echo(f"{out}: {opened.export(out):,} windows")


@store_group.command("import")
@path_argument
@click.argument("source", type=click.Path(path_type=Path))
def import_entries(store: Path, source: Path) -> None:
    """Take the vectors of SOURCE, which `lclm store export` wrote, into STORE."""
    from lclm_jax.inference.stored_windows import open_store, store_errors

    with store_errors(), open_store(store) as opened:
        click.echo(f"{store}: {opened.import_(source):,} windows")
