-- ARGV: group, then for each window: id, reference, tokens, encoded window. Answers 1, or 0 when closed before.
if #ARGV % 4 ~= 1 then malformed(#ARGV .. " arguments", "1 and 4 for each window") end
local group = ARGV[1]
local function integers(numbers)
  if type(numbers) ~= "table" or #numbers == 0 then return false end
  for _, n in pairs(numbers) do
    if type(n) ~= "number" or n ~= math.floor(n) then return false end
  end
  return true
end
local function only_one(ok, ...) return ok and select("#", ...) == 1 and (...) end
local seen = {}
for i = 2, #ARGV, 4 do
  local tokens, ref = int(i + 2, "tokens"), only_one(pcall(cmsgpack.unpack, ARGV[i + 1]))
  frame(i + 3, "window", WINDOW)
  if type(ref) ~= "table" or #ref ~= 6 or ref[1] ~= ARGV[i] or ref[2] ~= tokens or ref[6] ~= group
    or not integers({tokens, ref[3], ref[5]}) or not integers(ref[4]) or seen[ARGV[i]] then
    malformed("reference of window " .. i, "id (once), tokens, targets, versions, stage, group")
  end
  seen[ARGV[i]] = true
end
if redis.call("SISMEMBER", key("forgotten"), group) == 1 then return {"OK", 0} end
local f = redis.call("HMGET", key("group", group), "state", "purpose")
local state, purpose = f[1], f[2]
if not state then return unknown("group", group) end
if state == "open" then return wrong_state("group", group, state) end
if state ~= "complete" then return {"OK", 0} end
if purpose == "eval" and #ARGV > 1 then return wrong_state("group", group, "for evaluation, never trained") end
for i = 2, #ARGV, 4 do
  if redis.call("EXISTS", key("window", ARGV[i])) == 1 then return conflict("window", ARGV[i]) end
end

local tokens = 0
for i = 2, #ARGV, 4 do
  redis.call("RPUSH", key("refs", group), ARGV[i + 1])
  redis.call("SET", key("window", ARGV[i]), ARGV[i + 3])
  tokens = tokens + tonumber(ARGV[i + 2])
end
local order = redis.call("INCR", key("order"))
redis.call("ZREM", key("complete"), group)
redis.call("HSET", key("group", group), "order", order, "tokens", integer(tokens), "state", "ready")
if #ARGV > 1 then
  redis.call("ZADD", key("ready"), order, group)
  move_windows(group, nil, "ready")
else
  consume(group)
end
if purpose == "eval" then
  redis.call("ZADD", key("eval_groups"), 0, group)
  for _, id in ipairs(redis.call("LRANGE", key("members", group), 0, -1)) do
    local score = redis.call("HGET", key("episode", id), "score")
    if score then redis.call("HSET", key("scores", group), id, score) end
  end
end
return {"OK", 1}
