-- Keeps letters about events that consumers gave up, each once; the oldest go when there are too many, or they are too old.
-- KEYS: 1 stream, 2 counter of its bytes, 3 HASH of events that have a letter (stream/sequence/consumer -> name of the letter), 4
-- notes of replays
-- ARGV: 1 most entries, 2 oldest time (ms), then for each letter: event, route, reason, time, raw
-- Answers a digit for each: 1 new, 0 known.
local digits = {}
for at = 3, #ARGV, 5 do
  if redis.call('HMGET', KEYS[3], ARGV[at])[1] then
    digits[#digits + 1] = '0'
  else
    local name = redis.call('XADD', KEYS[1], '*', 'route', ARGV[at + 1], 'reason', ARGV[at + 2], 'time', ARGV[at + 3], 'raw',
      ARGV[at + 4], 'event', ARGV[at])
    redis.call('INCRBY', KEYS[2], #ARGV[at + 4])
    redis.call('HSET', KEYS[3], ARGV[at], name)
    digits[#digits + 1] = '1'
  end
end
local entries = redis.call('XLEN', KEYS[1])
local dropped = 0
while entries > 0 and dropped < 1000 do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if entries <= tonumber(ARGV[1]) and tonumber(string.match(oldest[1], '^%d+')) >= tonumber(ARGV[2]) then
    break
  end
  redis.call('XDEL', KEYS[1], oldest[1])
  redis.call('HDEL', KEYS[3], oldest[2][10] or '')
  redis.call('HDEL', KEYS[4], oldest[1])
  redis.call('INCRBY', KEYS[2], -#oldest[2][8])
  entries = entries - 1
  dropped = dropped + 1
end
return table.concat(digits)
