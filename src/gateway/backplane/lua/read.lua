#!lua
-- Reads history.
-- KEYS: 1 hash, 2 stream. ARGV: 1-3 see position.lua; 4 records at most, 5 offset (empty: none), 6 '1': newest first,
-- 7 bytes of records at most.
-- Returns { epoch, top, stream entries }, or { 'stale', replication id }.
local call = redis.call
local m = call('HMGET', KEYS[1], 'e', 's', 'r')
-- include position.lua
-- include kept.lua
call('PEXPIRE', KEYS[1], ARGV[3])
local entries = {}
if ARGV[4] ~= '0' and top ~= '0' and is_kept(top) then
    local count, bytes = tonumber(ARGV[4]), tonumber(ARGV[7])
    if ARGV[6] == '1' then
        -- Nothing is before the first.
        if ARGV[5] ~= '0' then
            entries = read('XREVRANGE', ARGV[5] == '' and '+' or '(' .. ARGV[5] .. '-0', '-', count, bytes)
        end
    else
        entries = read('XRANGE', ARGV[5] == '' and '-' or '(' .. ARGV[5] .. '-0', '+', count, bytes)
    end
end
return { epoch, top, entries }
