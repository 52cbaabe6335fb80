"use strict";
// The figures: panels side by side, colours from the page's style, a legend of real buttons.
const probe = make("span", { hidden: "" });
document.body.append(probe);

/** "--hfc" or "--hfc/0.14" as a colour of the theme that is on. */
function colour(token) {
  const [name, alpha] = token.split("/");
  probe.style.color = `var(${name})`;
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
  return `rgba(${r},${g},${b},${alpha ?? 1})`;
}

/** A copy of ``value`` with every colour name replaced. */
function painted(value) {
  if (typeof value === "string") return /^--[a-z]/.test(value) ? colour(value) : value;
  if (Array.isArray(value)) return value.map(painted);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v)]));
  return value;
}

const margin = { right: 14, top: 26, bottom: 50 };
const rowGap = 74;

/** Where panel i of n stands, in pixels, on a drawing of this width. */
function grid({ panels, height, gap }, width) {
  const count = panels.length, left = gap + 10;
  const inner = width - left - margin.right;
  const columns = Math.max(1, Math.min(count, Math.floor((inner + gap) / ((width < 560 ? 110 : 190) + gap))));
  const rows = Math.ceil(count / columns);
  const wide = Math.min((inner - (columns - 1) * gap) / columns, count === 1 ? 860 : 420);
  const high = height - margin.top - margin.bottom;
  const total = margin.top + margin.bottom + rows * high + (rows - 1) * rowGap;
  return { columns, rows, wide, high, inner, total, left };
}

/** The text, or as much of its beginning as there is room for. */
function fitting(text, wide) {
  const most = Math.floor(wide / 7);
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Shares are drawn in per cent, written as everywhere on the page. */
const inPercent = (style) => style.tickformat === ".0%";
function axisOf(style) {
  if (!inPercent(style)) return style;
  const range = style.range?.map((v) => 100 * v);
  return { ...style, tickformat: "", ticksuffix: " %", hoverformat: ".1f", ...(range && { range }) };
}
const times100 = (values) => values.map((v) => (Array.isArray(v) ? times100(v) : v === null ? null : 100 * v));
function traceOf(trace, x, y) {
  const found = { ...trace };
  if (inPercent(x) && found.x) found.x = times100(found.x);
  if (inPercent(y) && found.y) {
    found.y = times100(found.y);
    const ends = found.error_y;
    if (ends) found.error_y = { ...ends, array: times100(ends.array), arrayminus: times100(ends.arrayminus) };
  }
  if (found.type === "heatmap") Object.assign(found, { z: times100(found.z), zmin: 0, zmax: 100 });
  return found;
}

function axis(style, domain, anchor, nticks) {
  const line = colour("--rule");
  return {
    gridcolor: line, linecolor: colour("--soft"), zeroline: false, showline: true, ticks: "outside", ticklen: 4, tickcolor: colour("--soft"),
    nticks, ...painted(axisOf(style)), title: { text: style.title ?? "", font: { size: 12 }, standoff: 8 }, domain, anchor,
  };
}

/** The plotly layout and traces of a figure for this width. */
function composed(figure, width) {
  const g = grid(figure, width);
  const full = g.total - margin.top - margin.bottom;
  const layout = {
    width, height: g.total, showlegend: false, hovermode: "closest", barmode: "group", bargap: 0.3,
    margin: { l: g.left, r: margin.right, t: margin.top, b: margin.bottom },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: colour("--ink") },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--rule"), font: { color: colour("--ink") } },
    annotations: [], shapes: [],
  };
  const traces = [];
  figure.panels.forEach((panel, i) => {
    const id = i ? String(i + 1) : "";
    const left = (i % g.columns) * (g.wide + figure.gap) / g.inner;
    const top = 1 - Math.floor(i / g.columns) * (g.high + rowGap) / full;
    const right = left + g.wide / g.inner;
    const first = i % g.columns === 0;
    layout[`xaxis${id}`] = axis(panel.x, [left, Math.min(1, right)], `y${id}`, g.wide < 200 ? 3 : 6);
    layout[`yaxis${id}`] = axis(first ? panel.y : { ...panel.y, title: "" }, [Math.max(0, top - g.high / full), top], `x${id}`, 6);
    const title = { text: fitting(panel.title, g.wide), hovertext: panel.title, xref: "paper", yref: "paper", x: left, y: top, xanchor: "left", yanchor: "bottom", showarrow: false };
    if (panel.title) layout.annotations.push({ ...title, yshift: 4, font: { size: 13 } });
    for (const [given, text] of panel.marks) {
      const at = inPercent(panel.x) ? 100 * given : given;
      const place = { xref: `x${id}`, yref: `y${id} domain` };
      layout.shapes.push({ ...place, type: "line", x0: at, x1: at, y0: 0, y1: 1, line: { color: colour("--ink"), dash: "dot", width: 1.2 } });
      if (text) layout.annotations.push({ ...place, x: at, y: 1, text, xanchor: "left", yanchor: "top", showarrow: false, font: { size: 10.5 } });
    }
    for (const trace of panel.traces) traces.push({ ...painted(traceOf(trace, panel.x, panel.y)), xaxis: `x${id}`, yaxis: `y${id}` });
  });
  return { layout, traces };
}

