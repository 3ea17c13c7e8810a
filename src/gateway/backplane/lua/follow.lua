-- Registers interest, then gives position and history. The node's inbox is open already.
-- KEYS: 1 hash, 2 stream, 3 interest set.
-- ARGV: 1-4 see position.lua; 5 the node's generation, 6 records at most (the latest), 7 epoch and 8 offset that the node has (empty:
-- none), 9 inbox prefix, 10 bytes of records at most.
-- Returns { epoch, top, stream entries upwards, 1 if the node was not interested before, 1 if bytes were too many }, or
-- { 'stale', replication id }.
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'r')
local epoch, top = position(m)
if not epoch then
    return { 'stale', m[3] }
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local joined = redis.call('SADD', KEYS[3], ARGV[5])
if joined == 1 and redis.call('SCARD', KEYS[3]) > 1 then
    -- Nodes that are gone are taken out here too: where many are interested nobody publishes to single inboxes.
    local nodes, inboxes = redis.call('SMEMBERS', KEYS[3]), {}
    for i = 1, #nodes do
        inboxes[i] = ARGV[9] .. nodes[i]
    end
    local holders = redis.call('PUBSUB', 'SHARDNUMSUB', unpack(inboxes))
    for i = 1, #nodes do
        if holders[2 * i] == 0 and nodes[i] ~= ARGV[5] then
            redis.call('SREM', KEYS[3], nodes[i])
        end
    end
end
-- Nodes follow again now and then: what nobody follows any more ends by itself.
redis.call('PEXPIRE', KEYS[3], ARGV[4])
local entries, cut = {}, false
if ARGV[6] ~= '0' and top ~= '0' and (ARGV[7] == '' or ARGV[7] == epoch) and is_kept(top) then
    local count = tonumber(ARGV[6])
    if ARGV[7] ~= '' then
        -- Offsets are dense.
        count = math.min(count, tonumber(top) - tonumber(ARGV[8]))
    end
    local newest
    newest, cut = read('XREVRANGE', '+', '-', count, tonumber(ARGV[10]))
    for i = #newest, 1, -1 do
        entries[#entries + 1] = newest[i]
    end
end
return { epoch, top, entries, joined, cut and 1 or 0 }
