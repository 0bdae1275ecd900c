"""Known faults of servers as hypotheses: each gives the logits of the golden rows under its fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rankwright.common.errors import UserError
from rankwright.export.proof.runtimes.base import sigmoid
from rankwright.export.verify.asking import Scale
from rankwright.export.verify.local_model import Known
from rankwright.model.frames import FRAMES
from rankwright.model.prompt import PromptEncoder, make_contract

Logits = Callable[[Known, Sequence[int]], list[float] | None]
# ids(known, place): a row's prompt under the fault, or None where it does not apply.
Ids = Callable[[Known, int], list[int] | None]
# Common defaults of servers for the number of tokens.
COMMON_LIMITS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """logits(known, places of rows): None where the fault would change nothing, or cannot be computed here."""

    key: str
    cause: str
    fix: str
    logits: Logits


def of_prompt(key: str, cause: str, fix: str, ids: Ids) -> Hypothesis:
    """A fault of the prompt."""

    def logits(known: Known, places: Sequence[int]) -> list[float] | None:
        prompts = [ids(known, place) for place in places]
        if any(not prompt for prompt in prompts):
            return None
        if all(prompt == known.golden_ids(place) for prompt, place in zip(prompts, places, strict=True)):
            return None
        return known.score([prompt for prompt in prompts if prompt])

    return Hypothesis(key, cause, fix, logits)


def hypotheses(known: Known) -> Iterator[Hypothesis]:
    """The hypotheses that concern every row, the most frequent first."""
    yield from _no_template(known)
    yield from _other_frames(known)
    yield from _other_instruction(known)
    yield from _damaged_template(known)
    yield from _exchanged()
    yield from _weights()


def _serve(known: Known) -> str:
    if known.contract.is_baked:
        return (
            "tokenizer.json of this export holds the prompt: serve this folder as it is, with no other chat template, "
            "and special tokens added"
        )
    return (
        "start the server with this folder's template (vLLM: --chat-template FOLDER/chat_template.jinja); one that "
        "takes none needs prompt.mode: portable"
    )


def _clean(known: Known, place: int) -> tuple[str, str]:
    row = known.rows[place]
    return row["query"].strip(), row["document"].strip()


def _no_template(known: Known) -> Iterator[Hypothesis]:
    cause = "no template: the server scores the bare query and document"
    limit = known.contract.max_tokens
    bos = known.tokenizer.bos_token_id
    start = [] if bos is None else [bos]

    def pair(known: Known, place: int, first: Sequence[int] = (), second: Sequence[int] = ()) -> list[int]:
        query, document = _clean(known, place)
        return [*first, *known.ids(query), *second, *known.ids(document)][:limit]

    def joined(known: Known, place: int, by: str) -> list[int]:
        return known.ids(by.join(_clean(known, place)))[:limit]

    def as_sent(known: Known, place: int) -> list[int]:
        row = known.rows[place]
        return (known.ids(row["query"]) + known.ids(row["document"]))[:limit]

    variants: list[Ids] = [pair, as_sent]
    variants += [partial(pair, first=start, second=start), partial(pair, first=start)] if start else []
    variants += [partial(joined, by=by) for by in (" ", "\n")]
    yield from (of_prompt("no template", cause, _serve(known), ids) for ids in variants)


def _other_frames(known: Known) -> Iterator[Hypothesis]:
    contract = known.contract
    for frame in [f for f in FRAMES.values() if f.trainable and f.name != contract.mode]:
        for instruction in dict.fromkeys((contract.instruction, frame.instruction)):
            limits: dict[str, Any] = {"max_tokens": contract.max_tokens, "query_tokens": contract.query_tokens}
            try:
                other = make_contract(known.tokenizer, mode=frame.name, instruction=instruction, **limits)
            except UserError:
                continue
            cause = f"another template: the server scores a prompt of the frame {frame.name}"
            for tokenizer in (known.served_tokenizer, known.tokenizer):
                ids = partial(_encoded, encoder=PromptEncoder(other, tokenizer))
                yield of_prompt("other template", cause, _serve(known), ids)
    cause = "the base's template: the server scores turns of the base's chat, not this export's prompt"
    for render in _turns(known):
        yield of_prompt("template of the base", cause, _serve(known), render)


def _encoded(known: Known, place: int, encoder: PromptEncoder, *, cut: bool = True) -> list[int]:
    row = known.rows[place]
    encoded = encoder.encode(row["query"], [row["document"]], cut=cut)
    return encoded.head_ids + encoded.tail_ids[0]


def _turns(known: Known) -> Iterator[Ids]:
    """A chat's turns: as a query's and a document's, as a user's; open or followed by the assistant's."""
    names = known.tokenizer.get_added_vocab()
    if "<|im_start|>" in names:
        turn, answer = "<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_start|>assistant\n"
    elif "<|start_header_id|>" in names:
        turn = "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
        answer = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    else:
        return
    starts = [""] if known.tokenizer.bos_token is None else [known.tokenizer.bos_token, ""]
    thought = "<think>\n\n</think>\n\n"
    for end in ("", answer, answer + thought):
        for start in starts:
            for roles in (("query", "document"), ("user", "assistant"), ("user", "user")):
                for served in (True, False):
                    yield partial(_rendered, turn=turn, roles=roles, start=start, end=end, served=served)


def _rendered(
    known: Known, place: int, *, turn: str, roles: tuple[str, str], start: str, end: str, served: bool
) -> list[int]:
    texts = zip(roles, _clean(known, place), strict=True)
    whole = "".join(turn.replace("{role}", role).replace("{text}", text) for role, text in texts)
    return known.ids(start + whole + end, served=served)[: known.contract.max_tokens]


