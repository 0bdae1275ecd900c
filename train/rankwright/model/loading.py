"""Bases and tokenizers from a folder or the hub; every model gets a two-row yes/no head in fp32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, cast

import torch

from rankwright.common.errors import UserError, in_one_line
from rankwright.common.plurals import counted
from rankwright.common.resources import resolve_base
from rankwright.model.adapters import adapter_weights, put_on
from rankwright.model.bases import (
    INSTEAD,
    adapter_base,
    below_adapters,
    check_values,
    config_value,
    refuse_damaged,
    refuse_other_kinds,
    refuse_pickles,
    why_no_hub,
)
from rankwright.model.control_tokens import control_tokens
from rankwright.model.frames import choose_pad_token
from rankwright.model.heads import check_scores, head_factor
from rankwright.model.prompt import CONTRACT_FILE, PromptContract, PromptEncoder
from rankwright.model.rank_model import UNLIMITED, RankModel, scored_rows
from rankwright.model.weight_files import check_fit, refuse_not_finite, refuse_unfit

Precision = Literal["fp32", "bf16"]
# Keys of config.json by which a base draws random numbers in training.
OWN_NOISE = re.compile(r"^(?!classifier|summary).*(dropout|drop_path|pdrop|layerdrop|jitter)")


def load_tokenizer(folder: str, revision: str | None = None) -> Any:
    """The base's tokenizer with a pad token that differs from eos. Raises UserError if it cannot be loaded."""
    from transformers import AutoTokenizer

    refuse_damaged(folder)
    tokenizer = _from_pretrained(AutoTokenizer, folder, revision=revision)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"model.base: {folder}: {type(tokenizer).__name__} gives no places of tokens in a text: take a base with a "
            "tokenizer.json"
        )
    with in_one_line(f"model.base: {folder}: its tokenizer cannot be used", "copy the folder again"):
        _keep_line_breaks(tokenizer)
        # The contract has the budgets; the tokenizer's own limit would only warn about texts that are cut later.
        tokenizer.model_max_length = UNLIMITED
        tokenizer.pad_token = choose_pad_token(tokenizer)
    return tokenizer


def load_encoder(folder: str | Path) -> PromptEncoder:
    """The prompts of an exported folder, without its weights. Raises UserError for a folder without a contract."""
    contract = PromptContract.load(Path(folder))
    if contract is None:
        raise UserError(f"{folder}: no {CONTRACT_FILE}: name a folder that Rankwright exported")
    return PromptEncoder(contract, load_tokenizer(str(folder)))


def _keep_line_breaks(tokenizer: Any) -> None:
    """Remove the Strip that our exports put first: it serves callers who tokenise bare texts, and would harm frames."""
    from tokenizers import normalizers

    steps = tokenizer.backend_tokenizer.normalizer
    if isinstance(steps, normalizers.Sequence) and len(steps) and isinstance(steps[0], normalizers.Strip):
        rest = [steps[i] for i in range(1, len(steps))]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(rest)


