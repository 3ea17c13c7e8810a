#!lua
-- Keeps what a node says of itself, as long as its lease holds.
-- KEYS: 1 living nodes, 2 what nodes say of themselves. ARGV: 1 generation, 2 what it says.
-- Returns 1; 0: the lease is lost, and nothing is kept.
-- include now.lua
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return 0
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f:', now_ms()) .. ARGV[2])
if redis.call('HLEN', KEYS[2]) > redis.call('ZCARD', KEYS[1]) then
    -- Somebody's lease has ended since.
    local said = redis.call('HKEYS', KEYS[2])
    for i = 1, #said do
        if not redis.call('ZSCORE', KEYS[1], said[i]) then
            redis.call('HDEL', KEYS[2], said[i])
        end
    end
end
return 1
