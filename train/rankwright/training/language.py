"""Objectives of a language model beside the loss of the lists: text, the likelihood of queries, kept answers."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.common.processes import Processes
from rankwright.data.collection import Collection
from rankwright.model.control_tokens import control_tokens, neutralise
from rankwright.model.layout import plan_step
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.model.sharding import gathered
from rankwright.model.text_blocks import Draws, Texts, frame_ids
from rankwright.training.gradients import added
from rankwright.training.sampling import TrainGroup
from rankwright.training.token_losses import chunk_rows, head_weight, token_loss

# T predicted tokens, H hidden size, V rows of the head, N prompts.
# Around the document and the query whose likelihood is trained.
BEFORE_DOCUMENT, BEFORE_QUERY = "Document: ", "\nQuery:"
# How much of the divergence from the base goes with text where none is replayed: half of each target is the base's.
DIVERGENCE = 1.0
# Two tokens that take part in a pass without weight.
IDLE = [0, 0]


class Auxiliary(Protocol):
    """Further objectives, whose gradients are added to those of the lists."""

    def accumulate(
        self, model: RankModel, step: int, groups: Sequence[TrainGroup], *, accelerator: Any, budget_tokens: int
    ) -> dict[str, float]:
        """Add the weighted gradients of step `step`, the same on every rank; returns the values to log.

        A pure function of the weights, the step and the groups, which are those of all ranks: a killed run continues
        exactly. Values are means over the step; without groups `loss` is what is minimised, their weighted sum.
        """

    @property
    def passed(self) -> Sequence[int]:
        """Lengths of the texts that went through the model in the last step, on all ranks: what the step cost."""

    def evaluate(self, model: RankModel) -> dict[str, float]:
        """Held-out perplexities, by the name of the text; all ranks together."""


@dataclass(frozen=True, slots=True)
class Example:
    """What goes through the model together: texts, and in each the place of the first predicted token, 1 or more.

    key: by which masks of dropout are drawn. weight: of each predicted token.
    """

    key: str
    texts: Sequence[Sequence[int]]
    starts: Sequence[int]
    weight: float = 1.0

    @classmethod
    def of_block(cls, key: str, texts: Texts) -> Example:
        """Every token of a block is predicted but the first of each text; a text of one token has none."""
        texts = [text for text in texts if len(text) > 1]
        return cls(key, texts, [1] * len(texts))

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(map(len, self.texts))

    @property
    def predicted(self) -> int:
        return sum(len(text) - start for text, start in zip(self.texts, self.starts, strict=True))


class FrozenBase:
    """The model as it is now: without adapters, or with a copy of all weights where these are trained.

    dtype: of the copy, which takes the memory of a second model. Made before the first step.
    Raises UserError for a copy of a model whose weights are sharded.
    """

    def __init__(self, model: RankModel, dtype: torch.dtype) -> None:
        self._copy = None
        if not hasattr(model.lm, "peft_config"):
            if model.sharded:
                raise UserError(
                    "model.method: full: sharded weights cannot be compared with those before training: set "
                    "model.method=lora, or train in one process"
                )
            self._copy = copy.deepcopy(model).requires_grad_(False).to(dtype)

    @contextmanager
    def within(self, model: RankModel) -> Iterator[RankModel]:
        """The base that `model` was made of, without a graph."""
        off = nullcontext() if self._copy is not None else cast(Any, model.lm).disable_adapter()
        with torch.no_grad(), off:
            yield model if self._copy is None else self._copy


@dataclass(frozen=True, slots=True)
class Pass:
    """What all passes of an objective in one step share."""

    model: RankModel
    step: int
    seed: int
    accelerator: Any
    budget_tokens: int

    def own(self, tokens: Sequence[int]) -> tuple[list[list[int]], int]:
        """(this rank's micro-batches as places in `tokens`, how many passes it adds to have as many as others).

        With dropout each example is a micro-batch of its own, so that its masks do not depend on its neighbours.
        """
        processes = Processes.of_group()
        budget = 0 if self.model.has_dropout else self.budget_tokens
        plan = plan_step(tokens, ranks=processes.count, budget_tokens=budget)
        own = plan[processes.rank]
        return own, max(map(len, plan)) - len(own) if self.model.sharded else 0

    def seeded(self, name: str, key: str) -> None:
        """Masks of dropout depend on the example alone."""
        torch.manual_seed(stable_hash("dropout", name, self.seed, self.step, key) % 2**63)


class Objective(ABC):
    """One objective. weight: in the loss that is trained. name: how its value is logged."""

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        # Lengths of what the last step predicted tokens of, on all ranks.
        self.passed: list[int] = []

    @property
    def weights(self) -> dict[str, float]:
        """Name of each value that add() returns -> its weight in what is minimised."""
        return {self.name: self.weight}

    @abstractmethod
    def add(self, run: Pass, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """Add this rank's part of the gradient; returns its part of the values, whose sums over the ranks are means."""


class TokenObjective(Objective):
    """Next tokens of examples: the mean cross-entropy, and with `divergence` that much of the mean KL from the base.

    The divergence is KL(base || model) over the whole vocabulary, on the same tokens.
    """

    def __init__(self, name: str, weight: float, *, divergence: float = 0.0, base: FrozenBase | None = None) -> None:
        super().__init__(name, weight)
        assert not divergence or base is not None, "a divergence needs the base"
        self._divergence, self._base = divergence, base if divergence else None

    @property
    def weights(self) -> dict[str, float]:
        """See Objective.weights."""
        return {self.name: self.weight, f"{self.name}_divergence": self.weight * self._divergence}

    @abstractmethod
    def examples(self, run: Pass, groups: Sequence[TrainGroup]) -> list[Example]:
        """Those of all ranks, in one order."""

    def add(self, run: Pass, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """See Objective.add."""
        examples = [e for e in self.examples(run, groups) if e.predicted]
        self.passed = [len(text) for e in examples for text in e.texts]
        if not examples:
            return {}
        own, idle = run.own([e.tokens for e in examples])
        divisor = sum(e.predicted * e.weight for e in examples)
        head_VH = _head(run.model, run.accelerator)
        sums_2 = torch.zeros(2, dtype=torch.float64)
        for batch in own:
            sums_2 += self._backward(run, [examples[i] for i in batch], divisor, head_VH)
        for _ in range(idle):
            self._backward(run, [Example("idle", [IDLE], [1], weight=0.0)], divisor, head_VH)
        values = {self.name: float(sums_2[0])}
        return values if self._base is None else {**values, f"{self.name}_divergence": float(sums_2[1])}

    def _backward(self, run: Pass, batch: Sequence[Example], divisor: float, head_VH: Tensor) -> Tensor:
        """Mean cross-entropy and mean divergence of a micro-batch, as its parts of the whole."""
        texts = [text for e in batch for text in e.texts]
        places_T, targets_T, weights_T = (x.to(run.model.device) for x in predicted(batch))
        weights_T = weights_T / divisor
        base_TH = None
        if self._base is not None:
            with self._base.within(run.model) as base, run.accelerator.autocast():
                base_TH = base([], texts)[places_T]
        run.seeded(self.name, batch[0].key)
        states_TH = run.model([], texts)[places_T]
        loss, parts_2 = token_loss(
            states_TH,
            head_VH,
            targets_T,
            weights_T * self.weight,
            rows=chunk_rows(run.budget_tokens, len(head_VH)),
            base_TH=base_TH,
            divergence_T=None if base_TH is None else weights_T * (self.weight * self._divergence),
        )
        run.accelerator.backward(loss)
        return parts_2.cpu() / torch.tensor([self.weight, self.weight * self._divergence or 1.0], dtype=torch.float64)


def predicted(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(places_T, targets_T, weights_T) over the tokens of all texts: the state at each place predicts the target."""
    places, targets, weights = list[int](), list[int](), list[float]()
    begin = 0
    for example in batch:
        for text, start in zip(example.texts, example.starts, strict=True):
            places += range(begin + start - 1, begin + len(text) - 1)
            targets += text[start:]
            weights += [example.weight] * (len(text) - start)
            begin += len(text)
    return torch.tensor(places), torch.tensor(targets), torch.tensor(weights, dtype=torch.float32)


def _head(model: RankModel, accelerator: Any = None) -> Tensor:
    """head_VH whose products with states are logits, in the type that products are computed in."""
    with nullcontext() if accelerator is None else accelerator.autocast():
        head_VH = head_weight(model).to(model.compute_dtype)
    return head_VH if model.head_factor == 1.0 else head_VH * model.head_factor


class TextObjective(TokenObjective):
    """The next tokens of blocks of text; with `divergence`, where there is no text to replay, near to the base."""

    def __init__(self, weight: float, draws: Draws, *, divergence: float = 0.0, base: FrozenBase | None = None) -> None:
        super().__init__("text_loss", weight, divergence=divergence, base=base)
        self._draws = draws

    def examples(self, run: Pass, groups: Sequence[TrainGroup]) -> list[Example]:
        """The blocks of the step."""
        return [Example.of_block(str(n), texts) for n, texts in enumerate(self._draws.step(run.step))]


class QueryLikelihood(TokenObjective):
    """The tokens of each group's query, given one of its relevant documents under a prompt of our own.

    A query of several relevant documents has another one each time; a group without any has none. max_tokens: of a
    prompt; the document is cut. Paper: Nogueira et al. 2020, arXiv 2003.06713; as training of a reranker, Zhang et al.
    2023, arXiv 2311.16720.
    """

    def __init__(self, weight: float, collections: Sequence[Collection], tokenizer: Any, *, max_tokens: int) -> None:
        super().__init__("query_likelihood", weight)
        self._owner = {query_id: c for c in collections for query_id in c.queries}
        self._tokenizer, self._control, self._max_tokens = tokenizer, control_tokens(tokenizer), max_tokens
        self._first, _ = frame_ids(tokenizer)

    def examples(self, run: Pass, groups: Sequence[TrainGroup]) -> list[Example]:
        """One for each group with a relevant document, with the group's weight."""
        found = []
        for group in groups:
            collection = self._owner[group.query_id]
            ids = sorted(collection.positives(group.query_id))
            if not ids or not group.weight:
                continue
            drawn = ids[stable_hash("likelihood", run.seed, run.step, group.query_id) % len(ids)]
            text, start = self.prompt(collection.queries[group.query_id], collection.corpus[drawn])
            found.append(Example(group.query_id, [text], [start], group.weight))
        return found

    def prompt(self, query: str, document: str) -> tuple[list[int], int]:
        """(token ids, the place of the query's first token), both texts cut so that the prompt has max_tokens."""
        before, between = self._ids(BEFORE_DOCUMENT), self._ids(BEFORE_QUERY)
        room = self._max_tokens - len(self._first) - len(before) - len(between)
        own = self._ids(" " + self._clean(query))[: max(1, room // 2)]
        head = [*self._first, *before, *self._ids(self._clean(document))[: room - len(own)], *between]
        return [*head, *own], len(head)

    def _clean(self, text: str) -> str:
        return neutralise(text.strip(), self._control).strip()

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class KeepAnswers(Objective):
    """KL(base || model) between the answers yes and no, on a share of the groups' prompts: at least one a step.

    The rows of the head are frozen, and hidden states that text has moved would change what they answer.
    """

    def __init__(self, weight: float, base: FrozenBase, *, share: float = 0.01) -> None:
        super().__init__("keep_answers", weight)
        self._base, self._share = base, share

    def prompts(self, run: Pass, groups: Sequence[TrainGroup]) -> list[EncodedGroup]:
        """The drawn prompts of all ranks, each as a group of one document."""
        places = sorted(
            (stable_hash("answers", run.seed, run.step, g.query_id, number), n, number)
            for n, g in enumerate(groups)
            for number in range(len(g.encoded.tail_ids))
        )
        drawn = places[: max(1, round(self._share * len(places)))]
        found = [(groups[n].encoded, number) for _, n, number in drawn]
        return [EncodedGroup(of.head_ids, [of.tail_ids[number]], of.query_cut, 0) for of, number in found]

    def add(self, run: Pass, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """See Objective.add."""
        prompts = self.prompts(run, groups)
        if not prompts:
            return {}
        own, idle = run.own([p.tokens for p in prompts])
        total = 0.0
        for batch in own:
            total += self._backward(run, [prompts[i] for i in batch], str(batch[0]), 1.0 / len(prompts))
        for _ in range(idle):
            self._backward(run, [EncodedGroup(IDLE[:1], [IDLE[1:]], False, 0)], "idle", 0.0)
        return {self.name: total}

    def _backward(self, run: Pass, prompts: Sequence[EncodedGroup], key: str, share: float) -> float:
        with self._base.within(run.model) as base, run.accelerator.autocast():
            base_N = base(prompts)
        run.seeded(self.name, key)
        divergence = answer_divergence(base_N, run.model(prompts)).sum() * share
        run.accelerator.backward(divergence * self.weight)
        return float(divergence.detach())


def answer_divergence(base_N: Tensor, scores_N: Tensor) -> Tensor:
    """KL_N between the answers yes and no, whose logits differ by the scores: 0 where both scores are equal."""
    yes_N, no_N = F.logsigmoid(base_N), F.logsigmoid(-base_N)
    parts_N = yes_N.exp() * (yes_N - F.logsigmoid(scores_N))
    return parts_N + no_N.exp() * (no_N - F.logsigmoid(-scores_N))


class LanguageObjectives:
    """Several objectives as one Auxiliary. held_out: name of a text -> the blocks of which evaluate() gives perplexity.

    budget_tokens: of a pass in evaluate().
    """

    def __init__(
        self, objectives: Sequence[Objective], *, held_out: Mapping[str, Sequence[Texts]], seed: int, budget_tokens: int
    ) -> None:
        self._objectives = [o for o in objectives if o.weight]
        self._held_out, self._seed, self._budget_tokens = held_out, seed, budget_tokens

    def accumulate(
        self, model: RankModel, step: int, groups: Sequence[TrainGroup], *, accelerator: Any, budget_tokens: int
    ) -> dict[str, float]:
        """See Auxiliary.accumulate."""
        run = Pass(model, step, self._seed, accelerator, budget_tokens)
        own: dict[str, float] = {}
        with added(model.parameters()):
            for objective in self._objectives:
                own |= objective.add(run, groups)
        every = Processes.of_group().gather(own)
        values = {name: sum(of.get(name, 0.0) for of in every) for name in own}
        if not groups:
            weights = {name: weight for objective in self._objectives for name, weight in objective.weights.items()}
            values["loss"] = sum(weights[name] * value for name, value in values.items())
        return values

    @property
    def passed(self) -> list[int]:
        """See Auxiliary.passed; the few prompts of kept answers are not counted."""
        return [length for objective in self._objectives for length in objective.passed]

    def evaluate(self, model: RankModel) -> dict[str, float]:
        """See Auxiliary.evaluate."""
        return {
            f"{name}_perplexity": perplexity(model, blocks, budget_tokens=self._budget_tokens)
            for name, blocks in self._held_out.items()
        }


def perplexity(
    model: RankModel,
    blocks: Sequence[Texts],
    *,
    budget_tokens: int,
    advance: Callable[[int], object] = lambda count: None,
) -> float:
    """exp of the mean cross-entropy of a token in nats, over the blocks; all ranks together.

    budget_tokens: of a pass. advance(count) is called as this rank's blocks are done.
    """
    processes, was_training = Processes.of_group(), model.training
    sums_2 = torch.zeros(2, dtype=torch.float64)
    examples = [e for e in (Example.of_block("", texts) for texts in blocks) if e.predicted]
    plan = plan_step([e.tokens for e in examples], ranks=processes.count, budget_tokens=budget_tokens)
    model.eval()
    with gathered(model), torch.no_grad():
        head_VH = _head(model)
        for places in plan[processes.rank]:
            batch = [examples[i] for i in places]
            places_T, targets_T, weights_T = (x.to(model.device) for x in predicted(batch))
            states_TH = model([], [text for e in batch for text in e.texts])[places_T]
            rows = chunk_rows(budget_tokens, len(head_VH))
            _, parts_2 = token_loss(states_TH, head_VH, targets_T, weights_T, rows=rows)
            sums_2 += torch.tensor([float(parts_2[0]), len(targets_T)], dtype=torch.float64)
            advance(len(batch))
    model.train(was_training)
    total = torch.tensor(processes.gather(sums_2.tolist()), dtype=torch.float64).sum(dim=0)
    return math.exp(float(total[0] / total[1]))
