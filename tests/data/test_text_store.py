"""Texts in a memory-mapped file are what a dict of them would be, are shared, survive kills, and take no memory."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.store import arrow_files, id_index
from rankwright.data.store import texts as spill
from rankwright.data.store import texts as text_store
from rankwright.data.store.texts import TextBuilder, TextStore, read_texts, write_texts

TEXTS = st.dictionaries(st.text(max_size=5), st.text(max_size=12), max_size=30)
SOME = {f"d{number}": f"text {number} → ü\n" * (number % 7) for number in range(500)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Everything goes to files, in batches of some rows, sorted every some rows, and to a folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        with spill.spilling_to(tmp_path / "spilled"):
            yield tmp_path / "spilled"


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(text_store, "IN_MEMORY_BYTES", 0)
    patch.setattr(arrow_files, "BATCH_ROWS", 7)
    patch.setattr(id_index, "RECENT_IDS", 5)


def few_hashes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(id_index, "id_hash", lambda identifier: len(identifier) % 2)


def stored(path: Path, texts: dict[str, str], groups: dict[str, str] | None = None) -> TextStore:
    write_texts(path, texts, groups or {})
    return TextStore(path)


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.lists(st.text(max_size=5)), st.booleans())
def test_a_store_is_what_a_dict_is(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str], others: list[str], collide: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        if collide:
            few_hashes(patch)
        store = stored(tmp_path_factory.mktemp("texts") / "t.arrow", texts)
        assert list(store) == list(texts)
        assert list(store.items()) == list(texts.items())
        assert list(store.values()) == list(texts.values())
        assert len(store) == len(texts)
        assert store == texts
        for identifier in [*texts, *others]:
            assert store.get(identifier) == texts.get(identifier)
            assert (identifier in store) == (identifier in texts)
            if identifier not in texts:
                with pytest.raises(KeyError):
                    store[identifier]
        assert store.get_many(list(reversed(texts))) == [texts[d] for d in reversed(texts)]
        assert (7 in store) is False and "\ud83d" not in store


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=2), st.sampled_from("abc")), max_size=40), st.booleans())
def test_a_builder_that_spills_says_what_one_in_memory_does(added: list[tuple[str, str]], collide: bool) -> None:
    plain = TextBuilder()
    said = [plain.add(*row) for row in added]
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        if collide:
            few_hashes(patch)
        builder = TextBuilder()
        assert [builder.add(*row) for row in added] == said
        assert len(builder) == len(plain)
        found = builder.finish()
        assert isinstance(found, TextStore) == bool(added)
        assert found == plain.finish()


@settings(deadline=None)
@given(TEXTS, st.data())
def test_the_content_depends_on_the_rows_and_not_on_their_order(texts: dict[str, str], data: st.DataObject) -> None:
    groups = {d: "g" for d in texts if data.draw(st.booleans())}
    shuffled = dict(data.draw(st.permutations(list(texts.items()))))
    content = text_store.content
    assert content(shuffled, groups) == content(texts, groups)
    assert (content(texts, {}) == content(texts, groups)) == (not groups)
    for identifier, text in texts.items():
        for other in ({**texts, identifier: text + "x"}, {d: t for d, t in texts.items() if d != identifier}):
            assert content(other, groups) != content(texts, groups)


def test_groups_are_kept_and_streamed(tmp_path: Path, small: Path) -> None:
    groups = {d: f"case {number % 3}" for number, d in enumerate(SOME) if number % 2}
    store = stored(tmp_path / "t.arrow", SOME, groups)
    assert store.groups == groups and len(store.groups) == len(groups)
    assert store.groups.get("d0") is None and store.groups["d1"] == "case 1"
    assert read_texts(tmp_path / "t.arrow") == (SOME, groups)
    # A file of texts and groups is the file of just these groups.
    assert text_store.content(store, store.groups) == text_store.content(SOME, groups)
    assert text_store.content(store, {}) == text_store.content(SOME, {})
    for number, wanted in enumerate((store.groups, {})):
        write_texts(tmp_path / f"{number}.arrow", store, wanted)
        assert read_texts(tmp_path / f"{number}.arrow") == (SOME, wanted)


def test_other_libraries_read_the_file(tmp_path: Path, small: Path) -> None:
    store = stored(tmp_path / "t.arrow", SOME)
    rows = datasets.Dataset.from_file(str(store.path))
    assert {row["_id"]: row["text"] for row in rows} == SOME


def test_small_sets_stay_dicts(tmp_path: Path) -> None:
    builder = TextBuilder()
    for row in SOME.items():
        assert builder.add(*row) == "new"
    assert type(builder.finish()) is dict
    write_texts(tmp_path / "t.arrow", SOME, {})
    assert [type(found) for found in read_texts(tmp_path / "t.arrow")] == [dict, dict]


def built(texts: dict[str, str]) -> TextStore:
    builder = TextBuilder()
    for row in texts.items():
        builder.add(*row)
    found = builder.finish()
    assert isinstance(found, TextStore)
    return found


def test_what_was_spilled_goes_with_its_store_and_is_shared(small: Path, tmp_path: Path) -> None:
    one, again = built(SOME), built(dict(reversed(SOME.items())))
    assert again is one
    assert len(list(small.iterdir())) == 1
    write_texts(tmp_path / "kept.arrow", one, {})
    assert (tmp_path / "kept.arrow").samefile(one.path)
    del one, again
    gc.collect()
    assert list(small.iterdir()) == []
    assert TextStore(tmp_path / "kept.arrow") == SOME


def test_nothing_is_left_of_a_reading_that_fails(small: Path) -> None:
    builder = TextBuilder()
    builder.add("a", "text")
    assert list(small.iterdir())
    with pytest.raises(UserError, match=r"document 'b' holds half of a character \(\\ud83d\)"):
        builder.add("b", "half \ud83d")
    del builder
    gc.collect()
    assert list(small.iterdir()) == []


def test_nothing_is_left_of_a_writing_that_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="half of a character"):
        write_texts(tmp_path / "t.arrow", {**SOME, "odd": "\ud83d"}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, small: Path) -> None:
    small.rmdir() if small.exists() else None
    small.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write texts there .*: give another place"):
        TextBuilder().add("a", "text")


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from rankwright.data.store.texts import write_texts

        class Endless(dict):
            def items(self):
                for number in range(10**9):
                    if number == 200_000:
                        print("under way", flush=True)
                    yield f"d{number}", "text " * 100

        write_texts(Path(sys.argv[1]), Endless(), {})
    """
    path = tmp_path / "corpora" / "t.arrow"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert [p.name.startswith(spill.PREFIX) for p in path.parent.iterdir()] == [True]
    mine = spill.make_folder(path.parent)
    with spill.spilling_to(tmp_path):
        assert list(path.parent.iterdir()) == [mine]  # that of a process that runs stays
        write_texts(path, SOME, {})
    assert read_texts(path)[0] == SOME


