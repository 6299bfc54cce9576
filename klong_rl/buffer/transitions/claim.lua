-- ARGV: owner, request. Answers nothing, or episode's spec, epoch and, once extended, its limits.
arguments(2)
local owner, request = unpack(ARGV)
local function answer(id, epoch)
  local f = redis.call("HMGET", key("episode", id), "spec", "timeout_s", "max_turns")
  if not f[1] then return unknown("episode", id) end
  return {"OK", f[1], epoch, f[2], f[3]}
end

local before = receipt("claim", request)
if before then return answer(before[1], before[2]) end
local id = redis.call("ZRANGE", key("queued"), 0, 0)[1]
if not id then return {"OK"} end

local e = look(id)
local epoch = e.epoch + 1
redis.call("ZREM", key("queued"), id)
redis.call("HSET", key("running"), id, epoch .. " " .. owner)
redis.call("HSET", key("episode", id), "epoch", epoch, "owner", owner)
redis.call("HSETNX", key("episode", id), "began", integer(now_ms()))
move(e, "running")
keep_receipt("claim", request, {id, epoch})
return answer(id, epoch)
