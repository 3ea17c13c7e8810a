#!lua
-- Says an order about a user to interested nodes, and notes it behind what is parked for the user.
-- KEYS: 1 interest set, 2 list of what is parked. ARGV: 1 what the bucket's names begin with, 2 see publish.lua (9), 3 the message,
-- 4 the order as it is noted, 5 orders that are noted at most.
-- Returns to how many nodes it was said; nothing: too many are noted, and nobody was told.
local call, set, head, above, message = redis.call, KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local noted, parked = 0, call('LRANGE', KEYS[2], 0, -1)
for _, entry in ipairs(parked) do
    if string.sub(entry, 1, 1) == 'o' then
        noted = noted + 1
    end
end
if noted >= tonumber(ARGV[5]) then
    return false
end
if #parked > 0 then
    call('RPUSH', KEYS[2], 'o\n' .. ARGV[4])
end
-- include spread.lua
return said
