"""Runs the snippet that an export prints for a library, on its golden pairs, and prints one line of JSON.

    python run_snippet.py LIBRARY FOLDER

LIBRARY: a file of scripts/engines/libraries without `.txt`. The snippet is the block of SERVE.md or README.md that
imports the library; only the query, the documents and the model's place are others. Exit code 1 when a score differs, 0
where the folder has no snippet for the library.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rankwright.export.card import CARD, EXAMPLE, PLACE, SERVE
from rankwright.export.golden import read_golden
from rankwright.export.proof.comparing import compare
from rankwright.export.proof.runtimes.base import Answer, Row, exact, sigmoid

TOLERANCE = 1e-4
# Library -> (its package, a module that only its snippet imports, whether it prints raw scores).
LIBRARIES = {
    "langchain": ("langchain-community", "langchain_community", False),
    "llama_index": ("llama-index-postprocessor-sbert-rerank", "llama_index.postprocessor", False),
    "haystack": ("sentence-transformers-haystack", "haystack_integrations", False),
    "rerankers": ("rerankers", "rerankers", True),
    "mteb": ("mteb", "mteb", False),
    "fastembed": ("fastembed", "fastembed.rerank", False),
}


def find_snippet(folder: Path, module: str) -> str | None:
    """The Python block that imports the module, of the shortest where there are several."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in (SERVE, CARD)]
    blocks = [block for text in texts for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)]
    wanted = re.compile(rf"^(import|from) {re.escape(module)}\b", re.M)
    return min((block for block in blocks if wanted.search(block)), key=len, default=None)


class Given(ast.NodeTransformer):
    """Puts a query, documents and a folder in the place of the example's."""

    def __init__(self, folder: Path, query: str = EXAMPLE[0], documents: Sequence[str] = (EXAMPLE[1],)) -> None:
        self.folder, self.query, self.documents = str(folder), query, list(documents)

    def visit_List(self, node: ast.List) -> ast.AST:
        if any(isinstance(one, ast.Constant) and one.value == EXAMPLE[1] for one in node.elts):
            return ast.List([ast.Constant(text) for text in self.documents], ast.Load())
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        places = {PLACE: self.folder, "FOLDER": self.folder, EXAMPLE[0]: self.query}
        return ast.Constant(places[node.value]) if isinstance(node.value, str) and node.value in places else node


class Snippet:
    """A snippet in two parts: what loads the model, carried out once; and what asks it, from the first line on that
    holds the example. Its last line prints the scores.

    names: in the place of what the snippet assigns to them.
    """

    def __init__(self, text: str, folder: Path, **names: Any) -> None:
        lines = [
            line
            for line in ast.parse(text).body
            if not (isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") in names)
        ]
        last = lines[-1]
        assert isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and len(last.value.args) == 1
        lines[-1] = ast.Assign([ast.Name("_printed", ast.Store())], last.value.args[0])
        asks = [any(isinstance(n, ast.Constant) and n.value in EXAMPLE for n in ast.walk(line)) for line in lines]
        first = asks.index(True) if True in asks else len(lines) - 1
        self._folder, self._names = folder, dict(names)
        self._rest = ast.Module(lines[first:], [])
        self._run(ast.Module(lines[:first], []), Given(folder))

    def _run(self, tree: ast.Module, given: Given) -> None:
        code = ast.fix_missing_locations(given.visit(copy.deepcopy(tree)))
        exec(compile(code, "snippet", "exec"), self._names)

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document: what is printed are scores in their order, or (document, score), best first."""
        self._run(self._rest, Given(self._folder, query, documents))
        found = list(self._names["_printed"])
        by_text = dict(found) if isinstance(found[0], tuple) else dict(zip(documents, found, strict=True))
        return [float(by_text[text]) for text in documents]

    def run(self) -> None:
        """As it stands."""
        self._run(self._rest, Given(self._folder))


def scores_of_mteb(text: str, folder: Path, rows: Sequence[Row]) -> list[float]:
    """The scores that mteb keeps for a task made of the golden rows, each with its own query."""
    # Read when mteb is imported. A result that it kept would not be computed again.
    os.environ["MTEB_CACHE"] = str(Path.cwd())
    from datasets import Dataset
    from mteb import TaskMetadata
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Golden(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Golden",
            description="The golden pairs of an export.",
            dataset={"path": "none/none", "revision": "1"},
            type="Reranking",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            texts = [{"id": f"d{n}", "title": "", "text": row["document"]} for n, row in enumerate(rows)]
            queries = [{"id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)]
            split = {
                "corpus": Dataset.from_list(texts),
                "queries": Dataset.from_list(queries),
                "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(len(rows))},
                "top_ranked": {f"q{n}": [f"d{n}"] for n in range(len(rows))},
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    Snippet(text, folder, tasks=[Golden()]).run()
    [path] = Path("predictions").rglob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))["default"]["test"]
    return [float(kept[f"q{n}"][f"d{n}"]) for n in range(len(rows))]


def answer(name: str, text: str, folder: Path, rows: Sequence[Row]) -> Answer:
    """The library's scores: each pair alone, and with the other documents of its query."""
    if name == "mteb":
        alone = scores_of_mteb(text, folder, rows)
        return Answer(None, None, [alone], alone)
    snippet = Snippet(text, folder)
    alone = [snippet.scores(row["query"], [row["document"]])[0] for row in rows]
    together = list(alone)
    for query in {row["query"] for row in rows}:
        places = [place for place, row in enumerate(rows) if row["query"] == query]
        found = snippet.scores(query, [rows[place]["document"] for place in places])
        for place, score in zip(places, found, strict=True):
            together[place] = score
    if LIBRARIES[name][2]:
        return Answer(None, alone, [together], sigmoid(alone))
    return Answer(None, None, [together], alone)


def main() -> int:
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    package, module, _ = LIBRARIES[name]
    snippet = find_snippet(folder, module)
    if snippet is None:
        return 0
    line: dict[str, Any] = {"engine": name, "version": version(package), "target": folder.name}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        rows = read_golden(folder)
        try:
            figures, failure = compare(rows, answer(name, snippet, folder, rows), exact(TOLERANCE))
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(line, ensure_ascii=False), flush=True)
            return 1
    line |= {k: figures[k] for k in ("rows", "max_d_logit", "max_d_probability") if k in figures}
    line |= {} if failure is None else {"failures": [failure]}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
