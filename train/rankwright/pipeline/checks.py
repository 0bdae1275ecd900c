"""Mistakes in a recipe that only the registries know: names of losses, schedules, measures and targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.resources import check_output, expand, resolve_base
from rankwright.data.words import Words
from rankwright.evaluation.metrics import check_measures
from rankwright.export.privacy import Private
from rankwright.export.servable import impossible, unservable
from rankwright.export.targets import TARGETS
from rankwright.mining.filters import check_filters
from rankwright.mining.samplers import bind_sampler, reads_scores
from rankwright.model.attention import check_attention
from rankwright.model.bases import adapter_base
from rankwright.model.frames import check_prompt_mode
from rankwright.model.instructions import (
    check_mixture,
    entries,
    frozen_instruction,
    recipe_instruction,
    stated_instructions,
)
from rankwright.pipeline.judge import check_pairs
from rankwright.pipeline.pretrain import check_pretrain
from rankwright.pipeline.student import check_student
from rankwright.pipeline.synthesize import check_synthesize
from rankwright.recipe.schema import COMBINED, Recipe
from rankwright.rerankers.kinds import check_baselines, check_teacher
from rankwright.retrieval.first_stages import check_first_stages, reads_run_file
from rankwright.training.loss_terms import bind_loss, reads_teacher, refusing_offset, targets_of_teacher
from rankwright.training.losses import OF_TEACHER
from rankwright.training.optim import SCHEDULES
from rankwright.training.setup import check_base, check_quantization, load_base_tokenizer, recipe_contract
from rankwright.training.trackers import check_trackers


def check_names(recipe: Recipe) -> list[str]:
    """Mistakes that only the registries know: names of losses, schedules and targets, and their parameters."""
    checks: list[tuple[str, Callable[[], object]]] = [
        ("prompt.mode", lambda: check_prompt_mode(recipe.prompt.mode)),
        ("model.attention", lambda: check_attention(recipe.model.attention)),
        ("train.schedule", lambda: SCHEDULES[recipe.train.schedule]),
        ("train.trackers", lambda: check_trackers(recipe.train.trackers)),
        ("evaluate.measures", lambda: check_measures(recipe.evaluate.measures)),
        ("mine.sampler", lambda: bind_sampler(recipe.mine.sampler)),
        ("bm25.language", lambda: Words(recipe.bm25.language)),
    ]
    faults = []
    try:
        bind_loss(recipe.loss)
    except UserErrors as error:
        # They name their keys themselves.
        faults += error.messages
    for key, check in checks:
        try:
            check()
        except UserError as error:
            # Some are raised where they must name their key themselves.
            texts = error.messages if isinstance(error, UserErrors) else [str(error)]
            faults += [text if text.startswith(f"{key}: ") else f"{key}: {text}" for text in texts]
    faults += check_first_stages(recipe) + check_mixture(recipe) + check_filters(recipe.mine) + _check_above(recipe)
    faults += _check_targets(recipe) + _check_lists(recipe)
    if recipe.train.first_stage_offset:
        faults += _check_offset(recipe)
    if recipe.evaluate.baselines:
        faults += check_baselines(recipe)
    if recipe.mine.teacher is not None:
        faults += check_teacher(recipe)
    if recipe.pairs is not None:
        faults += check_pairs(recipe)
    faults += check_student(recipe)
    faults += check_synthesize(recipe) + check_pretrain(recipe)
    for split in ("train", "test"):
        # Documents alone may have no query that a person asked.
        if not getattr(recipe.data, split) and (split == "train" or recipe.synthesize is None):
            faults.append(f"data.{split}: must name at least one set")
    return faults + _check_run_dir(recipe) + _check_private(recipe)


def _check_run_dir(recipe: Recipe) -> list[str]:
    """Why the run's folder cannot be made: found here, not after the data is read."""
    key, path = ("name", Path("runs") / recipe.name) if recipe.run_dir is None else ("run_dir", expand(recipe.run_dir))
    try:
        check_output(key, path, "folder")
    except UserError as error:
        return [f"{error}, run_dir=PATH"]
    return []


def _check_private(recipe: Recipe) -> list[str]:
    """Texts of the recipe that stand in exports and hold what an export must not hold; see export/privacy.py."""
    if not recipe.export_targets:
        return []
    frozen = frozen_instruction(recipe)
    exported = recipe_instruction(recipe) if frozen is None else frozen
    texts = {key: text for key, text in stated_instructions(recipe).items() if text.strip() == exported}
    texts |= {f"{key}.licence": source.licence for key, source in entries(recipe) if source.licence is not None}
    for number, decision in enumerate(recipe.licence.decisions):
        texts |= {f"licence.decisions.{number}.{key}": getattr(decision, key) for key in ("by", "why")}
    private = Private.of_this_machine()
    found = {key: private.first_in([text.encode()]) for key, text in texts.items()}
    return [
        f"{key}: holds {what}: it stands in the exports, which must not have it: word it differently"
        for key, what in found.items()
        if what is not None
    ]


