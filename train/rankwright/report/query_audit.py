"""synthetic/audit.html: some written queries with their passages, for a person to accept or reject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object, read_jsonl
from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.recipe.schema import Recipe
from rankwright.report.answers import NOT_RELEVANT, RELEVANT, UNSURE, Answers, texts_hash
from rankwright.report.audit import DOCUMENT_CHARACTERS, QUERY_CHARACTERS
from rankwright.report.cases import cut
from rankwright.report.gather import Accepted, accepted_share
from rankwright.report.page import write_page


def write_query_audit(run: RunFolder, recipe: Recipe) -> Path:
    """Write the page from the files of the synthesize stage, for as many queries as the recipe states, by its seed.

    Raises UserError for damaged files.
    """
    assert recipe.synthesize is not None
    report = read_json_object(run.synthetic_report) or {}
    rows = list(read_jsonl(run.synthetic_queries, dict, "a written query"))
    order = sorted(rows, key=lambda row: (stable_hash("query audit", recipe.seed, row["_id"]), row["_id"]))
    chosen = order[: recipe.synthesize.audit.queries]
    wanted = {row["document"] for row in chosen}
    corpus = run.synthetic / "held_out" / "corpus.jsonl"

    def passage(row: dict[str, Any]) -> tuple[str, str] | None:
        return (row["_id"], row["text"]) if row["_id"] in wanted else None

    texts = dict(filter(None, read_jsonl(corpus, passage, "a passage")))
    cases = []
    for row in chosen:
        query, rest = cut(row["text"], QUERY_CHARACTERS)
        text, more = cut(texts[row["document"]], DOCUMENT_CHARACTERS)
        case = {"query_id": row["_id"], "query": query, "rest": rest, "kind": row["kind"]}
        case |= {"document_id": row["document"], "text": text, "more": more}
        cases.append(case | {"texts": texts_hash(row["text"], texts[row["document"]])})
    write_page(
        run.synthetic_audit,
        "query_audit.html.j2",
        recipe=recipe,
        cases=cases,
        queries=len(rows),
        filters=report.get("filters", []),
        # The name under which the browser keeps answers: they belong to these queries only.
        name=f"{recipe.name}-queries-{report.get('audit')}",
        answers={RELEVANT: "accept", NOT_RELEVANT: "reject", UNSURE: "unsure"},
        keys={"y": RELEVANT, "n": NOT_RELEVANT, "u": UNSURE},
    )
    return run.synthetic_audit


def is_query_audit(answers: Answers) -> bool:
    """Whether answers are those of this page."""
    return answers.audit.startswith(f"{answers.recipe}-queries-")


def write_accepted(run: RunFolder, files: Sequence[Answers]) -> Accepted:
    """Write synthetic/audited.json from the answers of people; where two differ, the query counts as rejected.

    Raises UserError for answers about other queries, and where nothing was judged.
    """
    if not run.synthetic_queries.is_file():
        raise UserError(f"{run.path}: no queries were written there: name the run of the page with --run")
    texts = dict(read_jsonl(run.synthetic_queries, lambda row: (row["_id"], row["text"]), "a written query"))
    found: dict[str, bool] = {}
    by: set[str] = set()
    for answers in files:
        for row in answers.rows:
            if row["query_id"] not in texts:
                raise UserError(
                    f"{answers.name}: query {row['query_id']!r}: the run has no such query: the queries were written "
                    "again since, or the answers are of another run: name it with --run"
                )
            if row["answer"] != UNSURE:
                found[row["query_id"]] = found.get(row["query_id"], True) and row["answer"] == RELEVANT
                by.add(answers.by.strip() or Path(answers.name).stem)
    if not found:
        raise UserError(f"{', '.join(a.name for a in files)}: nothing is judged there")
    report = read_json_object(run.synthetic_report) or {}
    rejected = sorted(key for key, accepted in found.items() if not accepted)
    made = {"audit": report.get("audit"), "judged": len(found), "accepted": len(found) - len(rejected)}
    run.write_json(run.synthetic_audited, {**made, "rejected": rejected, "by": sorted(by)})
    share = accepted_share(run)
    assert share is not None
    return share
