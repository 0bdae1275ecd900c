"""The report as a reader's program sees it: parsed, complete, equal to the files, closed to the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE, QUERIES, collection, make_report_run

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Difference, paired_difference
from rankwright.evaluation import compare as comparing
from rankwright.evaluation.results import ALL, read_results, rows_of, verdict
from rankwright.pipeline.evaluate import write_attributes
from rankwright.report.cases import SHOWN, cut, read_cases
from rankwright.report.gather import changed_keys, read_recipe
from rankwright.report.page import write_report
from rankwright.report.plots import MOST_POINTS, curve, differences, running_mean, thinned
from rankwright.report.side_by_side import differing_keys, write_comparison
from rankwright.retrieval.candidates import ranked
from rankwright.retrieval.first_stages import stage_label
from rankwright.retrieval.run_file import read_trec_run

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "line", "circle", "wbr"}


class Page(HTMLParser):
    """tables: id -> rows of cell texts; tags, attributes, all text, what is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self._rows: list[list[str]] | None = None
        self._cell = False
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag == "table":
            self._rows = None
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if self._cell and self._rows:
            self._rows[-1][-1] += data.strip()

    def row(self, table: str, *cells: str) -> list[str]:
        """The only row of a table that starts with these cells."""
        (found,) = [row for row in self.tables[table] if row[: len(cells)] == list(cells)]
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """A finished run; do not write into it."""
    folder = make_report_run(tmp_path_factory.mktemp("runs") / "run", tiny_qwen3)
    write_attributes(read_recipe(folder), RunFolder(folder))
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report(run))


def test_names_of_sets_do_not_break_at_their_hyphens(page: Page) -> None:
    rules = re.findall(r":is\(([^)]*)\) td:(first-child|nth-child\(-n\+2\)) { white-space: nowrap; }", page.source)
    columns = {table.strip().removeprefix("#"): kind for tables, kind in rules for table in tables.split(",")}
    for name, rows in page.tables.items():
        for place, title in enumerate(rows[0] if rows else ()):
            if title in ("set", "test set", "held out", "train"):
                assert name in columns and place <= (columns[name] != "first-child"), name
    assert len(columns) > 5


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def metrics_of(run: Path, name: str, system: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "eval" / name / system / "metrics.json").read_text())
    return found


def values_of(run: Path, name: str, system: str) -> dict[str, float]:
    rows = map(json.loads, (run / "eval" / name / system / "per_query.jsonl").read_text().splitlines())
    return {f"{name}/{row['query_id']}": row["nDCG@10"] for row in rows}


def interval(d: Difference) -> str:
    text = f"{d.mean:+.3f} [{d.low:+.3f},\N{NO-BREAK SPACE}{d.high:+.3f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def test_results_are_those_of_the_files(run: Path, page: Page) -> None:
    systems = ["bm25", "dense", "base", "tuned", "other"]
    head = page.tables["results-table"][0]
    # The columns that a phone shows come first.
    assert head[1:3] == ["tuned \N{MINUS SIGN} first stage [95 %]", "tuned \N{MINUS SIGN} base [95 %]"]
    assert head[3:] == ["BM25", "dense", "base", "tuned", "other", "queries"]
    for name in ("one", "two"):
        row = page.row("results-table", name)
        assert row[8] == str(len(QUERIES))
        assert row[3:8] == [f"{metrics_of(run, name, s)['nDCG@10']:.3f}" for s in systems]
        base, first, tuned = (values_of(run, name, s) for s in ("base", "bm25", "tuned"))
        assert row[1:3] == [interval(paired_difference(first, tuned)), interval(paired_difference(base, tuned))]
        for system, text in zip(systems, head[3:8], strict=True):
            metrics = metrics_of(run, name, system)
            assert page.row("measures-table", name, text)[2:] == [f"{metrics[m]:.3f}" for m in ("nDCG@10", "RR")]
    pooled = {s: {**values_of(run, "one", s), **values_of(run, "two", s)} for s in systems}
    row = page.row("results-table", ALL)
    assert row[8] == "48" and row[3:8] == [f"{sum(v.values()) / 48:.3f}" for v in pooled.values()]
    assert row[2] == interval(paired_difference(pooled["base"], pooled["tuned"])) and row[2] in page.text
    assert page.row("lists-table", "one", "tuned")[2:] == [
        *("BM25", "9", "0.875", "24", "1", "0.0\N{NO-BREAK SPACE}%", "207", "4", "0", "1234"),
    ]
    assert page.row("lists-table", "two", "dense")[2:5] == ["dense", "9", "0.875"]


