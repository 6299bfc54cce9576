-- ARGV: episode, epoch, reason. Answers how often the episode failed since its last segment.
-- Asking again for an epoch that was given up changes nothing.
arguments(3)
local id, epoch, reason = ARGV[1], int(2, "epoch"), ARGV[3]
local e = look(id)
if not e then return unknown("episode", id) end
if epoch == e.epoch and (e.state == "running" or e.state == "sealed") then
  back_to_queue(e, reason)
  redis.call("HINCRBY", key("episode", id), "failures", 1)
elseif epoch ~= e.epoch or e.state ~= "queued" then
  return stale(e, epoch)
end
return {"OK", tonumber(redis.call("HGET", key("episode", id), "failures"))}
