"""The Redis ledger's atomic steps, in Lua: core.ledger_rules once more, checked against it by one test suite.

Redis runs a script whole or not at all. Amounts are texts of integers: HINCRBY adds them exactly, and Lua's doubles
compare them exactly below 2**53. A script answers {status, ...}; why something was refused is found out in Python, by
the rule itself, from the account and the attempt as they were.

    attempt   JSON array of texts: model, amount_nusd, lease_until_s, state, cost_nusd, decision_id
    entry     JSON array of texts: kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, at_s
    decision  JSON array of texts: turn, at_s, owner, attempt_id, settled_nusd, record
    answer    field m:KEY, JSON array of texts: body_hash, token, lease_until_s, status ("" in flight), headers;
              field b:KEY, the body
"""

from dataclasses import dataclass
from hashlib import sha1

ACCOUNT_FIELDS = (
    "budget_nusd",
    "spent_nusd",
    "reserved_nusd",
    "overshoot_nusd",
    "num_turns",
    "summary_sum",
    "latest",
    "closed",
)

_PRELUDE = """
local function account()
  return redis.call('HMGET', k.account, ACCOUNT_FIELDS)
end
local function attempt(id)
  local packed = redis.call('HGET', k.attempts, id)
  return packed and cjson.decode(packed), packed
end
local function text(number)
  return string.format('%.0f', number + 0)  -- + 0 makes -0 a 0
end
local function add(field, number)
  if number ~= 0 then redis.call('HINCRBY', k.account, field, text(number)) end
end
local function book(kind, id, at_s, budget, spent, reserved, overshoot)
  add('budget_nusd', budget) add('spent_nusd', spent) add('reserved_nusd', reserved) add('overshoot_nusd', overshoot)
  local entry = {kind, id, text(budget), text(spent), text(reserved), text(overshoot), at_s}
  redis.call('RPUSH', k.entries, cjson.encode(entry))
end
local function over(cost, amount)
  return math.max(0, cost - amount)
end
local function recharge(id, tried, cost, at_s)  -- an attempt that was charged before
  local before, amount = tonumber(tried[5]), tonumber(tried[2])
  if cost == before then return false end
  book('correct', id, at_s, 0, cost - before, 0, over(cost, amount) - over(before, amount))
  return true
end
local function change_log(session)
  redis.call('ZADD', k.changed, redis.call('INCR', k.change_number), session)
end
""".replace("ACCOUNT_FIELDS", ", ".join(f"'{name}'" for name in ACCOUNT_FIELDS))


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the names of the keys it touches; k.NAME in its text."""

    keys: tuple[str, ...]
    text: str
    sha: str

    @classmethod
    def of(cls, keys: str, body: str) -> "Script":
        names = tuple(keys.split())
        table = ", ".join(f"{name} = KEYS[{number}]" for number, name in enumerate(names, 1))
        text = f"local k = {{{table}}}\n{_PRELUDE}{body}"
        return cls(names, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


OPEN = Script.of(
    "account entries sessions",
    """
local session, budget, at_s = unpack(ARGV)
if redis.call('EXISTS', k.account) == 0 then
  redis.call('HSET', k.account, 'budget_nusd', '0', 'spent_nusd', '0', 'reserved_nusd', '0', 'overshoot_nusd', '0',
    'num_turns', '0', 'summary_sum', '', 'latest', '{}', 'closed', '0')
  redis.call('ZADD', k.sessions, 0, session)
  book('open', '', at_s, tonumber(budget), 0, 0, 0)
end
return {'done', account()}
""",
)

RAISE = Script.of(
    "account entries",
    """
local budget, at_s = unpack(ARGV)
local before = account()
if not before[1] then return {'unknown'} end
local more = tonumber(budget) - tonumber(before[1])
if more < 0 then return {'refused', before} end
if more > 0 then book('raise', '', at_s, more, 0, 0, 0) end
return {'done', account()}
""",
)

CLOSE = Script.of(
    "account entries",
    """
local before = account()
if not before[1] then return {'unknown'} end
if before[8] == '0' then
  redis.call('HSET', k.account, 'closed', '1')
  book('close', '', ARGV[1], 0, 0, 0, 0)
end
return {'done', account()}
""",
)

RESERVE = Script.of(
    "account attempts entries leases attempt_sessions",
    """
local session, id, model, amount, lease_until_s, at_s = unpack(ARGV)
local before = account()
if not before[1] then return {'unknown'} end
local home = redis.call('HGET', k.attempt_sessions, id)
if home == session then return {'known', before, redis.call('HGET', k.attempts, id)} end
if home then return {'elsewhere'} end
local number = tonumber(amount)
local left = tonumber(before[1]) - tonumber(before[2]) - tonumber(before[3])
if before[8] == '1' or (number > 0 and number > left) then return {'refused', before} end
redis.call('HSET', k.attempts, id, cjson.encode({model, amount, lease_until_s, 'reserved', '0', ''}))
redis.call('HSET', k.attempt_sessions, id, session)
redis.call('ZADD', k.leases, lease_until_s, id)
book('reserve', id, at_s, 0, 0, number, 0)
return {'done', account()}
""",
)

SETTLE = Script.of(
    "account attempts entries leases turns decisions embeddings decision_sessions changed change_number "
    "answers answer_bytes",
    """
local session, id, cost_text, at_s, decision, key = unpack(ARGV, 1, 6)
local tried, packed = attempt(id)
if not tried then return {'unknown'} end
if tried[4] ~= 'reserved' and tried[4] ~= 'expired' then return {'refused', account(), packed} end
if decision ~= '' and redis.call('HEXISTS', k.decision_sessions, decision) == 1 then return {'used'} end
local cost, amount = tonumber(cost_text), tonumber(tried[2])
if tried[4] == 'expired' then
  recharge(id, tried, cost, at_s)
