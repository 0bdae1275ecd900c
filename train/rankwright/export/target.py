"""What an export starts from, and the record of a target, from which every table of targets is derived."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.registry import Records, bind
from rankwright.common.resources import FIXTURES
from rankwright.export.proof.runtimes.base import Runtime
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained model, which an export leaves as it is, and what a target needs to know about it.

    base_name: what the recipe calls the base. golden_pairs: (query, document) texts for golden.jsonl. tolerance: the
    largest difference of a logit that a runtime may show.
    """

    model: RankModel
    tokenizer: Any
    contract: PromptContract
    base_name: str
    revision: str | None = None
    golden_pairs: Sequence[tuple[str, str]] = ()
    tolerance: float = 1e-4
    # For names and metadata of files: (id on the hub, name of its own or None) of the licence.
    title: str = "Reranker"
    name: str = "reranker"
    licence: tuple[str, str | None] | None = None


Writer = Callable[[Trained, Path], Figures]


@dataclass(frozen=True, slots=True)
class Card:
    """What README.md and SERVE.md say about the folders of a target.

    library, relation: library_name and base_model_relation in the metadata of the hub.
    use, serve, prompt: how to load the folder, how to serve it, and what a caller must do with texts (where the usual
    sentences are not enough). Each is the name of a template in export/templates (`*.md.j2`), or Jinja text itself.
    holds: ends the first sentence of the card where the folder does not hold the whole model in its usual form.
    values: (folder, contract) -> more names for the templates, beside title, name, contract, query and document.
    """

    library: str
    use: str
    serve: str
    prompt: str = ""
    relation: str = "finetune"
    holds: str = ""
    values: Callable[[Path, PromptContract], Mapping[str, Any]] = lambda folder, contract: {}


def is_rendered(contract: PromptContract) -> bool:
    """Whether the prompt is one text with places for query and document, which a chat template can render."""
    return contract.frame.rendered


IN_PIECES = "a prompt of the frame {mode} is tokenised in pieces, which no runtime of an export repeats"


@dataclass(frozen=True, slots=True)
class Target:
    """One form of an export. A new target is one file in export/targets, or a module elsewhere, that adds one record.

    name: what a recipe writes in export.targets, and the name of the folder.
    write: puts its files and golden.jsonl into an empty folder and returns figures for parity.json. Its keyword-only
    parameters are the options of a recipe.
    recognises: whether a folder has the files of this target; a folder may be renamed and moved.
    runtimes: what reads the folder, in the order of reports. Each has to reproduce the golden scores.
    settings: checks of config.json (folder, its content), each giving a line per setting that misleads a reader.
    serves: whether all runtimes read prompts of the contract's frame exactly; why_not: the reason where they do not,
    `{mode}` being the name of the frame.
    refusals: (config of the base, its tokenizer, contract) -> why such a base cannot be exported, with a way out.
    modules: what must be installed beyond the core dependencies; extra: the extra of this package that brings them.
    needs_lora: exports adapters, so that the model must have been trained with some, on a base that has none.
    """

    name: str
    write: Callable[..., Figures]
    recognises: Callable[[Path], bool]
    runtimes: tuple[Runtime, ...]
    card: Card
    settings: tuple[Callable[[Path, dict[str, Any]], Iterator[str]], ...] = ()
    serves: Callable[[PromptContract], bool] = is_rendered
    why_not: str = IN_PIECES
    refusals: Callable[[Any, Any, PromptContract], list[str]] = lambda config, tokenizer, contract: []
    modules: tuple[str, ...] = ()
    extra: str = ""
    needs_lora: bool = False

    def bind(self, options: Mapping[str, Any]) -> Writer:
        """The writer with the options of a recipe. Raises UserError for a wrong one."""
        return bind(f"{TARGETS.kind} {self.name!r}", self.write, options)

    @property
    def install(self) -> str:
        """The command that installs its modules."""
        return f"pip install 'rankwright[{self.extra}]'" if self.extra else f"pip install {' '.join(self.modules)}"


# Filled by importing rankwright.export.targets.
TARGETS: Records[Target] = Records("export target")


def target_of(folder: Path) -> Target:
    """The target that wrote the folder, by its files. Raises UserError where none did."""
    # Last added first: a target of another module may add files to one of ours.
    found = next((target for target in reversed(TARGETS.values()) if target.recognises(folder)), None)
    if found is None:
        raise UserError(
            f"{folder / 'config.json'}: cannot be read, and no other file shows which target wrote the folder (known: "
            f"{', '.join(TARGETS)}): copy the whole folder again"
        )
    return found


def portable_name(base_name: str) -> str:
    """The base's name as another machine can read it: for a local folder its last part only."""
    if not base_name.startswith(FIXTURES) and Path(base_name).expanduser().is_dir():
        return Path(base_name).expanduser().resolve().name
    return base_name


def is_hub_id(base_name: str) -> bool:
    """Whether a portable name can be an id of the hub; a fixture of this package cannot."""
    return re.fullmatch(r"(?!fixtures/)[\w.-]+/[\w.-]+", base_name) is not None
