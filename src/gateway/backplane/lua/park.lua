#!lua
-- Keeps something of a user until a node takes it.
-- KEYS: 1 list of the user. ARGV: 1 the body, 2 how long the list is kept from now on, in ms, 3 entries at most.
-- Returns how many older ones had to go.
local over = redis.call('RPUSH', KEYS[1], ARGV[1]) - tonumber(ARGV[3])
if over > 0 then
    redis.call('LTRIM', KEYS[1], over, -1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return math.max(0, over)
