#!lua
-- Common beginning of scripts that know a channel's position.
-- KEYS: 1 the channel's hash, 2 its stream. ARGV: 1 the server's replication id, 2 '0' on the first call; on the second
-- '1': the id is that of another history, '2': the keys came from a living primary that has the id they name,
-- 3 an epoch that was never used, 4 how long the hash lives, in ms.

-- Epoch and top (texts), from what HMGET e s r gave. Nothing: the hash was written under another replication id, and
-- this is the first call: the caller, who gets { 'stale', that id }, reads the server's id again and calls again, and only
-- then a new epoch may begin.
local function position(m)
    if m[1] and m[3] == ARGV[1] then
        return m[1], m[2]
    end
    if m[1] then
        if ARGV[2] == '0' then
            return nil
        end
        if ARGV[2] == '2' then
            redis.call('HSET', KEYS[1], 'r', ARGV[1])
            return m[1], m[2]
        end
        -- The nodes' last batches stay, with the epoch they had: one that is sent again has happened all the same.
        local fields = redis.call('HGETALL', KEYS[1])
        for i = 1, #fields, 2 do
            if string.sub(fields[i], 1, 1) == 'p' and not string.find(fields[i + 1], '^%x+:%d+:') then
                redis.call('HSET', KEYS[1], fields[i], fields[i + 1] .. ':' .. m[1])
            end
        end
        redis.call('HDEL', KEYS[1], 'h')
    end
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 'e', ARGV[3], 's', '0', 'r', ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return ARGV[3], '0'
end
