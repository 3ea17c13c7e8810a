#!lua
-- Reads history.
-- KEYS: 1 hash, 2 stream. ARGV: 1-3 see position.lua; 4 records at most, 5 offset (empty: none), 6 '1': newest first.
-- Returns { epoch, top, stream entries }, or { 'stale', replication id }.
local call = redis.call
local m = call('HMGET', KEYS[1], 'e', 's', 'r')
-- include position.lua
-- include kept.lua
call('PEXPIRE', KEYS[1], ARGV[3])
local entries = {}
if ARGV[4] ~= '0' and top ~= '0' and is_kept(top) then
    if ARGV[6] == '1' then
        local from = ARGV[5] == '' and '+' or '(' .. ARGV[5] .. '-0'
        -- Nothing is before the first.
        if ARGV[5] ~= '0' then
            entries = call('XREVRANGE', KEYS[2], from, '-', 'COUNT', ARGV[4])
        end
    else
        local from = ARGV[5] == '' and '-' or '(' .. ARGV[5] .. '-0'
        entries = call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[4])
    end
end
return { epoch, top, entries }
