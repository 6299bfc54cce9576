-- ARGV: owner, visibility in ms, request. Answers nothing, or spec, epoch and outcome of the most urgent sealed episode.
-- It is hidden from other judges until its time is up; then its judge is taken for dead.
arguments(3)
local owner, visibility, request = ARGV[1], int(2, "visibility"), ARGV[3]
local function answer(id, epoch)
  local f = redis.call("HMGET", key("episode", id), "spec", "outcome", "epoch", "state")
  if not f[1] then return unknown("episode", id) end
  if tonumber(f[3]) ~= epoch or (f[4] ~= "sealed" and f[4] ~= "judged") then return stale(look(id), epoch) end
  return {"OK", f[1], epoch, f[2]}
end

local before = receipt("next_to_judge", request)
if before then return answer(before[1], before[2]) end
local now = now_ms()
for _, id in ipairs(redis.call("ZRANGEBYSCORE", key("judging_out"), "-inf", integer(now))) do
  back_to_judging(look(id))
end
local id = redis.call("ZRANGE", key("judging"), 0, 0)[1]
if not id then return {"OK"} end
local e = look(id)
redis.call("ZREM", key("judging"), id)
redis.call("ZADD", key("judging_out"), integer(now + visibility), id)
redis.call("HSET", key("episode", id), "owner", owner)
keep_receipt("next_to_judge", request, {id, e.epoch})
return answer(id, e.epoch)
