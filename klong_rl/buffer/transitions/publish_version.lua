-- ARGV: floor, request. Answers the new policy version, above the last one and above the floor.
arguments(2)
local floor, request = int(1, "floor"), ARGV[2]
local before = receipt("publish_version", request)
if before then return {"OK", before[1]} end
local version = math.max(counter("version", "0"), floor) + 1
redis.call("SET", key("version"), integer(version))
keep_receipt("publish_version", request, {version})
return {"OK", version}
