-- Adds dead letters and drops the oldest beyond the limits of number, bytes and age.
-- KEYS: 1 stream, 2 counter of its bytes, 3 notes of replays
-- ARGV: 1 most entries, 2 most bytes, 3 oldest time (ms), then for each letter: route, reason, time, raw
if redis.call('XLEN', KEYS[1]) == 0 then
  -- Somebody deleted the stream by hand: what the counter says would cost the next letters their place.
  redis.call('DEL', KEYS[2], KEYS[3])
end
local at = 4
while at <= #ARGV do
  redis.call('XADD', KEYS[1], '*', 'route', ARGV[at], 'reason', ARGV[at + 1], 'time', ARGV[at + 2], 'raw', ARGV[at + 3])
  redis.call('INCRBY', KEYS[2], #ARGV[at + 3])
  at = at + 4
end
local entries = redis.call('XLEN', KEYS[1])
local bytes = tonumber(redis.call('GET', KEYS[2]) or '0')
local dropped = 0
-- At most a few thousand at a time: a lowered limit is reached in steps that hold nobody up.
while entries > 0 and dropped < 5000 do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local time = tonumber(string.match(oldest[1], '^%d+'))
  if entries <= tonumber(ARGV[1]) and bytes <= tonumber(ARGV[2]) and time >= tonumber(ARGV[3]) then
    break
  end
  redis.call('XDEL', KEYS[1], oldest[1])
  redis.call('HDEL', KEYS[3], oldest[1])
  entries = entries - 1
  bytes = bytes - #oldest[2][8]
  dropped = dropped + 1
end
if entries == 0 then
  redis.call('DEL', KEYS[2])
elseif dropped > 0 then
  redis.call('SET', KEYS[2], bytes)
end
return dropped
