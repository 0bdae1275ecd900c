"""From audit.html to judgements: what people answered is laid over the sets, and mining uses it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright.common.errors import UserError, UserErrors
from rankwright.data.cards import load_card
from rankwright.data.formats.read import read_collection
from rankwright.data.judgements import read_judgements
from rankwright.mining.pools import read_negatives
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.answers import read_answers, write_answers
from rankwright.report.audit import write_audit
from rankwright.report.page import write_report

ANSWER = re.compile(r'data-query="([^"]*)" data-document="([^"]*)" data-kind="([^"]*)" data-texts="([^"]*)"')
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Pipeline:
    """A run that was mined, with the page of all its queries."""
    path = jobs.job(tmp_path_factory.mktemp("audited") / "job", tiny_qwen3, mine={"depth": 8})
    pipeline = Pipeline(load_recipe(path, ["data.train.0.licence=CC-BY-4.0"]), progress=False)
    pipeline.mine()
    write_audit(pipeline.folder, 4)
    return pipeline


def asked(pipeline: Pipeline) -> list[dict[str, str]]:
    """The page's questions, as the page saves them without an answer."""
    names = ("query_id", "document_id", "kind", "texts")
    page = pipeline.folder.audit.read_text(encoding="utf-8")
    return [dict(zip(names, map(html.unescape, row), strict=True)) | {"note": ""} for row in ANSWER.findall(page)]


