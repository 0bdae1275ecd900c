"""Proves in a fresh process that the runtimes read an exported folder as the trainer wrote it.

    python -m rankwright.parity FOLDER... [--tolerance 1e-4] [--base FOLDER]

Every runtime gets the raw texts of golden.jsonl; token ids are compared first, then logits one by one and in
mixed batches, then probabilities. All in fp32 on the CPU. Prints one line of JSON for each folder; exit code 1
when one is not equal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwright.errors import UserError
from rankwright.model import load_tokenizer
from rankwright.prompts import PromptContract, PromptEncoder
from rankwright.reranker import Reranker
from rankwright.resources import resolve_base

BATCH = 8
NOT_CHECKED = "not installed: not checked"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a runtime made of the golden rows: ids and logits of each row alone, logits in batches, probabilities."""

    ids: list[list[int]]
    logits: list[float]
    batched: list[list[float]]
    probabilities: list[float]


def check_parity(folder: Path, tolerance: float = 1e-4, base: str | None = None) -> dict[str, Any]:
    """Check one folder in a fresh process and return its report; see check_folders."""
    return check_folders({folder.name: folder}, tolerance, base)[folder.name]


def check_folders(
    folders: Mapping[str, Path], tolerance: float = 1e-4, base: str | None = None
) -> dict[str, dict[str, Any]]:
    """Run this module on the folders (name -> path) in one fresh process and return their reports.

    base: where the base of an adapter folder lies. Raises UserError naming the runtime, the worst pair, both
    values and the likely cause.
    """
    command = [sys.executable, "-m", "rankwright.parity", *map(str, folders.values()), "--tolerance", str(tolerance)]
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        # What is checked lies here already.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command += ["--base", base] if base else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        lines = done.stdout.strip().splitlines()[-len(folders) :]
        reports: dict[str, dict[str, Any]] = dict(zip(folders, map(json.loads, lines), strict=True))
        failures = [f"export {name}: {f}" for name, report in reports.items() for f in report["failures"]]
    except (ValueError, TypeError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        names = ", ".join(folders)
        raise UserError(f"export {names}: the parity check did not run (exit {done.returncode}): {last}") from None
    if failures:
        raise UserError("\n".join(failures))
    return reports


def measure(folder: Path, tolerance: float, base: str | None = None) -> dict[str, Any]:
    """The report of one folder: rows, tolerance, a section for each runtime, failures (empty when equal)."""
    rows = [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    engines: dict[str, Callable[[], Answer]] = {"rankwright": lambda: _rankwright(folder, rows, base)}
    skipped: dict[str, str] = {}
    if (folder / "adapter_config.json").is_file():
        engines["peft"] = lambda: _peft(folder, rows, base)
        skipped["sentence-transformers"] = "does not load adapter folders: not checked"
    else:
        engines["transformers"] = lambda: _transformers(folder, rows)
        if importlib.util.find_spec("sentence_transformers"):
            engines["sentence-transformers"] = lambda: _sentence_transformers(folder, rows)
        else:
            skipped["sentence-transformers"] = NOT_CHECKED
    report: dict[str, Any] = {
        "rows": len(rows),
        "gate_rows": sum(row["gate"] for row in rows),
        "tolerance": tolerance,
        "engines": dict(skipped),
        "failures": [],
    }
    for name, run in engines.items():
        try:
            with torch.inference_mode():
                answer = run()
        except Exception as error:  # whatever a runtime raises on the folder is the finding
            first = (str(error).strip().splitlines() or [""])[0]
            report["engines"][name] = {"error": f"{type(error).__name__}: {first}"}
            report["failures"].append(f"{name}: cannot score the folder: {type(error).__name__}: {first}")
            continue
        figures, failure = compare(rows, answer, tolerance, every_row=name == "rankwright")
        report["engines"][name] = figures
        report["failures"] += [f"{name}: {failure}"] if failure else []
    return report


def compare(
    rows: Sequence[Row], answer: Answer, tolerance: float, *, every_row: bool = False
) -> tuple[dict[str, Any], str | None]:
    """Figures of one runtime, and what is wrong in one line or None; rows with gate false do not decide."""
    decides = [i for i, row in enumerate(rows) if row["gate"] or every_row]
    others = [i for i in range(len(rows)) if i not in set(decides)]
    alone = [abs(row["logit"] - got) for row, got in zip(rows, answer.logits, strict=True)]
    batched = [max(abs(row["logit"] - b[i]) for b in answer.batched) for i, row in enumerate(rows)]
    probability = [abs(row["probability"] - got) for row, got in zip(rows, answer.probabilities, strict=True)]
    differ = [row["token_ids"] != list(ids) for row, ids in zip(rows, answer.ids, strict=True)]
    worst = max(decides, key=lambda i: (differ[i], _badness(alone[i], batched[i], probability[i])))
    figures: dict[str, Any] = {
        "rows": len(decides),
        "ids_differ": sum(differ[i] for i in decides),
        "max_d_logit": max(alone[i] for i in decides),
        "max_d_logit_batch": max(batched[i] for i in decides),
        "max_d_probability": max(probability[i] for i in decides),
    }
    if others:
        figures["other_rows"] = {
            "rows": len(others),
            "ids_differ": sum(differ[i] for i in others),
            "max_d_logit": max(alone[i] for i in others),
        }
    if not figures["ids_differ"] and all(_badness(alone[i], batched[i], probability[i]) < tolerance for i in decides):
        return figures, None
    row = rows[worst]
    found = [answer.logits[worst], *(b[worst] for b in answer.batched)]
    got = max(found, key=lambda logit: _finite(logit - row["logit"]))
    return figures, (
        f"query {_short(row['query'])}, document {_short(row['document'])}: expected the logit "
        f"{row['logit']:.6f} (probability {row['probability']:.6f}), got {got:.6f} "
        f"({answer.probabilities[worst]:.6f}); {_cause(row, answer, worst, tolerance)}"
    )


def _cause(row: Row, answer: Answer, at: int, tolerance: float) -> str:
    expected, ids = row["token_ids"], list(answer.ids[at])
    if expected != ids:
        same = [a == b for a, b in zip(expected, ids, strict=False)]
        first = [*same, False].index(False)
        return (
            f"token ids differ from place {first} on ({len(expected)} expected, {len(ids)} found) "
            "-> the prompt or its template, not the weights"
        )
    if not _finite(answer.logits[at] - row["logit"]) < tolerance:
        return "same token ids, other logit -> the weights, the score head, or the rope settings of config.json"
    if any(not _finite(b[at] - row["logit"]) < tolerance for b in answer.batched):
        return "equal alone, other in a batch -> pad_token_id or padding"
    return "same logits, other probability -> the activation function in config.json"


def _finite(difference: float) -> float:
    """|difference|; NaN counts as infinite, so that it never passes."""
    return abs(difference) if difference == difference else float("inf")


def _badness(*differences: float) -> float:
    return max(map(_finite, differences))


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")


def _rankwright(folder: Path, rows: Sequence[Row], base: str | None) -> Answer:
    reranker = Reranker.load(str(folder), device="cpu", base=base)
    encoded = [reranker.encoder.encode(row["query"], [row["document"]]) for row in rows]
    logits = [reranker.score(row["query"], [row["document"]])[0] for row in rows]
    batched = [s[0] for s in reranker.score_groups([(row["query"], [row["document"]]) for row in rows])]
    return Answer([e.head_ids + e.tail_ids[0] for e in encoded], logits, [batched], _sigmoid(logits))


def _transformers(folder: Path, rows: Sequence[Row]) -> Answer:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    return _score(tokenizer, folder, rows, lambda batch: model(**batch).logits[:, 0], sides=("left", "right"))


def _peft(folder: Path, rows: Sequence[Row], base: str | None) -> Answer:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    contract = PromptContract.load(folder)
    assert contract is not None, "an adapter folder is written with its contract"
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    path = resolve_base(base or settings["base_model_name_or_path"])
    # As in our own loader: a base that is named here is taken as it lies there.
    revision = settings.get("revision") if base is None else None
    is_causal = settings["task_type"] == "CAUSAL_LM"
    auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base_model = auto.from_pretrained(path, revision=revision, dtype=torch.float32)
    base_model.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base_model, str(folder)).eval()

    def score(batch: Any) -> torch.Tensor:
        logits: torch.Tensor = model(**batch).logits
        if not is_causal:
            return logits[:, 0]
        no = 0.0 if contract.no_id is None else logits[:, -1, contract.no_id]
        return (logits[:, -1, contract.yes_id] - no) * contract.scale

    # A language model's last position is the scored one under left padding only.
    return _score(tokenizer, folder, rows, score, sides=("left",))


def _score(
    tokenizer: Any,
    folder: Path,
    rows: Sequence[Row],
    score: Callable[[Any], torch.Tensor],
    sides: Sequence[str],
) -> Answer:
    contract = PromptContract.load(folder)
    assert contract is not None, "an export is written with its contract"
    suffix_ids = PromptEncoder(contract, load_tokenizer(str(folder))).suffix_ids
    ids = [_runtime_ids(tokenizer, row, contract.max_tokens, suffix_ids) for row in rows]

    def scores(size: int, side: str) -> list[float]:
        found: list[float] = []
        for start in range(0, len(ids), size):
            part = {"input_ids": ids[start : start + size]}
            batch = tokenizer.pad(part, padding_side=side, return_tensors="pt")
            found += score(batch).tolist()
        return found

    alone = scores(1, sides[0])
    return Answer(ids, alone, [scores(BATCH, side) for side in sides], _sigmoid(alone))


def _runtime_ids(tokenizer: Any, row: Row, limit: int, suffix_ids: list[int]) -> list[int]:
    """Ids as the model card tells users to make them: the pair, or the chat template with its suffix kept."""
    if not tokenizer.chat_template:
        return list(tokenizer(row["query"], row["document"], truncation=True)["input_ids"])
    messages = [{"role": role, "content": row[role]} for role in ("query", "document")]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if len(ids) <= limit else ids[: limit - len(suffix_ids)] + suffix_ids


def _sentence_transformers(folder: Path, rows: Sequence[Row]) -> Answer:
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    pairs = [(row["query"], row["document"]) for row in rows]
    options = {"show_progress_bar": False, "batch_size": BATCH}
    ids = [model.preprocess([pair])["input_ids"][0].tolist() for pair in pairs]
    alone = [float(model.predict([pair], activation_fn=torch.nn.Identity(), **options)[0]) for pair in pairs]
    batched = model.predict(pairs, activation_fn=torch.nn.Identity(), **options).tolist()
    return Answer(ids, alone, [batched], model.predict(pairs, **options).tolist())


def _sigmoid(logits: Sequence[float]) -> list[float]:
    found: list[float] = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rankwright.parity", description="Check exported folders")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--base", help="where the base of an adapter folder lies")
    options = parser.parse_args(arguments)
    reports = [measure(folder, options.tolerance, options.base) for folder in options.folders]
    for report in reports:
        print(json.dumps(report, ensure_ascii=False))
    return 1 if any(report["failures"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
