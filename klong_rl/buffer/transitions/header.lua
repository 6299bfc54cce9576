-- Stands before every transition. KEYS[1] is "klong:{run}:"; every other key is made from it, so that all keys of a
-- run lie in one slot of a Redis Cluster. A script answers {"OK", ...}, or {REFUSAL, facts...} having changed nothing.
--
-- episode:ID      hash    spec group purpose rank state since epoch failures owner outcome kind verdict score reason;
--                         since: the time (ms) it came into its state
-- segments:ID     list    encoded segments; the index is the sequence number
-- group:ID        hash    size purpose rank done state order tokens, and once consumed by a commit: step
-- members:ID      list    episode ids, as admitted
-- refs:ID         list    window references of a group (MessagePack arrays)
-- window:ID       string  encoded window
-- queued, judging zset    episode ids by rank        judging_out  zset  by the time (ms) they come back
-- running         hash    episode id -> "epoch owner"
-- complete        zset    group ids by rank, every member final, windows not made yet
-- ready           zset    group ids by the order in which they closed
-- lease:STEP      list    group ids                  leases       zset  steps leased and not committed
-- consumed        zset    group ids done with, kept until archived      forgotten  set  group ids archived
-- committed, version, order                          integers that only grow
-- n:...           hash    counters                   receipt:REQUEST    what a request was answered

local MS_PER_RECEIPT = 600000 -- ten minutes: longer than any caller goes on repeating one request
local EVAL_BEFORE_TRAIN = 2 ^ 40 -- more than the admissions of any run; ranks stay exact in a double

local function key(...) return KEYS[1] .. table.concat({...}, ":") end
local function integer(n) return string.format("%.0f", n) end
local function count(what, field, by) redis.call("HINCRBY", key("n", what), field, integer(by)) end
local function counter(name, default) return tonumber(redis.call("GET", key(name)) or default) end

local function unknown(thing, name) return {"UNKNOWN", thing, name} end
local function wrong_state(thing, name, state) return {"WRONG_STATE", thing, name, state} end
local function conflict(thing, name) return {"CONFLICT", thing, name} end
local function stale(e, held) return {"STALE", e.id, integer(held), integer(e.epoch), e.state} end

local function now_ms()
  local time = redis.call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Transitions that give out something new keep what they answered, so that a repeated request gives it out again.
local function receipt(request)
  local packed = redis.call("GET", key("receipt", request))
  return packed and cmsgpack.unpack(packed)
end

local function keep_receipt(request, answer)
  redis.call("SET", key("receipt", request), cmsgpack.pack(answer), "PX", MS_PER_RECEIPT)
end

local function rank(purpose)
  local order = redis.call("INCR", key("order"))
  return integer(purpose == "eval" and order or EVAL_BEFORE_TRAIN + order)
end

local function look(id)
  local f = redis.call("HMGET", key("episode", id), "state", "epoch", "group", "purpose", "rank")
  if not f[1] then return nil end
  return {id = id, state = f[1], epoch = tonumber(f[2]), group = f[3], purpose = f[4], rank = f[5]}
end

local function move(e, state)
  count("states", e.state, -1)
  count("states", state, 1)
  redis.call("HSET", key("episode", e.id), "state", state, "since", integer(now_ms()))
  e.state = state
end

-- Takes the episode out of every queue, whatever its state.
local function unqueue(e)
  redis.call("ZREM", key("queued"), e.id)
  redis.call("HDEL", key("running"), e.id)
  redis.call("ZREM", key("judging"), e.id)
  redis.call("ZREM", key("judging_out"), e.id)
end

local function back_to_queue(e, reason, keep_segments)
  unqueue(e)
  if not keep_segments then redis.call("DEL", key("segments", e.id)) end
  redis.call("HDEL", key("episode", e.id), "outcome", "kind")
  redis.call("ZADD", key("queued"), e.rank, e.id)
  count("requeues", reason, 1)
  move(e, "queued")
end

local function back_to_judging(e)
  redis.call("ZREM", key("judging_out"), e.id)
  redis.call("ZADD", key("judging"), e.rank, e.id)
end

-- One more member has a verdict or never will; the last one completes the group.
local function settle(e)
  local group = key("group", e.group)
  local done = redis.call("HINCRBY", group, "done", 1)
  local f = redis.call("HMGET", group, "size", "rank")
  if done == tonumber(f[1]) then
    redis.call("HSET", group, "state", "complete")
    redis.call("ZADD", key("complete"), f[2], e.group)
  end
end

local function move_windows(group, from, to)
  local n = redis.call("LLEN", key("refs", group))
  local tokens = tonumber(redis.call("HGET", key("group", group), "tokens"))
  if from then count("windows", from, -n) end
  count("windows", to, n)
  if from == "ready" then count("tokens", "ready", -tokens) end
  if to == "ready" then count("tokens", "ready", tokens) end
end

local function consume(group)
  local order = redis.call("HGET", key("group", group), "order")
  redis.call("HSET", key("group", group), "state", "consumed")
  redis.call("ZADD", key("consumed"), order, group)
end
