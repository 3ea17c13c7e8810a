#!lua
-- Registers one start of a node: a lease on its name and on the smallest free place, and a generation.
-- KEYS: 1 lease on the name, 2 counter of generations, 3 living nodes, 4 prefix of places.
-- ARGV: 1 boot id, 2 lease in ms, 3 name, 4 places at most.
-- Returns { place, generation, living nodes }, or { ms until the other lease of this name ends }.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
    return { math.max(1, redis.call('PTTL', KEYS[1])) }
end
local me, place = ARGV[3] .. ' ' .. ARGV[1], 0
while true do
    local who = redis.call('GET', KEYS[4] .. place)
    if not who or who == me then
        break
    end
    place = place + 1
    if place >= tonumber(ARGV[4]) then
        return redis.error_reply('RINGWAY no place is free')
    end
end
-- Counted from the time, so that a server that has lost the counter gives no generation twice.
local now = redis.call('TIME')
local generation = math.max(redis.call('INCR', KEYS[2]), tonumber(now[1]) - 1700000000)
redis.call('SET', KEYS[2], generation)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[4] .. place, me, 'PX', ARGV[2])
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', KEYS[3], now_ms + tonumber(ARGV[2]), generation)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_ms)
return { place, generation, redis.call('ZCARD', KEYS[3]) }
