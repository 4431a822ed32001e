-- Whether everything that keeps events from being lost may be done on the keys of a route. Changes nothing that
-- lasts. KEYS: 1 pending SET, 2 outbox HASH, 3 lease, 4 a key for this alone
-- No id is empty, so that nothing is ever under that name.
local calls = {
  { 'SMISMEMBER', KEYS[1], '' },
  { 'HMGET', KEYS[2], '' },
  { 'HLEN', KEYS[2] },
  { 'HSCAN', KEYS[2], '0', 'COUNT', '1' },
  { 'HDEL', KEYS[2], '' },
  { 'GET', KEYS[3] },
  { 'DEL', KEYS[4] },
  { 'HSET', KEYS[4], 'a', 'b' },
  { 'DEL', KEYS[4] },
  { 'SADD', KEYS[4], 'a' },
  { 'SET', KEYS[4], '', 'PX', '1' },
}
for _, call in ipairs(calls) do
  local answer = redis.pcall(unpack(call))
  if type(answer) == 'table' and answer.err then
    -- In the words of Redis 7.0 and of later ones.
    local denied = { 'user executing the script', 'ACL failure', 'NOPERM' }
    for _, words in ipairs(denied) do
      if string.find(answer.err, words, 1, true) then
        return redis.error_reply('NOPERM this user may not run ' .. call[1] .. ' on ' .. call[2])
      end
    end
    return answer
  end
end
return 'OK'