def _check_above(recipe: Recipe) -> list[str]:
    """What the teacher filter keeps must be in some loss: soft labels are for losses of a teacher's scores alone."""
    above = recipe.mine.filters.get("teacher", {}).get("above")
    if above == "promote" and recipe.mine.positives == 1:
        return ["mine.filters.teacher.above: promote needs mine.positives above 1: judged documents are drawn first"]
    if above != "soft" or reads_teacher(recipe.loss):
        return []
    known = f"{', '.join(sorted(OF_TEACHER))}, or ranknet with targets: teacher,"
    return [f"mine.filters.teacher.above: soft needs a loss of a teacher's scores: add one of {known} to loss.plus"]


def _check_targets(recipe: Recipe) -> list[str]:
    """What asks for the scores of a teacher that the recipe does not have."""
    if recipe.has_teacher:
        return []
    asked = targets_of_teacher(recipe.loss)
    asked += [
        (f"mine.sampler.{name}.by", "teacher") for name in recipe.mine.sampler if reads_scores(recipe.mine.sampler)
    ]
    return [f"{key}: {value} needs mine.teacher: {{name, kind, model}}, or teacher.pairs" for key, value in asked]


def _check_lists(recipe: Recipe) -> list[str]:
    """What is trained with the first stage's lists needs them of the training queries."""
    first = recipe.evaluate.first_stage
    sources = (*recipe.data.train, *recipe.data.dev_sources)
    if not reads_run_file(first) or all(source.run is not None for source in sources):
        return []
    lacks = f"evaluate.first_stage is {first}, and training queries have no lists of it: add run: FILE to each set of "
    keys = [*recipe.keys_of_lists, *["teacher.pairs"] * (recipe.pairs is not None)]
    return [f"{key}: {lacks}data.train and data.dev, or take another first stage" for key in keys]


def _check_offset(recipe: Recipe) -> list[str]:
    """What is trained with the first stage's offset is one part of a sum: the other must be there, and be added."""
    key, first = "train.first_stage_offset", recipe.evaluate.first_stage
    faults = [
        f"{key}: {where}: {name} gives each pair a score of its own, which no offset of its list may be part of: take "
        "kl_distil or margin_mse, or remove the offset"
        for where, name in refusing_offset(recipe.loss)
    ]
    lacks = f"tuned alone lacks what {first} knows"
    if recipe.evaluate.combine is None:
        faults.append(f"{key}: {lacks}, and evaluate.combine is switched off: remove one of the two lines")
    if recipe.gate is not None and recipe.gate.system != COMBINED:
        faults.append(f"{key}: {lacks}, and gate.system is {recipe.gate.system}: write gate.system: {COMBINED}")
    return faults


def check_targets(recipe: Recipe, *, offline: bool = False, weights: bool = True) -> list[str]:
    """Why exports of this recipe would fail: wrong names and options, and a base or prompt that a target cannot serve.

    Also all that is wrong with the base itself, as far as its tokenizer, config.json and the headers of its weights
    tell; weights=False for a base without weights. offline: asks no hub, and so skips a base that is not here. Where
    the hub does not give the tokenizer, the stage that needs it reports that.
    """
    faults = impossible(
        recipe.export_targets, lora=recipe.model.method == "lora", quantized=recipe.model.quantize is not None
    )
    if weights:
        faults += check_quantization(recipe)
    known = [name for name in recipe.export_targets if name in TARGETS]
    revision = recipe.model.revision
    try:
        is_here = Path(resolve_base(recipe.model.base)).is_dir()
    except UserError:
        # Pipeline.check() reports a folder that is not there.
        return faults
    if offline and not is_here:
        return faults
    try:
        base, tokenizer = load_base_tokenizer(recipe)
        below = adapter_base(base, revision)
        if offline and below is not None and not Path(resolve_base(below[0])).is_dir():
            return faults
    except UserError as error:
        return faults + ([str(error)] if is_here else [])
    try:
        contract = recipe_contract(recipe, base, tokenizer)
        config = check_base(recipe, base, tokenizer, contract, weights=weights)
    except UserError as error:
        return faults + (error.messages if isinstance(error, UserErrors) else [str(error)])
    return faults + unservable(known, config, tokenizer, contract, on_adapters=below is not None)