@pytest.mark.parametrize("harm", ["cut", "cut at a batch", "empty", "not arrow", "index cut", "another index", "text"])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, small: Path, harm: str) -> None:
    store = stored(tmp_path / "t.arrow", SOME)
    path, index = store.path, arrow_files.index_path(store.path)
    data = path.read_bytes()
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "cut at a batch":
        # Arrow takes the end of the file for the end of the stream: only the index tells.
        path.write_bytes(data[: data.rindex(b"\xff\xff\xff\xff", 0, len(data) - 8)])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "not arrow":
        path.write_text(json.dumps({"_id": "d1", "text": "x"}) + "\n")
    elif harm == "index cut":
        index.write_bytes(index.read_bytes()[:-16])
    elif harm == "another index":
        write_texts(tmp_path / "other.arrow", {"a": "b"}, {})
        arrow_files.index_path(tmp_path / "other.arrow").replace(index)
    else:
        path.write_bytes(data.replace("→".encode(), b"\xff\xff\xff"))
    with pytest.raises(UserError, match=r"t\.arrow: damaged .*: delete it and run the data stage again"):
        list(read_texts(path)[0].items())


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    write_texts(tmp_path / "t.arrow", SOME, {})
    arrow_files.index_path(tmp_path / "t.arrow").unlink()
    for name in ("t.arrow", "u.arrow"):
        with pytest.raises(UserError, match="no such file: run the data stage first"):
            read_texts(tmp_path / name)


def lookup(store: TextStore, ids: list[str]) -> list[str]:
    return [store[identifier] for identifier in ids]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it_too(tmp_path: Path, small: Path, method: str) -> None:
    store = stored(tmp_path / "t.arrow", SOME)
    assert pickle.loads(pickle.dumps(store)) == SOME
    spilled = built(SOME)
    with multiprocessing.get_context(method).Pool(1) as pool:
        for texts in (store, spilled):
            assert pool.apply(lookup, (texts, ["d3", "d499"])) == [SOME["d3"], SOME["d499"]]
    # The other process has ended, and with it nothing of ours.
    assert spilled.path.exists() and spilled["d3"] == SOME["d3"]


def test_the_end_of_a_fork_removes_nothing(small: Path) -> None:
    store = built(SOME)
    child = os.fork()
    if not child:
        try:
            del store
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert store.path.exists()


def test_a_corpus_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    """300 MB of texts are read, written and looked up by a process that may hold 150 MB beyond its imports."""
    program = """
        import json, resource, sys
        from pathlib import Path
        from rankwright.data.split_files import qualified, read_split, write_split
        from rankwright.data.formats.read import read_collection
        from rankwright.data.store.texts import spilling_to

        def held(name):
            status = Path("/proc/self/status").read_text()
            return int(status.split(name)[1].split()[0]) * 1024

        start = held("VmData:")
        resource.setrlimit(resource.RLIMIT_DATA, (start + 150 * 2**20,) * 2)
        folder = Path(sys.argv[1])
        with spilling_to(folder / "data"):
            collection = read_collection(folder / "set", name="set", split="train")
            write_split(folder / "data", "train", [collection])
        del collection
        (read,) = map(qualified, read_split(folder / "data", "train"))
        found = [read.corpus[f"set/d{number}"] for number in range(0, 60_000, 7)]
        print(json.dumps([len(read.corpus), sum(map(len, read.corpus.values())), len(found), held("RssAnon:")]))
    """
    rows, letters = 60_000, "0123456789abcdef" * 312
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": f"d{n}", "text": f"{n} {letters}"}) + "\n" for n in range(rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which?"}\n')
    (folder / "qrels_train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td7\t1\n")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    documents, characters, found, _ = json.loads(done.stdout)
    assert documents == rows and found == len(range(0, rows, 7))
    assert characters == sum(len(f"{n} {letters}") for n in range(rows)) > 290e6
    assert not [p for p in (tmp_path / "data").iterdir() if p.name.startswith(spill.PREFIX)]
