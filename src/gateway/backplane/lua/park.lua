#!lua
-- Keeps something of a user's connection until a node takes it.
-- An entry is a letter, the client id, a line feed and the body: 'a' alone, 's' not alone, 'o' an order that came behind it.
-- KEYS: 1 list of the user, 2 interest set of the user. ARGV: 1 client id, 2 the body (empty: take it away), 3 how long the list is
-- kept from now on, in ms, 4 connections at most, 5 '1': it is the only one of its user on this node, 6 '1': only in place of
-- what is parked of it, 7 this node's generation, 8 inbox prefix.
-- Returns how many older ones had to go.
local all, head = redis.call('LRANGE', KEYS[1], 0, -1), ARGV[1] .. '\n'
local states = {}
for i, entry in ipairs(all) do
    local letter = string.sub(entry, 1, 1)
    if letter ~= 'o' then
        if string.sub(entry, 2, 1 + #head) == head then
            if ARGV[2] == '' then
                redis.call('LREM', KEYS[1], 1, entry)
            else
                redis.call('LSET', KEYS[1], i - 1, letter .. head .. ARGV[2])
                redis.call('PEXPIRE', KEYS[1], ARGV[3])
            end
            return 0
        end
        states[#states + 1] = i
    end
end
if ARGV[6] == '1' or ARGV[2] == '' then
    return 0
end
local letter = 'a'
if #states > 0 or ARGV[5] ~= '1' then
    letter = 's'
else
    for _, node in ipairs(redis.call('SMEMBERS', KEYS[2])) do
        if node ~= ARGV[7] and redis.call('PUBSUB', 'SHARDNUMSUB', ARGV[8] .. node)[2] > 0 then
            letter = 's'
        end
    end
end
for _, i in ipairs(states) do
    redis.call('LSET', KEYS[1], i - 1, 's' .. string.sub(all[i], 2))
end
states[#states + 1] = redis.call('RPUSH', KEYS[1], letter .. head .. ARGV[2])
local over = math.max(0, #states - tonumber(ARGV[4]))
if over > 0 then
    redis.call('LTRIM', KEYS[1], states[over + 1] - 1, -1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return over
