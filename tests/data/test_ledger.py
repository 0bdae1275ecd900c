"""The licence ledger: what each combination of inputs permits, which licence follows from it, and what stops a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml

from rankwright.cli.data import list_sets
from rankwright.common.errors import UserError, UserErrors
from rankwright.data.licences.derived import derive, ledger_json
from rankwright.data.licences.ledger import Input, Roles, Use, faults, make_inputs, warning
from rankwright.data.licences.terms import find_model, find_term, known, read_statements, state, strictest
from rankwright.data.sources import locate_all
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.export import Decision
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.first_stages import ordering_models
from rankwright.training.loss_terms import reads_teacher

QWEN = "Qwen/Qwen3-Reranker-0.6B"
ZERANK = "zeroentropy/zerank-2"
OLD, NEW = "1b0a8f8c70348f5c553f8b534499fe7104ef9a4e", "5eae30d5ee3c6b2df2ef6d723bde45172d761c4c"
FREE = {"hub": "a/free", "licence": "CC-BY-4.0"}
SHARE_ALIKE = {"hub": "a/share", "licence": "CC-BY-SA-4.0"}
NON_COMMERCIAL = {"hub": "a/nc", "licence": "CC-BY-NC-4.0"}
NC_SHARE_ALIKE = {"hub": "a/ncsa", "licence": "CC-BY-NC-SA-4.0"}
UNKNOWN = {"hub": "a/unknown"}
OWN = {"path": "SET", "licence": "own", "name": "ours"}
DECISION = {"by": "A. Lawyer", "why": "a separate contract of 2026-03-01"}
CARD = """\
name: {name}
title: A set
domain: code
description: A set with a card of one's own.
hub: {{id: {hub}}}
splits: {{train: train}}
licence: {{name: {licence}, commercial: "{commercial}", source: its card, date: 2026-11}}
teacher: {teacher}
citation: none
"""
# In place of a card's path in a case -> (name, hub, licence, commercial).
OWN_CARDS = {
    "CARD": ("scored", "a/scored", "MIT", "yes"),
    "ACME": ("acme", "a/acme", "ACME terms 2", "yes"),
    "MARCO": ("marco", "microsoft/ms_marco", "MIT", "yes"),
    "STRICT": ("strict", "a/strict", "MIT", "no"),
    "DOUBT": ("doubt", "a/doubt", "CC-BY-SA-4.0", "unknown"),
}


@dataclass(frozen=True)
class Case:
    """A recipe's inputs, the licence that follows, and what `require: commercial` refuses."""

    name: str
    licence: str
    refused: tuple[str, ...] = ()
    base: str = QWEN
    revision: str | None = None
    train: tuple[dict[str, Any], ...] = (FREE,)
    test: tuple[dict[str, Any], ...] = (FREE,)
    teacher: str | None = None
    decided: tuple[str, ...] = ()
    strict: tuple[str, ...] | None = None
    sections: dict[str, Any] = field(default_factory=dict)


