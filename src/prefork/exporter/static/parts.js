// Parts of the page that change with each poll: gauges with their charts, and tables.

// A chart is five minutes wide: one unit for each poll.
const PERIOD = 2000, POINTS = 150, HEIGHT = 30;

const history = new Map();
function keep(name, value, time) {
  const series = history.get(name) || [];
  history.set(name, series);
  if (!Number.isNaN(value)) series.push([time, value]);
  while (series.length && series[0][0] < time - POINTS * PERIOD) series.shift();
  return series;
}

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
  const parts = gauges.get(name) || makeGauge(name), series = keep(name, chart, time);
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
function makeGauge(name) {
  const box = make($("gauges"), "div", "gauge");
  make(box, "h2", "", name);
  const value = make(box, "div", "value");
  const parts = { number: make(value, "span"), unit: make(value, "small"), note: make(box, "div", "note") };
  const size = { viewBox: `0 0 ${POINTS} ${HEIGHT}`, preserveAspectRatio: "none" };
  const svg = draw(box, "svg", { ...size, "aria-hidden": "true" });
  draw(svg, "path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${POINTS}` });
  parts.area = draw(svg, "path", { class: "area" });
  parts.line = draw(svg, "path", { class: "line" });
  parts.peak = make(box, "div", "peak");
  gauges.set(name, parts);
  return parts;
}

// Rows are kept by key, and only their text changes: so a selection and the place of reading stay. The roles are said
// because a table whose rows are cards (page.css) would be none otherwise.
const tables = new Map();
function table(id, columns, rows, none) {
  const parts = tables.get(id) || makeTable(id, columns, none);
  let next = parts.body.firstElementChild;
  for (const row of rows) {
    const line = parts.rows.get(row.key) || makeRow(parts, columns, row.key);
    if (line === next) next = next.nextElementSibling;
    else parts.body.insertBefore(line, next);
    fill(line, columns, row);
  }
  const kept = new Set(rows.map((row) => row.key));
  for (const [key, line] of parts.rows) {
    if (kept.has(key)) continue;
    line.remove();
    parts.rows.delete(key);
  }
  parts.head.hidden = rows.length === 0;
  parts.none.hidden = rows.length > 0;
}
function makeTable(id, columns, none) {
  const element = $(id);
  element.setAttribute("role", "table");
  const head = makeWithRole(element, "thead", "rowgroup"), titles = makeWithRole(head, "tr", "row");
  for (const column of columns) {
    const cell = makeWithRole(titles, "th", "columnheader");
    style(cell, column.kind || "n");
    put(cell, column.name);
    cell.scope = "col";
  }
  const body = makeWithRole(element, "tbody", "rowgroup"), foot = make(element, "tfoot"), empty = make(foot, "tr");
  make(empty, "td", "empty", none).colSpan = columns.length;
  const parts = { head, body, none: foot, rows: new Map() };
  tables.set(id, parts);
  return parts;
}
function makeRow(parts, columns, key) {
  const line = makeWithRole(parts.body, "tr", "row");
  columns.forEach((column, index) => {
    const cell = makeWithRole(line, index ? "td" : "th", index ? "cell" : "rowheader");
    cell.dataset.name = column.name;
    if (!index) cell.scope = "row";
  });
  parts.rows.set(key, line);
  return line;
}
function makeWithRole(parent, tag, role) {
  const element = make(parent, tag);
  element.setAttribute("role", role);
  return element;
}
function fill(line, columns, row) {
  columns.forEach((column, index) => {
    const value = column.of(row), [text, level] = Array.isArray(value) ? value : [value, ""];
    put(line.cells[index], text);
    style(line.cells[index], [column.kind || "n", level].join(" ").trim());
  });
}
