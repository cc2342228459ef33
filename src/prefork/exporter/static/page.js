"use strict";
// Poll status.json, keep five minutes of it, and write numbers into the page. All text goes through `put`: what peers
// and workers have written is never parsed as HTML.

// One poll is one unit of a chart's width, so a chart of five minutes has 150 points.
const PERIOD = 2000, DEADLINE = 5000, LONGEST_PAUSE = 30000, POINTS = 150;
const MEAN = 10, ROWS = 1024, TEXT = 300, MOST = 8;
// Thresholds of the notice: the same as of the alerts in deploy/prometheus/prefork.rules.yml.
const FULL = 0.8, QUEUED = 0.5, DAYS = 14, LAG = 1;

const REASONS = new Map([
  ["done", "ended"], ["peer_reset", "ended"], ["drain", "asked"], ["kicked", "asked"],
  ["handshake_timeout", "deadline"], ["first_byte_timeout", "deadline"], ["idle_timeout", "deadline"],
  ["write_timeout", "deadline"], ["max_age", "deadline"], ["read_limit", "bound"], ["unsent_limit", "bound"],
  ["max_connections", "bound"], ["max_connections_per_ip", "bound"], ["descriptors", "bound"],
  ["handler_failed", "failed"], ["handshake_failed", "failed"], ["worker_died", "failed"],
]);

const $ = (id) => document.getElementById(id);
const num = (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0);
const list = (value) => (Array.isArray(value) ? value.slice(0, ROWS) : []);
const counts = (value) => Object.entries(value || {}).slice(0, ROWS).map(([name, count]) => [name, num(count)]);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const totalOf = (value) => sum(counts(value).map(([, count]) => count));
const words = (name) => String(name).replaceAll("_", " ");