def saved(path: Path, rows: Sequence[dict[str, str]], **head: str) -> Path:
    found = {"audit": "job-1-0", "recipe": "job", "by": "Ann", **head, "answers": rows}
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def test_answers_become_judgements_that_mining_uses(audited: Pipeline, tmp_path: Path) -> None:
    rows = asked(audited)
    first = [row for row in rows if row["query_id"] == rows[0]["query_id"]]
    answers = [
        first[0] | {"answer": "relevant", "note": "says so"},
        first[1] | {"answer": "not relevant"},
        first[2] | {"answer": "unsure"},
    ]
    (one,), unsure = write_answers(
        audited.folder, [read_answers(saved(tmp_path / "ann.json", answers))], tmp_path / "out"
    )
    assert (one.relevant, one.not_relevant, one.new, unsure) == (1, 1, 1 + 1, 1)
    found = [judgement for _, judgement in read_judgements(one.path)]
    assert {(f"one/{j.query_id}", f"one/{j.document_id}"): (j.label, j.by, j.note) for j in found} == {
        (first[0]["query_id"], first[0]["document_id"]): (1.0, "Ann", "says so"),
        (first[1]["query_id"], first[1]["document_id"]): (0.0, "Ann", ""),
    }
    # A set by itself, with a card that inherits the licence.
    card = load_card(str(one.card))
    assert card.licence.name == "CC-BY-4.0" and card.licence.commercial == "yes" and "Ann" in card.notes
    alone = read_collection(one.path, name="alone", split="train")
    assert {q: dict(labels) for q, labels in alone.qrels.items()} == {
        found[0].query_id: {j.document_id: j.label for j in found}
    }
    # Laid over the set, it changes data and mining, and nothing else must be told.
    again = Pipeline(
        load_recipe(audited.loaded.path, [*audited.loaded.overrides, f"data.train.0.judgements={one.path}"]),
        tmp_path / "run",
        progress=False,
    )
    assert again.inputs.data != audited.inputs.data and again.inputs.train != audited.inputs.train
    again.mine()
    query_id = first[0]["query_id"]
    before, after = (read_negatives(p.folder.negatives)[query_id] for p in (audited, again))
    assert first[0]["document_id"] in {n.document_id for n in before}
    assert first[0]["document_id"] not in {n.document_id for n in after}
    assert [n.source for n in after if n.document_id == first[1]["document_id"]] == ["judged"]
    report = json.loads(again.folder.data_report.read_text())
    assert report["judgements"] == [
        {
            "set": "one",
            "split": "train",
            "file": one.path.name,
            "relevant": 1,
            "not_relevant": 1,
            "by": {"Ann": 2},
        }
    ]
    page = write_report(again.folder.path, output=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "one (train) with judgements of one-judgements.jsonl: 1 relevant, 1 not relevant (judged by Ann)." in page
    judgements = next(row for row in again.ledger()["inputs"] if row["kind"] == "judgements")
    assert judgements["licence"] == "CC-BY-4.0" and judgements["taints"]


def test_answers_of_several_people(audited: Pipeline, tmp_path: Path) -> None:
    rows = asked(audited)
    ann = read_answers(saved(tmp_path / "ann.json", [row | {"answer": "relevant"} for row in rows[:3]]))
    bob = [rows[2] | {"answer": "relevant"}, rows[3] | {"answer": "not relevant"}]
    both = [ann, read_answers(saved(tmp_path / "bob.json", bob, by="Bob"))]
    (one,), _ = write_answers(audited.folder, both, tmp_path / "out")
    assert (one.relevant, one.not_relevant, one.new) == (3, 1, 4)
    # A later file adds to what is there.
    more = read_answers(
        saved(tmp_path / "more.json", [rows[3] | {"answer": "not relevant"}, rows[4] | {"answer": "relevant"}])
    )
    (one,), _ = write_answers(audited.folder, [more], tmp_path / "out")
    assert (one.relevant, one.not_relevant, one.new) == (4, 1, 1)
    other = read_answers(saved(tmp_path / "other.json", [row | {"answer": "not relevant"} for row in rows[:5]]))
    text = one.path.read_text()
    with pytest.raises(
        UserError, match=r"^4 answers differ: query .*: relevant in one-judgements\.jsonl, not relevant in"
    ):
        write_answers(audited.folder, [other], tmp_path / "out")
    assert one.path.read_text() == text


BAD = {
    "unknown": ({"document_id": "one/nowhere"}, {}, "the run has no such pair"),
    "other set": ({"query_id": "two/q1"}, {}, "the run has no such pair"),
    "other texts": ({"texts": "0" * 16}, {}, "the run has other texts than the page showed"),
    "other run": ({}, {"recipe": "another"}, "is of an audit of 'another', and .* is a run of 'job'"),
    "no answer": ({"answer": "perhaps"}, {}, "is not what audit.html saves"),
    "old form": ({"answer": None}, {}, "is not what audit.html saves"),
    "all unsure": ({"answer": "unsure"}, {}, r"nothing is judged there \(1 unsure\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_answers_that_cannot_be_used_are_one_line(audited: Pipeline, tmp_path: Path, name: str) -> None:
    row, head, message = BAD[name]
    path = saved(tmp_path / "a.json", [{**asked(audited)[0], "answer": "relevant", **row}], **head)  # type: ignore[dict-item]
    with pytest.raises(UserError, match=message) as caught:
        write_answers(audited.folder, [read_answers(path)], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_other_files_are_not_taken_for_answers(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "null", '{"answers": 3, "audit": "", "recipe": "", "by": ""}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=r"a\.json: .*`Save answers`"):
            read_answers(tmp_path / "a.json")


def test_judgements_that_do_not_fit_the_set(audited: Pipeline, tmp_path: Path) -> None:
    (one,), _ = write_answers(
        audited.folder,
        [read_answers(saved(tmp_path / "a.json", [row | {"answer": "relevant"} for row in asked(audited)[:3]]))],
        tmp_path,
    )
    rows = [json.loads(line) for line in one.path.read_text().splitlines()]
    rows[0]["document"] += " and more"
    rows[1]["query_id"] = "nobody"
    one.path.write_text("\n".join(map(json.dumps, rows)))

    def data(*more: str) -> dict[str, Any]:
        overrides = [f"data.train.0.judgements={one.path}", f"run_dir={tmp_path / 'run'}", *more]
        Pipeline(load_recipe(audited.loaded.path, overrides), progress=False).data()
        found: dict[str, Any] = json.loads((tmp_path / "run" / "data_report.json").read_text())
        return found

    with pytest.raises(UserErrors) as caught:
        data()
    assert len(caught.value.messages) == 2
    assert f"{one.path}:1: query" in str(caught.value) and "has another text of the document" in str(caught.value)
    assert f"{one.path}:2: query 'nobody'" in str(caught.value) and "has no such query" in str(caught.value)
    assert sum(row["count"] for row in data("data.on_fault=drop")["dropped"]) == 2
    for bad, message in {
        '{"query_id": "q"}': ":1: is not a judgement (query must be text)",
        json.dumps({**rows[2], "label": 2}): ":1: is not a judgement (label must be 0 or 1, found 2)",
        "{": ":1: is not a judgement (not JSON)",
        f"{json.dumps(rows[2])}\n{json.dumps(rows[2])}": ":2: judges the pair of line 1 again",
        "": ": holds no judgement",
    }.items():
        one.path.write_text(bad)
        with pytest.raises(UserError) as fault:
            data()
        assert f"{one.path}{message}" in str(fault.value)


def test_the_command_writes_them_from_another_folder(audited: Pipeline, tmp_path: Path) -> None:
    saved(tmp_path / "a.json", [asked(audited)[0] | {"answer": "relevant"}], by="")
    done = jobs.rankwright("audit", "read", "a.json", "--run", audited.folder.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'judgements: "job-judgements/one-judgements.jsonl"' in done.stdout
    ((_, one),) = read_judgements(tmp_path / "job-judgements" / "one-judgements.jsonl")
    # Who judged is not stated: the file stands for the person.
    assert one.by == "a"


# Presses keys as a person does, loads the page again, and leaves what it would save in the document.
KEYS = """
<script>
addEventListener("load", () => {
  const press = (key) => (document.activeElement || document.body)
    .dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const kept = () => Object.values(localStorage)[0] || "";
  const out = document.createElement("pre");
  if (!sessionStorage.getItem("again")) {
    sessionStorage.setItem("again", "1");
    // The first key only shows where one is; then two answers, one of them taken back, the rest of the query, a note.
    for (const key of ["r", "r", "n", "u", "z", "a", "l", "u"]) press(key);
    press("t");
    document.activeElement.value = "n r z";
    document.activeElement.dispatchEvent(new Event("input", { bubbles: true }));
    press("n");
    press("Escape");
    press("n");
    location.reload();
    return;
  }
  out.id = "kept";
  out.textContent = [kept(), document.getElementById("count").textContent,
    document.querySelectorAll("[type=radio]:checked").length, document.documentElement.scrollWidth].join("\\n");
  document.body.append(out);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_is_answered_by_keys_alone(audited: Pipeline, tmp_path: Path) -> None:
    page = audited.folder.audit.read_text(encoding="utf-8").replace("</body>", f"{KEYS}</body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=390,800", "--virtual-time-budget=4000", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    text = re.findall(r'<pre id="kept">(.*?)</pre>', done.stdout, re.DOTALL)[0]
    kept, count, checked, width = html.unescape(text).split("\n")
    (tmp_path / "answers.json").write_text(kept)
    rows = asked(audited)
    here = [row for row in rows if row["query_id"] == rows[0]["query_id"]]
    answers = [row["answer"] for row in json.loads(kept)["answers"]]
    assert answers[: len(here)] == ["relevant", *["not relevant"] * (len(here) - 1)]
    assert answers[len(here) :] == ["unsure", "not relevant"]
    assert [row["note"] for row in json.loads(kept)["answers"]][len(here) :] == ["", "n r z"]
    assert count.startswith(f"{len(here) + 1} of {len(rows)} documents judged, 1 unsure; 1 of ")
    assert int(checked) == len(here) + 2 and int(width) <= 500
    (one,), unsure = write_answers(audited.folder, [read_answers(tmp_path / "answers.json")], tmp_path / "out")
    assert (one.relevant, one.not_relevant, unsure) == (1, len(here), 1)
