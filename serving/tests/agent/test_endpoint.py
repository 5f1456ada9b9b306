import pytest

from lclm_agent import AgentError, number_segments
from lclm_agent.command import main
from lclm_agent.endpoint import Endpoint
from lclm_agent.library import Library
from lclm_agent.loop import ask

CHAT = [{"role": "user", "content": "Hello"}]


def test_passing_failures_are_tried_again_and_others_are_not(endpoint):
    with Endpoint(endpoint.url, pause=0.001) as model:
        endpoint.script = [(503, {"error": "busy"}), (429, {}), "a"]
        assert model.complete(CHAT, None, 4).content == "a"
        endpoint.script = [(400, {"error": {"message": "the span is empty"}})]
        with pytest.raises(AgentError, match=r"chat/completions answered 400: .*the span is empty"):
            model.complete(CHAT, None, 4)
        endpoint.script = [(500, {})] * 3
        with pytest.raises(AgentError, match="answered 500"):
            model.complete(CHAT, None, 4)


@pytest.mark.parametrize("body", [{"choices": []}, {}, {"choices": [{"message": None}]}, b"<html>", [1]])
def test_answers_that_are_none_are_named(endpoint, body):
    endpoint.script = [(200, body)]
    with Endpoint(endpoint.url) as model, pytest.raises(AgentError, match=r"sent (no chat completion|something)"):
        model.complete(CHAT, None, 4)


def test_servers_and_models_that_are_not_there(endpoint):
    for url in ("localhost", "ftp://a/v1", "http://"):
        with pytest.raises(AgentError, match=r"is no web address; write http://HOST:PORT/v1"):
            Endpoint(url)
    with pytest.raises(AgentError, match=r"does not answer .*; is the server running\?"):
        Endpoint("http://127.0.0.1:9/v1", retries=0)
    endpoint.models = ["a", "b"]
    with pytest.raises(AgentError, match="serves a, b; name one as model"):
        Endpoint(endpoint.url)


def test_half_characters_of_a_server_do_no_harm(endpoint):
    message = {"content": "a\ud800", "tool_calls": [{"function": {"name": "expand", "arguments": "[" * 99_999}}]}
    endpoint.script = [(200, {"choices": [{"message": message, "finish_reason": "stop"}]}), "FINAL: b"]
    with Endpoint(endpoint.url) as model:
        assert ask(model, number_segments(["x"]), "Which?").answer == "b"
        with pytest.raises(AgentError, match="half a character"):
            ask(model, number_segments(["x"]), "a\udce4")
    assert endpoint.bodies[1]["messages"][1]["content"] == "a?"


def test_a_streamed_reply_is_timed(endpoint):
    endpoint.script = ["four"]
    with Endpoint(endpoint.url) as model:
        found = model.timed(CHAT, 8)
    assert found.reply.content == "four" and found.reply.usage.cached == 5
    assert 0 < found.ttft_seconds <= found.seconds
    endpoint.script = [(400, {"error": "no"})]
    with Endpoint(endpoint.url) as model, pytest.raises(AgentError, match="answered 400"):
        model.timed(CHAT, 8)


def test_the_command_asks_and_replays(endpoint, tmp_path, capsys, monkeypatch):
    file, trace = tmp_path / "notes.txt", tmp_path / "trace.jsonl"
    file.write_text("The code is 12.\n\nThe other is 13.\n")
    endpoint.script = [["seg_2"], "FINAL: 13"]
    options = ["--url", endpoint.url, "--words", "4", "--trace", str(trace)]
    assert main(["ask", "Which other code?", str(file), *options]) == 0
    out, err = capsys.readouterr()
    assert out == "13\n" and "2 segments, 2 requests, expanded: seg_2;" in err
    assert "seg_1 (notes.txt): <|memory_start|>The code is 12." in endpoint.bodies[0]["messages"][0]["content"]
    assert main(["replay", str(trace)]) == 0
    assert capsys.readouterr().out == "Which other code?\n  expanded: seg_2\n  13\n"
    endpoint.script = ["FINAL: 1"]
    assert main(["ask", "Which?", str(file), "--url", endpoint.url, "--json"]) == 0
    assert '"answer": "1"' in capsys.readouterr().out


def test_documents_of_a_store_are_asked_about(endpoint, tmp_path, capsys):
    store = str(tmp_path / "store.db")
    with Library(tmp_path / "store.db") as library:
        library.add("notes", "The code is 12.\n\nThe other is 13.\n", words=4)
    endpoint.script = ["FINAL: 12"]
    assert main(["ask", "Which?", "--store", store, "--document", "notes", "--url", endpoint.url]) == 0
    assert capsys.readouterr().out == "12\n"
    assert "seg_2 (notes): <|memory_start|>The other" in endpoint.bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "Which?", "--url", "URL"], "name text files, or --store with a --document in it"),
        (["ask", "Which?", "nowhere.txt", "--url", "URL"], "cannot read nowhere.txt"),
        (["compare", "--turns", "10"], "turns=10 are too few for 12 facts; give at least 16"),
        (["compare", "--ratios", "1"], "ratios=(1,) at least 2 each"),
        (["play", "--port", "99999", "--url", "URL"], "choose another with --port"),
        (["replay", "nowhere.jsonl"], "there is no trace nowhere.jsonl"),
        (["eval", "nowhere.jsonl", "--url", "URL"], "there is no file nowhere.jsonl"),
        (["ask", "Which?", "FILE", "--url", "URL", "--rounds", "-1"], "rounds=-1 must be at least 0"),
        (["ask", "Which?", "FILE", "--url", "URL", "--key-variable", "NO_KEY"], "variable NO_KEY is not set"),
        (["ask", "Which?", "BAD", "--url", "URL"], "is no UTF-8 text"),
    ],
)
def test_what_cannot_be_done_is_one_line(endpoint, tmp_path, capsys, arguments, said):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    places = {"URL": endpoint.url, "FILE": str(tmp_path / "a.txt"), "BAD": str(tmp_path / "bad.txt")}
    assert main([places.get(one, one) for one in arguments]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["ask", "replay", "eval", "compare", "play", "mcp"])
def test_commands_explain_themselves(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and len(capsys.readouterr().out) > 150