def _other_instruction(known: Known) -> Iterator[Hypothesis]:
    own = known.contract
    if not own.takes_instruction:
        return
    for instruction in dict.fromkeys((own.frame.instruction, "")):
        if instruction == own.instruction:
            continue
        said = f"{instruction!r}" if instruction else "an empty one"
        yield of_prompt(
            "instruction ignored",
            f"instruction ignored: the server's prompt has {said}, not {own.instruction!r}",
            "use this folder's template, which holds the instruction, or send it as the field `instruction`",
            partial(_encoded, encoder=PromptEncoder(own.under(instruction, known.tokenizer), known.tokenizer)),
        )


def _damaged_template(known: Known) -> Iterator[Hypothesis]:
    suffix = known.encoder.suffix_ids
    text = known.contract.suffix
    fix = f"the prompt must end in {text!r}: {_serve(known)}"

    def ending(known: Known, place: int, end: list[int]) -> list[int]:
        return known.golden_ids(place)[: -len(suffix)] + end

    for count in range(1, len(text) - len(text.rstrip()) + 1):
        ids = partial(ending, end=known.ids(text[:-count]))
        yield of_prompt("lost line break", "the template lost the line break at its end", fix, ids)
    yield of_prompt("lost suffix", "the end of the prompt is missing for every pair", fix, partial(ending, end=[]))


def _exchanged() -> Iterator[Hypothesis]:
    def exchanged(known: Known, place: int) -> list[int]:
        row, encoder = known.rows[place], known.encoder
        # Not encode(): it would cut the document as a query is cut.
        pieces = known.contract.head_pieces(encoder.clean(row["document"]))
        head = [number for piece in pieces for number in known.ids(piece)]
        return head + encoder.encode_documents([row["query"]])[0] + encoder.suffix_ids

    yield of_prompt(
        "exchanged",
        "query and document are exchanged",
        "send the query as `query` and the texts as `documents`",
        exchanged,
    )


def _weights() -> Iterator[Hypothesis]:
    def default_theta(known: Known, places: Sequence[int]) -> list[float] | None:
        with known.without_theta() as changed:
            return known.score([known.golden_ids(place) for place in places]) if changed else None

    yield Hypothesis(
        "no rope_theta",
        "rope_theta is lost: the server computes positions with the base 10000",
        "config.json must have rope_theta at its top, where transformers 4 reads it: serve this export's config.json",
        default_theta,
    )
    yield Hypothesis(
        "weights of the base",
        "wrong model: these are the scores of the base, without what was trained",
        "serve the exported weights (with the adapter: name it in the request)",
        Known.base_logits,
    )


def of_cut_rows(known: Known) -> Iterator[Hypothesis]:
    """Faults of truncation, which concern only rows whose document is cut."""
    limit, suffix = known.contract.max_tokens, known.encoder.suffix_ids
    fix = (
        f"the document must be cut so that the whole prompt has {limit} tokens and keeps its end: "
        f"let the server cut by tokenizer.json (vLLM: truncate_prompt_tokens={limit} and no chat template), "
        "or send shorter documents"
    )

    whole = partial(_encoded, encoder=known.encoder, cut=False)

    def at(known: Known, place: int, length: int, end: list[int]) -> list[int] | None:
        uncut = whole(known, place)
        return uncut[: length - len(end)] + end if len(uncut) > length else None

    lost = "truncation: the end of the prompt is cut off with the document"
    for length in (limit, *COMMON_LIMITS):
        yield of_prompt("truncation", f"{lost}, at {length} tokens", fix, partial(at, length=length, end=[]))
    yield of_prompt("truncation", "truncation: long documents are not cut", fix, whole)
    for length in COMMON_LIMITS:
        cause = f"truncation: long documents are cut at {length} tokens, not at {limit}"
        yield of_prompt("truncation", cause, fix, partial(at, length=length, end=suffix))

    begun = f"truncation: the beginning of the prompt is cut off, at {limit} tokens"
    yield of_prompt("truncation", begun, fix, lambda known, place: whole(known, place)[-limit:])


Values = Sequence[float]


@dataclass(frozen=True, slots=True)
class View:
    """What the server makes of logits on each scale. cause and fix are empty for the right one."""

    key: str
    probability: Callable[[Values], list[float]]
    cause: str = ""
    fix: str = ""
    logit: Callable[[Values], list[float]] = list

    def expected(self, scale: Scale, logits: Values) -> list[float]:
        return self.probability(logits) if scale == "probability" else self.logit(logits)


def _twice(logits: Values) -> list[float]:
    return sigmoid(sigmoid(logits))


ONE_ACTIVATION = "config.json: sentence_transformers.activation_fn must be Sigmoid, and the server must apply it once"
TWICE = "wrong activation: sigmoid is applied twice, so every score lies between 0.5 and 0.73"
# The right one first; each is one fault more.
RIGHT = View("right", sigmoid)
VIEWS = (
    RIGHT,
    View(
        "softmax over one label",
        lambda logits: [1.0] * len(logits),
        "wrong activation: softmax over one label, which is 1 for every pair",
        "a one-label head needs sigmoid (a GGUF file two classifier rows): " + ONE_ACTIVATION,
    ),
    View(
        "no activation",
        list,
        "wrong activation: none is applied, logits come where probabilities are expected",
        ONE_ACTIVATION,
    ),
    View("sigmoid twice", _twice, TWICE, ONE_ACTIVATION),
    View("sigmoid twice", _twice, TWICE, ONE_ACTIVATION, logit=sigmoid),
)
