-- ARGV: owner, request. Answers nothing, or episode's spec and epoch.
local owner, request = unpack(ARGV)
local before = receipt(request)
if before then
  local spec = redis.call("HGET", key("episode", before[1]), "spec")
  if not spec then return unknown("episode", before[1]) end
  return {"OK", spec, before[2]}
end
local id = redis.call("ZRANGE", key("queued"), 0, 0)[1]
if not id then return {"OK"} end

local e = look(id)
local epoch = e.epoch + 1
redis.call("ZREM", key("queued"), id)
redis.call("HSET", key("running"), id, epoch .. " " .. owner)
redis.call("HSET", key("episode", id), "epoch", epoch, "owner", owner)
move(e, "running")
keep_receipt(request, {id, epoch})
return {"OK", redis.call("HGET", key("episode", id), "spec"), epoch}
