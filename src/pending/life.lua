-- What release.lua, answer.lua and reclaim.lua begin with. (They are appended to this text.)
-- KEYS: 1 pending SET, 2 outbox HASH, 3 addresses HASH, 4 journal HASH (id -> token;first;sequence;redelivered;answers), 5
-- marks HASH (id -> ms), 6 the journal again, if the route keeps one: else what is there is an older claim's, and says nothing
-- ARGV: 1 number of the route's address, 2 that address, then what each script says.
-- Everything is read first, decided then, and written last: deletions before all else, since a full Redis takes those.
local part = 28
local address = redis.call('HMGET', KEYS[3], ARGV[1])[1]
if not address then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
elseif address ~= ARGV[2] then
  return redis.error_reply('ADDRESSES the number of this address belongs to another one now')
end

-- What is known of ids: pending, out (token in the outbox), token (of the present claim: the one in the outbox, else that of the
-- journal entry), entry (of the present claim, if there is one), raw (the entry as it is, which may be an older claim's), mark.
local known = {}
local function look(ids)
  for from = 1, #ids, part do
    local to = math.min(from + part - 1, #ids)
    local pending = redis.call('SMISMEMBER', KEYS[1], unpack(ids, from, to))
    local out = redis.call('HMGET', KEYS[2], unpack(ids, from, to))
    local entries = redis.call('HMGET', KEYS[4], unpack(ids, from, to))
    local marks = redis.call('HMGET', KEYS[5], unpack(ids, from, to))
    for place = 1, to - from + 1 do
      local raw, in_flight = entries[place] or nil, out[place] or nil
      local token = KEYS[6] and raw and string.match(raw, '^([^;]*);') or nil
      -- While it is in flight nobody has written an entry, but for a claim of a pending id, and for early answers.
      local entry = KEYS[6] and (not in_flight or in_flight == token) and raw or nil
      known[ids[from + place - 1]] = {
        pending = pending[place] == 1,
        out = in_flight,
        token = in_flight or token,
        entry = entry,
        raw = raw,
        mark = marks[place] or nil,
      }
    end
  end
end

local function own_address(token)
  return (string.match(token, '%-(%d)%d%d%d%d%d%d%d%d$') or '0') == ARGV[1]
end

local freed, forgotten, settled, unmarked, entries, journal, members = {}, {}, {}, {}, {}, {}, {}

-- The id is free.
local function free(id, now, token)
  freed[#freed + 1] = id
  if now.raw then
    forgotten[#forgotten + 1] = id
  end
  if token and now.out == token then
    settled[#settled + 1] = id
    now.out = nil
  end
  now.pending, now.entry, now.raw, now.token = false, nil, nil, nil
end

-- The id is claimed under a new token, which replaces what is known of it; `rest` is the entry behind the token.
local function claim(id, now, token, rest)
  entries[#entries + 1] = id
  entries[#entries + 1] = token
  if KEYS[6] then
    journal[#journal + 1] = id
    journal[#journal + 1] = token .. rest
  end
  if not now.pending then
    members[#members + 1] = id
  end
  now.pending, now.out, now.entry, now.raw, now.token = true, token, token .. rest, token .. rest, token
end

local function unmark(id, now)
  unmarked[#unmarked + 1] = id
  now.mark = nil
end

local function some(call, key, list)
  for from = 1, #list, part do
    redis.call(call, key, unpack(list, from, math.min(from + part - 1, #list)))
  end
end

local function write()
  some('SREM', KEYS[1], freed)
  some('HDEL', KEYS[4], forgotten)
  some('HDEL', KEYS[2], settled)
  some('HSET', KEYS[2], entries)
  some('HSET', KEYS[4], journal)
  some('SADD', KEYS[1], members)
  some('HDEL', KEYS[5], unmarked)
end
