// Poll status.json, keep what rates need, and write it into the page.

const SCHEMA = 2, DEADLINE = 5000, LONGEST_PAUSE = 30000, MEAN = 10, MOST = 8;
// Thresholds of the notice: the same as of the alerts in deploy/prometheus/prefork.rules.yml.
const FULL = 0.8, QUEUED = 0.5, DAYS = 14, LAG = 1;
// Seconds without a heartbeat, of which there are four a second.
const SILENCE = 2;

const REASONS = new Map([
  ["done", "ended"], ["peer_reset", "ended"], ["drain", "asked"], ["kicked", "asked"],
  ["proxy_timeout", "deadline"], ["handshake_timeout", "deadline"], ["first_byte_timeout", "deadline"], ["idle_timeout", "deadline"],
  ["write_timeout", "deadline"], ["max_age", "deadline"], ["read_limit", "bound"], ["unsent_limit", "bound"],
  ["max_connections", "bound"], ["max_connections_per_ip", "bound"], ["descriptors", "bound"],
  ["proxy_untrusted", "failed"], ["proxy_malformed", "failed"],
  ["handler_failed", "failed"], ["handshake_failed", "failed"], ["worker_died", "failed"],
]);

// --- samples: what rates are the differences of
let samples = [];
const keyOf = (worker) => worker.slot + ":" + worker.pid;

function nameOf(series) {
  const labels = Object.entries(series.labels || {}).map(([name, value]) => `${name}=${value}`).join(", ");
  return labels ? `${series.name} {${labels}}` : series.name;
}

// A server that was started anew, or upgraded, counts from zero: rates begin again, charts go on.
function remember(status) {
  const last = samples.at(-1)?.status;
  const again = last && (status.uptime < last.uptime || status.pid !== last.pid ||
    num(status.totals?.accepted) < num(last.totals?.accepted));
  if (again) samples = [];
  else if (last && status.uptime === last.uptime) samples.pop();
  const byKey = (values, key) => new Map(list(values).map((each) => [key(each), each]));
  samples.push({ status, workers: byKey(status.workers, keyOf), service: byKey(status.service, nameOf) });
  while (samples.length > 2 && status.uptime - samples[0].status.uptime > MEAN + 1) samples.shift();
}
function between(from, value) {
  const now = samples.at(-1), seconds = now.status.uptime - from.status.uptime;
  return seconds > 0 ? Math.max(0, value(now) - value(from)) / seconds : NaN;
}
const rate = (value) => between(samples[0], ({ status }) => num(value(status.totals || {})));
const latest = (value) => between(samples.at(-2) || samples[0], ({ status }) => num(value(status.totals || {})));
function workerRate(key, field) {
  return between(samples.find(({ workers }) => workers.has(key)), ({ workers }) => num(workers.get(key)?.[field]));
}

// --- columns of the tables
const lagLevel = (seconds) => (seconds > LAG ? "bad" : seconds > LAG / 10 ? "warn" : "");
const WORKERS = [
  { name: "Slot", kind: "n first", of: (w) => w.slot },
  { name: "PID", kind: "n first", of: (w) => w.pid ?? "–" },
  { name: "State", kind: "text state", of: (w) => [w.says, w.level] },
  { name: "Open", of: (w) => whole(w.open) },
  { name: "Accepts/s", of: (w) => perSecond(w.accepts) },
  { name: "Received/s", kind: "rate", of: (w) => bytes(w.rx) },
  { name: "Sent/s", kind: "rate", of: (w) => bytes(w.tx) },
  { name: "Unsent", kind: "rate", of: (w) => bytes(num(w.unsent)) },
  { name: "Lag p50", of: (w) => lag(w.lag?.p50) },
  { name: "Lag p99", of: (w) => [lag(w.lag?.p99), lagLevel(num(w.lag?.p99))] },
  { name: "CPU", of: (w) => share(w.load) },
  { name: "Memory", kind: "rate", of: (w) => bytes(num(w.rss)) },
  { name: "Age", kind: "rate", of: (w) => (w.age == null ? "–" : span(w.age)) },
  { name: "Restarts", of: (w) => whole(w.restarts) },
  { name: "Last end", kind: "long", of: (w) => w.last_exit ?? "" },
];
const COUNTS = (name) => [
  { name, kind: "long", of: (r) => words(r.key) },
  { name: "Count", of: (r) => whole(r.count) },
];
const ACCOUNT = [
  { name: "Connections", kind: "text", of: (r) => [words(r.key), "swatch " + r.group] },
  { name: "Count", of: (r) => whole(r.count) },
  { name: "Share", of: (r) => percent(r.count, r.all) },
  { name: "Per s", of: (r) => (r.rate == null ? "" : perSecond(r.rate)) },
];
const LISTENERS = [
  { name: "Address", kind: "long", of: (r) => r.listener },
  { name: "Waiting", of: (r) => (r.limit ? [whole(r.waiting), r.waiting > QUEUED * r.limit ? "bad" : ""] : "–") },
  { name: "Queue", of: (r) => (r.limit ? whole(r.limit) : "–") },
];
const CERTIFICATES = [
  { name: "File", kind: "long", of: (r) => r.file },
  { name: "Expires", of: (r) => r.date },
  { name: "Days left", of: (r) => [Math.floor(r.days), r.days < DAYS ? "bad" : r.days < 30 ? "warn" : ""] },
];

