-- Stands before every transition. KEYS[1] is "klong:{run}:"; every other key is made from it, so that all keys of a
-- run lie in one slot of a Redis Cluster. A script answers {"OK", ...}, or {REFUSAL, facts...} having changed nothing.
--
-- episode:ID      hash    spec group purpose rank state since began epoch failures owner outcome kind verdict score reason,
--                         intended intended_tokens snapshot snapshot_at furthest timeout_s max_turns, sampled: pairs
--                         of what tokens are and how many, of an agent from outside;
--                         since: the time (ms) it came into its state; began: of its first claim; furthest: the most segments before a rewind
-- sizes:ID        list    action tokens of each segment; the index is the sequence number
-- segment:ID:SEQ  string  encoded segment
-- staged:ID:SEQ   string  encoded segment on its way there: written by the command before the script that moves it
-- group:ID        hash    size purpose rank done state order tokens, and once consumed by a commit: step;
--                         once closed early: rest, the group that its late members became
-- came_in:ID      hash    of such a rest: episode id -> score, of those that came in before
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
-- n:...           hash    counters                   receipt:TRANSITION:REQUEST  its answer

local MS_PER_RECEIPT = 600000 -- ten minutes: longer than any caller goes on repeating one request
local SEGMENTS_A_CALL = 32
local EVAL_BEFORE_TRAIN = 2 ^ 40 -- more than the admissions of any run; ranks stay exact in a double

-- Arguments are checked before anything is changed: what is not what a client of ours sends changes nothing.
local function malformed(what, wanted)
  error({err = "MALFORMED " .. what .. ": want " .. wanted})
end

local function arguments(n)
  if #ARGV ~= n then malformed(#ARGV .. " arguments", n) end
end

local function int(i, name)
  if not ARGV[i] or #ARGV[i] > 15 or not string.find(ARGV[i], "^-?%d+$") then malformed(name, "an integer") end
  return tonumber(ARGV[i])
end

-- As Python's repr writes a finite float: Lua's tonumber takes more, which no reader would.
local function number(i, name)
  local digits = string.gsub(ARGV[i] or "", "e[+-]?%d+$", "")
  local found = #digits <= 25 and string.find(digits, "^-?%d+%.?%d*$") and tonumber(ARGV[i])
  if not found or math.abs(found) == math.huge then malformed(name, "a number") end
  return found
end

local function one_of(i, name, ...)
  for _, known in ipairs({...}) do
    if ARGV[i] == known then return known end
  end
  malformed(name, table.concat({...}, " or "))
end

-- A frame (klong_rl.wire) of this kind, of the length that it says. Whether its body is whole only a reader can tell.
local SPEC, SEGMENT, OUTCOME, VERDICT, WINDOW, TURN = 1, 2, 3, 4, 5, 6
local HEADER = 16 -- bytes; it tells frames apart, since it holds a checksum of the body
local function frame_length(f, name, kind)
  if not f or #f < HEADER then malformed(name, "a whole frame") end
  local magic, found, _, length = struct.unpack("<c2BBI4", f)
  if magic ~= "KL" or found ~= kind then malformed(name, "a frame of kind " .. kind) end
  return HEADER + length
end

local function frame(i, name, kind)
  local length = frame_length(ARGV[i], name, kind)
  if length ~= #ARGV[i] then malformed(name, "a frame of " .. length .. " bytes") end
  return ARGV[i]
end

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
-- A request is one of its transition: another's of the same name was answered something else.
local function receipt(transition, request)
  local packed = redis.call("GET", key("receipt", transition .. ":" .. request))
  return packed and cmsgpack.unpack(packed)
end

local function keep_receipt(transition, request, answer)
  redis.call("SET", key("receipt", transition .. ":" .. request), cmsgpack.pack(answer), "PX", MS_PER_RECEIPT)
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

-- Its segments, intended action, snapshot and outcome stay: its next holder goes on from them.
local function back_to_queue(e, reason)
  unqueue(e)
  redis.call("ZADD", key("queued"), e.rank, e.id)
  count("requeues", reason, 1)
  move(e, "queued")
end

-- What a holder had staged when it died: a call stages no more than SEGMENTS_A_CALL of the next segments.
local function delete_staged(id)
  local next_one, left = redis.call("LLEN", key("sizes", id)), {}
  for seq = next_one, next_one + SEGMENTS_A_CALL - 1 do left[#left + 1] = key("staged", id, seq) end
  redis.call("DEL", unpack(left))
end

local function delete_segments(id, from)
  for seq = from, redis.call("LLEN", key("sizes", id)) - 1 do redis.call("DEL", key("segment", id, seq)) end
  if from == 0 then redis.call("DEL", key("sizes", id)) else redis.call("LTRIM", key("sizes", id), 0, from - 1) end
end

-- Gives up the segments from number `n` on and the intended action, counting their tokens; how many those were.
local function discard(id, n, reason)
  local episode, tokens = key("episode", id), 0
  for _, size in ipairs(redis.call("LRANGE", key("sizes", id), n, -1)) do tokens = tokens + tonumber(size) end
  tokens = tokens + tonumber(redis.call("HGET", episode, "intended_tokens") or 0)
  delete_staged(id)
  delete_segments(id, n)
  redis.call("HDEL", episode, "intended", "intended_tokens")
  if tokens > 0 then count("discarded", reason, tokens) end
  return tokens
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
