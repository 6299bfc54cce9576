-- ARGV: episode, group, group_size, purpose, spec. Answers 1 when new, 0 when known (also when archived since).
arguments(5)
local id, group, size = ARGV[1], ARGV[2], int(3, "group_size")
local purpose, spec = one_of(4, "purpose", "train", "eval"), frame(5, "spec", SPEC)
if size < 1 then malformed("group_size " .. size, "1 or more") end
if redis.call("SISMEMBER", key("forgotten"), group) == 1 then return {"OK", 0} end
local known = redis.call("HGET", key("episode", id), "spec")
if known then
  if known ~= spec then return conflict("episode", id) end
  return {"OK", 0}
end
local f = redis.call("HMGET", key("group", group), "size", "purpose", "rest")
if f[3] then return {"OK", 0} end -- all members were admitted; this one is of the rest, and archived with it
local members = redis.call("LLEN", key("members", group))
if f[1] and (tonumber(f[1]) ~= size or f[2] ~= purpose or members >= size) then return conflict("group", group) end

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
