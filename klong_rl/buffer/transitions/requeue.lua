-- ARGV: episode, epoch, reason, 1 to keep its segments. Answers how often the episode failed.
-- Asking again for an epoch that was given up changes nothing.
local id, epoch, reason, keep_segments = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == "1"
local e = look(id)
if not e then return unknown("episode", id) end
if epoch == e.epoch and (e.state == "running" or e.state == "sealed") then
  back_to_queue(e, reason, keep_segments)
  redis.call("HINCRBY", key("episode", id), "failures", 1)
elseif epoch ~= e.epoch or e.state ~= "queued" then
  return stale(e, epoch)
end
return {"OK", tonumber(redis.call("HGET", key("episode", id), "failures"))}
