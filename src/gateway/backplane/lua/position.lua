-- Common part of scripts that know a channel's position. It is put in as it is, not called: a function would be made at every call of a script.
-- KEYS: 1 the channel's hash, 2 its stream. ARGV: 1 the server's replication id, 2 one character and behind it an epoch that
-- was never used; the character is '0' on the first call, on the second '1': the id is that of another history, or '2': the
-- keys came from a living primary that has the id they name; 3 how long the hash lives, in ms.
-- In: m, what HMGET e s r gave. Out: epoch and top (texts). If the hash was written under another replication id and this is
-- the first call, the script ends: the caller, who gets { 'stale', that id }, reads the server's id again and calls again, and
-- only then a new epoch may begin.
local epoch, top = m[1], m[2]
if not epoch or m[3] ~= ARGV[1] then
    local again = string.sub(ARGV[2], 1, 1)
    if epoch and again == '0' then
        return { 'stale', m[3] }
    end
    if epoch and again == '2' then
        call('HSET', KEYS[1], 'r', ARGV[1])
    else
        if epoch then
            -- The nodes' last batches stay, with the epoch they had: one that is sent again has happened all the same.
            local fields = call('HGETALL', KEYS[1])
            for i = 1, #fields, 2 do
                if string.sub(fields[i], 1, 1) == 'p' and not string.find(fields[i + 1], '^%x+:%d+:') then
                    call('HSET', KEYS[1], fields[i], fields[i + 1] .. ':' .. epoch)
                end
            end
            call('HDEL', KEYS[1], 'h')
        end
        epoch, top = string.sub(ARGV[2], 2), '0'
        call('DEL', KEYS[2])
        call('HSET', KEYS[1], 'e', epoch, 's', top, 'r', ARGV[1])
        call('PEXPIRE', KEYS[1], ARGV[3])
    end
end
