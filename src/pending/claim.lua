-- Claims ids: each is new for one caller only, among all replicas.
-- KEYS: 1 pending SET, 2 outbox HASH (id -> token of the claim)
-- ARGV: 1 most entries of the outbox, 2 '1' to write in-flight entries again (so that a WAIT behind this
-- call speaks of them too), then for each request: token seed, first index, number of ids, ids
-- Answers a letter for each id, all in one word: n new, claimed under 'seed-index'; d done; f outbox full; i in flight;
-- then the tokens of those in flight. (A value for each id cost both sides more than the claim of it.)
--
-- The membership test comes first, so that an old token can't swallow a new claim after a release. The
-- outbox is written before the SET: scripts don't roll back, and a claim without a token is the one state
-- that loses an event.
-- What is no token of ours (event.rs: a version 7 UUID before the year 10000, and a place) can't be published under.
local form = '^' .. string.rep('[0-9a-f]', 12) .. '7' .. string.rep('[0-9a-f]', 19) .. '%-(%d+)$'
local function is_token(text)
  local index = string.match(text, form)
  return index and #index < 10 and (index == '0' or string.sub(index, 1, 1) ~= '0')
    and string.sub(text, 1, 12) < 'e677d21fdc00'
end
local room = tonumber(ARGV[1]) - redis.call('HLEN', KEYS[2])
local states, answers = {}, { '' }
local touch = ARGV[2] == '1'
local at = 3
while at <= #ARGV do
  local seed, first, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  for index = first, first + count - 1 do
    local id = ARGV[at]
    at = at + 1
    local state
    if redis.call('SISMEMBER', KEYS[1], id) == 1 then
      local token = redis.call('HGET', KEYS[2], id)
      if not token then
        state = 'd'
      elseif is_token(token) then
        if touch then
          redis.call('HSET', KEYS[2], id, token)
        end
        state = 'i'
        answers[#answers + 1] = token
      else
        -- Take the claim over.
        redis.call('HSET', KEYS[2], id, seed .. '-' .. index)
        state = 'n'
      end
    elseif room <= 0 then
      state = 'f'
    else
      redis.call('HSET', KEYS[2], id, seed .. '-' .. index)
      redis.call('SADD', KEYS[1], id)
      room = room - 1
      state = 'n'
    end
    states[#states + 1] = state
  end
end
answers[1] = table.concat(states)
return answers