NEMOTRON = "nvidia/llama-nemotron-rerank-1b-v2"
BGE = {"name": "bge", "kind": "bge", "model": "BAAI/bge-reranker-v2-gemma"}
CASES = [
    Case("permissive", "apache-2.0"),
    Case("own data", "other: proprietary", train=(OWN,)),
    Case("share-alike data", "cc-by-sa-4.0", train=(FREE, SHARE_ALIKE)),
    Case("share-alike evaluation data", "apache-2.0", test=(SHARE_ALIKE,)),
    Case("two versions of share-alike", "cc-by-sa-4.0", train=({**FREE, "licence": "cc by sa 3.0"}, SHARE_ALIKE)),
    Case("non-commercial data", "cc-by-nc-4.0", ("nc",), train=(FREE, NON_COMMERCIAL)),
    Case("non-commercial evaluation data only", "apache-2.0", test=(NON_COMMERCIAL,)),
    Case(
        "non-commercial and its share-alike", "cc-by-nc-sa-4.0", ("nc", "ncsa"), train=(NON_COMMERCIAL, NC_SHARE_ALIKE)
    ),
    Case(
        "share-alike beside non-commercial",
        "other: cc-by-nc-4.0-and-cc-by-sa-4.0",
        ("nc",),
        train=(SHARE_ALIKE, NON_COMMERCIAL),
    ),
    Case("dev chooses the weights", "cc-by-nc-4.0", ("nc",), sections={"data": {"dev": [NON_COMMERCIAL]}}),
    Case("unknown data", "unknown", ("unknown",), train=(FREE, UNKNOWN)),
    Case("unknown evaluation data only", "apache-2.0", test=(UNKNOWN,)),
    Case("unknown data, decided", "apache-2.0", train=(FREE, UNKNOWN), decided=("unknown",)),
    Case("unknown data, decided by its hub id", "apache-2.0", train=(UNKNOWN,), decided=("a/unknown",)),
    Case("non-commercial data, decided", "apache-2.0", train=(NON_COMMERCIAL,), decided=("nc",)),
    Case("share-alike stays beside a decision", "cc-by-sa-4.0", train=(SHARE_ALIKE, UNKNOWN), decided=("unknown",)),
    Case("FiQA, decided", "cc-by-sa-4.0", train=({"card": "fiqa"},), decided=("fiqa",)),
    Case("a licence nobody knows", "unknown", ("odd",), train=({"hub": "a/odd", "licence": "ACME terms"},)),
    Case(
        "a card's hub id is recognised", "cc-by-nc-4.0", ("financebench",), train=({"hub": "PatronusAI/financebench"},)
    ),
    Case(
        "a card's hub id, and a tag that says otherwise",
        "cc-by-nc-4.0",
        ("financebench",),
        train=({"hub": "PatronusAI/financebench", "licence": "MIT"},),
    ),
    Case("a card whose sources conflict", "cc-by-nc-sa-3.0", ("nq",), train=({"card": "nq", "split": "test"},)),
    Case(
        "a no in words of its own",
        "other: non-commercial-by-the-readme-of-the-authors",
        ("gooaq",),
        train=(FREE, {"card": "gooaq"}),
    ),
    Case("a no by parts", "other: mixed-by-task", ("legalbench",), train=({"hub": "nguha/legalbench"},)),
    Case("a no in words of its own, decided", "apache-2.0", train=({"card": "gooaq"},), decided=("gooaq",)),
    Case("terms of a card of one's own that we do not know", "other: acme-terms-2", train=({"card": "ACME"},)),
    Case("a card of one's own for a set that we know", "other: ms-marco", ("marco",), train=({"card": "MARCO"},)),
    Case("a no beside a name that permits it", "other: mit-non-commercial", ("strict",), train=({"card": "STRICT"},)),
    Case("share-alike stays beside its own decision", "cc-by-sa-4.0", train=({"card": "DOUBT"},), decided=("doubt",)),
    Case(
        "two Llama licences are two",
        "other: llama-3.2-and-llama-3.3",
        ("a", "b"),
        train=(
            {"hub": "a/a", "licence": "llama3.2"},
            {"hub": "a/b", "licence": "llama3.3"},
        ),
    ),
    Case("C-UDA: models are results", "apache-2.0", train=({"card": "coir-cosqa"},)),
    Case("MS MARCO", "other: ms-marco", ("msmarco",), train=({"hub": "mteb/msmarco"},)),
    Case("Gemma as the base", "gemma", base="google/gemma-3-1b-it"),
    Case("Gemma below the base", "gemma", base="BAAI/bge-reranker-v2-gemma", strict=("BAAI/bge-reranker-v2-gemma",)),
    Case("Gemma as the teacher", "gemma", teacher="google/gemma-2-9b-it", train=({"card": "CARD"},)),
    Case("Gemma as a baseline only", "apache-2.0", sections={"evaluate": {"baselines": [BGE]}}),
    Case("Gemma beside share-alike", "other: cc-by-sa-4.0-and-gemma", base="google/gemma-2-2b", train=(SHARE_ALIKE,)),
    Case("Gemma 4 was not checked", "unknown", ("google/gemma-4-4b",), base="google/gemma-4-4b"),
    Case("a permissive teacher", "apache-2.0", teacher="Qwen/Qwen3-Reranker-8B", train=({"card": "CARD"},)),
    Case(
        "a non-commercial teacher",
        "cc-by-nc-4.0",
        ("teacher of scored",),
        teacher="jinaai/jina-reranker-v3",
        train=({"card": "CARD"},),
    ),
    Case("a teacher nobody names", "unknown", ("teacher of free",), teacher="", train=(FREE,)),
    Case("a teacher, decided", "apache-2.0", teacher="", train=(FREE,), decided=("teacher of free",)),
    Case(
        "a teacher trained on non-commercial data",
        "apache-2.0",
        teacher="BAAI/bge-reranker-v2-m3",
        train=({"card": "CARD"},),
        strict=("teacher of scored",),
    ),
    Case("zerank before it was relicensed", "cc-by-nc-4.0", (ZERANK,), base=ZERANK, revision=OLD),
    Case("zerank after it was relicensed", "apache-2.0", base=ZERANK, revision=NEW),
    Case("zerank, a short revision", "apache-2.0", base=ZERANK, revision=NEW[:12]),
    Case("zerank without a revision", "unknown", (ZERANK,), base=ZERANK),
    Case("zerank at a revision nobody speaks of", "unknown", (ZERANK,), base=ZERANK, revision="a" * 40),
    Case("zerank, decided", "other: see-decisions", base=ZERANK, decided=(ZERANK,)),
    Case("a base nobody knows", "unknown", ("a/base",), base="a/base"),
    Case("terms nobody read", "other: llama-3.2-and-nvidia-open-model", (NEMOTRON,), base=NEMOTRON),
    Case(
        "a dense model trained on MS MARCO only orders", "apache-2.0", sections={"dense": {"model": "cross-encoder/x"}}
    ),
    Case("the embedded base, data that ask for attribution", "cc-by-4.0", base="fixtures/tiny-base"),
    Case(
        "the embedded base and fixtures", "cc0-1.0", base="fixtures/tiny-base", train=({"path": "fixtures/code/train"},)
    ),
]


