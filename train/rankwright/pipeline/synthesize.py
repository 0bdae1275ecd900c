"""The synthesize stage: queries written for the passages of documents, filtered, as sets that train and dev read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError
from rankwright.common.files import json_line, write_lines_atomic
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.formats.writers import beir_qrels, beir_texts
from rankwright.data.sources import OF_SIDE, Located, asked_by_people, read_all
from rankwright.pipeline.documents import HELD_OUT, KEY, TRAIN, Corpus, corpus_of, kinds_of, say, settings_of
from rankwright.pipeline.judged_lists import LETTERS_A_TOKEN
from rankwright.recipe.schema import Recipe
from rankwright.recipe.synthesize import Synthesize
from rankwright.report.gather import accepted_share
from rankwright.report.query_audit import write_query_audit
from rankwright.retrieval.candidates import Candidate
from rankwright.retrieval.first_stages import searched
from rankwright.retrieval.retriever import Searcher, retrievers
from rankwright.supervision.preferences.answers import AnswerFile
from rankwright.supervision.preferences.asking import AskerOf, Tally
from rankwright.supervision.queries.filters import QUERY_FILTERS, QueryView, chosen_filters, relevant, sift
from rankwright.supervision.queries.templates import TEMPLATES, Places, write_by_templates
from rankwright.supervision.queries.writers import (
    OF_WRITERS,
    Order,
    Reply,
    kept_reply,
    read_examples,
    write_by_model,
    writer_of,
)
from rankwright.supervision.queries.written import Written
from rankwright.supervision.teacher import Teacher

# A writer of whose queries more are rejected has not understood what it is asked for.
MOST_REJECTED = 0.8
BY_TEMPLATES = "templates"


def synthesize(recipe: Recipe, run: RunFolder, located: Mapping[str, Sequence[Located]]) -> dict[str, Any]:
    """The whole stage: the files of synthetic/; returns its facts.

    What a writer answered is in synthetic/answers.jsonl, and is never asked again. Raises UserError where the documents
    are too few, where the writer fails, and where most of its queries are rejected.
    """
    if launched() > 1:
        raise UserError(f"{KEY}: queries are written by one process: give `rankwright synthesize` alone first")
    corpus = corpus_of(recipe)
    console.say(
        f"  {counted(len(corpus.passages), 'passage')}, {counted(len(corpus.askable), 'passage')} to ask about"
        + "".join(f", {count:,} {why.replace('_', ' ')}" for why, count in sorted(corpus.left_out.items()))
    )
    console.say(
        f"  held out, and never trained on: {len(corpus.held_groups):,} of {counted(corpus.groups, 'group')}; "
        "written for: "
        + ", ".join(f"{counted(len(of), 'passage')} {side.replace('_', ' ')}" for side, of in corpus.chosen.items())
    )
    written, changed, tally = _write_queries(recipe, run, corpus)
    texts = {p.id: changed.get(p.id, p.text) for p in corpus.passages}
    view = _view(recipe, located, corpus, texts, written)
    kept, rejected = sift(view, _filters(recipe))
    report = _report(recipe, corpus, written, kept, rejected, tally)
    run.write_json(run.synthetic_report, report)
    _write_rows(run, corpus, written, kept, rejected, report["made_by"])
    _describe(report)
    _refuse_too_few(report, rejected, written, run)
    for side in (TRAIN, HELD_OUT):
        _write_set(run.synthetic / side, side, corpus, texts, list(kept.values()), report["made_by"])
    _write_card(recipe, run, report)
    return {"queries": report["kept"], "passages": len(corpus.passages), "audit": report["audit"]}


def audit(recipe: Recipe, run: RunFolder) -> None:
    """Write audit.html, and raise UserError where people must accept a share of the queries, and have not."""
    page = write_query_audit(run, recipe)
    console.say(f"audit: {page}: {counted(settings_of(recipe).audit.queries, 'query')} for a person to look at")
    least = settings_of(recipe).audit.min_accepted
    if least is None:
        return
    share = accepted_share(run)
    if share is None:
        raise UserError(
            f"{KEY}.audit.min_accepted: {least:g}: these queries are unjudged: open {run.synthetic_audit}, "
            "save the answers, and give `rankwright audit read ANSWERS.json` and this command again"
        )
    words = f"{share.mean:.0%} of {counted(share.count, 'query')} accepted, {share.low:.0%} to {share.high:.0%} in 95 %"
    if share.mean < least:
        raise UserError(f"{KEY}.audit.min_accepted: {least:g}: {words}: change writer, kinds or filters")
    console.say(f"audit of the queries: {words}")


def _write_queries(
    recipe: Recipe, run: RunFolder, corpus: Corpus
) -> tuple[list[Written], dict[str, str], Tally | None]:
    """(queries of both sides, texts of passages that something was taken out of, what the writer's calls came to)."""
    settings, kinds = settings_of(recipe), kinds_of(recipe)
    if settings.writer is None:
        queries: list[Written] = []
        changed: dict[str, str] = {}
        for side, chosen in corpus.chosen.items():
            # What a passage cites is looked for on its own side.
            places = Places([p for p in corpus.askable if corpus.side(p.group) == side])
            found, taken = write_by_templates(chosen, places, kinds, settings.per_passage, recipe.seed)
            queries, changed = queries + found, changed | taken
        return queries, changed, None
    answers: AnswerFile[Reply] = AnswerFile(run.synthetic_answers, kept_reply)
    if answers.damaged:
        console.say(f"{answers.path}: {counted(answers.damaged, 'damaged row')}: asked again")
    parallel = settings.parallel if settings.writer.url is not None else 1
    asker: AskerOf[Reply] = AskerOf([writer_of(settings.writer)], answers, settings.budget, parallel, OF_WRITERS)
    order = Order(kinds, settings.domain, settings.per_passage, _examples(settings), recipe.seed)
    chosen = [p for of in corpus.chosen.values() for p in of]
    with console.progress("write", len(chosen)) as advance:
        advance(0)
        found = write_by_model(chosen, order, asker, settings.writer, advance)
    if asker.over is not None:
        console.say(f"WARNING: {asker.over}")
    return found, {}, asker.tallies[0]


def _examples(settings: Synthesize) -> list[str]:
    return [] if settings.examples is None else read_examples(resources.resolve_path(settings.examples, root=None))


def _filters(recipe: Recipe) -> dict[str, Any]:
    return chosen_filters(settings_of(recipe).filters, has_teacher=recipe.mine.teacher is not None)


def _view(
    recipe: Recipe,
    located: Mapping[str, Sequence[Located]],
    corpus: Corpus,
    texts: Mapping[str, str],
    written: Sequence[Written],
) -> QueryView:
    """What the filters see. Train queries are searched among the passages of train, held-out ones among all."""
    searchers: dict[tuple[str, int], Searcher] = {}
    corpora = {side: _side_texts(corpus, texts, side) for side in (TRAIN, HELD_OUT)}
    stage = searched(recipe)

    def by_side(queries: Mapping[int, Written]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {TRAIN: {}, HELD_OUT: {}}
        for n, query in queries.items():
            found[corpus.side(query.group)][str(n)] = query.text
        return found

    def search(queries: Mapping[int, Written], top: int) -> dict[int, list[Candidate]]:
        lists: dict[int, list[Candidate]] = {}
        for side, of_side in by_side(queries).items():
            if not of_side:
                continue
            if (side, top) not in searchers:
                searchers[side, top] = retrievers()[stage].of(recipe, top)(corpora[side])
            lists |= {int(n): found for n, found in searchers[side, top](of_side).items()}
        return lists

    stated = recipe.mine.teacher
    teacher = None if stated is None else Teacher(stated, recipe.prompt, bm25=recipe.bm25)

    def scores(queries: Mapping[int, Written], wanted: Mapping[int, Sequence[str]]) -> dict[int, dict[str, float]]:
        assert teacher is not None
        found: dict[int, dict[str, float]] = {}
        for side, of_side in by_side(queries).items():
            whole = Collection(KEY, corpora[side], of_side, {})
            scored = teacher.score_pairs(whole, {n: wanted[int(n)] for n in of_side})
            found |= {int(n): dict(of) for n, of in scored.items()}
        return found

    queries, passages = _held(recipe, located)
    return QueryView(
        dict(enumerate(written)),
        texts,
        queries,
        passages,
        search,
        scores if teacher is not None else None,
        recipe.bm25.code,
    )


def _held(recipe: Recipe, located: Mapping[str, Sequence[Located]]) -> tuple[dict[str, str], dict[str, str]]:
    """("SET/ID" -> text of the queries of dev and test, the same of the documents relevant to them)."""
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    for collection in read_all(asked_by_people(located), say, on_fault=recipe.data.on_fault):
        queries |= {f"{collection.name}/{q}": text for q, text in collection.queries.items()}
        known = {d for q in collection.queries for d in collection.positives(q)}
        passages |= {f"{collection.name}/{d}": collection.corpus[d] for d in sorted(known)}
    return queries, passages


def _side_texts(corpus: Corpus, texts: Mapping[str, str], side: str) -> dict[str, str]:
    return {p.id: texts[p.id] for p in corpus.passages if side == HELD_OUT or corpus.side(p.group) == TRAIN}


def _report(
    recipe: Recipe,
    corpus: Corpus,
    written: Sequence[Written],
    kept: Mapping[int, Written],
    rejected: Mapping[int, tuple[str, str, str]],
    tally: Tally | None,
) -> dict[str, Any]:
    settings = settings_of(recipe)
    sides = Counter(corpus.side(query.group) for query in kept.values())
    by_filter: list[dict[str, Any]] = []
    left = len(written)
    for name in _filters(recipe):
        reasons = Counter(reason for other, reason, _ in rejected.values() if other == name)
        left -= reasons.total()
        meanings = {reason: QUERY_FILTERS[name].reasons[reason] for reason in sorted(reasons)}
        counts = dict(sorted(reasons.items()))
        by_filter.append({"filter": name, "reasons": counts, "meanings": meanings, "left": left})
    kinds = {
        kind: {
            "written": sum(q.kind == kind for q in written),
            "kept": sum(q.kind == kind for q in kept.values()),
        }
        for kind in sorted({q.kind for q in written})
    }
    cost = None
    if tally is not None:
        cost = {
            name: getattr(tally, name) for name in ("calls", "malformed", "refused", "prompt_tokens", "answer_tokens")
        }
        priced = settings.writer is not None and settings.writer.price_per_million is not None
        cost["money"] = tally.money if priced else None
    return {
        "made_by": BY_TEMPLATES if settings.writer is None else settings.writer.model,
        "passages": len(corpus.passages),
        "left_out": dict(sorted(corpus.left_out.items())),
        "groups": corpus.groups,
        "held_out_groups": sorted(corpus.held_groups),
        "asked_about": {side: len(of) for side, of in corpus.chosen.items()},
        "written": len(written),
        "kept": {side: sides[side] for side in (TRAIN, HELD_OUT)},
        "filters": by_filter,
        "kinds": kinds,
        "cost": cost,
        # A page's answers are about these queries.
        "audit": content_hash([query.id for query in kept.values()], recipe.seed),
    }


def _write_rows(
    run: RunFolder,
    corpus: Corpus,
    written: Sequence[Written],
    kept: Mapping[int, Written],
    rejected: Mapping[int, tuple[str, str, str]],
    made_by: str,
) -> None:
    """queries.jsonl and rejected.jsonl, in the order of ids."""
    rows = [{**query.row(made_by), "side": corpus.side(query.group)} for query in kept.values()]
    write_lines_atomic(run.synthetic_queries, map(json_line, sorted(rows, key=lambda row: str(row["_id"]))))
    others = [
        {
            **written[n].row(made_by),
            "side": corpus.side(written[n].group),
            "filter": name,
            "reason": why,
            "detail": said,
        }
        for n, (name, why, said) in rejected.items()
    ]
    write_lines_atomic(run.synthetic_rejected, map(json_line, sorted(others, key=lambda row: str(row["_id"]))))


def _write_set(
    folder: Path, side: str, corpus: Corpus, texts: Mapping[str, str], kept: Sequence[Written], made_by: str
) -> None:
    """One side as a folder in BEIR layout: its own passages for train, all of them for what is held out."""
    groups = {p.id: p.group for p in corpus.passages}
    own = sorted((q for q in kept if corpus.side(q.group) == side), key=lambda q: q.id)
    write_lines_atomic(folder / "corpus.jsonl", beir_texts(_side_texts(corpus, texts, side), groups))
    write_lines_atomic(folder / "queries.jsonl", (json_line(query.row(made_by)) for query in own))
    qrels = {query.id: dict.fromkeys(relevant(query), 1.0) for query in own}
    write_lines_atomic(folder / "qrels" / f"{OF_SIDE[side]}.tsv", beir_qrels(Collection(side, {}, {}, qrels)))


def _write_card(recipe: Recipe, run: RunFolder, report: Mapping[str, Any]) -> None:
    """synthetic/card.json: what the set is, who wrote it, and under which licences."""
    settings = settings_of(recipe)
    writer = settings.writer
    run.write_json(
        run.synthetic / "card.json",
        {
            "name": f"synthetic-{recipe.name}",
            "description": f"{report['kept'][TRAIN]:,} queries for training and {report['kept'][HELD_OUT]:,} of "
            f"held-out groups, written for {report['passages']:,} passages. Not asked by people: not for a test.",
            "domain": settings.domain,
            "made_by": {
                "stage": "rankwright synthesize",
                "writer": report["made_by"],
                "licence_of_outputs": "none needed" if writer is None else writer.licence or "unknown",
            },
            "documents": [
                {"path": Path(one.path).name, "licence": one.licence or "unknown"} for one in settings.documents
            ],
        },
    )


def _describe(report: Mapping[str, Any]) -> None:
    for row in report["filters"]:
        why = ", ".join(f"{reason} {count:,}" for reason, count in row["reasons"].items())
        console.say(f"  {row['filter']}: {row['left']:,} left" + (f" ({why})" if why else ""))
    kinds = ", ".join(f"{kind} {of['kept']:,} of {of['written']:,}" for kind, of in report["kinds"].items())
    console.say(f"  kept by kind: {kinds}")
    if (cost := report["cost"]) is not None:
        money = "" if cost["money"] is None else f", {cost['money']:,.4g} of money"
        tokens = cost["prompt_tokens"] + cost["answer_tokens"]
        console.say(f"  writer: {counted(cost['calls'], 'call')}, {counted(tokens, 'token')}{money}")
    console.say(
        f"{counted(report['written'], 'query')} written by {report['made_by']}, {report['kept'][TRAIN]:,} kept for "
        f"training and {report['kept'][HELD_OUT]:,} held out (synthetic: no test)"
    )


def _refuse_too_few(
    report: Mapping[str, Any],
    rejected: Mapping[int, tuple[str, str, str]],
    written: Sequence[Written],
    run: RunFolder,
) -> None:
    if not written:
        raise UserError(f"{KEY}: no query could be written: {report['made_by']} found nothing in the passages to ask")
    if len(rejected) > MOST_REJECTED * len(written) or not report["kept"][TRAIN]:
        counts = Counter(reason for _, reason, _ in rejected.values())
        shown = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
        raise UserError(
            f"{KEY}: {len(rejected):,} of {counted(len(written), 'query')} rejected ({shown}): see "
            f"{run.synthetic_rejected}, and change writer, kinds or filters"
        )


def bill(recipe: Recipe) -> str:
    """What a writer costs at most, in words; reads the documents."""
    settings, corpus = settings_of(recipe), corpus_of(recipe)
    chosen = [p for of in corpus.chosen.values() for p in of]
    if settings.writer is None:
        return f"templates write queries for {counted(len(chosen), 'passage')}, which costs nothing"
    order = Order(kinds_of(recipe), settings.domain, settings.per_passage, _examples(settings), recipe.seed)
    letters = sum(len(order.prompt(passage)) for passage in chosen)
    calls, budget = len(chosen), settings.budget
    tokens = letters // LETTERS_A_TOKEN + calls * settings.writer.max_tokens
    prices = settings.writer.price_per_million
    money = ""
    if prices is not None:
        cost = (letters // LETTERS_A_TOKEN * prices.input + calls * settings.writer.max_tokens * prices.output) / 1e6
        money = f", about {min(cost, budget.money or cost):,.4g} of money"
    calls = min(calls, budget.calls or calls)
    return (
        f"{counted(calls, 'call')}, and one more where an answer cannot be read; at most about "
        f"{min(tokens, budget.tokens or tokens):,} tokens{money}"
    )


def check_synthesize(recipe: Recipe) -> list[str]:
    """All faults of synthesize and of the sets that it writes, each as `key: what`."""
    sources = [(f"data.{split}", s) for split in ("train", "dev", "test") for s in _sources(recipe, split)]
    used = {source.synthesized for _, source in sources} - {None}
    if recipe.synthesize is None:
        return [f"{key}: synthesized needs the section synthesize" for key, source in sources if source.synthesized]
    settings, faults = recipe.synthesize, []
    for number, one in enumerate(settings.documents):
        try:
            resources.resolve_path(one.path, root=None)
        except UserError as error:
            faults.append(f"{KEY}.documents.{number}: {error}")
    if not used:
        faults.append(f"{KEY}: no set of the recipe reads the queries: write data.train: [{{synthesized: train}}]")
    for key, source in sources:
        if source.synthesized == HELD_OUT and key == "data.train":
            faults.append(f"{key}: held_out is never trained on: write synthesized: train")
        if source.synthesized == TRAIN and key == "data.dev":
            faults.append(f"{key}: train is trained on: write synthesized: held_out")
        if source.synthesized == HELD_OUT and not settings.held_out.fraction:
            faults.append(f"{key}: held_out: nothing is held out: set {KEY}.held_out.fraction above 0")
    if not isinstance(recipe.data.test, tuple) and TRAIN in used:
        faults.append("data.test: {from: train} would take written queries: give queries that people asked, or none")
    if settings.writer is None:
        for kind in settings.kinds:
            try:
                TEMPLATES[kind]
            except UserError as error:
                faults.append(f"{KEY}.kinds: {error}, or name a writer")
        if settings.examples is not None:
            faults.append(f"{KEY}.examples: only a writer has a style: name one, or leave the examples out")
    else:
        faults += _writer_faults(settings)
    try:
        _filters(recipe)
    except UserError as error:
        faults.append(f"{KEY}.filters: {error}")
    return faults


def _writer_faults(settings: Synthesize) -> list[str]:
    writer, faults = settings.writer, []
    assert writer is not None
    try:
        writer_of(writer)
        _examples(settings)
    except UserError as error:
        faults.append(str(error) if str(error).startswith(KEY) else f"{KEY}.writer.{error}")
    if settings.budget.money is not None and writer.price_per_million is None:
        faults.append(f"{KEY}.writer.price_per_million: missing, and budget.money is counted by it")
    return faults


def _sources(recipe: Recipe, split: str) -> tuple[Any, ...]:
    found = getattr(recipe.data, split)
    return found if isinstance(found, tuple) else ()
