"""What each stage depends on, as hashes of recipe sections, files and code: unchanged stages are skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright import __version__
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.lineage import export_to_load
from rankwright.common.resources import expand, resolve_base, resolve_path
from rankwright.common.run_folder import PACKAGE, RunFolder, code_hash
from rankwright.data.judged_pairs import pair_files
from rankwright.data.sources import Located, asked_by_people
from rankwright.evaluation.evaluate import system_names
from rankwright.evaluation.metrics import Scale, measures_of
from rankwright.mining.filters import split_filters
from rankwright.model.instructions import frozen_instruction, is_read_otherwise
from rankwright.model.long_documents import CUT_OFF, PAIRWISE
from rankwright.pipeline.pretrain_recipes import pretraining_recipe
from rankwright.recipe.pretrain import CONTROL, PRETRAINED, text_path
from rankwright.recipe.schema import COMBINED, EXPORTED, Recipe, result_values
from rankwright.rerankers.comparer import student_folder, student_hash
from rankwright.rerankers.kinds import TEACHER, baseline_inputs
from rankwright.retrieval.first_stages import possible_stages, searched, training_stage
from rankwright.retrieval.retriever import retrievers
from rankwright.training.loss_terms import scores_candidates

# What is made -> the code that decides it: the room that makes it, the rooms that this one may import, and single files
# of later rooms. An edit anywhere else repeats nothing. What is made from it depends on its hash.
CODE = {
    "synthesize": "supervision common recipe data retrieval rerankers pipeline/synthesize.py pipeline/documents.py",
    "data": "data common recipe retrieval/run_file.py pipeline/data.py",
    "mine": "mining common recipe data retrieval rerankers supervision pipeline/mine.py",
    # A teacher may be a model of ours.
    "teacher": "rerankers common recipe data model retrieval",
    # Beside the base's scores.
    "teacher gate": "mining common recipe data retrieval rerankers supervision evaluation/teacher_gate.py "
    "evaluation/evaluate.py evaluation/metrics.py pipeline/teacher.py pipeline/mine.py",
    "judge": "mining common recipe data retrieval rerankers supervision evaluation/teacher_gate.py "
    "evaluation/evaluate.py evaluation/metrics.py pipeline/teacher.py pipeline/judge.py pipeline/judged_lists.py "
    "pipeline/refine.py",
    # The checkpoint is chosen by a measure on dev.
    "train": "training common recipe data model retrieval rerankers supervision mining "
    "evaluation/dev_values.py evaluation/evaluate.py evaluation/metrics.py pipeline/train.py",
    # Only what merges is of the room export: a card repeats no training.
    "pretrain": "training common recipe data model retrieval rerankers supervision mining "
    "evaluation/dev_values.py evaluation/evaluate.py evaluation/metrics.py export/weights.py pipeline/data.py "
    "pipeline/mine.py pipeline/train.py pipeline/pretrain.py pipeline/pretrain_recipes.py pipeline/pretrain_text.py",
    "control": "training common recipe data model retrieval rerankers supervision mining pipeline/control.py "
    "pipeline/pretrain_recipes.py",
    "lists": "retrieval common recipe data pipeline/evaluate.py",
    "scores": "rerankers common recipe data model retrieval training/setup.py pipeline/evaluate.py",
    "measures": "evaluation common recipe data model retrieval rerankers pipeline/evaluate.py",
    # Attributes of test queries, which the report divides them by: eval/TESTSET/queries.jsonl.
    "attributes": "evaluation common recipe data model retrieval rerankers training/setup.py pipeline/evaluate.py",
    "calibrate": "evaluation common recipe data model retrieval rerankers training/setup.py pipeline/calibrate.py "
    "pipeline/dev_scores.py",
    "combine": "evaluation common recipe data model retrieval rerankers training/setup.py pipeline/combine.py "
    "pipeline/dev_scores.py",
    "export": "export common data model rerankers pipeline/export.py",
}

# Keys of the section `prompt` that change no score of the base.
PROMPT_OF_TUNED = ("mode", "first_stage_score")

# Stage -> what its record names.
MADE_FROM = {
    "synthesize": ("written queries",),
    "data": ("written queries", "training texts", "training data", "test data"),
    "teacher": ("training texts", "teacher settings"),
    "mine": ("written queries", "training texts", "negatives"),
    "judge": ("training texts", "preferences"),
    "pretrain": ("pretraining",),
    "train": (
        *("written queries", "training data", "negatives", "preferences", "pretraining", "training"),
        "training settings",
    ),
    "control": ("training",),
    "evaluate": ("training", "test data", "test settings", "tuned", "results"),
    "calibrate": ("training", "tuned", "calibration"),
    "export": ("training", "tuned", "results", "calibration"),
}


def code_of(made: str, package: Path = PACKAGE) -> str:
    """The version and the hash of the code that decides `made`, a row of CODE. package: folder of the code."""
    return f"{__version__}+{code_hash(tuple(CODE[made].split()), package)}"


class StageInputs:
    """One hash per stage, made when it is asked for (files are read for it).

    located: split -> the recipe's sets. package: folder of the code.
    """

    def __init__(self, recipe: Recipe, located: Mapping[str, Sequence[Located]], package: Path = PACKAGE) -> None:
        self.recipe = recipe
        self.located = located
        self.package = package
        # What a run inside another one depends on beside its own recipe.
        self.within = ""
        # Path -> hash of the files that were read; a command with several recipes may give all of them the same one.
        self.contents: dict[Path, str] = {}

    def _code(self, made: str) -> str:
        return code_of(made, self.package)

    @cached_property
    def _sections(self) -> dict[str, Any]:
        """The recipe as plain values, without the keys that change no result."""
        return result_values(self.recipe.model_dump(mode="json"))

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = files_hash([path])
        return self.contents[path]

    def _set(self, entry: Located) -> str:
        """A set by content; its run file, its weight and its licence are not part of it."""
        # A note or a licence of the card changes no row.
        card = entry.card and entry.card.model_dump(mode="json", include={"hub", "path", "splits", "group_key"})
        written = entry.source.synthesized
        content: Any = entry.path and (self._content(entry.path) if written is None else (written, self.synthesize))
        if entry.pairs is not None:
            content = [self._content(path) for path in pair_files(entry.pairs)]
        reading = entry.source.model_dump(
            include={"format", "columns", "labels", "encoding", "config", "relevant_from", "group_key"}
        )
        # The seed chooses the queries of a limit.
        limit = entry.source.limit and (entry.source.limit, self.recipe.seed)
        where = (entry.name, entry.split, entry.hub, entry.revision)
        laid = [] if entry.judgements is None else [self._content(entry.judgements)]
        return content_hash(*where, *laid, reading, limit, card, content, self._code("data"))

    def _sets(self, split: str) -> list[str]:
        return [self._set(entry) for entry in self.located.get(split, ())]

    @cached_property
    def synthesize(self) -> str | None:
        """What the written queries depend on; None where the recipe writes none."""
        settings = self.recipe.synthesize
        if settings is None:
            return None
        documents = [
            (one.model_dump(exclude={"path", "licence"}), self._content(resolve_path(one.path, root=None)))
            for one in settings.documents
        ]
        stated = {k: v for k, v in self._sections["synthesize"].items() if k not in ("documents", "examples")}
        examples = settings.examples and self._content(resolve_path(settings.examples, root=None))
        held = [self._set(one) for one in asked_by_people(self.located)]
        teacher = self.recipe.mine.teacher
        scores = teacher and baseline_inputs(teacher, self.recipe.prompt, key=TEACHER, bm25=self.recipe.bm25)
        found = (self._retriever(searched(self.recipe)), self.recipe.bm25.model_dump(), scores)
        on_fault = self.recipe.data.on_fault
        return content_hash(
            documents, stated, examples, held, found, self.recipe.seed, on_fault, self._code("synthesize")
        )

    @cached_property
    def _training_data(self) -> str:
        on_leak = self.recipe.data.on_leak
        # Test sets decide what is dropped from train and dev; where a leak stops the run, they change neither.
        held_out = self._sets("test") if on_leak == "drop" else None
        dev = self._sections["data"]["dev"]
        return content_hash(self._sets("train"), self._sets("dev"), dev, self.recipe.seed, held_out, self._taken_test)

    @property
    def _taken_test(self) -> Any:
        """How test is taken out of train, None where it has sets of its own."""
        test = self._sections["data"]["test"]
        return test if isinstance(test, dict) else None

    @cached_property
    def data(self) -> str:
        data = self.recipe.data
        # Files are read the same way whatever on_fault is: what comes after the data stage depends on the files alone,
        # and the data stage decides anew whether their faults stop it.
        # bm25.code: how data_report.json counts duplicates.
        # The scale: which labels of dev and test are refused.
        stated = (self._mixture, self._instructions("test"), self.recipe.bm25.code, self._scale)
        return content_hash(self._training_data, self._sets("test"), data.on_fault, data.on_leak, *stated)

    def _instructions(self, split: str) -> list[str | None]:
        return [entry.source.instruction for entry in self.located.get(split, ())]

    @property
    def _scale(self) -> Any:
        """What labels mean to measures."""
        return Scale.of(self.recipe.evaluate).as_json()

    @property
    def _mixture(self) -> Any:
        """What the recipe states about the training sets beside their content: mining does not depend on it."""
        weights = [entry.source.weight for entry in self.located.get("train", ())]
        return weights, self._instructions("train"), self._instructions("dev")

    def _retriever(self, name: str, run_file: Path | None = None) -> str:
        """What a first stage's lists depend on, beside texts and depth."""
        return content_hash(name, self._by_content(retrievers()[name].depends_on(self.recipe, run_file)))

    def _by_content(self, value: Any) -> Any:
        """The value with the content of each path in its place."""
        if isinstance(value, Path):
            return self._content(value)
        return {k: self._by_content(v) for k, v in value.items()} if isinstance(value, dict) else value

    def run_files(self, split: str) -> dict[str, Path | None]:
        """Set -> its TREC run file, where it has one; that of train where dev is taken out of it."""
        return {located.name: located.run for located in self.located.get(split) or self.located.get("train", ())}

    def _reranked_lists(self, split: str) -> list[str]:
        """What the lists of the first stage for train or dev depend on, beside texts and depth."""
        return [self._retriever(training_stage(self.recipe), file) for file in self.run_files(split).values()]

    @cached_property
    def shards(self) -> str:
        """What mining decides query by query: candidates, and the filters before those that look across queries."""
        mine = self.recipe.mine
        alone, _ = split_filters(mine.filters)
        found = [self._retriever(mine.retriever, entry.run) for entry in self.located.get("train", ())]
        teacher = None
        if mine.teacher is not None:
            # It scores a set under the set's own instruction.
            scores = baseline_inputs(mine.teacher, self.recipe.prompt, key=TEACHER, bm25=self.recipe.bm25)
            teacher = (scores, self._instructions("train"), self._code("teacher"))
        # The lists of the training queries too, where they are read: what is made of them makes no difference.
        lists = ["train_lists"] if self.recipe.keys_of_lists else []
        options = [(name, mine.filters[name]) for name in alone]
        depths = (mine.depth, self.recipe.evaluate.depth, self.recipe.data.ignore_identical_ids)
        return content_hash(
            self._training_data,
            found,
            self._reranked_lists("dev"),
            depths,
            options,
            self.recipe.bm25.code,
            teacher,
            self._code("mine"),
            *lists,
        )

    @cached_property
    def mine(self) -> str:
        mine = self.recipe.mine
        # The order of filters counts, and a section's hash does not keep it. The sampler counts in training only.
        scored = scores_candidates(self.recipe)
        return content_hash(self.shards, list(mine.filters.items()), mine.fill, mine.negatives, scored)

    @cached_property
    def judge(self) -> str | None:
        """What the scores of teacher.pairs depend on; None where the recipe has no such section."""
        if self.recipe.pairs is None:
            return None
        stated = self._sections
        found = (self._reranked_lists("train"), self._reranked_lists("dev"))
        lists = (found, self.recipe.evaluate.depth, self.recipe.data.ignore_identical_ids)
        instructions = (self._instructions("train"), self._instructions("dev"))
        shown = (stated["prompt"]["instruction"], instructions, stated["prompt"]["max_tokens"])
        pairs = {**stated["teacher"]["pairs"], "refine": self._refine}
        asked = (pairs, self.recipe.train.dev_queries, self.recipe.seed, self._scale)
        prior = [
            (baseline_inputs(one, self.recipe.prompt, bm25=self.recipe.bm25), self._code("teacher"))
            for one in self.recipe.evaluate.baselines
            if one.name == self.recipe.pairs.fit.prior_baseline
        ]
        models = [student_hash(student_folder(j.model)) for j in self.recipe.pairs.judges if j.kind == "pairwise"]
        return content_hash(self._training_data, lists, shown, asked, prior, self.base, self._code("judge"), *models)

    @property
    def _refine(self) -> Any:
        """teacher.pairs.refine, with what is read of the student's run in the place of its folder."""
        stated = self._sections["teacher"]["pairs"]["refine"]
        if stated is None:
            return None
        run = RunFolder(expand(stated["student"]))
        read = [run.judge_pairs, run.judge_scores, run.judge_report, export_to_load(run)]
        return {**stated, "student": [self._content(path) for path in read if path is not None and path.exists()]}

    @cached_property
    def _base(self) -> str:
        """The base, which is scored in its own prompt whatever prompt.mode is, and without the first stage's scores."""
        base = resolve_base(self.recipe.model.base)
        # A local base by content and by its folder's name, which may show its kind: it may be reached by several paths.
        is_here = Path(base).is_dir()
        name = Path(base).resolve().name if is_here else base
        weights = self._content(Path(base)) if is_here else self.recipe.model.revision
        prompt = {k: v for k, v in self._sections["prompt"].items() if k not in PROMPT_OF_TUNED}
        stated = "instruction" in self.recipe.prompt.model_fields_set
        # BM25 chooses what is read of a long document.
        words: list[Any] = [] if self.recipe.prompt.long_documents == CUT_OFF else [self.recipe.bm25.model_dump()]
        words += [PAIRWISE] if self.recipe.is_pairwise else []
        return content_hash(name, weights, prompt, stated, *words)

    @property
    def _base_scores(self) -> str:
        """What the base's scores depend on beside the texts."""
        return content_hash(self._base, self.recipe.train.precision)

    @property
    def base(self) -> str:
        """What the base's scores of dev are kept by, beside the instruction of a set."""
        return content_hash(self._base_scores, self.recipe.prompt.mode, self._code("scores"))

    @cached_property
    def teacher(self) -> str:
        """What the verdict on the teacher depends on."""
        assert self.recipe.mine.teacher is not None
        recipe = self.recipe
        scores = baseline_inputs(self.recipe.mine.teacher, recipe.prompt, key=TEACHER, bm25=recipe.bm25)
        lists = (self._reranked_lists("dev"), recipe.data.ignore_identical_ids)
        return content_hash(
            self._training_data, lists, scores, self.base, self._teacher_settings, self._code("teacher gate")
        )

    @property
    def _teacher_settings(self) -> str:
        """What the recipe states for the verdict on the teacher, without the files."""
        train, evaluation = self._sections["train"], self._sections["evaluate"]
        base = (self.recipe.model.base, self.recipe.model.revision, self.recipe.prompt.mode)
        queries = (self.recipe.seed, train["dev_queries"], train["precision"], self._instructions("dev"))
        lists = [evaluation[key] for key in ("first_stage", "depth")]
        stated = [self._sections[name] for name in ("prompt", "bm25", "dense")]
        return content_hash(self._sections["mine"]["teacher"], base, queries, lists, stated, self._scale)

    @cached_property
    def model(self) -> str:
        # Merging with the base comes after training.
        model = {k: v for k, v in self._sections["model"].items() if k not in ("base", "merge_with_base")}
        return content_hash(model, [self._sections["prompt"][k] for k in PROMPT_OF_TUNED], self._base)

    @cached_property
    def train(self) -> str:
        sections = [self._sections[name] for name in ("mine", "loss", "train")]
        # The checkpoint is chosen by nDCG@10 on dev.
        taught: list[Any] = [one for one in (self.judge, self.pretrain, self.within) if one]
        abstract = [one.abstract and one.abstract.model_dump() for one in self.recipe.data.train]
        taught += abstract if any(abstract) else []
        return content_hash(self.mine, self.model, sections, self._mixture, self._scale, self._code("train"), *taught)

    @cached_property
    def pretrain(self) -> str | None:
        """What the pre-trained base depends on; None where the recipe has no such section."""
        settings = self.recipe.pretrain
        if settings is None:
            return None
        # Paths and licences of texts make no difference.
        texts = [(self._content(text_path(one)), one.columns, one.encoding) for one in settings.texts.values()]
        entries = self.located.get("pretrain", ())
        pairs = [(self._set(one), one.source.weight, one.source.instruction) for one in entries]
        own = pretraining_recipe(self.recipe, RunFolder(Path())).model_copy(update={"name": "", "description": ""})
        training = result_values(own.model_dump(mode="json"))
        # A local base may be reached by several paths.
        training["model"] = {k: v for k, v in training["model"].items() if k != "base"}
        taken = self._training_data if "dev" not in self.located or self._taken_test is not None else None
        # What is held out decides what is left out of the pairs and of the texts.
        held_out = (self._sets("dev"), self._sets("test"), taken, self.recipe.data.on_leak)
        stated = {
            k: v for k, v in self._sections["pretrain"].items() if k not in ("pairs", "text", "replay", "control")
        }
        stated |= {"tokens": [one.tokens for one in settings.text]}
        stated |= {"share": None if settings.replay is None else settings.replay.share}
        return content_hash(
            *(pairs, texts, stated, held_out, training, self._base, self.recipe.prompt.mode, self._code("pretrain"))
        )

    @property
    def control(self) -> str:
        """What the control depends on: its steps follow from those of the training."""
        return content_hash(self.train, self._code("control"))

    @cached_property
    def scores(self) -> dict[str, dict[str, str]]:
        """Test set -> system -> what its scores there depend on: another set leaves those of the others as they are."""
        rerankers = {
            "base": self._base_scores,
            "tuned": content_hash(self.train, self.recipe.model.merge_with_base),
            PRETRAINED: content_hash(self._base_scores, self.pretrain),
            CONTROL: content_hash(self.control, self.recipe.model.merge_with_base),
            **{
                b.name: baseline_inputs(b, self.recipe.prompt, bm25=self.recipe.bm25)
                for b in self.recipe.evaluate.baselines
            },
        }
        rerankers = {name: of for name, of in rerankers.items() if name in system_names(self.recipe)}
        evaluation = self.recipe.evaluate
        # The seed chooses the queries of a limit, and nothing else of a test set.
        limit = evaluation.limit_queries and (evaluation.limit_queries, self.recipe.seed)
        found = {}
        for entry in self.located["test"]:
            # The level: which queries have a relevant document.
            chosen_by = (limit, evaluation.relevance_level)
            asked = (*chosen_by, evaluation.depth, self.recipe.data.ignore_identical_ids, self._taken_test)
            chosen = content_hash(self._set(entry), *asked)
            stages = {
                name: content_hash(chosen, self._retriever(name, entry.run), self._code("lists"))
                for name in possible_stages(self.recipe)
            }
            lists = content_hash(stages[evaluation.first_stage], self._code("scores"))
            own = entry.source.instruction
            found[entry.name] = stages | {name: content_hash(lists, of, own) for name, of in rerankers.items()}
            if is_read_otherwise(self.recipe, own):
                frozen = frozen_instruction(self.recipe)
                found[entry.name][EXPORTED] = content_hash(lists, rerankers["tuned"], EXPORTED, frozen)
        return found

    @cached_property
    def systems(self) -> dict[str, str]:
        """System -> what its numbers depend on: its scores on all test sets, and how they are measured."""
        measured = (measures_of(self.recipe.evaluate), self._scale, self._code("measures"))
        names = system_names(self.recipe)
        found = {name: content_hash([own.get(name) for own in self.scores.values()], *measured) for name in names}
        if COMBINED in found:
            parts = [own.get(EXPORTED, own["tuned"]) for own in self.scores.values()]
            found[COMBINED] = content_hash(parts, self.combine, *measured)
        return found

    @cached_property
    def combine(self) -> str:
        """What weight and depth of the combination with the first stage depend on."""
        evaluation, gate = self._sections["evaluate"], self.recipe.gate
        chosen = (evaluation["combine"], evaluation["first_stage"], gate and gate.metric)
        return content_hash(self.tuned, chosen, self._scale, self._code("combine"))

    @cached_property
    def tuned(self) -> str:
        """What tuned's scores on dev depend on, under the instruction of the exports where there are any."""
        frozen = frozen_instruction(self.recipe) if self.recipe.export_targets else "each set's own"
        return content_hash(self.train, self.recipe.model.merge_with_base, frozen)

    @cached_property
    def calibrate(self) -> str:
        # On test sets it looks at the scores that an export gives.
        systems = [self.systems.get(name) for name in ("tuned", EXPORTED)]
        return content_hash(self.tuned, systems, self._code("calibrate"))

    @property
    def settings(self) -> dict[str, str]:
        """What the recipe states for training and for the evaluation, without the files: see lineage.OWNERS."""
        stated = self._sections
        merging = {"merge_with_base": stated["model"]["merge_with_base"]}
        data = {**stated["data"], "test": self._taken_test}
        trained = [stated[name] for name in ("seed", "prompt", "bm25", "dense", "mine", "teacher", "loss", "train")]
        trained += [stated[name] for name in ("synthesize", "pretrain") if stated[name] is not None]
        test = (stated["evaluate"], stated["data"]["test"], stated["prompt"], stated["bm25"], stated["dense"], merging)
        model = {**stated["model"], "merge_with_base": None}
        teacher = {} if self.recipe.mine.teacher is None else {"teacher settings": self._teacher_settings}
        return {
            "training settings": content_hash(trained, model, data),
            "test settings": content_hash(*test),
            **teacher,
        }

    def of(self, stage: str) -> dict[str, str]:
        """What the stage's part of the run is made from, and what it makes: for its record, see lineage.OWNERS."""
        made: dict[str, Callable[[], str]] = {
            "written queries": lambda: str(self.synthesize),
            "training texts": lambda: self._training_data,
            "training data": lambda: content_hash(self._training_data, self._mixture),
            "test data": lambda: content_hash(self._sets("test"), self._instructions("test"), self._taken_test),
            "negatives": lambda: self.mine,
            "preferences": lambda: str(self.judge),
            "pretraining": lambda: str(self.pretrain),
            "training": lambda: self.train,
            "tuned": lambda: content_hash([self.systems.get(name) for name in ("tuned", EXPORTED)]),
            "results": lambda: content_hash(self.systems),
            "calibration": lambda: self.calibrate,
            "training settings": lambda: self.settings["training settings"],
            "test settings": lambda: self.settings["test settings"],
            "teacher settings": lambda: self.settings["teacher settings"],
        }
        absent = {"preferences": self.judge is None, "written queries": self.recipe.synthesize is None}
        absent["pretraining"] = self.recipe.pretrain is None
        names = [name for name in MADE_FROM[stage] if not absent.get(name, False)]
        return {name: made[name]() for name in names}

    def export(self, gate: Mapping[str, Any] | None, ledger: Mapping[str, Any], target: str | None = None) -> str:
        """gate: the verdict that lets the model through; ledger: licences.json; target: None for all of them."""
        section = self._sections["export"]
        if target is not None:
            section = section | {"targets": {target: self.recipe.export_targets[target]}}
        return content_hash(self.calibrate, self.systems, section, gate, ledger, self._code("export"))
