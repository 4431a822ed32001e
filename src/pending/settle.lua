-- Empties the outbox of acknowledged claims, each only if it still holds that very token.
-- KEYS: 1 outbox HASH    ARGV: id, token, id, token, ...
local settled = 0
for at = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
    settled = settled + redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
return settled
