-- Whether everything that keeps events from being lost may be done on the keys of a route. Changes nothing that
-- lasts. KEYS: 1 pending SET, 2 outbox HASH, 3 lease, 4 a key for this alone
-- Answers '', or why Redis takes no writes now: for lack of memory, of replicas, or of a snapshot. That passes, and
-- a missing permission is reported before it.
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
local function says(answer, words)
  for _, word in ipairs(words) do
    if string.find(answer.err, word, 1, true) then
      return true
    end
  end
end
-- In the words of Redis 7.0 and of later ones.
local denied = { 'user executing the script', 'ACL failure', 'NOPERM' }
-- Beside READONLY, which another connection may not meet.
local passing = { 'OOM command not allowed', 'MISCONF ', 'NOREPLICAS ' }

-- The first DEL would do away with the limit of memory: Redis refuses for it only what a script writes first.
local oom = redis.pcall('SET', KEYS[4], '', 'PX', '1')
local refusal
if type(oom) == 'table' and oom.err and says(oom, passing) then
  refusal = oom.err
end
for _, call in ipairs(calls) do
  local answer = redis.pcall(unpack(call))
  if type(answer) == 'table' and answer.err then
    if says(answer, denied) then
      return redis.error_reply('NOPERM this user may not run ' .. call[1] .. ' on ' .. call[2])
    elseif not says(answer, passing) then
      return answer
    end
    refusal = refusal or answer.err
  end
end
return refusal or ''
