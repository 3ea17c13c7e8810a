#!lua
-- Which nodes are alive, and what they say of themselves.
-- KEYS: 1 living nodes, 2 what nodes say of themselves.
-- Returns for each { generation, how long ago it said so in ms, what it said, or an empty text }.
-- include now.lua
local now = now_ms()
local living, nodes = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf'), {}
for i = 1, #living do
    local said = redis.call('HGET', KEYS[2], living[i])
    if said then
        local colon = string.find(said, ':', 1, true)
        local at = tonumber(string.sub(said, 1, colon - 1))
        nodes[i] = { living[i], math.max(0, now - at), string.sub(said, colon + 1) }
    else
        nodes[i] = { living[i], 0, '' }
    end
end
return nodes
