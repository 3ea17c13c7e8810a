-- Common part of scripts that say something to the nodes that a set names.
-- One message to each; or, when they are many, one to the bucket's channel, which every node holds. A node that does
-- not hold its inbox is gone and is taken out. Returns to how many nodes it was said.
local function spread(set, inbox, bucket, above, message)
    local nodes = redis.call('SMEMBERS', set)
    if #nodes > above then
        redis.call('SPUBLISH', bucket, message)
        return #nodes
    end
    local said = 0
    for i = 1, #nodes do
        if redis.call('SPUBLISH', inbox .. nodes[i], message) == 0 then
            redis.call('SREM', set, nodes[i])
        else
            said = said + 1
        end
    end
    return said
end