def load_model(
    folder: str,
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> RankModel:
    """A base from a local folder or hub id, in `dtype`, whose scores were compared with its own logits.

    Raises UserError for weights that are missing, left over, of other shapes or not finite, and for a head whose logits
    the scored rows cannot give. Reads causal language models, one-label sequence classifiers (our own exports) and
    PEFT adapter folders.
    base: where the base of adapters lies, if their own settings do not name a hub id.
    """
    with in_one_line(f"model.base: {folder}: cannot be loaded", INSTEAD):
        return _load(folder, contract, tokenizer, revision=revision, dtype=dtype, base=base)


def _load(
    folder: str,
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None,
    dtype: torch.dtype,
    base: str | None,
) -> RankModel:
    refuse_pickles(folder)
    if (named := adapter_base(folder, revision)) is not None:
        return _load_adapter(folder, named, contract, tokenizer, revision=revision, dtype=dtype, base=base)
    config, auto = _config(folder, contract, tokenizer, revision)
    kind = class_of(folder, config, auto)
    if Path(folder).is_dir():
        # Before wrong sizes are given memory.
        check_fit(folder, own_config(config, kind), kind)
    dropout = _without_dropout(config)
    options = {"revision": revision, "config": config, "dtype": dtype, "output_loading_info": True}
    # A pickle may run code when it is loaded.
    options |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
    lm, info = _from_pretrained(auto, folder, **options)
    refuse_unfit(folder, lm, info)
    refuse_not_finite(folder, lm.state_dict().items())
    for module in lm.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model = _with_rows(folder, lm, contract, tokenizer, head_factor(folder, own_config(config, kind), kind))
    model.own_dropout = dropout
    check_scores(folder, model, contract, tokenizer)
    return model


def _with_rows(folder: str, lm: Any, contract: PromptContract, tokenizer: Any, factor: float) -> RankModel:
    if getattr(lm, "score", None) is not None:
        weight_H = lm.score.weight[0]
        return RankModel(lm, torch.stack([torch.zeros_like(weight_H), weight_H]), tokenizer.pad_token_id)
    head = lm.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        raise UserError(f"model.base: {folder}: {type(lm).__name__} has no head that is read here: {INSTEAD}")
    model = RankModel(lm, scored_rows(head.weight, contract, factor), tokenizer.pad_token_id)
    model.head_factor = factor
    return model


def _without_dropout(config: Any) -> dict[str, float]:
    """Turn the base's own dropout and noise off; returns the keys of config.json and their values.

    Inside a base masks are drawn for a whole row or chunk: gradients would depend on the budget and the processes.
    """
    found = {}
    for one in {id(c): c for c in (config, config.get_text_config())}.values():
        for key, value in vars(one).items():
            if OWN_NOISE.search(key) and isinstance(value, float | int) and not isinstance(value, bool) and value > 0:
                found[key] = float(value)
        for key in found:
            if hasattr(one, key):
                setattr(one, key, 0.0)
    return found


def load_merged(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """load_model() with adapters merged, in fp32 and cast once, so that new adapters can be trained on it."""
    if adapter_base(folder, revision) is None:
        return load_model(folder, contract, tokenizer, revision=revision, dtype=dtype)
    model = load_model(folder, contract, tokenizer, revision=revision)
    model.lm = cast(Any, model.lm).merge_and_unload().to(dtype)
    return model


def empty_model(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """A model with the shapes and types of load_model(), from config.json alone, and with arbitrary weights.

    Under `torch.device("meta")` it takes neither memory nor time.
    """
    config, auto = _config(folder, contract, tokenizer, revision)
    class_of(folder, config, auto)
    dropout = _without_dropout(config)
    with in_one_line(f"model.base: {folder}: no model can be made of its config.json", "mend the values there"):
        lm = auto.from_config(config, dtype=dtype)
        model = RankModel(lm, torch.zeros(2, config.get_text_config().hidden_size), tokenizer.pad_token_id)
    model.own_dropout = dropout
    return model


def check_files(
    folder: str, contract: PromptContract, tokenizer: Any, revision: str | None = None, *, weights: bool = True
) -> RankModel:
    """What load_model() would refuse, as far as config.json and the headers of local weights tell, in a second.

    weights=False: by config.json alone.
    Returns the model on the meta device; for a folder of adapters, the base below them.
    """
    try:
        with in_one_line(f"model.base: {folder}: cannot be read", INSTEAD):
            return _checked(folder, contract, tokenizer, revision, weights)
    except UserError as error:
        if (named := adapter_base(folder, revision)) is None or folder in str(error):
            raise
        raise UserError(f"{folder}: adapters of the base {named[0]!r}: {error}; or start where it lies") from None


def _checked(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None, weights: bool) -> RankModel:
    below, below_revision = below_adapters(folder, revision)
    with torch.device("meta"):
        model = empty_model(below, contract, tokenizer, revision=below_revision, dtype=torch.float32)
    config = model.causal_lm.config
    if weights and Path(below).is_dir():
        check_fit(below, config, type(model.causal_lm))
    if model.causal_lm.get_output_embeddings() is not None:
        head_factor(below, config, type(model.causal_lm))
    while (named := adapter_base(folder, revision)) is not None:
        if weights and Path(folder).is_dir():
            refuse_pickles(folder)
            put_on(model, folder, revision)
            model.lm = cast(Any, model.lm).unload()
        folder, revision = resolve_base(named[0]), named[1]
    return model


def _config(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None) -> tuple[Any, Any]:
    """The base's config, checked, and the class of transformers that its weights are of."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    folder, revision = below_adapters(folder, revision)
    refuse_other_kinds(folder, folder, revision)
    config = _from_pretrained(AutoConfig, folder, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    text = config.get_text_config()
    if config_value(text, "final_logit_softcapping"):
        raise UserError(f"model.base: {folder}: its logits are capped, which our head does not do: choose another base")
    check_values(folder, text)
    positions = config_value(text, "max_position_embeddings")
    if isinstance(positions, int) and contract.max_tokens > positions:
        raise UserError(f"prompt.max_tokens: {contract.max_tokens}, but {folder} has {positions} positions: lower it")
    _refuse_vocabulary(folder, text, contract, tokenizer)
    _refuse_quantised(folder, config)
    is_classifier = (config.architectures or ["?"])[0].endswith("ForSequenceClassification")
    return config, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM


def class_of(folder: str, config: Any, auto: Any) -> Any:
    """The class that AutoModelFor... makes of a config. Raises UserError where transformers has none."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForCausalLM,
    )

    known = MODEL_FOR_CAUSAL_LM_MAPPING if auto is AutoModelForCausalLM else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in known:
        form = "causal" if auto is AutoModelForCausalLM else "classifier's"
        raise UserError(f"model.base: {folder}: {config.model_type} has no {form} form in transformers: {INSTEAD}")
    return known[type(config)]


def own_config(config: Any, kind: Any) -> Any:
    """The part of a config that a class reads: that of the texts, for a language model of a base that sees too."""
    text = config.get_text_config()
    return text if kind.config_class is type(text) else config


def _refuse_vocabulary(folder: str, text: Any, contract: PromptContract, tokenizer: Any) -> None:
    """Raises UserError where a prompt can hold, or a score needs, a token beyond the rows of the embeddings.

    Control tokens do not come from users' texts, so that only those of the frame matter: some tokenizers have one for
    images beyond the rows of a model without images.
    """
    contract.check_tokens(tokenizer)
    rows = config_value(text, "vocab_size")
    if not isinstance(rows, int):
        return
    scored = {contract.yes_token: contract.yes_id, contract.no_token: contract.no_id}
    for token, number in scored.items():
        if number is not None and not 0 <= number < rows:
            raise UserError(f"model.base: {folder}: {token!r} is token {number}, and the embeddings have {rows} rows")
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    frame = contract.prefix + contract.middle + contract.document_prefix + contract.suffix
    control = control_tokens(tokenizer)
    used = [t for t in sorted(beyond) if t not in control or t in frame or t == tokenizer.pad_token]
    if used:
        raise UserError(
            f"model.base: {folder}: the tokenizer has {counted(len(beyond), 'token')} beyond the {rows} "
            "rows of the embeddings "
            f"(such as {used[0]!r}): take the tokenizer of this base, or resize the embeddings "
            "(resize_token_embeddings) and save it again"
        )


def _refuse_quantised(folder: str, config: Any) -> None:
    """Raises UserError for quantised weights whose library is not installed, or that this machine cannot read."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    from transformers.quantizers import AutoHfQuantizer

    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    with in_one_line(f"model.base: {folder}: its weights are quantised ({method})", "take the base without that"):
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(device_map=None)


def _load_adapter(
    folder: str,
    named: tuple[str, str | None],
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None,
    dtype: torch.dtype,
    base: str | None,
) -> RankModel:
    name, base_revision = named if base is None else (named[0], None)
    adapter_weights(folder, revision)
    below_adapters(folder, revision, base)
    try:
        model = load_merged(resolve_base(base or name), contract, tokenizer, revision=base_revision, dtype=dtype)
    except UserError as error:
        raise UserError(
            f"{folder}: adapters of the base {name!r}: {error}; or name its folder: base=FOLDER (--base FOLDER), "
            f"or start where a folder {name!r} lies"
        ) from None
    model = put_on(model, folder, revision)
    check_scores(folder, model, contract, tokenizer)
    return model


def _from_pretrained(auto: Any, folder: str, **options: Any) -> Any:
    """`auto.from_pretrained` whose failures are one line for the user. Without the hub only its cache is read."""
    if not Path(folder).is_dir() and (why := why_no_hub()) is not None:
        try:
            return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
        except OSError:
            raise UserError(
                f"model.base: {folder} is not in the hub's cache, and {why}: take a folder (--base FOLDER for init, "
                "model.base=FOLDER for a recipe; fixtures/tiny-base to try)"
            ) from None
    advice = "give a folder with config.json, safetensors and tokenizer, or a hub id that this machine can reach"
    with in_one_line(f"model.base: cannot load {folder!r}", advice):
        return auto.from_pretrained(folder, trust_remote_code=False, **options)