const glyphs = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", x: "✖", star: "★", hexagon: "⬢" };

/** The sample of a line or marker that stands on a legend button. */
function swatch(trace) {
  const hue = painted(trace.line?.color ?? trace.marker?.color);
  const svg = make("svg", { width: 22, height: 10, "aria-hidden": "true" });
  const dash = { dash: "5 3", dot: "1.5 2.5", dashdot: "5 2 1.5 2" }[trace.line?.dash] ?? "";
  const shape = trace.type === "bar" ? make("rect", { x: 4, width: 14, height: 10, fill: hue })
    : trace.mode === "markers" ? make("text", { x: 11, y: 9.5, "text-anchor": "middle", "font-size": 11, fill: hue }, glyphs[trace.marker.symbol])
      : make("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: hue, "stroke-width": 2.4, "stroke-dasharray": dash });
  svg.append(shape);
  return svg;
}

function plain(text) {
  return text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
}

function legend(figure, box, redraw) {
  const groups = new Map();
  for (const trace of figure.panels.flatMap((p) => p.traces)) {
    if (trace.legendgroup !== undefined && !groups.has(trace.legendgroup)) groups.set(trace.legendgroup, trace);
  }
  if (groups.size === 1) { // nothing to choose, but the curve has a name
    const [trace] = groups.values();
    box.append(make("span", {}, swatch(trace), plain(trace.name)));
    return;
  }
  for (const [group, trace] of groups) {
    const button = make("button", { type: "button", "aria-pressed": trace.visible !== "legendonly" }, swatch(trace), plain(trace.name));
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", show);
      for (const t of figure.panels.flatMap((p) => p.traces)) if (t.legendgroup === group) t.visible = show ? true : "legendonly";
      redraw();
    });
    box.append(button);
  }
}

const drawn = report.figures.map((figure) => {
  const frame = document.getElementById(`figure-${figure.id}`);
  const plot = find(".plot", frame), box = find(".legend", frame);
  let width = 0;
  const draw = () => {
    width = plot.clientWidth;
    const { layout, traces } = composed(figure, width);
    plot.dataset.drawn = "yes";
    return Plotly.react(plot, traces, layout, { displayModeBar: false });
  };
  find("[data-picture]", frame).addEventListener("click", async () => {
    await draw();
    await Plotly.downloadImage(plot, { format: "svg", filename: figure.id, width, height: plot.clientHeight });
  });
  const fill = () => { box.replaceChildren(); legend(figure, box, draw); };
  fill();
  plot.style.minHeight = `${grid(figure, plot.clientWidth).total}px`;
  const once = new IntersectionObserver((seen) => {
    if (seen.some((s) => s.isIntersecting)) { once.disconnect(); draw(); }
  }, { rootMargin: "600px" });
  once.observe(plot);
  new ResizeObserver(() => {
    plot.style.minHeight = `${grid(figure, plot.clientWidth).total}px`;
    if (plot.dataset.drawn && plot.clientWidth !== width) draw();
  }).observe(plot);
  document.addEventListener("theme", () => { fill(); if (plot.dataset.drawn) draw(); });
  return draw;
});
addEventListener("beforeprint", () => drawn.forEach((draw) => draw()));
