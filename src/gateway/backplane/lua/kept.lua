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
