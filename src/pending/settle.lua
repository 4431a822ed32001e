-- Empties the outbox of acknowledged claims, each only if it still holds that very token.
-- KEYS: 1 outbox HASH    ARGV: the ids, then their tokens
-- Many ids go into one command, as in claim.lua.
local part = 28
local count = #ARGV / 2
local settled = 0
for from = 1, count, part do
  local answers = redis.call('HMGET', KEYS[1], unpack(ARGV, from, math.min(from + part - 1, count)))
  local done = {}
  for place, token in ipairs(answers) do
    if token == ARGV[count + from + place - 1] then
      done[#done + 1] = ARGV[from + place - 1]
    end
  end
  if #done > 0 then
    settled = settled + redis.call('HDEL', KEYS[1], unpack(done))
  end
end
return settled
