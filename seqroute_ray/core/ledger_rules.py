"""The rules of the session budget: what each event changes, and when it is refused. Pure; stores apply them."""

from collections.abc import Sequence

from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, LedgerError, UnknownSessionError
from seqroute_ray.core.ledger import MAX_BUDGET_NUSD, Account, Attempt, AttemptState, Change, Entry, TurnRecord

NO_CHANGE = Change()


def opening(session_id: str, budget_nusd: int) -> Change:
    """Raises ConfigError on a budget outside (0, MAX_BUDGET_NUSD]."""
    check_budget(session_id, budget_nusd)
    return Change(budget_nusd=budget_nusd)


def raising(account: Account, budget_nusd: int) -> Change:
    """Raises ConfigError on a lower budget."""
    check_budget(account.session_id, budget_nusd)
    if budget_nusd < account.budget_nusd:
        raise ConfigError(
            f"session {account.session_id!r}: a budget can only be raised; it is ${account.budget_nusd / 1e9:.9f}, "
            f"asked for ${budget_nusd / 1e9:.9f}"
        )
    return Change(budget_nusd=budget_nusd - account.budget_nusd)


def reserving(account: Account, amount_nusd: int) -> Change:
    """Raises LedgerError on a closed session, BudgetExhaustedError when the amount does not fit; 0 always fits."""
    check_amount(amount_nusd)
    if account.closed:
        raise LedgerError(f"session {account.session_id!r} is closed; begin a new one")
    if amount_nusd > account.remaining_nusd:
        raise exhausted(account, amount_nusd)
    return Change(reserved_nusd=amount_nusd)


def repeats_reserving(attempt: Attempt, session_id: str, model: str, amount_nusd: int) -> None:
    """Return when the attempt was reserved just so and is open. Raises LedgerError."""
    if (attempt.session_id, attempt.model, attempt.amount_nusd) != (session_id, model, amount_nusd):
        raise LedgerError(f"attempt {attempt.attempt_id!r} was reserved otherwise; give every attempt an id of its own")
    check_open(attempt, "reserved")


def repeats_settling(attempt: Attempt, cost_nusd: int, turn: TurnRecord | None) -> bool:
    """True when the attempt was settled just so."""
    decision_id = turn.decision_id if turn else ""
    return (attempt.state, attempt.cost_nusd, attempt.decision_id) == (AttemptState.SETTLED, cost_nusd, decision_id)


def settling(attempt: Attempt, cost_nusd: int) -> tuple[str, Change]:
    """Kind of entry, and change. Raises LedgerError when it cannot be settled."""
    if attempt.state is AttemptState.EXPIRED:
        return "correct", correcting(attempt, cost_nusd)
    check_amount(cost_nusd)
    check_open(attempt, "settled")
    overshoot_nusd = max(0, cost_nusd - attempt.amount_nusd)
    return "settle", Change(spent_nusd=cost_nusd, reserved_nusd=-attempt.amount_nusd, overshoot_nusd=overshoot_nusd)


def releasing(attempt: Attempt) -> Change:
    """Raises LedgerError when the attempt is not open."""
    check_open(attempt, "released")
    return Change(reserved_nusd=-attempt.amount_nusd)


def expiring(attempt: Attempt) -> Change:
    """Raises LedgerError when the attempt is not open."""
    check_open(attempt, "expired")
    return Change(spent_nusd=attempt.amount_nusd, reserved_nusd=-attempt.amount_nusd)


def correcting(attempt: Attempt, cost_nusd: int) -> Change:
    """Raises LedgerError unless the attempt was charged."""
    check_amount(cost_nusd)
    if attempt.state not in (AttemptState.SETTLED, AttemptState.EXPIRED):
        raise LedgerError(f"attempt {attempt.attempt_id!r} is {attempt.state}; only a charged attempt can be corrected")
    overshoot_nusd = max(0, cost_nusd - attempt.amount_nusd)
    return Change(spent_nusd=cost_nusd - attempt.cost_nusd, overshoot_nusd=overshoot_nusd - attempt.overshoot_nusd)


def summed(summary_sum: Sequence[float], summary: Sequence[float]) -> tuple[float, ...]:
    """summary_sum after one more turn. A policy of another width begins a new sum: costs are booked whatever comes."""
    if len(summary_sum) != len(summary):
        return tuple(summary)
    return tuple(before + now for before, now in zip(summary_sum, summary, strict=True))


def unknown_session(session_id: str) -> UnknownSessionError:
    return UnknownSessionError(f"session {session_id!r} is unknown; open it first")


def unknown_attempt(attempt_id: str) -> LedgerError:
    return LedgerError(f"attempt {attempt_id!r} is unknown in this session; reserve it first")


def unknown_decision(decision_id: str) -> LedgerError:
    return LedgerError(f"decision {decision_id!r} is unknown; a decision is kept when its turn is settled")


def unknown_target(target: str) -> LedgerError:
    return LedgerError(f"feedback on {target!r}: no answered turn and no session has this id")


def used_decision(decision_id: str) -> LedgerError:
    return LedgerError(f"decision {decision_id!r} was settled with another attempt; give every turn an id of its own")


def exhausted(account: Account, amount_nusd: int) -> BudgetExhaustedError:
    """The error of a reservation that does not fit: says what is spent, reserved and left."""
    return BudgetExhaustedError(
        f"session {account.session_id!r} cannot reserve ${amount_nusd / 1e9:.9f}: "
        f"budget ${account.budget_nusd / 1e9:.9f}, spent ${account.spent_nusd / 1e9:.9f}, "
        f"reserved ${account.reserved_nusd / 1e9:.9f}, remaining ${account.remaining_nusd / 1e9:.9f}",
        amount_nusd,
    )


def total(entries: Sequence[Entry]) -> Change:
    """Sum of the changes: what the account's counters must be."""
    return Change(
        budget_nusd=sum(entry.change.budget_nusd for entry in entries),
        spent_nusd=sum(entry.change.spent_nusd for entry in entries),
        reserved_nusd=sum(entry.change.reserved_nusd for entry in entries),
        overshoot_nusd=sum(entry.change.overshoot_nusd for entry in entries),
    )


def check_budget(session_id: str, budget_nusd: int) -> None:
    """Raises ConfigError."""
    if not 0 < budget_nusd <= MAX_BUDGET_NUSD:
        raise ConfigError(
            f"session {session_id!r}: a budget must be > $0 and <= ${MAX_BUDGET_NUSD / 1e9:.0f}, "
            f"got ${budget_nusd / 1e9:.9f}"
        )


def check_amount(amount_nusd: int) -> None:
    """Raises LedgerError."""
    if not 0 <= amount_nusd <= MAX_BUDGET_NUSD:
        raise LedgerError(f"an amount must be in [0, {MAX_BUDGET_NUSD}] nano-dollars, got {amount_nusd}")


def check_open(attempt: Attempt, wanted: str) -> None:
    """Raises LedgerError."""
    if attempt.state is not AttemptState.RESERVED:
        raise LedgerError(f"attempt {attempt.attempt_id!r} is already {attempt.state}; it cannot be {wanted}")
