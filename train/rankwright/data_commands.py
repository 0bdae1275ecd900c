"""`rankwright data ...`: what is known of sets, without training anything. Heavy imports stay inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from rankwright import console
from rankwright.errors import UserError, did_you_mean

app = typer.Typer(name="data", help="Sets: what is known of them.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_sets(
    domain: Annotated[str | None, typer.Option(help="finance, legal, code or general")] = None,
    commercial: Annotated[bool, typer.Option("--commercial", help="only sets that permit commercial use")] = False,
) -> None:
    """The cards: sets with splits, place and licence, and what the filter left out."""
    from rich.table import Table

    from rankwright.cards import list_cards

    cards = list_cards()
    domains = sorted({card.domain for card in cards})
    if domain is not None and domain not in domains:
        near = did_you_mean(domain, domains)
        raise UserError(f"--domain: unknown domain {domain!r}{near} (known: {', '.join(domains)})")
    chosen = [card for card in cards if domain in (None, card.domain)]
    refused = [card for card in chosen if commercial and card.known.commercial != "yes"]
    table = Table(box=None)
    for column in ("card", "domain", "splits", "where", "licence", "commercial use"):
        table.add_column(column, no_wrap=column in ("card", "domain"))
    for card in (card for card in chosen if card not in refused):
        where = f"hub {card.hub.id}" if card.hub is not None else f"files, data.root/{card.path}"
        known = card.known
        table.add_row(card.name, card.domain, ", ".join(card.splits), where, known.licence, known.commercial)
    console.show(table)
    if others := len(cards) - len(chosen):
        console.say(f"left out: {others} sets of other domains")
    if refused:
        names = ", ".join(f"{card.name} ({card.known.commercial})" for card in refused)
        console.say(f"left out by --commercial: {len(refused)} sets: {names}")
    console.say("sources and dates of the statements are in the cards; unknown counts as no until somebody settles it")
