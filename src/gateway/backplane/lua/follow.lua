#!lua
-- Registers interest, then gives position and history. The node's inbox is open already.
-- KEYS: 1 hash, 2 stream, 3 interest set.
-- ARGV: 1-3 see position.lua; 4 the node's generation, 5 records at most (the latest), 6 epoch and 7 offset that the node has (empty:
-- none), 8 inbox prefix, 9 bytes of records at most.
-- Returns { epoch, top, stream entries upwards, 1 if the node was not interested before, 1 if bytes were too many }, or
-- { 'stale', replication id }.
local call = redis.call
local m = call('HMGET', KEYS[1], 'e', 's', 'r')
-- include position.lua
-- include kept.lua
call('PEXPIRE', KEYS[1], ARGV[3])
local joined = call('SADD', KEYS[3], ARGV[4])
if joined == 1 and call('SCARD', KEYS[3]) > 1 then
    -- Nodes that are gone are taken out here too: where many are interested nobody publishes to single inboxes.
    local nodes, inboxes = call('SMEMBERS', KEYS[3]), {}
    for i = 1, #nodes do
        inboxes[i] = ARGV[8] .. nodes[i]
    end
    local holders = call('PUBSUB', 'SHARDNUMSUB', unpack(inboxes))
    for i = 1, #nodes do
        if holders[2 * i] == 0 and nodes[i] ~= ARGV[4] then
            call('SREM', KEYS[3], nodes[i])
        end
    end
end
-- Nodes follow again now and then: what nobody follows any more ends by itself.
call('PEXPIRE', KEYS[3], ARGV[3])
local entries, cut = {}, false
if ARGV[5] ~= '0' and top ~= '0' and (ARGV[6] == '' or ARGV[6] == epoch) and is_kept(top) then
    local count = tonumber(ARGV[5])
    if ARGV[6] ~= '' then
        -- Offsets are dense.
        count = math.min(count, tonumber(top) - tonumber(ARGV[7]))
    end
    local newest
    newest, cut = read('XREVRANGE', '+', '-', count, tonumber(ARGV[9]))
    for i = #newest, 1, -1 do
        entries[#entries + 1] = newest[i]
    end
end
return { epoch, top, entries, joined, cut and 1 or 0 }
