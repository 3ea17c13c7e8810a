-- Common part of scripts that read history.
-- Whether the stream reaches the channel's top. One that does not is a leftover and is deleted.
local function is_kept(top)
    local newest = call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
    if not newest then
        return false
    end
    if newest[1] ~= top .. '-0' then
        call('DEL', KEYS[2])
        return false
    end
    return true
end

-- Records that are read at once.
local PART = 64

-- Entries from one id towards another: no more than count, and of no more bytes, but at least one. Also whether it was bytes
-- that were too many.
local function read(command, from, to, count, bytes)
    local entries, size = {}, 0
    while #entries < count do
        local want = math.min(PART, count - #entries)
        local part = call(command, KEYS[2], from, to, 'COUNT', want)
        for i = 1, #part do
            size = size + #part[i][2][2]
            if size > bytes and #entries > 0 then
                return entries, true
            end
            entries[#entries + 1] = part[i]
        end
        if #part < want then
            break
        end
        from = '(' .. part[#part][1]
    end
    return entries, false
end
