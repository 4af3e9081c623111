"""Each store against the pure rules of core.ledger, over random histories; whatever happens, the books are right."""

import asyncio
import itertools
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from seqroute_ray.core import ledger_rules as rules
from seqroute_ray.core.errors import SeqRouteError
from seqroute_ray.core.ledger import Account, Attempt, AttemptState, Change, Ledger, TurnRecord
from seqroute_ray.serving.ledgers.audit import problems_of
from seqroute_ray.serving.ledgers.factory import open_ledger
from tests.serving.ledgers.support import FAR_S, LEASE_S, turn_of

BUDGET_NUSD = 100
numbers = itertools.count()  # one store serves all histories: each has a session of its own
amounts_nusd = st.integers(0, 60)
picks = st.integers(0, 5)


class Model:
    """A session kept by the pure rules alone."""

    def __init__(self, session_id: str) -> None:
        self.account = Account(session_id, BUDGET_NUSD)
        self.attempts: dict[str, Attempt] = {}
        self.late_nusd = 0  # by corrections upwards within a reservation, whose rest may be given out again by then

    def reserve(self, attempt_id: str, amount_nusd: int) -> None:
        self._book(rules.reserving(self.account, amount_nusd))
        self.attempts[attempt_id] = Attempt(
            attempt_id=attempt_id, session_id=self.account.session_id, model="m", amount_nusd=amount_nusd,
            lease_until_s=0.0,
        )  # fmt: skip

    def settle(self, attempt_id: str, cost_nusd: int, turn: TurnRecord | None) -> None:
        attempt = self.attempts[attempt_id]
        if rules.repeats_settling(attempt, cost_nusd, turn):
            return
        kind, change = rules.settling(attempt, cost_nusd)
        if turn is None:
            attempt = attempt._replace(decision_id="")
        else:
            attempt = attempt._replace(decision_id=turn.decision_id)
            summary_sum = rules.summed(self.account.summary_sum, turn.summary)
            self.account = self.account._replace(
                num_turns=self.account.num_turns + 1, summary_sum=summary_sum, latest=turn.latest
            )
        self._end(attempt, AttemptState.SETTLED, cost_nusd, change, late=kind == "correct")

    def release(self, attempt_id: str) -> None:
        attempt = self.attempts[attempt_id]
        if attempt.state is not AttemptState.RELEASED:
            self._end(attempt, AttemptState.RELEASED, 0, rules.releasing(attempt))

    def correct(self, attempt_id: str, cost_nusd: int) -> None:
        attempt = self.attempts[attempt_id]
        self._end(attempt, attempt.state, cost_nusd, rules.correcting(attempt, cost_nusd), late=True)

    def expire(self) -> list[str]:
        overdue = [attempt for attempt in self.attempts.values() if attempt.state is AttemptState.RESERVED]
        for attempt in overdue:
            self._end(attempt, AttemptState.EXPIRED, attempt.amount_nusd, rules.expiring(attempt))
        return [attempt.attempt_id for attempt in overdue]

    def raise_budget(self, budget_nusd: int) -> None:
        self._book(rules.raising(self.account, budget_nusd))

    def _end(self, attempt: Attempt, state: AttemptState, cost_nusd: int, change: Change, late: bool = False) -> None:
        self.attempts[attempt.attempt_id] = attempt._replace(state=state, cost_nusd=cost_nusd)
        self.late_nusd += max(0, change.spent_nusd - change.overshoot_nusd) if late else 0
        self._book(change)

    def _book(self, change: Change) -> None:
        names = ("budget_nusd", "spent_nusd", "reserved_nusd", "overshoot_nusd")
        after = {name: getattr(self.account, name) + getattr(change, name) for name in names}
        self.account = self.account._replace(**after)


