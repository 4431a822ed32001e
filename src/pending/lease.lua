-- Takes or renews a lease: 1 if the holder has it now.
-- KEYS: 1 lease    ARGV: 1 holder, 2 milliseconds
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
-- A full Redis refuses what a script writes first, and takes what it writes after a delete.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