def roles_of(recipe: Recipe) -> Roles:
    return Roles(reads_teacher(recipe.loss), ordering_models(recipe))


def inputs_of(case: Case, folder: Path) -> tuple[Recipe, list[Input]]:
    (folder / "SET").mkdir()
    for name, hub, licence, commercial in OWN_CARDS.values():
        card = CARD.format(name=name, hub=hub, licence=licence, commercial=commercial, teacher=case.teacher or "null")
        (folder / f"{name}.yaml").write_text(card, encoding="utf-8")

    def sources(entries: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        text = json.dumps(entries).replace("SET", str(folder / "SET"))
        for word, (name, *_) in OWN_CARDS.items():
            text = text.replace(word, str(folder / f"{name}.yaml"))
        found: list[dict[str, Any]] = json.loads(text)
        return found

    data = {"train": sources(case.train), "test": sources(case.test), **case.sections.get("data", {})}
    recipe = Recipe.model_validate_json(
        json.dumps(
            {
                "name": "case",
                "model": {"base": case.base, "revision": case.revision},
                "licence": {"decisions": [{"input": name, **DECISION} for name in case.decided]},
                **case.sections,
                "data": data,
            }
        )
    )
    located = locate_all(recipe.data)
    teachers = [] if case.teacher is None else [entry.name for entry in located["train"]]
    return recipe, make_inputs(recipe, located, roles_of(recipe), teachers)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Case, tmp_path: Path) -> None:
    recipe, inputs = inputs_of(case, tmp_path)
    derived = derive(inputs)
    assert (f"{derived.hub}: {derived.name}" if derived.name else derived.hub) == case.licence, derived
    assert tuple(one.name for one in inputs if one.refused_by("commercial")) == case.refused
    strict = case.refused if case.strict is None else case.strict
    assert tuple(one.name for one in inputs if one.refused_by("commercial-strict")) == strict
    assert [one.name for one in inputs if one.refused_by(None)] == []
    # The file says the same, and every statement of a table has a source and a date.
    ledger = json.loads(json.dumps(ledger_json(inputs, recipe.licence)))
    assert [one["input"] for one in ledger["inputs"]] == [one.name for one in inputs]
    assert all(s["source"] for one in ledger["inputs"] for s in one["statements"])
    if case.decided:
        (one,) = (one for one in ledger["inputs"] if one["decision"])
        assert one["decision"]["why"] == DECISION["why"]
        assert one["commercial"] in ("unknown, decided", "no, overridden")
        assert any("overridden by A. Lawyer" in sentence for sentence in ledger["licence"]["why"])


def test_attribution_lists_what_the_weights_are_made_from(tmp_path: Path) -> None:
    case = Case("", "", train=(SHARE_ALIKE, {"card": "coir-apps"}), test=({"card": "finqa"},))
    lines = derive(inputs_of(case, tmp_path)[1]).attribution
    assert [line.split(":")[0] for line in lines] == [QWEN, "share", "coir-apps"]
    assert "Hendrycks" in lines[2]