class Histories(RuleBasedStateMachine):
    """The same calls to a store and to the model: the same accounts, the same errors."""

    def __init__(self, runner: asyncio.Runner, ledger: Ledger) -> None:
        super().__init__()
        self.runner, self.ledger, self.session_id = runner, ledger, f"s{next(numbers)}"
        self.model = Model(self.session_id)
        self.do(ledger.open(self.session_id, BUDGET_NUSD))

    def do(self, call: Any) -> Any:
        return self.runner.run(call)

    def both(self, call: Any, by_rule: Any, *args: object) -> None:
        """The store does what the rule says, also when it refuses."""
        found: object = None
        try:
            self.do(call)
        except SeqRouteError as error:
            found = (type(error), str(error))
        try:
            by_rule(*args)
            expected: object = None
        except SeqRouteError as error:
            expected = (type(error), str(error))
        assert found == expected

    def picked(self, pick: int) -> str | None:
        attempts = list(self.model.attempts)
        return attempts[pick % len(attempts)] if attempts else None

    @rule(amount_nusd=amounts_nusd)
    def reserve(self, amount_nusd: int) -> None:
        attempt_id = f"{self.session_id}-{len(self.model.attempts)}"
        call = self.ledger.reserve(self.session_id, attempt_id, "m", amount_nusd, LEASE_S)
        self.both(call, self.model.reserve, attempt_id, amount_nusd)

    @rule(pick=picks, cost_nusd=amounts_nusd, times=st.integers(1, 3), in_full=st.booleans(), answers=st.booleans())
    def settle(self, pick: int, cost_nusd: int, times: int, in_full: bool, answers: bool) -> None:
        if attempt_id := self.picked(pick):
            cost_nusd = self.model.attempts[attempt_id].amount_nusd if in_full else cost_nusd * times
            turn = turn_of(f"d-{attempt_id}", cost_nusd) if answers else None
            call = self.ledger.settle(self.session_id, attempt_id, cost_nusd, turn=turn)
            self.both(call, self.model.settle, attempt_id, cost_nusd, turn)

    @rule(pick=picks)
    def release(self, pick: int) -> None:
        if attempt_id := self.picked(pick):
            self.both(self.ledger.release(self.session_id, attempt_id), self.model.release, attempt_id)

    @rule(pick=picks, cost_nusd=amounts_nusd)
    def correct(self, pick: int, cost_nusd: int) -> None:
        if attempt_id := self.picked(pick):
            call = self.ledger.correct(self.session_id, attempt_id, cost_nusd)
            self.both(call, self.model.correct, attempt_id, cost_nusd)

    @rule()
    def expire(self) -> None:
        expired = self.do(self.ledger.expire(FAR_S))
        assert sorted(attempt.attempt_id for attempt in expired) == sorted(self.model.expire())

    @rule(more_nusd=st.integers(-5, 20))
    def raise_budget(self, more_nusd: int) -> None:
        budget_nusd = self.model.account.budget_nusd + more_nusd
        self.both(self.ledger.raise_budget(self.session_id, budget_nusd), self.model.raise_budget, budget_nusd)

    @invariant()
    def the_books_are_right(self) -> None:
        books = self.do(self.ledger.books(self.session_id))
        assert books.account == self.model.account
        assert problems_of(books) == []
        log = self.do(self.ledger.session_log(self.session_id))
        assert [turn.record["turn"] for turn in log.turns] == list(range(self.model.account.num_turns))
        found = {a.attempt_id: (a.state, a.amount_nusd, a.cost_nusd) for a in books.attempts}
        assert found == {a.attempt_id: (a.state, a.amount_nusd, a.cost_nusd) for a in self.model.attempts.values()}

    @invariant()
    def no_more_is_given_out_than_there_is(self) -> None:
        account = self.model.account
        allowed_nusd = account.budget_nusd + account.overshoot_nusd + self.model.late_nusd
        assert account.spent_nusd + account.reserved_nusd <= allowed_nusd

    def teardown(self) -> None:
        self.do(self.ledger.expire(FAR_S))  # else the next history would expire these


def test_every_history_is_booked_as_the_rules_say(place: str) -> None:
    with asyncio.Runner() as runner:
        ledger = runner.run(open_ledger(place))
        run_state_machine_as_test(
            lambda: Histories(runner, ledger),  # type: ignore[arg-type] # Hypothesis calls it, whatever it is
            settings=settings(
                max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
        runner.run(ledger.close())
