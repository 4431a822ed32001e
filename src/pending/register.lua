-- Gives the address of a route its number among those that ever claimed under its pending key.
-- KEYS: 1 addresses HASH (number -> address), 2 outbox HASH
-- ARGV: 1 the address that `hookgate:routes` says, or empty; 2 the address of the route; 3 any number, another one each time
-- Answers the number, the address of number 0, and the one that number 0 stood for before if that was another.
--
-- A token carries the number (event.rs). Those of 0.1.0 have number 0, so it is the address that 0.1.0 recorded last.
local numbers = { '0', '1', '2', '3', '4', '5', '6', '7', '8', '9' }
local known = redis.call('HMGET', KEYS[1], unpack(numbers))
local first = ARGV[1]
if first == '' then
  first = known[1] or ARGV[2]
end
local replaced = known[1] and known[1] ~= first and known[1] or nil
if known[1] ~= first then
  redis.call('HSET', KEYS[1], '0', first)
  known[1] = first
end
local free
for place = 1, 10 do
  if known[place] == ARGV[2] then
    return { place - 1, first, replaced }
  end
  if not known[place] and not free then
    free = place
  end
end
if not free then
  -- One that no entry of the outbox needs. Who claimed under it finds another address there, and registers again.
  if redis.call('HLEN', KEYS[2]) > 100000 then
    return redis.error_reply('ADDRESSES the outbox is too large to find an address that it needs no more')
  end
  local used = { [1] = true }
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', KEYS[2], cursor, 'COUNT', '1000')
    cursor = page[1]
    for at = 2, #page[2], 2 do
      local digit = string.match(page[2][at], '%-(%d)%d%d%d%d%d%d%d%d$')
      if digit then
        used[tonumber(digit) + 1] = true
      end
    end
  until cursor == '0'
  -- Not always the first: two addresses that claim in turns would take it from each other for good.
  for turn = 0, 8 do
    local place = 2 + (tonumber(ARGV[3]) + turn) % 9
    if not used[place] then
      free = place
      break
    end
  end
  if not free then
    return redis.error_reply('ADDRESSES entries of the outbox go to ten addresses already')
  end
end
redis.call('HSET', KEYS[1], numbers[free], ARGV[2])
return { free - 1, first, replaced }
