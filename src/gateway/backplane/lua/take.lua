-- Gives out the oldest thing that is parked for a user, with the orders that came behind it; registers this node for the user.
-- KEYS: 1 list of the user, 2 interest set of the user. ARGV: 1 this node's generation, 2 how long the set is kept, in ms.
-- Returns entries as park.lua writes them; none: nothing is parked.
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local taken, last, more = {}, 0, false
for i, entry in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    local is_state = string.sub(entry, 1, 1) ~= 'o'
    if is_state and last > 0 then
        more = true
    elseif is_state then
        taken[1], last = entry, i
    elseif last > 0 then
        taken[#taken + 1] = entry
    end
end
if more then
    redis.call('LTRIM', KEYS[1], last, -1)
else
    redis.call('DEL', KEYS[1])
end
return taken
