"""What every ledger does: the same tests for each store."""

import math
import time
from dataclasses import replace

import pytest

from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, LedgerError, UnknownSessionError
from seqroute_ray.core.ledger import AttemptState, Change, Claim, Feedback, StoredAnswer
from seqroute_ray.core.ledger_rules import total
from tests.serving.ledgers.support import FAR_S, LEASE_S, money, opened, session_of, turn_of

ANSWER = StoredAnswer(status=200, headers={"content-type": "text/event-stream"}, body=b"data: \x00\xff\n\n")


async def test_an_existing_account_keeps_its_budget(place: str) -> None:
    async with session_of(place, 100) as ledger:
        assert (await ledger.open("s", 7)).budget_nusd == 100


@pytest.mark.parametrize("budget_nusd", [0, -1, 10**15 + 1])
async def test_a_budget_out_of_range_is_refused(place: str, budget_nusd: int) -> None:
    async with opened(place) as ledger:
        with pytest.raises(ConfigError, match="a budget must be"):
            await ledger.open("s", budget_nusd)
        with pytest.raises(UnknownSessionError):
            await ledger.account("s")


async def test_the_largest_amounts_are_exact(place: str) -> None:
    budget_nusd = 10**15
    async with session_of(place, budget_nusd) as ledger:
        await ledger.reserve("s", "a", "m", budget_nusd - 1, LEASE_S)
        with pytest.raises(BudgetExhaustedError):
            await ledger.reserve("s", "b", "m", 2, LEASE_S)
        await ledger.reserve("s", "c", "m", 1, LEASE_S)
        assert money(await ledger.settle("s", "a", budget_nusd - 2)) == (budget_nusd, budget_nusd - 2, 1, 0)


async def test_settling_books_the_cost_and_gives_the_rest_back(place: str) -> None:
    async with session_of(place, 100) as ledger:
        assert money(await ledger.reserve("s", "a", "m", 60, LEASE_S)) == (100, 0, 60, 0)
        assert money(await ledger.settle("s", "a", 25)) == (100, 25, 0, 0)
        assert money(await ledger.account("s")) == (100, 25, 0, 0)


async def test_a_bill_of_three_times_the_reservation_is_booked_in_full_as_overshoot(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 60, LEASE_S)
        account = await ledger.settle("s", "a", 180)
        assert (*money(account), account.remaining_nusd) == (100, 180, 0, 120, 0)
        await ledger.reserve("s", "free", "m", 0, LEASE_S)  # a free model still answers
        with pytest.raises(BudgetExhaustedError, match=r"spent \$0.000000180"):
            await ledger.reserve("s", "b", "m", 1, LEASE_S)
        assert money(await ledger.correct("s", "a", 50)) == (100, 50, 0, 0)


