"""`rankwright mteb` on sets of ours: mteb's own figures against ours, ties, levels, cards, and one line a mistake.

mteb is not among the packages of the tests: `scripts/engines/mteb.sh WORK` runs this file where it is.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import jobs
import pytest
import yaml
from tiny import make_tiny_qwen3, trained_of

from rankwright.common.errors import UserError
from rankwright.common.run_folder import SUMS_FILE, RunFolder
from rankwright.data.formats.read import read_collection
from rankwright.data.split_files import write_split
from rankwright.evaluation.mteb_results import AGREE, falls_apart
from rankwright.export.card import CARD, Benchmark, CardFacts, SetResult, add_benchmarks, write_card
from rankwright.export.proof.sums import write_sums
from rankwright.export.targets import TARGETS
from rankwright.pipeline.mteb import Wanted, benchmarks, run_mteb
from rankwright.recipe.loading import load_recipe, recipe_json
from rankwright.report.page import write_report

HAS_MTEB = importlib.util.find_spec("mteb") is not None
needs_mteb = pytest.mark.skipif(not HAS_MTEB, reason="needs mteb: scripts/engines/mteb.sh WORK runs it")
DOCUMENTS, QUERIES = 110, 8
HARD = ["evaluate.relevance_level=2", "evaluate.gains={0: 0, 1: 0, 2: 1}"]


def write_graded(folder: Path) -> Path:
    """Queries with documents of label 2 and 1, and an unjudged one with the text of a relevant one.

    Its id is the larger one, so trec_eval puts it first where the scores tie. The last query has a label of 0 only.
    """
    jobs.write_set(folder, "test", first=0, queries=DOCUMENTS, numbered=True)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows += [{**rows[n], "_id": f"z{n}"} for n in range(QUERIES)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = (folder / "queries.jsonl").read_text().splitlines()[: QUERIES + 1]
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    labels = {n: {n: 2, **{(n + 7 * k) % 90: 1 + k % 2 for k in range(1, 13)}} for n in range(QUERIES)}
    judged = [f"q{n}\td{d}\t{label}" for n, found in labels.items() for d, label in found.items()]
    lines = ["query-id\tcorpus-id\tscore", *judged, f"q{QUERIES}\td{QUERIES}\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the export hf, as far as `rankwright mteb` reads it; sets/graded is its test set."""
    root = tmp_path_factory.mktemp("mteb")
    base = make_tiny_qwen3(root / "base")
    recipe = jobs.job(root, base, data={"test": [{"path": "graded", "split": "test"}]})
    write_graded(root / "sets" / "graded")
    run = RunFolder(root / "run")
    run.create()
    run.recipe_json.write_text(recipe_json(load_recipe(str(recipe), []).recipe))
    test = read_collection(root / "sets" / "graded", name="graded", split="test")
    write_split(run.data, "test", [test])
    made, folder = trained_of(base, "portable"), run.export("hf")
    TARGETS["hf"].bind({})(made, folder)
    own = SetResult("graded", None, 8, 0.5, 0.4, 0.6, "BM25, best 8")
    facts = CardFacts(name="job", results=[own])
    write_card(folder, facts, made.contract, {"rows": 0, "engines": {}}, base_name="base", revision=None)
    write_sums(folder)
    return root


