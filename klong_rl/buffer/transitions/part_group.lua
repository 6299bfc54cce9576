-- ARGV: group, name of the rest, least verdicts. Closes an open training group for its members that are final: those
-- that are not become a group of their own, `rest`, which knows the scores that came in. Answers 1; or 0 where fewer
-- than `least` have a verdict, a member was never admitted, or the group isn't open (any more).
arguments(3)
local group, rest, least = ARGV[1], ARGV[2], int(3, "least")
if least < 1 then malformed("least " .. least, "1 or more") end
if redis.call("SISMEMBER", key("forgotten"), group) == 1 then return {"OK", 0} end
local f = redis.call("HMGET", key("group", group), "state", "purpose", "size", "rank")
if not f[1] then return unknown("group", group) end
if f[1] ~= "open" then return {"OK", 0} end
if f[2] == "eval" then return wrong_state("group", group, "for evaluation, never closed early") end
if redis.call("EXISTS", key("came_in", group)) == 1 then return wrong_state("group", group, "the rest of another") end
if redis.call("EXISTS", key("group", rest)) == 1 or redis.call("SISMEMBER", key("forgotten"), rest) == 1 then
  return conflict("group", rest)
end
local final, late, came_in = {}, {}, {}
for _, id in ipairs(redis.call("LRANGE", key("members", group), 0, -1)) do
  local e = redis.call("HMGET", key("episode", id), "state", "score")
  if e[1] == "judged" then
    came_in[#came_in + 1] = id
    came_in[#came_in + 1] = e[2]
  end
  if e[1] == "judged" or e[1] == "dropped" then final[#final + 1] = id else late[#late + 1] = id end
end
if #final + #late < tonumber(f[3]) or #came_in / 2 < least then return {"OK", 0} end

redis.call("DEL", key("members", group))
redis.call("RPUSH", key("members", group), unpack(final))
redis.call("HSET", key("group", group), "size", #final, "rest", rest, "state", "complete")
redis.call("ZADD", key("complete"), f[4], group)
redis.call("RPUSH", key("members", rest), unpack(late))
redis.call("HSET", key("group", rest),
  "size", #late, "purpose", f[2], "rank", f[4], "done", 0, "state", "open", "tokens", 0)
redis.call("HSET", key("came_in", rest), unpack(came_in))
for _, id in ipairs(late) do redis.call("HSET", key("episode", id), "group", rest) end
return {"OK", 1}