async def test_a_reservation_ends_once(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id in ("settled", "released"):
            await ledger.reserve("s", attempt_id, "m", 10, LEASE_S)
        await ledger.settle("s", "settled", 4)
        await ledger.release("s", "released")
        before = await ledger.books("s")
        for attempt_id in ("settled", "released", "unknown"):
            with pytest.raises(LedgerError):
                await ledger.settle("s", attempt_id, 5)
        for attempt_id in ("settled", "unknown"):
            with pytest.raises(LedgerError):
                await ledger.release("s", attempt_id)
        for attempt_id in ("released", "unknown"):
            with pytest.raises(LedgerError):
                await ledger.correct("s", attempt_id, 5)
        assert await ledger.books("s") == before


async def test_what_is_repeated_as_it_was_changes_nothing(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id in ("a", "b"):
            first = await ledger.reserve("s", attempt_id, "m", 50, LEASE_S)
        assert await ledger.reserve("s", "b", "m", 50, LEASE_S) == first  # no money was left for it
        settled = await ledger.settle("s", "a", 30, turn=turn_of("d"))
        assert await ledger.settle("s", "a", 30, turn=turn_of("d")) == settled
        released = await ledger.release("s", "b")
        assert await ledger.release("s", "b") == released
        assert [entry.kind for entry in await ledger.entries("s")] == [
            "open",
            "reserve",
            "reserve",
            "settle",
            "release",
        ]


async def test_an_attempt_id_stands_for_one_attempt(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.open("other", 100)
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        for session_id, model, amount_nusd in (("other", "m", 10), ("s", "n", 10), ("s", "m", 11)):
            with pytest.raises(LedgerError, match="an id of its own"):
                await ledger.reserve(session_id, "a", model, amount_nusd, LEASE_S)
        with pytest.raises(LedgerError, match="unknown"):
            await ledger.settle("other", "a", 10)
        await ledger.settle("s", "a", 5)
        with pytest.raises(LedgerError, match="already settled"):
            await ledger.reserve("s", "a", "m", 10, LEASE_S)


async def test_an_unknown_session_has_nothing(place: str) -> None:
    async with opened(place) as ledger:
        for call in (
            ledger.account("s"),
            ledger.raise_budget("s", 5),
            ledger.close_session("s"),
            ledger.reserve("s", "a", "m", 0, LEASE_S),
            ledger.books("s"),
            ledger.session_log("s"),
        ):
            with pytest.raises(UnknownSessionError, match="unknown"):
                await call
        assert await ledger.entries("s") == []
        for unknown in (ledger.attempt("a"), ledger.decision("d")):
            with pytest.raises(LedgerError, match="unknown"):
                await unknown


@pytest.mark.parametrize("amount_nusd", [-1, 10**15 + 1])
async def test_an_amount_out_of_range_is_refused(place: str, amount_nusd: int) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        for call in (ledger.reserve("s", "b", "m", amount_nusd, LEASE_S), ledger.settle("s", "a", amount_nusd)):
            with pytest.raises(LedgerError, match="an amount must be"):
                await call
        assert money(await ledger.account("s")) == (100, 0, 10, 0)


async def test_a_raised_budget_resumes_an_exhausted_session(place: str) -> None:
    async with session_of(place, 10) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        await ledger.settle("s", "a", 10)
        assert (await ledger.raise_budget("s", 15)).remaining_nusd == 5
        assert (await ledger.raise_budget("s", 15)).remaining_nusd == 5
        with pytest.raises(ConfigError, match="only be raised"):
            await ledger.raise_budget("s", 14)
        assert [entry.kind for entry in await ledger.entries("s")][-1] == "raise"


async def test_a_closed_session_reserves_no_more_but_ends_what_runs(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        assert (await ledger.close_session("s")).closed
        assert (await ledger.close_session("s")).closed
        for amount_nusd in (0, 1):
            with pytest.raises(LedgerError, match="closed"):
                await ledger.reserve("s", f"b{amount_nusd}", "m", amount_nusd, LEASE_S)
        assert (await ledger.settle("s", "a", 9)).spent_nusd == 9
        assert [entry.kind for entry in await ledger.entries("s")] == ["open", "reserve", "close", "settle"]


async def test_an_orphan_is_charged_when_its_lease_has_run_out_and_not_before(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 60, 100.0)
        await ledger.reserve("s", "b", "m", 0, 100.0)
        assert await ledger.expire(time.time() + 99) == []
        expired = {attempt.attempt_id: attempt for attempt in await ledger.expire(time.time() + 101)}
        assert (expired["a"].state, expired["a"].cost_nusd, expired["b"].cost_nusd) == (AttemptState.EXPIRED, 60, 0)
        assert await ledger.attempt("a") == expired["a"]
        assert money(await ledger.account("s")) == (100, 60, 0, 0)
        assert await ledger.expire(FAR_S) == []
        with pytest.raises(LedgerError, match="already expired"):
            await ledger.reserve("s", "a", "m", 60, 100.0)
        with pytest.raises(LedgerError, match="already expired"):
            await ledger.release("s", "a")


async def test_what_ended_is_not_expired(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id in ("a", "b", "c"):
            await ledger.reserve("s", attempt_id, "m", 10, 0.0)
        await ledger.settle("s", "a", 5)
        await ledger.release("s", "b")
        assert [attempt.attempt_id for attempt in await ledger.expire(FAR_S, max_attempts=5)] == ["c"]
        assert money(await ledger.account("s")) == (100, 15, 0, 0)


async def test_many_orphans_and_many_old_answers_go_in_one_call(place: str) -> None:
    async with session_of(place, 10_000) as ledger:
        for number in range(120):
            await ledger.reserve("s", f"a{number}", "m", 1, -1.0)
            await ledger.claim("s", f"k{number}", "hash", -1.0)
        assert len(await ledger.expire(FAR_S, max_attempts=110)) == 110
        assert len(await ledger.expire(FAR_S)) == 10
        assert (await ledger.account("s")).spent_nusd == 120
        assert await ledger.prune(time.time() + 10, answers_max_age_s=1.0, answers_max_bytes=1) == 120


async def test_expiring_takes_the_longest_overdue_first(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id, lease_s in (("late", 30.0), ("first", 10.0), ("second", 20.0)):
            await ledger.reserve("s", attempt_id, "m", 1, lease_s)
        assert [attempt.attempt_id for attempt in await ledger.expire(FAR_S, max_attempts=2)] == ["first", "second"]


async def test_settling_what_has_expired_corrects_it(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 60, 0.0)
        await ledger.expire(FAR_S)
        account = await ledger.settle("s", "a", 25, turn=turn_of("d", 25))
        assert (money(account), account.num_turns) == ((100, 25, 0, 0), 1)
        assert await ledger.settle("s", "a", 25, turn=turn_of("d", 25)) == account
        assert (await ledger.attempt("a")).state is AttemptState.SETTLED
        kinds = [entry.kind for entry in await ledger.entries("s")]
        assert kinds == ["open", "reserve", "expire", "correct"]


@pytest.mark.parametrize("amount_nusd", [0, 60])
async def test_a_turn_counts_that_comes_when_its_attempt_has_expired_at_its_cost(place: str, amount_nusd: int) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", amount_nusd, 0.0)
        await ledger.expire(FAR_S)
        late = await ledger.settle("s", "a", amount_nusd, turn=turn_of("d1", amount_nusd))
        assert (money(late), late.num_turns) == ((100, amount_nusd, 0, 0), 1)
        assert [entry.kind for entry in await ledger.entries("s")] == ["open", "reserve", "expire"]
        await ledger.reserve("s", "b", "m", 10, LEASE_S)
        assert (await ledger.settle("s", "b", 5, turn=turn_of("d2", 5))).num_turns == 2
        assert [turn.record["decision_id"] for turn in (await ledger.session_log("s")).turns] == ["d1", "d2"]
        assert [session for _, session in await ledger.changed(0, 9)] == ["s"]


async def test_a_late_bill_corrects_the_cost_up_and_down(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 60, LEASE_S)
        with pytest.raises(LedgerError, match="only a charged attempt"):
            await ledger.correct("s", "a", 5)
        await ledger.settle("s", "a", 25)
        assert money(await ledger.correct("s", "a", 80)) == (100, 80, 0, 20)
        assert money(await ledger.correct("s", "a", 80)) == (100, 80, 0, 20)
        assert money(await ledger.correct("s", "a", 70)) == (100, 70, 0, 10)
        assert money(await ledger.correct("s", "a", 0)) == (100, 0, 0, 0)
        assert (await ledger.attempt("a")).cost_nusd == 0
        assert len(await ledger.entries("s")) == 6


async def test_the_journal_sums_to_the_account(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 60, LEASE_S)
        await ledger.settle("s", "a", 90)
        await ledger.raise_budget("s", 200)
        await ledger.reserve("s", "b", "m", 30, LEASE_S)
        books = await ledger.books("s")
        assert total(books.entries) == Change(budget_nusd=200, spent_nusd=90, reserved_nusd=30, overshoot_nusd=30)
        assert {(a.attempt_id, a.state.value, a.cost_nusd) for a in books.attempts} == {
            ("a", "settled", 90),
            ("b", "reserved", 0),
        }
        assert books.account == await ledger.account("s")
        assert abs(books.entries[-1].at_s - time.time()) < 60


async def test_a_turn_is_remembered_with_its_cost(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for number in range(3):
            await ledger.reserve("s", f"a{number}", "m", 10, LEASE_S)
            account = await ledger.settle("s", f"a{number}", 5, turn=turn_of(f"d{number}", 5))
        assert account.num_turns == 3
        assert account.summary_sum == (0.1 + 0.1 + 0.1, 0.2 + 0.2 + 0.2)  # to the last bit
        assert account.latest == {"decision_id": "d2"}
        assert await ledger.account("s") == account
        record = await ledger.decision("d1")
        assert abs(record.pop("at_s") - time.time()) < 60
        assert record == {
            "decision_id": "d1",
            "session_id": "s",
            "turn": 1,
            "owner": "key",
            "model": "m",
            "cost_nusd": 5,
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "feedback": [],
        }


async def test_a_turn_of_another_width_begins_a_new_sum_and_is_booked(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id, summary in (("a", (1.0, 2.0)), ("b", (1 / 3, 1e-300, math.pi))):
            await ledger.reserve("s", attempt_id, "m", 10, LEASE_S)
            turn = turn_of(f"d{attempt_id}")._replace(summary=summary)
            account = await ledger.settle("s", attempt_id, 5, turn=turn)
        assert (account.summary_sum, account.spent_nusd) == ((1 / 3, 1e-300, math.pi), 10)


async def test_a_decision_id_stands_for_one_turn(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id in ("a", "b"):
            await ledger.reserve("s", attempt_id, "m", 10, LEASE_S)
        await ledger.settle("s", "a", 5, turn=turn_of("d"))
        before = await ledger.books("s")
        with pytest.raises(LedgerError, match="settled with another attempt"):
            await ledger.settle("s", "b", 5, turn=turn_of("d"))
        assert await ledger.books("s") == before


async def test_an_idempotency_key_is_answered_once(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.MINE, None)
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.IN_FLIGHT, None)
        assert await ledger.claim("s", "k", "else", LEASE_S) == (Claim.CONFLICT, None)
        assert await ledger.claim("t", "k", "else", LEASE_S) == (Claim.MINE, None)  # of another session
        await ledger.settle("s", "a", 5, answer=("k", ANSWER))
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.ANSWERED, ANSWER)
        assert await ledger.claim("s", "k", "else", LEASE_S) == (Claim.CONFLICT, None)
        await ledger.disclaim("s", "k")  # too late
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.ANSWERED, ANSWER)


async def test_a_key_is_free_again_when_given_back_or_when_its_holder_died(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.claim("s", "back", "hash", LEASE_S)
        await ledger.disclaim("s", "back")
        assert await ledger.claim("s", "back", "other hash", LEASE_S) == (Claim.MINE, None)
        await ledger.claim("s", "dead", "hash", -1.0)
        assert await ledger.claim("s", "dead", "other hash", LEASE_S) == (Claim.CONFLICT, None)
        assert await ledger.claim("s", "dead", "hash", LEASE_S) == (Claim.MINE, None)
        assert await ledger.claim("s", "dead", "hash", LEASE_S) == (Claim.IN_FLIGHT, None)


async def test_the_first_answer_to_a_key_stays_and_one_nobody_claimed_is_not_kept(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for attempt_id in ("a", "b", "c"):
            await ledger.reserve("s", attempt_id, "m", 10, LEASE_S)
        await ledger.claim("s", "k", "hash", LEASE_S)
        await ledger.settle("s", "a", 5, answer=("k", ANSWER))
        await ledger.settle("s", "b", 5, answer=("k", replace(ANSWER, body=b"second")))
        await ledger.settle("s", "c", 5, answer=("unclaimed", ANSWER))
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.ANSWERED, ANSWER)
        assert await ledger.claim("s", "unclaimed", "hash", LEASE_S) == (Claim.MINE, None)


async def test_a_refused_settlement_keeps_no_answer(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.claim("s", "k", "hash", LEASE_S)
        with pytest.raises(LedgerError):
            await ledger.settle("s", "unknown", 5, answer=("k", ANSWER))
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.IN_FLIGHT, None)


async def test_answers_are_dropped_by_age_then_by_size_but_never_one_in_flight(place: str) -> None:
    now_s = time.time()
    async with session_of(place, 100) as ledger:
        await ledger.claim("s", "in flight", "hash", 100.0)
        for key in ("first", "second", "third"):
            await ledger.reserve("s", key, "m", 10, LEASE_S)
            await ledger.claim("s", key, "hash", LEASE_S)
            await ledger.settle("s", key, 5, answer=(key, replace(ANSWER, body=key.encode())))
        assert await ledger.prune(now_s, answers_max_age_s=60.0, answers_max_bytes=16) == 0
        assert await ledger.prune(now_s, answers_max_age_s=60.0, answers_max_bytes=15) == 1
        assert (await ledger.claim("s", "first", "hash", LEASE_S))[0] is Claim.MINE
        assert (await ledger.claim("s", "second", "hash", LEASE_S))[0] is Claim.ANSWERED
        assert await ledger.prune(now_s + 62, answers_max_age_s=61.0, answers_max_bytes=15) == 3  # with "first"
        assert (await ledger.claim("s", "third", "hash", LEASE_S))[0] is Claim.MINE
        assert (await ledger.claim("s", "in flight", "hash", LEASE_S))[0] is Claim.IN_FLIGHT
        assert await ledger.prune(now_s + 200, answers_max_age_s=61.0, answers_max_bytes=15) == 2


async def test_the_last_score_of_a_judge_counts(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        await ledger.settle("s", "a", 5, turn=turn_of("d"))
        for judge, score, at_s in (("user", 0.1, 3.0), ("model", 0.5, 2.0), ("user", 0.9, 4.0)):
            await ledger.add_feedback(Feedback(target="d", judge=judge, score=score, at_s=at_s, owner="key"))
        await ledger.add_feedback(Feedback(target="s", judge="user", score=1.0, at_s=5.0))
        assert (await ledger.decision("d"))["feedback"] == [
            {"judge": "model", "score": 0.5, "at_s": 2.0, "owner": "key"},
            {"judge": "user", "score": 0.9, "at_s": 4.0, "owner": "key"},
        ]
        assert [feedback.score for feedback in (await ledger.session_log("s")).feedback] == [1.0]
        with pytest.raises(LedgerError, match="no answered turn and no session"):
            await ledger.add_feedback(Feedback(target="unknown", judge="user", score=1.0, at_s=5.0))


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_score_is_in_the_unit_range(score: float) -> None:
    with pytest.raises(ConfigError, match="score must be in"):
        Feedback(target="d", judge="user", score=score, at_s=0.0)


async def test_the_decision_log_has_turns_in_order_with_corrected_costs(place: str) -> None:
    async with session_of(place, 100) as ledger:
        for number in range(12):
            await ledger.reserve("s", f"a{number}", "m", 5, LEASE_S)
            turn = turn_of(f"d{number}", cost_nusd=5 + 100)  # a turn of two attempts costs more than its last one
            await ledger.settle("s", f"a{number}", 5, turn=turn)
        await ledger.correct("s", "a3", 7)
        log = await ledger.session_log("s")
        assert [turn.record["turn"] for turn in log.turns] == list(range(12))
        assert [turn.record["decision_id"] for turn in log.turns] == [f"d{number}" for number in range(12)]
        assert [turn.record["cost_nusd"] for turn in log.turns[2:5]] == [105, 107, 105]
        assert log.turns[0].embedding == turn_of("d").embedding
        assert (await ledger.decision("d3"))["cost_nusd"] == 107


async def test_changes_of_the_decision_log_come_in_their_order(place: str) -> None:
    async with opened(place) as ledger:
        for session_id in ("s", "t", "u"):
            await ledger.open(session_id, 100)
            await ledger.reserve(session_id, session_id, "m", 10, LEASE_S)
        assert await ledger.changed(0, 10) == []
        for session_id in ("s", "t", "u"):
            await ledger.settle(session_id, session_id, 5, turn=turn_of(f"d{session_id}"))
        assert await ledger.changed(0, 10) == [(1, "s"), (2, "t"), (3, "u")]
        await ledger.add_feedback(Feedback(target="ds", judge="user", score=1.0, at_s=5.0))
        await ledger.correct("t", "t", 9)
        await ledger.correct("t", "t", 9)  # nothing changes
        assert await ledger.changed(0, 2) == [(3, "u"), (4, "s")]
        assert await ledger.changed(4, 2) == [(5, "t")]


async def test_sessions_come_page_by_page(place: str) -> None:
    names = ["_", "a", "a}:account", "b c", "ä", "{x}"]
    async with opened(place) as ledger:
        for name in reversed(names):
            await ledger.open(name, 5)
        found, after = list[str](), ""
        while page := await ledger.sessions(after, 2):
            found, after = found + page, page[-1]
        assert found == sorted(names, key=str.encode)


async def test_an_open_ledger_answers_and_a_closed_one_has_kept_everything(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.ping()
        await ledger.reserve("s", "a", "m", 60, LEASE_S)
    async with opened(place) as ledger:
        with pytest.raises(BudgetExhaustedError):
            await ledger.reserve("s", "b", "m", 41, LEASE_S)
        assert (await ledger.settle("s", "a", 50)).spent_nusd == 50
