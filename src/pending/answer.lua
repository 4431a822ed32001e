-- Takes answers of consumers into account, and releases ids that all of them have answered.
-- ARGV: 3 consumers in force, separated by commas, 4 '1' if an id that one of them gave up is kept, then for each answer: id,
-- token of the event, consumer, a (acknowledged) or g (gave up), and the token of its next claim if it is marked.
-- Answers a letter for each: r released, c claimed once more, w others have to answer, k kept, x not about the present claim.
local ids, letters = {}, {}
for at = 5, #ARGV, 5 do
  ids[#ids + 1] = ARGV[at]
end
look(ids)

local consumers = {}
for consumer in string.gmatch(ARGV[3], '[^,]+') do
  consumers[#consumers + 1] = consumer
end

local changed = {}
for place, id in ipairs(ids) do
  local at = 5 * place
  local token, consumer, kind, now = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], known[id]
  if not now.pending or now.token ~= token then
    letters[place] = 'x'
  else
    if not now.head then
      local head, answers = string.match(now.entry or '', '^([^;]*;[^;]*;[^;]*;[^;]*;)(.*)$')
      now.head, now.order, now.answers = head or token .. ';;;;', {}, {}
      for name, answer in string.gmatch(answers or '', '([^,:]+):(%a)') do
        now.order[#now.order + 1] = name
        now.answers[name] = answer
      end
    end
    if not now.answers[consumer] then
      now.order[#now.order + 1] = consumer
    end
    -- Who gave up can still acknowledge; an acknowledgement can't be taken back.
    if now.answers[consumer] ~= 'a' then
      now.answers[consumer] = kind
    end
    local all, gave_up = true, false
    for _, name in ipairs(consumers) do
      all = all and now.answers[name] ~= nil
      gave_up = gave_up or now.answers[name] == 'g'
    end
    local kept = gave_up and ARGV[4] == '1'
    if all and now.mark then
      claim(id, now, ARGV[at + 4], ';;;;')
      unmark(id, now)
      changed[id], now.head = nil, nil
      letters[place] = 'c'
    elseif all and not kept then
      -- It names its token, so its event is in the stream.
      free(id, now, token)
      changed[id], now.head = nil, nil
      letters[place] = 'r'
    else
      changed[id] = now
      letters[place] = all and 'k' or 'w'
    end
  end
end
for id, now in pairs(changed) do
  local given = {}
  for _, name in ipairs(now.order) do
    given[#given + 1] = name .. ':' .. now.answers[name]
  end
  journal[#journal + 1] = id
  journal[#journal + 1] = now.head .. table.concat(given, ',')
end
write()
return table.concat(letters)
