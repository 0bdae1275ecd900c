"""For bench.py: one optimizer step and one scored list, ours and by sentence-transformers, over the same texts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from models import Texts, read_contract

RANK, ALPHA = 16, 32
LEARNING_RATE, CLIP = 1e-4, 1.0


class OurTraining:
    """A model in training. attention: a route of the package, or `auto`."""

    def __init__(self, base: Path, *, method: str, bf16: bool, budget_tokens: int, attention: str = "auto") -> None:
        from accelerate import Accelerator

        from rankwright.model.loading import load_model
        from rankwright.model.prompt import PromptEncoder
        from rankwright.model.trainable import add_lora, train_all
        from rankwright.training.gradients import prepare
        from rankwright.training.losses import LOSSES
        from rankwright.training.optim import make_optimizer

        contract, tokenizer = read_contract(base)
        self.encoder = PromptEncoder(contract, tokenizer)
        frozen_in = torch.bfloat16 if bf16 and method == "lora" else torch.float32
        model = load_model(str(base), contract, tokenizer, dtype=frozen_in)
        if method == "lora":
            model.requires_grad_(False)
            model = add_lora(model, rank=RANK, alpha=ALPHA, dropout=0.0, seed=0)
        else:
            model = train_all(model)
        model.attention = attention
        self.model, self.budget_tokens = model.train(), budget_tokens
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
        prepare(model, self.accelerator)
        self.optimizer = make_optimizer(model.named_parameters(), learning_rate=LEARNING_RATE, weight_decay=0.01)
        self.loss = LOSSES.bind("listwise_softmax", {})

    def step(self, groups: Sequence[Any], number: int) -> float:
        """Seconds of one optimizer step over groups of token ids."""
        from rankwright.training.gradients import accumulate, clip

        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        options: Any = {"budget_tokens": self.budget_tokens, "seed": 0, "step": number}
        accumulate(self.model, groups, self.loss, accelerator=self.accelerator, **options)
        clip(self.model.parameters(), CLIP)
        self.optimizer.step()
        return time.perf_counter() - started


def ours(
    base: Path, lists: Sequence[Texts], *, method: str, bf16: bool, groups_per_step: int, budget_tokens: int
) -> Callable[[int], list[float]]:
    """A function that trains `steps` steps and returns the seconds of each; texts are tokenised before."""
    from rankwright.training.sampling import TrainGroup

    training = OurTraining(base, method=method, bf16=bf16, budget_tokens=budget_tokens)
    encode = training.encoder.encode
    groups = [TrainGroup(str(i), tuple(t.labels), encode(t.query, t.documents)) for i, t in enumerate(lists)]

    def train(steps: int) -> list[float]:
        drawn = [
            [groups[(step * groups_per_step + i) % len(groups)] for i in range(groups_per_step)]
            for step in range(steps)
        ]
        return [training.step(one, number) for number, one in enumerate(drawn)]

    return train


def sentence_transformers(
    hf: Path,
    lists: Sequence[Texts],
    *,
    method: str,
    bf16: bool,
    groups_per_step: int,
    loss: str,
    batch: int,
    by_length: bool,
    frozen_bf16: bool,
    folder: Path,
) -> Callable[[int], list[float]]:
    """As ours(), by CrossEncoderTrainer. loss: bce (batch pairs) or listnet (mini-batches of `batch` pairs)."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
    from transformers import TrainerCallback

    warnings.filterwarnings("ignore")
    dtype = torch.bfloat16 if bf16 and method == "lora" and frozen_bf16 else torch.float32
    model: Any = CrossEncoder(str(hf), device="cpu", model_kwargs={"dtype": dtype})
    if method == "lora":
        _adapters(model)
    per_list = len(lists[0].documents)
    if loss == "bce":
        ordered = [(t.query, d, y) for t in lists for d, y in zip(t.documents, t.labels, strict=True)]
        if by_length:
            ordered = _sorted_windows(ordered, groups_per_step * per_list)
        query, document, label = zip(*ordered, strict=True)
        data = Dataset.from_dict({"query": query, "document": document, "label": label})
        train_batch, accumulation = batch, groups_per_step * per_list // batch
        loss_module: Any = BinaryCrossEntropyLoss(model)
    else:
        columns = {"query": [t.query for t in lists], "docs": [t.documents for t in lists]}
        data = Dataset.from_dict({**columns, "label": [t.labels for t in lists]})
        train_batch, accumulation = groups_per_step, 1
        loss_module = ListNetLoss(model, mini_batch_size=batch)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    def train(steps: int) -> list[float]:
        marks.clear()
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(folder / "st"),
            use_cpu=True,
            bf16=bf16,
            max_steps=steps,
            per_device_train_batch_size=train_batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=LEARNING_RATE,
            max_grad_norm=CLIP,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            batch_sampler=_in_order if by_length else "batch_sampler",
        )
        trainer = CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=data, loss=loss_module, callbacks=[Clock()]
        )
        trainer.train()
        return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]

    return train