@pytest.fixture
def again(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def every_document(root: Path) -> Path:
    """A run file with all documents for each query, `z0` and the like first, then `d0`, `d1` and so on."""
    ids = [json.loads(line)["_id"] for line in (root / "sets" / "graded" / "corpus.jsonl").read_text().splitlines()]
    path = root / "lists.trec"
    scores = {d: 1.0 if d.startswith("z") else -n for n, d in enumerate(ids)}
    lines = [f"q{q} Q0 {d} 0 {score} mine" for q in range(QUERIES + 1) for d, score in scores.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@needs_mteb
def test_the_figures_are_those_of_mteb(again: Path) -> None:
    run, sets = again / "run", again / "sets"
    (one,) = run_mteb(run, Wanted(("graded",), sets, every_document(again)))
    # Equal texts have equal scores, and each rule for ties has its own order of them.
    assert one.ties > 0 and one.difference <= AGREE and not falls_apart([one])
    assert one.theirs["nDCG@10"] > 0
    for measure in ("nDCG@10", "AP@10", "R@10"):
        assert one.ours_trec[measure] == pytest.approx(one.theirs[measure], abs=1e-5)
    assert (one.queries, one.without_relevant, one.lists) == (9, 1, "lists.trec, best 100")
    # The 100 best of 118 documents, and no others.
    scored = json.loads((run / "mteb" / "scores" / "graded_predictions.json").read_text())["default"]["test"]
    assert {len(found) for found in scored.values()} == {100}
    assert all("d92" not in found and "d91" in found and "z0" in found for found in scored.values())
    found = json.loads((run / "mteb" / "graded.json").read_text())
    assert found["scores"]["test"][0]["ndcg_at_10"] == one.theirs["nDCG@10"]


@needs_mteb
def test_a_planted_tie_is_what_the_figures_differ_by(again: Path) -> None:
    """Lists of a relevant document and its twin alone: trec_eval has the twin first, a hash decides for us."""
    path = again / "twins.trec"
    path.write_text("".join(f"q{n} Q0 {d}{n} 0 1 mine\n" for n in range(QUERIES) for d in "dz"))
    (one,) = run_mteb(again / "run", Wanted(("graded",), again / "sets", path))
    assert one.ties == 1.0
    assert one.theirs["AP@10"] == pytest.approx(one.ours_trec["AP@10"], abs=1e-5)
    assert one.ours["AP@10"] > one.theirs["AP@10"] + AGREE


@needs_mteb
def test_the_command_goes_on_by_task_and_fills_the_card(again: Path) -> None:
    run, sets = again / "run", again / "sets"
    recipe = load_recipe(str(again / "recipe.yaml"), HARD).recipe
    RunFolder(run).recipe_json.write_text(recipe_json(recipe))
    shutil.copytree(sets / "graded", sets / "second")
    arguments = ["--task-folder", sets, "--top-k", "12"]
    done = jobs.rankwright("mteb", run, "--tasks", "graded", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BM25, best 12" in done.stdout and "1 query without a relevant document, which counts 0" in done.stdout
    # A label of 1 has no gain in the recipe, and one in mteb.
    assert "graded (default, test): nDCG(gains={1: 0, 2: 1})@10 by the labels of the recipe is" in done.stdout
    # As after a kill in the second task.
    before = (run / "mteb" / "graded.json").stat().st_mtime_ns
    done = jobs.rankwright("mteb", run, "--tasks", "graded,second", *arguments)
    assert done.returncode == 0 and done.stdout.count("unchanged, kept") == 1, done.stdout + done.stderr
    assert (run / "mteb" / "graded.json").stat().st_mtime_ns == before
    card = (run / "export" / "hf" / CARD).read_text()
    rows = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert [row["dataset"]["name"] for row in rows] == ["graded", "MTEB graded", "MTEB second"]
    found = benchmarks(RunFolder(run))
    assert rows[1]["metrics"][0]["value"] == round(found[0].value, 4) and rows[1]["task"]["type"] == "text-ranking"
    assert card.count("## MTEB") == 1 and "| graded | test | 9 | BM25, best 12 |" in card
    page = write_report(run).read_text()
    shown = page[page.index('id="mteb-table"') :]
    assert "<td>graded, test</td><td>BM25, best 12</td>" in shown and f"{found[0].value:.3f}</td>" in shown
    # Figures of another model are not shown.
    (run / "export" / "hf" / SUMS_FILE).write_text("")
    assert "mteb-table" not in write_report(run).read_text()


@needs_mteb
def test_a_mistake_is_one_line(again: Path) -> None:
    run, sets = again / "run", again / "sets"

    def fault(wanted: Wanted) -> str:
        with pytest.raises(UserError) as caught:
            run_mteb(run, wanted)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "mteb has no task 'FiQA2O18': did you mean FiQA2018" in fault(Wanted(("FiQA2O18",)))
    offline = fault(Wanted(("FiQA2018",)))
    assert offline.startswith("task FiQA2018: its data (mteb/fiqa on the hub, revision ")
    assert "hf download mteb/fiqa --repo-type dataset" in offline
    assert "only retrieval and reranking of texts" in fault(Wanted(("STS12",)))
    assert "no such set: it has graded, held-out, one" in fault(Wanted(("absent",), sets))
    assert "is not the name of a task" in fault(Wanted(("../graded",), sets))
    assert fault(Wanted((), sets)).startswith("--tasks: names no task")
    strange = again / "strange.trec"
    strange.write_text("q0 Q0 d0 1 2 x\nq0 Q0 nowhere 2 1 x\n")
    assert fault(Wanted(("graded",), sets, strange)) == (
        f"--lists: {strange}: 1 document is not in the corpus of task graded, default, test, such as 'nowhere' of "
        "query 'q0': give lists of this task"
    )
    assert "a run file is for one task" in fault(Wanted(("graded", "one"), sets, strange))
    (run / "export" / "hf" / "config.json").write_text("{}")
    assert "config.json" in fault(Wanted(("graded",), sets))
    shutil.rmtree(run / "export")
    assert "has no export `hf`, which mteb loads: run `rankwright export" in fault(Wanted(("graded",), sets))


@pytest.mark.skipif(HAS_MTEB, reason="mteb is here")
def test_without_mteb_a_line_tells_how_to_get_it(exported: Path) -> None:
    with pytest.raises(UserError, match=r"mteb is not installed: pip install 'rankwright\[mteb\]'"):
        run_mteb(exported / "run", Wanted(("FiQA2018",)))


def test_figures_of_mteb_take_the_place_of_earlier_ones_in_a_card(again: Path) -> None:
    path = again / "run" / "export" / "hf" / CARD
    plain = path.read_text()
    row = Benchmark("FiQA2018", "mteb/fiqa", "abc", "default", "test", 648, 0.41, 0.25, "BM25, best 100", "2.26.24")
    add_benchmarks(path, [row])
    add_benchmarks(path, [row])
    card = path.read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    own, theirs = header["model-index"][0]["results"]
    assert own == yaml.safe_load(plain.split("---\n")[1])["model-index"][0]["results"][0]
    assert theirs["dataset"] == {
        "name": "MTEB FiQA2018",
        "type": "mteb/fiqa",
        "config": "default",
        "split": "test",
        "revision": "abc",
    }
    assert theirs["metrics"][0]["type"] == "ndcg_at_10" and theirs["metrics"][0]["value"] == 0.41
    assert card.count("## MTEB") == 1 and "| FiQA2018 | test | 648 | BM25, best 100 | 0.2500 | 0.4100 |" in card
    # What a person added after the section stays.
    path.write_text(card + "\n## Ours\n\nA note.\n")
    add_benchmarks(path, [])
    assert path.read_text().replace("\n## Ours\n\nA note.\n", "") == plain
