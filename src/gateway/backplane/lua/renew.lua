#!lua
-- Renews a node's leases, or with a lease of 0 gives them back.
-- KEYS: 1 lease on the name, 2 lease on the place, 3 living nodes, 4 there while a node drains and for some time behind it,
-- 5 counter of generations.
-- ARGV: 1 boot id, 2 lease in ms, 3 name, 4 generation, 5 see acquire.lua (6), 6 this node drains: how long 4 is to
-- be there from now on, in ms; 0: it does not.
-- Returns { the newest generation, how long 4 is still there in ms or 0, { generations of living nodes } }; {} if one of the leases is
-- not this node's any more.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[3] .. ' ' .. ARGV[1] then
    return {}
end
if tonumber(ARGV[6]) > math.max(0, redis.call('PTTL', KEYS[4])) then
    redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[6])
end
if ARGV[2] == '0' then
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('ZREM', KEYS[3], ARGV[4])
    return { 0, 0, {} }
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
local now = redis.call('TIME')
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', KEYS[3], now_ms + tonumber(ARGV[2]), ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_ms)
local newest = redis.call('GET', KEYS[5]) or ARGV[4]
return { newest, math.max(0, redis.call('PTTL', KEYS[4])), redis.call('ZRANGE', KEYS[3], 0, -1) }
