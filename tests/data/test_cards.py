"""Every shipped card loads, states its licence and agrees with data/README.md; faults are file:line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.resources import data_dir
from rankwright.data.cards import Card, cards_at, list_cards, load_card
from rankwright.data.licences.terms import find_term, state, strictest

SETS = Path(__file__).resolve().parents[3] / "shared" / "data"

GOOD = """\
name: mine
title: Mine
domain: code
description: A set.
path: code/mine
splits: {train: train}
licence: {name: MIT, commercial: "yes", source: LICENSE, date: 2026-11-25}
citation: none
"""


def faults(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserErrors) as caught:
        load_card(str(tmp_path / "mine.yaml"))
    return [m.removeprefix(f"{tmp_path}/") for m in caught.value.messages]


def test_cards_are_found_by_name() -> None:
    names = [card.name for card in list_cards()]
    assert {"tatqa", "obliqa", "cosqa", "nl2bash", "fiqa", "finqa", "coir-cosqa", "coir-apps"} <= set(names)
    assert names == sorted(names)
    assert load_card("tatqa").path == "finance/tatqa"


def test_unknown_card() -> None:
    with pytest.raises(
        UserError, match=r"unknown card 'tatq', did you mean 'tatqa'\? \(known: aila-casedocs, .* more\)$"
    ):
        load_card("tatq")


@pytest.mark.parametrize("card", list_cards(), ids=lambda card: card.name)
def test_card_is_fit_to_ship(card: Card) -> None:
    text = (data_dir() / f"{card.name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "first line says what it is for"
    pinned = card.hub is None or re.fullmatch("[0-9a-f]{40}", card.hub.revision or "")
    assert pinned or "no revision is pinned" in card.notes.lower(), (
        "a revision is pinned, or the notes say that none is"
    )
    if card.hub is not None and card.hub.layout == "rows":
        ours = {"query", "query_id", "positives", "negatives", "positive_scores", "negative_scores", "weight", "group"}
        assert card.hub.columns.keys() <= ours and {"query", "positives"} <= card.hub.columns.keys()
        assert "live hub" in card.notes
    assert card.path is None or not Path(card.path).is_absolute()
    # A reader with another YAML parser must see the same: a bare yes or date would be no text there.
    licence = yaml.safe_load(text)["licence"]
    assert licence == card.licence.model_dump(mode="json", exclude_unset=True)
    for said in (card.licence, *card.licence.others):
        term = find_term(said.name)
        assert term is None or state(said.name, "", commercial=said.commercial).commercial == said.commercial, (
            "no statement is more generous than the licence that it names"
        )
        assert term is not None or said.commercial != "yes", "what permits commercial use is in licences/terms.yaml"


def test_readme_table_agrees_with_the_cards() -> None:
    text = (data_dir() / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    expected = [
        [
            f"`{card.name}`",
            card.domain,
            f"hub: {card.hub.id}" if card.hub else f"`data.root`/{card.path}",
            ", ".join(card.splits),
            card.known.licence,
            card.known.commercial,
        ]
        for card in list_cards()
    ]
    assert sorted(rows) == sorted(expected)


def test_sets_of_the_licence_list_are_known_by_their_hub_ids() -> None:
    expected = {
        "PatronusAI/financebench": "no",
        "BeIR/fiqa": "unknown",
        "next-tat/TAT-QA": "yes",
        "beir/msmarco": "no",
        "sentence-transformers/msmarco-bm25": "no",
        "nixiesearch/msmarco-10k": "no",
        "kiddothe2b/contract-nli": "no",
        "CoIR-Retrieval/cosqa": "yes",
        "CoIR-Retrieval/stackoverflow-qa": "yes",
        "nomic-ai/cornstack-go-v1": "yes",
        "flax-sentence-embeddings/stackexchange_title_body_jsonl": "no",
        "isaacus/gdpr-holdings-retrieval": "unknown",
        "reglab/housing_qa": "yes",
        "cfli/bge-full-data": "no",
        "allenai/gooaq": "no",
        "takala/financial_phrasebank": "no",
        "vidore/vidore_v3_finance_en": "yes",
    }
    found = {hub: strictest(card.known.commercial for card in cards_at(hub)) for hub in expected}
    assert found == expected
    assert cards_at("nobody/nothing") == []


def test_the_strictest_of_conflicting_statements_counts() -> None:
    nq = load_card("nq").known
    assert (nq.commercial, nq.conflicts, nq.licence) == ("no", True, "CC-BY-SA-3.0 and CC-BY-NC-SA-3.0")
    assert load_card("contractnli").known.commercial == "yes" and not load_card("contractnli").known.conflicts


@pytest.mark.skipif(not SETS.is_dir(), reason="the offline sets are not beside the checkout")
@pytest.mark.parametrize("name", ["tatqa", "obliqa", "cosqa", "nl2bash"])
def test_offline_card_agrees_with_the_files(name: str) -> None:
    card = load_card(name)
    assert card.path is not None
    folder = SETS / card.path
    source = json.loads((folder / "SOURCE.json").read_text(encoding="utf-8"))
    assert source["commit"] in card.licence.source + card.notes
    counts = [
        source["stats"]["corpus"],
        *(source["stats"]["splits"][s]["queries"] for s in card.splits.values()),
    ]
    assert [n for n in counts if f"{n:,}" not in card.description] == []
    assert all((folder / f"qrels_{upstream}.tsv").is_file() for upstream in card.splits.values())


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD, encoding="utf-8")
    card = load_card(str(tmp_path / "mine.yaml"))
    assert card.licence.date == "2026-11-25"
    assert card.upstream_split("train") == "train"
    with pytest.raises(UserError, match=r"card 'mine': unknown split 'trian', did you mean 'train'\?"):
        card.upstream_split("trian")


def test_commercial_without_quotes_is_still_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD.replace('"yes"', "yes"), encoding="utf-8")
    assert load_card(str(tmp_path / "mine.yaml")).licence.commercial == "yes"


FAULTS = [
    ('"yes"', "true", "7: licence.commercial: must be 'yes', 'no' or 'unknown', found true"),
    ("domain: code", "domain: codes", "found text 'codes', did you mean 'code'?"),
    ("path: code/mine\n", "", "1: give exactly one of path, hub"),
    ("path: code", "hub: {id: a/b}\npath: code", "1: give exactly one of path, hub"),
    ("path: code/mine", "hub: {id: abc}", "5: hub.id: must match ^[\\w.-]+/[\\w.-]+$, found text 'abc'"),
    (
        "{train: train}",
        "{trian: train}",
        "6: splits.trian: must be 'train', 'dev' or 'test', found text 'trian'",
    ),
    ("{train: train}", "{}", "6: splits: must hold at least 1, found a mapping"),
    ("date: 2026-11-25", "date: last year", "7: licence.date: must match "),
    ("citation", "cititation", "8: cititation: unknown key, did you mean 'citation'?"),
    ("name: mine", "name: yours", "1: name: must be 'mine', as the file is called"),
    ("domain: code\n", "", "1: domain: missing, must be given"),
]


@pytest.mark.parametrize(("old", "new", "message"), FAULTS)
def test_faults(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in "\n".join(faults(tmp_path, GOOD.replace(old, new, 1)))
