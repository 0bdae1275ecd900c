"""Corpus, tokenizer and BM25 of make.py; the texts are those of Python's own standard library."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import Stemmer
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

Ints = NDArray[np.int64]
VOCABULARY = 8192
DOCUMENT_TOKENS = 192  # stored per document; a step cuts further
QUERY_TOKENS = 40
SKIPPED_FOLDERS = set("test tests idlelib lib2to3 turtledemo site-packages encodings ensurepip".split())
HELD_OUT_TEXTS = 20
QWEN_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
SPECIAL = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()
ADDED = """
<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>
""".split()
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
STOP = frozenset(
    """
    a an and are as at be been but by can could do does for from had has have he her his how if in into is it
    its may more most no not of on one or our out self she should so some such than that the their them then
    there these they this those to up was we were what when where which who why will with would you your def
    return none true false i s t
    """.split()
)
OPENERS = ("what is", "how do", "how does", "why", "which", "what are the", "find", "when should", "explain")
_stemmer = Stemmer.Stemmer("english")


def nothing() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Document:
    """A text to be ranked, with the queries that it answers; Lexicon.encode() fills in the arrays."""

    text: str
    source: str
    kind: str  # "code" or "prose": negatives come from the same kind
    queries: list[str] = field(default_factory=list)
    ids: Ints = field(default_factory=nothing)
    stems: Ints = field(default_factory=nothing)  # per token; -1 where no content word ends
    whole: Ints = field(default_factory=nothing)  # per token; 0 inside a word


def held_out(source: str) -> bool:
    """Whether a standard-library module is for evaluation: about one in twelve, by the hash of its name."""
    return hashlib.sha256(source.encode()).digest()[0] < 21


def words(text: str) -> list[str]:
    """Stems of the content words, identifiers split at case and underscores."""
    found = [w.lower() for w in WORD.findall(text)]
    return [str(w) for w in _stemmer.stemWords([w for w in found if w not in STOP])]


def flat(text: str) -> str:
    return " ".join(text.split())


def first_paragraph(text: str) -> str:
    return " ".join(flat(re.split(r"\n\s*\n", text.strip())[0]).split()[:40])


def source_files() -> list[tuple[str, str]]:
    """(module path, text) of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(name.parts) and name.name != "topics.py":
            found.append((name.as_posix(), path.read_text(encoding="utf-8", errors="replace")))
    return found


def code_documents(source: str, text: str) -> Iterator[Document]:
    """Functions and classes without docstring, docstrings without function, blocks without their comment."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        body = lines[node.lineno - 1 : node.end_lineno]
        docstring = ast.get_docstring(node)
        if docstring:
            at = node.body[0]
            after = lines[at.end_lineno or at.lineno : node.end_lineno]
            body = lines[node.lineno - 1 : at.lineno - 1] + after
        code = textwrap.dedent("\n".join(body[:40])).strip()
        if len(code) < 60:
            continue
        name = " ".join(w.lower() for w in WORD.findall(node.name))
        if docstring and len(first_paragraph(docstring).split()) >= 4:
            yield Document(code, source, "code", [first_paragraph(docstring)])
            if len(docstring.split()) >= 8:
                yield Document(docstring.strip(), source, "prose", ["\n".join(code.splitlines()[:6]), name])
        elif len(name.split()) >= 2 and not node.name.startswith("__"):
            yield Document(code, source, "code", [name])
    for match in re.finditer(r"(?m)((?:^[ \t]*#[^\n]*\n)+)((?:^(?![ \t]*#)[^\n]*\S[^\n]*\n){3,15})", text):
        comment = flat(re.sub(r"(?m)^[ \t]*#+", "", match[1]))
        if 5 <= len(comment.split()) <= 60:
            query = " ".join(comment.split()[:40])
            yield Document(textwrap.dedent(match[2]).strip(), source, "code", [query])


def prose_documents(source: str, text: str) -> Iterator[Document]:
    """Paragraphs of 25 to 120 words, short neighbours joined."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        held += paragraph.split()
        if len(held) >= 25:
            yield Document(" ".join(held[:120]), source, "prose")
            held = []


