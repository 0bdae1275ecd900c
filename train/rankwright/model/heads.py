"""The head of a language model: what it makes of hidden states; whether our scores are those of its own logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rankwright.common.errors import UserError, in_one_line
from rankwright.model.bases import INSTEAD
from rankwright.model.blocks import FAMILIES
from rankwright.model.prompt import PROBES, EncodedGroup, PromptContract, PromptEncoder
from rankwright.model.rank_model import RankModel, trunk_name

# N hidden states, H hidden size, V rows of the head.
STATES, ROWS = 4, 64
# The head of a base is compared on these last tokens of a prompt, and on so many rows.
PROBE_TOKENS, PROBE_ROWS = 16, 64
# Some classes give their logits in fp32, whatever is computed before.
EXACT = 1e-5
# Architectures (model_type) of which a test has shown that they are exact: `check` need not read their weights.
TRIED = frozenset(
    (
        "afmoe apertus apertus1p5_text arcee aria_text axk1 bailing_hybrid bamba bigbird_pegasus biogpt bitnet "
        "blenderbot blenderbot-small bloom cohere cohere2 cohere2_moe cwm deepseek_v2 deepseek_v3 deepseek_v4 "
        "diffllama doge dots1 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe falcon_h1 falcon_mamba flex_olmo "
        "flint fuyu gemma gemma3 gemma3_text gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe "
        "glm4_moe_lite got_ocr2 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss granite granite_swa "
        "granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense "
        "hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text internlm3 iquestcoder jais2 jamba jetmoe kimi_linear "
        "kolibri1 laguna lara_mini lfm2 lfm2_moe lfm3 llama llama4_text longcat_flash mamba mamba2 marian mellum "
        "mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral moshi "
        "moss_transcribe_diarize mpt nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt "
        "pegasus persimmon phi3 phimoe plbart qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text "
        "qwen3_5_text qwen3_moe qwen3_next rwkv sarvam_mla sarvam_moe seed_oss smollm3 solar_open stablelm "
        "starcoder2 trocr whisper xglm youtu zaya "
    ).split()
)


class _Output:
    """What a decoder returns, with nothing but hidden states."""

    def __init__(self, states_1NH: Tensor) -> None:
        self.last_hidden_state = states_1NH

    def __getitem__(self, place: int) -> Any:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> Any:
        return None


def head_factor(name: str, config: Any, kind: Any) -> float:
    """f where the logits of the class `kind` are f * (W h); W: its output embeddings, h: the last hidden states.

    Measured on a head of random weights and few rows. Raises UserError for a head that does more than that: an
    offset, a limit, layers of its own. 1 where that cannot be measured: check_scores() compares the real weights.
    """
    if config.model_type in FAMILIES:
        return 1.0
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    try:
        lm = _small(config, kind)
        own, head = trunk_name(lm), lm.get_output_embeddings()
        for child_name, child in lm.named_children():
            if child_name != own:
                _fill(child, drawn)
        for place, tensor in [*lm._parameters.items(), *lm._buffers.items()]:
            if tensor is not None:
                setattr(lm, place, type(tensor)(drawn(*tensor.shape)) if tensor.requires_grad else drawn(*tensor.shape))
        states_1NH = drawn(1, STATES, head.weight.shape[1]) * 4
        trunk = getattr(lm, own)
        for decoder in (trunk, trunk.get_decoder() if hasattr(trunk, "get_decoder") else trunk):
            # Its attributes stay: some heads read their factor there.
            decoder.forward = lambda *_, **__: _Output(states_1NH)
        with torch.no_grad():
            logits_NV = lm.eval()(input_ids=torch.zeros(1, STATES, dtype=torch.long), use_cache=False).logits[0]
    except Exception:
        # Classes differ in what they ask of their decoder.
        return 1.0
    if logits_NV.is_meta:
        return 1.0
    products_NV = states_1NH[0] @ head.weight.detach().T
    return _fitted(name, config, logits_NV, products_NV)


def _fitted(name: str, config: Any, logits_NV: Tensor, products_NV: Tensor) -> float:
    factor = float((logits_NV * products_NV).sum() / products_NV.square().sum())
    size = float(logits_NV.abs().max())
    rest_NV = logits_NV - factor * products_NV
    if float(rest_NV.abs().max()) <= EXACT * size:
        return 1.0 if abs(factor - 1) < EXACT else float(f"{factor:.9g}")
    # An offset is the same for all states: it falls out of differences.
    offsets_NV, products_NV = logits_NV - logits_NV[:1], products_NV - products_NV[:1]
    factor = float((offsets_NV * products_NV).sum() / products_NV.square().sum())
    is_offset = float((offsets_NV - factor * products_NV).abs().max()) <= EXACT * size
    what = "adds an offset (bias) to its logits" if is_offset else "does more than one product (layers or limits)"
    raise UserError(
        f"model.base: {name}: the head of {config.model_type} {what}, which the scored rows cannot hold: choose "
        "another base"
    )


def _small(config: Any, kind: Any) -> Any:
    """The model on the meta device, with a vocabulary of few rows."""
    config = copy.deepcopy(config)
    for one in {id(c): c for c in (config, config.get_text_config())}.values():
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(one, key, None) is not None:
                setattr(one, key, 0)
        if hasattr(one, "vocab_size"):
            one.vocab_size = ROWS
    with torch.device("meta"):
        return kind(config)


def _fill(module: nn.Module, drawn: Any) -> None:
    for part in module.modules():
        for place, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[place] = nn.Parameter(drawn(*parameter.shape), requires_grad=False)
        for place, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[place] = drawn(*buffer.shape)


def check_scores(name: str, model: RankModel, contract: PromptContract, tokenizer: Any) -> None:
    """Compare our hidden states and rows with the base's own logits on the end of one prompt.

    Raises UserError where they disagree, and where they are not finite numbers.
    """
    encoder = PromptEncoder(contract, tokenizer)
    ids = [*encoder.encode_head(PROBES[0][0])[0], *encoder.suffix_ids][-PROBE_TOKENS:]
    lm, was_training = model.causal_lm, model.training
    head = lm.get_output_embeddings() if lm.get_output_embeddings() is not None else lm.score
    weight_VH = head.weight.detach()
    places = torch.linspace(0, len(weight_VH) - 1, min(PROBE_ROWS, len(weight_VH))).long().to(weight_VH.device)
    model.eval()
    with in_one_line(f"model.base: {name}: {type(lm).__name__} cannot be scored", INSTEAD), torch.inference_mode():
        logits = model.lm(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        own = (logits[-1] if logits.ndim == 2 else logits)[places].float()
        state_H = model.states([EncodedGroup(ids[:-1], [ids[-1:]], False, 0)])[0].float()
    model.train(was_training)
    rows_VH = weight_VH[places].float()
    ours = rows_VH @ state_H * model.head_factor
    if not (own.isfinite().all() and ours.isfinite().all()):
        raise UserError(
            f"model.base: {name}: its logits are not finite numbers: a value of config.json (a norm's epsilon, the "
            "base of positions) is wrong, or the weights are damaged"
        )
    tolerance = model.rounding(own, float(rows_VH.norm(dim=1).max() * state_H.norm()) * model.head_factor)
    worst = float((own - ours).abs().max())
    if not worst <= tolerance:
        raise UserError(
            f"model.base: {name}: scores of {type(lm).__name__} would be up to {worst:.3g} away from its own logits "
            f"(tolerance {tolerance:.2g}): choose another base, and please report this one"
        )
