-- Claims ids: each is new for one caller only, among all replicas.
-- KEYS: 1 pending SET, 2 outbox HASH (id -> token of the claim)
-- ARGV: 1 most entries of the outbox, 2 '1' to write in-flight entries again (so that a WAIT behind this
-- call speaks of them too), then for each request: token seed, first index, number of ids, ids
-- Answers for each id: 1 new, claimed under 'seed-index'; 0 done; -1 outbox full; a token: in flight.
--
-- The membership test comes first, so that an old token can't swallow a new claim after a release. The
-- outbox is written before the SET: scripts don't roll back, and a claim without a token is the one state
-- that loses an event.
local room = tonumber(ARGV[1]) - redis.call('HLEN', KEYS[2])
local answers = {}
local touch = ARGV[2] == '1'
local at = 3
while at <= #ARGV do
  local seed, first, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  for index = first, first + count - 1 do
    local id = ARGV[at]
    at = at + 1
    local answer
    if redis.call('SISMEMBER', KEYS[1], id) == 1 then
      answer = redis.call('HGET', KEYS[2], id) or 0
      if answer ~= 0 and not string.match(answer, '^%x+%-%d+$') then
        -- Nobody can publish under what is no token: take the claim over.
        redis.call('HSET', KEYS[2], id, seed .. '-' .. index)
        answer = 1
      elseif answer ~= 0 and touch then
        redis.call('HSET', KEYS[2], id, answer)
      end
    elseif room <= 0 then
      answer = -1
    else
      redis.call('HSET', KEYS[2], id, seed .. '-' .. index)
      redis.call('SADD', KEYS[1], id)
      room = room - 1
      answer = 1
    end
    answers[#answers + 1] = answer
  end
end
return answers