def _sorted_windows(rows: list[tuple[str, str, float]], window: int) -> list[tuple[str, str, float]]:
    """Rows sorted by length within each step's window: batches then hold pairs of like length."""
    found = []
    for start in range(0, len(rows), window):
        found += sorted(rows[start : start + window], key=lambda r: -len(r[0]) - len(r[1]))
    return found


def _in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
    """Batches in the order of the rows, through the extension point that sentence-transformers has for it."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def _adapters(model: Any) -> None:
    """LoRA on the same layers with the same rank; through peft itself, since add_adapter asks for a newer peft."""
    from peft import LoraConfig, get_peft_model

    inner = model[0].model
    names = {n.rsplit(".", 1)[-1] for n, m in inner.model.named_modules() if isinstance(m, torch.nn.Linear)}
    model[0].model = get_peft_model(inner, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(names)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name, name
            parameter.data = parameter.data.float()


def our_scorer(base: Path, *, bf16: bool) -> Callable[[Texts], list[float]]:
    """Reranker.score of one list."""
    from rankwright.rerankers.reranker import Reranker

    reranker = Reranker.load(str(base), device="cpu", dtype=torch.bfloat16 if bf16 else torch.float32)
    return lambda texts: reranker.score(texts.query, texts.documents)


def st_scorer(hf: Path, *, bf16: bool, batch: int) -> Callable[[Texts], list[float]]:
    """CrossEncoder.predict of one list; it sorts by length itself."""
    from sentence_transformers import CrossEncoder

    dtype = torch.bfloat16 if bf16 else torch.float32
    model = CrossEncoder(str(hf), device="cpu", model_kwargs={"dtype": dtype})
    options: Any = {"batch_size": batch, "show_progress_bar": False, "activation_fn": torch.nn.Identity()}

    def score(texts: Texts) -> list[float]:
        found: list[float] = model.predict([(texts.query, d) for d in texts.documents], **options).tolist()
        return found

    return score


def cases(bf16: bool, groups_per_step: int, documents: int, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, settings) of sentence-transformers that are tried; the fastest is what we are compared with."""
    pairs = groups_per_step * documents
    for frozen_bf16 in (True, False) if bf16 else (False,):
        note = ", base in bf16" if frozen_bf16 else ""
        common = {"frozen_bf16": frozen_bf16}
        for batch in (8,) if quick else (8, 16, pairs):
            yield f"bce, batch {batch}{note}", {"loss": "bce", "batch": batch, "by_length": False, **common}
            yield f"bce, batch {batch}, sorted{note}", {"loss": "bce", "batch": batch, "by_length": True, **common}
        for batch in (8, 16) if quick else (4, 8, 16, pairs):
            setting = {"loss": "listnet", "batch": batch, "by_length": False}
            yield f"listnet, mini-batch {batch}{note}", setting | common
