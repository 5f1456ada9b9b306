"""The command line: quick help, errors of one or two lines, an exit status."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lclm_jax.cli.main import COMMANDS, LazyGroup, cli, main
from lclm_jax.cli.train import train
from lclm_jax.config import load_config
from lclm_jax.errors import LclmError
from lclm_jax.files import WriteError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DEMO = str(CONFIGS[0].parent / "demo.yaml")


def run_lclm(*arguments: str, **options) -> subprocess.CompletedProcess:
    code = "from lclm_jax.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """``call(*arguments)``: the exit status and standard error of a command that runs in this process."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lclm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def test_help_answers_in_under_a_second_without_jax():
    code = (
        "import sys; sys.argv = ['lclm', '--help']\n"
        "from lclm_jax.cli.main import cli\n"
        "cli.main(standalone_mode=False)\n"
        "assert not {'jax', 'flax', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_config_show_prints_the_resolved_tree():
    result = CliRunner().invoke(cli, ["config", "show", DEMO, "--set", "seed=7"])
    assert result.exit_code == 0
    assert "seed: 7" in result.output
    assert "norm_eps: 1.0e-06" in result.output


def test_config_keys_names_a_default_and_a_meaning():
    result = CliRunner().invoke(cli, ["config", "keys", "train.optimizer"])
    assert "train.optimizer.b2 [0.95]" in result.output
    assert "second moment" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "show", DEMO, "--set", "model.windw=3"], "did you mean 'window'?"),
        (["config", "show", "absent.yaml"], "cannot read the configuration absent.yaml"),
        (["config", "show", DEMO, "--set", "seed=[1"], "override 'seed=[1': '[1' is not valid YAML"),
        (["generate", "absent", "--prompt", " "], "the prompt is empty"),
        (["generate", "absent", "--prompt", "<|memory_start|>a"], "<|memory_start|> at character 0 is never closed"),
        (["generate", "absent", "--prompt", "a<|memory_end|>"], "<|memory_end|> at character 1 closes no span"),
        (["export", "absent", "out"], "cannot read the configuration absent"),
        (["generate", "absent", "--prompt", "x"], "absent"),
        (["golden", "absent"], "absent holds no golden cases"),
    ],
)
def test_bad_input_is_one_or_two_lines_and_a_status(arguments, words, call):
    status, errors = call(*arguments)
    assert status == 1
    assert words in errors
    assert len(errors.strip().splitlines()) <= 3


@pytest.fixture
def broken(monkeypatch):
    """``broken(error)``: every command raises ``error``."""

    def arrange(error: Exception) -> None:
        @click.command()
        def command():
            raise error

        monkeypatch.setattr(LazyGroup, "get_command", lambda *_: command)

    return arrange


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LclmError("ratio=3 is odd; use 4"), "error: ratio=3 is odd; use 4"),
        (PermissionError(13, "Permission denied", "/data"), "error: /data: Permission denied; check the path"),
        (WriteError(28, "No space left on device", "/data"), "error: cannot write /data: No space left on device; f"),
        (OSError("the bucket is gone"), "error: the bucket is gone"),
    ],
)
def test_what_a_user_can_mend_is_said_in_two_lines(call, broken, error, message):
    broken(error)
    status, errors = call("x")
    assert status == 1
    assert errors.startswith(message)
    assert len(errors.splitlines()) <= 2


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_defect_keeps_its_traceback_and_asks_to_be_reported(call, broken, capsys, error, monkeypatch):
    broken(error)
    monkeypatch.setattr(sys, "argv", ["lclm", "x"])
    with pytest.raises(type(error)) as raised:
        main()
    sys.excepthook(raised.type, raised.value, raised.tb)
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "in command" in errors
    assert errors.rstrip().splitlines()[-1].endswith("please report it with the lines above.")


def test_a_user_error_shows_its_traceback_on_request(call, broken, capsys, monkeypatch):
    broken(LclmError("ratio=3 is odd"))
    monkeypatch.setenv("LCLM_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["lclm", "x"])
    with pytest.raises(LclmError) as raised:
        main()
    sys.excepthook(raised.type, raised.value, raised.tb)
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "please report" not in errors


def test_a_corpus_that_is_not_prepared_is_named(tmp_path):
    done = run_lclm("train", DEMO, cwd=tmp_path)  # it changes the environment, so it needs a process of its own
    assert done.returncode == 1
    assert "run `lclm data prepare`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_that_is_no_text_is_refused(call, tmp_path):
    (tmp_path / "prompt").write_bytes(b"ab\xff")
    status, errors = call("generate", "absent", "--file", "prompt")
    assert status == 1
    assert "not UTF-8 text (invalid start byte at byte 2)" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_call_that_is_told_to_stop_says_how_to_resume(number, tmp_path):
    # A job in the background of a shell inherits an ignored SIGINT; this child is like one in the foreground.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lclm_jax.cli import main\n"
        "print('ready', flush=True); main()"
    )
    command = [sys.executable, "-c", code, "generate", "absent"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)  # it reads the prompt
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "rerun the same command to resume" in errors
    assert "Traceback" not in errors


def test_prompt_and_file_exclude_each_other(call):
    status, errors = call("generate", "absent", "--prompt", "a", "--file", "-")
    assert status == 2
    assert "exclude each other" in errors


def test_result_goes_to_a_json_file(tmp_path):
    from lclm_jax.cli.options import write_result

    write_result(tmp_path / "deep" / "result.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_told_to_stop_before_it_trains_asks_to_be_started_again(number):
    code = (
        "import signal\n"
        "from lclm_jax.cli.options import exit_for_restart_on_signals\n"
        "exit_for_restart_on_signals()\n"
        f"signal.raise_signal({int(number)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr == f"{number.name}: stopped outside training; rerun the same command\n"


def test_from_replaces_what_the_configuration_starts_from(tmp_path, monkeypatch):
    path = tmp_path / "new.yaml"
    path.write_text(f"base: {CONFIGS[0].parent / 'smollm2.yaml'}\n")
    found = []

    class Loaded(Exception):
        pass

    def load(config, overrides, cluster):
        found.append(load_config(config, list(overrides)))
        raise Loaded

    monkeypatch.setattr("lclm_jax.cli.train.load_for_devices", load)
    with pytest.raises(Loaded):
        CliRunner().invoke(train, [str(path), "--from", "runs/old@stage2"], catch_exceptions=False)
    assert (found[0].init.lclm, found[0].init.run) == (None, "runs/old@stage2")
