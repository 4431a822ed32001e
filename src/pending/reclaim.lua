-- Claims ids once more, each only if nothing has changed since somebody looked at it.
-- ARGV: 3 and so on for each: id, what for, what was seen, token of the next claim, how often it was redelivered then (or empty).
-- What for: e it is pending, its event is settled, and its journal entry is what was seen (or there is none); m it is marked, and
-- is free, or its event is settled and it was marked before what was seen (ms); d drop its journal entry, which is what was seen:
-- it is not pending.
-- Answers a letter for each: c claimed, d dropped, x it has changed.
local ids, letters = {}, {}
for at = 3, #ARGV, 5 do
  ids[#ids + 1] = ARGV[at]
end
look(ids)
for place, id in ipairs(ids) do
  local at = 5 * place - 2
  local what, seen, token, count, now = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], known[id]
  local letter = 'x'
  if what == 'e' then
    if now.pending and not now.out and (now.raw or '') == seen then
      -- It stays as old as it is, unless others wrote what says nothing.
      local first = ''
      if now.entry then
        first = string.match(now.entry, '^[^;]*;(%d+);')
        if not first or #first > 15 then
          local began = string.match(now.entry, '^%x%x%x%x%x%x%x%x%x%x%x%x')
          first = began and string.format('%d', tonumber(began, 16)) or ''
        end
      end
      claim(id, now, token, ';' .. first .. ';;' .. count .. ';')
      letter = 'c'
    end
  elseif what == 'm' then
    local free_or_old = not now.pending or (not now.out and now.mark and tonumber(now.mark) and tonumber(now.mark) <= tonumber(seen))
    if now.mark and free_or_old and (not now.out or own_address(now.out)) then
      claim(id, now, token, ';;;;')
      unmark(id, now)
      letter = 'c'
    end
  elseif not now.pending and not now.out and now.raw == seen then
    forgotten[#forgotten + 1] = id
    now.entry, now.raw, now.token = nil, nil, nil
    letter = 'd'
  end
  letters[place] = letter
end
write()
return table.concat(letters)
