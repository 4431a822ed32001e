-- Keeps a body whose signature was wrong, if its share has room. Drops those that are too old.
-- KEYS: 1 stream, 2 bodies, 3 hash of a request -> its entry, 4 share -> "entries bytes"
-- ARGV: 1 hash, 2 share, 3 most entries and 4 most bytes of a share, 5 oldest time (ms), 6 route, 7 time, 8 headers, 9 bytes,
-- 10 body; without it the answer is only whether it would be kept
-- Answers k kept (or would be), a known already, f the share is full.
local function count(share, entries, bytes)
  local have_entries, have_bytes = 0, 0
  local known = redis.call('HMGET', KEYS[4], share)[1]
  if known then
    have_entries, have_bytes = string.match(known, '^(%d+) (%d+)$')
  end
  have_entries, have_bytes = tonumber(have_entries) + entries, tonumber(have_bytes) + bytes
  if entries ~= 0 then
    if have_entries > 0 then
      redis.call('HSET', KEYS[4], share, string.format('%d %d', have_entries, math.max(have_bytes, 0)))
    else
      redis.call('HDEL', KEYS[4], share)
    end
  end
  return have_entries, have_bytes
end
if redis.call('XLEN', KEYS[1]) == 0 then
  -- Somebody deleted the stream by hand.
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
end
for _ = 1, 100 do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not oldest or tonumber(string.match(oldest[1], '^%d+')) >= tonumber(ARGV[5]) then
    break
  end
  local fields = oldest[2]
  redis.call('XDEL', KEYS[1], oldest[1])
  redis.call('HDEL', KEYS[2], oldest[1])
  redis.call('HDEL', KEYS[3], fields[2])
  count(fields[4], -1, -tonumber(fields[12]))
end
if redis.call('HMGET', KEYS[3], ARGV[1])[1] then
  return 'a'
end
local entries, bytes = count(ARGV[2], 0, 0)
if entries + 1 > tonumber(ARGV[3]) or bytes + tonumber(ARGV[9]) > tonumber(ARGV[4]) then
  return 'f'
end
if ARGV[10] then
  local entry = redis.call('XADD', KEYS[1], '*', 'hash', ARGV[1], 'share', ARGV[2], 'route', ARGV[6], 'time', ARGV[7],
    'headers', ARGV[8], 'bytes', ARGV[9])
  redis.call('HSET', KEYS[2], entry, ARGV[10])
  redis.call('HSET', KEYS[3], ARGV[1], entry)
  count(ARGV[2], 1, tonumber(ARGV[9]))
end
return 'k'
