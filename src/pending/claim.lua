-- Claims ids: each is new for one caller only, among all replicas.
-- KEYS: 1 pending SET, 2 outbox HASH (id -> token of the claim), 3 addresses HASH (register.lua), then of a route with a
-- journal: 4 journal HASH (id -> token;first;sequence;redelivered;answers: src/life/journal.rs), 5 marks HASH (id -> ms)
-- ARGV: 1 most entries of the outbox, 2 '1' to write in-flight entries again (so that a WAIT behind this
-- call speaks of them too), 3 number of the route's address, 4 that address, 5 now (ms), 6 consumers that all have to answer
-- before an id is kept, separated by commas; empty if none is ever kept, 7 number of requests, then for each of these: token seed,
-- first index, number of ids, what it does to pending ids (s nothing, p claims them again, c marks them); then the ids of all.
-- Answers a letter for each id, all in one word: n new, claimed under 'seed-index'; d done; f outbox full; m marked; i in
-- flight; then the tokens of those in flight. (A value for each id cost both sides more than the claim of it.)
--
-- The membership test comes first, so that an old token can't swallow a new claim after a release. The
-- outbox is written before the SET: scripts don't roll back, and a claim without a token is the one state
-- that loses an event.
--
-- Many ids go into one command. Redis keeps memory at hand for commands of up to 32 words: longer ones gain little. Even,
-- for an id and its token stay together.
local part = 28
local function some(list, from)
  return unpack(list, from, math.min(from + part - 1, #list))
end

-- The publisher of a claim has to know its address. It is missing if Redis forgot it, and another one if its number was
-- used again.
local address = redis.call('HMGET', KEYS[3], ARGV[3])[1]
if not address then
  redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
elseif address ~= ARGV[4] then
  return redis.error_reply('ADDRESSES the number of this address belongs to another one now')
end

local ids = 8 + 4 * tonumber(ARGV[7])
local room = tonumber(ARGV[1]) - redis.call('HLEN', KEYS[2])
local touch = ARGV[2] == '1'

local pending = {}
for from = ids, #ARGV, part do
  local answers = redis.call('SMISMEMBER', KEYS[1], some(ARGV, from))
  for place, answer in ipairs(answers) do
    if answer == 1 then
      pending[#pending + 1] = ARGV[from + place - 1]
    end
  end
end
-- What is known of an id: its token, false if it is done, nothing if it is not pending. What is claimed below comes to
-- it, so that an id that is in the call twice is in flight the second time.
local tokens = {}
for from = 1, #pending, part do
  local answers = redis.call('HMGET', KEYS[2], some(pending, from))
  for place, answer in ipairs(answers) do
    tokens[pending[from + place - 1]] = answer
  end
end

-- What is no token of ours (event.rs: a version 7 UUID before the year 10000, and a place) can't be published under.
local form
local function is_token(text)
  form = form or '^' .. string.rep('[0-9a-f]', 12) .. '7' .. string.rep('[0-9a-f]', 19) .. '%-(%d+)$'
  local index = string.match(text, form)
  return index and #index < 10 and (index == '0' or string.sub(index, 1, 1) ~= '0')
    and string.sub(text, 1, 12) < 'e677d21fdc00'
end

-- The entry of a new claim is written with its settlement (settle.lua): until then the outbox says all that it would. What an
-- earlier claim left is dropped.
local states, answers, entries, journal, members, marks = {}, { '' }, {}, {}, {}, {}
local function enter(id, token)
  entries[#entries + 1] = id
  entries[#entries + 1] = token
end

-- An id that is claimed again stays as old as it is.
local function first_claim(id, token)
  local entry = redis.call('HMGET', KEYS[4], id)[1]
  local old, first = string.match(entry or '', '^([^;]*);(%d*);')
  if first and first ~= '' and #first <= 15 then
    return first
  end
  local began = string.match(old or token or '', '^%x%x%x%x%x%x%x%x%x%x%x%x')
  return began and string.format('%d', tonumber(began, 16)) or ''
end

-- Whether all consumers answered, and one of them gave up: such an id waits for a claim of its own.
local function is_kept(id)
  if ARGV[6] == '' then
    return false
  end
  local given = string.match(redis.call('HMGET', KEYS[4], id)[1] or '', '^[^;]*;[^;]*;[^;]*;[^;]*;(.+)$')
  if not given then
    return false
  end
  given = ',' .. given .. ','
  for consumer in string.gmatch(ARGV[6], '[^,]+') do
    if not string.find(given, ',' .. consumer .. ':', 1, true) then
      return false
    end
  end
  return string.find(given, ':g,', 1, true) ~= nil
end

local at = ids
for request = 8, ids - 1, 4 do
  local seed, first, count, mode = ARGV[request], tonumber(ARGV[request + 1]), tonumber(ARGV[request + 2]), ARGV[request + 3]
  for index = first, first + count - 1 do
    local id = ARGV[at]
    at = at + 1
    local token = tokens[id]
    local in_flight = token and is_token(token)
    local state
    if in_flight or token == false then
      if mode == 's' or (mode == 'c' and in_flight and string.sub(token, 1, 32) == seed)
        -- What was claimed for another subject is published there before a claim takes its place.
        or (mode == 'p' and in_flight and (string.match(token, '%-(%d)%d%d%d%d%d%d%d%d$') or '0') ~= ARGV[3]) then
        state = in_flight and 'i' or 'd'
      elseif mode == 'c' and (in_flight or not is_kept(id)) then
        state = 'm'
      end
    end
    if state == 'i' then
      answers[#answers + 1] = token
      if touch then
        enter(id, token)
      end
    elseif state == 'm' then
      marks[#marks + 1] = id
    elseif not state then
      if not token and room <= 0 then
        state = 'f'
      else
        state = 'n'
        if not token then
          room = room - 1
        end
        if token == nil then
          members[#members + 1] = id
        end
        -- A token that is none of ours is replaced: the claim is taken over.
        local claim = seed .. '-' .. index
        enter(id, claim)
        if KEYS[4] and token ~= nil then
          journal[#journal + 1] = id
          journal[#journal + 1] = claim .. ';' .. first_claim(id, in_flight and token) .. ';;;'
        end
        tokens[id] = claim
      end
    end
    states[#states + 1] = state
  end
end

-- In this order, see above.
for from = 1, #entries, part do
  redis.call('HSET', KEYS[2], some(entries, from))
end
if KEYS[4] then
  for from = 1, #members, part do
    redis.call('HDEL', KEYS[4], some(members, from))
  end
end
for from = 1, #journal, part do
  redis.call('HSET', KEYS[4], some(journal, from))
end
for from = 1, #members, part do
  redis.call('SADD', KEYS[1], some(members, from))
end
-- Written also where it is marked already, so that a WAIT behind this call speaks of it.
for _, id in ipairs(marks) do
  redis.call('HSET', KEYS[5], id, redis.call('HMGET', KEYS[5], id)[1] or ARGV[5])
end
answers[1] = table.concat(states)
return answers
