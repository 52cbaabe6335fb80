"use strict";
// The page itself: data, theme, sorting, downloads. Without scripts all tables stand as they are.
const report = JSON.parse(document.getElementById("data").textContent);
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with attributes and children; text is never read as HTML. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "line", "rect", "text"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A number with at most four digits that matter, thousands apart, and a true minus; never 1.02e+3. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e7)) {
    const [digits, power] = value.toExponential(2).split("e");
    const raised = [...String(+power)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
    return `${+digits} × 10${raised}`.replace("-", "−");
  }
  return (+value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 8 }).replace("-", "−");
}

// ---- theme: system, light, dark
const themes = ["system", "light", "dark"];
function useTheme(theme) {
  if (theme === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  find("#theme").textContent = `Theme: ${theme}`;
  document.dispatchEvent(new Event("theme"));
}
find("#theme").addEventListener("click", () => {
  const now = document.documentElement.getAttribute("data-theme") || "system";
  useTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
find("#print").addEventListener("click", () => window.print());

// ---- sorting: the heads become buttons
function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
}
function sortBy(table, head) {
  const column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
  rows.sort(([a], [b]) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what has no number stands last
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return up ? order : -order;
  });
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
for (const table of all("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.fixed !== undefined) continue;
    const button = make("button", { type: "button" }, ...head.childNodes);
    const says = head.getAttribute("aria-describedby");
    if (says) button.setAttribute("aria-describedby", says);
    head.removeAttribute("aria-describedby");
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortBy(table, head));
  }
}

// ---- explanations: what describes a word is shown while it is pointed at or has the focus
const tip = make("div", { id: "tip", role: "tooltip", hidden: "" });
document.body.append(tip);
const explained = '[aria-describedby^="says-"]';
let closing = 0, told = null;
function showTip(word) {
  const ids = word.getAttribute("aria-describedby").split(" ");
  const parts = ids.map((id) => document.getElementById(id)).filter(Boolean);
  if (!parts.length) return;
  clearTimeout(closing);
  tip.replaceChildren(...parts.map((part) => {
    const name = find("dt", part.closest("div")).cloneNode(true);
    return make("div", {}, make("strong", {}, ...name.childNodes), ": ", part.textContent);
  }));
  tip.hidden = false;
  told = word;
  placeTip();
}
/** Below its word, above it where there is no room; gone with a word that is scrolled away. */
function placeTip() {
  if (tip.hidden) return;
  const box = told.getBoundingClientRect(), { offsetWidth: wide, offsetHeight: high } = tip;
  if (box.bottom < 0 || box.top > innerHeight) { tip.hidden = true; return; }
  const left = Math.max(12, Math.min(box.left, innerWidth - wide - 12));
  const top = box.bottom + high + 10 > innerHeight ? box.top - high - 6 : box.bottom + 6;
  Object.assign(tip.style, { left: `${left}px`, top: `${Math.max(6, top)}px` });
}
const hideTip = () => { tip.hidden = true; };
// a moment's delay, so that the pointer can go over to the explanation
const hideSoon = () => { clearTimeout(closing); closing = setTimeout(hideTip, 180); };
for (const word of all(explained)) {
  word.addEventListener("pointerenter", () => showTip(word));
  word.addEventListener("focus", () => showTip(word));
  word.addEventListener("pointerleave", hideSoon);
  word.addEventListener("blur", hideTip);
}
tip.addEventListener("pointerenter", () => clearTimeout(closing));
tip.addEventListener("pointerleave", hideSoon);
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", placeTip, { passive: true, capture: true });

// ---- one metric of the detectors' table at a time; on paper all of them
const matrices = all(".matrix");
function showMetric(chosen) {
  for (const matrix of matrices) matrix.hidden = matrix !== chosen;
  all("#metrics button").forEach((button, i) => button.setAttribute("aria-pressed", matrices[i] === chosen));
}
if (matrices.length > 1) {
  for (const matrix of matrices) {
    const button = make("button", { type: "button" }, matrix.dataset.title);
    button.addEventListener("click", () => showMetric(matrix));
    find("#metrics").append(button);
  }
  find("#metrics").hidden = false;
  showMetric(matrices[0]);
}

// ---- downloads and the numbers behind a figure
const tables = Object.fromEntries(report.figures.map((figure) => [figure.id, figure.data]));
function csv({ columns, rows }) {
  const quote = (v) => (v === null ? "" : /[",\n\r]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  return [columns, ...rows].map((row) => row.map(quote).join(",")).join("\n") + "\n";
}
function save(file, text, type = "text/csv") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
for (const button of all("[data-csv]")) {
  const name = button.dataset.csv;
  button.addEventListener("click", () => save(`${name}.csv`, report.csv[name] ?? csv(tables[name])));
}
find("#save-card")?.addEventListener("click", () => save("model-card.json", JSON.stringify(report.card, null, 1), "application/json"));
for (const details of all("details[data-numbers]")) {
  details.addEventListener("toggle", () => {
    const box = find("div", details);
    if (box.firstChild) return;
    const { columns, rows } = tables[details.dataset.numbers];
    const head = make("tr", {}, ...columns.map((c) => make("th", { scope: "col" }, c)));
    const body = rows.slice(0, 200).map((row) => make("tr", {}, ...row.map((v) => make("td", {}, short(v)))));
    box.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
    if (rows.length > 200) box.append(make("p", {}, `The first 200 of ${rows.length} rows; the download has all.`));
  });
}
