#!lua
-- Says something to interested nodes that is neither numbered nor kept.
-- KEYS: 1 interest set. ARGV: 1 what the bucket's names begin with, 2 see publish.lua (9), 3 the message.
-- Returns to how many nodes.
local call, set, head, above, message = redis.call, KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
-- include spread.lua
return said
