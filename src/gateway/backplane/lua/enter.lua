-- Lets one more connection of a user in, if all living nodes together have room for it.
-- KEYS: 1 hash of the user: connections by the generation of their node. ARGV: 1 this node's generation, 2 its connections with
-- the new one, 3 connections at most, 4 living nodes between spaces, 5 the newest generation when those were read: an older one
-- that is not among them is dead, a newer one lives; 6 how long the hash is kept, in ms, 7 inbox prefix.
-- Returns 1 yes; 0 no; 2 no, but without nodes that have no inbox any more, and whose lease still holds, there would be room.
local all, mine, max = redis.call('HGETALL', KEYS[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local others, nodes = 0, {}
for i = 1, #all, 2 do
    if all[i] ~= ARGV[1] then
        if tonumber(all[i]) <= tonumber(ARGV[5]) and not string.find(ARGV[4], ' ' .. all[i] .. ' ', 1, true) then
            redis.call('HDEL', KEYS[1], all[i])
        else
            others = others + tonumber(all[i + 1])
            nodes[#nodes + 1] = i
        end
    end
end
if others + mine <= max then
    redis.call('HSET', KEYS[1], ARGV[1], mine)
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    return 1
end
for _, i in ipairs(nodes) do
    if redis.call('PUBSUB', 'SHARDNUMSUB', ARGV[7] .. all[i])[2] == 0 then
        others = others - tonumber(all[i + 1])
    end
end
return others + mine <= max and 2 or 0
