-- Empties the outbox of acknowledged claims, each only if it still holds that very token, and writes what is known of them into the
-- journal: token;first;sequence;redelivered;answers (src/life/journal.rs).
-- KEYS: 1 outbox HASH, 2 journal HASH, of a route that has one
-- ARGV: the ids, then their tokens; with a journal then the sequences of their events, separated by blanks, '-' for none (in one
-- word: one each cost Redis more)
-- Many ids go into one command, as in claim.lua.
local part = 28
local count = math.floor(#ARGV / 2)
local sequences = {}
if KEYS[2] then
  for sequence in string.gmatch(ARGV[#ARGV], '[^ ]+') do
    sequences[#sequences + 1] = sequence
  end
end
local settled = 0
for from = 1, count, part do
  local to = math.min(from + part - 1, count)
  local answers = redis.call('HMGET', KEYS[1], unpack(ARGV, from, to))
  local known = KEYS[2] and redis.call('HMGET', KEYS[2], unpack(ARGV, from, to))
  local done, entries = {}, {}
  for place, token in ipairs(answers) do
    local at = from + place - 1
    if token == ARGV[count + at] then
      done[#done + 1] = ARGV[at]
      local sequence = sequences[at]
      if sequence then
        if sequence == '-' then
          sequence = ''
        end
        -- Of a claim of an id that was pending, or one that a consumer has answered already, there is an entry.
        local entry, first, rest = known[place], nil, nil
        if entry and string.sub(entry, 1, #token + 1) == token .. ';' then
          first, rest = string.match(entry, '^([^;]*);[^;]*(;.*)$', #token + 2)
        end
        entries[#entries + 1] = ARGV[at]
        entries[#entries + 1] = first and token .. ';' .. first .. ';' .. sequence .. rest or token .. ';;' .. sequence .. ';;'
      end
    end
  end
  if #done > 0 then
    settled = settled + redis.call('HDEL', KEYS[1], unpack(done))
  end
  if #entries > 0 then
    redis.call('HSET', KEYS[2], unpack(entries))
  end
end
return settled
