-- Notes what became of the replay of a dead letter, if it is still there.
-- KEYS: 1 stream, 2 notes of replays
-- ARGV: 1 name, 2 note
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
