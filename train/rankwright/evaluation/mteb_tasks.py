"""mteb's side of `rankwright mteb`, in a process of its own: a task's texts and judgements, and mteb's evaluation.

python -m rankwright.evaluation.mteb_tasks load|evaluate REQUEST

Both read a JSON object and print lines of JSON: {"done": pairs}, and {"error": "one line"} where nothing came of it.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, UserErrors, one_line
from rankwright.common.files import json_line, write_lines_atomic, write_text_atomic
from rankwright.data.collection import Collection
from rankwright.data.formats.read import read_collection

TEXTS_AT_ONCE = 1024
INFO = "info.json"


def main() -> int:
    """In the fresh process; 1 after an error that is the user's."""
    command, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    # What libraries print must not come between the lines of JSON.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        if command == "load":
            load(request)
        else:
            evaluate(request, lambda pairs: answers.write(json.dumps({"done": pairs}) + "\n"))
    except UserError as error:
        lines = error.messages if isinstance(error, UserErrors) else [str(error)]
        answers.write(json.dumps({"error": one_line(" ".join(lines[:3]))}) + "\n")
        return 1
    return 0


def load(request: Mapping[str, Any]) -> None:
    """Write a task's data into a folder: info.json, and queries-N.jsonl and corpus-N.jsonl for each part of it.

    The texts are those that mteb gives to a cross-encoder. A part is one split of one subset.
    """
    task, out = _loaded(request), Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Any]] = []
    for subset, splits in task.dataset.items():
        for split, data in splits.items():
            number = len(parts)
            instructed = "instruction" in data["queries"].column_names
            titled = "title" in data["corpus"].column_names and any(data["corpus"]["title"])
            write_lines_atomic(out / f"corpus-{number}.jsonl", _rows(task, data["corpus"], query=False))
            judged, listed = data["relevant_docs"], data["top_ranked"] or {}
            write_lines_atomic(
                out / f"queries-{number}.jsonl",
                (
                    json_line({**json.loads(row), "judged": judged[q], "listed": listed.get(q)})
                    for row in _rows(task, data["queries"], query=True)
                    # mteb leaves out those without a judgement.
                    if (q := json.loads(row)["id"]) in judged and judged[q]
                ),
            )
            parts.append({"subset": subset, "split": split, "instructed": instructed, "titled": bool(titled)})
    metadata = task.metadata
    prompt = metadata.prompt.get("query") if isinstance(metadata.prompt, dict) else metadata.prompt
    info = {
        "task": metadata.name,
        "hub": None if request.get("folder") else metadata.dataset["path"],
        "revision": None if request.get("folder") else metadata.dataset["revision"],
        "main_score": metadata.main_score,
        "prompt": prompt,
        "own_documents_count": not task.ignore_identical_ids,
        "first_counts": not task.skip_first_result,
        "parts": parts,
    }
    write_text_atomic(out / INFO, json.dumps(info, indent=2) + "\n")


def evaluate(request: Mapping[str, Any], advance: Any) -> None:
    """Rerank the lists of {TASK}_predictions.json with mteb's own code; writes its result and its scores."""
    import mteb
    from sentence_transformers import CrossEncoder

    task = _loaded(request).convert_to_reranking(request["lists"], top_k=request["top_k"])
    model = CrossEncoder(request["model"], local_files_only=True, trust_remote_code=False)
    predict = model.predict

    def counted(pairs: Any, *arguments: Any, **options: Any) -> Any:
        scores = predict(pairs, *arguments, **options)
        advance(len(pairs))
        return scores

    model.predict = counted
    scores = Path(request["scores"])
    # mteb adds to what it finds there.
    (scores / f"{request['task']}_predictions.json").unlink(missing_ok=True)
    result = mteb.evaluate(
        model,
        task,
        encode_kwargs={"batch_size": request["batch_size"], "show_progress_bar": False},
        cache=None,
        overwrite_strategy="always",
        prediction_folder=scores,
        show_progress_bar=False,
    )
    draft = Path(request["result"]).with_suffix(".draft")
    result.task_results[0].to_disk(draft)
    draft.replace(request["result"])


def _rows(task: Any, dataset: Any, *, query: bool) -> Iterator[str]:
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    kind = PromptType.query if query else PromptType.document
    loader = create_dataloader(dataset, task_metadata=task.metadata, prompt_type=kind, batch_size=TEXTS_AT_ONCE)
    texts = (text for batch in loader for text in batch["text"])
    return (json_line({"id": i, "text": t}) for i, t in zip(dataset["id"], texts, strict=True))


def _loaded(request: Mapping[str, Any]) -> Any:
    """The task with its data. Raises UserError for an unknown one, one of another kind, and data that are not here."""
    from mteb.abstasks import AbsTaskRetrieval

    name, folder = request["task"], request.get("folder")
    task = _of_hub(name) if folder is None else _of_folder(name, Path(folder))
    if not isinstance(task, AbsTaskRetrieval) or list(task.metadata.modalities) != ["text"]:
        kind = f"{task.metadata.type} of {', '.join(task.metadata.modalities)}"
        raise UserError(f"task {name}: is of the kind {kind}: only retrieval and reranking of texts can be run")
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except UserError:
        raise
    # Whatever datasets and the hub raise where they cannot be reached.
    except Exception as error:
        hub, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
        why = one_line(str(error).strip().split("\n")[0]) or type(error).__name__
        raise UserError(
            f"task {name}: its data ({hub} on the hub, revision {revision}) cannot be read ({why}): fetch them where "
            f"there is a network with `hf download {hub} --repo-type dataset --revision {revision}`, or give "
            f"--task-folder DIR with the set in DIR/{name}"
        ) from None
    return task


def _of_hub(name: str) -> Any:
    import mteb
    from mteb.get_tasks import _TASKS_REGISTRY

    if name not in _TASKS_REGISTRY:
        lower = {known.lower(): known for known in _TASKS_REGISTRY}
        near = [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3)]
        meant = f": did you mean {' or '.join(near)}?" if near else ": mteb's documentation lists them."
        raise UserError(f"--tasks: mteb has no task {name!r}{meant} A set of your own needs --task-folder")
    return mteb.get_task(name)


def _of_folder(name: str, folder: Path) -> Any:
    """A task of the test split of a set in any format that a recipe takes; the documents are whole texts."""
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    collection = read_collection(folder, name=name, split="test")
    about = TaskMetadata(
        name=name,
        description=f"The set {name}.",
        type="Retrieval",
        dataset={"path": name, "revision": "1"},
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    class Local(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = about

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = {"default": {"test": _split_data(collection)}}
            self.data_loaded = True

    return Local()


def _split_data(collection: Collection) -> dict[str, Any]:
    from datasets import Dataset

    def texts(of: Mapping[str, str]) -> Any:
        ids: Iterable[str] = list(of)
        return Dataset.from_dict({"id": list(ids), "text": [of[i] for i in ids]})

    qrels = {q: {d: int(label) for d, label in judged.items()} for q, judged in collection.qrels.items()}
    queries = {q: text for q, text in collection.queries.items() if q in qrels}
    return {
        "corpus": texts(collection.corpus),
        "queries": texts(queries),
        "relevant_docs": qrels,
        "top_ranked": None,
    }


if __name__ == "__main__":
    sys.exit(main())
