-- Lookups of 64 ids for wrk, against `cce serve`: JSON or raw bodies, one or several lookups a request.
--   wrk -t1 -c32 -d10s --latency -s bench/speed/serve.lua URL -- KIND LOOKUPS VOCAB
-- KIND: of ids and of vectors: json, raw, json-raw, or raw-arrow. LOOKUPS: of 64 ids each, in one request. VOCAB: ids are below it.

local TYPES = {
  json = "application/json",
  raw = "application/octet-stream",
  arrow = "application/vnd.apache.arrow.stream",
}
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local function raw(id) -- eight bytes, little-endian
  local bytes = {}
  for k = 1, 8 do
    bytes[k] = string.char(id % 256)
    id = math.floor(id / 256)
  end
  return table.concat(bytes)
end

function init(args)
  local kinds, lookups, vocab = args[1] or "json", tonumber(args[2] or 1), tonumber(args[3] or 1000000)
  local kind, wanted = kinds:match("^(%a+)"), kinds:match("(%a+)$")
  per_request, bodies, turn = lookups, {}, 0
  math.randomseed(tonumber(tostring(bodies):sub(8)) or 1)
  for n = 1, 64 do
    local rows = {}
    for row = 1, lookups do
      local ids = {}
      for k = 1, 64 do
        local id = math.random(0, vocab - 1)
        ids[k] = kind == "raw" and raw(id) or tostring(id)
      end
      rows[row] = kind == "raw" and table.concat(ids) or "[" .. table.concat(ids, ",") .. "]"
    end
    bodies[n] = kind == "raw" and table.concat(rows) or '{"ids":[' .. table.concat(rows, ",") .. "]}"
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = TYPES[kind]
  wrk.headers["Accept"] = TYPES[wanted]
end

function request()
  turn = turn % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[turn])
end

function done(summary, latency, requests)
  local e = summary.errors
  local wrong = e.connect + e.read + e.write + e.status + e.timeout
  local rate = threads[1]:get("per_request") * summary.requests / summary.duration * 1e6
  print(string.format("%.0f lookups of 64 ids a second, p50 %.2f ms, p99 %.2f ms, %d errors",
    rate, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, wrong))
end