const SERVICE = [
  { name: "Metric", kind: "long", of: (r) => r.key },
  { name: "Value", of: (r) => r.value },
  { name: "Per s", of: (r) => (r.rate == null ? "" : perSecond(r.rate)) },
];

// --- what a status shows
const isSilent = (worker) => num(worker.heartbeat_age) > SILENCE;
function stateOf(worker) {
  const state = words(worker.state);
  if (isSilent(worker)) return [`${state}, silent for ${span(worker.heartbeat_age)}`, "bad"];
  if (worker.missing) return [`${state}: ${worker.missing}`, "warn"];
  if (worker.paused) return [`${state}, paused: ${words(worker.paused)}`, "warn"];
  return [state, worker.state === "ready" ? "good" : worker.state === "hung" ? "bad" : "warn"];
}
function workersOf(status) {
  const slots = new Map(list(status.slots).map((slot) => [slot.slot, slot]));
  const rows = list(status.workers).map((worker) => {
    const slot = slots.get(worker.slot) || {};
    const key = keyOf(worker), [says, level] = stateOf(worker);
    return {
      ...worker, key, says, level, restarts: slot.restarts, last_exit: slot.last_exit,
      accepts: workerRate(key, "accepted"), rx: workerRate(key, "received"), tx: workerRate(key, "sent"),
      load: workerRate(key, "cpu"),
    };
  });
  const taken = new Set(rows.map((row) => row.slot));
  for (const slot of slots.values()) {
    if (taken.has(slot.slot)) continue;
    const says = words(slot.state) + (slot.retry_in == null ? "" : `, next try in ${Math.ceil(num(slot.retry_in))} s`);
    rows.push({ ...slot, key: slot.slot + ":", says, level: "bad", open: 0, accepts: 0, rx: 0, tx: 0, load: 0 });
  }
  return rows.sort((a, b) => num(a.slot) - num(b.slot) || num(a.generation) - num(b.generation));
}

function concerns(status, now, ready, p99) {
  const found = [], target = num(status.workers_target), open = num(status.totals?.open), limit = num(status.limit);
  if (status.suspended) found.push("Suspended: new connections wait in the queue");
  if (ready < target) found.push(`${ready} of ${target} workers are ready`);
  if (limit && open > FULL * limit) found.push(`Connections are above ${FULL * 100} % of the limit`);
  for (const { listener, waiting, limit } of list(status.queues)) {
    if (num(limit) && waiting > QUEUED * limit) found.push(`The queue of ${listener} is more than half full`);
  }
  const reload = status.reloads?.last;
  if (reload?.result === "failed") found.push(`The last reload failed: ${plain(reload.reason ?? "no reason known")}`);
  for (const each of list(status.certificates)) {
    const days = (num(each.not_after) - now) / 86400;
    const end = days < 0 ? "has expired" : `expires in ${Math.floor(days)} days`;
    if (days < DAYS) found.push(`Certificate ${each.file} ${end}`);
  }
  if (list(status.workers).some(isSilent)) found.push("A worker's loop does not turn");
  if (p99 > LAG) found.push(`A worker's loop lag (p99) is above ${LAG} s`);
  return found.length > MOST ? [...found.slice(0, MOST), `and ${found.length - MOST} more`] : found;
}

