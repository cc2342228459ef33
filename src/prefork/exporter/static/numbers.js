"use strict";
// Numbers and words as text, and text into the page. All text goes through `put`: what peers and workers have written
// is never parsed as HTML.

const ROWS = 1024, TEXT = 300;

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

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const digits = (value) => (value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : value.toFixed(0));
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const precise = (value) => (Math.abs(num(value)) < 1 ? String(+num(value).toPrecision(3)) : exact.format(num(value)));
const whole = (value) => grouped.format(num(value));
// A rate is NaN until there are two samples.
function short(value) {
  if (Number.isNaN(value)) return "–";
  if (value < 1e6) return whole(value);
  return value < 1e9 ? digits(value / 1e6) + " M" : digits(value / 1e9) + " G";
}
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
