import sqlite3

import pytest

from lclm_agent import AgentError
from lclm_agent.command import main
from lclm_agent.library import Library
from lclm_store import Document, LatentStore, text_digest

TEXT = "The harbour opens at nine.\n\nThe garden closes at six.\n\nAsk at the museum.\n"


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "store.db") as opened:
        yield opened


def test_documents_are_added_listed_searched_and_read(library):
    added = library.add("notes", TEXT, words=5)
    assert (added.title, added.segments, added.characters) == ("notes", 3, len(TEXT))
    assert library.entries() == [added]
    assert library.add("other notes", TEXT, words=5).id == added.id and len(library.entries()) == 1
    library.add("more", "Nothing about it.")
    (hit,) = library.search("When does the garden close? gardens", limit=1)
    assert (hit.document, hit.segment) == (added.id, "seg_2") and "garden closes" in hit.excerpt
    assert library.segment("other notes", "2").text.startswith("The garden closes")
    assert "".join(one.text for one in library.segments(added.id)) == TEXT


@pytest.mark.parametrize("query", ['"', "NEAR(", "a OR", "x*", "-- DROP TABLE agent_texts"])
def test_queries_are_words_and_nothing_else(library, query):
    library.add("notes", TEXT)
    try:
        library.search(query)
    except AgentError as error:
        assert "no word" in str(error)
    assert len(library.entries()) == 1


def test_what_is_not_there(library):
    library.add("notes", TEXT)
    with pytest.raises(AgentError, match="0 documents are called 'else'"):
        library.segments("else")
    with pytest.raises(AgentError, match="notes has no segment '7'; it has seg_1 to seg_1"):
        library.segment("notes", "7")
    with pytest.raises(AgentError, match="every document is empty"):
        library.add("empty", " ")
    library.add("notes", TEXT + "more")
    with pytest.raises(AgentError, match="2 documents are called 'notes'"):
        library.segments("notes")


def test_texts_lie_beside_the_latents(tmp_path):
    path, file = tmp_path / "store.db", tmp_path / "notes.txt"
    file.write_text(TEXT)
    changed = tmp_path / "changed.txt"
    changed.write_text("now")
    with LatentStore(path) as store:
        store.put_document(Document(text_digest(TEXT), "space", str(file), (), ()))
        store.put_document(Document(text_digest("then"), "space", str(changed), (), ()))
    with Library(path) as library:
        assert library.add_stored() == 1 and library.entries()[0].title == "notes.txt"
    with LatentStore(path) as store:
        assert store.stat().documents == 2 and store.verify() == []


def test_files_that_are_no_store_are_refused(tmp_path, capsys):
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 40)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE things(a)")
    for name in ("text.db", "other.db", "nowhere/new.db"):
        with pytest.raises(AgentError, match="cannot open the library"):
            Library(tmp_path / name)
    assert main(["mcp", str(tmp_path / "other.db")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