def test_uses_of_one_input_are_collected(tmp_path: Path) -> None:
    sections = {"dense": {"model": QWEN}, "evaluate": {"first_stage": "fusion"}}
    _, inputs = inputs_of(Case("", "", sections=sections), tmp_path)
    assert [(one.name, one.kind, one.uses) for one in inputs] == [
        (QWEN, "base", ("base",)),
        ("free", "data set", ("train", "dev", "evaluate")),
        (QWEN, "dense model", ("mine", "evaluate")),
    ]


ROCKET = {"name": "rocket", "kind": "cross-encoder", "model": "jinaai/jina-reranker-v3"}


def test_the_base_of_a_teacher_that_is_an_adapter_counts_as_well(tmp_path: Path) -> None:
    teacher = {"name": "big", "kind": "rankwright", "model": "me/adapter", "options": {"base": ROCKET["model"]}}
    sections = {"mine": {"teacher": teacher}, "loss": {"plus": [{"name": "kl_distil", "weight": 0.5}]}}
    found = {one.name: one.uses for one in inputs_of(Case("", "", sections=sections), tmp_path)[1]}
    assert found["me/adapter"] == found[ROCKET["model"]] == ("distil",)


def test_scores_of_sets_that_nothing_reads_are_not_distilled_from(tmp_path: Path) -> None:
    """Those of mine.teacher are trained on in their place: see sampling.GroupSource."""
    for folder in ("sets", "own"):
        (tmp_path / folder).mkdir()
    case = Case("", "", teacher="", train=(FREE,))
    assert "teacher of free" in {one.name for one in inputs_of(case, tmp_path / "sets")[1]}
    own = replace(case, sections={"mine": {"teacher": ROCKET}})
    assert {one.name for one in inputs_of(own, tmp_path / "own")[1] if one.kind == "teacher"} == {ROCKET["model"]}


@pytest.mark.parametrize(
    ("filters", "plus", "use"),
    [
        ({}, [], "mine"),
        ({"teacher": {"margin": 1.0}}, [], "mine"),
        ({"teacher": {"above": "promote"}}, [], "distil"),
        ({"teacher": {"above": "soft"}}, [{"name": "kl_distil", "weight": 0.5}], "distil"),
        ({"teacher": {"margin": 1.0}}, [{"name": "kl_distil", "weight": 0.5}], "distil"),
    ],
)
def test_the_teacher_of_mining(tmp_path: Path, filters: dict[str, Any], plus: list[Any], use: str) -> None:
    sections = {"mine": {"teacher": ROCKET, "filters": filters}, "loss": {"plus": plus}}
    sections["evaluate"] = {"baselines": [ROCKET]}
    recipe, inputs = inputs_of(Case("", "", sections=sections), tmp_path)
    found = {one.kind: one for one in inputs if one.name == ROCKET["model"]}
    assert {kind: one.uses for kind, one in found.items()} == {"teacher": (use,), "baseline": ("evaluate",)}
    rule = recipe.licence.model_copy(update={"require": "commercial"})
    refused = [line for line in faults(inputs, rule) if ROCKET["model"] in line]
    assert len(refused) == (use == "distil") and all("(distilled from)" in line for line in refused)
    decided = rule.model_copy(update={"decisions": [Decision(input=ROCKET["model"], **DECISION)]})
    _, inputs = (
        recipe,
        make_inputs(recipe.model_copy(update={"licence": decided}), locate_all(recipe.data), roles_of(recipe)),
    )
    assert not [line for line in faults(inputs, decided) if ROCKET["model"] in line]


def test_a_dense_model_that_mines_orders_candidates(tmp_path: Path) -> None:
    sections = {"dense": {"model": QWEN}, "mine": {"retriever": "dense"}}
    _, inputs = inputs_of(Case("", "", sections=sections), tmp_path)
    assert [one.uses for one in inputs if one.kind == "dense model"] == [("mine", "evaluate")]


def rules(tmp_path: Path, case: Case, **licence: Any) -> list[str]:
    recipe, inputs = inputs_of(case, tmp_path)
    rule = recipe.model_copy(update={"licence": recipe.licence.model_copy(update=licence)}).licence
    return faults(inputs, rule, ["free"])