def test_the_first_screen_has_the_sentences_of_the_command_line(run: Path, page: Page) -> None:
    rows, _ = read_results(run, read_recipe(run), ["one", "two"], None)
    sentences = verdict(rows_of(rows)).sentences
    assert len(sentences) > 1 and "".join(sentences) in page.text.replace("\n", "")


def test_the_other_parts_are_those_of_the_files(run: Path, page: Page) -> None:
    assert page.row("calibration-table", "one") == [
        *("one", "24", "207", "40", "0.375", "0.094", "-1.00, 0.50, 2.00", "-3.00, -1.50, 0.25"),
    ]
    assert page.row("thresholds-table", "0.5") == ["0.5", "0.12", "0.625", "0.500", "0.556", "0.125"]
    assert page.row("gate-table", "min_gain")[1:5] == ["+0.300", "+0.200", "+0.000", "yes"]
    assert page.row("gate-table", "guard two")[1:] == [
        *("\N{MINUS SIGN}0.300", "\N{EN DASH}", "\N{MINUS SIGN}0.010", "NO", "two is worse"),
    ]
    assert page.row("speed-table", "tuned") == ["tuned", "141", "203", "1,139", "812", "9", "20", "cpu", "2", "fp32"]
    assert page.row("combine-table", "5") == ["5", "0.500", "0.000", "0.250", "yes"]
    assert "0.15 z(tuned) + 0.85 z(BM25), over its first 5 documents" in page.text
    curve = "nDCG@10 on dev by the weight of the reranker, from 0.4900 at 0 to 0.1789 at 1"
    assert ("svg", "aria-label", curve) in page.attributes
    assert page.row("data-table", "test", "one")[2:4] == ["12", "24"]
    assert page.row("overlap-table", "test one") == ["test one", "tatqa", "0", "0", "1", "4"]
    licence = page.row("licences-table", "two")
    assert licence[1:5] == ["evaluate", "card obliqa", "Apache-2.0", "yes"] and "RegNLP/ObliQA" in licence[5]
    assert page.row("licences-table", "one")[2:5] == ["path sets/one", "unknown", "unknown"]
    assert page.row("licences-table", "tatqa")[1] == "train, dev"
    assert "has no settled licence" in page.text
    assert page.row("filters-table", "margin")[1:] == ["5", "40"]
    assert page.row("estimates-table", "retrieved and judged documents that are relevant")[1].startswith("12.5 % [0.0,")
    assert "Negatives in a pool: 2 to 2, median 2." in page.text
    assert page.row("mining-table", "kept")[1] == "40" and page.row("pools-table", "BM25")[2] == "1"
    assert page.row("parity-table", "hf", "transformers")[2:] == ["35", "4.5e-07", "5.0e-06", "4.0e-08"]
    assert page.row("changed-table", "prompt.max_tokens") == ["prompt.max_tokens", "120", "512"]
    # As a recipe writes it, not as Python does.
    assert page.row("changed-table", "evaluate.measures")[1] == '["nDCG@10", "RR"]'
    assert page.row("stages-table", "mine")[1] == "1.2"
    # Pooled first, then each set alone.
    assert len([name for name in page.tables if name.startswith("slices-")]) == 3
    assert ("one", "24") in [(row[0], row[4]) for row in page.tables["slices-1"] if len(row) > 4]
    assert any(row == ["relevant documents seen in training"] for row in page.tables["slices-2"])


def test_the_page_is_whole_and_closed_to_the_network(page: Page) -> None:
    assert not page.open
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert [i for i, count in ids.items() if count > 1] == []
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert references and all(value.startswith("#") and value[1:] in ids for value in references)
    assert "@import" not in page.source
    assert all(place.startswith("#") and place[1:] in ids for place in re.findall(r"url\(([^)]*)\)", page.source))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.tags["svg"] > 8 and "<?xml" not in page.source and "metadata" not in page.tags
    assert len(page.source) < 500_000


