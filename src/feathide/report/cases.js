"use strict";
// The case browser: exact stored levels, from which window, difference and slices are computed here.
if (report.browser.cases.length) {
  const { cases, pictures, classes, thresholds, names, layers, scale, amplify } = report.browser;
  const byId = (id) => document.getElementById(id);
  const level = () => byId("case-level").value;
  const span = scale.levels - 1;
  const native = (value) => scale.low + (value / span) * (scale.high - scale.low);
  const views = ["clean", "adversarial", "difference"];
  const spoken = { clean: "Clean", adversarial: "Attacked", difference: "Difference" };
  let shown = [];

  // ---- pictures: a PNG of grey planes becomes levels (C, D, H, W)
  const decoded = new Map();
  async function planes(index, [channels, ...space]) {
    if (decoded.has(index)) return decoded.get(index);
    const image = new Image();
    image.src = `data:image/png;base64,${pictures[index]}`;
    await image.decode();
    const canvas = make("canvas", { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, image.width, image.height).data;
    const [height, width] = space.slice(-2), depth = space.length > 2 ? space[0] : 1;
    const count = channels * depth, across = image.width / width, size = height * width;
    const levels = new Uint16Array(count * size);
    for (let plane = 0; plane < count * (scale.bits / 8); plane++) {
      const x0 = (plane % across) * width, y0 = Math.floor(plane / across) * height;
      const shift = plane >= count ? 8 : 0, base = (plane % count) * size;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) levels[base + y * width + x] |= pixels[4 * ((y0 + y) * image.width + x0 + x)] << shift;
      }
    }
    if (decoded.size > 40) decoded.clear();
    decoded.set(index, levels);
    return levels;
  }
  async function load(picture) {
    const [clean, delta] = await Promise.all([planes(picture.clean, picture.shape), planes(picture.delta, picture.shape)]);
    const mask = 2 ** scale.bits - 1;
    const [channels, ...space] = picture.shape;
    return { channels, space: space.length > 2 ? space : [1, ...space], clean, adversarial: clean.map((v, i) => (v + delta[i]) & mask) };
  }


  // ---- what the guards say
  function flagged(item, detector) {
    const score = item.scores[detector], limit = thresholds[detector]?.[level()];
    return score !== null && limit !== undefined && limit !== null && score > limit;
  }
  const guards = Object.keys(thresholds).filter((d) => cases.some((c) => d in c.scores));
  const slips = (item, detector) => item.fooled && detector in item.scores && !flagged(item, detector);
  const filters = [
    ["all cases", () => true],
    ["slipped through every guard", (c) => guards.every((d) => slips(c, d))],
    ["slipped through some guard", (c) => guards.some((d) => slips(c, d))],
    ["caught by every guard", (c) => guards.every((d) => flagged(c, d))],
    ["classifier not fooled", (c) => !c.fooled],
    ...guards.map((d) => [`slipped through ${names[d]}`, (c) => slips(c, d)]),
    ...guards.map((d) => [`caught by ${names[d]}`, (c) => flagged(c, d)]),
  ];
  const className = (k) => classes[k] ?? `class ${k}`;

  /** The word for what a guard does, and how the page colours it. */
  function answer(item, detector) {
    if (flagged(item, detector)) return ["caught", "alarm"];
    return item.fooled ? ["missed", "no alarm"] : ["silent", "no alarm"];
  }
  function meter(value, scaleTo, mark) {
    const svg = make("svg", { class: "meter", "aria-hidden": "true" });
    const bar = make("rect", { x: 0, y: 2, height: 8, width: `${Math.max(0, Math.min(100, (100 * value) / scaleTo))}%` });
    const one = make("line", { x1: `${(100 * mark) / scaleTo}%`, x2: `${(100 * mark) / scaleTo}%`, y1: 0, y2: 12 });
    svg.append(bar, one);
    return svg;
  }

  /** One case on the page: "" is the chosen one, "-beside" the one that is kept beside it. */
  function pane(suffix) {
    const at = (name) => byId(name + suffix);
    let item = null, volume = null, turn = 0;

    function evidence() {
      const row = (head, ...cells) => make("tr", {}, make("th", { scope: "row" }, head), ...cells);
      const cell = (text) => make("td", {}, text);
      find("tbody", at("case-scores")).replaceChildren(...Object.keys(item.scores).map((d) => {
        const [kind, text] = answer(item, d);
        const word = make("span", { class: `word ${kind}` }, text);
        return row(names[d] ?? d, cell(short(item.clean_scores[d])), cell(short(item.scores[d])), cell(short(thresholds[d]?.[level()])), cell(word));
      }));
      const energies = Object.entries(item.energies), top = Math.max(2, ...energies.map(([, v]) => v));
      at("case-energies").hidden = !energies.length;
      find("tbody", at("case-energies")).replaceChildren(...energies.map(([name, v]) => row(layers[name] ?? name, cell(short(v)), cell(meter(v, top, 1)))));
    }
    function describe() {
      const past = guards.filter((d) => slips(item, d)).map((d) => names[d]);
      const fooled = item.fooled ? `The classifier is fooled: ${className(item.label)} is taken for ${className(item.predicted)}.`
        : `The classifier is not fooled: it says ${className(item.predicted)}.`;
      const guard = !item.fooled ? "" : past.length ? ` It slips through ${past.join(", ")}.` : " Every guard raises the alarm.";
      at("case-title").textContent = item.id;
      at("case-outcome").textContent = `${item.condition}. ${fooled}${guard}`;
      evidence();
    }
    /** The visible plane: its height, width, and the index of (channel, row, column) in the volume. */
    function plane() {
      const [depth, height, width] = volume.space, size = depth * height * width, slice = +byId("slice").value;
      const [h, w, place] = [
        [height, width, (y, x) => (slice * height + y) * width + x],
        [depth, width, (y, x) => (y * height + slice) * width + x],
        [depth, height, (y, x) => (y * height + x) * width + slice],
      ][+byId("axis").value];
      return { h, w, index: (c, y, x) => c * size + place(y, x) };
    }
    function paint() {
      if (!volume) return;
      const { h, w, index } = plane();
      const low = +byId("level").value - byId("window").value / 2, factor = 255 / byId("window").value;
      const gain = 2 ** byId("amplify").value / span;
      const [over, under, none] = ["--brighter", "--darker", "--paper"].map((name) => colour(name).match(/\d+/g));
      for (const view of views) {
        const canvas = at(`view-${view}`);
        canvas.width = w; canvas.height = h;
        const context = canvas.getContext("2d"), image = context.createImageData(w, h);
        for (let y = 0, out = 0; y < h; y++) {
          for (let x = 0; x < w; x++, out += 4) {
            for (let c = 0; c < 3; c++) {
              const i = index(volume.channels === 3 ? c : 0, y, x);
              if (view !== "difference") { image.data[out + c] = (volume[view][i] - low) * factor; continue; }
              const d = Math.max(-1, Math.min(1, (volume.adversarial[i] - volume.clean[i]) * gain));
              image.data[out + c] = volume.channels === 3 ? 128 + 127 * d : +none[c] + Math.abs(d) * ((d > 0 ? over : under)[c] - none[c]);
            }
            image.data[out + 3] = 255;
          }
        }
        context.putImageData(image, 0, 0);
      }
    }
    /** Describe a case at once, and paint it when its pictures are decoded. */
    async function show(chosen) {
      item = chosen;
      describe();
      const mine = ++turn;
      const loaded = item.picture && await load(item.picture);
      if (mine !== turn) return false; // another case was chosen meanwhile
      volume = loaded;
      for (const view of views) at(`view-${view}`).setAttribute("aria-label", `${spoken[view]} image of ${item.id}`);
      find(".views", at("case")).hidden = !volume;
      at("case-probe").textContent = volume ? "Point at an image to read its values."
        : "The pictures of this case were left out to keep the page small; they are in the run's folder.";
      return true;
    }
    for (const view of views) {
      at(`view-${view}`).setAttribute("aria-label", `${spoken[view]} image`);
      at(`view-${view}`).addEventListener("pointermove", (event) => {
        const { h, w, index } = plane(), box = event.target.getBoundingClientRect();
        const x = Math.min(w - 1, Math.floor(((event.clientX - box.left) / box.width) * w));
        const y = Math.min(h - 1, Math.floor(((event.clientY - box.top) / box.height) * h));
        const parts = [...Array(volume.channels).keys()].map((c) => {
          const [a, b] = [volume.clean, volume.adversarial].map((v) => native(v[index(c, y, x)]));
          return `${short(a)} becomes ${short(b)} (${b > a ? "+" : ""}${short(b - a)} ${scale.unit})`;
        });
        at("case-probe").textContent = `Row ${y + 1}, column ${x + 1}: ${parts.join("; ")}`;
      });
    }
    return {
      show, paint,
      again: () => { if (item) describe(); },
      drop: () => { item = volume = null; turn++; },
      get item() { return item; },
      get volume() { return volume; },
    };
  }
  const main = pane(""), beside = pane("-beside");

  // ---- slices, and what the sliders say
  function busiest({ space: [depth, height, width], clean, adversarial }) {
    const size = height * width;
    const sums = new Float64Array(depth);
    clean.forEach((v, i) => { sums[Math.floor(i / size) % depth] += Math.abs(adversarial[i] - v); });
    const most = [...sums.keys()].filter((i) => sums[i] >= 0.9 * Math.max(...sums)), middle = (depth - 1) / 2;
    return most.reduce((a, b) => (Math.abs(b - middle) < Math.abs(a - middle) ? b : a));
  }
  function fitSlices(at) {
    const count = main.volume.space[+byId("axis").value];
    byId("slice").max = count - 1;
    byId("slice").value = at ?? Math.floor(count / 2);
    for (const label of all("[data-volume]")) label.hidden = main.volume.space[0] === 1;
  }
  function say() {
    const unit = scale.unit, gain = 2 ** byId("amplify").value, full = (scale.high - scale.low) / gain;
    const put = (id, text) => { find(`output[for="${id}"]`).textContent = text; byId(id).setAttribute("aria-valuetext", text); };
    put("amplify", `× ${gain} (± ${short(+full.toPrecision(2))})`);
    byId("amplify").title = `Full colour is a change of ${short(full)} ${unit}`;
    put("slice", `${+byId("slice").value + 1} of ${+byId("slice").max + 1}`);
    put("window", short((byId("window").value / span) * (scale.high - scale.low)));
    put("level", short(native(+byId("level").value)));
  }
  function paint() {
    main.paint();
    beside.paint();
    if (main.volume) say();
  }

  // ---- addresses: #case=pgd+hfc/name, or the name alone; &beside= for the case that is kept
  const address = (item) => encodeURIComponent(item.key);
  function hash() {
    const kept = beside.item ? `&beside=${address(beside.item)}` : "";
    return `#case=${address(main.item)}${kept}`;
  }
  const called = (key) => cases.find((c) => c.key === key) ?? cases.find((c) => c.id === key);
  function asked() {
    // a plus sign stands for itself here
    const fields = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
    return ["case", "beside"].map((name) => (fields.has(name) ? [fields.get(name), called(fields.get(name))] : null));
  }
  function link(remember) {
    byId("case-link").href = hash();
    if (remember) history.replaceState(null, "", hash());
  }

  // ---- the list: one stop of the Tab key, arrows, Home and End within it
  /** Scrolls the list, not the page, until the button is seen. */
  function reveal(button) {
    const box = byId("case-list"), top = button.offsetTop - box.offsetTop;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + button.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + button.offsetHeight - box.clientHeight;
  }
  function mark(item, focus) {
    for (const button of all("#case-list button")) {
      const on = shown[+button.dataset.at] === item;
      button.setAttribute("aria-current", on);
      button.tabIndex = on ? 0 : -1;
      if (on && focus) button.focus({ preventScroll: true });
      if (on) reveal(button);
    }
  }
  async function select(item, { focus = false, remember = false } = {}) {
    mark(item, focus);
    const ready = main.show(item);
    link(remember);
    if (!await ready) return;
    find(".sliders").hidden = !main.volume;
    if (main.volume) {
      if (main.volume.space[0] === 1) byId("axis").value = "0";
      fitSlices(byId("axis").value === "0" ? busiest(main.volume) : undefined);
      paint();
    }
    byId("case").dataset.ready = item.id;
  }
  async function keep(item) {
    byId("case-beside").hidden = false;
    find(".panes").classList.add("two");
    if (await beside.show(item)) beside.paint();
    byId("case-beside").dataset.ready = item.id;
  }
  function list() {
    const attack = byId("case-attack").value, test = filters[+byId("case-filter").value][1];
    const words = byId("case-search").value.trim().toLowerCase();
    const text = (c) => `${c.id} ${className(c.label)} ${className(c.predicted)}`.toLowerCase();
    shown = cases.filter((c) => (!attack || c.condition === attack) && test(c) && text(c).includes(words));
    byId("case-count").textContent = shown.length ? `${shown.length} of ${cases.length} cases` : `no case fits, of ${cases.length}`;
    byId("case-list").replaceChildren(...shown.map((item, i) => {
      const past = guards.filter((d) => slips(item, d)).length;
      const note = item.fooled ? `${item.condition} · past ${past} of ${guards.length} guards` : `${item.condition} · not fooled`;
      const button = make("button", { type: "button", "data-at": i }, item.id, make("span", {}, note));
      button.addEventListener("click", () => select(item, { remember: true }));
      return make("li", {}, button);
    }));
    byId("case-list").hidden = byId("case-shown").hidden = !shown.length;
    byId("case-none").hidden = shown.length > 0;
    beside.again();
    if (shown.includes(main.item)) select(main.item);
    else if (shown.length) select(shown[0]);
  }
  function showAll() {
    byId("case-attack").value = byId("case-search").value = "";
    byId("case-filter").value = "0";
    list();
  }
  /** Show the case that the address names, if it names one. */
  function openAsked() {
    const [chosen, kept] = asked();
    if (!chosen) return;
    const [key, item] = chosen;
    showAll();
    byId("cases").scrollIntoView();
    if (!item) { byId("case-count").textContent = `This report has no case ${key}.`; return; }
    select(item);
    if (kept?.[1]) keep(kept[1]).then(() => link(false));
    byId("browser").scrollIntoView();
  }

  // ---- the controls
  const option = (value, text) => make("option", { value }, text);
  byId("case-attack").append(option("", "all"), ...[...new Set(cases.map((c) => c.condition))].map((c) => option(c, c)));
  byId("case-filter").append(...filters.map(([text], i) => option(i, text)));
  for (const id of ["case-attack", "case-filter", "case-level"]) byId(id).addEventListener("change", list);
  byId("case-search").addEventListener("input", list);
  byId("case-all").addEventListener("click", () => { showAll(); byId("case-search").focus(); });
  find("#browser form").addEventListener("submit", (event) => event.preventDefault());
  byId("case-list").addEventListener("keydown", (event) => {
    const last = shown.length - 1, here = shown.indexOf(main.item);
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last, PageDown: here + 10, PageUp: here - 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = shown[Math.max(0, Math.min(last, to))];
    if (next !== main.item) select(next, { focus: true, remember: true });
  });
  byId("case-link").addEventListener("click", (event) => {
    event.preventDefault();
    history.replaceState(null, "", hash());
    navigator.clipboard?.writeText(location.href).then(() => {
      byId("case-link").textContent = "Link copied";
      setTimeout(() => { byId("case-link").textContent = "Link to this case"; }, 2000);
    }, () => {});
  });
  byId("case-keep").addEventListener("click", () => { keep(main.item).then(() => link(true)); });
  byId("case-drop").addEventListener("click", () => {
    beside.drop();
    byId("case-beside").hidden = true;
    find(".panes").classList.remove("two");
    link(true);
    byId("case-keep").focus();
  });
  const setWindow = (low, high) => { byId("window").value = high - low; byId("level").value = (high + low) / 2; paint(); };
  Object.assign(byId("window"), { min: Math.max(1, span / 256), max: span, step: span > 255 ? 1 : 0.5 });
  Object.assign(byId("level"), { min: 0, max: span, step: span > 255 ? 1 : 0.5 });
  setWindow(0, span);
  byId("amplify").value = Math.log2(amplify);
  for (const id of ["amplify", "slice", "window", "level"]) byId(id).addEventListener("input", paint);
  byId("axis").addEventListener("change", () => { fitSlices(); paint(); });
  const presets = [["Full range", () => [0, span]], ["Fit this image", () => {
    const sorted = main.volume.clean.slice().sort();
    return [sorted[Math.floor(sorted.length * 0.01)], Math.max(1, sorted[Math.floor(sorted.length * 0.99)])];
  }]];
  if (scale.unit === "HU") {
    const stored = (value) => ((value - scale.low) / (scale.high - scale.low)) * span;
    for (const [name, width, middle] of [["Soft tissue", 400, 40], ["Lung", 1500, -600], ["Bone", 1800, 400], ["Brain", 80, 40]]) {
      presets.push([name, () => [stored(middle - width / 2), stored(middle + width / 2)]]);
    }
  }
  for (const [name, ends] of presets) {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => setWindow(...ends()));
    byId("presets").append(button);
  }
  document.addEventListener("theme", paint);
  addEventListener("hashchange", openAsked);
  // the address may be the present one already: then nothing changes, and nothing is told
  for (const to of all('main a[href^="#case="]')) to.addEventListener("click", () => setTimeout(openAsked));
  byId("browser").hidden = false;
  list();
  openAsked();
}
