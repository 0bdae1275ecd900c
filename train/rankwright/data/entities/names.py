"""Companies, parties and citations of law in texts, by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from rankwright.data.entities.quantities import Entity

COMPANY, PARTY, STATUTE = "company", "party", "statute"

# Legal forms. What is a word of its own elsewhere ("Limited", "Company", "SE") asks for more: see companies().
_FORMS = (
    r"Inc(?:orporated)?|Corp(?:oration)?|Ltd|Limited|L\.?L\.?C|L\.?L\.?P|L\.P|LP|plc|PLC|P\.L\.C|GmbH|AG|KGaA|KG|OHG|UG|SE|"
    r"S\.A\.S|S\.A|SA|SAS|SARL|S\.à\s?r\.l|S\.p\.A|SpA|S\.r\.l|Srl|N\.V|NV|B\.V|BV|ASA|AB|A/S|ApS|Oyj|Oy|"
    r"Pty\.?\s+(?:Ltd|Limited)|Pte\.?\s+(?:Ltd|Limited)|Co|Company|Holdings|"
    r"INC|CORP|LTD|LIMITED|CO|COMPANY|CORPORATION|HOLDINGS"
)
_FORM = re.compile(
    rf"(?:,?\s+(?:&\s+|and\s+)?|(?<=\w)&\s?)(?P<form>{_FORMS})(?![\w/-])\.?"
    rf"(?:(?:,?\s+|\s?&\s?)(?:{_FORMS})(?![\w/-])\.?)*"
)
# As people write it who write no capitals.
FORM_IN_SMALL = r"(?:,?\s+(?:inc|corp|ltd|llc|llp|plc|gmbh|ag|nv|holdings|co)\b\.?)*"
_NAME_WORD = (
    r"(?:[^\W\d_a-zß-öø-ÿ][\w\u2019'-]*(?:\.[\w-]+)*(?:(?<=\b\w)\.|(?<=\bSt)\.|(?<=\bBros)\.)?|[a-z][A-Z]\w*|\d[\w-]*)"
)
# At most six words that begin with a capital, before a legal form.
_NAME = re.compile(rf"(?:{_NAME_WORD}(?:,?\s+(?:&\s+|and\s+|of\s+|de\s+|und\s+|et\s+)?|\s?&\s?|/)){{0,5}}{_NAME_WORD}$")
_LONGEST_NAME = 90
# Capitalised where a sentence begins, and no part of a name.
_BEGINNINGS = frozenset(
    "a an the in on at by with for from when while as if and but or our we both under however is are was were what "
    "does did do who how which has have had why where whose can could should would will may must these this that "
    "those its their his her my your between since during after before although because also into to of against per "
    "any each all some no not see dear re among via such one two three der die das ein eine le la les un une el los "
    "il lo".split()
)
# Words before a legal form that make no name alone: "a Holding Company", "the Parent Company".
_GENERIC = frozenset(
    "company corporation holding holdings parent group insurance public private joint stock trust investment "
    "management operating subsidiary limited liability bank new other such said listed shell target acquired "
    "acquiring portfolio registered foreign domestic exempt state protected cell restricted scope incorporated same "
    "surviving successor issuing reporting phase part time".split()
)
_NOT_AFTER = re.compile(
    r"\s+(?:Liability|Partners?|Partnership|Edition|Offer|Time|Warranty|Access|Use|Act|Law|Secretary|Rules?|Code)\b"
)
# Forms that are also words or abbreviations, and how many words of a name they need.
_LEAST_WORDS = {"company": 2, "co": 1}

_SURE = (
    "licensor licensee sublicensee lessor lessee sublessee landlord plaintiff defendant appellant appellee "
    "petitioner claimant respondent mortgagor mortgagee assignor assignee grantor grantee franchisor franchisee "
    "guarantor indemnitor indemnitee obligor obligee pledgor pledgee bailor bailee transferor transferee insured "
    "policyholder counterclaimant cross-claimant borrower"
).split()
# Words of other meanings too: parties after "the" alone, and with a capital.
_PERHAPS = (
    "company bank lender tenant buyer seller purchaser vendor supplier distributor contractor subcontractor "
    "consultant customer client employer employee executive agent trustee insurer issuer investor debtor creditor "
    "owner operator manager partnership fund provider recipient discloser"
).split()
SURE_PARTIES = frozenset(_SURE)
_ROLES = re.compile(
    rf"\b(?=[A-Z])(?:(?P<sure>{'|'.join(w.capitalize() for w in _SURE)})"
    rf"|(?P<after>{'|'.join(w.capitalize() for w in _PERHAPS)}))s?\b"
)
_ARTICLE = re.compile(r"\b(?:the|The|THE)\s$")
# The term that a contract gives to whoever stands before the brackets.
_DEFINED = re.compile(
    r"\((?:each,?\s+|collectively,?\s+|together,?\s+)?(?:hereinafter|hereafter|herein)?,?\s*(?:referred\s+to\s+|called\s+)?"
    r"(?:as\s+)?(?:an?\s+|the\s+)?[\"“„«'\u2018](?P<term>[A-Z][\w&.-]*(?:\s+[A-Z][\w&.-]*){0,3})[\"”“»'\u2019]\s*\)"
)
_NOT_PARTIES = re.compile(
    r"(?:Agreements?|Contracts?|Dates?|Terms?|Services?|Products?|Territory|Act|Code|Plans?|Property|Premises|Notes?|Shares?|"
    r"EBITDA|Rules?|Rulebook|Regulations?|Law|Period|Year|Quarter|Price|Fees?|Loans?|Facility|Merger|Offering|Transactions?|"
    r"Software|Information|Intellectual|Marks?|Patents?|Securities|Stock|Units?|Leases?|Licen[cs]es?|Policy|Report|Order|"
    r"Action|Claims?|Directive|Standards?|Programs?|Systems?|Business|Assets?|Closing|Party|Parties|GAAP|IFRS|Form|Schedule|"
    r"Amendment|Indenture|Credit|Warrants?|Options?|Obligations?|Deposit|Rent|Building|Project|Work|Site|Purpose|Court|Reform|Section|NAV|Group)$"
)
_FORM_BEFORE = re.compile(rf"(?:,|\s)\s*(?:{_FORMS})\.?,?\s*$")
_BEFORE_TERM = re.compile(r"(?:[A-Z][\w&.\u2019'-]*|\))[,.]?\s*$")

_MARK = r"[\s\u200e\u200f]*"
_NUMBERS = r"\d+(?:[A-Z]{0,2}\b)?(?:[.\-\u2013\u2011/:]\d+[A-Za-z]?|\.\(\w{1,4}\)|\(\w{1,4}\)|-\d+)*"
_UNIT = (
    r"Sections?|Secs?\.|SECTIONS?|Articles?|ARTICLES?|Arts?\.|Rules?|RULES?|Regulations?|Clauses?|Paragraphs?|Paras?\.|Chapters?|Schedules?|"
    r"Sched\.|Annex|Title"
)
# "Regulations 2015" is the end of a name.
_CITED = re.compile(
    rf"\b(?P<unit>{_UNIT}){_MARK}(?P<number>(?!(?<=\w\s)(?:19|20)\d\d\b(?![.(])(?!-)){_NUMBERS}[a-z]?(?:-\d+)?)(?![\w%])(?!,\d{{3}})"
)
# In small letters where the number is that of a law: "section 12(3)", "article 5 of the Regulation".
_CITED_SMALL = re.compile(
    rf"\b(?P<unit>sections?|articles?|rules?|regulations?|clauses?){_MARK}(?P<number>"
    rf"\d+[A-Z]{{0,2}}(?:\.\d+)*(?:\(\w{{1,4}}\))+|\d+(?:\.\d+)+|\d+[A-Z]{{0,2}}(?=\s+of\s+(?:the\s+|this\s+|that\s+)?[A-Z]))(?!\w)"
)
_SIGN = re.compile(rf"§§?{_MARK}(?P<number>{_NUMBERS}[a-z]?)")
_EU = re.compile(
    r"\b(?:(?:Council|Commission|Delegated|Implementing|Framework)\s+)*(?P<unit>Regulation|Directive|Decision)\s+"
    r"(?:\((?:EU|EC|EEC|Euratom)\)\s*)?(?:No\.?\s*)?(?P<number>\d{2,4}/\d{1,4}(?:/(?:EC|EU|EEC|JHA))?)"
)
_LETTERED = re.compile(
    r"\b(?P<unit>Regulation|Reg\.)\s+(?P<number>(?!(?:EU|EC|UK|US|A|I)\b(?!-))[A-Z]{1,3}(?:-[A-Z]{1,2})?)(?![\w'\u2019])(?!\s+[A-Z])"
)
_CODE = re.compile(
    rf"\b(?P<title>\d{{1,3}})\s+(?P<unit>U\.?\s?S\.?\s?C\.?|C\.?\s?F\.?\s?R\.?)(?:\s+(?:§§?|[Ss]ec(?:tion|\.)|Part|pt\.))?\s*"
    rf"(?P<number>{_NUMBERS}[a-z]?(?:-\d+)?)"
)
_ACT = re.compile(
    r"\b(?P<name>(?:[A-Z][\w\u2019'-]*(?:\s+(?:and|of|&|for|to|in|on|against|\(\w+\))(?:\s+the)?)*[,]?\s+){1,9})"
    r"(?P<act>Act|Code|Ordinance|Regulations|Rules|Order)\b(?:\s+of)?(?:,?\s+(?P<year>(?:1[789]|20)\d\d))?(?!\w)"
)
_UNITS_KEY = {
    "secs": "section", "sec": "section", "sections": "section", "arts": "article", "art": "article",
    "articles": "article", "rules": "rule", "regulations": "regulation", "reg": "regulation", "clauses": "clause",
    "paragraphs": "paragraph", "paras": "paragraph", "para": "paragraph", "chapters": "chapter",
    "schedules": "schedule", "sched": "schedule",
}  # fmt: skip


def companies(text: str) -> Iterator[Entity]:
    """Names that end with a legal form, such as Inc., plc or GmbH; key: the name without it, in small letters."""
    after = 0
    for found in _FORM.finditer(text):
        before = text[max(after, found.start() - _LONGEST_NAME) : found.start()]
        name = _NAME.search(before)
        if name is None or _NOT_AFTER.match(text, found.end()):
            continue
        start = found.start() - (len(before) - name.start())
        start = _without_beginning(text, start, found.start())
        words = re.findall(r"[\w\u2019'-]+", text[start : found.start()])
        form = found["form"].lower().rstrip(".")
        if not any(w.lower() not in _GENERIC for w in words) or len(words) < _LEAST_WORDS.get(form, 1):
            continue
        end = found.end()
        # The stop that ends a sentence is none of an abbreviation.
        if re.search(r"(?:Limited|Company|Holdings|plc|PLC|GmbH|AG)\.$", text[start:end]):
            end -= 1
        after = end
        yield Entity(start, end, COMPANY, company_key(text[start : found.start()]))


def _without_beginning(text: str, start: int, end: int) -> int:
    """Where the name begins, after capitalised words that only begin the sentence."""
    while (word := re.match(r"([\w\u2019'-]+)[.,]?\s+(?:(?:and|of|de|und|et)\s+)?", text[start:end])) is not None:
        if word[1].lower() not in _BEGINNINGS and not word[1].isdigit():
            break
        start += word.end()
    left = re.match(r"[\w\u2019'-]+", text[start:end])
    return end if left is not None and left[0].lower() in _BEGINNINGS else start


def company_key(name: str) -> str:
    """The same for all ways of writing a name: its words in small letters, without legal forms at the end."""
    words = re.findall(r"[\w]+", name.casefold())
    while len(words) > 1 and words[-1] in ("inc", "corp", "co", "ltd", "holdings", "holding", "group", "company"):
        words.pop()
    return " ".join(words)


def parties(text: str) -> Iterator[Entity]:
    """Roles of a contract or a case with a capital, and terms in quotes that a name is given; key: in small letters."""
    for found in _ROLES.finditer(text):
        group = "after" if found["after"] else "sure"
        if group == "after":
            follows = re.compile(r"\s+(?:of\s+)?[A-Z]").match(text, found.end())
            # "Company X" and "Bank of ..." are names.
            if follows or not _ARTICLE.search(text, max(0, found.start() - 4), found.start()):
                continue
        yield Entity(*found.span(), PARTY, found[group].lower())
    for found in _DEFINED.finditer(text):
        before = text[max(0, found.start() - 80) : found.start()]
        # Abbreviations stand for anything, unless they are given to a company.
        named = _FORM_BEFORE if found["term"].isupper() else _BEFORE_TERM
        if not _NOT_PARTIES.search(found["term"]) and named.search(before):
            yield Entity(*found.span("term"), PARTY, found["term"].casefold())


def statutes(text: str) -> Iterator[Entity]:
    """Sections, articles, rules and acts; key: unit and number in one form. They may overlap."""
    for pattern in (_CITED, _CITED_SMALL, _EU, _LETTERED):
        for found in pattern.finditer(text):
            unit = found["unit"].lower().rstrip(".")
            yield Entity(*found.span(), STATUTE, f"{_UNITS_KEY.get(unit, unit)} {found['number'].lower()}")
    for found in _SIGN.finditer(text):
        yield Entity(*found.span(), STATUTE, f"section {found['number'].lower()}")
    for found in _CODE.finditer(text):
        unit = re.sub(r"[.\s]", "", found["unit"]).lower()
        yield Entity(*found.span(), STATUTE, f"{found['title']} {unit} {found['number'].lower()}")
    for found in _ACT.finditer(text):
        start = _without_beginning(text, found.start(), found.start("act"))
        words = re.findall(r"\w+", text[start : found.start("act")])
        # A year shows that it is a law; without one there must be more than "Second Act".
        least = 1 if found["year"] else 2 if found["act"] in ("Act", "Code", "Ordinance") else 99
        if len([w for w in words if w[0].isupper()]) >= least:
            name = " ".join(words).casefold()
            end = found.end() if found["year"] else found.end("act")
            yield Entity(start, end, STATUTE, f"{name} {found['act'].lower()} {found['year'] or ''}".strip())


FINDERS: dict[str, Callable[[str], Iterator[Entity]]] = {COMPANY: companies, PARTY: parties, STATUTE: statutes}
