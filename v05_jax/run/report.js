// Draws the charts of a report from the data beside each of them, shows values under the pointer,
// and draws anew where methods are hidden or the page changes its width.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const LETTER = 6.3; // pixels, of the axes' labels
  const boxes = [...document.querySelectorAll("input.show")];
  const isShown = (line) => line.method === null || boxes[line.method].checked;

  function add(parent, tag, attributes = {}, text = "") {
    const svg = parent.namespaceURI === SVG || tag === "svg";
    const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    return parent.appendChild(node);
  }

  // --- Numbers

  function brief(value, step) { // of an axis whose numbers are a step apart
    const size = Math.abs(value);
    const [unit, power] = size >= 1e6 ? ["M", 6] : size >= 1e3 ? ["k", 3] : ["", 0];
    const digits = Math.ceil(power - Math.log10(step) - 1e-9);
    return +(value / 10 ** power).toFixed(Math.max(0, Math.min(12, digits))) + unit;
  }

  function exact(value) { // under the pointer
    if (value === null) return "not finite";
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    return size >= 0.001 && size < 1000 ? value.toFixed(4) : `${+value.toPrecision(5)}`;
  }

  const signed = (value) => (value > 0 ? "+" : "") + (value === 0 ? "0" : exact(value));

  function ticks(low, high, most) { // round numbers within [low, high]
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * (1 - 1e-9));
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
    return found;
  }

  function range(values, margin) { // -> [low, high] around what is finite, a little wider
    const finite = values.filter((value) => value !== null);
    const low = finite.length ? finite.reduce((a, b) => Math.min(a, b)) : 0;
    const high = finite.length ? finite.reduce((a, b) => Math.max(a, b)) : 1;
    const room = high > low ? margin * (high - low) : margin ? Math.abs(low) / 10 || 1 : 0.5;
    return [low - room, high + room];
  }

  const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

  // --- Curves

  const bounds = (line) => line.y.flatMap((y, i) => {
    if (y === null) return [];
    const error = line.error ? line.error[i] || 0 : 0;
    return [y - error, y + error];
  });

  function path(xs, ys, x, y) { // broken where a value is missing
    let pen = "M";
    return xs.map((place, i) => {
      if (ys[i] === null) { pen = "M"; return ""; }
      const part = `${pen}${x(place).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
      pen = "L";
      return part;
    }).join("");
  }

  function band(line, x, y) {
    const kept = line.x.map((_, i) => i).filter((i) => line.y[i] !== null);
    const edge = (sign) => kept.map((i) => `${x(line.x[i]).toFixed(1)} ${y(line.y[i] + sign * (line.error[i] || 0)).toFixed(1)}`);
    return kept.length ? `M${[...edge(1), ...edge(-1).reverse()].join("L")}z` : "";
  }

  function drawLine(plot, line, number, x, y) {
    const group = add(plot, "g", { class: "line", "data-name": line.name });
    const stroke = { stroke: line.colour, fill: "none", "stroke-linejoin": "round" };
    if (line.error) add(group, "path", { d: band(line, x, y), fill: line.colour, opacity: 0.15 });
    if (line.single) add(group, "path", { ...stroke, d: path(line.x, line.single, x, y), "stroke-width": 0.8, opacity: 0.3 });
    const dashes = line.dash ? { "stroke-dasharray": line.dash } : {};
    add(group, "path", { ...stroke, ...dashes, d: path(line.x, line.y, x, y), "stroke-width": 1.6 });
    const every = Math.ceil(line.x.length / 12); // marks, and not at the same places for all lines
    const first = Math.floor((number * every) / 4) % every;
    for (let i = first; i < line.x.length; i += every) {
      if (line.y[i] === null) continue;
      const place = `translate(${x(line.x[i]).toFixed(1)} ${y(line.y[i]).toFixed(1)})`;
      add(group, "path", { d: line.mark, transform: place, fill: line.colour });
    }
  }

  function labels(values) {
    const step = values.length > 1 ? values[1] - values[0] : Math.abs(values[0]) / 100 || 1;
    return values.map((value) => [value, brief(value, step)]);
  }

  function axes(plot, size, x, y, xTicks, yTicks, label) {
    for (const [value, text] of labels(yTicks)) {
      add(plot, "line", { x1: size.left, x2: size.width - size.right, y1: y(value), y2: y(value), stroke: "var(--grid)" });
      add(plot, "text", { class: "y", x: size.left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    for (const [value, text] of labels(xTicks)) {
      add(plot, "line", { x1: x(value), x2: x(value), y1: size.top, y2: size.bottom, stroke: "var(--grid)" });
      add(plot, "text", { class: "x", x: x(value), y: size.bottom + 15, "text-anchor": "middle" }, text);
    }
    if (label) add(plot, "text", { x: size.width - size.right, y: size.bottom + 30, "text-anchor": "end" }, label);
  }

  function curves(plot, chart, lines, width) {
    const height = Math.max(190, Math.min(340, 0.58 * width));
    const size = { width, left: 20, right: 16, top: 8, bottom: height - 36 };
    const xRange = range(lines.flatMap((line) => line.x), 0);
    const yRange = range(lines.flatMap((line) => [...bounds(line), ...(line.single || [])]), 0.04);
    const yTicks = ticks(...yRange, 5);
    size.left = 12 + LETTER * Math.max(...labels(yTicks).map(([, text]) => text.length));
    const x = scale(xRange, size.left, width - size.right);
    const y = scale(yRange, size.bottom, size.top);
    plot.setAttribute("height", height);
    axes(plot, size, x, y, ticks(...xRange, width < 360 ? 4 : 6), yTicks, chart.x);
    lines.forEach((line, number) => drawLine(plot, line, line.method ?? number, x, y));
    const cursor = add(plot, "g", { class: "cursor" });
    const places = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    return { places, show: (place) => pointed(cursor, chart, lines, place, x, y, size), place: (left) => nearest(places, left, x) };
  }

  const nearest = (places, left, x) =>
    places.reduce((best, place, i) => (Math.abs(x(place) - left) < Math.abs(x(places[best]) - left) ? i : best), 0);

  // The values of all lines at a place: those of their nearest points, where they reach so far.
  function pointed(cursor, chart, lines, place, x, y, size) {
    cursor.replaceChildren();
    add(cursor, "line", { x1: x(place), x2: x(place), y1: size.top, y2: size.bottom, stroke: "var(--pale)", "stroke-dasharray": "2 2" });
    const rows = [];
    for (const line of lines) {
      const last = line.x.length - 1;
      if (place < line.x[0] || place > line.x[last]) continue;
      const i = nearest(line.x, place, (value) => value);
      const error = line.error && line.error[i] ? ` ± ${exact(line.error[i])}` : "";
      const single = line.single ? ` (single step ${exact(line.single[i])})` : "";
      const at = line.x[i] === place ? "" : ` at ${exact(line.x[i])}`;
      rows.push({ line, value: line.y[i], text: `${exact(line.y[i])}${error}${single}${at}` });
      if (line.y[i] !== null) add(cursor, "circle", { cx: x(line.x[i]), cy: y(line.y[i]), r: 4, fill: "none", stroke: line.colour, "stroke-width": 2 });
    }
    rows.sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity));
    return { left: x(place), top: size.top, head: `${exact(place)} ${chart.x}`, rows };
  }

  // --- Intervals: a line of text each, and its mean and interval below

  function intervals(plot, chart, lines, width) {
    const each = 34;
    const size = { width, left: 10, right: 10, top: 4, bottom: 8 + each * lines.length };
    const ends = lines.flatMap((line) => [line.mean - (line.half || 0), line.mean + (line.half || 0)]);
    const xRange = range([0, ...ends], 0.06);
    const x = scale(xRange, size.left, width - size.right);
    plot.setAttribute("height", size.bottom + 22);
    axes(plot, size, x, null, ticks(...xRange, width < 360 ? 4 : 6), [], "");
    add(plot, "line", { x1: x(0), x2: x(0), y1: size.top, y2: size.bottom, stroke: "var(--ink)" });
    lines.forEach((line, number) => {
      const middle = size.top + each * number + 25;
      const group = add(plot, "g", { class: "line", "data-name": line.name });
      add(group, "text", { x: size.left, y: middle - 9 }, line.name);
      const half = line.half || 0;
      add(group, "path", { d: `M${x(line.mean - half)} ${middle}H${x(line.mean + half)}`, stroke: line.colour, "stroke-width": 1.6 });
      add(group, "path", { d: line.mark, transform: `translate(${x(line.mean)} ${middle})`, fill: line.colour });
    });
    const place = (_, top) => Math.max(0, Math.min(lines.length - 1, Math.floor((top - size.top) / each)));
    return { places: lines.map((_, i) => i), show: (i) => told(lines[i], x, size.top + each * i), place };
  }

  function told(line, x, top) {
    const interval = line.half === null ? " (1 pair: no interval)" : ` [${signed(line.mean - line.half)}, ${signed(line.mean + line.half)}]`;
    const pairs = line.pairs ? `, ${line.pairs} pair${line.pairs > 1 ? "s" : ""}` : "";
    return { left: x(line.mean), top, head: "", rows: [{ line, text: `${signed(line.mean)}${interval}${line.half === null ? "" : pairs}` }] };
  }

  // --- A figure: its chart, its legend, the box with the values

  function swatch(parent, line) {
    const icon = add(parent, "svg", { class: "swatch", viewBox: "0 0 34 10", "aria-hidden": "true" });
    add(icon, "path", { d: "M0 5H34", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dash || "none" });
    add(icon, "path", { d: line.mark, transform: "translate(17 5)", fill: line.colour });
  }

  function legend(figure, lines) { // of lines that are no methods, where there are several
    if (lines.length < 2 || lines[0].method !== null) return;
    const names = add(figure, "div", { class: "names" });
    for (const line of lines) {
      const name = add(names, "span");
      swatch(name, line);
      name.append(`${line.name} `);
    }
  }

  function tell(tip, said, width) {
    tip.replaceChildren();
    if (said.head) add(tip, "div", {}, said.head);
    for (const { line, text } of said.rows) {
      const row = add(tip, "div", { class: "value" });
      swatch(row, line);
      row.append(`${line.name} `);
      add(row, "b", {}, text);
    }
    tip.hidden = false;
    const beside = said.left + 14 + tip.offsetWidth <= width ? said.left + 14 : said.left - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(beside, width - tip.offsetWidth))}px`;
  }

  function start(figure) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const all = chart.kind === "curves" ? chart.lines : chart.rows;
    if (chart.kind === "curves") legend(figure, all);
    const plot = add(figure, "svg", { class: "plot", "aria-hidden": "true" });
    const tip = add(figure, "div", { class: "tip", role: "status" });
    let drawn = null, width = 0, current = -1;

    function hide() {
      tip.hidden = true;
      current = -1;
      plot.querySelector(".cursor")?.replaceChildren();
    }

    function draw() {
      width = figure.clientWidth;
      if (!width) return; // within a closed part of the page
      hide();
      plot.replaceChildren();
      const lines = all.filter(isShown);
      drawn = lines.length ? (chart.kind === "curves" ? curves : intervals)(plot, chart, lines, width) : null;
      if (!drawn) add(plot, "text", { x: 4, y: 20 }, "no method of this chart is shown");
    }

    function show(i) {
      current = i;
      const said = drawn.show(drawn.places[i]);
      tell(tip, said, width);
      const above = plot.getBoundingClientRect().top - figure.getBoundingClientRect().top;
      tip.style.top = `${above + said.top}px`;
    }

    function point(event) {
      if (!drawn) return;
      const box = plot.getBoundingClientRect();
      show(drawn.place(event.clientX - box.left, event.clientY - box.top));
    }

    function key(event) {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!drawn || !step) return;
      event.preventDefault();
      show(Math.max(0, Math.min(drawn.places.length - 1, current < 0 ? 0 : current + step)));
    }

    hide();
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    figure.addEventListener("keydown", key);
    figure.addEventListener("blur", hide);
    document.addEventListener("pointerdown", (event) => figure.contains(event.target) || hide());
    // Seen when the page has its width, when that changes, and when the part around is opened.
    new ResizeObserver(() => requestAnimationFrame(() => figure.clientWidth !== width && draw())).observe(figure);
    return draw;
  }

  // --- The page

  const draws = [...document.querySelectorAll("figure.chart")].map(start);

  function update() {
    boxes.forEach((box, method) => {
      for (const row of document.querySelectorAll(`.row-${method}`)) row.classList.toggle("unshown", !box.checked);
    });
    draws.forEach((draw) => draw());
  }

  function check(value) {
    boxes.forEach((box) => { box.checked = value; });
    update();
  }

  boxes.forEach((box) => box.addEventListener("change", update));
  document.getElementById("all")?.addEventListener("click", () => check(true));
  document.getElementById("none")?.addEventListener("click", () => check(false));

  function mark() { // the tables that are wider than the page
    for (const wide of document.querySelectorAll(".wide")) wide.classList.toggle("scrolls", wide.scrollWidth > wide.clientWidth + 1);
  }
  const tables = new ResizeObserver(() => requestAnimationFrame(mark));
  document.querySelectorAll(".wide").forEach((wide) => tables.observe(wide));
})();
