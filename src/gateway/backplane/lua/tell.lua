-- Says something to interested nodes that is neither numbered nor kept.
-- KEYS: 1 interest set. ARGV: 1 inbox prefix, 2 bucket channel, 3 see publish.lua (12), 4 the message.
-- Returns to how many nodes.
return spread(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
