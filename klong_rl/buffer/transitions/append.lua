-- ARGV: episode, epoch, seq of the first segment, then for each: the header of its frame, its action tokens. The frames
-- are staged. Answers the limits of an episode that was extended; segments that are there already change nothing.
local id, epoch, first, n = ARGV[1], int(2, "epoch"), int(3, "seq"), (#ARGV - 3) / 2
if n ~= math.floor(n) or n < 1 or n > SEGMENTS_A_CALL then
  malformed(#ARGV .. " arguments", "3 and 2 for each of 1 to " .. SEGMENTS_A_CALL .. " segments")
end
if first < 0 then malformed("seq", "0 or more") end
local headers, lengths, sizes = {}, {}, {}
for i = 1, n do
  headers[i], sizes[i] = ARGV[2 + 2 * i], int(3 + 2 * i, "tokens")
  lengths[i] = frame_length(headers[i], "segment", SEGMENT)
  if #headers[i] ~= HEADER or sizes[i] < 0 then malformed("segment", "the header of a frame, and its tokens") end
end
local staged, segment = key("staged", id, ""), key("segment", id, "")
local function header(name) return redis.call("GETRANGE", name, 0, HEADER - 1) end

-- Whoever lost the episode may have staged something else at its place meanwhile: then this is sent again.
local function check_staged(i)
  local frame = staged .. first + i - 1
  if header(frame) ~= headers[i] or redis.call("STRLEN", frame) ~= lengths[i] then
    error({err = "TRYAGAIN segment " .. id .. "/" .. first + i - 1 .. " isn't staged as it was announced"})
  end
end

local function append()
  local episode = key("episode", id)
  local f = redis.call("HMGET", episode, "state", "epoch", "failures", "timeout_s", "max_turns", "furthest")
  if not f[1] then return unknown("episode", id) end
  local e, answer = {id = id, state = f[1], epoch = tonumber(f[2])}, {"OK", f[4], f[5]}
  if epoch ~= e.epoch then return stale(e, epoch) end
  local held = redis.call("LLEN", key("sizes", id))
  for seq = first, math.min(first + n, held) - 1 do
    if header(segment .. seq) ~= headers[seq - first + 1] then return conflict("segment", id .. "/" .. seq) end
  end
  if first + n <= held then return answer end
  if e.state ~= "running" then return stale(e, epoch) end
  if first > held then return {"OUT_OF_SEQUENCE", id, integer(first), held} end

  local tokens, new = 0, held - first + 1
  for i = new, n do check_staged(i) end
  for i = new, n do
    redis.call("RENAME", staged .. first + i - 1, segment .. first + i - 1)
    tokens = tokens + sizes[i]
  end
  redis.call("RPUSH", key("sizes", id), unpack(sizes, new))
  redis.call("HDEL", episode, "intended", "intended_tokens")
  -- To get again as far as before is no progress: an episode that fails there each time is given up in the end.
  if f[3] ~= "0" and first + n > tonumber(f[6] or 0) then redis.call("HSET", episode, "failures", 0) end
  count("appended", "segments", n - new + 1)
  count("appended", "tokens", tokens)
  return answer
end

local answer = append()
local left = {}
for seq = first, first + n - 1 do left[#left + 1] = staged .. seq end
redis.call("DEL", unpack(left))
return answer
