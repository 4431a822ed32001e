-- Releases ids. ARGV: 3 and so on for each: id, token of the claim to be released, or empty for the present one, and the token of
-- its next claim if it is marked.
-- Answers a letter for each: r released, n not pending (under that token), c claimed once more, as a mark asked for.
local ids, letters = {}, {}
for at = 3, #ARGV, 3 do
  ids[#ids + 1] = ARGV[at]
end
look(ids)
for place, id in ipairs(ids) do
  local at = 3 * place
  local token, now = ARGV[at + 1], known[id]
  if not now.pending or (token ~= '' and token ~= now.token and token ~= now.out) then
    letters[place] = 'n'
  elseif now.mark and (not now.out or now.out == token or own_address(now.out)) then
    claim(id, now, ARGV[at + 2], ';;;;')
    unmark(id, now)
    letters[place] = 'c'
  else
    -- Without a token its event may still have to be published. A mark of an id whose event goes to another address is honoured
    -- once that event is settled.
    free(id, now, token ~= '' and token or nil)
    letters[place] = 'r'
  end
end
write()
return table.concat(letters)
