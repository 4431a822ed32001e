-- Drops dead letters by their names.
-- KEYS: 1 stream, 2 counter of its bytes, 3 notes of replays
-- ARGV: names
local dropped = 0
for _, name in ipairs(ARGV) do
  local letter = redis.call('XRANGE', KEYS[1], name, name)[1]
  if letter then
    redis.call('XDEL', KEYS[1], name)
    redis.call('HDEL', KEYS[3], name)
    redis.call('INCRBY', KEYS[2], -#letter[2][8])
    dropped = dropped + 1
  end
end
return dropped
