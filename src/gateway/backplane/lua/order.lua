-- Says an order about a user to interested nodes, and notes it behind what is parked for the user.
-- KEYS: 1 interest set, 2 list of what is parked. ARGV: 1 inbox prefix, 2 bucket channel, 3 see publish.lua (12), 4 the message,
-- 5 the order as it is noted, 6 orders that are noted at most.
-- Returns to how many nodes it was said; nothing: too many are noted, and nobody was told.
local noted, parked = 0, redis.call('LRANGE', KEYS[2], 0, -1)
for _, entry in ipairs(parked) do
    if string.sub(entry, 1, 1) == 'o' then
        noted = noted + 1
    end
end
if noted >= tonumber(ARGV[6]) then
    return false
end
if #parked > 0 then
    redis.call('RPUSH', KEYS[2], 'o\n' .. ARGV[5])
end
return spread(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
