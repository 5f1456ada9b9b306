"""Which files are read, under which names, and what is said about the others."""

import os
import socket

import fsspec
import pytest

from lclm_jax.config import CollectionConfig
from lclm_jax.data.prepare.corpus import list_collection
from lclm_jax.data.prepare.readers import list_entries, read_rows
from lclm_jax.errors import LclmError


def collection(*paths, form="text", **more):
    return CollectionConfig(format=form, paths=tuple(map(str, paths)), **more)


def names(*paths, **more):
    return [entry.id for entry in list_entries(collection(*paths, **more), 10**6)]


def write(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return folder


def test_folders_behind_links_are_read_once_each(tmp_path):
    write(tmp_path / "in", "a.txt", "deep/b.txt")
    write(tmp_path / "elsewhere", "c.txt")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere/loop").symlink_to(".")
    assert names(tmp_path / "in") == ["a.txt", "again/c.txt", "deep/b.txt"]


def test_the_order_of_a_listing_does_not_matter(tmp_path, monkeypatch):
    write(tmp_path, "b/x.txt", "a/y.txt", "c.txt")
    (tmp_path / "l2").symlink_to("b")
    (tmp_path / "l1").symlink_to("b")
    before, scan = names(tmp_path), os.scandir

    class Backwards:
        def __init__(self, path):
            self.found = scan(path)

        def __enter__(self):
            return iter(list(self.found)[::-1])

        def __exit__(self, *_):
            self.found.close()

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(tmp_path) == before == ["a/y.txt", "b/x.txt", "c.txt"]


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/r\xe9sum\xe9.txt", "w") as file:
        file.write("text")
    (entry,) = list_entries(collection(tmp_path), 10**6)
    assert entry.id == "caf\\xe9/r\\xe9sum\\xe9.txt"
    assert [row.values for row in read_rows(entry, collection(tmp_path))] == [{"text": b"text"}]


def test_what_is_no_file_is_named_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.txt"))
        found = {
            entry.id: list(read_rows(entry, collection(tmp_path))) for entry in list_entries(collection(tmp_path), 9)
        }
    assert set(found) == {"pipe.txt", "gone.txt", "loop.txt", "device.txt", "socket.txt"}
    for rows in found.values():
        (bad,) = rows
        assert (bad.reason, bad.whole) == ("unreadable", True)
    assert "it is a named pipe" in found["pipe.txt"][0].excerpt
    assert "No such file" in found["gone.txt"][0].excerpt


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "closed/b.txt")
    scan, listing = os.scandir, os.listdir

    def refuse(call):
        def guarded(path):
            if str(path).rstrip("/").endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return call(path)

        return guarded

    monkeypatch.setattr(os, "scandir", refuse(scan))
    monkeypatch.setattr(os, "listdir", refuse(listing))
    entries = list_entries(collection(tmp_path), 10**6)
    assert [entry.id for entry in entries] == ["a.txt", "closed/"]
    (bad,) = read_rows(entries[1], collection(tmp_path))
    assert (bad.place, bad.reason) == ("closed/", "unreadable")
    assert "Permission denied" in bad.excerpt


def test_endings_in_capitals_and_hidden_files(tmp_path):
    write(tmp_path, "A.TXT", "b.Md", ".hidden.txt", "c.dat")
    assert names(tmp_path) == [".hidden.txt", "A.TXT", "b.Md"]
    assert names(tmp_path, suffixes=(".DAT",)) == ["c.dat"]


def test_a_file_that_two_paths_name_is_read_once(tmp_path):
    write(tmp_path, "a/b/x.txt")
    (tmp_path / "link").symlink_to("a")
    assert names(
        tmp_path / "a/b/x.txt", tmp_path / "a", tmp_path / "a/*/x.txt", tmp_path / "link", f"{tmp_path}/a/."
    ) == ["x.txt"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    write(tmp_path, "2023/en/part.txt", "2024/en/part.txt", "2024/en/other.txt")
    assert names(tmp_path / "2023/en", tmp_path / "2024/en") == ["2023/en/part.txt", "2024/en/part.txt", "other.txt"]
    for year in (2023, 2024):
        with fsspec.open(f"memory://listing/{year}/part.txt", "w") as file:
            file.write("x")
    assert names("memory://listing/2023", "memory://listing/2024") == ["2023/part.txt", "2024/part.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["top.txt"]),
        ("**/*.txt", ["[1]/set/d.txt", "en/a.txt", "en/old/b.txt", "top.txt"]),
        ("**", ["[1]/set/d.txt", "en/a.txt", "en/old/b.txt", "fr/c.dat", "top.txt"]),
        ("e*", ["en/a.txt", "en/old/b.txt"]),
        ("*/*.dat", ["fr/c.dat"]),
        ("**/old", ["en/old/b.txt"]),
        ("[1]/set/*.txt", ["d.txt"]),
        ("[1]/s*/*.txt", ["set/d.txt"]),
        ("[1]/set/d.txt", ["d.txt"]),
        ("[ef][nr]/*", ["en/a.txt", "en/old/b.txt", "fr/c.dat"]),
    ],
)
def test_patterns(tmp_path, pattern, found):
    write(tmp_path, "top.txt", "en/a.txt", "en/old/b.txt", "fr/c.dat", "[1]/set/d.txt")
    assert names(f"{tmp_path}/{pattern}") == found


def test_home_and_variables(tmp_path, monkeypatch):
    write(tmp_path, "data/a.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CORPUS", str(tmp_path / "data"))
    assert names("~/data") == names("$CORPUS/*.txt") == names("~/data/*.txt") == ["a.txt"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("$NOT_SET/a", "write the path in full"),
        ("{a,b}/*.txt", "list the paths one by one"),
        ("[b]/x", r"write \[\[\] for a bracket"),
        ("none", "check the path"),
        (".", r"its files end in .csv \(2\), .json \(1\): set suffixes"),
    ],
)
def test_a_path_without_files_gets_a_hint(tmp_path, path, hint):
    write(tmp_path, "a.csv", "b.csv", "c.json")
    with pytest.raises(LclmError, match=f"names no file to read.*{hint}"):
        names(path if path.startswith("$") else tmp_path / path)


def test_what_the_run_writes_is_no_corpus(tmp_path):
    write(tmp_path, "a.jsonl", "runs/x/data/rejects.jsonl", "runs/x/corpus/b.jsonl")
    outputs = (f"{tmp_path}/runs/x/data/", f"{tmp_path}/runs/x/", f"{tmp_path}/runs/x/stages/")

    def listed(path):
        return [entry.id for entry in list_collection(collection(path, form="jsonl"), 10**6, outputs)]

    assert listed(tmp_path) == ["a.jsonl"]
    assert listed(tmp_path / "runs/x") == ["corpus/b.jsonl"]
    assert listed(tmp_path / "runs/x/corpus") == ["b.jsonl"]