def read_texts(path: Path) -> list[Document]:
    """The general texts that were written for this project (CC0); their titles are queries."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Document(row["text"], f"texts/{row['id']}", "prose", [row["title"]]) for row in rows]


def read_corpus(texts: Path) -> tuple[list[Document], list[Document], list[Document]]:
    """(training documents, held-out standard-library code, held-out texts)."""
    from pydoc_data.topics import topics

    found: list[Document] = []
    for source, text in source_files():
        found += code_documents(source, text)
        try:
            found += prose_documents(source, ast.get_docstring(ast.parse(text)) or "")
        except SyntaxError:
            continue
    general = read_texts(texts)
    training = [d for d in found if not held_out(d.source)] + general[:-HELD_OUT_TEXTS]
    for name in sorted(topics):
        training += prose_documents(f"topics/{name}", topics[name])
    code = [d for d in found if held_out(d.source) and d.kind == "code" and " " in d.queries[0]]
    unique = {d.text: d for d in reversed(training)}
    return (
        list(reversed(unique.values())),
        list({d.text: d for d in code}.values()),
        general[-HELD_OUT_TEXTS:],
    )


def train_tokenizer(texts: Path, frame: str) -> Tokenizer:
    """Byte-level BPE with Qwen3's rules and added tokens; the words of the prompt frame are single tokens."""
    from pydoc_data.topics import topics

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    files = source_files()
    prose = [topics[name] for name in sorted(topics)]
    prose += [d.queries[0] + "\n" + d.text for d in read_texts(texts)] * 4
    docs = [d.text for file in files for d in code_documents(*file) if d.kind == "prose"]
    framed = [re.sub(r"<[^<>\s]+>", "\n", frame), "yes\nno\nyes\nno\n"] * 3000
    tokenizer.train_from_iterator([t for _, t in files] + prose * 3 + docs * 3 + framed, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    answers = [len(tokenizer.encode(t).ids) for t in ("yes", "no")]
    if tokenizer.get_vocab_size() != VOCABULARY or answers != [1, 1]:
        raise RuntimeError("the tokenizer lacks entries: its training text changed too much")
    return tokenizer


class Lexicon:
    """BM25 over a set of documents, and the encoding of texts with the word that ends at every token."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        self.tokenizer = tokenizer
        self.documents = documents
        self.stem_ids: dict[str, int] = {}
        postings: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        bags = [Counter(self.ids_of(words(d.text))) for d in documents]
        self.mean = max(1.0, sum(b.total() for b in bags) / max(1, len(bags)))
        for number, bag in enumerate(bags):
            for stem in bag:
                postings[stem].append((number, self.weight(bag, stem)))
        found = {s: len(p) for s, p in postings.items()}
        self.idf = {s: float(np.log(1 + (len(bags) - n + 0.5) / (n + 0.5))) for s, n in found.items()}
        self.rare = max(self.idf.values(), default=1.0)
        self.postings = {}
        for stem, posting in postings.items():
            numbers, weights = zip(*posting, strict=True)
            self.postings[stem] = np.array(numbers), np.array(weights) * self.idf[stem]
        for document in documents:
            self.encode(document)

    def ids_of(self, stems: Iterable[str]) -> list[int]:
        return [self.stem_ids.setdefault(s, len(self.stem_ids)) for s in stems]

    def weight(self, bag: Counter[int], stem: int) -> float:
        """BM25's saturated frequency, k1 = 1.2 and b = 0.75."""
        return bag[stem] * 2.2 / (bag[stem] + 1.2 * (0.25 + 0.75 * bag.total() / self.mean))

    def encode(self, document: Document) -> Document:
        """Fill in ids and, per token, the stem of the content word that ends in it."""
        encoding = self.tokenizer.encode(document.text)
        ends: dict[int, int] = {}
        inside: set[int] = set()
        for match in WORD.finditer(document.text):
            stem = self.ids_of(words(match[0]))
            ends[match.end()] = stem[0] if stem else -1
            inside.update(range(match.start() + 1, match.end()))
        offsets = encoding.offsets[:DOCUMENT_TOKENS]
        document.ids = np.array(encoding.ids[:DOCUMENT_TOKENS], np.int64)
        document.stems = np.array([ends.get(end, -1) for _, end in offsets], np.int64)
        document.whole = np.array([end not in inside for _, end in offsets], np.int64)
        return document

    def score(self, query: Sequence[int], document: Document) -> float:
        """BM25 of one document, of the index or not."""
        bag = Counter(int(s) for s in document.stems if s >= 0)
        return sum(self.idf.get(s, self.rare) * self.weight(bag, s) for s in set(query) if s in bag)

    def search(self, query: Sequence[int], depth: int) -> list[int]:
        """The numbers of the best documents, best first."""
        scores = np.zeros(len(self.documents))
        for stem in set(query):
            if stem in self.postings:
                numbers, weights = self.postings[stem]
                scores[numbers] += weights
        best = np.argsort(-scores, kind="stable")[:depth]
        return [int(n) for n in best if scores[n] > 0]


def describe(documents: Sequence[Document]) -> dict[str, Any]:
    """Counts of the training pairs, and a hash of all of them."""
    digest, pairs = hashlib.sha256(), 0
    for document in documents:
        for query in document.queries:
            digest.update(json.dumps([query, document.text]).encode())
            pairs += 1
    return {"documents": len(documents), "pairs": pairs, "pairs_sha256": digest.hexdigest()}


def random_word(rng: Random, pool: Sequence[str]) -> str:
    """A word of the corpus, or now and then a made-up one: matching has to work for unknown words too."""
    if rng.random() < 0.25:
        return "".join(rng.choice(pool)[: rng.randint(2, 4)] for _ in range(rng.randint(1, 3)))
    return rng.choice(pool)
