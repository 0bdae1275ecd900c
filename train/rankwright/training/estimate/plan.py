"""What a recipe needs on given devices: memory by part, FLOPs and seconds, from shapes on the meta device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from rankwright.common.errors import UserError
from rankwright.model.attention import PLAIN, route_for
from rankwright.model.instructions import training_instructions
from rankwright.model.layout import row_tokens
from rankwright.model.loading import empty_model
from rankwright.model.long_documents import AS_CUT
from rankwright.model.prompt import EncodedGroup, PromptContract, PromptEncoder
from rankwright.model.quantization import NF4, NF4Linear, numbers_of
from rankwright.model.rank_model import RankModel
from rankwright.recipe.schema import Recipe
from rankwright.training.estimate.cost import FP32, Types, scoring_bytes, step_bytes, step_flops
from rankwright.training.estimate.devices import GIB, NO_BF16, Device, find_devices, refuse_precision
from rankwright.training.estimate.shapes import Architecture, Target, architecture_of, row_work, rows_of, step_parts
from rankwright.training.gradients import REDUCE_NUMBERS
from rankwright.training.setup import budget_tokens, make_trainable, precision, recipe_prompt, stored_dtype

GATHERED = "gathered layers and embeddings"
ADAM_BYTES = 8  # two fp32 numbers a trained parameter
LEAST_BUDGET = 1024


@dataclass(frozen=True)
class Plan:
    """A recipe on `count` devices of one kind. group: the longest that it can draw, see longest_group.

    sharded: the base's matrices lie in parts on all devices (FSDP2). model: on the meta device.
    """

    recipe: Recipe
    device: Device
    count: int
    sharded: bool
    group: EncodedGroup
    model: RankModel

    @cached_property
    def shape(self) -> Architecture:
        return architecture_of(self.model)

    @property
    def bits16(self) -> bool:
        return precision(self.recipe, self.device.has_bf16) == "bf16"

    @property
    def budget_tokens(self) -> int:
        return budget_tokens(self.recipe, not self.device.on_cpu)

    @cached_property
    def target(self) -> Target:
        """With the attention route that attention.choose_route takes on such a device."""
        wanted = self.recipe.model.attention if self.why_plain is None else PLAIN
        on_cpu, dtype = self.device.on_cpu, torch.bfloat16 if self.bits16 else torch.float32
        # All devices of the table that have bf16 have the kernel.
        has_kernel = self.bits16 and not on_cpu
        route, _ = route_for(wanted, "cpu" if on_cpu else "cuda", dtype, has_kernel=has_kernel)
        return Target(route, on_cpu, self.bits16, self.sharded, self.model.has_own_layers)

    @cached_property
    def why_plain(self) -> str | None:
        """Why `auto` would not pack this base's rows, as far as config.json tells; None where it does."""
        if self.recipe.model.attention != "auto":
            return None
        route, why = self.model.route()
        return why if route == PLAIN else None

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes of one device by part, at the moment when most is in use: in a step, or while dev is evaluated."""
        types = Types.of(full=self.recipe.model.method == "full", bits16=self.bits16)
        kept, step, scoring = self._weights(types), self._step(types), self._evaluation(types)
        gathered = {GATHERED: kept.pop(GATHERED)} if self.sharded else {}
        moments = [kept | gathered | step, kept | scoring]
        if self.shape.quantized:
            moments.append(self._merged(types))
        # The first of equal ones.
        parts = max(moments, key=lambda moment: sum(moment.values()))
        parts["Python and torch" if self.device.on_cpu else "CUDA context"] = self.device.reserve
        return parts

    def _merged(self, types: Types) -> dict[str, int]:
        """The evaluation after training, where 4 bits are no more: see setup.tuned_reranker."""
        numbers = sum(numbers_of(p) for p in self.model.parameters() if not p.requires_grad)
        shape = dataclasses.replace(self.shape, quantized=False)
        return {"merged weights for evaluation": types.compute * numbers, "scoring": self._scoring(shape, types)}

    def _evaluation(self, types: Types) -> dict[str, int]:
        """Beside weights, gradients and optimizer: the fullest row of dev's lists, and see sharding.gathered."""
        found = {"scoring of dev": self._scoring(self.shape, types)}
        if self.sharded:
            found["the whole model for dev"] = types.compute * sum(p.numel() for p in self.model.parameters())
        return found

    def _scoring(self, shape: Architecture, types: Types) -> int:
        # Lists are of any length, so rows are full.
        target = dataclasses.replace(self.target, sharded=False)
        most = row_tokens(self.device.on_cpu)
        works = [row_work(row, target) for row in rows_of([self.group] * (most // self.group.tokens + 2), target)]
        return max(scoring_bytes(shape, work, types) for work in works)

    def _weights(self, types: Types) -> dict[str, int]:
        """Weights, gradients and optimizer; sharding.shard keeps vectors and adapters whole."""
        adapters = self.recipe.model.method == "lora"
        parts = {"weights": 0, "gradients": 0, "optimizer": 0}
        for parameter in self.model.parameters():
            whole = parameter.ndim < 2 or (adapters and parameter.requires_grad)
            numbers = parameter.numel() if whole or not self.sharded else -(-parameter.numel() // self.count)
            parts["weights"] += numbers * parameter.element_size()
            parts["gradients"] += numbers * parameter.element_size() * parameter.requires_grad
            parts["optimizer"] += numbers * ADAM_BYTES * parameter.requires_grad
        # What their parameters do not hold: the scales of the blocks.
        parts["weights"] += sum(m.bytes - m.weight.numel() for m in self.model.modules() if isinstance(m, NF4Linear))
        if self.sharded:
            # One layer computes while the next arrives; a layer's gradients are whole until they are summed.
            layer = sum(linear.base for linear in self.shape.linears.values())
            embeddings = self.model.causal_lm.get_input_embeddings().weight
            parts[GATHERED] = layer * (3 if self.shape.full else 2) * types.compute
            parts[GATHERED] += embeddings.numel() * embeddings.element_size()
        elif self.count > 1:
            parts["summing gradients"] = min(parts["gradients"], FP32 * REDUCE_NUMBERS)
        return parts

    def _step(self, types: Types) -> dict[str, int]:
        (batches,) = step_parts(
            self._fullest(), ranks=1, budget_tokens=self.budget_tokens, one_by_one=self.shape.dropout
        )
        steps = []
        for part in (part for batch in batches for part in batch):
            works = [row_work(row, self.target) for row in rows_of(part, self.target)]
            steps.append(step_bytes(self.shape, works, self.target, types))
        most = max(steps, key=lambda step: step.total)
        activations = most.activations
        if not self.device.on_cpu:
            # On a GPU AdamW computes all updates at once, after the activations are gone.
            trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            activations = max(activations, FP32 * trained // (self.count if self.sharded and self.shape.full else 1))
        return {"activations": activations, "tokens and masks": most.tokens, "scores": most.head}

    def _fullest(self) -> list[EncodedGroup]:
        """The groups of a step, as long as they can be and still fill a micro-batch to its budget."""
        group, budget = self.group, self.budget_tokens
        together = min(self.recipe.train.groups_per_step, -(-budget // group.tokens))
        if together > 1 and not self.shape.dropout:
            each = (budget // together - len(group.head_ids)) // len(group.tail_ids)
            group = dataclasses.replace(group, tail_ids=[tail[: max(1, each)] for tail in group.tail_ids])
        return [group] * self.recipe.train.groups_per_step

    @property
    def total(self) -> int:
        """Bytes of one device."""
        return sum(self.memory.values())

    def groups(self, mean_tokens: int | None = None) -> list[EncodedGroup]:
        """The groups of a step: the longest, or as long but with prompts of mean_tokens tokens."""
        group = self.group
        if mean_tokens is not None:
            tail = [0] * max(1, mean_tokens - len(group.head_ids))
            group = dataclasses.replace(group, tail_ids=[tail] * len(group.tail_ids))
        return [group] * self.recipe.train.groups_per_step

    def step_flops(self, mean_tokens: int | None = None) -> list[int]:
        """FLOPs of each device in one step."""
        return step_flops(
            self.shape,
            self.groups(mean_tokens),
            self.target,
            budget_tokens=self.budget_tokens,
            ranks=self.count,
        )

    @property
    def peak(self) -> float | None:
        """FLOP/s of one device in the recipe's precision; None where it is not known."""
        return self.device.bf16 if self.bits16 else self.device.fp32

    def step_seconds(self, mfu: float, mean_tokens: int | None = None) -> float | None:
        """Seconds of one step, which lasts until the busiest device is done; None where its speed is not known."""
        return max(self.step_flops(mean_tokens)) / (self.peak * mfu) if self.peak else None


def longest_group(recipe: Recipe, contract: PromptContract, tokenizer: Any) -> EncodedGroup:
    """As many documents as a query can give, each prompt of max_tokens, and a query that leaves them that room."""
    documents = ["word " * contract.max_tokens] * (recipe.mine.positives + recipe.mine.negatives)
    # A prompt of blocks may have fewer tokens.
    encoder = PromptEncoder(contract, tokenizer).reading(AS_CUT)
    encoders = map(encoder.under, training_instructions(recipe) or [None])
    return max((under.encode("", documents) for under in encoders), key=lambda group: group.tokens)


def make_plan(recipe: Recipe, gpus: str | None = None, *, sharded: bool = False, memory: float | None = None) -> Plan:
    """Reads config.json and the tokenizer of the base, no weights; on `cpu` it measures the machine for half a second.

    gpus, memory: as find_devices has them. Raises UserError for what is unknown, or does not fit; it then names what
    would.
    """
    count, device = find_devices(gpus, memory)
    refuse_precision(device, recipe.train.precision)
    if sharded and count == 1:
        raise UserError("--fsdp2: one device has nothing to share the weights with: say how many, e.g. --gpus 8xh100")
    if sharded and recipe.model.quantize:
        raise UserError(f"--fsdp2: {recipe.model.quantize} weights are not sharded: leave it out, or model.quantize")
    base, tokenizer, contract = recipe_prompt(recipe)

    def build(recipe: Recipe, sharded: bool) -> Plan:
        dtype = stored_dtype(recipe, device.has_bf16)
        with torch.device("meta"):
            model = empty_model(base, contract, tokenizer, revision=recipe.model.revision, dtype=dtype)
            model = make_trainable(recipe, model)
        return Plan(recipe, device, count, sharded, longest_group(recipe, contract, tokenizer), model)

    plan = build(recipe, sharded)
    if plan.total > device.memory:
        raise UserError(_too_large(plan, build))
    return plan


def _too_large(plan: Plan, build: Callable[[Recipe, bool], Plan]) -> str:
    largest = sorted(plan.memory.items(), key=lambda item: -item[1])[:2]
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
    wrong = (
        f"--gpus: needs {plan.total / GIB:.1f} GiB on each device ({parts}), and {plan.device.name} has "
        f"{plan.device.memory / GIB:.1f}: "
    )
    # One change alone is better than several; what is lost least comes first.
    singles = (CHANGES[0], _cheap_checkpointing, *CHANGES[1:])
    tried = [[change] for change in singles] + [list(CHANGES[: n + 1]) for n in range(1, len(CHANGES))]
    changed = plan
    for changes in tried:
        said = []
        changed = plan
        for change in changes:
            what, recipe, sharded = change(changed)
            if what:
                said.append(what)
                changed = build(recipe, sharded)
        if changed.total <= changed.device.memory:
            return f"{wrong}it fits with {' '.join(said)} ({changed.total / GIB:.1f} GiB)"
    return (
        f"{wrong}choose a smaller model.base or devices with more memory "
        f"(with {' '.join(said)} it still needs {changed.total / GIB:.1f} GiB)"
    )


# Ways to need less memory: a plan -> (what to say, "" when it is so already; the recipe; whether it is sharded).
Change = Callable[[Plan], tuple[str, Recipe, bool]]


def _smaller_budget(plan: Plan) -> tuple[str, Recipe, bool]:
    """The largest half, quarter, ... that fits, or the least."""
    before = budget = plan.budget_tokens
    while budget > LEAST_BUDGET and plan.total > plan.device.memory:
        budget //= 2
        plan = dataclasses.replace(plan, recipe=_with(plan.recipe, "train", budget_tokens=budget))
    return f"train.budget_tokens={budget}" if budget != before else "", plan.recipe, plan.sharded


def _checkpointing(plan: Plan) -> tuple[str, Recipe, bool]:
    said = "" if plan.recipe.model.recomputes == "full" else "model.gradient_checkpointing=full"
    return said, _with(plan.recipe, "model", gradient_checkpointing="full"), plan.sharded


def _cheap_checkpointing(plan: Plan) -> tuple[str, Recipe, bool]:
    if plan.recipe.model.recomputes != "none":
        return "", plan.recipe, plan.sharded
    changed = _with(plan.recipe, "model", gradient_checkpointing="cheap")
    return "model.gradient_checkpointing=cheap", changed, plan.sharded


def _fsdp2(plan: Plan) -> tuple[str, Recipe, bool]:
    return ("" if plan.sharded or plan.count == 1 else "--fsdp2"), plan.recipe, plan.count > 1


def _bf16(plan: Plan) -> tuple[str, Recipe, bool]:
    if plan.device.bf16 == NO_BF16:
        return "", plan.recipe, plan.sharded
    return "" if plan.bits16 else "train.precision=bf16", _with(plan.recipe, "train", precision="bf16"), plan.sharded


def _lora(plan: Plan) -> tuple[str, Recipe, bool]:
    said = "" if plan.recipe.model.method == "lora" else "model.method=lora"
    return said, _with(plan.recipe, "model", method="lora"), plan.sharded


def _with(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def _nf4(plan: Plan) -> tuple[str, Recipe, bool]:
    settings = plan.recipe.model
    if settings.quantize or settings.method == "full" or settings.dora or plan.sharded:
        return "", plan.recipe, plan.sharded
    return f"model.quantize={NF4}", _with(plan.recipe, "model", quantize=NF4), False


CHANGES: tuple[Change, ...] = (_smaller_budget, _checkpointing, _fsdp2, _bf16, _lora, _nf4)
