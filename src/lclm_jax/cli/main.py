"""Entry point: the command tree, logging, and errors as one or two lines with an exit status."""

import importlib
import logging
import os
import signal
import sys
from types import TracebackType

import click

from lclm_jax.cli.streams import drop_output, open_missing_streams
from lclm_jax.errors import LclmError
from lclm_jax.machine import allow_open_files, nobody_reads, remedy
from lclm_jax.version import __version__

# command -> (module, attribute, one line of help); the module is imported when the command runs.
COMMANDS = {
    "pipeline": (
        "lclm_jax.cli.train",
        "pipeline",
        "Run all steps, from corpus to report: prepare, train, evaluate, export.",
    ),
    "train": ("lclm_jax.cli.train", "train", "Train all stages of a configuration, or one of them."),
    "tune": ("lclm_jax.cli.train", "tune", "Tune an exported or imported LCLM on the rows of a task, and export it."),
    "eval": ("lclm_jax.cli.model", "evaluate", "Measure context gain and verbatim repetition on held-out text."),
    "import": ("lclm_jax.cli.model", "import_command", "Import pretrained weights for a run to start from."),
    "export": ("lclm_jax.cli.model", "export", "Write a run's model in the Hugging Face layout."),
    "generate": ("lclm_jax.cli.model", "generate", "Answer a prompt whose memory spans are compressed."),
    "fit-ratios": ("lclm_jax.cli.model", "fit_ratios", "Fit the head that chooses a ratio for every memory span."),
    "expand": ("lclm_jax.cli.agent", "expand", "Ask a model questions whose compressed segments it may expand."),
    "encode": ("lclm_jax.cli.model", "encode", "Write prompt embeddings, latents included, for vLLM."),
    "store": (
        "lclm_jax.cli.store",
        "store_group",
        "Keep the latents of documents in a file for later calls and servers.",
    ),
    "status": ("lclm_jax.cli.status", "status", "Show progress, health and time left of a run, from its files."),
    "report": ("lclm_jax.cli.status", "report", "Write an HTML page about one run, or several side by side."),
    "data": ("lclm_jax.cli.data", "data", "Prepare corpora and inspect packed rows."),
    "doctor": (
        "lclm_jax.cli.checks",
        "doctor",
        "Check versions, devices, links, storage and limits before a job runs.",
    ),
    "chaos": ("lclm_jax.cli.checks", "chaos", "Inject faults into a run and verify bit-exact recovery."),
    "config": ("lclm_jax.cli.config", "config", "Show the resolved configuration, and document every key."),
    "plan": (
        "lclm_jax.cli.plan",
        "plan",
        "Compile the train step for chips you do not have yet: memory, time, price.",
    ),
    "bench": ("lclm_jax.cli.bench", "bench", "Measure kernels, the train step, generation and the data path."),
    "ablate": ("lclm_jax.cli.experiments", "ablate", "Train variants on the same batches and compare them over seeds."),
    "suite": ("lclm_jax.cli.experiments", "suite", "Answer benchmarks with several systems: scores, times, memory."),
    "golden": ("lclm_jax.cli.checks", "golden", "Compare with stored outputs of the PyTorch implementation."),
}
_COMPUTING = {
    "pipeline",
    "train",
    "tune",
    "eval",
    "fit-ratios",
    "export",
    "generate",
    "expand",
    "encode",
    "plan",
    "bench",
    "ablate",
    "golden",
}
"""Commands that start JAX."""
_EXIT_PIPE = 128 + signal.SIGPIPE
"""What a shell shows for a program that ends because nobody reads its output any more."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), attribute)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; click would end it without a word where any pipe or connection breaks."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if nobody_reads():  # such as `| head`: nothing is wrong, and there is nobody to tell
                os._exit(_EXIT_PIPE)
            raise LclmError(f"a connection was closed by its other end ({error}); rerun the command") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lclm")
@click.option("-v", "--verbose", is_flag=True, help="Also log details that are of interest to developers.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """Pretrain latent context language models: compress long prompts before the decoder sees them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("lclm_jax").setLevel(logging.DEBUG if verbose else logging.INFO)
    # One line for every shape that is compiled is of interest to developers alone.
    logging.getLogger("lclm_jax.kernels").setLevel(logging.DEBUG if verbose else logging.WARNING)
    asks_for_help = any(word in ("-h", "--help") for word in sys.argv)
    if os.environ.get("XLA_FLAGS") and context.invoked_subcommand in _COMPUTING and not asks_for_help:
        from lclm_jax.xla_flags import check_xla_flags

        check_xla_flags()


def main() -> None:
    """Run the command line; user errors become one or two lines and exit status 1."""
    open_missing_streams()
    sys.excepthook = _show_defect
    allow_open_files()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as by Ctrl-C
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:  # the rest of the output
        os._exit(_EXIT_PIPE)
    except click.exceptions.Abort:
        click.echo("interrupted; finished work is kept: rerun the same command to resume", err=True)
        drop_output()
        os._exit(130)  # an orderly exit sometimes crashes in a busy thread of a library
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (LclmError, OSError) as error:
        if os.environ.get("LCLM_TRACEBACK"):
            raise
        click.echo(f"error: {_message(error)}\n(LCLM_TRACEBACK=1 shows where)", err=True)
        drop_output()
        sys.exit(1)


def _run() -> None:
    """Run the command; an exception with which JAX does not start becomes an error that says why."""
    try:
        cli.main(standalone_mode=False)
    except (RuntimeError, AssertionError) as error:
        if "jax" not in sys.modules:
            raise
        from lclm_jax.parallel.backend import backend_error

        if (found := backend_error(error)) is None:
            raise
        raise found from error


def _message(error: LclmError | OSError) -> str:
    """What ``error`` says; an error of the operating system gets a hint, as it has none of its own."""
    if isinstance(error, OSError) and not isinstance(error, LclmError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {remedy(error.errno)}"
    return str(error)


def _show_defect(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An exception that is no user error keeps its traceback, and a line asks to report it."""
    sys.__excepthook__(kind, error, traceback)
    if not isinstance(error, LclmError):
        click.echo("This is a bug in lclm_jax or in a library: please report it with the lines above.", err=True)