def test_a_refusal_names_input_rule_and_way_out(tmp_path: Path) -> None:
    (line,) = rules(tmp_path, Case("", "", train=({"hub": "BeIR/fiqa"},)), require="commercial")
    assert line.startswith(
        "licence.require: commercial: data set 'fiqa' (trained on, chooses the weights): licence not "
    )
    assert "commercial use unknown" in line and "mteb" in line and "2026-11" in line
    assert line.endswith("or state who decided and why: licence.decisions=[{input: fiqa, by: NAME, why: REASON}]")


def test_a_relicensed_model_is_asked_for_its_revision(tmp_path: Path) -> None:
    (line,) = rules(tmp_path, Case("", "", base=ZERANK), require="commercial")
    assert "model.base 'zeroentropy/zerank-2'" in line
    assert f"name a revision whose licence is known ({OLD} is CC-BY-NC-4.0, {NEW} is Apache-2.0)" in line


def test_a_mistyped_licence_is_near_a_known_one(tmp_path: Path) -> None:
    (line,) = rules(tmp_path, Case("", "", train=({**FREE, "licence": "CC-BY-40"},)), require="commercial")
    assert "did you mean 'CC-BY-4.0'?" in line


def test_mistakes_of_decisions(tmp_path: Path) -> None:
    case = Case("", "", train=(UNKNOWN,), decided=("unknwon", "unknown", "unknown", "teacher of free"))
    lines = rules(tmp_path, case)
    assert lines == [
        "licence.decisions.0.input: unknown input 'unknwon', did you mean 'unknown'? "
        f"(known: {QWEN}, a/free, a/unknown, free, teacher of free, unknown)",
        "licence.decisions.2.input: 'unknown' is also that of licence.decisions.1: keep one",
    ]


def test_two_decisions_about_one_input_under_two_of_its_names(tmp_path: Path) -> None:
    (line,) = rules(tmp_path, Case("", "", train=(UNKNOWN,), decided=("unknown", "a/unknown")))
    assert line.startswith("licence.decisions.1.input: 'a/unknown' is 'unknown', that of licence.decisions.0: keep one")


def test_without_a_rule_there_is_one_line_of_warning(tmp_path: Path) -> None:
    recipe, inputs = inputs_of(Case("", "", train=(NON_COMMERCIAL, UNKNOWN), test=(NC_SHARE_ALIKE,)), tmp_path)
    line = warning(inputs, recipe.licence)
    assert line is not None and "commercial use: nc (no: CC-BY-NC-4.0); sources" in line and "ncsa" not in line
    assert line.endswith(". Also, no licence is stated for unknown: write `licence: NAME` there")
    assert faults(inputs, recipe.licence) == []


def of(name: str, kind: str, use: Use, licence: str | None) -> Input:
    return Input(name, kind, f"hub {name}", None, (use,), known([state(licence, "x")] if licence else []))


BASES = ("Apache-2.0", "CC0-1.0", "MIT", "CC-BY-NC-4.0")
# The licences of the training sets -> the licence of the weights, for each of BASES.
COMBINED: dict[tuple[str | None, ...], tuple[str, str, str, str]] = {
    ("own",): (*["other: proprietary"] * 3, "other: cc-by-nc-4.0-and-proprietary"),
    (None,): ("unknown",) * 4,
    ("own", None): ("unknown",) * 4,
    ("CC0-1.0",): ("apache-2.0", "cc0-1.0", "mit", "cc-by-nc-4.0"),
    ("CC-BY-4.0",): ("apache-2.0", "cc-by-4.0", "mit", "cc-by-nc-4.0"),
    ("CC-BY-NC-4.0",): ("cc-by-nc-4.0",) * 4,
    ("CC-BY-SA-4.0",): (*["cc-by-sa-4.0"] * 3, "other: cc-by-nc-4.0-and-cc-by-sa-4.0"),
    ("own", "CC-BY-4.0"): (*["other: proprietary"] * 3, "other: cc-by-nc-4.0-and-proprietary"),
    ("own", "CC-BY-NC-4.0"): ("other: cc-by-nc-4.0-and-proprietary",) * 4,
    ("own", "CC-BY-SA-4.0"): (
        *["other: cc-by-sa-4.0-and-proprietary"] * 3,
        "other: cc-by-nc-4.0-and-cc-by-sa-4.0-and-proprietary",
    ),
}


