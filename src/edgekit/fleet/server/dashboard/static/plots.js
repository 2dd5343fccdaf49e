// Plots of the rollout and of the comparison: data from the server, colours from the style sheet.
"use strict";

const plots = new Map();
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const soft = (name, share) => `color-mix(in srgb, ${color(name)} ${share}%, transparent)`;

function axes(unit) {
  const style = { stroke: color("quiet"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const digits = (values) => {
    const step = values.length > 1 ? Math.abs(values[1] - values[0]) : 1;
    let places = 0;
    while (places < 4 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6) places += 1;
    return values.map((value) => value.toFixed(places) + unit);
  };
  // Hours of a day; where another day begins, the day.
  const times = (_, values) => {
    let before = "";
    return values.map((at, number) => {
      const full = new Date(at * 1e3).toISOString();
      const day = full.slice(5, 10);
      const shown = number > 0 && day !== before ? day : full.slice(11, 16);
      before = day;
      return shown;
    });
  };
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 40320].map((minutes) => minutes * 60);
  return [
    { ...style, space: 64, grid: { show: false }, size: 28, values: times, incrs: steps },
    { ...style, space: 34, size: 52, values: (_, values) => digits(values) },
  ];
}

const line = (label, name, more = {}) => ({ label, stroke: color(name), width: 2, points: { show: false }, spanGaps: true, ...more });

function draw(place, key, options, data) {
  const width = Math.floor(place.clientWidth);
  if (width < 40) return;
  const known = plots.get(key);
  if (known && known.width === width && known.series === options.series.length) {
    known.plot.batch(() => {
      known.plot.setData(data, false);
      const range = options.scales?.y?.range;
      known.plot.setScale("x", { min: data[0][0], max: data[0][data[0].length - 1] });
      if (Array.isArray(range)) known.plot.setScale("y", { min: range[0], max: range[1] });
    });
    return;
  }
  known?.plot.destroy();
  const plot = new uPlot(
    {
      width, height: options.height ?? 200, legend: { show: false }, padding: [10, 18, 0, 0], ms: 1e-3,
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"), ...options,
    },
    data, place,
  );
  plot.root.setAttribute("role", "img");
  plot.root.setAttribute("aria-label", options.described);
  tip(plot, options.unit ?? "");
  plots.set(key, { plot, width, series: options.series.length });
}

// What the pointer is at, in words.
function tip(plot, unit) {
  const box = document.createElement("div");
  box.className = "tip";
  box.hidden = true;
  plot.over.append(box);
  plot.hooks.setCursor = [() => {
    const at = plot.cursor.idx;
    box.hidden = at == null || plot.cursor.left < 0;
    if (box.hidden) return;
    const day = new Date(plot.data[0][at] * 1e3).toISOString();
    const lines = plot.series.slice(1).map((each, number) => [each, plot.data[number + 1][at]]).filter(([each, value]) => value != null && each.label);
    box.textContent = [`${day.slice(0, 10)} ${day.slice(11, 16)}`, ...lines.map(([each, value]) => `${each.label} ${+value.toPrecision(4)}${unit}`)].join("\n");
    const right = plot.cursor.left > plot.over.clientWidth / 2;
    box.classList.toggle("left", right);
    box.style.left = `${plot.cursor.left}px`;
  }];
}

// Lines across: where a limit lies, and where a step began.
function marks(limits, steps = []) {
  return { hooks: { drawAxes: [(plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.strokeStyle = color("limit");
    for (const limit of limits) {
      const y = plot.valToPos(limit, "y", true);
      if (y < bbox.top || y > bbox.top + bbox.height) continue;
      ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
    }
    ctx.setLineDash([]);
    ctx.lineWidth = devicePixelRatio;
    ctx.strokeStyle = color("line-strong");
    ctx.fillStyle = color("quiet");
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    let free = -Infinity;
    for (const step of steps) {
      const x = plot.valToPos(step.at, "x", true);
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      const text = `${step.stage} ${step.phase}`;
      const wide = ctx.measureText(text).width;
      if (x > free && x + wide < bbox.left + bbox.width) { ctx.fillText(text, x + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio); free = x + wide + 12 * devicePixelRatio; }
    }
    ctx.restore();
  }] } };
}

function place(root, name) { return root.querySelector(`[data-plot="${name}"]`); }

function rollout(root, found) {
  const shown = found.at.length > 1;
  root.querySelector(".waits").hidden = shown;
  root.querySelector("figure").hidden = !shown;
  if (!shown) return;
  const most = Math.max(1, ...found.bound);
  draw(place(root, "share"), "share", {
    described: "Share of the cohort within the bound, and that has the version, over time", unit: "%", height: 190,
    scales: { y: { range: [0, most > 45 ? 100 : most * 1.25] } },
    axes: axes("%"), plugins: [marks([], found.steps)],
    series: [{}, line("within the bound", "bound", { paths: uPlot.paths.stepped({ align: 1 }), fill: soft("bound", 12) }), line("have it", "candidate", { paths: uPlot.paths.stepped({ align: 1 }) })],
  }, [found.at, found.bound, found.have]);
  const grid = place(root, "gates");
  for (const gate of found.gates) {
    let figure = grid.querySelector(`[data-gate="${gate.gate}"]`);
    if (!figure) {
      figure = document.createElement("figure");
      figure.dataset.gate = gate.gate;
      const caption = document.createElement("figcaption");
      caption.textContent = gate.title;
      const box = document.createElement("div");
      box.className = "plot";
      figure.append(caption, box);
      grid.append(figure);
    }
    const pad = (gate.high - gate.low) * 0.04;
    draw(figure.querySelector(".plot"), gate.gate, {
      described: `${gate.title}: estimate and interval over time, limit ${gate.limit}${gate.unit}`, unit: gate.unit, height: 150,
      scales: { y: { range: [gate.low - pad, gate.high + pad] } }, axes: axes(gate.unit), plugins: [marks([gate.limit])],
      bands: [{ series: [2, 1], fill: soft("candidate", 20) }],
      // Between steps in which a gate is not asked there is nothing to draw.
      series: [["at least", 0], ["at most", 0], ["estimate", 2]].reduce((all, [label, width]) => [...all, line(label, "candidate", { width, spanGaps: false })], [{}]),
    }, [found.at, gate.lower, gate.upper, gate.estimate]);
  }
}

function comparison(root, found) {
  if (!found.at.length) return;
  const low = Math.min(...[...found.agreement, ...found.floor].filter((value) => value != null));
  draw(place(root, "agreement"), "agreement", {
    described: "Agreement of both versions, and of live with itself, over time", unit: "%",
    scales: { y: { range: [Math.max(0, Math.floor(low - (100 - low) * 0.3)), 100] } }, axes: axes("%"),
    series: [{}, line("agreement", "candidate"), line("live with itself", "floor", { dash: [4, 4] })],
  }, [found.at, found.agreement, found.floor]);
  draw(place(root, "latency"), "latency", {
    described: "Median latency of live and of the candidate over time", unit: " ms", axes: axes(" ms"),
    scales: { y: { range: (_, least, most) => [0, (most || 1) * 1.2] } },
    series: [{}, line("live", "live"), line("candidate", "candidate")],
  }, [found.at, found.live_ms, found.candidate_ms]);
  const names = ["candidate", "live", "bound", "floor", "kept"];
  const inputs = found.inputs.slice(0, 3).map((each) => [`input ${each.name}`, each.psi]);
  const lines = [["confidence", found.confidence], ["confidence, Jensen-Shannon (bit)", found.divergence], ...inputs];
  const keys = root.querySelector("[data-keys=drift]");
  keys.replaceChildren(...lines.flatMap(([label], number) => {
    const key = document.createElement("span");
    key.className = `key ${names[number]}`;
    return [key, document.createTextNode(`${label} `)];
  }));
  draw(place(root, "drift"), "drift", {
    described: "Population stability index of the confidence and of inputs over time", axes: axes(""),
    scales: { y: { range: (_, least, most) => [0, Math.max(0.3, (most || 0) * 1.15)] } }, plugins: [marks([0.25])],
    series: [{}, ...lines.map(([label], number) => line(label, names[number]))],
  }, [found.at, ...lines.map(([, values]) => values)]);
}

const kinds = { rollout, comparison };

async function load(root) {
  const answer = await fetch(root.dataset.src, { headers: { Accept: "application/json" }, redirect: "error" }).catch(() => null);
  if (!answer?.ok) return;
  root.found = await answer.json();
  kinds[root.dataset.plots](root, root.found);
  root.dataset.drawn = "yes";
}

function redraw() {
  for (const [, known] of plots) known.plot.destroy();
  plots.clear();
  for (const root of document.querySelectorAll("[data-plots]")) if (root.found) kinds[root.dataset.plots](root, root.found);
}

for (const root of document.querySelectorAll("[data-plots]")) {
  load(root);
  setInterval(() => { if (!document.hidden) load(root); }, 1000 * Number(root.dataset.every));
}
let waiting = 0;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
