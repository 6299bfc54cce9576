-- ARGV: step, n_groups, oldest_version, dead versions. Answers the window references of n_groups groups, those closed
-- first coming first, and of the rests of others (part_group), which don't count, those that closed before the last of
-- them. With fewer fresh groups than that nothing is leased. A step leased before gets what it got.
local step, n_groups, oldest, dead = integer(int(1, "step")), int(2, "n_groups"), int(3, "oldest_version"), {}
if n_groups < 1 or tonumber(step) < 0 then malformed("step and n_groups", "0 or more, and 1 or more") end
for i = 4, #ARGV do dead[int(i, "dead version")] = true end
local committed = counter("committed", "-1")
if tonumber(step) <= committed then return {"COMMITTED", step, integer(committed)} end

local function answer(groups)
  local reply = {"OK"}
  for _, group in ipairs(groups) do
    for _, ref in ipairs(redis.call("LRANGE", key("refs", group), 0, -1)) do reply[#reply + 1] = ref end
  end
  return reply
end

local function is_fresh(ref)
  for _, version in ipairs(ref[4]) do
    if version < oldest or dead[version] then return false end
  end
  return true
end

-- Drops the windows with a token sampled before `oldest` or by a dead version; true if any is left.
local function freshen(group)
  local refs, fresh, tokens = redis.call("LRANGE", key("refs", group), 0, -1), {}, 0
  for _, packed in ipairs(refs) do
    local ref = cmsgpack.unpack(packed)
    if is_fresh(ref) then
      fresh[#fresh + 1] = packed
      tokens = tokens + ref[2]
    end
  end
  if #fresh == #refs then return true end
  move_windows(group, "ready", "stale")
  for _, packed in ipairs(refs) do
    local ref = cmsgpack.unpack(packed)
    if not is_fresh(ref) then redis.call("DEL", key("window", ref[1])) end
  end
  redis.call("DEL", key("refs", group))
  for _, packed in ipairs(fresh) do redis.call("RPUSH", key("refs", group), packed) end
  redis.call("HSET", key("group", group), "tokens", integer(tokens))
  if #fresh > 0 then
    move_windows(group, "stale", "ready")
    return true
  end
  redis.call("ZREM", key("ready"), group)
  consume(group)
  return false
end

local before = redis.call("LRANGE", key("lease", step), 0, -1)
if #before > 0 then return answer(before) end
local groups, counted = {}, 0
repeat -- a few at a time: what was fresh stands before these, what was not has left
  local next_ones = redis.call("ZRANGE", key("ready"), #groups, #groups + n_groups - 1)
  for _, group in ipairs(next_ones) do
    if counted < n_groups and freshen(group) then
      groups[#groups + 1] = group
      counted = counted + 1 - redis.call("EXISTS", key("came_in", group))
    end
  end
until counted == n_groups or #next_ones == 0
if counted < n_groups then return {"OK"} end
for _, group in ipairs(groups) do
  redis.call("ZREM", key("ready"), group)
  redis.call("HSET", key("group", group), "state", "leased")
  redis.call("RPUSH", key("lease", step), group)
  move_windows(group, "ready", "leased")
end
redis.call("ZADD", key("leases"), step, step)
return answer(groups)