@pytest.mark.parametrize(("sets", "expected"), COMBINED.items())
def test_a_base_beside_training_sets(sets: tuple[str | None, ...], expected: tuple[str, ...]) -> None:
    for base, licence in zip(BASES, expected, strict=True):
        found = derive([of("base", "base", "base", base), *(of(str(s), "data set", "train", s) for s in sets)])
        assert (f"other: {found.name}" if found.hub == "other" else found.hub) == licence, (base, sets)
        assert ("CC-BY-4.0" in sets) == any("CC-BY-4.0: CC-BY-4.0" in line for line in found.attribution)
        contradict = "own" in sets and "CC-BY-SA-4.0" in sets
        assert contradict == any("contradict each other" in sentence for sentence in found.why)


def test_an_own_teacher_or_test_set_leaves_the_licence_of_the_base() -> None:
    uses: list[tuple[str, Use]] = [("teacher", "distil"), ("data set", "evaluate"), ("data set", "mine")]
    for kind, use in uses:
        found = derive([of("base", "base", "base", "MIT"), of("ours", kind, use, "own")])
        assert (found.hub, found.name) == ("mit", None)


def test_a_local_set_without_a_licence_is_a_note(tmp_path: Path) -> None:
    mine = {"path": "SET", "name": "ratings"}
    recipe, inputs = inputs_of(Case("", "", train=(mine,)), tmp_path)
    assert warning(inputs, recipe.licence) == (
        "no licence is stated for ratings: if the texts are yours, write `licence: own` there"
    )
    (tmp_path / "other").mkdir()
    recipe, inputs = inputs_of(Case("", "", train=(mine, NON_COMMERCIAL)), tmp_path / "other")
    line = warning(inputs, recipe.licence)
    assert line is not None and line.startswith("WARNING: not cleared for commercial use: nc (no: CC-BY-NC-4.0); ")
    assert line.endswith(". Also, no licence is stated for ratings: if the texts are yours, write `licence: own` there")


def test_names_of_licences() -> None:
    for name in ("apache-2.0", "Apache 2.0", "APACHE_LICENSE_2.0", "Apache"):
        term = find_term(name)
        assert term is not None and term.id == "Apache-2.0", name
    assert find_term("Apache-3.0") is None
    assert strictest([]) == "unknown" and strictest(["yes", "unknown", "no"]) == "no"
    # A licence that we know is not read more generously than it is.
    assert state("cc-by-nc-4.0", "x", commercial="yes").commercial == "no"
    assert known([state("MIT", "x"), state("CC-BY-NC-4.0", "y")]).commercial == "no"


def test_models_by_pattern() -> None:
    assert find_model("nobody/nothing", None) is None
    found = find_model("qwen/qwen3-reranker-0.6b", None)
    assert found is not None and found.licence == "Apache-2.0"
    small = find_model("zeroentropy/zerank-1-small", None)
    assert small is not None and small.commercial == "unknown" and small.conflicts


