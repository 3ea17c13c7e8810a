#!lua
-- Registers one start of a node: a lease on its name and on the smallest free place, and a generation.
-- KEYS: 1 lease on the name, 2 counter of generations, 3 living nodes, 4 prefix of places, 5 there while a node drains and
-- for some time behind it.
-- ARGV: 1 boot id, 2 lease in ms, 3 name, 4 places at most, 5 the place it had, 6 how long a place is kept for a node that
-- has gone silent, in ms: its last batches are known by it, so it should find it again.
-- Returns { place, generation, the newest generation, how long 5 is still there in ms or 0, { generations of living nodes } }, or
-- { ms until the other lease of this name ends }.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
    return { math.max(1, redis.call('PTTL', KEYS[1])) }
end
local me = ARGV[3] .. ' ' .. ARGV[1]
local function is_mine(place)
    local who = redis.call('GET', KEYS[4] .. place)
    -- Also that of an earlier start under this name, which is gone.
    return not who or string.match(who, '^%S+') == ARGV[3]
end
local place = tonumber(ARGV[5])
if not is_mine(place) then
    place = 0
    while not is_mine(place) do
        place = place + 1
        if place >= tonumber(ARGV[4]) then
            return redis.error_reply('RINGWAY no place is free')
        end
    end
end
-- Counted from the time, so that a server that has lost the counter gives no generation twice.
local now = redis.call('TIME')
local generation = math.max(redis.call('INCR', KEYS[2]), tonumber(now[1]) - 1700000000)
redis.call('SET', KEYS[2], generation)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[4] .. place, me, 'PX', ARGV[6])
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', KEYS[3], now_ms + tonumber(ARGV[2]), generation)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_ms)
local living = redis.call('ZRANGE', KEYS[3], 0, -1)
return { place, generation, generation, math.max(0, redis.call('PTTL', KEYS[5])), living }