function facts(status, now) {
  const last = status.reloads?.last;
  const reload = last && `${last.result === "ok" ? "reloaded" : "reload failed"} ${ago(now - num(last.at))} ago`;
  return [
    ["up", span(status.uptime)], ["generation", status.generation], ["", status.reloading && "reloading"],
    ["", status.upgrading && "upgrading"], ["", reload],
    ["listening on", list(status.listeners).join(", ")], ["config", status.config], ["pid", status.pid],
    ["prefork", status.version],
  ].filter(([, value]) => value || value === 0);
}
function showFacts(status, now) {
  const items = facts(status, now), box = $("facts");
  while (box.children.length > items.length) box.lastElementChild.remove();
  items.forEach(([name, value], index) => {
    const item = box.children[index] || make(box, "li");
    if (!item.firstElementChild) {
      make(item, "span");
      make(item, "b");
    }
    put(item.firstElementChild, name && name + " ");
    put(item.lastElementChild, value);
  });
}

function showAccount(totals) {
  const accepted = num(totals.accepted), open = num(totals.open), closed = totalOf(totals.closed);
  const known = new Map(counts(totals.closed));
  const names = [...REASONS.keys(), ...[...known.keys()].filter((name) => !REASONS.has(name))];
  const rows = [{ key: "open", group: "open", count: open, all: accepted }];
  for (const key of names.filter((name) => known.get(name) > 0)) {
    const speed = rate((totals) => totals.closed?.[key]);
    rows.push({ key, group: REASONS.get(key) || "ended", count: known.get(key), all: accepted, rate: speed });
  }
  table("account", ACCOUNT, rows, "");
  const difference = accepted - open - closed;
  put($("equation"), `accepted ${whole(accepted)} = open ${whole(open)} + closed ${whole(closed)}` +
    (difference ? `, and ${whole(difference)} unaccounted for` : ""));
  style($("equation"), difference ? "equation bad" : "equation");
  const box = $("shares");
  while (box.children.length > rows.length) box.lastElementChild.remove();
  rows.forEach((row, index) => {
    const part = box.children[index] || make(box, "span");
    style(part, row.group);
    part.hidden = row.count === 0;
    part.style.flexGrow = row.count;
  });
}

function showDurations(histogram) {
  const bounds = list(histogram?.bounds), found = list(histogram?.counts).map(num), peak = Math.max(1, ...found);
  const box = $("durations");
  while (box.children.length > found.length) box.lastElementChild.remove();
  found.forEach((count, index) => {
    const bar = box.children[index] || make(box, "li");
    if (!bar.firstElementChild) {
      make(make(bar, "span", "room"), "span", "bar");
      make(bar, "small", "soft");
    }
    const name = index < bounds.length ? within(num(bounds[index])) : "more";
    bar.title = `${index < bounds.length ? "up to " : ""}${name}: ${whole(count)}`;
    bar.setAttribute("aria-label", bar.title);
    bar.querySelector(".bar").style.height = (100 * count) / peak + "%";
    put(bar.lastElementChild, name);
  });
}

function showService(series) {
  const rows = list(series).map((each) => {
    const key = nameOf(each), kind = each.kind;
    if (kind !== "histogram") {
      const speed = between(samples[0], ({ service }) => num(service.get(key)?.value));
      return { key, value: precise(each.value), rate: kind === "counter" ? speed : null };
    }
    const mean = num(each.count) ? precise(num(each.sum) / num(each.count)) : "–";
    return { key, value: "mean " + mean, rate: between(samples[0], ({ service }) => num(service.get(key)?.count)) };
  });
  $("service").parentElement.hidden = rows.length === 0;
  table("service", SERVICE, rows, "");
}

