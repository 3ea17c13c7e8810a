-- Reads history.
-- KEYS: 1 hash, 2 stream. ARGV: 1-4 see position.lua; 5 records at most, 6 offset (empty: none), 7 '1': newest first,
-- 8 bytes of records at most.
-- Returns { epoch, top, stream entries }, or { 'stale', replication id }.
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'r')
local epoch, top = position(m)
if not epoch then
    return { 'stale', m[3] }
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local entries = {}
if ARGV[5] ~= '0' and top ~= '0' and is_kept(top) then
    local count, bytes = tonumber(ARGV[5]), tonumber(ARGV[8])
    if ARGV[7] == '1' then
        -- Nothing is before the first.
        if ARGV[6] ~= '0' then
            entries = read('XREVRANGE', ARGV[6] == '' and '+' or '(' .. ARGV[6] .. '-0', '-', count, bytes)
        end
    else
        entries = read('XRANGE', ARGV[6] == '' and '-' or '(' .. ARGV[6] .. '-0', '+', count, bytes)
    end
end
return { epoch, top, entries }
