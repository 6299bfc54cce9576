-- ARGV: group, timeout in active seconds, turns. New limits for all members of a group, while none of them has ended:
-- members of a group share a baseline, so they share their limits. Answers 1, or 0 when one has, or nothing grew.
arguments(3)
local group, timeout_s, max_turns = ARGV[1], number(2, "timeout_s"), int(3, "max_turns")
if timeout_s <= 0 or max_turns < 1 then malformed("limits", "numbers above 0") end
local members = redis.call("LRANGE", key("members", group), 0, -1)
if #members == 0 then return unknown("group", group) end
for _, id in ipairs(members) do
  local f = redis.call("HMGET", key("episode", id), "state", "timeout_s", "max_turns")
  if f[1] ~= "queued" and f[1] ~= "running" then return {"OK", 0} end
  local old_s, old_turns = tonumber(f[2] or 0), tonumber(f[3] or 0)
  if timeout_s < old_s or max_turns < old_turns or (timeout_s == old_s and max_turns == old_turns) then
    return {"OK", 0}
  end
end
for _, id in ipairs(members) do
  redis.call("HSET", key("episode", id), "timeout_s", ARGV[2], "max_turns", ARGV[3])
end
return {"OK", 1}