// Controls and overrides of direction are shown by their code: otherwise a name could reorder the line around it.
function plain(value) {
  return String(value ?? "–").slice(0, TEXT).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu,
    (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
}
function put(element, value) {
  const text = plain(value);
  if (element.textContent !== text) element.textContent = text;
}
function style(element, name) {
  if (element.className !== name) element.className = name;
}
function make(parent, tag, className = "", text = "") {
  const element = parent.appendChild(document.createElement(tag));
  if (className) element.className = className;
  if (text) put(element, text);
  return element;
}
function lines(box, texts) {
  while (box.children.length > texts.length) box.lastElementChild.remove();
  texts.forEach((text, index) => put(box.children[index] || make(box, "li"), text));
}
function draw(parent, tag, attributes) {
  const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Numbers ---------------------------------------------------------------------------------------------------------
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const digits = (value) => (value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : value.toFixed(0));
const whole = (value) => grouped.format(num(value));
// A rate is NaN until there are two samples.
const short = (value) => (Number.isNaN(value) ? "–" : value < 1e6 ? whole(value) : value < 1e9 ? digits(value / 1e6) + " M" : digits(value / 1e9) + " G");
const perSecond = (value) => (value > 0 && value < 9.95 ? value.toFixed(1) : short(value));
function bytes(value) {
  if (Number.isNaN(value)) return "–";
  if (value < 1000) return whole(value) + " B";
  const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  for (value /= 1024; value >= 1000 && unit < units.length - 1; value /= 1024) unit++;
  return digits(value) + " " + units[unit];
}
function span(seconds) {
  const s = Math.max(0, Math.floor(num(seconds)));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " m " + (s % 60) + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " m";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}
// How long ago, without digits that change at each poll.
const ago = (s) => (s < 60 ? "less than a minute" : span(s).replace(/ \d+ [sm]$/, ""));
function lag(seconds) {
  if (typeof seconds !== "number") return "–";
  return seconds < 0.9995 ? digits(seconds * 1000) + " ms" : digits(seconds) + " s";
}
function day(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "–" : date.toISOString().slice(0, 10);
}
function within(seconds) {
  const units = [[86400, " d"], [3600, " h"], [60, " m"], [1, " s"], [0, " ms"]];
  const [size, unit] = units.find(([size]) => seconds >= size);
  return (size ? seconds / size : seconds * 1000).toFixed(0) + unit;
}
const share = (value) => (Number.isNaN(value) ? "–" : (value * 100).toFixed(0) + " %");
const percent = (part, all) => (all > 0 ? ((100 * part) / all).toFixed(1) + " %" : "–");

// Samples ---------------------------------------------------------------------------------------------------------
let samples = [];
const history = new Map();

// A server that was started anew, or upgraded, counts from zero: rates begin again, charts go on after a gap.
function remember(status) {
  const last = samples.at(-1);
  const again = last && (status.uptime < last.uptime || status.pid !== last.pid ||
    num(status.totals?.accepted) < num(last.totals?.accepted));
  if (again) samples = [];
  if (!again && last && status.uptime === last.uptime) samples.pop();
  samples.push(status);
  while (samples.length > 2 && status.uptime - samples[0].uptime > MEAN + 1) samples.shift();
}
function rate(value, from = samples[0]) {
  const now = samples.at(-1), seconds = now.uptime - from.uptime;
  return seconds > 0 ? Math.max(0, value(now) - value(from)) / seconds : NaN;
}
const latest = (value) => rate(value, samples.at(-2) || samples[0]);
function workerRate(worker, value) {
  const same = (each) => each.slot === worker.slot && each.pid === worker.pid;
  const from = samples.find((sample) => list(sample.workers).some(same));
  return rate((sample) => value(list(sample.workers).find(same) || {}), from);
}
function keep(name, value, time) {
  const series = history.get(name) || [];
  history.set(name, series);
  if (!Number.isNaN(value)) series.push([time, value]);
  while (series.length && series[0][0] < time - POINTS * PERIOD) series.shift();
  return series;
}

// Charts ----------------------------------------------------------------------------------------------------------
const HEIGHT = 30;
// Points further apart than three polls are not joined, because nothing was seen in between.
function stretches(series) {
  const found = [];
  for (const point of series) {
    const last = found.at(-1)?.at(-1);
    if (last && point[0] - last[0] <= 3 * PERIOD) found.at(-1).push(point);
    else found.push([point]);
  }
  return found;
}
function paths(series, top, time) {
  const x = (at) => (POINTS - (time - at) / PERIOD).toFixed(1);
  const y = (value) => (HEIGHT - 1 - ((HEIGHT - 3) * value) / top).toFixed(1);
  let line = "", area = "";
  for (const points of stretches(series)) {
    const joined = points.map(([at, value]) => x(at) + " " + y(value)).join("L");
    line += "M" + joined;
    area += `M${x(points[0][0])} ${HEIGHT}L${joined}L${x(points.at(-1)[0])} ${HEIGHT}Z`;
  }
  return [line, area];
}

const gauges = new Map();
function gauge(name, value, unit, note, level, chart, time, shown, top = 0) {
  let parts = gauges.get(name);
  if (!parts) {
    const box = make($("gauges"), "div", "gauge");
    make(box, "h2", "", name);
    const number = make(box, "div", "value");
    parts = { number: make(number, "span"), unit: make(number, "small"), note: make(box, "div", "note") };
    const svg = draw(box, "svg", { viewBox: `0 0 ${POINTS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    draw(svg, "path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${POINTS}` });
    parts.area = draw(svg, "path", { class: "area" });
    parts.line = draw(svg, "path", { class: "line" });
    parts.peak = make(box, "div", "peak");
    gauges.set(name, parts);
  }
  const series = keep(name, chart, time);
  const peak = Math.max(0, ...series.map(([, each]) => each));
  put(parts.number, value);
  put(parts.unit, unit ? " " + unit : "");
  put(parts.note, note);
  put(parts.peak, shown ? "max " + shown(peak) : "");
  style(parts.note, "note " + level);
  const [line, area] = paths(series, Math.max(peak, top) || 1, time);
  parts.line.setAttribute("d", line);
  parts.area.setAttribute("d", area);
}

// Tables: rows are kept by key and only their text changes, so that a selection and the scroll position stay ------------
const tables = new Map();
function table(id, columns, rows, none) {
  let parts = tables.get(id);
  if (!parts) {
    const element = $(id);
    element.setAttribute("role", "table");
    const head = make(element, "thead"), row = make(head, "tr"), body = make(element, "tbody");
    head.setAttribute("role", "rowgroup");
    body.setAttribute("role", "rowgroup");
    row.setAttribute("role", "row");
    for (const column of columns) {
      const cell = make(row, "th", column.kind || "n", column.name);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
    }
    parts = { head, body, rows: new Map(), empty: null };
    tables.set(id, parts);
  }
  const seen = new Set();
  let previous = null;
  for (const row of rows) {
    const line = parts.rows.get(row.key) || line_of(parts, columns, row.key);
    seen.add(row.key);
    columns.forEach((column, index) => {
      const value = column.of(row), cell = line.cells[index];
      const [text, level] = Array.isArray(value) ? value : [value, ""];
      put(cell, text);
      style(cell, [column.kind || "n", level].join(" ").trim());
    });
    const next = previous ? previous.nextElementSibling : parts.body.firstElementChild;
    if (next !== line) parts.body.insertBefore(line, next);
    previous = line;
  }
  for (const [key, line] of parts.rows) {
    if (seen.has(key)) continue;
    line.remove();
    parts.rows.delete(key);
  }
  parts.head.hidden = rows.length === 0;
  if (rows.length && parts.empty) {
    parts.empty.remove();
    parts.empty = null;
  } else if (!rows.length && !parts.empty) {
    parts.empty = make(parts.body, "tr");
    make(parts.empty, "td", "empty", none).colSpan = columns.length;
  }
}
function line_of(parts, columns, key) {
  const line = make(parts.body, "tr");
  line.setAttribute("role", "row");
  columns.forEach((column, index) => {
    const cell = make(line, index ? "td" : "th");
    cell.dataset.name = column.name;
    cell.setAttribute("role", index ? "cell" : "rowheader");
    if (!index) cell.scope = "row";
  });
  parts.rows.set(key, line);
  return line;
}

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
  { name: "Lag p99", of: (w) => [lag(w.lag?.p99), num(w.lag?.p99) > LAG ? "bad" : num(w.lag?.p99) > LAG / 10 ? "warn" : ""] },
  { name: "CPU", of: (w) => share(w.load) },
  { name: "Memory", kind: "rate", of: (w) => bytes(num(w.rss)) },
  { name: "Age", kind: "rate", of: (w) => (w.age == null ? "–" : span(w.age)) },
  { name: "Restarts", of: (w) => whole(w.restarts) },
  { name: "Last end", kind: "long", of: (w) => w.last_exit ?? "" },
];
const COUNTS = (name) => [{ name, kind: "long", of: (r) => words(r.key) }, { name: "Count", of: (r) => whole(r.count) }];
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

// The page --------------------------------------------------------------------------------------------------------
function workersOf(status) {
  const slots = new Map(list(status.slots).map((slot) => [slot.slot, slot]));
  const rows = list(status.workers).map((worker) => {
    const slot = slots.get(worker.slot) || {};
    const says = worker.paused ? `${worker.state}, paused: ${words(worker.paused)}` : words(worker.state);
    const level = worker.state !== "ready" ? (worker.state === "hung" ? "bad" : "warn") : worker.paused ? "warn" : "good";
    return {
      ...worker, key: worker.slot + ":" + worker.pid, says, level, restarts: slot.restarts, last_exit: slot.last_exit,
      accepts: workerRate(worker, (w) => num(w.accepted)), rx: workerRate(worker, (w) => num(w.received)),
      tx: workerRate(worker, (w) => num(w.sent)), load: workerRate(worker, (w) => num(w.cpu)),
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
  for (const queue of list(status.queues)) {
    if (num(queue.limit) && queue.waiting > QUEUED * queue.limit) found.push(`The queue of ${queue.listener} is more than half full`);
  }
  const reload = status.reloads?.last;
  if (reload?.result === "failed") found.push(`The last reload failed: ${plain(reload.reason ?? "no reason known")}`);
  for (const each of list(status.certificates)) {
    const days = (num(each.not_after) - now) / 86400;
    if (days < DAYS) found.push(days < 0 ? `Certificate ${each.file} has expired` : `Certificate ${each.file} expires in ${Math.floor(days)} days`);
  }
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
    const each = (sample) => num(sample.totals?.closed?.[key]);
    rows.push({ key, group: REASONS.get(key) || "ended", count: known.get(key), all: accepted, rate: rate(each) });
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
    const name = index < bounds.length ? "≤ " + within(num(bounds[index])) : "more";
    bar.title = `${name}: ${whole(count)}`;
    bar.setAttribute("aria-label", bar.title);
    bar.querySelector(".bar").style.height = (100 * count) / peak + "%";
    put(bar.lastElementChild, name);
  });
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
  const load = sum(workers.map((each) => each.load));
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
  gauge("Connections", whole(open), "", limit ? `${percent(open, limit)} of ${short(limit)}` : "no limit",
    limit && open > FULL * limit ? "bad" : "", open, time, whole);
  for (const [name, field, shown, note] of [["Accepts/s", "accepted", perSecond, ""], ["Received/s", "received", bytes, ""],
    ["Sent/s", "sent", bytes, unsent ? bytes(unsent) + " unsent" : ""]]) {
    const value = (sample) => num(sample.totals?.[field]);
    gauge(name, shown(rate(value)), "", note, "", latest(value), time, shown);
  }
  gauge("Queue", whole(waiting), "", room ? "of " + short(room) : "", room && waiting > QUEUED * room ? "bad" : "", waiting,
    time, whole);
  gauge("Loop lag p99", lag(p99), "", "slowest", p99 > LAG ? "bad" : p99 > LAG / 10 ? "warn" : "", p99, time, lag);
  gauge("CPU of workers", share(load), "", bytes(sum(workers.map((each) => num(each.rss)))), "", load, time, share);

  table("workers", WORKERS, workers, "No worker runs.");
  showAccount(totals);
  showDurations(totals.durations);
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

// The feed: one request at a time, with a deadline; pauses grow while there is no answer; none while the page is hidden ---
let timer = 0, failures = 0, asking = false, answered = performance.now();

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const abort = new AbortController(), limit = setTimeout(() => abort.abort(), DEADLINE);
  let problem = "";
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: abort.signal, credentials: "same-origin" });
    if (!response.ok) throw new Error(`the answer is ${response.status}`);
    const status = await response.json();
    if (status?.schema !== 2) throw new Error("the server has another version: load this page again");
    answered = performance.now();
    show(status, answered);
  } catch (error) {
    problem = error.name === "AbortError" || error instanceof TypeError ? "no answer" : error.message;
  }
  clearTimeout(limit);
  asking = false;
  failures = problem ? failures + 1 : 0;
  tell(problem);
  timer = setTimeout(poll, Math.min(LONGEST_PAUSE, PERIOD * 2 ** Math.min(failures, 5)));
}
function tell(problem) {
  const silent = (performance.now() - answered) / 1000;
  document.body.classList.toggle("stale", failures > 0 && silent > (2 * PERIOD) / 1000);
  style($("feed"), failures > 1 ? "bad" : failures ? "warn" : "");
  put($("feed"), failures ? `${problem}; numbers are ${span(silent)} old` : `live, every ${PERIOD / 1000} s`);
  if (failures === 2) {
    lines($("notice"), ["The server does not answer."]);
    style($("notice"), "bad");
  }
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) put($("feed"), "paused while hidden");
  else poll();
});

$("live").hidden = false;
put($("feed"), "asking");
poll();