def test_user_text_is_text(page: Page) -> None:
    assert HOSTILE not in page.source
    # The description, a query, a document, the gate's sentence and reason, the note about speed.
    assert page.text.count(HOSTILE) >= 6


def test_equal_files_give_equal_bytes(run: Path, page: Page, tmp_path: Path) -> None:
    again = write_report(copy_of(run, tmp_path / "run"), output=tmp_path / "elsewhere" / "page.html")
    assert again.read_text(encoding="utf-8") == page.source
    code = (
        "import sys; from rankwright.cli.main import main; sys.argv = ['rankwright', 'report', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit as end: print(end.code, {'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment(PYTHONHASHSEED="7"))
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page.source


@pytest.mark.parametrize(
    ("gone", "said", "table"),
    [
        (["eval"], "no test set is evaluated yet", "results-table"),
        (["eval/one/queries.jsonl", "eval/two/queries.jsonl"], "no queries.jsonl beside", "slices-1"),
        (["eval/one/tuned", "eval/two/tuned"], "needs tuned and another system", "cases"),
        (["metrics.jsonl"], "metrics.jsonl is missing", "curves"),
        (["calibration.json"], "no calibration.json", "calibration-table"),
        (["combine.json"], "no combine.json", "combine-table"),
        (["gate.json"], "The recipe has no gate", "gate-table"),
        (["speed.json"], "no speed.json", "speed-table"),
        (["data_report.json"], "data_report.json is missing", "data-table"),
        (["negatives.jsonl", "stages/mine.json"], "nothing is mined yet", "mining-table"),
        (["export", "gate.json"], "nothing is exported yet", "parity-table"),
        (["export"], "exported anyway", "parity-table"),
        (["stages"], "No stage is finished", "stages-table"),
        (["provenance.json"], "provenance.json is missing", "provenance-table"),
        (["data"], "needs tuned and another system", "cases"),
    ],
)
def test_a_missing_part_is_left_out_and_said(run: Path, tmp_path: Path, gone: list[str], said: str, table: str) -> None:
    folder = copy_of(run, tmp_path / "run")
    for name in gone:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(folder))
    assert not page.open and said in page.text and table not in page.tables


def test_a_run_that_has_only_begun(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(run / "recipe.json", tmp_path / "new")
    page = Page(write_report(tmp_path / "new"))
    assert not page.open and "Nothing is evaluated yet." in page.text and set(page.tables) == {"changed-table"}
    assert "licences.json is missing" in page.text


def test_numbers_of_other_settings_are_left_out(run: Path, tmp_path: Path) -> None:
    inputs = {s: str(metrics_of(run, "one", s)["inputs"]) for s in ("bm25", "base", "tuned", "other")}
    rows, notes = read_results(run, read_recipe(run), ["one", "two", "three"], {**inputs, "other": "changed"})
    assert [row.name for row in rows] == ["one", "two", ALL] and list(rows[-1].values) == ["bm25", "base", "tuned"]
    assert notes == [
        "one: evaluated with other settings than the recipe's now, left out: dense, other",
        "two: evaluated with other settings than the recipe's now, left out: dense, other",
        "three: not evaluated",
    ]
    folder = copy_of(run, tmp_path / "run")
    path = folder / "eval" / "one" / "other" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "depth": 4, "first_stage": "dense"}))
    (folder / "eval" / "two" / "dense" / "metrics.json").unlink()
    (folder / "eval" / "two" / "other" / "per_query.jsonl").unlink()
    _, notes = read_results(folder, read_recipe(folder), ["one", "two"], None)
    assert notes == [
        "one: depths differ: bm25 9, dense 9, base 9, tuned 9, other 4",
        "one: lists of different first stages: base bm25, tuned bm25, other dense",
        "two: not evaluated to the end, left out: dense, other",
    ]