def test_statements_of_local_files(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for matter, expected in {
        "license: apache-2.0": ["Apache-2.0"],
        "license: [mit, cc-by-nc-4.0]": ["MIT", "CC-BY-NC-4.0"],
        "license: other\nlicense_name: gemma": ["Gemma"],
        "license: other\nlicense_name: acme": ["acme"],
        "title: x": [],
        "license: [": [],
        "license: {a: b}": [],
    }.items():
        readme.write_text(f"---\n{matter}\n---\n# A model\n", encoding="utf-8")
        assert [s.licence for s in read_statements(tmp_path)] == expected, matter
    readme.write_bytes(b"\xff\xfe---")
    (tmp_path / "SOURCE.json").write_text('{"licence": "CC-BY-4.0 (dataset, README); code MIT"}', encoding="utf-8")
    (tmp_path / "train").mkdir()
    assert [s.licence for s in read_statements(tmp_path / "train")] == ["CC-BY-4.0"]
    (tmp_path / "train" / "rows.jsonl").write_text("", encoding="utf-8")
    assert read_statements(tmp_path / "train" / "rows.jsonl") == []
    for broken in ("{", "[]", '{"licence": 3}'):
        (tmp_path / "SOURCE.json").write_text(broken, encoding="utf-8")
        assert read_statements(tmp_path) == []


# The command line


def licensed(tmp_path: Path, base: Path, **licence: Any) -> Path:
    """A job whose base states Apache-2.0 and whose training set states nothing."""
    own = tmp_path / "base"
    own.mkdir()
    for file in base.iterdir():
        (own / file.name).symlink_to(file)
    (own / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return jobs.job(tmp_path / "job", own, licence=licence, train={"max_steps": 2, "evaluate_every": 2})


def test_an_unknown_set_stops_before_anything_runs(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = licensed(tmp_path, tiny_qwen3, require="commercial")
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: licence.require: commercial: data set 'one' (trained on, chooses the weights): ")
    assert not (tmp_path / "job" / "run").exists()


def test_check_and_export_are_stopped_beside_all_other_mistakes(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = licensed(tmp_path, tiny_qwen3, require="commercial")
    overrides = ["loss.name=listwise_softmaxx", "licence.decisions=[{input: on, by: x, why: y}]"]
    with pytest.raises(UserErrors) as caught:
        Pipeline(load_recipe(str(recipe), overrides)).check()
    assert len(caught.value.messages) == 3 and "did you mean 'one'" in str(caught.value)
    # Also where somebody comes in by another door than the commands.
    with pytest.raises(UserErrors, match="data set 'one'"):
        Pipeline(load_recipe(str(recipe), [])).ledger()


@pytest.mark.slow
def test_a_decision_is_kept_in_the_ledger_and_in_the_model_card(tmp_path: Path, tiny_qwen3: Path) -> None:
    decision = {"input": "one", "by": "A. Lawyer", "why": "bought in 2026"}
    recipe = licensed(tmp_path, tiny_qwen3, require="commercial", decisions=[decision])
    done = jobs.rankwright("run", recipe, "export.targets=[hf]")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "job" / "run"
    ledger = json.loads((run / "licences.json").read_text(encoding="utf-8"))
    assert ledger["require"] == "commercial" and ledger["licence"]["hub"] == "apache-2.0"
    assert {one["input"]: one["decision"] for one in ledger["inputs"]} == {
        "base": None,
        "one": decision,
        "held-out": None,
    }
    card = (run / "export" / "hf" / "README.md").read_text(encoding="utf-8")
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["license"] == "apache-2.0" and "license_name" not in matter
    assert "- one: bought in 2026 (A. Lawyer)" in card and "overridden by A. Lawyer" in card
    assert "| held-out (data set, a folder) | evaluate |" in card and str(tmp_path) not in card
    assert "bought in 2026" in (run / "report.html").read_text(encoding="utf-8")


def test_scores_of_an_unknown_teacher_stop_before_the_first_step(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = licensed(tmp_path, tiny_qwen3, require="commercial")
    rows = [
        {
            "query": f"what is {word}",
            "positives": [f"{word} is a thing"],
            "negatives": ["nothing"],
            "positive_scores": [3],
        }
        for word in jobs.TOPICS[:12]
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "job" / "sets" / "scored.jsonl").write_text(text, encoding="utf-8")
    entry = "data.train=[{path: scored.jsonl, licence: own}]"
    pipeline = Pipeline(load_recipe(str(recipe), [entry]))
    pipeline.start()
    with pytest.raises(UserErrors, match=r"teacher 'teacher of scored' \(distilled from\)"):
        pipeline.train()
    assert not (tmp_path / "job" / "run" / "negatives.jsonl").exists()
    decided = "licence.decisions=[{input: teacher of scored, by: me, why: our own model}]"
    pipeline = Pipeline(load_recipe(str(recipe), [entry, decided]))
    pipeline.start()
    pipeline.mine()
    ledger = json.loads((tmp_path / "job" / "run" / "licences.json").read_text(encoding="utf-8"))
    assert [one["use"] for one in ledger["inputs"] if one["decision"]] == [["distil"]]


def test_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    list_sets(domain="finance", commercial=True)
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0] for line in lines if line.strip().startswith(("tatqa", "finqa", "fiqa", "obliqa"))}
    assert shown == {"tatqa", "finqa"}
    assert any(line.startswith("left out: ") and "other domains" in line for line in lines)
    assert any("fiqa (unknown)" in line and "financebench (no)" in line for line in lines)
    with pytest.raises(UserError, match="did you mean 'finance'"):
        list_sets(domain="finanse")


def test_data_list_on_the_command_line() -> None:
    done = jobs.rankwright("data", "list")
    assert done.returncode == 0, done.stderr
    found = {line.split()[0] for line in done.stdout.splitlines()}
    assert {path.stem for path in jobs.REPOSITORY.glob("data/*.yaml")} <= found
