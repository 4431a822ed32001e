-- Drops bodies from quarantine by their names.
-- KEYS: 1 stream, 2 bodies, 3 hash of a request -> its entry, 4 share -> "entries bytes"
-- ARGV: names
local dropped = 0
for _, name in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], name, name)[1]
  if entry then
    local fields = entry[2]
    redis.call('XDEL', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
    redis.call('HDEL', KEYS[3], fields[2])
    local known = redis.call('HMGET', KEYS[4], fields[4])[1]
    if known then
      local entries, bytes = string.match(known, '^(%d+) (%d+)$')
      if tonumber(entries) > 1 then
        local left = math.max(tonumber(bytes) - tonumber(fields[12]), 0)
        redis.call('HSET', KEYS[4], fields[4], string.format('%d %d', tonumber(entries) - 1, left))
      else
        redis.call('HDEL', KEYS[4], fields[4])
      end
    end
    dropped = dropped + 1
  end
end
return dropped
