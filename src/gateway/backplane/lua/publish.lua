#!lua
-- Numbers a batch, keeps it, and says it to interested nodes. All or nothing.
-- What every publish does costs (bench/backplane.py has what): few arguments, few calls, no function, no table that is not needed.
-- KEYS: 1 hash, 2 stream, 3 interest set, 4 idempotency key (if there is one).
-- ARGV: 1-3 see position.lua; 4 the node's field for its last batch, 5 writer (8 digits) and number (12), both hexadecimal,
-- 6 publications kept, 7 for how long, 8 what the bucket's names begin with, 9 if more nodes than this hear it it goes over
-- the bucket channel, 10 lengths and channel as feed.rs reads them, with an idempotency key: 11 how long it is remembered; then the records.
-- Returns 'epoch offset', the first; { epoch, first offset, 1 if the key was there } if it had happened; {} if a later batch of
-- the writer was here; or { 'stale', replication id }.
local call, KEYS, ARGV = redis.call, KEYS, ARGV
local m = call('HMGET', KEYS[1], 'e', 's', 'r', 'h', ARGV[4])
-- include position.lua
local batch, said = ARGV[5], m[5]
-- Numbers are of one length and more stands behind that of the last batch, so it is greater also if it is the same.
if said and said > batch then
    local last = string.sub(said, 1, #batch)
    if last == batch then
        local first, old = string.match(said, '^:(%d+):?(.*)$', #batch + 1)
        if old == '' then
            -- The epoch that it had before another began, if that has just happened.
            old = m[1]
        end
        return { old, first, 0 }
    elseif string.sub(last, 1, 8) == string.sub(batch, 1, 8) then
        -- It comes late, from a connection that its writer has given up: it was sent again since, or given up, too.
        return {}
    end
end
local key, format = KEYS[4], string.format
-- Texts that are counted with become numbers by themselves, which is cheaper than tonumber.
local first = format('%.0f', top + 1)
local answer, record, add = epoch .. ' ' .. first, 11, call
if key then
    -- One call that asks and keeps. If the records cannot be kept it is taken back.
    local was = call('SET', key, answer, 'NX', 'GET', 'PX', ARGV[11])
    if was then
        local its, its_first = string.match(was, '^(%S+) (%d+)$')
        return { its, its_first, 1 }
    end
    record, add = 12, redis.pcall
end
local count, size, last = #ARGV - record + 1, ARGV[6], first
if count > 1 then
    last = format('%.0f', top + count)
end
if size ~= '0' then
    -- Of a batch longer than what is kept only the last ones are; older ones go with them.
    for i = count > 1 and math.max(1, count - size + 1) or 1, count do
        local id = i == 1 and first .. '-0' or format('%.0f-0', top + i)
        local added = add('XADD', KEYS[2], 'MAXLEN', size, id, 'd', ARGV[record - 1 + i])
        if key and added.err then
            call('DEL', key)
            return added
        end
    end
    call('PEXPIRE', KEYS[2], ARGV[7])
elseif m[4] then
    call('DEL', KEYS[2])
    call('HDEL', KEYS[1], 'h')
end
if size ~= '0' and (not m[4] or epoch ~= m[1]) then
    call('HSET', KEYS[1], 's', last, ARGV[4], batch .. ':' .. first, 'h', '1')
else
    call('HSET', KEYS[1], 's', last, ARGV[4], batch .. ':' .. first)
end
call('PEXPIRE', KEYS[1], ARGV[3])
local records = count > 1 and table.concat(ARGV, '', record) or ARGV[record]
local message = 'P' .. epoch .. ' ' .. top .. ' ' .. ARGV[10] .. records
local set, head, above = KEYS[3], ARGV[8], ARGV[9] + 0
-- include spread.lua
return answer