else
  book('settle', id, at_s, 0, cost, -amount, over(cost, amount))
  redis.call('ZREM', k.leases, id)
end
redis.call('HSET', k.attempts, id, cjson.encode({tried[1], tried[2], tried[3], 'settled', cost_text, decision}))
if decision ~= '' then
  local summary, latest, owner, record, embedding = unpack(ARGV, 7, 11)
  local sums, news, before = {}, {}, redis.call('HMGET', k.account, 'summary_sum', 'num_turns')
  for number in string.gmatch(before[1], '[^,]+') do sums[#sums + 1] = tonumber(number) end
  for number in string.gmatch(summary, '[^,]+') do news[#news + 1] = tonumber(number) end
  for place, number in ipairs(news) do
    news[place] = string.format('%.17g', #sums == #news and sums[place] + number or number)
  end
  redis.call('HSET', k.account, 'summary_sum', table.concat(news, ','), 'latest', latest)
  redis.call('HINCRBY', k.account, 'num_turns', 1)
  redis.call('HSET', k.decisions, decision, cjson.encode({before[2], at_s, owner, id, cost_text, record}))
  redis.call('HSET', k.embeddings, decision, embedding)
  redis.call('HSET', k.decision_sessions, decision, session)
  redis.call('RPUSH', k.turns, decision)
  change_log(session)
end
local claimed = key ~= '' and redis.call('HGET', k.answers, 'm:' .. key)
if claimed then
  local status, headers, body = unpack(ARGV, 12, 14)
  local claim = cjson.decode(claimed)
  if claim[4] == '' then
    local answered = cjson.encode({claim[1], claim[2], claim[3], status, headers})
    redis.call('HSET', k.answers, 'm:' .. key, answered, 'b:' .. key, body)
    redis.call('INCRBY', k.answer_bytes, #body)
  end
end
return {'done', account()}
""",
)

RELEASE = Script.of(
    "account attempts entries leases",
    """
local id, at_s = unpack(ARGV)
local tried, packed = attempt(id)
if not tried then return {'unknown'} end
if tried[4] == 'reserved' then
  book('release', id, at_s, 0, 0, -tonumber(tried[2]), 0)
  redis.call('ZREM', k.leases, id)
  redis.call('HSET', k.attempts, id, cjson.encode({tried[1], tried[2], tried[3], 'released', tried[5], tried[6]}))
elseif tried[4] ~= 'released' then
  return {'refused', account(), packed}
end
return {'done', account()}
""",
)

CORRECT = Script.of(
    "account attempts entries changed change_number",
    """
local session, id, cost_text, at_s = unpack(ARGV)
local tried, packed = attempt(id)
if not tried then return {'unknown'} end
if tried[4] ~= 'settled' and tried[4] ~= 'expired' then return {'refused', account(), packed} end
if recharge(id, tried, tonumber(cost_text), at_s) then
  redis.call('HSET', k.attempts, id, cjson.encode({tried[1], tried[2], tried[3], tried[4], cost_text, tried[6]}))
  if tried[6] ~= '' then change_log(session) end
end
return {'done', account()}
""",
)

EXPIRE = Script.of(
    "account attempts entries leases",
    """
local id, now_s, at_s = unpack(ARGV)
local tried = attempt(id)
if not tried or tried[4] ~= 'reserved' or tonumber(tried[3]) >= tonumber(now_s) then return false end
local amount = tonumber(tried[2])
book('expire', id, at_s, 0, amount, -amount, 0)
redis.call('ZREM', k.leases, id)
local expired = cjson.encode({tried[1], tried[2], tried[3], 'expired', tried[2], tried[6]})
redis.call('HSET', k.attempts, id, expired)
return expired
""",
)

CLAIM = Script.of(
    "answers answers_by_age",
    """
local member, key, body_hash, token, now_s, lease_until_s = unpack(ARGV)
local packed = redis.call('HGET', k.answers, 'm:' .. key)
if packed then
  local claim = cjson.decode(packed)
  if claim[1] ~= body_hash then return {'conflict'} end
  if claim[4] ~= '' then return {'answered', claim[4], claim[5], redis.call('HGET', k.answers, 'b:' .. key)} end
  if claim[2] == token then return {'mine'} end
  if tonumber(claim[3]) >= tonumber(now_s) then return {'in_flight'} end
end
redis.call('HSET', k.answers, 'm:' .. key, cjson.encode({body_hash, token, lease_until_s, '', ''}))
redis.call('ZADD', k.answers_by_age, now_s, member)
return {'mine'}
""",
)

# Drops a key in flight (ARGV 3 is the time after which its lease must not last), an answered one only if ARGV 4 is 1.
DROP_ANSWER = Script.of(
    "answers answers_by_age answer_bytes",
    """
local member, key, lease_before_s, also_answered = unpack(ARGV)
local packed = redis.call('HGET', k.answers, 'm:' .. key)
if not packed then return redis.call('ZREM', k.answers_by_age, member) * 0 end
local claim = cjson.decode(packed)
if claim[4] == '' and tonumber(claim[3]) >= tonumber(lease_before_s) then return 0 end
if claim[4] ~= '' then
  if also_answered == '0' then return 0 end
  redis.call('DECRBY', k.answer_bytes, redis.call('HSTRLEN', k.answers, 'b:' .. key))
end
redis.call('HDEL', k.answers, 'm:' .. key, 'b:' .. key)
redis.call('ZREM', k.answers_by_age, member)
return 1
""",
)

FEEDBACK = Script.of(
    "feedback changed change_number",
    """
local session, place, packed = unpack(ARGV)
redis.call('HSET', k.feedback, place, packed)
change_log(session)
return {'done'}
""",
)
