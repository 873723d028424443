// The overview: values under the pointer, zoom, log scale, and new curves while the run goes on. The server draws.

import { grow, load, onKeys, onNews, say } from "./base.js";

const LEFT = 50, RIGHT = 14, TOP = 10, BOTTOM = 44, WIDTH = 480, HEIGHT = 238; // of report/axes.py
const SVG = "http://www.w3.org/2000/svg";
const content = document.getElementById("content") ?? document.getElementById("main");
const view = new URLSearchParams(location.search);
const parsed = new WeakMap();
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("role", "status");
document.body.append(tip);

function chartOf(figure) {
  if (!parsed.has(figure)) parsed.set(figure, { ...JSON.parse(figure.dataset.chart), svg: figure.querySelector("svg"), at: null });
  return parsed.get(figure);
}

function toX(chart, step) {
  const [x0, x1] = chart.frame;
  return LEFT + ((step - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
}

function toY(chart, value) {
  const [, , y0, y1] = chart.frame;
  const scaled = Math.min(Math.max(chart.log ? Math.log10(value) : value, y0), y1);
  return HEIGHT - BOTTOM - ((scaled - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
}

function stepAt(chart, event) {
  const box = chart.svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * WIDTH;
  const [x0, x1] = chart.frame;
  return Math.min(Math.max(x0 + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0), x0), x1);
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1; else high = middle;
  }
  return low && Math.abs(points[low - 1][0] - step) <= Math.abs(points[low][0] - step) ? low - 1 : low;
}

function number(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function clear(chart) {
  chart.svg.querySelector(".cursor")?.remove();
  tip.hidden = true;
}

/** Shows the values of all curves at the step nearest to `step`. */
function show(chart, step) {
  clear(chart);
  const points = chart.series.map(([, points]) => points).reduce((a, b) => (a.length >= b.length ? a : b));
  const at = points[nearest(points, step)][0];
  chart.at = at;
  const layer = element("g", { class: "cursor" });
  layer.append(element("line", { class: "cross", x1: toX(chart, at), x2: toX(chart, at), y1: TOP, y2: HEIGHT - BOTTOM }));
  const head = document.createElement("b");
  head.textContent = `step ${at}`;
  tip.replaceChildren(head);
  chart.series.forEach(([name, points], index) => {
    const [x, y] = points[nearest(points, at)];
    if (Math.abs(x - at) > (chart.frame[1] - chart.frame[0]) / 20) return;
    layer.append(element("circle", { class: `dot s${index % 6}`, cx: toX(chart, x), cy: toY(chart, y), r: 3.5 }));
    const line = document.createElement("div");
    line.className = `key s${index % 6}`;
    line.textContent = `${name}  ${number(y)}`;
    tip.append(line);
  });
  chart.svg.append(layer);
  tip.hidden = false;
  const box = chart.svg.getBoundingClientRect();
  const left = box.left + (toX(chart, at) / WIDTH) * box.width + 14;
  tip.style.left = `${Math.min(left, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.max(8, box.top - 4)}px`;
}

let drag = null;

function onMove(event) {
  const figure = event.target.closest?.("figure[data-chart]");
  if (drag) {
    const [a, b] = [drag.from, stepAt(drag.chart, event)].sort((x, y) => x - y);
    drag.box.setAttribute("x", toX(drag.chart, a));
    drag.box.setAttribute("width", toX(drag.chart, b) - toX(drag.chart, a));
    drag.range = [a, b];
  } else if (figure && event.target.closest("svg")) {
    show(chartOf(figure), stepAt(chartOf(figure), event));
  } else {
    tip.hidden = true;
    document.querySelectorAll(".cursor").forEach((layer) => layer.remove());
  }
}

function onDown(event) {
  const figure = event.target.closest("svg") && event.target.closest("figure[data-chart]");
  if (!figure || event.button !== 0 || event.pointerType === "touch") return;
  const chart = chartOf(figure);
  const from = stepAt(chart, event);
  const box = element("rect", { class: "zoom", x: toX(chart, from), width: 0, y: TOP, height: HEIGHT - TOP - BOTTOM });
  chart.svg.append(box);
  drag = { chart, from, box, range: [from, from] };
  event.preventDefault();
  figure.focus({ preventScroll: true });
}

function onUp() {
  if (!drag) return;
  const { chart, box, range: [a, b] } = drag;
  drag = null;
  box.remove();
  if (toX(chart, b) - toX(chart, a) < 8) return;
  view.set("from", Math.floor(a));
  view.set("to", Math.ceil(b));
  refresh(`steps ${Math.floor(a)} to ${Math.ceil(b)}`);
}

async function refresh(said) {
  const query = view.toString();
  if (!document.body.dataset.content) { // the page of several runs is made anew as a whole
    location.search = query;
    return;
  }
  history.replaceState(null, "", query ? `?${query}${location.hash}` : location.pathname + location.hash);
  try {
    const fresh = await load(`${document.body.dataset.content}?${query}`);
    const focus = document.activeElement?.id;
    if (drag) return;
    content.replaceChildren(...fresh.body.childNodes);
    tip.hidden = true;
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
    content.dataset.loads = Number(content.dataset.loads ?? 0) + 1;
    grow();
    if (said) say(said);
  } catch (error) {
    say(`The page could not be brought up to date: ${error.message}`);
  }
}

function allSteps() {
  view.delete("from");
  view.delete("to");
  refresh("all steps");
}

function logScale() {
  if (view.has("log")) view.delete("log"); else view.set("log", "1");
  refresh(view.has("log") ? "log scale" : "linear scale");
}

document.addEventListener("pointermove", onMove);
content.addEventListener("pointerdown", onDown);
addEventListener("pointerup", onUp);
content.addEventListener("dblclick", (event) => event.target.closest("svg") && allSteps());
content.addEventListener("click", (event) => {
  if (event.target.closest("#log")) logScale();
  if (event.target.closest("#all-steps")) allSteps();
});
content.addEventListener("keydown", (event) => {
  const figure = event.target.closest("figure[data-chart]");
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!figure || !way) return;
  const chart = chartOf(figure);
  const points = chart.series[0][1];
  const place = chart.at === null ? (way > 0 ? -1 : points.length) : nearest(points, chart.at);
  show(chart, points[Math.min(Math.max(place + way, 0), points.length - 1)][0]);
  event.preventDefault();
});
onKeys({
  l: logScale,
  0: allSteps,
  r: () => document.body.dataset.run && location.assign(`/runs/${document.body.dataset.run}/rollouts`),
});
if (document.body.dataset.live) onNews(() => refresh());