def test_wins_and_losses_are_the_lists_of_the_runs(run: Path) -> None:
    test = collection("one")
    rows, _ = read_results(run, read_recipe(run), ["one"], None)
    found = read_cases(run, rows[0], test)
    assert [cases.before for cases in found] == ["base", "bm25"]
    spelled = {d.replace(" ", "%20"): d for d in test.corpus}
    for cases in found:
        old, new = rows[0].values[cases.before], rows[0].values["tuned"]
        change = sorted(new[q] - old[q] for q in new)
        assert [c.after - c.before for c in cases.lost] == [v for v in change[:SHOWN] if v < 0]
        assert [c.after - c.before for c in cases.gained] == [v for v in change[::-1][:SHOWN] if v > 0]
        assert (cases.better, cases.worse) == (sum(v > 0 for v in change), sum(v < 0 for v in change))
        for case in (*cases.gained, *cases.lost):
            for system, best, top in (
                (cases.before, case.best_before, case.top_before),
                ("tuned", case.best_after, case.top_after),
            ):
                scores = read_trec_run(run / "eval" / "one" / system / "run.trec")[case.query_id]
                order = ranked(case.query_id, {spelled[d]: s for d, s in scores.items()})
                relevant = [n for n, (d, _) in enumerate(order, 1) if test.qrels[case.query_id].get(d, 0) > 0]
                assert best == (relevant[0] if relevant else None)
                shown = [n for n in range(1, len(order) + 1) if n <= 3 or n == best]
                assert [(d.rank, d.document_id, d.score) for d in top] == [(n, *order[n - 1]) for n in shown]
                assert all(test.corpus[d.document_id].startswith(d.text[:20]) for d in top)
    assert any(d.rest for c in found[0].gained + found[0].lost for d in c.top_before)
    assert any(d.document_id == "d 11" for cases in found for c in cases.gained + cases.lost for d in c.top_after)


@given(st.text(max_size=900), st.integers(1, 400))
def test_a_cut_text_loses_only_its_end(text: str, most: int) -> None:
    kept, rest = cut(text, most)
    assert len(kept) <= most and text.strip().startswith(kept) and len(kept) + rest == len(text.strip())
    assert bool(rest) == (len(text.strip()) > most)


@given(st.lists(st.floats(-1e6, 1e6), max_size=1500))
def test_curves_are_thinned_to_means(values: list[float]) -> None:
    xs, ys = thinned(list(range(len(values))), values)
    assert len(xs) == len(ys) <= MOST_POINTS and len(running_mean(values)) == len(values)
    if len(values) <= MOST_POINTS:
        assert ys == pytest.approx(values)
    if values:
        assert min(values) - 1e-3 <= min([*ys, *running_mean(values)])
        assert max([*ys, *running_mean(values)]) <= max(values) + 1e-3