function show(status, time) {
  remember(status);
  const totals = status.totals || {}, now = status.now ?? num(status.started) + num(status.uptime);
  const workers = workersOf(status), ready = workers.filter((each) => each.state === "ready").length;
  const target = num(status.workers_target), open = num(totals.open), limit = num(status.limit);
  const p99 = Math.max(0, ...workers.map((each) => num(each.lag?.p99)));
  const waiting = sum(list(status.queues).map((each) => num(each.waiting)));
  const room = sum(list(status.queues).map((each) => num(each.limit)));
  const unsent = sum(workers.map((each) => num(each.unsent)));
  const loads = workers.map((each) => each.load).filter((each) => !Number.isNaN(each));
  const load = loads.length ? sum(loads) : NaN;
  const state = status.suspended ? "suspended" : words(status.state);
  const well = status.state === "serving" && !status.suspended && ready >= target;

  put($("state"), state);
  style($("state"), "lamp " + (well ? "good" : ready ? "warn" : "bad"));
  put($("target"), Array.isArray(status.target) ? status.target.join(" ") : status.target);
  document.title = plain(`${well ? "" : "! "}${state} ${ready}/${target} · ${status.target}`);
  showFacts(status, now);
  const found = concerns(status, now, ready, p99);
  lines($("notice"), found.length ? found : ["Nothing needs attention."]);
  style($("notice"), found.length ? "bad" : "");

  gauge("Workers ready", ready, "of " + target, "", ready < target ? "bad" : "", ready, time, null, target);
  const full = limit && open > FULL * limit ? "bad" : "";
  gauge("Connections", whole(open), "", limit ? `${percent(open, limit)} of ${short(limit)}` : "no limit", full, open, time,
    whole);
  for (const [name, field, shown, note] of [
    ["Accepts/s", "accepted", perSecond, ""],
    ["Received/s", "received", bytes, ""],
    ["Sent/s", "sent", bytes, unsent ? bytes(unsent) + " unsent" : ""],
  ]) {
    const value = (totals) => totals[field];
    gauge(name, shown(rate(value)), "", note, "", latest(value), time, shown);
  }
  const queued = room && waiting > QUEUED * room ? "bad" : "";
  gauge("Queue", whole(waiting), "", room ? "of " + short(room) : "", queued, waiting, time, whole);
  gauge("Loop lag p99", lag(p99), "", "slowest", lagLevel(p99), p99, time, lag);
  gauge("CPU of workers", share(load), "", bytes(sum(workers.map((each) => num(each.rss)))), "", load, time, share);

  table("workers", WORKERS, workers, "No worker runs.");
  showAccount(totals);
  showDurations(totals.durations);
  showService(status.service);
  const queues = new Map(list(status.queues).map((each) => [each.listener, each]));
  table("listeners", LISTENERS, list(status.listeners).map((listener) => {
    const queue = queues.get(listener) || queues.get(String(listener).replace(/ \([^()]*\)$/, "")) || {};
    return { key: listener, listener, waiting: num(queue.waiting), limit: num(queue.limit) };
  }), "No address.");
  const rows = (value) => counts(value).filter(([, count]) => count > 0).map(([key, count]) => ({ key, count }));
  table("refusals", COUNTS("Reason"), rows(totals.refusals), "Nothing was refused.");
  table("deaths", COUNTS("Cause"), rows(status.deaths), "No worker has ended unasked.");
  table("handshakes", COUNTS("Result"), rows(totals.handshakes), "No TLS handshake.");
  table("certificates", CERTIFICATES, list(status.certificates).map((each) => ({
    key: each.file, file: each.file, days: (num(each.not_after) - now) / 86400,
    date: day(num(each.not_after)),
  })), "No certificate.");
}

// --- the feed: one request at a time, each with a deadline, and none while the page is hidden
let timer = 0, failures = 0, asking = false, answered = performance.now(), problem = "";

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const [status, found] = await ask();
  asking = false;
  problem = found;
  if (status) {
    answered = performance.now();
    try {
      show(status, answered);
    } catch (error) {
      // Polling goes on: the next answer may be as expected.
      problem = "the answer cannot be shown";
      console.error(error);
    }
  }
  failures = problem ? failures + 1 : 0;
  tell();
  timer = setTimeout(poll, Math.min(LONGEST_PAUSE, PERIOD * 2 ** Math.min(failures, 5)));
}
// Return the status and "", or null and what is wrong.
async function ask() {
  const abort = new AbortController(), limit = setTimeout(() => abort.abort(), DEADLINE);
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: abort.signal });
    if (!response.ok) return [null, `the answer is ${response.status}`];
    const status = await response.json();
    return status?.schema === SCHEMA ? [status, ""] : [null, "the server is of another version: load this page again"];
  } catch {
    return [null, "no answer"];
  } finally {
    clearTimeout(limit);
  }
}
function tell() {
  const silent = (performance.now() - answered) / 1000;
  document.body.classList.toggle("stale", failures > 0 && silent > (2 * PERIOD) / 1000);
  style($("feed"), failures > 1 ? "bad" : failures ? "warn" : "");
  put($("feed"), failures ? `${problem}; numbers are ${span(silent)} old` : `live, every ${PERIOD / 1000} s`);
  if (failures === 2) {
    lines($("notice"), ["The server does not answer."]);
    style($("notice"), "bad");
    put($("state"), "no answer");
    style($("state"), "lamp bad");
    document.title = "! no answer · " + document.title.replace(/^.* · /, "");
  }
}
// While there is no answer, the age of the numbers goes on.
setInterval(() => failures && !document.hidden && tell(), 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) put($("feed"), "paused while hidden");
  else poll();
});

$("live").hidden = false;
put($("feed"), "asking");
poll();
