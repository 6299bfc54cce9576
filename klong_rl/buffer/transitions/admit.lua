-- ARGV: episode, group, group_size, purpose, spec. Answers 1 when new, 0 when known (also when archived since).
local id, group, size, purpose, spec = unpack(ARGV)
if redis.call("SISMEMBER", key("forgotten"), group) == 1 then return {"OK", 0} end
local known = redis.call("HGET", key("episode", id), "spec")
if known then
  if known ~= spec then return conflict("episode", id) end
  return {"OK", 0}
end
local f = redis.call("HMGET", key("group", group), "size", "purpose")
local members = redis.call("LLEN", key("members", group))
if f[1] and (f[1] ~= size or f[2] ~= purpose or members >= tonumber(size)) then return conflict("group", group) end

local mine = rank(purpose)
if not f[1] then
  redis.call("HSET", key("group", group),
    "size", size, "purpose", purpose, "rank", mine, "done", 0, "state", "open", "tokens", 0)
end
redis.call("RPUSH", key("members", group), id)
redis.call("HSET", key("episode", id),
  "spec", spec, "group", group, "purpose", purpose, "rank", mine, "state", "queued",
  "since", integer(now_ms()), "epoch", 0, "failures", 0)
redis.call("ZADD", key("queued"), mine, id)
count("states", "queued", 1)
return {"OK", 1}