def test_plots_bear_any_name_and_any_number() -> None:
    d = Difference(0.1, -0.2, 0.4, 9, 9)
    drawn = differences([('a <b> & "c" $x_1$ \u6771\u4eac', [("vs base", d)]), ("x" * 90, [("vs base", d)])], "n", "x")
    tree = ElementTree.fromstring(drawn)
    words = [text for node in tree.iter() for text in [node.text or ""]]
    assert 'a <b> & "c" $x_1$ \u6771\u4eac' in words and "$x_1$" in drawn and max(map(len, words)) < 60
    metrics = [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": float("inf")}]
    assert "2" in curve(metrics, "loss", "loss") and curve(metrics, "mfu", "mfu") == ""
    assert curve([{"step": 0, "dev_nDCG@10": 0.0}], "dev_nDCG@10", "dev")


def test_changed_keys_are_those_that_differ(run: Path) -> None:
    found = {key: (value, default) for key, value, default in changed_keys(read_recipe(run))}
    assert found["mine.negatives"] == (3, 7) and found["evaluate.depth"] == (9, 100)
    assert found["evaluate.baselines.0.kind"] == ("cross_encoder", None) and found["data.test.1.card"] == (
        "obliqa",
        None,
    )
    assert not [key for key in found if key.startswith(("train", "loss", "gate"))]


# Several runs.


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("others")
    weak = make_report_run(folder / "weak", tiny_qwen3, tuned=0.4, loss={"name": "bce"})
    return [weak, make_report_run(folder / "seed", tiny_qwen3, tuned=0.8, seed=1)]


def test_several_runs_are_one_page(run: Path, others: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison([run, *others], tmp_path / "page.html"))
    comparison = comparing.compare([run, *others])
    assert not page.open and "@import" not in page.source and page.tags["script"] == 0
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    for number, (name, shared) in enumerate(comparison.sets.items(), start=1):
        for system in comparison.systems:
            row = page.row(f"results-{number}", stage_label(system.name))
            assert row[1:3] == [f"{mean:.3f}" for mean in shared.means(system.values(name)).values()]
            found = comparison.compared.get((name, system.name))
            assert row[3] == (interval(found.difference) if found else "reference")
            assert found is None or row[6] == ("< 0.001" if found.p_holm < 0.001 else f"{found.p_holm:.3f}")
    for system in comparison.systems:
        row = page.row("results-pooled", stage_label(system.name))
        assert row[1:3] == [f"{mean:.3f}" for mean in comparison.pooled_means(system).values()]
        pooled = comparison.pooled.get(system.name)
        assert row[3] == (interval(pooled.difference) if pooled else "reference")
    assert f"all {3 * (len(comparison.systems) - 1)} comparisons" in page.text
    ((runs, spreads),) = comparison.over_seeds.items()
    assert page.row("seeds-table", ", ".join(runs), "one")[3] == f"{spreads['one'].mean:.3f}"
    first = comparison.seed_differences[0]
    row = page.row("seed-differences", ", ".join(first.runs), ", ".join(map(stage_label, first.other)), "one")
    assert row[4:6] == [interval(first.found), f"{first.found.detectable:.3f}"]
    assert dict(differing_keys(comparison.runs)) == {
        "seed": ["0", "0", "1"],
        "loss.name": ['"listwise_softmax"', '"bce"', '"listwise_softmax"'],
    }
    assert page.row("differing-table", "loss.name")[2] == '"bce"'
    seen = [row for row in page.tables["slices-1"] if row[0].endswith(" seen") or row[0].endswith(" seen (small)")]
    assert sum(int(row[1]) for row in seen) == 24
    column = page.tables["slices-1"][0].index("weak/tuned")
    mean = sum(int(row[1]) * float(row[column]) for row in seen) / 24
    assert mean == pytest.approx(metrics_of(others[0], "one", "tuned")["nDCG@10"], abs=1e-3)
    assert write_comparison([run, *others], tmp_path / "again.html").read_text() == page.source


def test_the_command_line(run: Path, others: list[Path], tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path / "run")
    (folder / "report.html").unlink(missing_ok=True)
    done = jobs.rankwright("report", folder, *others, "--output", tmp_path / "out" / "side.html")
    assert done.returncode == 0 and (tmp_path / "out" / "side.html").is_file(), done.stderr
    assert not (folder / "report.html").exists()
    done = jobs.rankwright("report", tmp_path / "nosuch")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such folder" in done.stderr


def _break(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _other_settings(folder: Path) -> None:
    path = folder / "eval" / "two" / "base" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": "before"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_break("recipe.json", "{"), "recipe.json: the file: Invalid JSON"),
        (_break("recipe.json", '{"name": "x", "colour": 1}'), "written by another version"),
        (_break("calibration.json", "[1]"), "calibration.json: not a JSON object"),
        (_break("gate.json", '{"accepted": tru'), "gate.json: not JSON"),
        (_break("gate.json", '{"accepted": true}'), "not as this version writes it"),
        (_break("speed.json", '{"tuned": 3}'), "not as this version writes it"),
        (_break("eval/one/queries.jsonl", '{"query_id": "q1"}\n'), "queries.jsonl:1: not a row of query attributes"),
        (_break("eval/one/tuned/run.trec", "q1 Q0 d1\n"), "run.trec:1: 3 columns, needs 6"),
        (_break("negatives.jsonl", "{\n"), "negatives.jsonl:1: not a pool of negatives, mine again"),
        (_break("metrics.jsonl", '{"loss": 1}\n'), "not as this version writes it"),
        (_other_settings, "different settings"),
    ],
)
def test_a_damaged_file_is_one_line(run: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    folder = copy_of(run, tmp_path / "run")
    before = (folder / "report.html").read_bytes() if (folder / "report.html").exists() else None
    spoil(folder)
    with pytest.raises(UserError) as caught:
        write_report(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    # The page that was there stays.
    assert before is None or (folder / "report.html").read_bytes() == before
