-- Empties the outbox of acknowledged claims, each only if it still holds that very token, and writes the sequences of their
-- events into the journal.
-- KEYS: 1 outbox HASH, 2 journal HASH, of a route that has one    ARGV: the ids, then their tokens, then their sequences
-- Many ids go into one command, as in claim.lua.
local part = 28
local count = #ARGV / 3
local settled = 0
for from = 1, count, part do
  local to = math.min(from + part - 1, count)
  local answers = redis.call('HMGET', KEYS[1], unpack(ARGV, from, to))
  local entries = KEYS[2] and redis.call('HMGET', KEYS[2], unpack(ARGV, from, to)) or {}
  local done, journal = {}, {}
  for place, token in ipairs(answers) do
    local at = from + place - 1
    if token == ARGV[count + at] then
      done[#done + 1] = ARGV[at]
      local entry = entries[place]
      local sequence = ARGV[2 * count + at]
      if entry and sequence ~= '' and string.sub(entry, 1, #token + 1) == token .. ';' then
        local first, rest = string.match(entry, '^([^;]*);[^;]*(;.*)$', #token + 2)
        if first then
          journal[#journal + 1] = ARGV[at]
          journal[#journal + 1] = token .. ';' .. first .. ';' .. sequence .. rest
        end
      end
    end
  end
  if #done > 0 then
    settled = settled + redis.call('HDEL', KEYS[1], unpack(done))
  end
  if #journal > 0 then
    redis.call('HSET', KEYS[2], unpack(journal))
  end
end
return settled
