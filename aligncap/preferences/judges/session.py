"""A set of questions from plan to answers: what it will cost, how it is asked, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aligncap.io import load_data
from aligncap.preferences.judges.endpoint import limit_field
from aligncap.preferences.judges.limits import Limits, Prices, prices_of
from aligncap.preferences.judges.openai_judge import Tally, ask_all, known_prices
from aligncap.preferences.judges.questions import FILE, Ask, Question, distinct
from aligncap.preferences.judges.verdict_journal import Ledger, Paid, VerdictJournal, read_ledger


@dataclass(frozen=True)
class Endpoint:
    """Where questions go and what an answer costs.

    `base_url` None is OPENAI_BASE_URL, else OpenAI's own; `api_key` None is OPENAI_API_KEY. Prices are in US
    dollars per million tokens, None those of data/judge.yaml.
    """

    base_url: str | None = None
    api_key: str | None = None
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True)
class Session:
    """How a set of questions is asked."""

    ask: Ask
    limits: Limits
    endpoint: Endpoint
    batch: bool = False

    @property
    def prices(self) -> Prices | None:
        found = prices_of(self.ask.model, self.endpoint.price_in, self.endpoint.price_out)
        return found.scaled(load_data(FILE)["batch_price_share"]) if found and self.batch else found


@dataclass(frozen=True)
class Done:
    """`answers` by key, and lines about the run."""

    answers: dict[str, Paid]
    tally: Tally
    notes: list[str]

    def reason(self, question: Question) -> str:
        """Why a question has no answer."""
        return self.tally.failed.get(question.key) or "not asked, the run ended before its turn"


def journal_of(out: str | Path | None, cache: str | Path | None) -> Path | None:
    """The journal: the named one, else OUT.verdicts.jsonl."""
    if cache is not None:
        return Path(cache)
    return Path(out).with_name(f"{Path(out).name}.verdicts.jsonl") if out is not None else None


def plan_lines(
    questions: Sequence[Question], session: Session, journal: Path | None, prompt: bool = False
) -> list[str]:
    """What a run would send and cost; with `prompt` one whole question. Nothing is sent."""
    ledger = read_ledger(journal) if journal else Ledger()
    todo = [q for q in distinct(questions) if q.key not in ledger.paid]
    room, usual = session.ask.max_tokens, load_data(FILE)["usual_answer_tokens"]
    tokens_in = sum(q.tokens_guess() for q in todo)
    paid = len(distinct(questions)) - len(todo)
    lines = [
        f"{len(questions)} questions to {session.ask.model}, {len(todo)} requests to send"
        + (f" ({paid} answers are in {journal})" if paid else "")
        + f", about {tokens_in:,} tokens in and {usual * len(todo):,} out"
    ]
    if session.prices is None:
        lines.append(f"cost unknown: no price for {session.ask.model!r}; give --price-in and --price-out")
    else:
        likely = session.prices.cost(tokens_in, usual * len(todo))
        most = session.prices.cost(sum(q.tokens_bound() for q in todo), room * len(todo))
        line = f"about ${likely:.4f}, ${most:.4f} if every answer took all its room"
        if ledger.spent:
            line += f"; ${ledger.spent:.4f} are spent already"
        if (cap := session.limits.max_cost) is not None:
            line += f"; the cap is ${cap:.4f}"
        lines.append(line)
    if prompt and questions:
        shown = (todo or questions)[0]
        lines += ["", "[system]", shown.system, "", "[user]", shown.user]
    return lines


def run_questions(
    questions: Sequence[Question], session: Session, journal: Path | None, say: Callable[[str], None]
) -> Done:
    """Answer questions, from the journal where they were paid already.

    Args:
        say: is told the plan before anything is sent.

    Raises:
        UserError: see `ask_all` and `run_batches`.
    """
    from aligncap.preferences.judges.openai_batch import run_batches

    assert journal is not None
    prices, endpoint = session.prices, session.endpoint
    known_prices(prices, session.ask, session.limits)
    ask = replace(session.ask, limit_field=limit_field(endpoint.base_url))
    with VerdictJournal(journal) as book:
        for line in plan_lines(questions, session, journal):
            say(line)
        before = book.spent
        asking = run_batches if session.batch else ask_all
        tally = asking(questions, ask, book, session.limits, prices, endpoint.base_url, endpoint.api_key, say)
        answers = {q.key: book.paid[q.key] for q in questions if q.key in book.paid}
        return Done(answers, tally, _notes(tally, book, before, prices is not None))


def _notes(tally: Tally, book: VerdictJournal, before: float, priced: bool) -> list[str]:
    lines = [
        f"{tally.asked} requests, {tally.cached} answers from {book.path}, {tally.tokens_in:,} tokens in and "
        f"{tally.tokens_out:,} out"
        + (f", ${book.spent - before:.4f} (${book.spent:.4f} in all, lost answers at most)" if priced else "")
    ]
    if tally.faults:
        counted = ", ".join(f"{count} {kind}" for kind, count in tally.faults.most_common())
        lines.append(f"faults: {counted}")
    return lines + ([tally.stopped] if tally.stopped else [])
