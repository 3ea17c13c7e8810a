-- Numbers a batch, keeps it, and says it to interested nodes. All or nothing.
-- KEYS: 1 hash, 2 stream, 3 interest set, 4 idempotency key (if there is one).
-- ARGV: 1-4 see position.lua; 5 the node's field for its last batch, 6 writer (8 digits) and number (12), both hexadecimal, 7 publications kept,
-- 8 for how long, 9 how long the key is remembered, 10 inbox prefix, 11 bucket channel, 12 more nodes than this hear it
-- over the bucket channel, 13 lengths and channel as feed.rs reads them, 14... the records.
-- Returns { epoch, first offset, 1 if the key was there }, {} if a later batch of the writer was here, or
-- { 'stale', replication id }.
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'r', 'h', ARGV[5])
local epoch, top = position(m)
if not epoch then
    return { 'stale', m[3] }
end
local batch = ARGV[6]
if m[5] then
    local last = string.sub(m[5], 1, #batch)
    if last == batch then
        local first, old = string.match(m[5], '^:(%d+):?(.*)$', #batch + 1)
        if old == '' then
            -- The epoch that it had before position() began another, if that has just happened.
            old = m[1]
        end
        return { old, first, 0 }
    elseif last > batch and string.sub(last, 1, 8) == string.sub(batch, 1, 8) then
        -- It comes late, from a connection that its writer has given up: it was sent again since, or given up, too.
        return {}
    end
end
if KEYS[4] then
    local was = redis.call('GET', KEYS[4])
    if was then
        local its, first = string.match(was, '^(%S+) (%d+)$')
        return { its, first, 1 }
    end
end
local count, size = #ARGV - 13, tonumber(ARGV[7])
local before = tonumber(top)
if size > 0 then
    -- Of a batch longer than what is kept only the last ones are; older ones go with them.
    for i = math.max(1, count - size + 1), count do
        redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[7], string.format('%.0f-0', before + i), 'd', ARGV[13 + i])
    end
    redis.call('PEXPIRE', KEYS[2], ARGV[8])
elseif m[4] then
    redis.call('DEL', KEYS[2])
    redis.call('HDEL', KEYS[1], 'h')
end
local first = string.format('%.0f', before + 1)
local last = count == 1 and first or string.format('%.0f', before + count)
if size > 0 and (not m[4] or epoch ~= m[1]) then
    redis.call('HSET', KEYS[1], 's', last, ARGV[5], batch .. ':' .. first, 'h', '1')
else
    redis.call('HSET', KEYS[1], 's', last, ARGV[5], batch .. ':' .. first)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if KEYS[4] then
    redis.call('SET', KEYS[4], epoch .. ' ' .. first, 'PX', ARGV[9])
end
local message = 'P' .. epoch .. ' ' .. top .. ' ' .. ARGV[13] .. table.concat(ARGV, '', 14)
spread(KEYS[3], ARGV[10], ARGV[11], tonumber(ARGV[12]), message)
return { epoch, first, 0 }
