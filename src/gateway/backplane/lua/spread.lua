-- Common part of scripts that say something to the nodes that a set names.
-- One message to each; or, when they are many, one to the bucket's channel, which every node holds. A node that does
-- not hold its inbox is gone and is taken out.
-- In: set, its key; head, what the bucket's names begin with; above; message. Out: said, to how many nodes.
local nodes, said = call('SMEMBERS', set), 0
if #nodes > above then
    call('SPUBLISH', head .. 'b', message)
    said = #nodes
else
    for i = 1, #nodes do
        if call('SPUBLISH', head .. 'i' .. nodes[i], message) == 0 then
            call('SREM', set, nodes[i])
        else
            said = said + 1
        end
    end
end
